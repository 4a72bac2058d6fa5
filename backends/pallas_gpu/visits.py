"""Packed ranges of key tiles in memory turned into the visits of a query tile, and lists of query tiles into turns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.pallas_gpu.plan import Plan
from tfc.backends.pallas_gpu.schedule import MOST
from tfc.compat import mosaic_load

__all__ = ["Memory", "Place", "Range", "Visits", "each"]

Array = jax.Array
Range = tuple[Array, Array, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """References: arrays in global memory, buffers and barriers in shared memory."""

    q: Any
    k: Any
    v: Any
    turns: Any
    ranges: Any
    captured: tuple[Any, ...]
    row: Any
    row_lse: Any
    out: Any
    lse: Any
    q_tile: Any
    k_ring: Any
    v_ring: Any
    q_ready: Any
    k_ready: Any
    v_ready: Any
    k_free: Any
    v_free: Any
    turn: Any
    lse_tile: Any = None
    out_tile: Any = None
    staging: Any = None


Place = tuple[Any, ...]
"""A query tile: batch row, head, tile; then how many ranges it visits, and the first that it does, packed."""


class Visits:
    """The key tiles that a query tile visits, as each warpgroup of its block reads them, last range first.

    A query tile that sees no key visits key tile 0 as a partial one, and there no key exists. at: which tile it is;
    turn: its place in the block's list, where there is one.
    """

    def __init__(self, mem: Memory, at: Place, turn: Any = None) -> None:
        self.at, self.mem, self.turn = at, mem, turn
        self.batch, self.head, self.tile, count, self.first = at
        self.row = row_of(mem, *at[:3])
        self.some = count > 0
        self.ranges = jnp.maximum(count, 1)
        self.begin = jnp.where(self.some, opened(self.first)[1], 1) - 1

    def where(self) -> tuple[Any, Any, Any]:
        """Batch row, head and tile; off a list read once more, so that they take no registers until then."""
        return self.at[:3] if self.turn is None else listed(self.mem, self.turn)[:3]

    def loop(self, visit: Callable[[Any, Range, Any], Any], carry: Any) -> Any:
        """visit(turn, range, carry) for each range; each is read while the one before it is visited."""
        most = self.mem.ranges.shape[3] - 1

        def over(turn: Any, both: tuple[Any, Any]) -> tuple[Any, Any]:
            here, carry = both
            following = mosaic_load(self.mem.ranges.at[(*self.row, jnp.minimum(turn + 1, most))])
            start, end, full = opened(here)
            here = jnp.where(self.some, start, 0), jnp.where(self.some, end, 1), full
            return following, visit(turn, here, carry)

        return lax.fori_loop(0, self.ranges, over, (self.first, carry))[1]


def opened(packed: Any) -> Range:
    """A range of key tiles (start, end, full), as `schedule` packs it."""
    return packed & MOST, lax.shift_right_logical(packed, 15) & 0xFFFF, packed < 0


def row_of(mem: Memory, batch: Any, head: Any, tile: Any) -> tuple[Any, Any, Any]:
    """Where the tile's ranges lie: batch rows or heads may share them."""
    shared_batch, shared_head = (size == 1 for size in mem.ranges.shape[:2])
    return 0 if shared_batch else batch, 0 if shared_head else head, tile


def here(mem: Memory) -> Place:
    """The tile of the block's place in a grid of (batch, head, tile)."""
    # under a causal mask the last query tiles see most: begin with them, so that short ones end the launch
    tile = mem.ranges.shape[2] - 1 - lax.axis_index("tile")
    batch, head = lax.axis_index("batch"), lax.axis_index("head")
    row = row_of(mem, batch, head, tile)
    return batch, head, tile, mosaic_load(mem.turns.at[(*row, 0)]), mosaic_load(mem.ranges.at[(*row, 0)])


def listed(mem: Memory, turn: Any) -> tuple[Any, ...]:
    """The tile of a turn in the block's list, then how many are left with it; any beyond its end."""
    at = lax.axis_index("block"), jnp.minimum(turn, mem.turns.shape[1] - 1)
    return tuple(mosaic_load(mem.turns.at[(*at, i)]) for i in range(6))


def each(plan: Plan, mem: Memory, only: Visits | None, visit: Callable[..., Any], carry: Any) -> Any:
    """visit(visits, following, carry) -> (carry, followed) for each query tile of this block.

    only: the one tile of a block without a list, where it has been read. following: a function that gives whether a
    tile comes after this one, and that tile (any, where none comes), to be called once and late: a tile that has been
    read takes registers. None where there is no list. followed: what it gave.
    """
    if not plan.blocks:
        return visit(only or Visits(mem, here(mem)), None, carry)[0]

    def over(state: Any) -> Any:
        _, turn, at, carry = state

        def following() -> tuple[Any, Visits]:
            return listed(mem, turn)[5] > 1, Visits(mem, listed(mem, turn + 1)[:5], turn + 1)

        carry, (more, upcoming) = visit(Visits(mem, at, turn), following, carry)
        return more, turn + 1, upcoming.at, carry

    begin = jnp.bool_(True), jnp.int32(0), listed(mem, 0)[:5], carry
    return lax.while_loop(lambda state: state[0], over, begin)[3]
