"""Every example compiles, runs, and agrees with the definition in float64; so do its gradients."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.backends.binding import bind_call
from tfc.backends.reference.program import evaluate
from tfc.ir.types import DType
from tfc.params.tree import flatten, nest

EXAMPLES = Path(__file__).parents[1] / "examples"

SMALL: dict[str, dict[str, Any]] = {
    "minilm": {"layers": 2, "vocab": 50, "longest": 16, "width": 48, "hidden": 64},
    "minilm_low_rank": {"rank": 32},
    "gpt2_block": {"width": 32, "vocab": 50},
    "llama_block": {"width": 32, "hidden": 40, "vocab": 50},
    "train_tiny": {"layers": 2, "width": 32},
    "tilted": {"compute": "f32", "layers": 2, "width": 32, "vocab": 50},
}
"""`let`s that make each example quick; an example without an entry runs as it is."""


def drawn(model: tfc.Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters wide enough that no part is close to nothing, and inputs: ids below 2, real numbers."""
    rng = np.random.default_rng(0)
    params = {
        s.path: jnp.asarray(rng.normal(s.path.endswith("scale"), 0.2, s.type.ints), jnp.float32)
        for s in model.lowered.stored()
    }
    lengths = {"B": 2, "T": 7}
    inputs: dict[str, Any] = {}
    for i in model.lowered.inputs:
        shape = i.value.type.bind(lengths).ints
        if i.value.name == "lengths":
            inputs["lengths"] = np.array([7, 4])
        elif i.value.type.dtype is DType.I32:
            inputs[i.value.name] = rng.integers(0, 2, shape)
        else:
            inputs[i.value.name] = rng.standard_normal(shape).astype(np.float32)
    return nest(params), inputs


@pytest.mark.parametrize("name", sorted(p.stem for p in EXAMPLES.glob("*.tfm")))
def test_an_example_is_its_definition(name: str):
    """Values and gradients of the program after the passes, in float32, and of the program as lowered, in float64."""
    model = tfc.compile(EXAMPLES / f"{name}.tfm", target="cpu", **SMALL.get(name, {}))
    params, inputs = drawn(model)

    def ours(p: dict[str, Any]) -> Any:
        out = model(p, **inputs)
        return jnp.sum(jnp.sin(out)), out

    (_, got), grads = jax.value_and_grad(ours, has_aux=True)(params)
    with jax.enable_x64(True):
        bound = bind_call(model.lowered, {n: jnp.asarray(x) for n, x in inputs.items()})

        def definition(p: dict[str, Any], real: Any) -> Any:
            (out,) = evaluate(bound.program, p, bound.inputs, real)
            return jnp.sum(jnp.sin(out)), out

        def defined(real: Any) -> Any:
            typed = {path: x.astype(real) for path, x in flatten(params).items()}
            both = jax.jit(partial(jax.value_and_grad(definition, has_aux=True), real=real))(typed)
            return jax.tree.map(np.asarray, both)

        (_, want), slopes = defined(jnp.float64)
        (_, near), near_slopes = defined(jnp.float32)
    # as far as the definition's own float32 is, and what its other order of operations may add
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=max(2e-5 * scale, 3 * np.abs(near - want).max()))
    for path, slope in flatten(grads).items():
        exact = slopes[path]
        rounded = np.abs(near_slopes[path] - exact).max()
        floor = 2e-4 * max(1e-2, np.abs(exact).max())
        np.testing.assert_allclose(slope, exact, rtol=0, atol=max(floor, 3 * rounded))
