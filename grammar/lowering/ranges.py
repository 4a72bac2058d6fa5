"""Where an index is bound, `t` or `t: T // 2` -> its name in the equation, and how far it goes if that is written."""

from collections.abc import Callable, Container
from dataclasses import replace
from itertools import count

from tfc.grammar import ast
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.segments import names_read
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Meaning

__all__ = ["bind_range", "fresh_index"]


def fresh_index(name: str, frame: Frame) -> str:
    """What a reducer's index is called in the equation: two reducers may use one name, each with a size of its own."""
    if frame.ranges is None:
        return name
    fresh = next(n for i in count(1) if (n := name if i == 1 else f"{name}_{i}") not in frame.ranges)
    frame.ranges[fresh] = None
    return fresh


def bind_range(
    index: ast.Expr, name: str, indices: Container[str], evaluate: Callable[[ast.Expr, Frame], Meaning], frame: Frame
) -> None:
    """Enter the size of an index, evaluated in the body around: it reads none of `indices`, those of the equation."""
    if not isinstance(index, ast.Index) or index.size is None:
        return
    node, place = index.size, frame.at(index.size.span)
    if frame.ranges is None:
        fail("E309", f"`{index.name}` goes over the axis that it reads, in a formula", place,
             help=f"write `{index.name}` alone")  # fmt: skip
    for read in sorted(names_read(node)):
        if read in indices:
            fail("E309", f"the size of the index `{index.name}` reads the index `{read}`", place,
                 help="a size is the same for all elements; `if(condition, .., 0)` leaves some out")  # fmt: skip
    outside = replace(frame, role=None, formula=False, allowed=frozenset(), bound={}, indices={}, ranges=None)
    size = whole(evaluate(node, outside), f"the size of the index `{index.name}`", place)
    if isinstance(size, int) and size < 1:
        fail("E402", f"the size of the index `{index.name}` is {size}; it is at least 1", place)
    frame.ranges[name] = (size, place)
