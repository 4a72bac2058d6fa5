"""A mask turned into a proof that no query sees a later key, and an index into how far back of its token it reads."""

from collections.abc import Mapping

from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, Token, Var, kind_of, walk
from tfc.formula.interval import compiled
from tfc.formula.logic import conditions

__all__ = ["behind", "causal"]

INCLUDED = {"le": 0, "ge": 0, "lt": -1, "gt": -1, "eq": 0}
Terms = dict[Expr, int]


def causal(mask: Expr) -> bool:
    """Whether the mask implies k <= q, for tokens that stand where they are counted: an `and` of which one part does,
    an `or` of which all do, and comparisons of q with k, or of blocks of one size, whatever else they hold.

    False says only that nothing here proves it.
    """
    return _never(conditions(mask))


def _never(mask: Expr) -> bool:
    """Whether the mask is false wherever k > q."""
    match mask:
        case Const(value):
            return value is False
        case Apply("and", parts):
            return any(map(_never, parts))
        case Apply("or", parts):
            return all(map(_never, parts))
        case Apply(fn, (x, y)) if fn in INCLUDED and kind_of(x) is kind_of(y) is Kind.INT:
            ahead = _terms(x, {}, 1)
            ahead = _terms(y, ahead, -1)  # x - y
            below, above = {node: -n for node, n in ahead.items()}, ahead
            if fn in ("le", "lt", "eq") and _bounded(below, INCLUDED[fn]):
                return True
            return fn in ("ge", "gt", "eq") and _bounded(above, INCLUDED[fn])
    return False


def _bounded(terms: Terms, rest: int) -> bool:
    """Whether `terms + rest >= 0` implies k <= q."""
    rest += terms.get(Const(1), 0)
    left = {node: n for node, n in terms.items() if n and node != Const(1)}
    if len(left) != 2:
        return False
    (a, n), (b, m) = left.items()
    if n < 0:
        (a, n), (b, m) = (b, m), (a, n)
    if n + m != 0:
        return False
    if (a, b) == (Token("q"), Token("k")):
        return rest < n  # n (q - k) >= -rest > -n
    match a, b:
        case Apply("floordiv", (Token("q"), Const(size))), Apply("floordiv", (Token("k"), Const(other))):
            return size == other and size > 0 and rest < 0  # an earlier block
    return False


def _terms(expr: Expr, into: Terms, sign: int) -> Terms:
    """The sum as its terms with their factors, numbers under `Const(1)`."""
    match expr:
        case Apply("add", (x, y)):
            return _terms(y, _terms(x, into, sign), sign)
        case Apply("sub", (x, y)):
            return _terms(y, _terms(x, into, sign), -sign)
        case Apply("neg", (x,)):
            return _terms(x, into, -sign)
        case Apply("mul", (Const(int(n)), x)) | Apply("mul", (x, Const(int(n)))):
            return _terms(x, into, sign * n)
        case Const(int(n)):
            return {**into, Const(1): into.get(Const(1), 0) + sign * n}
    return {**into, expr: into.get(expr, 0) + sign}


def behind(at: Expr, token: Var, sizes: Mapping[str, int]) -> int | None:
    """The most that an index lies behind its token, where it is `token - lag` with 0 <= lag; None where it is not that.

    sizes: how far each other index goes. An index that may lie ahead of its token, or how far behind it only data tell,
    is none.
    """
    terms = _terms(at, {}, 1)
    if terms.pop(token, 0) != 1 or any(token in set(walk(node)) for node in terms):
        return None
    leaves: dict[Expr, int] = {Var(name, Kind.INT): i for i, name in enumerate(sizes)}
    ranges = [(0, max(n - 1, 0)) for n in sizes.values()]
    low = high = 0
    for node, n in terms.items():
        try:
            ends = compiled(node, leaves)(ranges)
        except FormulaError:  # an element of an array: anything
            return None
        low, high = low + min(n * e for e in ends), high + max(n * e for e in ends)
    return -low if high <= 0 and -low <= FARTHEST else None


FARTHEST = 1 << 16
"""Tokens that are worth keeping for one equation."""
