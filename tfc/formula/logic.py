"""A mask turned into `and`, `or` and simple conditions, each with as few tokens as it can have.

Negations are moved to the conditions, comparisons of `abs`, `min` and `max` are taken apart, and what depends on one
token alone, or on `q - k` alone, is one condition of a chain of `and` or `or`.
"""

from collections.abc import Mapping

from tfc.formula.arithmetic import HOST, Table
from tfc.formula.derive import depends_on_difference_only
from tfc.formula.expr import Apply, Const, Expr, Kind, Reduce, Var, kind_of, sides, walk
from tfc.formula.fields import normalized, of_the_pair
from tfc.formula.interval import compiled

__all__ = ["OPPOSITE", "chain", "conditions", "grouped", "side_of", "specialized"]

OPPOSITE: Mapping[str, str] = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
DUAL: Mapping[str, str] = {"and": "or", "or": "and"}
H = Var("h", Kind.INT)


def specialized(mask: Expr, h: int, tables: Mapping[int, Table]) -> Expr:
    """The mask of head h: every integer or boolean of no token as a literal, where it is known."""
    if isinstance(mask, Const | Reduce):
        return mask
    if not sides(mask) and not of_the_pair(mask) and kind_of(mask) is not Kind.REAL:
        lo, hi = compiled(mask, {H: 0}, HOST, tables)([(h, h)])
        if lo == hi:
            return Const(lo)
    if isinstance(mask, Apply):
        return Apply(mask.fn, tuple(specialized(a, h, tables) for a in mask.args))
    return mask


def conditions(mask: Expr, negative: bool = False) -> Expr:
    """The same values (negated if `negative`) in the form described above."""
    match mask:
        case Apply("not", (x,)):
            return conditions(x, not negative)
        case Apply("and" | "or" as fn, args):
            fn = DUAL[fn] if negative else fn
            parts = [part for a in args for part in chain(conditions(a, negative), fn)]
            return _joined(fn, parts)
        case Apply(fn, (x, y)) if fn in OPPOSITE:
            whole = kind_of(x) is kind_of(y) is Kind.INT
            if negative and (whole or fn in ("eq", "ne")):
                return conditions(Apply(OPPOSITE[fn], (x, y)))
            if whole and (apart := _apart(fn, x, y)) is not None:
                return conditions(apart)
        case Const(bool(value)):
            return Const(value is not negative)
    mask = normalized(mask)
    return Apply("not", (mask,)) if negative else mask


def _apart(fn: str, x: Expr, y: Expr) -> Expr | None:
    """`abs(x) < y` as `x < y and -x < y`, and the like for min and max, where both tokens are compared."""
    if isinstance(y, Apply) and y.fn in ("abs", "min", "max") and fn not in ("eq", "ne"):
        x, y, fn = y, x, {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}[fn]
    if not isinstance(x, Apply) or len(sides(x)) < 2 or fn in ("eq", "ne") or _many(x) or _many(y):
        return None
    parts: tuple[Expr, ...]
    match x:
        case Apply("abs", (a,)):
            parts, least = (a, Apply("neg", (a,))), False
        case Apply("min" | "max" as which, parts):
            least = which == "min"
        case _:
            return None
    joined = "or" if (fn in ("lt", "le")) is least else "and"
    return Apply(joined, tuple(Apply(fn, (part, y)) for part in parts))


def _many(expr: Expr) -> bool:
    """Whether taking it apart would give too many comparisons."""
    return sum(isinstance(node, Apply) and node.fn in ("abs", "min", "max") for node in walk(expr)) > 3


def chain(mask: Expr, fn: str) -> tuple[Expr, ...]:
    """The operands of the outermost `fn`s, left to right."""
    if isinstance(mask, Apply) and mask.fn == fn:
        return chain(mask.args[0], fn) + chain(mask.args[1], fn)
    return (mask,)


def side_of(expr: Expr) -> str:
    """q or k of a formula of one token (q where it is of none), else `difference` or `both`."""
    found = sides(expr)
    if of_the_pair(expr):
        return "both"
    if len(found) < 2:
        return next(iter(found), "q")
    return "difference" if depends_on_difference_only(expr) else "both"


def grouped(mask: Expr, fn: str) -> tuple[Expr, ...]:
    """`chain`, with what the query decides, the key, and their difference as one operand each, in front."""
    groups: dict[str, Expr] = {}
    others: list[Expr] = []
    for part in chain(mask, fn):
        if (side := side_of(part)) == "both":
            others.append(part)
        else:
            groups[side] = Apply(fn, (groups[side], part)) if side in groups else part
    return (*groups.values(), *others)


def _joined(fn: str, parts: list[Expr]) -> Expr:
    """The chain of them, each once; a literal is left out, or decides it."""
    kept = [part for part in dict.fromkeys(parts) if not isinstance(part, Const)]
    if len(kept) < len(parts) and Const(fn == "or") in parts:
        return Const(fn == "or")
    first, *rest = kept or [Const(fn == "and")]
    for part in rest:
        first = Apply(fn, (first, part))
    return first
