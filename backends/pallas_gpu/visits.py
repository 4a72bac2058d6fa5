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
    shares: Any
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
    turn: its place in the block's list or among all tiles, where `turns` says what comes after.
    """

    def __init__(self, mem: Memory, at: Place, turns: "Listed | Shared | None" = None, turn: Any = None) -> None:
        self.at, self.mem, self.turns, self.turn = at, mem, turns, turn
        self.batch, self.head, self.tile, count, self.first = at
        self.row = row_of(mem, *at[:3])
        self.some = count > 0
        self.ranges = jnp.maximum(count, 1)
        self.begin = jnp.where(self.some, opened(self.first)[1], 1) - 1

    def where(self) -> tuple[Any, Any, Any]:
        """Batch row, head and tile; of a turn found once more, so that they take no registers until then."""
        return self.at[:3] if self.turns is None else self.turns.where(self.turn)

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


class Listed:
    """The turns of a block that has a list: a turn is its place there."""

    def __init__(self, mem: Memory) -> None:
        self.mem = mem

    def begin(self) -> tuple[Any, Any]:
        """Whether there is a turn, and the first."""
        return jnp.bool_(True), jnp.int32(0)

    def after(self, turn: Any) -> tuple[Any, Any]:
        """Whether a turn comes after this one, and that turn; any, where none comes."""
        return self._read(turn, 5) > 1, turn + 1

    def where(self, turn: Any) -> tuple[Any, Any, Any]:
        """Its batch row, head and tile."""
        return self._read(turn, 0), self._read(turn, 1), self._read(turn, 2)

    def place(self, turn: Any) -> Place:
        return (*self.where(turn), self._read(turn, 3), self._read(turn, 4))

    def _read(self, turn: Any, what: int) -> Any:
        turns = self.mem.turns
        return mosaic_load(turns.at[lax.axis_index("block"), jnp.minimum(turn, turns.shape[1] - 1), what])


class Shared:
    """The turns of a block that has a share of each group's tiles (`schedule.shares`): a turn is the tile's number
    among all. Every other group is dealt out from the other end, so that what shares lack does not add up."""

    def __init__(self, plan: Plan, mem: Memory) -> None:
        self.plan, self.mem, self.group = plan, mem, plan.together * plan.tiles

    def _share(self, group: Any) -> tuple[Any, Any]:
        """The first tile of the block's share of a group, and the one after its last."""
        block = lax.axis_index("block")
        block = jnp.where(lax.rem(group, 2) == 0, block, self.plan.blocks - 1 - block)
        first = group * self.group
        return tuple(first + mosaic_load(self.mem.shares.at[group, block + i]) for i in range(2))

    def _from(self, turn: Any, group: Any, end: Any) -> tuple[Any, Any]:
        """Whether there is a tile at or after `turn`, where the group's share ends at `end`; and the first."""
        groups = self.mem.shares.shape[0]

        def over(at: tuple[Any, Any, Any]) -> Any:
            return jnp.logical_and(at[0] >= at[2], at[1] + 1 < groups)

        def onward(at: tuple[Any, Any, Any]) -> Any:
            first, end = self._share(at[1] + 1)
            return first, at[1] + 1, end

        turn, _, end = lax.while_loop(over, onward, (turn, group, end))
        return turn < end, turn

    def begin(self) -> tuple[Any, Any]:
        first, end = self._share(jnp.int32(0))
        return self._from(first, jnp.int32(0), end)

    def after(self, turn: Any) -> tuple[Any, Any]:
        group = lax.div(turn, self.group)
        return self._from(turn + 1, group, self._share(group)[1])

    def where(self, turn: Any) -> tuple[Any, Any, Any]:
        row = lax.div(turn, self.plan.tiles)
        return lax.div(row, self.plan.heads), lax.rem(row, self.plan.heads), lax.rem(turn, self.plan.tiles)

    def place(self, turn: Any) -> Place:
        last = self.plan.batch * self.plan.heads * self.plan.tiles - 1
        where = self.where(jnp.minimum(turn, last))
        row = row_of(self.mem, *where)
        return (*where, mosaic_load(self.mem.turns.at[(*row, 0)]), mosaic_load(self.mem.ranges.at[(*row, 0)]))


def each(plan: Plan, mem: Memory, only: Visits | None, visit: Callable[..., Any], carry: Any) -> Any:
    """visit(visits, following, carry) -> (carry, followed) for each query tile of this block.

    only: the one tile of a block that takes no turns, where it has been read. following: a function that gives whether a
    tile comes after this one, and that tile (any, where none comes), to be called once and late: a tile that has been
    read takes registers. None where there are no turns. followed: what it gave.
    """
    if not plan.blocks:
        return visit(only or Visits(mem, here(mem)), None, carry)[0]

    turns = Shared(plan, mem) if plan.together else Listed(mem)

    def over(state: Any) -> Any:
        _, turn, at, carry = state

        def following() -> tuple[Any, Visits]:
            more, following = turns.after(turn)
            return more, Visits(mem, turns.place(following), turns, following)

        carry, (more, upcoming) = visit(Visits(mem, at, turns, turn), following, carry)
        return more, upcoming.turn, upcoming.at, carry

    some, first = turns.begin()
    return lax.while_loop(lambda state: state[0], over, (some, first, turns.place(first), carry))[3]
