"""Two or three linear maps with elementwise work between them -> one feed-forward."""

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from tfc.formula.expr import Apply, Const, Expr, Kind, Var, substitute
from tfc.ir.ops import Constant, Elementwise, FeedForward, Linear
from tfc.ir.program import Eqn, Param, Program, Value
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.rewrite import Scope, rewrite

__all__ = ["FuseFfn"]

U, G = Var("u", Kind.REAL), Var("g", Kind.REAL)
LARGEST = 200
"""Nodes of an activation. A value used twice is written out twice in a formula, so chains can grow without bound."""


@dataclass(frozen=True)
class FuseFfn:
    """linear(f(linear(x, up), linear(x, gate)), down)  ->  ffn(x, up, gate, down), activation f(u, g)

    Exact; parameters stay as they are. The [..., F] values between leave the program, unless something else reads
    them: then the pass holds back. f is any elementwise function of one linear map's value or of two of the same x
    (arXiv:2002.05202); where it is a product with one of the two bare, that one is `up`, else `up` is the first.
    Holds back too where f captures anything but numbers, and where some of the maps have a bias and some have not.
    """

    name: ClassVar[str] = "fuse-ffn"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        notes: list[Note] = []
        elsewhere: dict[int, _Elsewhere] = {}  # by the scope, which it keeps

        def fuse(eqn: Eqn, scope: Scope) -> list[Eqn] | None:
            if not isinstance(eqn.op, Linear):
                return None
            if elsewhere.setdefault(id(scope), _Elsewhere(scope)).starts(eqn.args[0]):
                return None
            between = _Between(scope)
            between.read(eqn.args[0])
            if not between.inner or not between.maps:
                return None  # nothing like a feed-forward: no note
            place = scope.params[eqn.args[1]].path if eqn.args[1] in scope.params else eqn.out.name
            site = f"{self.name}:{place}"
            why = "asked to" if site in hold else between.refusal(eqn)
            if why is not None:
                notes.append(Note(site, why, span=eqn.span))
                return None
            return [between.fused(eqn)]

        return Rewritten(rewrite(program, fuse), notes=notes)


@dataclass
class _Elsewhere:
    """Of the values of a scope, whether elementwise work above them starts from something else than linear maps,
    parameters and numbers: the stream between the layers of a deep model does, and is asked about at each of them."""

    scope: Scope
    known: dict[Value, bool] = field(default_factory=dict)

    def starts(self, value: Value) -> bool:
        found = self.known.get(value)
        if found is None:
            eqn = self.scope.maker(value)
            if eqn is None:
                found = value not in self.scope.params
            elif isinstance(eqn.op, Elementwise):
                found = any([self.starts(a) for a in eqn.args])
            else:
                found = not isinstance(eqn.op, Constant | Linear)
            self.known[value] = found
        return found


@dataclass
class _Between:
    """The elementwise work above a value, up to linear maps, parameters and numbers, of which it is made.

    maps: the linear maps it starts from, in the order found. captured: parameters it reads. inner: the values on the
    way, as formulas over `Var`s named after the values they start from, and how many nodes each has.
    """

    scope: Scope
    maps: dict[Value, Eqn] = field(default_factory=dict)
    captured: list[Param] = field(default_factory=list)
    inner: dict[Value, tuple[Expr, int]] = field(default_factory=dict)

    def read(self, value: Value) -> tuple[Expr, int]:
        """The formula of a value and its size."""
        if value in self.inner:
            return self.inner[value]
        eqn = self.scope.maker(value)
        if eqn is not None and isinstance(eqn.op, Constant):
            return Const(float(eqn.op.value) if eqn.op.dtype.floating else eqn.op.value), 1
        if eqn is not None and isinstance(eqn.op, Elementwise):
            args = [self.read(a) for a in eqn.args]
            self.inner[value] = Apply(eqn.op.fn, tuple(e for e, _ in args)), 1 + sum(n for _, n in args)
            return self.inner[value]
        if eqn is not None and isinstance(eqn.op, Linear):
            self.maps[value] = eqn
        else:
            self.captured.append(self.scope.params[value])
        return Var(value.name, Kind.REAL), 1

    def refusal(self, down: Eqn) -> str | None:
        """Why this and the linear map `down` after it are no feed-forward, or None."""
        if self.captured:
            return f"the activation reads the parameter {self.captured[0].path}"
        if len(self.maps) > 2:
            return f"the activation starts from {len(self.maps)} linear maps: {', '.join(map(str, self.maps))}"
        maps = " and ".join(f"{v} ({v.type})" for v in self.maps)
        inputs = list(dict.fromkeys(e.args[0] for e in self.maps.values()))
        if len(inputs) > 1:
            return f"{maps} are linear maps of different values, {inputs[0]} and {inputs[1]}"
        x, hidden = inputs[0].type, down.args[0].type
        if any(value.type != hidden for value in self.maps) or down.out.type.dtype is not x.dtype:
            return f"{maps} and {down.args[0]} ({hidden}) differ in type"
        within = Counter(a for e in [down, *filter(None, map(self.scope.maker, self.inner))] for a in e.args)
        for value in [*self.maps, *self.inner]:
            if value.type.rank and self.scope.reads[value] > within[value]:
                return f"{value} ({value.type}) is also read elsewhere"
        size = self.inner[down.args[0]][1]
        if size > LARGEST:
            return f"written as one formula, the activation has {size} nodes; more than {LARGEST} are not fused"
        biased = {str(e.out): len(e.args) > 2 for e in [*self.maps.values(), down]}
        if len(set(biased.values())) > 1:
            with_one, without = ([v for v, b in biased.items() if b is flag] for flag in (True, False))
            return f"{' and '.join(with_one)} with a bias, {' and '.join(without)} without"
        return None

    def fused(self, down: Eqn) -> Eqn:
        """The feed-forward that ends in the linear map `down`."""
        activation, _ = self.inner[down.args[0]]
        order = list(self.maps)
        match activation:
            case Apply("mul", (_, Var(name, _)) | (Var(name, _), _)) if len(order) == 2 and order[1].name == name:
                order.reverse()
        names: dict[Expr, Expr] = {Var(v.name, Kind.REAL): new for v, new in zip(order, (U, G), strict=False)}
        maps = [self.maps[v] for v in order]
        op = FeedForward(activation=substitute(activation, names), gated=len(maps) == 2, biased=len(down.args) > 2)
        operands = (maps[0].args[0], *(a for e in [*maps, down] for a in e.args[1:]))
        return Eqn(down.outs, op, operands, down.span)
