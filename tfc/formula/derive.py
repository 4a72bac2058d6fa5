"""A formula turned into its derivative, and questions about its shape that kernels and reports ask.

Where a primitive has no derivative the conventions are: `abs` rises at 0 (sign(0) = +1); at a tie `min` and `max`
follow their first argument; `sign`, `round`, `floor`, comparisons, `//`, `%` and everything that is a boolean or
an integer have derivative 0. `straight(x, y)` has that of y, `stop(x)` none.
"""

import math
from collections.abc import Callable, Mapping

from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, Load, Read, Reduce, Token, Var, kind_of, walk
from tfc.formula.fields import FLIPPED
from tfc.formula.scalar import Env, evaluate

__all__ = ["DERIVATIVES", "S", "depends_on_difference_only", "derivative", "linear_in_s", "period", "shift", "simplify"]

S = Var("s", Kind.REAL)
"""The score so far."""

ZERO, ONE = Const(0.0), Const(1.0)


def _add(x: Expr, y: Expr) -> Expr:
    return simplified(Apply("add", (x, y)))


def _mul(x: Expr, y: Expr) -> Expr:
    return simplified(Apply("mul", (x, y)))


def _chain(slope: Callable[[Expr, Expr], Expr]) -> Callable[..., Expr | None]:
    """The rule of a function of one argument: `slope(x, value)` times the argument's derivative."""

    def rule(node: Apply, dx: Expr | None) -> Expr | None:
        return None if dx is None else _mul(slope(node.args[0], node), dx)

    return rule


def _none(node: Apply, *parts: Expr | None) -> Expr | None:
    return None


def _sum_rule(node: Apply, dx: Expr | None, dy: Expr | None) -> Expr | None:
    if node.fn == "sub" and dy is not None:
        dy = simplified(Apply("neg", (dy,)))
    return dy if dx is None else dx if dy is None else _add(dx, dy)


def _product_rule(node: Apply, dx: Expr | None, dy: Expr | None) -> Expr | None:
    x, y = node.args
    left = None if dx is None else _mul(dx, y)
    right = None if dy is None else _mul(x, dy)
    return right if left is None else left if right is None else _add(left, right)


def _quotient_rule(node: Apply, dx: Expr | None, dy: Expr | None) -> Expr | None:
    y = node.args[1]
    left = None if dx is None else simplified(Apply("div", (dx, y)))
    if dy is None:
        return left
    # -(x / y) dy / y: the quotient at hand, and no square that could overflow
    right = simplified(Apply("neg", (simplified(Apply("div", (_mul(node, dy), y))),)))
    return right if left is None else _add(left, right)


def _power_rule(node: Apply, dx: Expr | None, dy: Expr | None) -> Expr | None:
    x, y = node.args
    left = right = None
    if dx is not None:
        less = simplified(Apply("sub", (y, Const(1))))
        left = _mul(_mul(y, simplified(Apply("pow", (x, less)))), dx)
    if dy is not None:
        right = _mul(_mul(node, Apply("log", (x,))), dy)
    return right if left is None else left if right is None else _add(left, right)


def _choice(condition: Expr, dx: Expr | None, dy: Expr | None) -> Expr | None:
    if dx is None and dy is None:
        return None
    return simplified(Apply("where", (condition, dx or ZERO, dy or ZERO)))


def _where_rule(node: Apply, _: Expr | None, dx: Expr | None, dy: Expr | None) -> Expr | None:
    return _choice(node.args[0], dx, dy)


def _ends_rule(node: Apply, dx: Expr | None, dy: Expr | None) -> Expr | None:
    return _choice(Apply("le" if node.fn == "min" else "ge", node.args), dx, dy)


def _neg_rule(node: Apply, dx: Expr | None) -> Expr | None:
    return None if dx is None else simplified(Apply("neg", (dx,)))


def _bell(x: Expr) -> Expr:
    return Apply("exp", (Apply("neg", (_mul(x, x),)),))


def _inverse_bell(y: Expr) -> Expr:
    return Apply("exp", (_mul(Const(0.5), _mul(y, y)),))


DERIVATIVES: Mapping[str, Callable[..., Expr | None]] = {
    "add": _sum_rule,
    "sub": _sum_rule,
    "mul": _product_rule,
    "div": _quotient_rule,
    "pow": _power_rule,
    "neg": _neg_rule,
    "where": _where_rule,
    "min": _ends_rule,
    "max": _ends_rule,
    "abs": _chain(lambda x, y: Apply("sign", (x,))),
    "sqrt": _chain(lambda x, y: _mul(Const(0.5), Apply("rsqrt", (x,)))),
    "rsqrt": _chain(lambda x, y: Apply("div", (_mul(Const(-0.5), y), x))),
    "exp": _chain(lambda x, y: y),
    "exp2": _chain(lambda x, y: _mul(Const(math.log(2)), y)),
    "log": _chain(lambda x, y: Apply("div", (ONE, x))),
    "log1p": _chain(lambda x, y: Apply("div", (ONE, _add(ONE, x)))),
    "tanh": _chain(lambda x, y: Apply("sub", (ONE, _mul(y, y)))),
    "approximate_tanh": _chain(lambda x, y: Apply("sub", (ONE, _mul(y, y)))),
    "sigmoid": _chain(lambda x, y: _mul(y, Apply("sub", (ONE, y)))),
    "erf": _chain(lambda x, y: _mul(Const(2 / math.sqrt(math.pi)), _bell(x))),
    "sin": _chain(lambda x, y: Apply("cos", (x,))),
    "cos": _chain(lambda x, y: Apply("neg", (Apply("sin", (x,)),))),
    "normal_quantile": _chain(lambda x, y: _mul(Const(math.sqrt(2 * math.pi)), _inverse_bell(y))),
    "straight": lambda node, dx, dy: dy,
    "stop": _none,
    **dict.fromkeys(("floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge"), _none),
    **dict.fromkeys(("and", "or", "not", "sign", "round", "floor"), _none),
}
"""rule(node, *derivatives of its arguments) -> the node's derivative; None stands for 0 in both."""


def derivative(expr: Expr, wrt: Expr = S) -> Expr:
    """d expr / d wrt, simplified; a constant 0.0 where there is none.

    wrt: any real node of the tree: `Var("s", REAL)`, a `Read` or `Load` (a captured parameter's element), or a
    whole sub-expression, taken as a variable of its own. Raises FormulaError where either is no real, and for `Reduce`.
    """
    for what in (expr, wrt):
        if kind_of(what) is not Kind.REAL:
            raise FormulaError(f"`{what}` is {kind_of(what)}: only reals have derivatives")
    return _derived(expr, wrt) or ZERO


def _derived(expr: Expr, wrt: Expr) -> Expr | None:
    if expr == wrt:
        return ONE
    match expr:
        case Apply(fn, args) if kind_of(expr) is Kind.REAL:
            return DERIVATIVES[fn](expr, *(_derived(a, wrt) for a in args))
        case Reduce():
            raise FormulaError(f"`{expr}`: a reduction has no derivative here")
    return None


def simplify(expr: Expr) -> Expr:
    """A formula of the same values with constants folded and neutral elements dropped, at every node.

    x * 0 becomes 0, also where x may be inf or nan. Kinds are kept: `2 * 1.0` stays real.
    """
    if isinstance(expr, Apply):
        return simplified(Apply(expr.fn, tuple(simplify(a) for a in expr.args)))
    return expr


def simplified(expr: Apply) -> Expr:
    """`simplify` where the arguments already are."""
    found = _folded(expr) or _neutral(expr)
    return found if found is not None and kind_of(found) is kind_of(expr) else expr


FOLDED_POWER = 64
"""The largest exponent of a constant power that is computed: an integer power has no bound."""


def _folded(expr: Apply) -> Expr | None:
    if not all(isinstance(a, Const) for a in expr.args):
        return None
    if expr.fn == "pow" and any(isinstance(a, Const) and abs(a.value) > FOLDED_POWER for a in expr.args[1:]):
        return None
    value = evaluate(expr, Env())
    return Const(value) if math.isfinite(value) else None


def _is(expr: Expr, value: float) -> bool:
    return isinstance(expr, Const) and not isinstance(expr.value, bool) and expr.value == value


def _neutral(expr: Apply) -> Expr | None:
    zero = ZERO if kind_of(expr) is Kind.REAL else Const(0)
    match expr.fn, expr.args:
        case "add", (x, y):
            return y if _is(x, 0) else x if _is(y, 0) else None
        case "sub", (x, y):
            return x if _is(y, 0) else simplified(Apply("neg", (y,))) if _is(x, 0) else None
        case "mul", (x, y):
            if _is(x, 0) or _is(y, 0):
                return zero
            return y if _is(x, 1) else x if _is(y, 1) else _minus(x, y) or _minus(y, x)
        case "div", (x, y):
            return x if _is(y, 1) else ZERO if _is(x, 0) and not _is(y, 0) else None
        case "pow", (x, y):
            return x if _is(y, 1) else (ONE if zero is ZERO else Const(1)) if _is(y, 0) else None
        case "neg", (Apply("neg", (x,)),):
            return x
        case "not", (Apply("not", (x,)),):
            return x
        case "where", (Const(c), x, y):
            return x if c else y
        case "where", (_, x, y):
            return x if x == y else None
        case (("and" | "or"), (x, y)):
            absorbing = expr.fn == "or"
            for a, b in ((x, y), (y, x)):
                if isinstance(a, Const):
                    return a if a.value is absorbing else b
    return None


def _minus(x: Expr, y: Expr) -> Expr | None:
    return simplified(Apply("neg", (y,))) if _is(x, -1) else None


def linear_in_s(expr: Expr, s: Expr = S) -> bool:
    """Whether the formula is a * s + b with a and b free of s: its derivative then needs no score."""
    if expr == s:
        return True
    if not any(node == s for node in walk(expr)):
        return True
    match expr:
        case Apply("add" | "sub" | "neg", args):
            return all(linear_in_s(a, s) for a in args)
        case Apply("mul", (x, y)):
            return any(_free(a, s) and linear_in_s(b, s) for a, b in ((x, y), (y, x)))
        case Apply("div", (x, y)):
            return _free(y, s) and linear_in_s(x, s)
        case Apply("where", (c, x, y)):
            return _free(c, s) and linear_in_s(x, s) and linear_in_s(y, s)
    return False


def _free(expr: Expr, s: Expr) -> bool:
    return all(node != s for node in walk(expr))


def shift(expr: Expr, by: int = 1) -> int | None:
    """By how much the value grows when both tokens move by `by` positions, where that is a constant of the formula."""
    match expr:
        case Const() | Var("h", _):
            return 0
        case Token():
            return by
        case Read(_, indices, _):
            return 0 if all(shift(i, by) == 0 for i in indices) else None
        case Apply(fn, args):
            moves = [shift(a, by) for a in args]
            if all(d == 0 for d in moves):
                return 0
            if None in moves or kind_of(args[-1]) is not Kind.INT:
                return None
            return _shift(fn, args, [d for d in moves if d is not None])
        case Load() | Var():
            return None
    return None


def _shift(fn: str, args: tuple[Expr, ...], moves: list[int]) -> int | None:
    match fn, args, moves:
        case "add", _, [d, e]:
            return d + e
        case "sub", _, [d, e]:
            return d - e
        case "neg", _, [d]:
            return -d
        case "mul", (Const(int(c)), _), [_, d]:
            return c * d
        case "mul", (_, Const(int(c))), [d, _]:
            return c * d
        case "floordiv", (_, Const(int(c))), [d, _] if c and d % c == 0:
            return d // c
        case "mod", (_, Const(int(c))), [d, _] if c and d % c == 0:
            return 0
        case (("min" | "max"), _, [d, e]):
            return d if d == e else None
        case "where", _, [0, d, e]:
            return d if d == e else None
        case _, _, [d, e] if fn in FLIPPED:
            return 0 if d == e else None
    return None


def depends_on_difference_only(expr: Expr) -> bool:
    """Whether the value is a function of `q - k` and the head alone: positions without data of the tokens."""
    return shift(expr) == 0


def period(expr: Expr) -> int | None:
    """By how much both tokens may move without changing the value: 1 for a formula of `q - k`, the least common
    multiple of its divisors for one with `q % 4 == k % 4`. None where there is none, as with data of the tokens."""
    divisors = [n.args[1] for n in walk(expr) if isinstance(n, Apply) and n.fn in ("mod", "floordiv")]
    by = math.lcm(*(int(d.value) for d in divisors if isinstance(d, Const) and d.value))
    return next((p for p in (1, by) if shift(expr, p) == 0), None)
