"""A program -> the same that also reports chosen values (what linear maps read, queries and keys), for calibration."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tfc.ir.ops import Linear, Repeat, Route, Scores
from tfc.ir.program import Eqn, Param, Program, Value
from tfc.ir.scan import PATH
from tfc.ir.types import TensorType
from tfc.passes.rewrite import Scope

__all__ = [
    "Observed",
    "Seen",
    "Which",
    "attention_place",
    "attention_weight",
    "attentions",
    "keys_of",
    "linear_inputs",
    "observe",
]

Which = Callable[[Eqn, Scope], Iterable[tuple[str, Value]]]
"""What to watch at an equation: keys (dotted paths) and values of the same body. Asked of every equation of every body;
it may answer the same key at several places, whose statistics are then taken together."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One watched value.

    key: what it was asked for as. report: the report of the program that carries it; several keys may share one.
    type: of one turn; the report has one leading axis for each of `repeats` (label, count), outermost first.
    """

    key: str
    report: str
    repeats: tuple[tuple[str, int], ...]
    type: TensorType


@dataclass(frozen=True, slots=True)
class Observed:
    """seen: what is reported, in the program's order. hidden: keys asked for inside a `route`, where only some tokens
    arrive and nothing can be reported."""

    program: Program
    seen: tuple[Seen, ...]
    hidden: tuple[str, ...]


def linear_inputs(chosen: Callable[[str], bool] = lambda path: True) -> Which:
    """What the linear maps read whose weight is a parameter of their body: key, the weight's path."""

    def which(eqn: Eqn, scope: Scope) -> Iterable[tuple[str, Value]]:
        if isinstance(eqn.op, Linear) and eqn.args[1] in scope.params:
            path = scope.params[eqn.args[1]].path
            if chosen(path):
                yield path, eqn.args[0]

    return which


def attentions(chosen: Callable[[str], bool] = lambda place: True) -> Which:
    """Queries [B, N, H, D] and keys [B, M, G, D] as the scores read them: keys, the place and `.queries`, `.keys`.

    The place is that of `attention_place`: `layer.look`.
    """

    def which(eqn: Eqn, scope: Scope) -> Iterable[tuple[str, Value]]:
        if isinstance(eqn.op, Scores) and chosen(place := attention_place(eqn, scope)):
            yield f"{place}.queries", eqn.args[0]
            yield f"{place}.keys", eqn.args[1]

    return which


def attention_place(eqn: Eqn, scope: Scope) -> str:
    """Where an attention stands, given its scores: what the paths of the parameters nearest to its queries and keys
    have in common (`layer.look` of `layer.look.q.weight` and `layer.look.k.weight`); else the scores' own name."""
    return attention_weight(eqn, scope)[0]


def attention_weight(eqn: Eqn, scope: Scope) -> tuple[str, Param | None]:
    """The place of an attention, and the weight of the linear map that makes its keys, if one of its body does."""
    found = [_nearest(value, scope) for value in eqn.args[:2]]
    weights = [param for param in found if param is not None]
    own = f"{scope.program.name}.{eqn.outs[0].name}"
    if len(weights) < 2:
        return own, found[1]
    common: list[str] = []
    for segments in zip(*(param.path.split(".")[:-2] for param in weights), strict=False):
        if len(set(segments)) > 1:
            break
        common.append(segments[0])
    return ".".join(common) or own, found[1]


def _nearest(value: Value, scope: Scope) -> Param | None:
    """The weight of the first linear map above a value, going up first operands; None without one."""
    while (eqn := scope.maker(value)) is not None and eqn.args:
        if isinstance(eqn.op, Linear) and eqn.args[1] in scope.params:
            return scope.params[eqn.args[1]]
        value = eqn.args[0]
    return None


def observe(program: Program, which: Which) -> Observed:
    """The program with a report for each value that `which` names, stacked over the loops around it.

    Results, parameters and the program's own reports stay. Raises ValueError for a key that is no path, and for one
    that names values of different types or in different loops.
    """
    watching = _Watching(which, {path for p in _programs(program) for path, _ in p.reports})
    new, seen = watching.run(program)
    alike: dict[str, tuple[object, object]] = {}
    for s in seen:
        if alike.setdefault(s.key, (s.type, s.repeats)) != (s.type, s.repeats):
            raise ValueError(f"`{s.key}` names values of different types, or in different loops")
    return Observed(new, tuple(seen), tuple(dict.fromkeys(watching.hidden)))


def _programs(program: Program) -> Iterable[Program]:
    yield program
    for _, body in program.bodies():
        yield from _programs(body)


class _Watching:
    """The transformation of one program; names of reports are unique in all of it."""

    def __init__(self, which: Which, taken: set[str]) -> None:
        self.which, self.taken = which, taken
        self.hidden: list[str] = []

    def run(self, program: Program) -> tuple[Program, list[Seen]]:
        scope = Scope(program)
        reports = list(program.reports)
        told: dict[Value, str] = {}
        seen: list[Seen] = []
        eqns: list[Eqn] = []
        for eqn in program.eqns:
            for key, value in self.which(eqn, scope):
                if value not in told:
                    told[value] = self._report(key)
                    reports.append((told[value], value))
                seen.append(Seen(key, told[value], (), value.type))
            if isinstance(eqn.op, Repeat):
                eqn, inner = self._loop(eqn, eqn.op, scope)
                outs = eqn.outs[len(eqn.outs) - len(inner) :]
                reports += [(path, out) for (path, _), out in zip(inner, outs, strict=True)]
                seen += [s for _, found in inner for s in found]
            elif isinstance(eqn.op, Route):
                self._hide(eqn.op.body)
            eqns.append(eqn)
        if not seen:
            return program, []
        return replace(program, eqns=tuple(eqns), reports=tuple(reports)), seen

    def _loop(self, eqn: Eqn, op: Repeat, scope: Scope) -> tuple[Eqn, list[tuple[str, list[Seen]]]]:
        """The loop with a result more for each new report of its body; those reports, and what each carries."""
        body, found = self.run(op.body)
        if body is op.body:
            return eqn, []
        new = body.reports[len(op.body.reports) :]
        outs = [
            scope.fresh(path.rpartition(".")[2], TensorType((op.count, *v.type.shape), v.type.dtype)) for path, v in new
        ]
        label = (op.label, op.count)
        inside: dict[str, list[Seen]] = {path: [] for path, _ in new}
        for s in found:
            inside[s.report].append(replace(s, repeats=(label, *s.repeats)))
        return replace(eqn, outs=(*eqn.outs, *outs), op=replace(op, body=body)), list(inside.items())

    def _report(self, key: str) -> str:
        if PATH.match(key) is None:
            raise ValueError(f"`{key}` is no path")
        name, n = f"seen.{key}", 1
        while name in self.taken:
            n += 1
            name = f"seen.{key}_{n}"
        self.taken.add(name)
        return name

    def _hide(self, body: Program) -> None:
        for inner in _programs(body):
            scope = Scope(inner)
            self.hidden += [key for eqn in inner.eqns for key, _ in self.which(eqn, scope)]


def keys_of(seen: Sequence[Seen]) -> tuple[str, ...]:
    """The keys, each once, in order."""
    return tuple(dict.fromkeys(s.key for s in seen))
