"""Masks and scores to test with: the well-known ones by name, and strategies that draw others.

A formula's slots are numbered from `first` without gaps, so a mask and a score fit beside each other:
`score = NAMED_SCORES["alibi"](len(slots(mask)))`. `fields` draws values for the slots.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import strategies as st

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Side, Token, Var, rewrite, walk

__all__ = [
    "NAMED_MASKS",
    "NAMED_SCORES",
    "both",
    "fields",
    "integers",
    "masks",
    "reals",
    "renumbered",
    "scores",
]

B, I, R = Kind.BOOL, Kind.INT, Kind.REAL  # noqa: E741  # the kinds' own initials
Q, K, H, S = Token("q"), Token("k"), Var("h", I), Var("s", R)
DIFFERENCE = Apply("sub", (Q, K))


def both(*conditions: Expr) -> Expr:
    """All of the conditions."""
    first, *rest = conditions
    for condition in rest:
        first = Apply("and", (first, condition))
    return first


def yes(first: int = 0) -> Expr:
    """yes: every key"""
    return Const(True)


def causal(first: int = 0) -> Expr:
    """k <= q"""
    return Apply("le", (K, Q))


def window(first: int = 0, size: int = 5) -> Expr:
    """abs(q - k) < size"""
    return Apply("lt", (Apply("abs", (DIFFERENCE,)), Const(size)))


def sliding(first: int = 0, size: int = 5) -> Expr:
    """q - k >= 0 and q - k < size: causal with a window, as a range of the difference"""
    return both(Apply("ge", (DIFFERENCE, Const(0))), Apply("lt", (DIFFERENCE, Const(size))))


def documents(first: int = 0) -> Expr:
    """q.segment == k.segment"""
    return Apply("eq", (Load(first, "q", I), Load(first, "k", I)))


def packed(first: int = 0) -> Expr:
    """k <= q and q.segment == k.segment"""
    return both(causal(), documents(first))


def padding(first: int = 0) -> Expr:
    """k.real"""
    return Load(first, "k", B)


def prefix(first: int = 0, size: int = 6) -> Expr:
    """k <= q or k < size"""
    return Apply("or", (causal(), Apply("lt", (K, Const(size)))))


def dilated(first: int = 0, step: int = 4) -> Expr:
    """k <= q and q % step == k % step"""
    return both(causal(), Apply("eq", tuple(Apply("mod", (t, Const(step))) for t in (Q, K))))


def globals_(first: int = 0, size: int = 5) -> Expr:
    """abs(q - k) < size or q.global or k.global (arXiv:2004.05150)"""
    either = Apply("or", (Load(first, "q", B), Load(first, "k", B)))
    return Apply("or", (window(size=size), either))


def shifted(first: int = 0, side: int = 4, by: int = 2) -> Expr:
    """(q.x - by) // side == (k.x - by) // side: windows, shifted (arXiv:2103.14030)"""
    parts = [Apply("floordiv", (Apply("sub", (Load(first, t, I), Const(by))), Const(side))) for t in ("q", "k")]
    return Apply("eq", tuple(parts))


def disc(first: int = 0, radius: int = 4) -> Expr:
    """(q.y - k.y) ^ 2 + (q.x - k.x) ^ 2 < radius ^ 2"""
    square = [
        Apply("pow", (Apply("sub", (Load(first + i, "q", I), Load(first + i, "k", I))), Const(2))) for i in range(2)
    ]
    return Apply("lt", (Apply("add", tuple(square)), Const(radius * radius)))


def by_head(first: int = 0) -> Expr:
    """k <= q and q - k < reach[h]"""
    return both(causal(), Apply("lt", (DIFFERENCE, Read(first, (H,), I))))


NAMED_MASKS: Mapping[str, Callable[[int], Expr]] = {
    "yes": yes,
    "causal": causal,
    "window": window,
    "sliding": sliding,
    "documents": documents,
    "packed": packed,
    "padding": padding,
    "prefix": prefix,
    "dilated": dilated,
    "globals": globals_,
    "shifted": shifted,
    "disc": disc,
    "by_head": by_head,
}
"""Builders of masks: the first slot to a formula. Fields are read by slot on both sides where both tokens have them."""


def plain(first: int = 0) -> Expr:
    """s"""
    return S


def softcap(first: int = 0, cap: float = 5.0) -> Expr:
    """cap * tanh(s / cap) (arXiv:2408.00118)"""
    return Apply("mul", (Const(cap), Apply("tanh", (Apply("div", (S, Const(cap))),))))


def alibi(first: int = 0) -> Expr:
    """s - slope[h] * abs(q - k) (arXiv:2108.12409)"""
    return Apply("sub", (S, Apply("mul", (Read(first, (H,), R), Apply("abs", (DIFFERENCE,))))))


def own(first: int = 0) -> Expr:
    """softcap - slope[h] * abs(q - k) + if(q - k < 4, q.bonus, 0.0)"""
    tilt = Apply("mul", (Read(first, (H,), R), Apply("abs", (DIFFERENCE,))))
    near = Apply("where", (Apply("lt", (DIFFERENCE, Const(4))), Load(first + 1, "q", R), Const(0.0)))
    return Apply("add", (Apply("sub", (softcap(), tilt)), near))


def temperature(first: int = 0) -> Expr:
    """s * q.scale + k.bias"""
    return Apply("add", (Apply("mul", (S, Load(first, "q", R))), Load(first + 1, "k", R)))


NAMED_SCORES: Mapping[str, Callable[[int], Expr]] = {
    "s": plain,
    "softcap": softcap,
    "alibi": alibi,
    "own": own,
    "temperature": temperature,
}
"""Builders of scores: the first slot to a formula over `s`."""


def renumbered(expr: Expr, first: int = 0) -> Expr:
    """The formula with its slots numbered from `first` in the order in which they appear.

    A slot that is read as two things (a field and a table, say, of formulas put together) becomes two.
    """
    seen: dict[tuple[object, ...], int] = {}

    def what(node: Load | Read) -> tuple[object, ...]:
        return node.slot, node.kind, len(node.indices) if isinstance(node, Read) else None

    for node in walk(expr):
        if isinstance(node, Load | Read):
            seen.setdefault(what(node), first + len(seen))

    def rule(node: Expr) -> Expr | None:
        return replace(node, slot=seen[what(node)]) if isinstance(node, Load | Read) else None

    return rewrite(expr, rule)


def _load(kind: Kind, shared: bool) -> st.SearchStrategy[Expr]:
    """A field: one of two a kind, which both sides read if `shared`."""
    base = {B: 0, I: 10, R: 20}[kind]

    def make(side: Side, which: int) -> Expr:
        return Load(base + which + (0 if shared or side == "q" else 5), side, kind)

    return st.builds(make, st.sampled_from(("q", "k")), st.integers(0, 1))


def _clipped(expr: Expr, most: int) -> Expr:
    """An index that stays in a table: 0..most."""
    return Apply("min", (Apply("max", (expr, Const(0))), Const(most)))


def _read(kind: Kind) -> st.SearchStrategy[Expr]:
    """A table of one number a head, or one a head and difference."""
    base = {B: 30, I: 40, R: 50}[kind]
    index = st.sampled_from((DIFFERENCE, Apply("floordiv", (Q, Const(4))), Apply("mod", (K, Const(3)))))
    wide = st.builds(lambda i: Read(base + 1, (_clipped(i, 4), H), kind), index)
    return st.one_of(st.just(Read(base, (H,), kind)), wide)


def _apply(fn: str, *args: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.tuples(*args).map(lambda found: Apply(fn, found))


@cache  # a strategy drawn from often is built once
def integers(*, shared: bool = True, wild: bool = False) -> st.SearchStrategy[Expr]:
    """Integer formulas of positions, fields and tables.

    wild: also values beyond 32 bits, products of anything, and divisors that may be zero.
    """
    small = st.integers(-9, 9).map(Const)
    literals = st.one_of(small, st.integers(-(2**33), 2**33).map(Const)) if wild else small
    token = st.sampled_from((Q, K, DIFFERENCE, Apply("sub", (K, Q))))
    leaves = st.one_of(token, token, small, _load(I, shared), _read(I))

    def larger(of: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        divisor = of if wild else st.integers(1, 9).map(Const)
        return st.one_of(
            st.sampled_from(("add", "sub", "min", "max")).flatmap(lambda fn: _apply(fn, of, of)),
            st.sampled_from(("neg", "abs", "sign")).flatmap(lambda fn: _apply(fn, of)),
            st.sampled_from(("floordiv", "mod")).flatmap(lambda fn: _apply(fn, of, divisor)),
            _apply("mul", of, of if wild else small),
            _apply("pow", of if wild else leaves, st.integers(0, 5 if wild else 2).map(Const)),
            _apply("where", _comparison(of), of, of),
        )

    return st.recursive(st.one_of(leaves, literals), larger, max_leaves=6)


REAL_FUNCTIONS = (
    "sqrt", "rsqrt", "exp", "exp2", "log", "log1p", "tanh", "approximate_tanh", "sigmoid", "erf", "sin", "cos", "round",
)  # fmt: skip


@cache
def reals(*, shared: bool = True, wild: bool = False) -> st.SearchStrategy[Expr]:
    """Real formulas, of every real primitive. wild: as `integers`, and outside the functions' domains."""
    literal = st.floats(-8, 8, width=32).map(Const)
    leaves = st.one_of(literal, _load(R, shared), _read(R), integers(shared=shared, wild=wild))

    def larger(of: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        return st.one_of(
            st.sampled_from(("add", "sub", "mul", "div", "min", "max")).flatmap(lambda fn: _apply(fn, of, of)),
            st.sampled_from(("neg", "abs", "sign", *REAL_FUNCTIONS)).flatmap(lambda fn: _apply(fn, of)),
            _apply("pow", of, st.one_of(st.integers(-3, 4), st.sampled_from((0.5, -1.5, 2.0))).map(Const)),
            _apply("pow", of, of),
            _apply("where", _comparison(of), of, of),
        )

    # a sum with 0.0 makes an integer formula real, whatever was drawn
    return st.recursive(leaves, larger, max_leaves=5).map(lambda e: Apply("add", (e, Const(0.0))))


def _comparison(of: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.sampled_from(("eq", "ne", "lt", "le", "gt", "ge")).flatmap(lambda fn: _apply(fn, of, of))


@cache
def masks(*, first: int = 0, shared: bool = True, real: bool = False, wild: bool = False) -> st.SearchStrategy[Expr]:
    """Masks: a named one, or a drawn formula, or both together; slots from `first`.

    shared: queries and keys may read the same slot, as self-attention's do; then N must be M. real: also
    comparisons of reals, whose verdict may hang on rounding. wild: see `integers`.
    """
    whole = integers(shared=shared, wild=wild)
    number = st.one_of(whole, reals(shared=shared, wild=wild)) if real else whole
    leaves = st.one_of(_comparison(whole), _comparison(number), _load(B, shared), _read(B))

    def larger(of: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        return st.one_of(
            st.sampled_from(("and", "or", "eq", "ne")).flatmap(lambda fn: _apply(fn, of, of)),
            _apply("not", of),
            _apply("where", of, of, of),
        )

    drawn = st.recursive(leaves, larger, max_leaves=4)
    known = [make(60) for make in NAMED_MASKS.values()]
    if not shared:
        known = [e for e in known if not _shares(e)]
    named = st.sampled_from(known)
    return st.one_of(named, drawn, drawn, _apply("and", named, drawn)).map(lambda e: renumbered(e, first))


def _shares(expr: Expr) -> bool:
    loads = {(n.slot, n.side) for n in walk(expr) if isinstance(n, Load)}
    return len({slot for slot, _ in loads}) < len(loads)


@cache
def scores(*, first: int = 0, shared: bool = True) -> st.SearchStrategy[Expr]:
    """Scores: a named one, perhaps with a bias of the head and the difference, perhaps only where a mask says so."""
    named = st.sampled_from([make(60) for make in NAMED_SCORES.values()])
    bias = st.one_of(_read(R), _load(R, shared), _apply("mul", _read(R), st.just(DIFFERENCE)))
    chosen = _apply("where", _comparison(integers(shared=shared)), named, _apply("sub", named, st.just(Const(2.0))))
    drawn = st.one_of(named, _apply("add", named, bias), chosen)
    return drawn.map(lambda e: renumbered(e, first))


def fields(
    expr: Expr, *, n: int, m: int, batch: int = 1, heads: int = 1, large: bool = False
) -> st.SearchStrategy[dict[int, Any]]:
    """Values for the slots of a formula, nested lists of Python numbers: slot -> [T], [batch][T], or a table.

    Integers come sorted (documents) or not; reals are such that float32 holds them; tables cover the indices
    0..heads-1 and 0..4. large: also integers near the ends of 32 bits.
    """
    whole = st.one_of(st.integers(-5, 12), st.integers(-(2**31) + 1, 2**31 - 1)) if large else st.integers(-5, 12)
    value = {B: st.booleans(), I: whole, R: st.floats(-8, 8, width=32)}
    out: dict[int, st.SearchStrategy[Any]] = {}
    for node in walk(expr):
        if isinstance(node, Load):
            out[node.slot] = _tokens(value[node.kind], n if node.side == "q" else m, batch)
        elif isinstance(node, Read):
            one: st.SearchStrategy[Any] = value[node.kind]
            for size in reversed([heads if i == H else 5 for i in node.indices]):
                one = st.lists(one, min_size=size, max_size=size)
            out[node.slot] = one
    return st.fixed_dictionaries(out)


def _tokens(value: st.SearchStrategy[Any], count: int, batch: int) -> st.SearchStrategy[Any]:
    row = st.lists(value, min_size=count, max_size=count)
    row = st.one_of(row, row.map(sorted))
    return st.one_of(row, st.lists(row, min_size=batch, max_size=batch))
