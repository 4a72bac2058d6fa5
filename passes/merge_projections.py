"""Linear maps of the same value, side by side -> one wider linear map and its slices."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tfc.ir.ops import Linear, Slice
from tfc.ir.param_map import Concat, Expr, ParamMap, Part, Source
from tfc.ir.program import Eqn, Init, Param, Program
from tfc.ir.types import TensorType
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.rewrite import Scope, beside, rewrite, unlike_written

__all__ = ["MergeProjections"]


@dataclass(frozen=True)
class MergeProjections:
    """linear(x, wq), linear(x, wk), linear(x, wv)  ->  slices of linear(x, concat(wq, wk, wv))

    Exact, bit for bit in the parameters. One pass over x and one larger matrix product; gate and up of a feed-forward
    that was not fused merge by the same rule. Merged are linear maps of one value whose parameters' paths differ in
    one segment: `look.q.weight`, `look.k.weight`, `look.v.weight` become `look.qkv.weight`.

    Holds back where a parameter has another reader (merging would keep two copies of it), where some of the maps have
    a bias and some have not, where the element types or whether they are trained differ, and where one is kept in a
    format or fitted.
    """

    name: ClassVar[str] = "merge-projections"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        notes: list[Note] = []
        forward: dict[str, Expr] = {}
        backward: dict[str, Expr] = {}
        taken = {p.path for p in program.stored()}

        def merge(eqn: Eqn, scope: Scope) -> list[Eqn] | None:
            group = _group(eqn, scope)
            if len(group) < 2:
                return None
            columns = _columns(group, scope)
            site = f"{self.name}:{columns[0].path}"
            why = "asked to" if site in hold else _refusal(group, columns, scope, taken)
            if why is not None:
                if eqn == group[0]:
                    notes.append(Note(site, why, span=eqn.span))
                return None
            if eqn != group[0]:
                return []
            for column in columns:
                forward[column.path] = Concat(tuple(Source(p.path) for p in column.params))
                for p, (start, size) in zip(column.params, column.spans(), strict=True):
                    backward[p.path] = Part(Source(column.path), start, size)
            return _merged(group, columns, scope)

        merged = rewrite(program, merge)
        return Rewritten(merged, ParamMap(forward, backward, removed=frozenset(backward)), notes)


@dataclass(frozen=True)
class _Column:
    """The weights of a group, or its biases, and the path of what they become."""

    path: str
    params: tuple[Param, ...]

    @property
    def type(self) -> TensorType:
        start, size = self.spans()[-1]
        return self.params[0].value.type.with_last(start + size)

    def spans(self) -> list[tuple[int, int]]:
        """Where each parameter's last axis lies in the new one: start and size."""
        sizes = [p.value.type.ints[-1] for p in self.params]
        return [(sum(sizes[:n]), size) for n, size in enumerate(sizes)]


def _group(eqn: Eqn, scope: Scope) -> list[Eqn]:
    """The linear maps of this equation's operand whose weights are siblings of its weight, itself among them."""
    if not isinstance(eqn.op, Linear) or eqn.args[1] not in scope.params:
        return []
    x, weight = eqn.args[0], scope.params[eqn.args[1]]

    def belongs(other: Eqn) -> bool:
        if not isinstance(other.op, Linear) or other.args[0] != x or other.args[1] not in scope.params:
            return False
        return _around(scope.params[other.args[1]].path) == _around(weight.path)

    return [other for other in scope.readers(x) if belongs(other)]


def _around(path: str) -> tuple[str, str]:
    """`layer.look.q.weight` -> (`layer.look`, `weight`): what siblings have in common."""
    above, _, last = path.rpartition(".")
    return above.rpartition(".")[0], last


def _columns(group: Sequence[Eqn], scope: Scope) -> list[_Column]:
    """The weights, then the biases as far as they are parameters."""
    weights = tuple(scope.params[e.args[1]] for e in group)
    above, last = _around(weights[0].path)
    names = [p.path.split(".")[-2:][0] for p in weights]
    joined = ("" if all(len(n) == 1 for n in names) else "_").join(names)
    place = f"{above}.{joined}" if above else joined
    biases = tuple(scope.params[e.args[2]] for e in group if len(e.args) > 2 and e.args[2] in scope.params)
    out = [_Column(f"{place}.{last}", weights)]
    return [*out, _Column(f"{place}.{_around(biases[0].path)[1]}", biases)] if biases else out


def _refusal(group: Sequence[Eqn], columns: Sequence[_Column], scope: Scope, taken: Collection[str]) -> str | None:
    """Why the group stays apart, or None."""
    params = [p for column in columns for p in column.params]
    for p in params:
        if not scope.once(p.value):
            return f"{p.path} has another reader"
        if why := unlike_written(p):
            return why
    with_bias = [len(e.args) > 2 for e in group]
    if len(params) != len(group) + sum(with_bias):
        return "a bias is computed, it is no parameter"
    if any(with_bias) and not all(with_bias):
        with_one, without = with_bias.index(True), with_bias.index(False)
        return f"{params[with_one].path} comes with a bias and {params[without].path} without"
    for column in columns:
        if len({(p.value.type.dtype, p.trained) for p in column.params}) > 1:
            kinds = ", ".join(f"{p.path} {p.value.type.dtype}{'' if p.trained else ' frozen'}" for p in column.params)
            return f"they are not stored alike: {kinds}"
        if column.path in taken:
            return f"there is a parameter {column.path} already"
    return None


def _merged(group: Sequence[Eqn], columns: Sequence[_Column], scope: Scope) -> list[Eqn]:
    """One linear map, then a slice for each value that the group bound."""
    operands = [group[0].args[0]]
    for column in columns:
        new = scope.fresh(beside(column.params[0], column.path), column.type)
        scope.replace_params(column.params, Param(column.path, new, Init("packed"), column.params[0].trained))
        operands.append(new)
    spans = columns[0].spans()
    wide = scope.fresh(columns[0].path.split(".")[-2], group[0].out.type.with_last(columns[0].type.last))
    slices = [
        Eqn((e.out,), Slice(start=start, size=size), (wide,), e.span)
        for e, (start, size) in zip(group, spans, strict=True)
    ]
    return [Eqn((wide,), Linear(), tuple(operands), group[0].span), *slices]
