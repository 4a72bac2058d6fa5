"""Attention cases of the benchmark suites: shapes, formulas, directions, the floor that the hardware sets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Token, Var, apply, conjuncts
from tfc.ir.ops import Attention, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

__all__ = ["ATTENTION", "DIRECTIONS", "AttentionCase", "Direction", "and_all"]

Direction = Literal["forward", "both"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "both")
"""`both`: the result, and the gradients of q, k and v for a cotangent of the result."""

Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
CAUSAL = apply("le", K, Q)


def and_all(*parts: Expr) -> Expr:
    out = parts[0]
    for part in parts[1:]:
        out = apply("and", out, part)
    return out


def window(size: int) -> Expr:
    return apply("lt", apply("abs", apply("sub", Q, K)), Const(size))


def softcap(cap: float) -> Expr:
    return apply("mul", Const(cap), apply("tanh", apply("div", S, Const(cap))))


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCase:
    """One attention, forward or with its gradients.

    batch x length x heads x head_dim in bf16; `visible` is the exact share of (query, key) pairs that the mask
    leaves, the base of the floor; captured: the shapes of the formulas' slots, filled by `operands.py`.
    """

    name: str
    batch: int
    length: int
    heads: int
    head_dim: int
    kv_heads: int
    mask: Expr = Const(True)
    score: Expr = S
    captured: tuple[str, ...] = ()
    """What each slot holds: `segments 1024 q` (documents of 1024 tokens, of the queries), `slopes` (ALiBi's)."""

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one head, counted exactly for the forms used here."""
        n, reach, block = self.length, self.length, 0
        for part in conjuncts(self.mask):
            match part:
                case Apply("lt", (Apply("abs", _), Const(size))):
                    reach = int(size)
                case Apply("eq", (Load(slot, _, _), _)):
                    block = int(self.captured[slot].split()[1])
        if CAUSAL not in conjuncts(self.mask):
            return n * n
        if block:
            return n // block * (block * (block + 1) // 2)
        return sum(min(i + 1, reach) for i in range(n))

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
        op = Attention(scale=self.scale, score=self.score, mask=self.mask)
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


def _formula(name: str, mask: Expr, score: Expr = S, captured: Sequence[str] = ()) -> AttentionCase:
    return AttentionCase(
        name=f"{name} 8k d128", batch=2, length=8192, heads=16, kv_heads=16, head_dim=128,
        mask=mask, score=score, captured=tuple(captured),
    )  # fmt: skip


_SEGMENTS = apply("eq", Load(0, "q", Kind.INT), Load(1, "k", Kind.INT))
_DISTANCE = apply("abs", apply("sub", Q, K))
_ALIBI = apply("sub", S, apply("mul", Read(0, (H,), Kind.REAL), _DISTANCE))

_SHOWN = ((4096, 64, True), (4096, 256, True))

ATTENTION: tuple[AttentionCase, ...] = (
    _plain(4096, 128, True),
    _plain(16384, 128, True),
    _plain(4096, 128, False),
    _plain(16384, 128, False),
    _formula("window1024", and_all(CAUSAL, window(1024))),
    _plain(4096, 64, True),
    _formula("documents1024", and_all(CAUSAL, _SEGMENTS), captured=("segments 1024 q", "segments 1024 k")),
    _formula("softcap20", CAUSAL, score=softcap(20.0)),
    _formula("alibi", CAUSAL, score=_ALIBI, captured=("slopes",)),
    _formula("causal", CAUSAL),
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
