"""A sum, its statistics along the last axis and what they scale -> one norm."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tfc.ir.op import promote
from tfc.ir.ops import Cast, Elementwise, Reduction, ResidualNorm
from tfc.ir.program import Eqn, Program, Value
from tfc.ir.types import DType
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.rewrite import Scope, rewrite

__all__ = ["FuseNorms"]

ADD, SUB, MUL, POW, RSQRT = (Elementwise(fn=fn) for fn in ("add", "sub", "mul", "pow", "rsqrt"))
MEAN = Reduction(fn="mean")


@dataclass(frozen=True)
class FuseNorms:
    """z = x + y,  d = z - mean(z),  d * rsqrt(mean(d * d) + eps) * scale + bias  ->  norm(x, y, scale, bias), z

    Exact; parameters stay as they are. So do types: the sum has its own, the statistics and all after them have
    theirs, and the result is rounded where the program casts it. Without `- mean(z)` it is the norm by the root mean
    square. Scale and bias are vectors along the last axis, from wherever, and may be missing. The sum belongs to the
    norm where x, y and z have one type and all else that reads z stands below: z is then a result, too. Otherwise the
    norm is one of z.

    Holds back where a value between is read elsewhere (a statistic, the centered value), where the statistics are of
    another value than the one they scale, and where what is added to the mean square is no number. Statistics over
    other axes are index equations, of which nothing is said.
    """

    name: ClassVar[str] = "fuse-norms"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        notes: list[Note] = []
        plans: list[_Plan] = []  # several at a time: the equations around a body go on after its own

        def fuse(eqn: Eqn, scope: Scope) -> list[Eqn] | None:
            plan = next((p for p in plans if p.scope is scope), None)
            if plan is None:
                plans.append(plan := _Plan(scope, self.name, hold))
                notes.extend(plan.notes)
            first = eqn.outs[0]
            if first in plan.sums:
                return []
            return [plan.norms[first]] if first in plan.norms else None

        return Rewritten(rewrite(program, fuse), notes=notes)


class _Plan:
    """What becomes of one program or body.

    norms: by the last value of each norm, the equation that binds it instead. sums: what such equations bind besides.
    """

    def __init__(self, scope: Scope, name: str, hold: frozenset[str]) -> None:
        self.scope = scope
        self.norms: dict[Value, Eqn] = {}
        self.sums: set[Value] = set()
        self.notes: list[Note] = []
        for eqn in scope.program.eqns:
            if eqn.op != RSQRT or (norm := _around(eqn, scope)) is None:
                continue
            site = f"{name}:{norm.place()}"
            why = "asked to" if site in hold else norm.refusal()
            if why:
                self.notes.append(Note(site, why, span=eqn.span))
            else:
                self._fuse(norm)

    def _fuse(self, norm: "_Norm") -> None:
        last = norm.ends[-1]
        total, keeps = self._sum(norm, self.scope.order[last.out])
        if total is not None:
            self.sums.add(norm.z)
        op = ResidualNorm(
            centered=norm.centre is not None, eps=float(self.scope.number(norm.number) or 0), keeps=keeps,
            residual=total is not None, scaled=norm.scale is not None, biased=norm.bias is not None,
            reduce=norm.reduce, dtype=last.out.type.dtype,
        )  # fmt: skip
        operands = [*(total.args if total else [norm.z]), *(v for v in (norm.scale, norm.bias) if v is not None)]
        self.norms[last.out] = Eqn((last.out, norm.z) if keeps else (last.out,), op, tuple(operands), last.span)

    def _sum(self, norm: "_Norm", end: int) -> tuple[Eqn | None, bool]:
        """The sum that can be part of the norm, if any, and whether it is read below, too."""
        total = self.scope.maker(norm.z)
        if total is None or total.op != ADD or norm.z in self.sums or any(a.type != norm.z.type for a in total.args):
            return None, False
        chain = norm.chain()
        casts = [
            e
            for e in self.scope.readers(norm.z)
            if isinstance(e.op, Cast) and self.scope.reads.get(e.out, 0) == _count(e.out, chain)
        ]
        others = [e for e in self.scope.readers(norm.z) if e not in chain and e not in casts]
        if any(self.scope.order[e.outs[0]] < end for e in others):
            return None, False
        return total, self.scope.reads[norm.z] > _count(norm.z, [*chain, *casts])


def _count(value: Value, eqns: Sequence[Eqn]) -> int:
    return sum(e.args.count(value) for e in eqns)


@dataclass
class _Norm:
    """What stands around rsqrt(mean(d * d) + eps).

    square, mean, shifted, root: the equations up to the root, of d. number: what is added to the mean square.
    z: what the norm is of. centre: what gives d of z, and z's mean, where it is centered.
    ends: the product with the root, if there is one, and what belongs to the norm after it.
    """

    scope: Scope
    square: Eqn
    mean: Eqn
    shifted: Eqn
    root: Eqn
    number: Value
    z: Value
    centre: tuple[Eqn, Eqn] | None = None
    ends: list[Eqn] = field(default_factory=list)
    scale: Value | None = None
    bias: Value | None = None

    @property
    def reduce(self) -> DType:
        return self.root.out.type.dtype

    def place(self) -> str:
        """What notes call it: the path of its scale, else the value that it gives."""
        if self.scale is not None and self.scale in self.scope.params:
            return self.scope.params[self.scale].path
        return (self.ends[-1] if self.ends else self.root).out.name

    def chain(self) -> list[Eqn]:
        """The equations that it takes the place of, but for casts of z."""
        return [*(self.centre or ()), self.square, self.mean, self.shifted, self.root, *self.ends]

    def refusal(self) -> str:
        """Why this is no norm, or an empty string."""
        if self.scope.number(self.number) is None:
            return f"{self.number}, which is added to the mean square, is no number"
        squared = self.square.args[0]
        if not self.ends:
            return f"{self.root.out}, the root, is no factor"
        scaled = next(a for a in self.ends[0].args if a != self.root.out)
        if self.before_cast(scaled) != self.before_cast(squared):
            return f"the statistics are of {squared}, what they scale is {scaled}"
        chain = self.chain()
        between = [e.out for e in chain[: -len(self.ends)]]
        for value in between:
            if self.scope.reads[value] > _count(value, chain):
                return f"{value} ({value.type}) is also read elsewhere"
        # what an equation rounds to another type, the norm does not
        typed = [*between, self.ends[0].out, *([self.number] if self.number.type.dtype.floating else [])]
        other = [v for v in typed if v.type.dtype is not self.reduce]
        other += [self.z] if promote((self.z.type.dtype, self.reduce)) is not self.reduce else []
        return f"{other[0]} ({other[0].type}) is not in {self.reduce}, as the root is" if other else ""

    def before_cast(self, value: Value) -> Value:
        """The value without the cast that widened it for the statistics."""
        eqn = self.scope.maker(value)
        if eqn is None or eqn.op != Cast(dtype=self.reduce):
            return value
        narrow = eqn.args[0].type.dtype
        return eqn.args[0] if narrow.floating and promote((narrow, self.reduce)) is self.reduce else value


def _around(root: Eqn, scope: Scope) -> _Norm | None:
    """What stands around the root, or None where it is not one of a mean square."""
    shifted = scope.maker(root.args[0])
    if shifted is None or shifted.op != ADD:
        return None
    for value, number in (shifted.args, shifted.args[::-1]):
        mean = scope.maker(value)
        if mean is not None and mean.op == MEAN and mean.args[0].type.rank > 1:
            square = scope.maker(mean.args[0])
            if square is None or not _squares(square, scope):
                return None
            norm = _Norm(scope, square, mean, shifted, root, number, z=square.args[0])
            _above(norm)
            _below(norm)
            return norm
    return None


def _squares(eqn: Eqn, scope: Scope) -> bool:
    """Whether the equation is x * x or x ^ 2."""
    if eqn.op == MUL:
        return eqn.args[0] == eqn.args[1]
    return eqn.op == POW and scope.number(eqn.args[1]) == 2


def _above(norm: _Norm) -> None:
    """Finds what the norm is of, and whether that is centered first."""
    norm.z = norm.before_cast(norm.square.args[0])
    centred = norm.scope.maker(norm.z)
    if centred is None or centred.op != SUB:
        return
    z, mean = norm.before_cast(centred.args[0]), norm.scope.maker(centred.args[1])
    if mean is not None and mean.op == MEAN and norm.before_cast(mean.args[0]) == z:
        norm.z, norm.centre = z, (mean, centred)


def _below(norm: _Norm) -> None:
    """Finds what the root scales, and the scale, bias and cast after it."""
    scope = norm.scope
    product = next((e for e in scope.readers(norm.root.out) if e.op == MUL and len({*e.args}) == 2), None)
    if product is None:
        return
    norm.ends = [product]
    normed = product.out.type
    for op in (MUL, ADD):
        out = norm.ends[-1].out
        after = scope.readers(out)
        if scope.once(out) and after and after[0].op == op and after[0].out.type == normed:
            (vector,) = (a for a in after[0].args if a != out)
            if vector.type.shape == normed.shape[-1:] and vector.type.dtype.floating:
                norm.ends.append(after[0])
                norm.scale, norm.bias = (vector, None) if op == MUL else (norm.scale, vector)
    out = norm.ends[-1].out
    after = scope.readers(out)
    if scope.once(out) and after and isinstance(after[0].op, Cast) and after[0].op.dtype.floating:
        norm.ends.append(after[0])
