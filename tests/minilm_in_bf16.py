"""MiniLM for an H200, in bf16, turned into hidden states three ways: by its kernels, in plain jnp, and in float64.

Where the kernels are interpreted this module runs in a worker process (`tfc.testing.worker`): one can hang.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tfc
from tfc.backends.binding import bind_call
from tfc.backends.reference.program import evaluate
from tfc.compat import mosaic_races
from tfc.params.tree import flatten, nest

SPEC = Path(__file__).parents[1] / "examples" / "minilm.tfm"


def hidden_states(layers: int, interpret: bool = True) -> dict[str, Any]:
    """`kernels`, `plain` and `definition`: [2, 7, 384] in float64, padding included; `chosen`: attention's kernels.

    Weights are drawn so wide that attention is far from even; vocabulary and positions are cut short.
    """
    sizes: dict[str, Any] = {"layers": layers, "vocab": 50, "longest": 16, "pooled": "no", "compute": "bf16"}
    model = tfc.compile(SPEC, target="h200", interpret=interpret, **sizes)
    rng = np.random.default_rng(0)
    flat = {
        s.path: jnp.asarray(rng.normal(s.path.endswith("scale"), 0.08, s.type.ints), jnp.float32)
        for s in model.lowered.stored()
    }
    inputs = {"tokens": rng.integers(0, 50, (2, 7)), "lengths": np.array([7, 4])}
    params = nest(flat)
    rows = model.explain(B=2, T=7).lines
    kernels = np.asarray(model(params, **inputs), np.float64)
    raced = interpret and mosaic_races()
    plain = tfc.compile(SPEC, target="h200", interpret=True, implementation="xla", **sizes)(params, **inputs)
    with jax.enable_x64(True):
        bound = bind_call(model.lowered, {name: jnp.asarray(x) for name, x in inputs.items()})
        wide = {path: x.astype(jnp.float64) for path, x in flatten(params).items()}
        (definition,) = jax.jit(lambda p, i: evaluate(bound.program, p, i, jnp.float64))(wide, bound.inputs)
        assert definition.dtype == jnp.float64
    return {
        "kernels": kernels,
        "plain": np.asarray(plain, np.float64),
        "definition": np.asarray(definition),
        "chosen": [(r.row.kernel, r.row.count) for r in rows if r.row.op == "attention"],
        "raced": raced,
    }
