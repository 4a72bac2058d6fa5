"""Named cases turned into verdicts: the interpreted kernel beside attention's definition in float64 numpy.

This module runs in a worker process (`tfc.testing.worker`): an interpreted kernel can hang.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.kernel import Late, Target
from tfc.backends.pallas_gpu import attention, schedule, streaming
from tfc.compat import mosaic_races, reset_interpreter
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply
from tfc.ir.ops import Attention, P
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

S, H, LSE = Var("s", Kind.REAL), Var("h", Kind.INT), Var("row.lse", Kind.REAL)
Q, K = Token("q"), Token("k")
YES = Const(True)
CAUSAL = apply("le", K, Q)


def window(width: int) -> Expr:
    return apply("lt", apply("sub", Q, K), Const(width))


def softcap(cap: float, tanh: str = "tanh") -> Expr:
    return apply("mul", Const(cap), apply(tanh, apply("div", S, Const(cap))))


def both(x: Expr, y: Expr) -> Expr:
    return apply("and", x, y)


def remainder(x: Expr, n: int) -> Expr:
    return apply("mod", x, Const(n))


SEGMENTS = apply("eq", Load(0, "q", Kind.INT), Load(1, "k", Kind.INT))
ALIBI = apply("sub", S, apply("mul", Read(0, (H,), Kind.REAL), apply("abs", apply("sub", Q, K))))
OWN = apply(
    "where",
    apply("gt", Load(1, "k", Kind.REAL), Const(0.25)),
    apply("add", S, apply("mul", Load(0, "q", Kind.REAL), apply("sigmoid", apply("sub", S, Const(1.0))))),
    apply("min", S, apply("sin", apply("add", Q, apply("mul", K, Const(2))))),
)

Draw = Callable[[np.random.Generator, int, int, int, int], np.ndarray[Any, Any]]  # generator, B, N, M, H


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A mask and a score, the captured arrays as drawn, and the same in plain numpy over dense arrays.

    dense: (s, q, k, h, captured) -> (score, mask): s [B, H, N, M]; q [N, 1], k [1, M] positions; h [H, 1, 1].
    weigh, weights: the weigh formula, and the same as (s, p, lse, q, k, captured) -> [B, H, N, M], lse [B, H, N, 1].
    """

    mask: Expr = YES
    score: Expr = S
    captured: tuple[Draw, ...] = ()
    dense: Callable[..., tuple[Any, Any]]
    weigh: Expr = P
    weights: Callable[..., Any] | None = None


def seen_causally(s: Any, q: Any, k: Any, h: Any, c: Any) -> tuple[Any, Any]:
    return s, k <= q


def logits(r: np.random.Generator, b: int, n: int, m: int, h: int) -> np.ndarray[Any, Any]:
    return r.normal(size=h).astype(np.float32)


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


WEIGHED: Mapping[str, Formula] = {
    "sink": Formula(
        mask=CAUSAL,
        captured=(logits,),
        dense=seen_causally,
        weigh=apply("mul", P, apply("sigmoid", apply("sub", LSE, Read(0, (H,), Kind.REAL)))),
        weights=lambda s, p, lse, q, k, c: p / (1 + np.exp(c[0][:, None, None] - lse)),
    ),
    "fading": Formula(  # two factors that rows share, one of them the query's own, and one of each pair
        mask=CAUSAL,
        captured=(lambda r, b, n, m, h: r.uniform(1, 2, (b, n)).astype(np.float32),),
        dense=seen_causally,
        weigh=apply(
            "div",
            apply("mul", P, apply("exp", apply("mul", Const(-0.01), apply("abs", apply("sub", Q, K))))),
            apply("mul", Load(0, "q", Kind.REAL), Const(0.5)),
        ),
        weights=lambda s, p, lse, q, k, c: p * np.exp(-0.01 * np.abs(q - k)) / (0.5 * c[0][:, None, :, None]),
    ),
    "hstu": Formula(
        mask=CAUSAL,
        dense=seen_causally,
        weigh=apply("div", apply("mul", S, apply("sigmoid", S)), Const(190.0)),
        weights=lambda s, p, lse, q, k, c: silu(s) / 190,
    ),
    "relu2": Formula(
        score=softcap(2.0),
        mask=both(CAUSAL, window(40)),
        dense=lambda s, q, k, h, c: (2 * np.tanh(s / 2), (k <= q) & (q - k < 40)),
        weigh=apply("pow", apply("div", apply("max", S, Const(0.0)), Const(100)), Const(2)),
        weights=lambda s, p, lse, q, k, c: (np.maximum(s, 0) / 100) ** 2,
    ),
    "clipped": Formula(
        mask=apply("or", CAUSAL, apply("lt", K, Const(70))),
        dense=lambda s, q, k, h, c: (s, (k <= q) | (k < 70)),
        weigh=apply("min", apply("max", apply("sub", apply("mul", Const(1.1), P), Const(0.02)), Const(0.0)), Const(1)),
        weights=lambda s, p, lse, q, k, c: np.clip(1.1 * p - 0.02, 0, 1),
    ),
}
"""Weights other than the softmax's."""

FORMULAS: Mapping[str, Formula] = {
    **WEIGHED,
    "full": Formula(dense=lambda s, q, k, h, c: (s, True)),
    "causal": Formula(mask=CAUSAL, dense=lambda s, q, k, h, c: (s, k <= q)),
    "window": Formula(mask=both(CAUSAL, window(40)), dense=lambda s, q, k, h, c: (s, (k <= q) & (q - k < 40))),
    "prefix": Formula(
        mask=apply("or", CAUSAL, apply("lt", K, Const(70))), dense=lambda s, q, k, h, c: (s, (k <= q) | (k < 70))
    ),
    "dilated": Formula(
        mask=both(CAUSAL, apply("eq", remainder(Q, 4), remainder(K, 4))),
        dense=lambda s, q, k, h, c: (s, (k <= q) & (q % 4 == k % 4)),
    ),
    "documents": Formula(
        mask=both(CAUSAL, SEGMENTS),
        captured=(
            lambda r, b, n, m, h: np.sort(r.integers(0, 3, (b, n)), axis=1).astype(np.int32),
            lambda r, b, n, m, h: np.sort(r.integers(0, 3, (b, m)), axis=1).astype(np.int32),
        ),
        dense=lambda s, q, k, h, c: (s, (k <= q) & (c[0][:, None, :, None] == c[1][:, None, None, :])),
    ),
    "padding": Formula(
        mask=Load(0, "k", Kind.BOOL),
        captured=(lambda r, b, n, m, h: np.arange(m) < r.integers(0, m + 1, (b, 1)),),
        dense=lambda s, q, k, h, c: (s, c[0][:, None, None, :]),
    ),
    "nothing": Formula(  # one batch row of padding only
        mask=Load(0, "k", Kind.BOOL),
        captured=(lambda r, b, n, m, h: np.arange(b)[:, None] * m > np.arange(m)[None],),
        dense=lambda s, q, k, h, c: (s, c[0][:, None, None, :]),
    ),
    "softcap": Formula(score=softcap(2.0), mask=CAUSAL, dense=lambda s, q, k, h, c: (2 * np.tanh(s / 2), k <= q)),
    "approximate softcap": Formula(
        score=softcap(2.0, "approximate_tanh"), mask=CAUSAL, dense=lambda s, q, k, h, c: (2 * np.tanh(s / 2), k <= q)
    ),
    "alibi": Formula(
        score=ALIBI,
        mask=CAUSAL,
        captured=(lambda r, b, n, m, h: np.exp2(-8 * (np.arange(h) + 1) / h).astype(np.float32),),
        dense=lambda s, q, k, h, c: (s - c[0][:, None, None] * np.abs(q - k), k <= q),
    ),
    "own": Formula(
        score=OWN,
        mask=apply("or", apply("ne", remainder(Q, 3), Const(1)), apply("ge", H, Const(1))),
        captured=(
            lambda r, b, n, m, h: r.normal(size=n).astype(np.float32),
            lambda r, b, n, m, h: r.normal(size=(b, m)).astype(np.float32),
        ),
        dense=lambda s, q, k, h, c: (
            np.where(
                c[1][:, None, None, :] > 0.25,
                s + c[0][:, None] / (1 + np.exp(1 - s)),
                np.minimum(s, np.sin(q + 2 * k)),
            ),
            (q % 3 != 1) | (h >= 1),
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a case; block sizes are small, as the interpreter takes 10 to 25 ms for 64 x 64 scores."""

    formula: str
    b: int = 1
    n: int = 128
    m: int = 128
    h: int = 2
    g: int = 1
    d: int = 64
    dv: int = 0
    dtype: str = "bfloat16"
    scale: float | None = None
    consumers: int = 2
    block_k: int = 64
    stages: int = 2
    blocks: int = 0
    seed: int = 0
    large: float = 1.0


def arrays(case: Case, formula: Formula | None = None) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """q, k, v as float64 values that the case's type holds exactly, and the captured arrays."""
    rng = np.random.default_rng(case.seed)
    shapes = [
        (case.b, case.n, case.h, case.d),
        (case.b, case.m, case.g, case.d),
        (case.b, case.m, case.g, case.dv or case.d),
    ]
    qkv = [np.asarray(jnp.asarray(rng.normal(size=s) * case.large, case.dtype), np.float64) for s in shapes]
    captured = [draw(rng, case.b, case.n, case.m, case.h) for draw in (formula or FORMULAS[case.formula]).captured]
    return qkv, captured


def dense(case: Case, q: Any, k: Any, captured: list[Any]) -> tuple[Any, Any]:
    """Scores [B, H, N, M] in float64, and which of them count."""
    s = np.einsum("bnhd,bmhd->bhnm", q, np.repeat(k, case.h // case.g, axis=2)) * scale_of(case)
    at = np.arange(case.n)[:, None] + case.m - case.n, np.arange(case.m)[None], np.arange(case.h)[:, None, None]
    wide = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in captured]
    score, mask = FORMULAS[case.formula].dense(s, *at, wide)
    return score, np.broadcast_to(mask, s.shape)


def scale_of(case: Case) -> float:
    return case.d**-0.5 if case.scale is None else case.scale


def definition(
    case: Case, score: Any, mask: Any, v: Any, captured: list[Any], dtype: Any = np.float64
) -> tuple[Any, Any]:
    """softmax over the keys that count, times v; zeros and -inf where none does. dtype: what p is rounded to, or the
    weights that the case's formula makes of it."""
    seen = np.where(mask, score, -np.inf)
    top = np.max(seen, axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0, top)
    p = np.exp(seen - top)
    total = p.sum(-1, keepdims=True)
    share = np.where(total == 0, 0, 1 / np.where(total == 0, 1, total))
    with np.errstate(divide="ignore"):
        lse = top + np.log(total)
    if weights := FORMULAS[case.formula].weights:
        at = np.arange(case.n)[:, None] + case.m - case.n, np.arange(case.m)[None]
        wide = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in captured]
        made = weights(score, p * share, np.where(total == 0, 0, lse), *at, wide)
        p, share = np.where(mask, made, 0), np.ones_like(share)
    p = np.asarray(jnp.asarray(p.astype(np.float32), dtype), np.float64) if dtype != np.float64 else p
    out = np.einsum("bhnm,bmhd->bnhd", p, np.repeat(v, case.h // case.g, axis=2))
    return out * np.swapaxes(share, 1, 2), lse[..., 0]


def ranges(case: Case, mask: Any) -> tuple[Any, Any]:
    """Visited ranges by looking at every score: (counts, triples), one for every batch row and head."""
    block_q, block_k = case.consumers * 64, case.block_k
    tiles, keys = -(-case.n // block_q), -(-case.m // block_k)
    found: dict[tuple[int, int, int], list[list[int]]] = {}
    for b, h, t in np.ndindex(case.b, case.h, tiles):
        row: list[list[int]] = []
        for j in range(keys):
            part = mask[b, h, t * block_q : (t + 1) * block_q, j * block_k : (j + 1) * block_k]
            full = int(part.all() and (j + 1) * block_k <= case.m)
            if row and row[-1][1:] == [j, full]:
                row[-1][1] = j + 1
            elif part.any():
                row.append([j, j + 1, full])
        found[b, h, t] = row
    counts = np.zeros((case.b, case.h, tiles), np.int32)
    triples = np.zeros((case.b, case.h, tiles, max(1, *map(len, found.values())), 3), np.int32)
    for at, row in found.items():
        counts[at] = len(row)
        for i, triple in enumerate(row):
            triples[(*at, i)] = triple
    return counts, triples


def plan(case: Case) -> Any:
    formula = FORMULAS[case.formula]
    return streaming.Plan(
        config=streaming.Config(consumers=case.consumers, block_k=case.block_k, stages=case.stages),
        batch=case.b,
        n=case.n,
        m=case.m,
        heads=case.h,
        kv_heads=case.g,
        head_dim=case.d,
        dtype=jnp.dtype(case.dtype),
        scale=scale_of(case),
        score=formula.score,
        mask=formula.mask,
        weigh=formula.weigh,
        value_dim=case.dv,
        blocks=case.blocks,
        interpret=True,
    )


@dataclass(frozen=True)
class Errors:
    """How far the kernel is from float64 (largest and root mean square error), and how far the definition itself
    is when computed at the kernel's own precision: operands and weights rounded, sums exact."""

    worst: float
    mean: float
    rounding_worst: float
    rounding_mean: float
    lse: float
    nans: int

    @property
    def wrong(self) -> str:
        """What is wrong, in words; empty where the errors are those that the precision brings.

        The factors leave room for weights relative to a running maximum, which round once more than the
        definition's, and for the base-2 exponential's 2 ulp. lse (relative to its size, or to 1) is float32 throughout.
        """
        if self.nans:
            return f"{self.nans} NaNs"
        if self.worst > 2 * self.rounding_worst + 1e-5:
            return f"an element is off by {self.worst:.2e}, rounding explains {self.rounding_worst:.2e}"
        if self.mean > 1.5 * self.rounding_mean + 1e-6:
            return f"elements are off by {self.mean:.2e}, rounding explains {self.rounding_mean:.2e}"
        return f"lse is off by {self.lse:.2e} of its size" if self.lse > 2e-6 else ""


def compared(
    case: Case, out: Any, lse: Any, score: Any, mask: Any, v: Any, captured: list[Any], tiles: int
) -> dict[str, Any]:
    """The kernel's results beside the definition's."""
    out, lse = np.asarray(out, np.float64), np.asarray(lse, np.float64)
    assert not mosaic_races(), "RACE DETECTED"
    right, right_lse = definition(case, score, mask, v, captured)
    low, _ = definition(case, score.astype(np.float32), mask, v, captured, case.dtype)
    low = np.asarray(jnp.asarray(low, case.dtype), np.float64)
    blind = np.isneginf(right_lse)
    assert np.array_equal(np.isneginf(lse), blind), "rows that see nothing have lse = -inf, and no other rows"
    assert not out[np.swapaxes(blind, 1, 2)].any(), "rows that see nothing are zero"

    def size(x: Any) -> tuple[float, float]:
        return float(np.abs(x).max(initial=0)), float(np.sqrt(np.mean(x**2))) if x.size else 0.0

    seen = ~blind
    errors = Errors(
        *size(out - right),
        *size(low - right),
        lse=float((np.abs(lse[seen] - right_lse[seen]) / np.maximum(1, np.abs(right_lse[seen]))).max(initial=0)),
        nans=int(np.isnan(out).sum() + np.isnan(lse).sum()),
    )
    return {"wrong": errors.wrong, "blind": int(blind.sum()), "tiles": tiles}


def formulas() -> list[str]:
    """Their names."""
    return list(FORMULAS)


def weighed() -> list[str]:
    """Of those, the ones that weigh otherwise than by the softmax."""
    return list(WEIGHED)


def judge(fields: Mapping[str, Any], edits: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a case through the interpreted kernel, with ranges found by looking at every score, and compares.

    fields: of `Case`. edits: lines of the kernel's source to replace, each of which must occur once: a planted
    fault. Gives `wrong` in words, how many rows are blind, how many tiles were visited.
    """
    case = Case(**fields)
    (q, k, v), captured = arrays(case)
    score, mask = dense(case, q, k, captured)
    counts, triples = ranges(case, mask)
    reset_interpreter()
    kernel = attention.call(plan(case), (mutated(edits) if edits else streaming).launch)
    operands = [jnp.asarray(x, case.dtype) for x in (q, k, v)]
    turns, packed = schedule.packed(counts, triples)
    if case.blocks:
        turns = schedule.lists(turns, packed, batch=case.b, heads=case.h, blocks=case.blocks, together=case.h)
    out, lse = kernel(*operands, jnp.asarray(turns), jnp.asarray(packed), *map(jnp.asarray, captured))
    visited = int(sum((t[:, 1] - t[:, 0]).sum() for t in triples.reshape(-1, *triples.shape[3:])))
    return compared(case, out, lse, score, mask, v, captured, visited)


def mutated(edits: Mapping[str, str]) -> Any:
    """A copy of the kernel's module with lines replaced; indentation stays. Each line must occur once."""
    lines = inspect.getsource(streaming).splitlines()
    for line, other in edits.items():
        at = [i for i, x in enumerate(lines) if x.strip() == line]
        if len(at) != 1:
            raise LookupError(f"the kernel has {len(at)} lines `{line}`")
        lines[at[0]] = lines[at[0]].replace(line, other)
    module = ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    exec(compile("\n".join(lines), "mutant", "exec"), module.__dict__)
    return module


def judge_built(fields: Mapping[str, Any], traced: bool, row: int | None = None) -> dict[str, Any]:
    """The same through the kernel as it is registered: refuse, build, and ranges that it finds itself.

    traced: under jit, where the captured arrays are unknown when the ranges are made. row: k and v are this row of
    stacks of three, whose other rows are NaN. blocks: the multiprocessors that the target has, 132 where it is 0.
    """
    case = Case(**fields)
    formula = FORMULAS[case.formula]
    (q, k, v), captured = arrays(case)
    kind = {"bfloat16": DType.BF16, "float16": DType.F16}[case.dtype]
    kinds = {"i": DType.I32, "f": DType.F32, "b": DType.BOOL}
    types = [TensorType(x.shape, kind) for x in (q, k, v)]
    types += [TensorType(x.shape, kinds[x.dtype.kind]) for x in captured]
    op = Attention(scale=scale_of(case), score=formula.score, mask=formula.mask, weigh=formula.weigh)
    out_types = op.infer(*types)
    eqn = Eqn(tuple(map(Value, ("o", "l"), out_types)), op, tuple(Value(f"a{i}", t) for i, t in enumerate(types)))
    target = Target(name="h200", platform="gpu", capability=9.0, sms=case.blocks or 132, interpret=True)
    assert attention.KERNEL.refuse(eqn, target) is None
    function = attention.build(eqn, target)
    reset_interpreter()
    operands: list[Any] = [*(jnp.asarray(x, case.dtype) for x in (q, k, v)), *map(jnp.asarray, captured)]
    if row is not None:
        others = [jnp.full((3, *x.shape), jnp.nan, x.dtype).at[row].set(x) for x in operands[1:3]]
        operands[1:3] = [Late(x, jnp.int32(row), x.dtype) for x in others]
    out, lse = (jax.jit(function) if traced else function)(*operands)
    assert (out.shape, lse.shape) == ((*q.shape[:3], case.dv or case.d), (case.b, case.h, case.n))
    score, mask = dense(case, q, k, captured)
    return compared(case, out, lse, score, mask, v, captured, tiles=0)
