"""Scores, their formulas, softmax weights and weighted sums, as the definitions read: attention is all of them in turn.

Axes are the same letters everywhere: B batch, N queries, M keys, H query heads, G key/value heads, D head size.
Attention is the composition of its steps, so it needs no definition beyond theirs (systems: MHA, MQA, GQA).
"""

from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.reference.dense import Dense, of_tokens
from tfc.backends.reference.dropout import dropped
from tfc.formula.expr import Expr
from tfc.formula.guard import guarded
from tfc.formula.ranges import ranges
from tfc.ir.ops import Attention, Masked, Mix, Score, Scores, Weigh, follows_mask, reads_row

__all__ = ["attention", "masked", "mix", "score", "scores", "weigh"]

Array = jax.Array


def _formula(expr: Expr, shape: tuple[int, ...], captured: tuple[Array, ...], real: Any, **names: Array) -> Array:
    """The formula's values for scores of shape [B, H, N, M].

    By default query i has position i + (M - N) and key j has position j, aligned at the end. A slot's operand is
    [B, N, ...] or [N, ...] for the query's side, [B, M, ...] or [M, ...] for the key's. Each index that the formula
    reduces over has an axis of its own, after the four of the scores.
    """
    _, heads, n, m = shape
    sizes = ranges(expr, [x.shape for x in captured])
    rank = 4 + len(sizes)
    axes = {name: 4 + i for i, name in enumerate(sizes)}

    def along(axis: int, values: Array) -> Array:
        return values.reshape([-1 if i == axis else 1 for i in range(rank)])

    reader = Dense(
        real=real,
        operands=captured,
        tokens={
            "q": along(2, jnp.arange(n, dtype=jnp.int32) + (m - n)),
            "k": along(3, jnp.arange(m, dtype=jnp.int32)),
        },
        load=lambda x, side, at: of_tokens(x, 2 if side == "q" else 3, at, rank),
        vars={
            "h": along(1, jnp.arange(heads, dtype=jnp.int32)),
            **{name: along(axis, jnp.arange(sizes[name], dtype=jnp.int32)) for name, axis in axes.items()},
            **{name: x.reshape(*x.shape, *[1] * len(sizes)) for name, x in names.items()},
        },
        axes=axes,
        sizes=sizes,
    )
    values = reader(expr)
    return jnp.broadcast_to(values.reshape(values.shape[:4]), shape)


def _row(expr: Expr, s: Array, seen: Array) -> dict[str, Array]:
    """The statistics of each row over the keys that are seen, where the formula reads any.

    s, seen: [B, H, N, M]   -> [B, H, N, 1], the rank [B, H, N, M]. In a row that sees no key all are 0.
    """
    if not reads_row(expr):
        return {}
    s = jnp.where(seen, s, 0)
    count = jnp.sum(seen, axis=-1, keepdims=True)
    mean = jnp.sum(s, axis=-1, keepdims=True) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(seen, s - mean, 0) ** 2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    varies = squares > 0  # a root has no slope at 0
    largest = jnp.max(jnp.where(seen, s, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
    order = jnp.argsort(jnp.where(seen, -s, jnp.inf), axis=-1, stable=True)
    total = jnp.sum(jnp.where(seen, jnp.exp(s - _finite(largest)), 0), axis=-1, keepdims=True)
    return {
        "row.count": count.astype(jnp.int32),
        "row.rank": jnp.where(seen, jnp.argsort(order, axis=-1, stable=True), 0).astype(jnp.int32),
        "row.mean": mean,
        "row.deviation": jnp.where(varies, jnp.sqrt(jnp.where(varies, squares, 1)), 0),
        "row.max": _finite(largest),
        "row.lse": jnp.where(count > 0, _finite(largest) + jnp.log(jnp.where(count > 0, total, 1)), 0),
    }


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isneginf(x), 0, x)


def scores(op: Scores, real: Any, q: Array, k: Array) -> tuple[Array]:
    """scale * q k^T.   q: [B, N, H, D]   k: [B, M, G, D]   -> [B, H, N, M]; head i reads key head i // (H // G)"""
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    return (op.scale * jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest"),)


def score(op: Score, real: Any, s: Array, *captured: Array) -> tuple[Array]:
    """The score formula over s, which stays -inf where it is.   s: [B, H, N, M] -> the same"""
    seen = ~jnp.isneginf(s)
    finite = jnp.where(seen, s, 0)  # what gradients flow through
    rows = _row(op.formula, s, seen)
    made = _formula(guarded(op.formula), s.shape, captured, real, s=finite, seen=seen, **rows).astype(real)
    return (jnp.where(seen, made, -jnp.inf),)


def masked(op: Masked, real: Any, s: Array, *captured: Array) -> tuple[Array]:
    """-inf where the mask formula is false.   s: [B, H, N, M] -> the same"""
    return (jnp.where(_formula(op.formula, s.shape, captured, real), s, -jnp.inf),)


def weigh(op: Weigh, real: Any, s: Array, *captured: Array) -> tuple[Array, Array]:
    """Softmax over the keys that are not -inf, then the weigh formula over s and p.

    s: [B, H, N, M] -> weights of the same shape, lse [B, H, N]. Weights of keys that are not seen are zero; a row
    that sees none has zeros, lse = -inf and zero gradients. A NaN passes to its whole row.
    """
    seen = ~jnp.isneginf(s)
    row = jnp.any(seen, axis=-1, keepdims=True)
    finite = jnp.where(seen, s, 0)  # what gradients flow through, where something is seen
    top = jnp.max(jnp.where(seen, s, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(row, top, 0))
    e = jnp.where(seen, jnp.exp(jnp.where(seen, s - top, 0)), 0)
    total = jnp.where(row, jnp.sum(e, axis=-1, keepdims=True), 1)
    lse = jnp.where(row, top + jnp.log(total), -jnp.inf)[..., 0]
    rows = _row(op.formula, s, seen)
    w = _formula(guarded(op.formula), s.shape, captured, real, s=finite, p=e / total, seen=seen, **rows)
    return jnp.where(seen, w, 0).astype(real), lse


def mix(op: Mix, real: Any, w: Array, v: Array) -> tuple[Array]:
    """Weighted sums of values.   w: [B, H, N, M]   v: [B, M, G, Dv]   -> [B, N, H, Dv]"""
    v = jnp.repeat(v, w.shape[1] // v.shape[2], axis=2)
    return (jnp.einsum("bhnm,bmhd->bnhd", w, v, precision="highest"),)


def attention(op: Attention, real: Any, q: Array, k: Array, v: Array, *captured: Array) -> tuple[Array, Array]:
    """mix(weigh(masked(score(scale * q k^T))), v), the mask first where the score
    formula asks for it (`follows_mask`); weights dropped, if any are, before mix.

    q: [B, N, H, D]   k: [B, M, G, D]   v: [B, M, G, Dv]   -> out [B, N, H, Dv], lse [B, H, N]
    A key that no query of its batch row may see has no effect at all, whatever it holds: what lies beyond
    a given length never reaches a result or a gradient, not even a NaN.
    """
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    used = jnp.any(_formula(op.mask, shape, captured, real), axis=(1, 2))[:, :, None, None]
    k, v = jnp.where(used, k, 0), jnp.where(used, v, 0)
    (s,) = scores(Scores(scale=op.scale), real, q, k)
    if follows_mask(op.score):
        (s,) = masked(Masked(formula=op.mask), real, s, *captured)
        (s,) = score(Score(formula=op.score), real, s, *captured)
    else:
        (s,) = score(Score(formula=op.score), real, s, *captured)
        (s,) = masked(Masked(formula=op.mask), real, s, *captured)
    w, lse = weigh(Weigh(formula=op.weigh), real, s, *captured)
    if op.dropout:
        w = dropped(op.dropout, op.site, w, *captured[-op.seeds :])
    (out,) = mix(Mix(), real, w, v)
    return out, lse
