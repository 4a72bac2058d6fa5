"""Named cases and axes turned into verdicts: the interpreted kernel with its gradients under `vmap`, beside a loop.

This module runs in a worker process, as `gradients` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gradients import H200, equation
from interpreted import Case

from tfc.backends.gradients import differentiable
from tfc.backends.pallas_gpu.backward import KERNEL
from tfc.backends.table import named
from tfc.compat import mosaic_races, reset_interpreter

Arrays = Sequence[Any]


def judge(fields: Mapping[str, Any], mapped: Sequence[int], times: int = 3, behind: bool = False) -> dict[str, Any]:
    """Results and gradients of `times` calls, as one call under `vmap` and one by one.

    mapped: the operands, by number, that differ from call to call; behind: along their last axis instead of the first.
    """
    eqn, operands = equation(Case(**fields))
    assert KERNEL.gradient is not None and KERNEL.gradient.refuse(eqn, H200) is None
    xla = named(type(eqn.op), "xla")
    assert xla is not None
    call = differentiable(KERNEL, eqn, H200, xla)
    real = tuple(i for i, x in enumerate(operands) if jnp.issubdtype(x.dtype, jnp.floating))
    rng = np.random.default_rng(7)
    dout, dlse = (jnp.asarray(rng.normal(size=o.type.ints), jnp.float32) for o in eqn.outs)

    def loss(*given: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        out, lse = call(*given)
        seen = jnp.where(jnp.isneginf(lse), 0.0, lse)
        return jnp.sum(out.astype(jnp.float32) * dout) + jnp.sum(seen * dlse), (out, lse)

    graded = jax.grad(loss, real, has_aux=True)

    def several(x: Any) -> list[Any]:
        """The operand as it is, and others like it: its tokens, or a table's numbers, in another order."""
        axis = 1 if x.ndim > 1 else 0
        return [jnp.asarray(np.roll(x, 5 * t, axis) if t < 2 else np.flip(x, axis).copy()) for t in range(times)]

    others = {i: several(operands[i]) for i in mapped}
    axis = -1 if behind else 0
    axes = tuple(axis if i in mapped else None for i in range(len(operands)))
    stacked = [jnp.stack(others[i], axis) if i in others else jnp.asarray(x) for i, x in enumerate(operands)]
    reset_interpreter()
    together = jax.jit(jax.vmap(graded, axes))(*stacked)
    single = jax.jit(graded)
    apart = [
        single(*(others[i][t] if i in others else jnp.asarray(x) for i, x in enumerate(operands))) for t in range(times)
    ]
    assert not mosaic_races(), "RACE DETECTED"
    wrong = []
    for t, one in enumerate(apart):
        for n, (x, y) in enumerate(zip(jax.tree.leaves(together), jax.tree.leaves(one), strict=True)):
            if not np.array_equal(x[t], y):
                wrong.append(f"array {n} of call {t}: {np.abs(np.asarray(x[t] - y, np.float32)).max()}")
    firsts = [np.asarray(jax.tree.leaves(one)[-2], np.float32) for one in apart]
    return {"wrong": "; ".join(wrong), "differ": all(np.any(firsts[0] != x) for x in firsts[1:])}
