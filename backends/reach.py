"""A bound program turned into complaints about tables that are read beyond their last row.

Two kinds of indices: those that lengths alone decide (positions 0..T-1), checked when lengths are bound; and those
that an input gives (token ids), of which `indexed` says which table they index, so that a call can look at them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.reference.program import define
from tfc.diagnostics import Diagnostic, TfcError
from tfc.formula.expr import Read, Var, walk
from tfc.ir.ops import Cast, Index, Repeat, Reshape, Route, Take
from tfc.ir.program import Eqn, Program, Value
from tfc.ir.types import DType

__all__ = ["Indexed", "check_reach", "indexed"]

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST = 1 << 22
"""Elements of an index array that are still worth computing when lengths are bound."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """An input whose values are row numbers 0..rows-1 of a table; `table` names it for a message."""

    input: str
    table: str
    rows: int


def indexed(program: Program) -> tuple[Indexed, ...]:
    """The tables that inputs index directly: through `take`, or as an index within an index equation."""
    names = {i.value: i.value.name for i in program.inputs if i.value.type.dtype is DType.I32}
    return tuple(dict.fromkeys(_indexed(program, names, {})))


def _titles(program: Program, outer: Mapping[Value, str]) -> dict[Value, str]:
    return {**outer, **{p.value: p.path for p in program.params}}


def _indexed(program: Program, names: Mapping[Value, str], outer: Mapping[Value, str]) -> Iterator[Indexed]:
    same, titles = dict(names), _titles(program, outer)
    for eqn in program.eqns:
        match eqn.op:
            case Reshape() | Cast(dtype=DType.I32) if eqn.args[0] in same:
                same[eqn.out] = same[eqn.args[0]]
            case Take():
                table, ids = eqn.args
                rows = table.type.shape[0]
                if ids in same and isinstance(rows, int):
                    yield Indexed(same[ids], titles.get(table, str(table)), rows)
            case Index(expr=expr):
                for read in (n for n in walk(expr) if isinstance(n, Read)):
                    table = eqn.args[read.slot]
                    for rows, i in zip(table.type.shape, read.indices, strict=True):
                        if isinstance(i, Read) and eqn.args[i.slot] in same and isinstance(rows, int):
                            yield Indexed(same[eqn.args[i.slot]], titles.get(table, str(table)), rows)
            case Repeat(body=body):
                inner = [i.value for i in body.inputs][1:]
                carries = eqn.op.carries
                known = {v: same[a] for v, a in zip(inner[carries:], eqn.args[carries:], strict=True) if a in same}
                tables = {v: titles[a] for v, a in zip(inner[carries:], eqn.args[carries:], strict=True) if a in titles}
                yield from _indexed(body, known, tables)
            case Route(body=body):
                passed = list(zip([i.value for i in body.inputs][1:], _into(eqn), strict=True))
                known = {v: same[a] for v, a in passed if a in same}
                yield from _indexed(body, known, {v: titles[a] for v, a in passed if a in titles})
            case _:
                pass


def _into(eqn: Eqn) -> tuple[Value, ...]:
    """The operands of a route that its body sees: the tokens and the invariants."""
    x, _, _, *rest = eqn.args
    return (x, *rest)


def check_reach(program: Program) -> None:
    """Raises TfcError (E707) where lengths make a program read rows that a table lacks. Sizes are numbers."""
    faults = tuple(dict.fromkeys(_reach(program, {}, {})))
    if faults:
        raise TfcError(*faults)


def _reach(program: Program, constants: Mapping[Value, Array], outer: Mapping[Value, str]) -> Iterator[Diagnostic]:
    """Index arrays that depend on lengths alone are computed, and compared with the tables they index."""
    fixed, titles = dict(constants), _titles(program, outer)
    for eqn in program.eqns:
        match eqn.op:
            case Take() if eqn.args[1] in fixed and eqn.args[1].type.shape and fixed[eqn.args[1]].size:
                last = int(np.max(fixed[eqn.args[1]]))
                first = int(np.min(fixed[eqn.args[1]]))
                rows = eqn.args[0].type.ints[0]
                if last >= rows or first < 0:
                    yield _beyond(eqn, titles.get(eqn.args[0], str(eqn.args[0])), rows, last if last >= rows else first)
            case Index(expr=expr, axes=axes, reduced=reduced):
                sizes = {name: n for name, n in (*axes, *reduced) if isinstance(n, int)}
                for read in (n for n in walk(expr) if isinstance(n, Read)):
                    if 0 in eqn.args[read.slot].type.ints and 0 not in (*sizes.values(), *eqn.out.type.ints):
                        yield Diagnostic("E705", f"an element of `{eqn.args[read.slot].name}` is read, which has none",
                                         span=eqn.span, help="give longer inputs")  # fmt: skip
                    for rows, i in zip(eqn.args[read.slot].type.ints, read.indices, strict=True):
                        # elsewhere a read beyond the end is clamped; of a parameter it is a table that is too short
                        title = titles.get(eqn.args[read.slot], "")
                        if title and isinstance(i, Var) and sizes.get(i.name, 0) > rows:
                            yield _beyond(eqn, title, rows, sizes[i.name] - 1)
            case Repeat(body=body):
                inner = [i.value for i in body.inputs][1:]
                known = {v: fixed[a] for v, a in zip(inner, eqn.args, strict=True) if a in fixed}
                known = {v: x for v, x in known.items() if v in inner[eqn.op.carries :]}
                tables = {v: titles[a] for v, a in zip(inner, eqn.args, strict=True) if a in titles}
                yield from _reach(body, known, tables)
            case Route(body=body):
                passed = list(zip([i.value for i in body.inputs][1:], _into(eqn), strict=True))
                known = {v: fixed[a] for v, a in passed if a in fixed}
                yield from _reach(body, known, {v: titles[a] for v, a in passed if a in titles})
            case _:
                pass
        _compute(eqn, fixed)


def _compute(eqn: Eqn, fixed: dict[Value, Array]) -> None:
    """Enters an integer result whose operands are all known."""
    if isinstance(eqn.op, Repeat | Route) or len(eqn.outs) != 1 or eqn.out.type.dtype is not DType.I32:
        return
    if all(a in fixed for a in eqn.args) and math.prod(eqn.out.type.ints) <= LARGEST:
        with jax.ensure_compile_time_eval():
            (found,) = define(eqn.op, jnp.float32, *(jnp.asarray(fixed[a]) for a in eqn.args))
            fixed[eqn.out] = np.asarray(found)


def _beyond(eqn: Eqn, title: str, rows: int, index: int) -> Diagnostic:
    return Diagnostic(
        "E707",
        f"row {index} of `{title}` is read, which has rows 0..{rows - 1}",
        span=eqn.span,
        help=f"give inputs of length {rows} at most, or a larger table" if index >= rows else "",
    )
