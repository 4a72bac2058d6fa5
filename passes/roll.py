"""Equal layers written out one after another -> one loop over them, their parameters stacked."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import ClassVar

from tfc.ir.ops import Repeat, Route
from tfc.ir.param_map import Expr, ParamMap, Source, Stack, Turn, substitute
from tfc.ir.program import Program, Stored
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.repetition import Layers, Text

__all__ = ["Roll"]

_LOOPS = (Repeat, Route)


@dataclass(frozen=True)
class Roll:
    """x = f(x, w0), x = f(x, w1), ..., x = f(x, wn)  ->  repeat n { x = f(x, w) }, w stacked

    Exact, bit for bit in the parameters. Time to compile does not grow with depth, and what follows looks at one layer
    instead of all. A turn is as many layers as it takes for the next ones to be like them: with local and global
    attention by turns, two. Loops of fewer than `least` turns are not made.

    Equal layers have the same equations in the same order, whatever the paths of their parameters and however these
    start; each has parameters of its own (what all read stays outside), and hands on what the next one takes.
    Holds back where another part of the program reads what a layer in the middle makes, or where parameters of two
    layers differ in type, format, or in whether they are trained.
    """

    name: ClassVar[str] = "roll"
    contract: ClassVar[Contract] = Contract.EXACT

    least: int = 4

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        work = _Rolling(self.name, hold, self.least, program.stored())
        new = work.within(program)
        if new is program:
            return Rewritten(program, notes=work.notes)
        return Rewritten(new, ParamMap(work.forward, work.backward, removed=frozenset(work.backward)), work.notes)


@dataclass
class _Rolling:
    name: str
    hold: frozenset[str]
    least: int
    stored: Sequence[Stored]
    notes: list[Note] = field(default_factory=list)
    forward: dict[str, Expr] = field(default_factory=dict)
    backward: dict[str, Expr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.paths = {p.path for p in self.stored}

    def within(self, program: Program) -> Program:
        """The program with its loops' bodies rolled, then itself, as often as there is something to roll."""
        eqns = []
        for eqn in program.eqns:
            if isinstance(eqn.op, _LOOPS) and (body := self.within(eqn.op.body)) is not eqn.op.body:
                eqn = replace(eqn, op=replace(eqn.op, body=body))
            eqns.append(eqn)
        if not all(map(is_, eqns, program.eqns)):
            program = replace(program, eqns=tuple(eqns))
        while (rolled := self.once(program)) is not None:
            program = rolled
        return program

    def once(self, program: Program) -> Program | None:
        """The program with its most worthwhile sequence of equal layers as a loop; None where there is none."""
        if len(program.eqns) < self.least:
            return None
        text = Text(program)
        for start, period, turns in text.candidates(self.least):
            site = f"{self.name}:{next(text.private(start, period)).path}"
            found = "asked to" if site in self.hold else text.layers(start, period, turns, self.least)
            if isinstance(found, Layers):
                return self.looped(program, text, found)
            if found and site not in {n.site for n in self.notes}:
                self.notes.append(Note(site, found, span=text.eqns[start].span))
        return None

    def looped(self, program: Program, text: Text, layers: Layers) -> Program:
        """The layers as a loop."""
        label, paths = self.naming(layers)
        ranks = {p.path: len(p.type.shape) for p in program.stored()}
        for column, path in zip(layers.params, paths, strict=True):
            axis = -ranks[column[0].path] - 1
            self.forward[path] = Stack(tuple([self.source(p.path) for p in column]), axis)
            stack = Source(path)
            for turn, p in enumerate(column):
                self.settle(p.path, Turn(stack, turn, axis))
        own = {column[0].path: path for column, path in zip(layers.params, paths, strict=True)}
        loop = layers.loop(label, own, program)
        gone = {p.path for column in layers.params for p in column}
        after = layers.start + sum(map(len, layers.eqns))
        eqns = (*text.eqns[: layers.start], loop, *text.eqns[after:])
        read = {a.name for e in eqns for a in e.args} | text.ends
        constants = tuple(e for e in text.constants if e.out.name in read)
        params = tuple(p for p in program.params if p.path not in gone)
        return replace(program, params=params, eqns=(*constants, *eqns))

    def source(self, path: str) -> Expr:
        """What a path holds, over the parameters before the pass; a stack made before goes into the new one."""
        return self.forward.pop(path, None) or Source(path)

    def settle(self, path: str, now: Expr) -> None:
        """`now` is where a parameter has gone; one that earlier ones had gone to takes them along."""
        if path in self.paths:
            self.backward[path] = now
        else:
            self.backward = {old: substitute(e, {path: now}) for old, e in self.backward.items()}

    def naming(self, layers: Layers) -> tuple[str, list[str]]:
        """The loop's label, and the paths of the stacks: as if it had been written as a loop, where names allow."""
        rest = (self.paths | self.forward.keys()) - {p.path for column in layers.params for p in column}
        numbered = [_numbered([p.path for p in column]) for column in layers.params]
        labels = {label for label, _ in filter(None, numbered)}
        paths = [path for _, path in filter(None, numbered)]
        if len(labels) == 1 and len(set(paths)) == len(numbered) and not any(_clash(path, rest) for path in paths):
            return labels.pop(), paths
        label, n = "rolled", 1
        while any(path.partition(".")[0] == label for path in rest):
            n += 1
            label = f"rolled_{n}"
        return label, [f"{label}.{column[0].path}" for column in layers.params]


def _numbered(paths: Sequence[str]) -> tuple[str, str] | None:
    """`layer` and `layer.w`, of `layer.3.w`, `layer.4.w`, ...: paths that differ in one number, and count on."""
    rows = [path.split(".") for path in paths]
    if len({len(row) for row in rows}) > 1:
        return None
    (*differ,) = [n for n, column in enumerate(zip(*rows, strict=True)) if len(set(column)) > 1]
    if len(differ) != 1 or differ[0] == 0:
        return None
    (at,) = differ
    found = [row[at] for row in rows]
    if not all(n.isdigit() for n in found) or [int(n) for n in found] != list(
        range(int(found[0]), int(found[0]) + len(found))
    ):
        return None
    return rows[0][at - 1], ".".join([*rows[0][:at], *rows[0][at + 1 :]])


def _clash(path: str, others: Collection[str]) -> bool:
    return any(path == o or o.startswith(f"{path}.") or path.startswith(f"{o}.") for o in others)
