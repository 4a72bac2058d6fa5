"""A weigh formula turned into what a streaming kernel does with it: work on each weight, and one factor for each row.

A factor that a row's keys share leaves the sum over them and is applied once to the output: a sink's
`p * sigmoid(row.lse - logit[h])` costs the inner loop nothing. Where what is left is `p` times something, the running
softmax serves, its sum taken of `p` alone. Anything else is pointwise: no maximum and no sum are carried along, and
formulas of `p` or `row.lse` read log-sum-exps that are known before.
"""

from dataclasses import dataclass
from math import prod

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var, apply, kind_of, walk
from tfc.formula.scalar import Env, evaluate
from tfc.ir.ops import P, S

__all__ = ["LSE", "ONE", "Weighing", "weighing"]

LSE = Var("row.lse", Kind.REAL)
H = Var("h", Kind.INT)
ONE = Const(1.0)

Factors = list[tuple[Expr, int]]


@dataclass(frozen=True, slots=True)
class Weighing:
    """softmax: whether weights are p times `tile`; otherwise they are `tile`, and no statistic is kept.

    tile: over s, tokens, fields, h; and where it is pointwise p and row.lse. row: what a row's sums are multiplied by,
    over row.lse, h and the query's fields; constants alone where it is pointwise.
    """

    softmax: bool
    tile: Expr
    row: Expr

    @property
    def reads_lse(self) -> bool:
        """Whether the weights need each row's log-sum-exp before any of them is known."""
        return not self.softmax and any(node in (P, LSE) for node in walk(self.tile))

    @property
    def silent_at_zero(self) -> bool:
        """Whether a score of zero has no weight, as in HSTU: then a score may be masked in the weight's place, before
        its functions take registers."""
        alone = all(isinstance(node, Const | Apply) or node == S for node in walk(self.tile))
        return not self.softmax and alone and evaluate(self.tile, Env({"s": 0.0})) == 0


def weighing(weigh: Expr) -> Weighing:
    """How the kernel computes weights by the formula, which reads no row statistic but `row.lse`."""
    factors = _factors(weigh, 1)
    rest = [f for f in factors if not _of_row(f[0])]
    if rest.count((P, 1)) == 1:
        others = [f for f in rest if f != (P, 1)]
        if not any(node in (P, LSE) for expr, _ in others for node in walk(expr)):
            return Weighing(True, _product(others), _product([f for f in factors if _of_row(f[0])]))
    constant = [f for f in factors if isinstance(f[0], Const)]
    return Weighing(False, _product([f for f in factors if f not in constant]), _product(constant))


def _factors(expr: Expr, power: int) -> Factors:
    """The formula as a product of whole powers."""
    match expr:
        case Apply("mul", (x, y)):
            return _factors(x, power) + _factors(y, power)
        case Apply("div", (x, y)):
            return _factors(x, power) + _factors(y, -power)
        case Apply("neg", (x,)):
            return [(Const(-1.0), 1 if power % 2 else 2), *_factors(x, power)]
        case Apply("pow", (x, Const(int(n)))) if n > 0 and kind_of(x) is Kind.REAL:
            return _factors(x, power * n)
    return [(expr, power)]


def _of_row(expr: Expr) -> bool:
    """Whether all keys of a row share the value, and it is known at the row's end."""
    return all(
        isinstance(node, Const | Apply)
        or node in (LSE, H, Token("q"))
        or (isinstance(node, Load) and node.side == "q" and not node.indices)
        or (isinstance(node, Read) and node.indices == (H,))
        for node in walk(expr)
        if not isinstance(node, Reduce)
    ) and not any(isinstance(node, Reduce) for node in walk(expr))


def _product(factors: Factors) -> Expr:
    """The factors multiplied again; constants become one, which is left out where it is 1."""
    number = prod(float(x.value) ** n for x, n in factors if isinstance(x, Const))
    out: Expr | None = None if number == 1 else Const(number)
    for expr, power in factors:
        if isinstance(expr, Const):
            continue
        raised = expr if abs(power) == 1 else apply("pow", expr, Const(abs(power)))
        if power < 0:
            out = apply("div", out or ONE, raised)
        else:
            out = apply("mul", out, raised) if out else raised
    return out or ONE
