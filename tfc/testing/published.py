"""The masks of published attentions, and what each says of a query and a key in plain Python."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply
from tfc.testing.formulas import both, causal, dilated, prefix, sliding, window

__all__ = ["PUBLISHED", "REACH", "Published"]

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
B, I = Kind.BOOL, Kind.INT  # noqa: E741
DIFFERENCE = apply("sub", Q, K)
STEP, STRIDE, SIDE = 3, 8, 4
REACH = 20

Seen = Callable[[int, int, int], bool]
"""Whether a query sees a key: (position of the query, position of the key, head)."""


@dataclass(frozen=True, slots=True)
class Published:
    """A mask for tests.

    fields: each a value for a position; that of queries is in slot 2 i, of keys in slot 2 i + 1. The table in slot
    20, where the mask reads it, is [3, 7]: one number a head.
    """

    mask: Expr
    fields: tuple[Callable[[int], Any], ...]
    seen: Seen

    def loads(self, n: int, m: int) -> dict[int, list[Any]]:
        """The fields of n queries, the last of m positions, and of m keys."""
        out = {}
        for i, value in enumerate(self.fields):
            out[2 * i], out[2 * i + 1] = [value(t) for t in range(m - n, m)], [value(t) for t in range(m)]
        return out


def any_of(*parts: Expr) -> Expr:
    first, *rest = parts
    for part in rest:
        first = apply("or", first, part)
    return first


def mod(x: Expr, n: int) -> Expr:
    return apply("mod", x, Const(n))


def part(x: Expr, n: int) -> Expr:
    return apply("floordiv", x, Const(n))


def field(slot: int, kind: Kind = I) -> tuple[Load, Load]:
    """A field of the queries in slot 2 * slot and of the keys in the next."""
    return Load(2 * slot, "q", kind), Load(2 * slot + 1, "k", kind)


def same(fn: Callable[[Expr], Expr], slot: int) -> Expr:
    q, k = field(slot)
    return apply("eq", fn(q), fn(k))


def close(slot: int) -> Expr:
    return apply("pow", apply("sub", *field(slot)), Const(2))


# each a number for a position; positions of queries may lie below 0
SEGMENT = [0] * 9 + [1] * 14 + [2] * 1 + [3] * 30 + [4] * 46
MIXED = [x * 7 % 5 for x in range(100)]


def segment(t: int) -> int:
    return SEGMENT[t % 100]


def mixed(t: int) -> int:
    return MIXED[t % 100]


def row(t: int) -> int:
    return t // 10


def column(t: int) -> int:
    return t % 10


def row8(t: int) -> int:
    """Of a map 16 wide, its tokens in patches of 4 x 4."""
    return t // 64 * 4 + t % 16 // 4


def column8(t: int) -> int:
    return t // 16 % 4 * 4 + t % 4


def rare(t: int) -> bool:
    return t % 29 in (3, 4)


def template(t: int) -> bool:
    return t < 21


def history(t: int) -> int:
    return 37


def grid_same(fn: Callable[[int], Any]) -> Seen:
    return lambda q, k, h: (fn(row(q)), fn(column(q))) == (fn(row(k)), fn(column(k)))


PUBLISHED: Mapping[str, Published] = {
    "causal": Published(causal(), (), lambda q, k, h: k <= q),
    "window": Published(window(size=7), (), lambda q, k, h: abs(q - k) < 7),
    "window of 1": Published(window(size=1), (), lambda q, k, h: q == k),
    "one-sided window": Published(sliding(size=11), (), lambda q, k, h: 0 <= q - k < 11),
    "causal and window": Published(both(causal(), window(size=20)), (), lambda q, k, h: 0 <= q - k < 20),
    "documents": Published(apply("eq", *field(0)), (segment,), lambda q, k, h: segment(q) == segment(k)),
    "documents, mixed": Published(apply("eq", *field(0)), (mixed,), lambda q, k, h: mixed(q) == mixed(k)),
    "packed": Published(
        both(causal(), apply("eq", *field(0))),
        (segment,),
        lambda q, k, h: k <= q and segment(q) == segment(k),
    ),
    "packed, mixed": Published(
        both(causal(), apply("eq", *field(0))), (mixed,), lambda q, k, h: k <= q and mixed(q) == mixed(k)
    ),
    "packed and window": Published(
        both(causal(), apply("eq", *field(0)), window(size=9)),
        (segment,),
        lambda q, k, h: 0 <= q - k < 9 and segment(q) == segment(k),
    ),
    "prefix (arXiv:1910.10683)": Published(prefix(size=19), (), lambda q, k, h: k <= q or k < 19),
    "globals (arXiv:2004.05150)": Published(
        any_of(window(size=6), *field(0, B)),
        (rare,),
        lambda q, k, h: abs(q - k) < 6 or rare(q) or rare(k),
    ),
    "causal, but whole images": Published(
        any_of(causal(), apply("eq", *field(0))),
        (segment,),
        lambda q, k, h: k <= q or segment(q) == segment(k),
    ),
    "other documents": Published(
        apply("not", any_of(apply("lt", Q, K), apply("eq", *field(0)))),
        (segment,),
        lambda q, k, h: k <= q and segment(q) != segment(k),
    ),
    "all but a window": Published(apply("not", window(size=9)), (), lambda q, k, h: abs(q - k) >= 9),
    "dilated": Published(apply("eq", mod(Q, STEP), mod(K, STEP)), (), lambda q, k, h: q % STEP == k % STEP),
    "dilated, of the difference": Published(
        apply("eq", mod(DIFFERENCE, STEP), Const(0)),
        (),
        lambda q, k, h: (q - k) % STEP == 0,
    ),
    "dilated, causal": Published(dilated(step=5), (), lambda q, k, h: k <= q and (q - k) % 5 == 0),
    "dilated window": Published(
        both(window(size=13), apply("eq", mod(DIFFERENCE, 4), Const(0))),
        (),
        lambda q, k, h: abs(q - k) < 13 and (q - k) % 4 == 0,
    ),
    "dilated by head": Published(
        both(
            apply("le", apply("abs", DIFFERENCE), apply("mul", Const(4), Read(REACH, (H,), I))),
            apply("eq", apply("mod", DIFFERENCE, Read(REACH, (H,), I)), Const(0)),
        ),
        (),
        lambda q, k, h: abs(q - k) <= 4 * (3, 7)[h] and (q - k) % (3, 7)[h] == 0,
    ),
    "fixed (arXiv:1904.10509)": Published(
        both(causal(), any_of(apply("eq", part(Q, STRIDE), part(K, STRIDE)), apply("ge", mod(K, STRIDE), Const(6)))),
        (),
        lambda q, k, h: k <= q and (q // STRIDE == k // STRIDE or k % STRIDE >= 6),
    ),
    "strided (arXiv:1904.10509)": Published(
        both(causal(), any_of(apply("lt", DIFFERENCE, Const(STRIDE)), apply("eq", mod(DIFFERENCE, STRIDE), Const(0)))),
        (),
        lambda q, k, h: k <= q and (q - k < STRIDE or (q - k) % STRIDE == 0),
    ),
    "disc": Published(
        apply("lt", apply("add", close(0), close(1)), Const(10)),
        (
            row,
            column,
        ),
        lambda q, k, h: (row(q) - row(k)) ** 2 + (column(q) - column(k)) ** 2 < 10,
    ),
    "disc in patches": Published(
        apply("lt", apply("add", close(0), close(1)), Const(10)),
        (
            row8,
            column8,
        ),
        lambda q, k, h: (row8(q) - row8(k)) ** 2 + (column8(q) - column8(k)) ** 2 < 10,
    ),
    "disc and text (CLEAR)": Published(
        any_of(*field(2, B), apply("lt", apply("add", close(0), close(1)), Const(10))),
        (
            row,
            column,
            template,
        ),
        lambda q, k, h: template(q) or template(k) or (row(q) - row(k)) ** 2 + (column(q) - column(k)) ** 2 < 10,
    ),
    "square": Published(
        both(*(apply("le", apply("abs", apply("sub", *field(i))), Const(2)) for i in range(2))),
        (
            row,
            column,
        ),
        lambda q, k, h: max(abs(row(q) - row(k)), abs(column(q) - column(k))) <= 2,
    ),
    "shifted windows (arXiv:2103.14030)": Published(
        both(*(same(lambda t: part(apply("sub", t, Const(2)), SIDE), i) for i in range(2))),
        (
            row,
            column,
        ),
        grid_same(lambda c: (c - 2) // SIDE),
    ),
    "long distance (CrossFormer, arXiv:2108.00154)": Published(
        both(*(same(fn, i) for i in range(2) for fn in (lambda t: part(t, 6), lambda t: mod(t, 2)))),
        (
            row,
            column,
        ),
        grid_same(lambda c: (c // 6, c % 2)),
    ),
    "sides (LS-attention)": Published(
        both(causal(), any_of(apply("ge", H, Const(1)), apply("lt", DIFFERENCE, Const(10)))),
        (),
        lambda q, k, h: k <= q and (h >= 1 or q - k < 10),
    ),
    "asymmetric (MixFormer, arXiv:2203.11082)": Published(
        any_of(apply("not", field(0, B)[0]), field(0, B)[1]),
        (template,),
        lambda q, k, h: not template(q) or template(k),
    ),
    "targets (HSTU, arXiv:2402.17152)": Published(
        any_of(
            apply("eq", Q, K),
            apply("gt", apply("min", Q, field(0)[0]), apply("min", K, field(0)[1])),
        ),
        (history,),
        lambda q, k, h: q == k or min(q, 37) > min(k, 37),
    ),
    "block-causal": Published(apply("ge", part(Q, 6), part(K, 6)), (), lambda q, k, h: q // 6 >= k // 6),
    "two blocks back (MASFormer)": Published(
        both(causal(), apply("le", apply("sub", part(Q, 12), part(K, 12)), Const(1))),
        (),
        lambda q, k, h: k <= q and q // 12 - k // 12 <= 1,
    ),
}
