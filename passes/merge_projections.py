"""Linear maps of the same value, side by side -> one wider linear map and its slices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tfc.ir.ops import Linear, Slice
from tfc.ir.param_map import Concat, Expr, ParamMap, Part, Source
from tfc.ir.program import Eqn, Init, Param, Program, Value
from tfc.ir.types import Size
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.rewrite import Scope, rewrite

__all__ = ["MergeProjections"]


@dataclass(frozen=True)
class MergeProjections:
    """linear(x, wq), linear(x, wk), linear(x, wv)  ->  slices of linear(x, concat(wq, wk, wv))

    Exact, bit for bit in the parameters. One pass over x and one larger matrix product; gate and up of a feed-forward
    that was not fused merge by the same rule. Merged are linear maps of one value whose parameters' paths differ in
    one segment: `look.q.weight`, `look.k.weight`, `look.v.weight` become `look.qkv.weight`.

    Holds back where a parameter has another reader (merging would keep two copies of it), where some of the maps have
    a bias and some have not, and where the element types or whether they are trained differ.
    """

    name: ClassVar[str] = "merge-projections"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        notes: list[Note] = []
        forward: dict[str, Expr] = {}
        backward: dict[str, Expr] = {}
        taken = {p.path for p in program.stored()}
        gone: set[Eqn] = set()

        def merge(eqn: Eqn, scope: Scope) -> list[Eqn] | None:
            if eqn in gone:
                return []
            group = _group(eqn, scope)
            if len(group) < 2 or group[0] != eqn:
                return None
            columns = [[scope.params[e.args[n]] for e in group] for n in range(1, min(len(e.args) for e in group))]
            paths = [_merged([p.path for p in column]) for column in columns]
            site = f"{self.name}:{paths[0]}"
            why = "asked to" if site in hold else _refusal(group, columns, scope)
            if why is None and (clash := [path for path in paths if path in taken]):
                why = f"there is a parameter {clash[0]} already"
            if why is not None:
                notes.append(Note(site, why, span=eqn.span))
                return None
            for path, column in zip(paths, columns, strict=True):
                forward[path] = Concat(tuple(Source(p.path) for p in column))
                for p, start, size in _spans(column):
                    backward[p.path] = Part(Source(path), start, size)
            gone.update(group)
            return _one(group, columns, paths, scope)

        merged = rewrite(program, merge)
        return Rewritten(merged, ParamMap(forward, backward, removed=frozenset(backward)), notes)


def _group(eqn: Eqn, scope: Scope) -> list[Eqn]:
    """The linear maps of this equation's operand whose weights are its weight's siblings, in order; itself too."""
    if not isinstance(eqn.op, Linear) or eqn.args[1] not in scope.params:
        return []
    path = scope.params[eqn.args[1]].path
    return [
        other
        for other in scope.readers(eqn.args[0])
        if isinstance(other.op, Linear)
        and other.args[0] == eqn.args[0]
        and (param := scope.params.get(other.args[1])) is not None
        and _siblings(path, param.path)
    ]


def _siblings(a: str, b: str) -> bool:
    """Whether two paths are of one length and differ in the segment before the last, if at all."""
    return _around(a) == _around(b)


def _around(path: str) -> tuple[list[str], str]:
    *above, _, last = ("", *path.split("."))
    return above, last


def _merged(paths: Sequence[str]) -> str:
    """`a.q.weight`, `a.k.weight` -> `a.qk.weight`; longer names are joined by `_`."""
    above, last = _around(paths[0])
    names = [path.split(".")[-2] for path in paths]
    joined = ("" if all(len(n) == 1 for n in names) else "_").join(names)
    return ".".join([*above[1:], joined, last])


def _refusal(group: Sequence[Eqn], columns: Sequence[Sequence[Param]], scope: Scope) -> str | None:
    ...


def _spans(column: Sequence[Param]) -> list[tuple[Param, int, int]]:
    ...


def _one(group: Sequence[Eqn], columns: Sequence[Sequence[Param]], paths: Sequence[str], scope: Scope) -> list[Eqn]:
    ...
