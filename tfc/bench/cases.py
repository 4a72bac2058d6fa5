"""Attention cases of the benchmark suites: shapes, formulas, directions, the floor that the hardware sets."""

import math
import random
from dataclasses import dataclass, replace
from typing import Any, Literal

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Token, Var, apply, conjuncts
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

__all__ = ["ATTENTION", "DIRECTIONS", "AttentionCase", "Direction", "among", "and_all", "drawn"]

Direction = Literal["forward", "both"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "both")
"""`both`: the result, and the gradients of q, k and v for a cotangent of the result."""

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
CAUSAL = apply("le", K, Q)
SEGMENTS = apply("eq", Load(0, "q", Kind.INT), Load(1, "k", Kind.INT))
PREFIXED = apply("or", CAUSAL, apply("lt", K, Load(2, "q", Kind.INT)))


def among(name: str, only: str) -> bool:
    """Whether the name has one of the texts that commas separate."""
    return any(text.strip() in name for text in only.split(","))


def and_all(*parts: Expr) -> Expr:
    out = parts[0]
    for part in parts[1:]:
        out = apply("and", out, part)
    return out


def window(size: int) -> Expr:
    return apply("lt", apply("abs", apply("sub", Q, K)), Const(size))


def softcap(cap: float, tanh: str = "tanh") -> Expr:
    return apply("mul", Const(cap), apply(tanh, apply("div", S, Const(cap))))


def alibi(slot: int, score: Expr = S) -> Expr:
    return apply("sub", score, apply("mul", Read(slot, (H,), Kind.REAL), apply("abs", apply("sub", Q, K))))


def hstu(length: int) -> Expr:
    """SiLU of the score over a length, in place of a softmax (arXiv:2402.17152)."""
    return apply("div", apply("mul", S, apply("sigmoid", S)), Const(float(length)))


def drawn(rows: int, longest: int) -> tuple[int, ...]:
    """Lengths of documents as ByteTransformer draws them: uniform, their mean 0.6 of the longest (arXiv:2210.03052).

    One from each of as many equal parts of the distribution, in a mixed order."""
    lengths = [round(longest * (0.2 + 0.8 * (i + 0.5) / rows)) for i in range(rows)]
    random.Random(0).shuffle(lengths)
    return tuple(lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCase:
    """One attention, forward or with its gradients.

    batch x length x heads x head_dim in bf16; captured: what the formulas' slots hold, filled by `attention.py`.
    documents: the lengths of a row's documents, where the mask keeps them apart. prefix: tokens of each document that
    all of it sees.
    """

    name: str
    batch: int
    length: int
    heads: int
    head_dim: int
    kv_heads: int
    mask: Expr = Const(True)
    score: Expr = S
    weigh: Expr = P
    captured: tuple[str, ...] = ()
    """`segments q`, `segments k`: which document a token is in; `prefixes q`: where its prefix ends; `slopes`: of
    ALiBi, a head each."""
    documents: tuple[int, ...] = ()
    prefix: int = 0
    beside: "AttentionCase | None" = None
    """Another attention that our kernel is measured on in the same run, to compare times and visited tiles with."""

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)

    @property
    def spans(self) -> tuple[int, ...]:
        """The lengths of a row's documents, cut off where the row ends; of a row without any, its own."""
        out, left = [], self.length
        for size in self.documents or (self.length,):
            out.append(min(size, left))
            left -= out[-1]
        return tuple(n for n in out if n)

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one row and head, counted exactly for the forms used here."""
        parts, reach = conjuncts(self.mask), self.length
        for part in parts:
            match part:
                case Apply("lt", (Apply("abs", _), Const(size))):
                    reach = int(size)
        if CAUSAL not in parts and PREFIXED not in parts:
            return sum(n * n for n in self.spans)
        return sum(max(min(i + 1, reach), min(self.prefix, n)) for n in self.spans for i in range(n))

    @property
    def flops(self) -> int:
        """Two products of `head_dim` multiply-adds for every visible pair: 4 D FLOPs a pair."""
        return 4 * self.head_dim * self.pairs * self.batch * self.heads

    @property
    def bytes(self) -> int:
        """q, k, v read once and out written once, bf16."""
        tokens = self.batch * self.length * self.head_dim * 2
        return tokens * (2 * self.heads + 2 * self.kv_heads)

    def floor_ms(self, flops_rate: float, bandwidth: float, direction: Direction = "forward") -> float:
        """The larger of FLOPs over the matrix rate and bytes over the bandwidth, in milliseconds.

        Backward: five products where forward has two (the weights are computed again), and each of q, k, v, the result
        and its cotangent read once, each of the three gradients written once.
        """
        backward = direction == "both"
        flops = self.flops * (3.5 if backward else 1)
        return 1e3 * max(flops / flops_rate, self.bytes * (3 if backward else 1) / bandwidth)

    def eqn(self) -> Eqn:
        """The case as an equation of the IR, with static types."""
        return self.part(self.batch, self.length, self.length, self.heads, self.kv_heads, DType.BF16)

    def part(self, b: int, n: int, m: int, heads: int, kv_heads: int, dtype: DType) -> Eqn:
        """The same formulas at another size: n queries, the last of m keys."""
        shapes = ((n, heads), (m, kv_heads), (m, kv_heads))
        types = [TensorType((b, tokens, count, self.head_dim), dtype) for tokens, count in shapes]
        for what in self.captured:
            by_what = {"q": TensorType((b, n), DType.I32), "k": TensorType((b, m), DType.I32)}
            types.append(by_what.get(what.split()[-1], TensorType((heads,), DType.F32)))
        op = Attention(scale=self.scale, score=self.score, mask=self.mask, weigh=self.weigh)
        args = tuple(Value(f"a{i}", t) for i, t in enumerate(types))
        return Eqn(tuple(Value(f"o{i}", t) for i, t in enumerate(op.infer(*types))), op, args)


def _plain(length: int, head_dim: int, causal: bool) -> AttentionCase:
    return AttentionCase(
        name=f"d{head_dim} {length // 1024}k {'causal' if causal else 'full'}",
        batch=max(1, 16384 // length),
        length=length,
        heads=2048 // head_dim,
        kv_heads=2048 // head_dim,
        head_dim=head_dim,
        mask=CAUSAL if causal else Const(True),
    )


def _formula(name: str, mask: Expr = CAUSAL, length: int = 8192, **more: Any) -> AttentionCase:
    return AttentionCase(
        name=f"{name} {length // 1024}k d128", batch=2, length=length, heads=16, kv_heads=16, head_dim=128, mask=mask,
        **more,
    )  # fmt: skip


def _packed(rows: int, longest: int, head_dim: int) -> AttentionCase:
    """An encoder's batch with its documents in one row, beside the same batch with every row as long as the longest."""
    documents, heads = drawn(rows, longest), 1024 // head_dim
    padded = AttentionCase(
        name=f"{rows} rows of {longest} d{head_dim}",
        batch=rows,
        length=longest,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
    )
    return replace(
        padded,
        name=f"packed {rows}x{longest} d{head_dim}",
        batch=1,
        length=sum(documents),
        documents=documents,
        mask=SEGMENTS,
        captured=("segments q", "segments k"),
        beside=padded,
    )


_EVEN = (1024,) * 8
_PLAIN = _formula("causal")
_WINDOW = _formula("window1024", and_all(CAUSAL, window(1024)))

_SHOWN = ((4096, 64, True), (4096, 256, True))

ATTENTION: tuple[AttentionCase, ...] = (
    _plain(4096, 128, True),
    _plain(16384, 128, True),
    _plain(4096, 128, False),
    _plain(16384, 128, False),
    _WINDOW,
    _plain(4096, 64, True),
    _formula("documents1024", and_all(CAUSAL, SEGMENTS), captured=("segments q", "segments k"), documents=_EVEN),
    _formula("softcap20", score=softcap(20.0)),
    _formula("softcap20 approximate", score=softcap(20.0, "approximate_tanh")),
    _formula("alibi", score=alibi(0), captured=("slopes",)),
    _PLAIN,
    _formula(
        "prefix documents alibi softcap",
        and_all(PREFIXED, SEGMENTS),
        score=alibi(3, softcap(20.0)),
        captured=("segments q", "segments k", "prefixes q", "slopes"),
        documents=_EVEN,
        prefix=256,
        beside=_PLAIN,
    ),
    _formula("hstu", weigh=hstu(8192), beside=_PLAIN),
    _formula("window1024", _WINDOW.mask, 32768, beside=_WINDOW),
    _packed(32, 1024, 64),
    _packed(16, 2048, 128),
    _plain(4096, 256, True),
    *(
        _plain(length, head_dim, causal)
        for head_dim in (64, 128, 256)
        for length in (1024, 4096, 16384)
        for causal in (True, False)
        if (length, head_dim) not in ((4096, 128), (16384, 128)) and (length, head_dim, causal) not in _SHOWN
    ),
)
"""The suite `attention`: what is looked at first, then the other lengths and head sizes."""
