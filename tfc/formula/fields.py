"""A formula of two tokens turned into a formula over derived fields: what one token alone decides, computed per token.

The rule that makes dilated, packed and shifted masks exact: every maximal sub-expression of a single token is
evaluated for each token and reduced to its minimum and maximum per tile, so the intervals of `q % 4 == k % 4` are
those of the remainders that occur in the tiles, not those of all remainders.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tfc.formula.expr import Apply, Const, Expr, Kind, Read, Side, Token, Var, kind_of, rewrite, sides, walk

__all__ = ["DerivedField", "direction", "normalized", "of_the_pair", "split_fields"]

FLIPPED: Mapping[str, str] = {"eq": "eq", "ne": "ne", "lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
"""Each comparison, and what it becomes when both sides are negated."""


@dataclass(frozen=True, slots=True)
class DerivedField:
    """A sub-expression of one token (side "q" or "k") or of none (None: one value a head).

    leaf: the variable that stands for it in the formula that remains.
    """

    leaf: Var
    side: Side | None
    expr: Expr


def split_fields(expr: Expr, *, separate: bool = True) -> tuple[Expr, tuple[DerivedField, ...]]:
    """(the formula over the fields' leaves, the fields). Literals stay in the formula.

    separate: after `normalized`, which is what makes most fields meet; not for a formula of `q - k` whose terms
    are to stay together. A sub-expression that occurs twice is one field. Scores and weights (`s`, `p`) belong to
    both tokens.
    """
    fields: dict[Expr, DerivedField] = {}

    def split(node: Expr) -> Expr:
        if isinstance(node, Const):
            return node
        if len(found := sides(node)) < 2 and not of_the_pair(node):
            side: Side | None = next(iter(found), None)
            if node not in fields:
                leaf = Var(f"{side or 'h'}.{len(fields)}", kind_of(node))
                fields[node] = DerivedField(leaf, side, node)
            return fields[node].leaf
        match node:
            case Apply(fn, args):
                return Apply(fn, tuple(split(a) for a in args))
            case Read(slot, indices, kind):
                return Read(slot, tuple(split(i) for i in indices), kind)
        return node

    return split(normalized(expr) if separate else expr), tuple(fields.values())


def of_the_pair(expr: Expr) -> bool:
    """Whether a variable of both tokens occurs: a score, a weight, an index of a sum."""
    return any(isinstance(node, Var) and node.name != "h" for node in walk(expr))


def normalized(expr: Expr) -> Expr:
    """The same values, with what belongs to one token on one side of each integer comparison.

    `q + k.a < k.b + q.c` becomes `q - q.c < k.b - k.a`: one field against one field, which is exact. And
    `(f(q) - g(k)) % n == 0` becomes `f(q) % n == g(k) % n`, a partition of the tokens.
    """
    return rewrite(expr, _normalize)


def _normalize(node: Expr) -> Expr | None:
    match node:
        case Apply("eq" | "ne" as fn, (Apply("mod", (Apply("sub", (x, y)), n)), Const(0))) if not sides(n):
            if {sides(x), sides(y)} == {frozenset("q"), frozenset("k")}:
                return Apply(fn, (Apply("mod", (x, n)), Apply("mod", (y, n))))
        case Apply(fn, (x, y)) if fn in FLIPPED and kind_of(x) is kind_of(y) is Kind.INT and len(sides(node)) == 2:
            return _separated(fn, x, y)
    return None


def _separated(fn: str, x: Expr, y: Expr) -> Expr | None:
    """x fn y with the query's terms left and the others right, or None where a term belongs to both tokens."""
    left: list[tuple[Expr, bool]] = []
    right: list[tuple[Expr, bool]] = []
    for term, negative in [*_terms(x, False), *_terms(y, True)]:
        match sides(term):
            case found if len(found) == 2 or of_the_pair(term):
                return None
            case found if "q" in found:
                left.append((term, negative))
            case _:
                right.append((term, not negative))
    if all(negative for _, negative in left):  # -q < -k reads better as q > k
        fn = FLIPPED[fn]
        left, right = ([(term, not negative) for term, negative in terms] for terms in (left, right))
    return Apply(fn, (_sum(left), _sum(right)))


def _terms(expr: Expr, negative: bool) -> list[tuple[Expr, bool]]:
    match expr:
        case Apply("add", (x, y)):
            return _terms(x, negative) + _terms(y, negative)
        case Apply("sub", (x, y)):
            return _terms(x, negative) + _terms(y, not negative)
        case Apply("neg", (x,)):
            return _terms(x, not negative)
    return [(expr, negative)]


def _sum(terms: list[tuple[Expr, bool]]) -> Expr:
    total: Expr | None = None
    for term, negative in sorted(terms, key=lambda t: t[1]):  # what is added first
        if total is None:
            total = Apply("neg", (term,)) if negative else term
        else:
            total = Apply("sub" if negative else "add", (total, term))
    return Const(0) if total is None else total


def direction(expr: Expr) -> int | None:
    """How a formula of one token moves with its position: 1 never falls, -1 never rises, 0 constant, None neither.

    Where it has a direction, its values at the two ends of a tile bound it, exactly. Tokens' data have none.
    """
    match expr:
        case Token():
            return 1
        case Const() | Var("h", _):
            return 0
        case Read(_, indices, _):
            return 0 if all(direction(i) == 0 for i in indices) else None
        case Apply(fn, args):
            found = [direction(a) for a in args]
            moves = [d for d in found if d is not None]
            if len(moves) < len(found):
                return None
            return 0 if not any(moves) else _direction(fn, args, moves)
    return None


def _direction(fn: str, args: tuple[Expr, ...], moves: list[int]) -> int | None:
    """Of a primitive whose arguments have directions, at least one of them not 0. Integers only: reals round."""
    if any(kind_of(a) is Kind.REAL for a in args):
        return None
    match fn, args, moves:
        case (("neg" | "not"), _, [d]):
            return -d
        case (("add" | "min" | "max" | "and" | "or" | "ge" | "gt"), _, [d, e]):
            return _both(d, -e if fn in ("ge", "gt") else e)
        case (("sub" | "le" | "lt"), _, [d, e]):
            return _both(d, -e) if fn == "sub" else _both(-d, e)
        case "mul", (Const(c), _), [_, d]:
            return _times(d, c)
        case (("mul" | "floordiv"), (_, Const(c)), [d, _]):
            return _times(d, c)
    return None


def _both(d: int, e: int) -> int | None:
    return d if e in (0, d) else e if d == 0 else None


def _times(d: int, factor: float) -> int:
    return d if factor > 0 else -d if factor < 0 else 0
