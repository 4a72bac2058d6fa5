"""Matrix products of a kernel's tiles turned into Hopper's `wgmma`, in flight while other work is done.

A warpgroup's `wgmma` reads registers and shared memory until it is waited for. So what a product in flight
reads or writes must not be computed anew before the wait: `ptxas` sees such code and serializes every product
of the kernel (its warning C7513). `paired` is shaped by that rule.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

__all__ = ["added", "mma", "nothing", "paired", "product"]

Array = jax.Array


def nothing() -> None:
    """No work."""


def product(a: Any, b: Any, issued: Callable[[], Any] = nothing, watched: bool = False) -> Array:
    """a b in float32, both operands in shared memory. `issued` runs once the product is under way.

    watched: where kernels are interpreted, the operands are also read by plain loads, the only reads among which
    the interpreter looks for races; `commit_smem` orders such loads before the copies that overwrite the operands.
    """
    if watched:
        _ = a[...], b[...]
        plgpu.commit_smem()

    def issue(ref: Any) -> Any:
        plgpu.wgmma(ref, a, b)
        issued()
        return ref[...]

    out: Array = pl.run_scoped(issue, plgpu.WGMMAAccumulatorRef((a.shape[0], b.shape[1]), jnp.float32))
    return out


def mma(acc: Array, a: Array, b: Any, staging: Any = None) -> Array:
    """acc + a b.   acc: float32 [R, C] in registers; a: [R, K] in registers; b: [K, C] in shared memory.

    staging: where kernels are interpreted, a [R, K] buffer in shared memory. The interpreter runs no product
    with an operand in registers, so `a` goes through the buffer there, and only there.
    """
    if staging is not None:
        staging[...] = a
        return acc + product(staging, b, watched=True)
    start: Any = plgpu.WGMMAAccumulatorRef.init(acc)  # a reference while the product runs, an array before and after
    out: Array = pl.run_state(lambda total: plgpu.wgmma(total, a, b))(start)
    return out


def added(acc: Array, a: Any, b: Any, watched: bool = False) -> Array:
    """acc + a b.   acc: float32 [R, C] in registers; a, b: [R, K], [K, C] in shared memory. watched: as in `product`,
    where the interpreter knows no accumulator that begins with values."""
    if watched:
        return acc + product(a, b, watched=True)
    start: Any = plgpu.WGMMAAccumulatorRef.init(acc)
    out: Array = pl.run_state(lambda total: plgpu.wgmma(total, a, b))(start)
    return out


def paired[State](
    x: Any,
    y: Any,
    acc: Array,
    a: Array,
    b: Any,
    *,
    between: Callable[[], None],
    issued: Callable[[], None],
    during: Callable[[Array, State], State],
    state: State,
    staging: Any = None,
    beside: bool = True,
) -> tuple[Array, State]:
    """(acc + a b, during(x y, state)): x y is issued first, and `during` runs on it while a b is in flight.

    x: [R, L] and y: [L, S] in shared memory; acc, a, b, staging: as in `mma`. `between` runs before a b is
    issued (to wait for b), `issued` once both are. state: arrays; `during` gives the same shapes, dtypes and
    layouts. What it gives may be rounded or combined with the sum only after this returns.
    beside: False makes `during` wait for a b as well, so that the registers of `a` are free for it.
    """
    if staging is not None:
        early = product(x, y, watched=True)
        between()
        total = mma(acc, a, b, staging)
        issued()
        return total, during(early, state)

    def issue(refs: Any) -> None:
        early, total, kept = refs
        plgpu.wgmma(early, x, y)
        between()
        plgpu.wgmma(total, a, b)
        issued()
        value = plgpu.wgmma_accumulator_load(early, wait_n=1 if beside else 0)
        for ref, new in zip(jax.tree.leaves(kept), jax.tree.leaves(during(value, state)), strict=True):
            ref[...] = new

    zeros = plgpu.layout_cast(jnp.zeros((x.shape[0], y.shape[1]), jnp.float32), plgpu.Layout.WGMMA)
    # both accumulators are set up before either product starts, and nothing after the wait moves before it
    start = (plgpu.WGMMAAccumulatorRef.init(zeros), plgpu.WGMMAAccumulatorRef.init(acc), state)
    _, total, kept = pl.run_state(issue)(start)
    out: tuple[Array, State] = lax.optimization_barrier((total, kept))
    return out
