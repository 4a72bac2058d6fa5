"""Products of a gradient kernel's tiles turned into `wgmma`s that run beside the work on earlier ones.

The rule of `mma` holds: what a product in flight reads or writes is not computed anew before it is waited for.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from tfc.backends.pallas_gpu.mma import mma, product

__all__ = ["successive", "sums_of", "zeros"]

Array = jax.Array
Nothing = Callable[[], None]


def zeros(rows: int, columns: int) -> Array:
    out: Array = plgpu.layout_cast(jnp.zeros((rows, columns), jnp.float32), plgpu.Layout.WGMMA)
    return out


def successive[Early, State](
    x: Any,
    y: Any,
    z: Any,
    w: Any,
    base: Array,
    *,
    between: Nothing,
    early: Callable[[Array], Early],
    late: Callable[[Early, Array], State],
    state: State,
    acc: Array | None = None,
    a: Array | None = None,
    b: Any = None,
    staging: Any = None,
) -> tuple[State, Array | None]:
    """(late(early(x y), base + z w), acc + a b): `early` runs beside z w and a b, `late` beside a b.

    x, z: [R, L], y, w: [L, C] in shared memory, base [R, C] in registers. acc [R, E] and a [R, K] in registers, b
    [K, E] in shared memory, or none of the three. `between` runs before z w is issued, to wait for its operands.
    state: arrays of the shapes, dtypes and layouts that `late` gives; what it gives may be rounded only after this
    returns.
    staging: as in `mma`, where kernels are interpreted.
    """
    if staging is not None:
        first = product(x, y, watched=True)
        between()
        second = base + product(z, w, watched=True)
        total = None if acc is None or a is None else mma(acc, a, b, staging)
        return late(early(first), second), total

    def issue(refs: Any) -> None:
        first, second, total, kept = refs
        plgpu.wgmma(first, x, y)
        between()
        plgpu.wgmma(second, z, w)
        if total is not None:
            plgpu.wgmma(total, a, b)
        behind = 0 if total is None else 1
        found = early(plgpu.wgmma_accumulator_load(first, wait_n=behind + 1))
        given = late(found, plgpu.wgmma_accumulator_load(second, wait_n=behind))
        for ref, new in zip(jax.tree.leaves(kept), jax.tree.leaves(given), strict=True):
            ref[...] = new

    empty = zeros(x.shape[0], y.shape[1])
    # all accumulators are set up before the first product starts, and nothing after the wait moves before it
    sums = None if acc is None else plgpu.WGMMAAccumulatorRef.init(acc)
    start = (plgpu.WGMMAAccumulatorRef.init(empty), plgpu.WGMMAAccumulatorRef.init(base), sums, state)
    _, _, total, kept = pl.run_state(issue)(start)
    out: tuple[State, Array | None] = lax.optimization_barrier((kept, total))
    return out


def sums_of(*terms: tuple[Array, Array, Any], staging: Any = None) -> tuple[Array, ...]:
    """acc + a b of each term, one product behind the other. Operands as in `mma`."""
    if staging is not None:
        return tuple(mma(*term, staging) for term in terms)

    def issue(refs: Any) -> None:
        for ref, (_, a, b) in zip(refs, terms, strict=True):
            plgpu.wgmma(ref, a, b)

    start = tuple(plgpu.WGMMAAccumulatorRef.init(acc) for acc, _, _ in terms)
    out: tuple[Array, ...] = pl.run_state(issue)(start)
    return out
