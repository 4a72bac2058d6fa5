"""Registered array functions, called by name: arrays by position and settings by name -> an ArrayFunction."""

from functools import partial

from tfc.diagnostics import Edit, Note, closest
from tfc.grammar.lowering.arguments import Call, Function
from tfc.grammar.lowering.session import fail
from tfc.grammar.lowering.values import Given, Meaning, describe, is_number
from tfc.ir.functions import FUNCTIONS, Registered
from tfc.ir.ops import ArrayFunction
from tfc.ir.types import IRError
from tfc.source import Span

__all__ = ["REGISTERED"]


def _apply(row: Registered, c: Call) -> Meaning:
    for key, given in c.extra.items():
        if key not in row.settings:
            _unknown(row, key, given, c)
    settings = tuple((key, _setting(row, key, wanted, c)) for key, wanted in row.settings.items())
    operands = tuple(c.as_tensor(given) for given in c.rest)
    op = ArrayFunction(fn=row.name, settings=settings)
    try:
        op.infer(*(x.type for x in operands))
    except (IRError, ValueError) as error:  # ValueError: more or fewer arrays than it takes
        notes = tuple(Note(f"{x.type} comes from here", x.span) for x in operands)
        if isinstance(error, IRError):
            fail("E401", str(error), c.frame.at(c.span), help=row.doc, notes=notes)
        fail("E207", f"`{row.name}` does not take {len(operands)} arrays", c.frame.at(c.span), help=row.doc)
    return c.emit(op, operands)


def _setting(row: Registered, key: str, wanted: type, c: Call) -> bool | int | float | str:
    if key not in c.extra:
        fail("E206", f"`{row.name}` needs `{key}`", c.frame.at(c.span), help=row.doc)
    given = c.extra[key]
    value = given.value
    if wanted is float and isinstance(value, int | float) and is_number(value):
        return float(value)
    if type(value) is wanted and isinstance(value, bool | int | float | str):
        return value
    kind = {int: "a whole number", float: "a number", bool: "`yes` or `no`", str: "a text"}[wanted]
    fail("E305", f"`{key}` of `{row.name}` is {kind}, not {describe(value)}", c.frame.at(given.span))


def _unknown(row: Registered, key: str, given: Given, c: Call) -> None:
    near, written = closest(key, list(row.settings)), given.argument.span
    edits = (Edit(Span(written.source, written.start, written.start + len(key)), near),) if near else ()
    fail("E204", f"`{row.name}` has no input `{key}`", c.frame.at(written), edits=edits,
         help=f"did you mean `{near}`?" if near else f"it has {', '.join(row.settings)}")  # fmt: skip


REGISTERED = tuple(Function(r.name, (), partial(_apply, r), r.doc, many=True, open=True) for r in FUNCTIONS.values())
"""As core functions."""
