"""Products of a gradient kernel's tiles turned into `wgmma`s that run beside the work on earlier ones.

The rule of `mma` holds: what a product in flight reads or writes is not computed anew before it is waited for.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from tfc.backends.pallas_gpu.mma import mma, product

__all__ = ["Term", "anew", "empty_sums", "parts", "successive", "sums_of", "terms", "zeros"]

Array = jax.Array
Nothing = Callable[[], None]
Term = tuple[Array, Array, Any]
"""acc, a and b of acc + a b."""


WIDEST = 128
"""Columns of a sum in registers: at 256 one `wgmma` would want 128 registers in a row, which fragments the others."""


def parts(head_dim: int) -> tuple[Any, ...]:
    """The slices of a head that are summed by themselves."""
    return tuple(pl.ds(start, min(WIDEST, head_dim)) for start in range(0, head_dim, WIDEST))


def empty_sums(head_dim: int) -> tuple[Array, ...]:
    """Sums [64, head_dim] of nothing, part by part."""
    return tuple(zeros(64, part.size) for part in parts(head_dim))


def terms[A](accs: Sequence[Array], a: A, b: Any) -> list[tuple[Array, A, Any]]:
    """Each part's share of acc + a b, for `sums_of` and `successive`. b: [K, head_dim] in shared memory."""
    if len(accs) == 1:
        return [(accs[0], a, b)]
    return [(acc, a, b.at[:, part]) for acc, part in zip(accs, parts(b.shape[1]), strict=True)]


def anew(index: Any, step: Any) -> Any:
    """The index, in a form that no compiler takes for constant: `step` is never negative, and nobody knows.

    The addresses of a tile that is read at every step would be kept, one register for each 16 of its columns, and
    other values spilled for them; made anew they cost an addition each.
    """
    return index + lax.shift_right_logical(step, 31)


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
    behind: Sequence[Term] = (),
    beside: Sequence[tuple[Array, Callable[[Early], Array], Any]] = (),
    staging: Any = None,
) -> tuple[State, tuple[Array, ...]]:
    """(late(early(x y), base + z w), acc + a b of each term behind, then of each beside): `early` runs beside all
    products up to those of `behind`, `late` beside those of `behind` and `beside`.

    x, z: [R, L], y, w: [L, C] in shared memory, base [R, C] in registers. behind: terms as in `sums_of`; beside: terms
    whose `a` is made of what `early` gives. `between` runs before z w is issued, to wait for its operands. state:
    arrays of the shapes, dtypes and layouts that `late` gives; what it gives may be rounded only after this returns.
    staging: as in `mma`, where kernels are interpreted.
    """
    if staging is not None:
        first = product(x, y, watched=True)
        between()
        second = base + product(z, w, watched=True)
        found = early(first)
        sums = sums_of(*behind, *((acc, a(found), b) for acc, a, b in beside), staging=staging)
        return late(found, second), sums

    def issue(refs: Any) -> None:
        first, second, totals, kept = refs
        plgpu.wgmma(first, x, y)
        between()
        plgpu.wgmma(second, z, w)
        for total, (_, a, b) in zip(totals, behind, strict=False):
            plgpu.wgmma(total, a, b)
        found = early(plgpu.wgmma_accumulator_load(first, wait_n=len(behind) + 1))
        for total, (_, make, b) in zip(totals[len(behind) :], beside, strict=True):
            plgpu.wgmma(total, make(found), b)
        given = late(found, plgpu.wgmma_accumulator_load(second, wait_n=len(totals)))
        for ref, new in zip(jax.tree.leaves(kept), jax.tree.leaves(given), strict=True):
            ref[...] = new

    empty = zeros(x.shape[0], y.shape[1])
    # all accumulators are set up before the first product starts, and nothing after the wait moves before it
    sums = tuple(plgpu.WGMMAAccumulatorRef.init(acc) for acc, _, _ in (*behind, *beside))
    start = (plgpu.WGMMAAccumulatorRef.init(empty), plgpu.WGMMAAccumulatorRef.init(base), sums, state)
    _, _, totals, kept = pl.run_state(issue)(start)
    out: tuple[State, tuple[Array, ...]] = lax.optimization_barrier((kept, totals))
    return out


def sums_of(*terms: Term, staging: Any = None) -> tuple[Array, ...]:
    """acc + a b of each term, one product behind the other. Operands as in `mma`."""
    if staging is not None:
        return tuple(mma(*term, staging) for term in terms)

    def issue(refs: Any) -> None:
        for ref, (_, a, b) in zip(refs, terms, strict=True):
            plgpu.wgmma(ref, a, b)

    start: Any = tuple(plgpu.WGMMAAccumulatorRef.init(acc) for acc, _, _ in terms)  # as in `mma`
    out: tuple[Array, ...] = pl.run_state(issue)(start)
    return out
