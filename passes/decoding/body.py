"""A program, or a body, being turned into its decoding form: values under their new types, and what is kept of them.

The tokens of a call are new ones; those before them are known by their count (`length`) and by what was kept. A value
with an axis of tokens [B, T, ...] stays one, of the new tokens; one without rows [T, ...] gets them, as each row of a
batch stands at a place of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from tfc.diagnostics import Diagnostic, TfcError
from tfc.formula.expr import Apply, Expr, Kind, Read, Var
from tfc.ir.caching import CacheRead, CacheWrite
from tfc.ir.ops import Cast, Constant, Elementwise, Index, Op
from tfc.ir.program import Eqn, Program, Value
from tfc.ir.text import line
from tfc.ir.types import Dim, DType, IRError, Size, TensorType

__all__ = ["Axes", "Body", "Kept"]

B, T = Var("b", Kind.INT), Var("t", Kind.INT)


@dataclass(frozen=True, slots=True)
class Axes:
    """The lengths that decoding speaks of: rows of the batch, new tokens, places of a cache; and the cache's type."""

    batch: Dim
    time: Dim
    slots: Dim
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept from call to call: what a body takes, and what it gives in its place."""

    before: Value
    after: Value


class Body:
    """The decoding form of one program or body as it grows. `outer`: that of the program around it.

    turns: how often it runs in all; each run has a row of its own in every cache. place: the labels around it.
    keeps: whether anything may be kept in it; each copy of a route sees every token, but not those before.
    """

    def __init__(self, program: Program, axes: Axes, outer: "Body | None" = None, turns: int = 1, place: str = "",
                 keeps: bool = True) -> None:  # fmt: skip
        self.program, self.axes, self.outer, self.turns, self.place, self.keeps = (
            program, axes, outer, turns, place, keeps)  # fmt: skip
        self.eqns: list[Eqn] = []
        self.head: list[Eqn] = []
        self.kept: list[Kept] = []
        self.extra: dict[str, Value] = {}
        self.rows: dict[Value, Value] = {}
        self.reads = program.readers()
        self._names = {v.name for v in _values(program)}
        self._now: Eqn | None = None

    # --- values

    def axis(self, kind: TensorType) -> int | None:
        """The axis of the tokens, 0 or 1; None of a value without. Complains where there is another such size."""
        name = str(self.axes.time)
        found = [i for i, n in enumerate(kind.shape) if isinstance(n, Dim) and name in n.names]
        if not found:
            return None
        (at, *more), shape = found, kind.shape
        if more or shape[at] != self.axes.time or not (at == 0 or (at == 1 and shape[0] == self.axes.batch)):
            self.refuse(f"{kind} has tokens elsewhere than in [{self.axes.batch}, {name}, ...]")
        return at

    def timed(self, value: Value) -> bool:
        return self.axis(value.type) is not None

    def type(self, kind: TensorType) -> TensorType:
        """The type in the decoding form."""
        return TensorType((self.axes.batch, *kind.shape), kind.dtype) if self.axis(kind) == 0 else kind

    def value(self, old: Value) -> Value:
        return Value(old.name, self.type(old.type))

    def fresh(self, name: str, kind: TensorType) -> Value:
        free, n = name, 1
        while free in self._names:
            n += 1
            free = f"{name}_{n}"
        self._names.add(free)
        return Value(free, kind)

    # --- equations

    def begin(self, eqn: Eqn) -> None:
        """The equation that complaints speak of from here on, and that new ones come from."""
        self._now = eqn

    def emit(self, op: Op, *args: Value, name: str = "") -> Value:
        """A new equation's only result."""
        (kind,) = op.infer(*(a.type for a in args))
        out = self.fresh(name or op.name, kind)
        self.eqns.append(Eqn((out,), op, args, self._now.span if self._now else None))
        return out

    def same(self, eqn: Eqn, op: Op, *args: Value) -> None:
        """The equation's counterpart: it binds the same names. Complains where its types are not theirs."""
        outs = tuple(map(self.value, eqn.outs))
        try:
            found = op.infer(*(a.type for a in args))
        except (IRError, ValueError) as error:
            self.refuse(str(error))
        if found != tuple(v.type for v in outs):
            self.refuse(f"of new tokens alone it gives {', '.join(map(str, found))}")
        self.eqns.append(Eqn(outs, op, args, eqn.span))

    def refuse(self, reason: str, help: str = "call the model on whole sequences") -> NoReturn:
        """Raises TfcError (E816), with the place."""
        program: Body = self
        while program.outer is not None:
            program = program.outer
        where = f" in `{line(self._now)}`" if self._now and self._now.span is None else ""
        fact = f"{program.program.name} cannot be decoded token by token: {reason}{where}"
        raise TfcError(Diagnostic("E816", fact, span=self._now.span if self._now else None, help=help))

    # --- what is known of the tokens before

    def known(self, what: str) -> Value:
        """`length` int[B], the tokens before; `count` int[B], how many of the new ones count; `position` int[B, T];
        `turn` int[], the row of the caches."""
        if what not in self.extra:
            self.extra[what] = self._turn() if what == "turn" else self._known(what)
        return self.extra[what]

    def _known(self, what: str) -> Value:
        if self.outer is not None:
            return self.fresh(f"cache.{what}", self.outer.known(what).type)
        assert what == "position", "length and count are inputs"
        axes = (("b", self.axes.batch), ("t", self.axes.time))
        op = Index(axes=axes, expr=Apply("add", (T, Read(0, (B,), Kind.INT))))
        return self._first(op, self.known("length"), name="cache.position")

    def _first(self, op: Op, *args: Value, name: str) -> Value:
        (kind,) = op.infer(*(a.type for a in args))
        out = self.fresh(name, kind)
        self.head.append(Eqn((out,), op, args))
        return out

    def _turn(self) -> Value:
        if self.outer is None:
            return self._first(Constant(value=0, dtype=DType.I32), name="cache.turn")
        index = self.program.inputs[0].value
        if self.outer.turns == 1:
            return index
        around = self.fresh("cache.turn", index.type)
        self.extra["turn around"] = around
        count = self._first(Constant(value=self.turns // self.outer.turns, dtype=DType.I32), name="cache.turns")
        before = self._first(Elementwise(fn="mul"), around, count, name="cache.before")
        return self._first(Elementwise(fn="add"), before, index, name="cache.row")

    def passed(self) -> Iterator[tuple[Value, Value]]:
        """What this body takes of the program around it beyond what it took before: (its own value, the outer one)."""
        assert self.outer is not None
        for what, value in self.extra.items():
            if what != "turn":
                yield value, self.outer.known(what.removesuffix(" around"))

    # --- what is kept

    def take(self, name: str, kind: TensorType) -> tuple[Value, Value]:
        """A stack of rows of a type, one a turn, and the row of this turn as it was after the call before."""
        if not self.keeps:
            self.refuse(f"the copies of `{self.program.name}` look at the tokens before, and none is kept in a route")
        stack = self.fresh(f"cache.{self.place}{name}", TensorType((self.turns, *kind.shape), kind.dtype))
        return stack, self.emit(CacheRead(), stack, self.known("turn"), name=f"{name}.before")

    def give(self, stack: Value, after: Value) -> None:
        """The stack as it is after this call."""
        self.kept.append(Kept(stack, after))

    def put(self, stack: Value, row: Value) -> None:
        """This turn's row, whole, for the call after."""
        self.give(stack, self.emit(CacheWrite(), stack, row, self.known("turn"), name=f"{stack.name}.after"))

    def tokens(self, name: str, value: Value) -> Value:
        """Every token so far, [B, L, ...]: those kept, and the new ones after them.   value: [B, T, ...]"""
        if value in self.rows:
            return self.rows[value]
        if not self.keeps:
            self.refuse(f"the copies of `{self.program.name}` look at the tokens before, and none is kept in a route")
        kept = value.type.dtype
        if self.axes.dtype is not None and kept.floating:
            kept = self.axes.dtype
        shape: tuple[Size, ...] = (self.turns, self.axes.batch, self.axes.slots, *value.type.shape[2:])
        stack = self.fresh(f"cache.{self.place}{name}", TensorType(shape, kept))
        at = self.known("turn"), self.known("length"), self.known("count")
        after = self.emit(CacheWrite(), stack, value, *at, name=f"{stack.name}.after")
        self.give(stack, after)
        every = self.emit(CacheRead(), after, self.known("turn"), name=f"{name}.all")
        if kept is not value.type.dtype:
            every = self.emit(Cast(dtype=value.type.dtype), every, name=f"{name}.all")
        self.rows[value] = every
        return every

    def index(self, axes: tuple[tuple[str, Size], ...], expr: Expr, *args: Value, name: str) -> Value:
        return self.emit(Index(axes=axes, expr=expr), *args, name=name)

    def finished(self, **changes: object) -> Program:
        return replace(self.program, eqns=(*self.head, *self.eqns), reports=(), **changes)  # type: ignore[arg-type]  # its fields


def _values(program: Program) -> Iterator[Value]:
    yield from (i.value for i in program.inputs)
    yield from (p.value for p in program.params)
    for eqn in program.eqns:
        yield from eqn.outs
