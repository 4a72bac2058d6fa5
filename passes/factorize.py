"""Linear maps -> two thin ones each, through a rank, their weights fitted to the one that there was."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

from tfc.ir.ops import Linear
from tfc.ir.param_map import Call, Expr, ParamMap, Source
from tfc.ir.program import Eqn, Init, Param, Program
from tfc.ir.types import TensorType
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.rewrite import Scope, beside, rewrite, unlike_written

__all__ = ["Factorize"]


@dataclass(frozen=True)
class Factorize:
    """linear(x, w, b)  ->  linear(linear(x, w.left), w.right, b)

    Approximate; w.left [K, r] and w.right [r, O] are fitted to w [K, O], by `svd` nearest in its numbers, at the
    distance of the root of the sum of squares of the singular values after the r-th (Eckart and Young); by
    `activation_svd` nearest in its outputs on calibration data, whose statistics `pack` is given. At full rank the
    function is the same to rounding. Bias and readers stay as they are (Greenformers; PELA, arXiv:2310.10700).

    rank: a number, at most the matrix's own; or a part of the smaller side, above 0 and to 1. names: patterns of the
    weights' paths (`layer.feed.*`). damp: of activation_svd, see there. A weight with no less numbers afterwards,
    r (K + O) >= K O, is factorized all the same, and it is said.

    Holds back where the weight has another reader, is kept in a format or fitted, or belongs to a loop that several
    places run. What is no parameter of its body, and tables that rows are taken of, are no linear maps here.
    """

    name: ClassVar[str] = "factorize"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    rank: int | float = 0.5
    fit: Literal["svd", "activation_svd"] = "svd"
    names: tuple[str, ...] = ("*",)
    damp: float = 0.01

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        if isinstance(self.rank, bool) or not (self.rank >= 1 if isinstance(self.rank, int) else 0 < self.rank <= 1):
            raise ValueError(f"rank {self.rank}: a whole number from 1, or a part above 0 and to 1")
        if self.fit not in ("svd", "activation_svd"):
            raise ValueError(f"`{self.fit}` fits no thin product; svd and activation_svd do")
        notes: list[Note] = []
        forward: dict[str, Expr] = {}
        backward: dict[str, Expr] = {}
        taken = {p.path for p in program.stored()}

        def rule(eqn: Eqn, scope: Scope) -> Sequence[Eqn] | None:
            if not isinstance(eqn.op, Linear) or eqn.args[1] not in scope.params:
                return None
            weight = scope.params[eqn.args[1]]
            if not any(fnmatchcase(weight.path, pattern) for pattern in self.names):
                return None
            site = f"{self.name}:{weight.path}"
            if why := "asked to" if site in hold else _refusal(weight, scope, taken):
                if all(note.site != site for note in notes):
                    notes.append(Note(site, why, span=eqn.span))
                return None
            rank = self.of(weight)
            before, after = weight.value.type.ints, rank * sum(weight.value.type.ints)
            if after >= before[0] * before[1]:
                fact = f"rank {rank} of [{before[0]}, {before[1]}] makes {after} numbers of {before[0] * before[1]}"
                notes.append(Note(site, fact, held=False, span=eqn.span))
            left, right = (f"{weight.path}.{side}" for side in ("left", "right"))
            for n, path in enumerate((left, right)):
                forward[path] = self._fitted(weight.path, rank, n)
            backward[weight.path] = Call("product", (Source(left), Source(right)))
            return _thin(eqn, weight, rank, scope)

        new = rewrite(program, rule)
        return Rewritten(new, ParamMap(forward, backward, removed=frozenset(backward)), notes)

    def of(self, weight: Param) -> int:
        """The rank that a weight gets."""
        full = min(weight.value.type.ints)
        return min(self.rank, full) if isinstance(self.rank, int) else max(1, int(self.rank * full))

    def _fitted(self, path: str, rank: int, side: int) -> Call:
        if self.fit == "svd":
            return Call("svd", (Source(path),), (("rank", rank),), side)
        return Call("activation_svd", (Source(path),), (("rank", rank), ("damp", self.damp)), side, data=path)


def _thin(eqn: Eqn, weight: Param, rank: int, scope: Scope) -> Sequence[Eqn]:
    """The two linear maps in the place of one, their weights in the place of its weight."""
    (deep, wide), dtype = weight.value.type.ints, weight.value.type.dtype
    sides = []
    for side, shape in (("left", (deep, rank)), ("right", (rank, wide))):
        path = f"{weight.path}.{side}"
        value = scope.fresh(beside(weight, path), TensorType(shape, dtype))
        sides.append(Param(path, value, Init("packed"), weight.trained))
    scope.replace_params([weight], sides[0])
    at = scope.after.index(sides[0]) + 1
    scope.after = (*scope.after[:at], sides[1], *scope.after[at:])
    middle = scope.fresh("thin", eqn.out.type.with_last(rank))
    return [
        Eqn((middle,), Linear(), (eqn.args[0], sides[0].value), eqn.span),
        Eqn(eqn.outs, Linear(), (middle, sides[1].value, *eqn.args[2:]), eqn.span),
    ]


def _refusal(weight: Param, scope: Scope, taken: set[str]) -> str:
    """Why the weight stays as it is, or an empty string."""
    if not scope.once(weight.value):
        return f"{weight.path} has another reader"
    if why := unlike_written(weight):
        return why
    clash = next((p for p in (f"{weight.path}.left", f"{weight.path}.right") if p in taken), None)
    return f"there is a parameter {clash} already" if clash else ""
