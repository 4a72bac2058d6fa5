"""A formula, sizes and a seed turned into an attention equation and the arrays it is judged on.

`judge` draws its standard cases with this file alone, the same each time; `strategies` lets Hypothesis choose.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfc.formula.expr import Expr, Kind, Load, Read, Side, rewrite, slots, walk
from tfc.ir.ops import Attention, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.testing import formulas
from tfc.testing.float64 import DTYPES, attention_leaves, evaluate
from tfc.testing.formulas import NAMED_MASKS, NAMED_SCORES, both

__all__ = [
    "FLAVOURS",
    "FORMULAS",
    "STANDARD",
    "Case",
    "Sizes",
    "attention_eqn",
    "named_op",
    "operands",
    "shaped",
    "sizes_of",
    "standard_cases",
]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """B batch rows, N queries, M keys, H query heads over G key/value heads of size D, and the element type."""

    batch: int = 1
    n: int = 8
    m: int = 8
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 32
    dtype: DType = DType.F32

    @property
    def elements(self) -> int:
        """What a case costs, for finding the smallest."""
        return self.batch * self.heads * (self.n * self.m + (self.n + self.m) * self.head_dim)

    def __str__(self) -> str:
        b, n, m, h, g, d = self.batch, self.n, self.m, self.heads, self.kv_heads, self.head_dim
        return f"B={b} N={n} M={m} H={h} G={g} D={d} {self.dtype}"


def sizes_of(eqn: Eqn) -> Sizes:
    """The sizes of an attention equation."""
    q, k = (a.type.ints for a in eqn.args[:2])
    return Sizes(q[0], q[1], k[1], q[2], k[2], q[3], eqn.args[0].type.dtype)


def attention_eqn(op: Attention, sizes: Sizes, common: bool = False) -> Eqn:
    """The operation with operands of these sizes; captured tables are as long as their indices reach.

    common: captured fields are [T], the same for all batch rows, and [B, T] otherwise. A slot that queries and keys
    both read is split in two where N != M, as its operand has one length only.
    """
    if sizes.n != sizes.m:
        op = _split(op)
    b, n, m, h, g, d = sizes.batch, sizes.n, sizes.m, sizes.heads, sizes.kv_heads, sizes.head_dim
    types = [TensorType((b, t, heads, d), sizes.dtype) for t, heads in ((n, h), (m, g), (m, g))]
    captured = _slot_types(op, (b, h, n, m), common)
    names = ("q", "k", "v", *(f"c{i}" for i in range(len(captured))))
    args = tuple(Value(name, t) for name, t in zip(names, (*types, *captured), strict=True))
    out, lse = op.infer(*(a.type for a in args))
    return Eqn((Value("out", out), Value("lse", lse)), op, args)


def _formulas(op: Attention) -> tuple[Expr, ...]:
    return op.score, op.mask, op.weigh


def _nodes(op: Attention) -> Iterator[Load | Read]:
    for expr in _formulas(op):
        for node in walk(expr):
            if isinstance(node, Load | Read):
                yield node


def slot_sides(op: Attention) -> Mapping[int, frozenset[Side]]:
    """Which tokens read each slot as a field."""
    out: dict[int, frozenset[Side]] = {}
    for node in _nodes(op):
        if isinstance(node, Load):
            before: frozenset[Side] = out.get(node.slot, frozenset())
            out[node.slot] = before.union((node.side,))
    return out


def split_slots(op: Attention) -> Mapping[int, int]:
    """Each slot that both sides read, and the new slot that the keys read once it is split."""
    free = max((node.slot for node in _nodes(op)), default=-1) + 1
    shared = [slot for slot, sides in sorted(slot_sides(op).items()) if len(sides) == 2]
    return {slot: free + i for i, slot in enumerate(shared)}


def _split(op: Attention) -> Attention:
    moved = split_slots(op)

    def rule(node: Expr) -> Expr | None:
        if isinstance(node, Load) and node.side == "k" and node.slot in moved:
            return replace(node, slot=moved[node.slot])
        return None

    return replace(op, score=rewrite(op.score, rule), mask=rewrite(op.mask, rule), weigh=rewrite(op.weigh, rule))


def _slot_types(op: Attention, shape: tuple[int, int, int, int], common: bool) -> list[TensorType]:
    b, _, n, m = shape
    dtypes = {Kind.BOOL: DType.BOOL, Kind.INT: DType.I32, Kind.REAL: DType.F32}
    found: dict[int, TensorType] = {}
    leaves = attention_leaves(shape)
    for node in _nodes(op):
        if isinstance(node, Load):
            tokens = n if node.side == "q" else m
            found[node.slot] = TensorType((tokens,) if common else (b, tokens), dtypes[node.kind])
    for node in _nodes(op):
        if isinstance(node, Read):
            ends = tuple(int(np.max(evaluate(i, leaves).value, initial=0)) + 1 for i in node.indices)
            before = found[node.slot].ints if node.slot in found else (1,) * len(ends)
            found[node.slot] = TensorType(tuple(map(max, ends, before)), dtypes[node.kind])
    return [found[slot] for slot in range(len(found))]


FLAVOURS = ("normal", "large", "ties", "documents", "blind")
"""What arrays are drawn: `normal` values; scores beyond what an exponential can hold (`large`); few distinct
values, so that scores tie (`ties`); fields that cut the keys into runs (`documents`); fields that leave some
rows, or a whole batch row, nothing to see (`blind`)."""


def operands(eqn: Eqn, seed: int, flavour: str | None = None) -> tuple[Array, ...]:
    """Arrays for q, k, v and the captured slots, the same for the same seed; the seed chooses the flavour.

    Integer fields hold whole numbers that repeat, sorted (documents) or not, aligned at the end where queries
    and keys differ in number; boolean fields are true up to a length of each batch row, or at random.
    """
    rng = np.random.default_rng(seed)
    flavour = flavour or str(rng.choice(FLAVOURS))
    q, k, v, *captured = (a.type for a in eqn.args)
    op = eqn.op
    assert isinstance(op, Attention)
    out = [_values(rng, t, flavour) for t in (q, k, v)]
    if flavour == "large":  # scores of some hundreds: float32's exponential overflows at 88
        factor = 100 / (abs(op.scale) * np.sqrt(q.ints[3]))
        out[0] = (out[0].astype(np.float32) * np.float32(factor)).astype(out[0].dtype)
    sides = slot_sides(op)
    fields = Fields(rng, seed, flavour, q.ints[0], q.ints[1], k.ints[1])
    for slot, t in enumerate(captured):
        out.append(fields.draw(t, sides[slot]) if slot in sides else _table(rng, t))
    return tuple(out)


def _values(rng: np.random.Generator, t: TensorType, flavour: str) -> Array:
    x = rng.integers(-2, 3, t.ints) / 2 if flavour == "ties" else rng.standard_normal(t.ints)
    return np.asarray(x.astype(np.float32).astype(DTYPES[t.dtype]))


def _table(rng: np.random.Generator, t: TensorType) -> Array:
    if t.dtype is DType.BOOL:
        return np.asarray(rng.random(t.ints) < 0.5)
    if t.dtype is DType.I32:
        return rng.integers(0, 8, t.ints, np.int32)
    return np.asarray(rng.uniform(0, 1, t.ints).astype(DTYPES[t.dtype]))


@dataclass(slots=True)
class Fields:
    """Draws fields of B batch rows, N queries and M keys; integers come in runs common to queries and keys."""

    rng: np.random.Generator
    seed: int
    flavour: str
    batch: int
    n: int
    m: int

    def draw(self, t: TensorType, sides: frozenset[Side]) -> Array:
        """One field of type `t`, [B, T] or [T]."""
        x = {DType.BOOL: self.truths, DType.I32: self.runs}.get(t.dtype, self.reals)(sides)
        return np.asarray((x if t.rank == 2 else x[0]).astype(DTYPES[t.dtype]))

    def length(self, sides: frozenset[Side]) -> int:
        return self.n if "q" in sides else self.m

    def reals(self, sides: frozenset[Side]) -> Array:
        return self.rng.standard_normal((self.batch, self.length(sides)))

    def runs(self, sides: frozenset[Side]) -> Array:
        longest = max(self.n, self.m, 1)
        # the same seed for every field: documents of queries and keys must have something in common
        rng = np.random.default_rng([self.seed, longest])
        cuts = rng.random((self.batch, longest)) < (2.5 / longest if self.flavour != "ties" else 0.3)
        x = np.cumsum(cuts, axis=1)
        x = x[:, x.shape[1] - self.length(sides) :]
        if self.flavour == "blind" and "q" in sides and "k" not in sides:
            x = np.where(self.rng.random(x.shape) < 0.3, 1000, x)
        return x

    def truths(self, sides: frozenset[Side]) -> Array:
        t = self.length(sides)
        if self.flavour == "ties":
            return np.asarray(self.rng.random((self.batch, t)) < 0.5)
        lengths = self.rng.integers(1, t + 1, (self.batch, 1)) if t else np.zeros((self.batch, 1), int)
        if self.flavour == "blind":
            lengths[self.rng.integers(self.batch)] = 0
        return np.asarray(np.arange(t) < lengths)


def _third(m: int) -> int:
    """A length that leaves tiles of every class at any size."""
    return max(1, m // 3)


def _with_score(name: str) -> Callable[[int], tuple[Expr, Expr]]:
    return lambda m: (NAMED_SCORES[name](0), NAMED_MASKS["causal"](0))


def _masked(name: str) -> Callable[[int], tuple[Expr, Expr]]:
    return lambda m: (S, NAMED_MASKS[name](0))


FORMULAS: Mapping[str, Callable[[int], tuple[Expr, Expr]]] = {
    "full": _masked("yes"),
    "causal": _masked("causal"),
    "window": lambda m: (S, both(formulas.causal(), formulas.window(size=_third(m)))),
    "documents": _masked("packed"),
    "dilated": _masked("dilated"),
    "prefix": lambda m: (S, formulas.prefix(size=_third(m))),
    "padding": _masked("padding"),
    "by_head": _masked("by_head"),
    "softcap": _with_score("softcap"),
    "alibi": _with_score("alibi"),
    "temperature": _with_score("temperature"),
    "own": _with_score("own"),
}
"""The formulas of the standard cases, by name: the number of keys to (score, mask). Scores are causal as well."""


def named_op(name: str, sizes: Sizes, scale: float | None = None) -> Attention:
    """The operation of a named formula at these sizes; the scale is D ** -0.5 where none is given."""
    score, mask = FORMULAS[name](sizes.m)
    assert not (slots(score) and slots(mask)), "a named formula captures for its score or for its mask"
    return Attention(scale=sizes.head_dim**-0.5 if scale is None else scale, score=score, mask=mask)


@dataclass(frozen=True, slots=True)
class Case:
    """An equation and how its arrays are drawn. `name` says which formula it is."""

    name: str
    eqn: Eqn
    seed: int
    flavour: str | None = None

    def operands(self) -> tuple[Array, ...]:
        return operands(self.eqn, self.seed, self.flavour)

    def __str__(self) -> str:
        flavour = f" ({self.flavour})" if self.flavour else ""
        return f"{self.name}, {sizes_of(self.eqn)}, seed {self.seed}{flavour}"


STANDARD: tuple[Sizes, ...] = (
    Sizes(1, 1, 1, 1, 1, 32),
    Sizes(2, 8, 8, 2, 2, 32),
    Sizes(2, 37, 37, 4, 2, 32),
    Sizes(1, 5, 53, 4, 1, 64),
    Sizes(2, 50, 20, 2, 1, 32),
    Sizes(1, 1, 130, 2, 2, 64),
    Sizes(1, 150, 150, 4, 2, 64),
    Sizes(1, 64, 64, 3, 3, 128),
)
"""Sizes of the standard cases: one token, whole tiles and ragged ones, fewer queries than keys and more, each way
of grouping heads. Their element type is the caller's."""


def standard_cases(names: Sequence[str], dtypes: Sequence[DType], seed: int = 0) -> Iterator[Case]:
    """For each formula, all standard sizes, smallest first; element types and flavours in turn."""
    for which, name in enumerate(names):
        for i, sizes in enumerate(sorted(STANDARD, key=lambda s: s.elements)):
            sizes = replace(sizes, dtype=dtypes[(which + i) % len(dtypes)])
            flavour = FLAVOURS[(2 * which + i) % len(FLAVOURS)]
            yield Case(name, attention_eqn(named_op(name, sizes), sizes), seed + i, flavour)


def shaped(eqn: Eqn, arrays: Sequence[Array]) -> Eqn:
    """The same operation on operands of the shapes of `arrays`."""
    by = {d: t for t, d in DTYPES.items()}
    args = tuple(Value(a.name, TensorType(tuple(x.shape), by[x.dtype])) for a, x in zip(eqn.args, arrays, strict=True))
    results = eqn.op.infer(*(a.type for a in args))
    return Eqn(tuple(Value(o.name, t) for o, t in zip(eqn.outs, results, strict=True)), eqn.op, args)
