"""Visited ranges turned into the loops of a gradient kernel: the other side's tiles that a tile of rows meets."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from tfc.compat import mosaic_load

__all__ = ["Meetings"]

Range = tuple[Any, Any, Any]
First = tuple[Any, Any, Any, Any]


class Meetings:
    """The ranges of one tile of rows, as each of its block's warpgroups reads them.

    firsts: int32 [Br, Hr, T, 4], how many ranges there are, and the first of them; triples: int32
    [Br, Hr, T, R, 3], (start, end, full), sorted and disjoint. A first range comes with the count, so that a loop
    waits for global memory once before it starts; each further one is read while the one before it is visited.
    """

    def __init__(self, firsts: Any, triples: Any, batch: Any, tile: Any, early: bool = True) -> None:
        self.firsts, self.triples, self.tile, self.early = firsts, triples, tile, early
        self.batch = 0 if firsts.shape[0] == 1 else batch
        self.by_head = firsts.shape[1] > 1

    def _row(self, head: Any) -> tuple[Any, Any, Any]:
        return self.batch, head if self.by_head else 0, self.tile

    def first(self, head: Any) -> First:
        count, start, end, full = (mosaic_load(self.firsts.at[(*self._row(head), i)]) for i in range(4))
        return count, start, end, full

    def _range(self, head: Any, i: Any) -> Range:
        at = (*self._row(head), jnp.minimum(i, self.triples.shape[3] - 1))
        start, end, full = (mosaic_load(self.triples.at[(*at, i)]) for i in range(3))
        return start, end, full

    def loop(self, head: Any, first: First, visit: Callable[[Range, Any], Any], carry: Any) -> Any:
        """visit(range, carry) for each range of the head."""
        count, *here = first
        if not self.early:

            def each(i: Any, carry: Any) -> Any:
                return visit(self._range(head, i), carry)

            return lax.fori_loop(0, count, each, carry)

        def over(i: Any, both: tuple[Range, Any]) -> tuple[Range, Any]:
            here, carry = both
            following = self._range(head, i + 1)
            return following, visit(here, carry)

        return lax.fori_loop(0, count, over, (tuple(here), carry))[1]

    def heads(self, start: Any, count: int, visit: Callable[[Any, Range, Any], Any], carry: Any) -> Any:
        """visit(head, range, carry) for each range of `count` heads from `start` on."""

        if self.by_head:

            def over(i: Any, carry: Any) -> Any:
                head = start + i
                return self.loop(head, self.first(head), lambda here, carry: visit(head, here, carry), carry)

            return lax.fori_loop(0, count, over, carry)

        # one loop instead of two: what an outer loop carries stays in registers while the inner one runs
        ranges = self.first(start)[0]

        def each(i: Any, carry: Any) -> Any:
            which = lax.div(i, ranges)
            return visit(start + which, self._range(0, i - which * ranges), carry)

        return lax.fori_loop(0, count * ranges, each, carry)
