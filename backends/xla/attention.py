"""Attention and its separate steps as jnp: grouped products, masks as small as their formulas, float32 softmax.

B batch, N queries, M keys, H query heads, G key/value heads, R = H / G, D head size. Keys and values are never
repeated for their group. Formulas are computed along the axes they depend on: a padding mask is [B, 1, 1, M],
a causal one [1, 1, N, M].
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.backends.xla.formula import Reader
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, walk
from tfc.ir.ops import Attention, Masked, Mix, Op, P, S, Score, Scores, Weigh
from tfc.ir.program import Eqn

__all__ = ["KERNEL", "KERNELS", "log_sum_exp"]

Array = jax.Array
Call = Callable[..., tuple[Array, ...]]
Shape = tuple[int, int, int, int]
EVERYTHING = Const(True)


def reader(shape: Shape, captured: tuple[Array, ...], real: Any, *formulas: Expr) -> Callable[..., Array]:
    """What the formulas' leaves stand for on scores of shape [B, H, N, M]; extra leaves are given with the formula."""
    b, h, n, m = shape
    leaves: dict[Expr, Array] = {
        Token("q"): (jnp.arange(n, dtype=jnp.int32) + (m - n))[None, None, :, None],
        Token("k"): jnp.arange(m, dtype=jnp.int32)[None, None, None, :],
    }
    for node in (node for f in formulas for node in walk(f)):
        if isinstance(node, Load):
            x = captured[node.slot]
            x = x[None] if x.ndim == 1 else x
            x = x.astype({Kind.BOOL: jnp.bool_, Kind.INT: jnp.int32, Kind.REAL: real}[node.kind])
            leaves[node] = x[:, None, :, None] if node.side == "q" else x[:, None, None, :]
    axes = {"b": (0, b), "h": (1, h), "n": (2, n), "m": (3, m)}

    def read(formula: Expr, extra: Mapping[Expr, Array] | None = None) -> Array:
        return Reader(real=real, leaves={**leaves, **(extra or {})}, operands=captured, axes=axes)(formula)

    return read


def grouped_scores(q: Array, k: Array, scale: float, real: Any) -> Array:
    """scale * q k^T.   q: [B, N, H, D]   k: [B, M, G, D]   -> [B, H, N, M]"""
    b, n, h, d = q.shape
    m, g = k.shape[1:3]
    exact = "highest" if q.dtype.itemsize > 2 else None
    q = jnp.reshape(q, (b, n, g, h // g, d))
    s = jnp.einsum("bngrd,bmgd->bgrnm", q, k, precision=exact, preferred_element_type=real)
    return jnp.reshape(s * jnp.asarray(scale, real), (b, h, n, m))


def grouped_mix(w: Array, v: Array, real: Any) -> Array:
    """Weighted sums in `real`.   w: [B, H, N, M], rounded to v's type   v: [B, M, G, Dv]   -> [B, N, H, Dv]"""
    b, h, n, m = w.shape
    g, d = v.shape[2:]
    exact = "highest" if v.dtype.itemsize > 2 else None
    w = jnp.reshape(w.astype(v.dtype), (b, g, h // g, n, m))
    out = jnp.einsum("bgrnm,bmgd->bngrd", w, v, precision=exact, preferred_element_type=real)
    return jnp.reshape(out, (b, n, h, d))


def exponentials(s: Array) -> tuple[Array, Array, Array]:
    """exp(s - top), its sum over keys (1 where a row sees none), and lse.   s: [B, H, N, M], -inf where unseen"""
    top = jax.lax.stop_gradient(jnp.max(s, axis=-1, keepdims=True, initial=-jnp.inf))
    empty = jnp.isneginf(top)
    top = jnp.where(empty, 0, top)
    e = jnp.exp(s - top)
    total = jnp.where(empty, 1, jnp.sum(e, axis=-1, keepdims=True))
    return e, total, jnp.where(empty, -jnp.inf, top + jnp.log(total))[..., 0]


def weights(formula: Expr, read: Callable[..., Array], s: Array, p: Array, real: Any) -> Array:
    """The weigh formula over s and p; zero where a key is not seen."""
    seen = ~jnp.isneginf(s)
    w = read(formula, {S: jnp.where(seen, s, 0), P: p}).astype(real)
    return jnp.where(seen, w, 0)


def masked_scores(op: Attention, q: Array, k: Array, read: Callable[..., Array], real: Any) -> Array:
    s = grouped_scores(q, k, op.scale, real)
    if op.score != S:
        s = jnp.broadcast_to(read(op.score, {S: s}), s.shape).astype(real)
    return s if op.mask == EVERYTHING else jnp.where(read(op.mask), s, -jnp.inf)


def attend(op: Attention, real: Any, q: Array, k: Array, v: Array, *captured: Array) -> tuple[Array, Array]:
    """out [B, N, H, Dv] in `real`, lse [B, H, N]."""
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    read = reader(shape, captured, real, op.score, op.mask, op.weigh)
    if any(isinstance(node, Load | Read) for node in walk(op.mask)):
        # a key beyond a length that is known at run time only may hold anything, and reaches nothing
        used = jnp.any(jnp.broadcast_to(read(op.mask), (*read(op.mask).shape[:3], shape[3])), axis=(1, 2))
        k, v = (jnp.where(used[..., None, None], x, 0) for x in (k, v))
    s = masked_scores(op, q, k, read, real)
    e, total, lse = exponentials(s)
    if op.weigh != P:
        return grouped_mix(weights(op.weigh, read, s, e / total, real), v, real), lse
    return grouped_mix(e, v, real) / jnp.transpose(total, (0, 2, 1, 3)), lse


def log_sum_exp(op: Attention, real: Any, q: Array, k: Array, *captured: Array) -> Array:
    """lse [B, H, N] alone."""
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    return exponentials(masked_scores(op, q, k, reader(shape, captured, real, op.score, op.mask), real))[2]


def _attention(eqn: Eqn, op: Attention) -> Call:
    out, lse = (DTYPES[v.type.dtype] for v in eqn.outs)

    def call(*operands: Array) -> tuple[Array, ...]:
        y, log_sum = attend(op, real_of(eqn), *operands)
        return y.astype(out), log_sum.astype(lse)

    return call


def _scores(eqn: Eqn, op: Scores) -> Call:
    return lambda q, k: (grouped_scores(q, k, op.scale, real_of(eqn)),)


def _score(eqn: Eqn, op: Score) -> Call:
    def call(s: Array, *captured: Array) -> tuple[Array, ...]:
        b, h, n, m = s.shape
        y = reader((b, h, n, m), captured, real_of(eqn), op.formula)(op.formula, {S: s})
        return (jnp.broadcast_to(y, s.shape).astype(s.dtype),)

    return call


def _masked(eqn: Eqn, op: Masked) -> Call:
    def call(s: Array, *captured: Array) -> tuple[Array, ...]:
        b, h, n, m = s.shape
        return (jnp.where(reader((b, h, n, m), captured, real_of(eqn), op.formula)(op.formula), s, -jnp.inf),)

    return call


def _weigh(eqn: Eqn, op: Weigh) -> Call:
    def call(s: Array, *captured: Array) -> tuple[Array, ...]:
        b, h, n, m = s.shape
        e, total, lse = exponentials(s)
        read = reader((b, h, n, m), captured, real_of(eqn), op.formula)
        return (e / total if op.formula == P else weights(op.formula, read, s, e / total, s.dtype)), lse

    return call


def _mix(eqn: Eqn, op: Mix) -> Call:
    return lambda w, v: (grouped_mix(w, v, real_of(eqn)).astype(v.dtype),)


_FORMS: Mapping[type[Op], Callable[[Eqn, Any], Call]] = {
    Attention: _attention,
    Scores: _scores,
    Score: _score,
    Masked: _masked,
    Weigh: _weigh,
    Mix: _mix,
}


def _build(eqn: Eqn, target: Target) -> Call:
    return _FORMS[type(eqn.op)](eqn, eqn.op)


KERNELS: Mapping[type[Op], Kernel] = {op: Kernel(name="xla", op=op, refuse=serve, build=_build) for op in _FORMS}
KERNEL = KERNELS[Attention]
