"""How far the indices of an index equation go, where that is written: `t: T // 2` -> a size, kept in the frame."""

from collections.abc import Callable, Container
from dataclasses import replace

from tfc.diagnostics import Note
from tfc.grammar import ast
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.segments import names_read
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Meaning

__all__ = ["add_range"]


def add_range(
    index: ast.Expr, indices: Container[str], evaluate: Callable[[ast.Expr, Frame], Meaning], frame: Frame
) -> None:
    """The size of an index, evaluated in the body around: it reads no index. `indices`: those of the equation."""
    if not isinstance(index, ast.Index) or index.size is None:
        return
    node, place = index.size, frame.at(index.size.span)
    if frame.ranges is None:
        fail("E309", f"`{index.name}` goes over the axis that it reads, in a formula", place,
             help=f"write `{index.name}` alone")  # fmt: skip
    for name in sorted(names_read(node)):
        if name in indices:
            fail("E309", f"the size of the index `{index.name}` reads the index `{name}`", place,
                 help="a size is the same for all elements; `if(condition, .., 0)` leaves some out")  # fmt: skip
    outside = replace(frame, role=None, formula=False, allowed=frozenset(), bound={}, indices={}, ranges=None)
    size = whole(evaluate(node, outside), f"the size of the index `{index.name}`", place)
    if isinstance(size, int) and size < 1:
        fail("E402", f"the size of the index `{index.name}` is {size}; it is at least 1", place)
    known, first = frame.ranges.setdefault(index.name, (size, place))
    if known != size:
        fail("E403", f"the index `{index.name}` ranges over {known} and over {size}", place,
             notes=(Note(f"{known} is given here", first),))  # fmt: skip
