"""The linear recurrence chunk by chunk: matrix products within a chunk, a scan over the chunks' states.

    out_r = scale (q_r exp(b_r)) S + sum over u <= r of P[r, u] v_u     P[r, u] = scale sum_d q_rd k_ud exp(b_rd - b_ud)
    S'    = diag(exp(b_C)) S + sum over u of (k_u exp(b_C - b_u))^T v_u

with b the sum of the log decays within the chunk. Every exponent is a sum of log decays over a stretch, added up for
that stretch: it is at most 0, so nothing overflows, and no difference of large sums is taken (mixers as in
arXiv:2312.06635, section 4). A decay for each channel does not leave the sum over d: there, chunks are cut into
blocks, and only pairs within a block are taken one by one. The backward pass computes chunks again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.ir.ops import Recurrence
from tfc.ir.program import Eqn

__all__ = ["BLOCK", "CHUNK", "RECURRENCE"]

Array = jax.Array

CHUNK = 64
"""Tokens whose pairs are one matrix."""

BLOCK = 16
"""Of those with a decay for each channel: tokens whose pairs are taken one by one."""


def _between(g: Array, axis: int) -> Array:
    """Sums of g over the stretch (u, t] for every t (in the place of `axis`) and u (after it); 0 where u >= t."""
    n = g.shape[axis]
    w, u = jnp.arange(n)[:, None], jnp.arange(n)[None, :]
    later = jnp.reshape(w > u, (n, n, *(1,) * (g.ndim - 1 - axis)))
    return jnp.cumsum(jnp.where(later, jnp.expand_dims(g, axis + 1), 0), axis=axis)


def _after(g: Array, axis: int) -> Array:
    """Sums of g over what comes after each place of an axis."""
    later = lax.slice_in_dim(lax.cumsum(g, axis=axis, reverse=True), 1, None, axis=axis)
    return jnp.concatenate([later, jnp.zeros_like(lax.slice_in_dim(g, 0, 1, axis=axis))], axis=axis)


def _dot(spelled: str, *operands: Array) -> Array:
    return jnp.einsum(spelled, *operands, precision="highest")


def _pairs(q: Array, k: Array, g: Array | None) -> Array:
    """P without scale and mask.   q, k: [B, H, C, K]   g: none, [B, H, C] or [B, H, C, K]   -> [B, H, C, C]"""
    if g is None:
        return _dot("bhtk,bhuk->bhtu", q, k)
    if g.ndim == 3:
        return _dot("bhtk,bhuk->bhtu", q, k) * jnp.exp(_between(g, 2))
    batch, heads, tokens, keys = q.shape
    q, k, g = (jnp.reshape(x, (batch, heads, -1, BLOCK, keys)) for x in (q, k, g))
    count = g.shape[2]
    own = _dot("bhitk,bhiuk,bhituk->bhitu", q, k, jnp.exp(_between(g, 3)))
    # between blocks: from the end of u's block, over whole blocks, and from the start of t's
    total = jnp.sum(g, axis=3)
    over = jnp.pad(_between(total, 2), ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0)))[:, :, :-1]  # row i: up to block i - 1
    read = q * jnp.exp(jnp.cumsum(g, axis=3))
    kept = k[:, :, None] * jnp.exp(_after(g, 3)[:, :, None] + over[:, :, :, :, None])
    far = _dot("bhitk,bhijuk->bhitju", read, kept)
    i, j = jnp.arange(count)[:, None, None, None], jnp.arange(count)[None, None, :, None]
    every = jnp.where(i == j, own[:, :, :, :, None], jnp.where(i > j, far, 0))
    return jnp.reshape(every, (batch, heads, tokens, tokens))


Carry = tuple[Array, Array, Array]


def _chunk(carry: Carry, own: tuple[Array, ...]) -> tuple[Carry, tuple[Array, Array]]:
    """One chunk: state [B, H, K, V], sum of keys [B, H, K] and run [B] before it -> the same after it, and of each
    token q S [B, H, C, V] and q z [B, H, C]."""
    state, total, before = carry
    q, k, v, run, *decay = own
    g = decay[0] if decay else None
    tokens = q.shape[2]
    causal = jnp.arange(tokens)[:, None] >= jnp.arange(tokens)[None, :]
    pairs = jnp.where(causal & (run[:, :, None] == run[:, None, :])[:, None], _pairs(q, k, g), 0)
    reached = (run == before[:, None])[:, None, :, None]
    lasting = (run == run[:, -1:])[:, None, :, None]
    wide = None if g is None else g if g.ndim == 4 else g[..., None]
    read = jnp.where(reached, q if wide is None else q * jnp.exp(jnp.cumsum(wide, axis=2)), 0)
    kept = jnp.where(lasting, k if wide is None else k * jnp.exp(_after(wide, 2)), 0)
    out = _dot("bhtu,bhuv->bhtv", pairs, v) + _dot("bhtk,bhkv->bhtv", read, state)
    weight = jnp.sum(pairs, axis=-1) + _dot("bhtk,bhk->bht", read, total)
    faded = reached[:, :, -1] if wide is None else jnp.where(reached[:, :, -1], jnp.exp(jnp.sum(wide, axis=2)), 0)
    state = faded[..., None] * state + _dot("bhuk,bhuv->bhkv", kept, v)
    total = faded * total + jnp.sum(kept, axis=2)
    return (state, total, run[:, -1]), (out, weight)


def _chunks(x: Array, size: int) -> Array:
    """[B, N, H, ...] -> [chunk, B, H, size, ...], the last chunk filled up with zeros."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)])
    x = jnp.reshape(x, (x.shape[0], -1, size, *x.shape[2:]))
    return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 2, 3) if x.ndim > 3 else jnp.moveaxis(x, 1, 0)


def _tokens(x: Array, count: int) -> Array:
    """[chunk, B, H, C, ...] -> [B, N, H, ...]"""
    x = jnp.moveaxis(jnp.moveaxis(x, 3, 2), 0, 1)
    return jnp.reshape(x, (x.shape[0], -1, *x.shape[3:]))[:, :count]


def _sums(
    q: Array, k: Array, v: Array, g: Array | None, run: Array, before: tuple[Array, Array] | None = None
) -> tuple[Array, Array, Array, Array]:
    """q_t S_t [B, N, H, V], q_t z_t [B, N, H] and the last state and z, from the first token to the last.

    q, k: [B, N, H, K]   v: [B, N, H, V]   g: none, [B, N, H] or [B, N, H, K]   run: int [B, N], 0 for what continues
    from `before`, a state [B, H, K, V] and z [B, H, K]
    """
    count = q.shape[1]
    size = min(CHUNK, -(-count // BLOCK) * BLOCK)
    run = jnp.pad(run, ((0, 0), (0, -count % size)), mode="edge")
    parts = [_chunks(x, size) for x in (q, k, v)] + [_chunks(run, size)]
    parts += [] if g is None else [_chunks(g, size)]
    state = jnp.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]), v.dtype)
    start = (state, jnp.zeros(state.shape[:3], v.dtype), run[:, 0])
    if before is not None:
        start = (*before, jnp.zeros_like(run[:, 0]))
    (state, total, _), (out, weight) = lax.scan(jax.checkpoint(_chunk), start, tuple(parts))
    return _tokens(out, count), _tokens(weight, count), state, total


def _step(q: Array, k: Array, v: Array, g: Array | None, run: Array, before: tuple[Array, Array]) -> tuple[Array, ...]:
    """`_sums` of one token: one update of the state, nothing else of its size."""
    q, k, v = (x[:, 0] for x in (q, k, v))
    same = (run[:, 0] == 0)[:, None, None]
    fades = jnp.where(same, 1.0 if g is None else jnp.exp(g[:, 0] if g.ndim == 4 else g[:, 0, :, None]), 0)
    state = fades[..., None] * before[0] + k[..., None] * v[:, :, None, :]
    total = fades * before[1] + k
    out = _dot("bhk,bhkv->bhv", q, state)
    return out[:, None], jnp.sum(q * total, axis=-1)[:, None], state, total


def _plain(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Every query over all keys: the state is one sum.   q: [B, N, H, K]   k: [B, M, H, K]   v: [B, M, H, V]"""
    state = _dot("bmhk,bmhv->bhkv", k, v)
    return _dot("bnhk,bhkv->bnhv", q, state), _dot("bnhk,bhk->bnh", q, jnp.sum(k, axis=1)), state


def _both(q: Array, k: Array, v: Array, run: Array) -> tuple[Array, Array, Array]:
    """Every token over its run: up to itself, plus from itself on, less itself."""
    out, weight, state, _ = _sums(q, k, v, None, run)
    back, again, *_ = _sums(q[:, ::-1], k[:, ::-1], v[:, ::-1], None, run[:, ::-1])
    itself = jnp.sum(q * k, axis=-1)
    return out + back[:, ::-1] - itself[..., None] * v, weight + again[:, ::-1] - itself, state


def _run(op: Recurrence, real: Any, q: Array, k: Array, v: Array, *rest: Array) -> tuple[Array, ...]:
    groups = q.shape[2] // k.shape[2]
    q, k, v = (x.astype(real) for x in (q, jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)))
    g = rest[0].astype(real) if op.decay != "none" else None
    if g is not None and op.decay == "head":
        g = jnp.broadcast_to(g, q.shape[:3])
    run = jnp.zeros(q.shape[:2], jnp.int32)
    if op.segmented:
        segment = rest[op.decay != "none"]
        first = (rest[-1] if op.initial else segment[:, 0])[:, None]
        starts = segment != jnp.concatenate([first, segment[:, :-1]], axis=1)
        run = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    if op.direction == "both":
        out, weight, state = _both(q, k, v, run) if op.segmented else _plain(q, k, v)
    elif op.direction == "reverse":
        turned = None if g is None else g[:, ::-1]
        out, weight, state, _ = _sums(q[:, ::-1], k[:, ::-1], v[:, ::-1], turned, run[:, ::-1])
        out, weight = out[:, ::-1], weight[:, ::-1]
    else:
        before = _before(op, real, rest[(op.decay != "none") + op.segmented :]) if op.initial else None
        if before is not None and q.shape[1] == 1:
            out, weight, state, total = _step(q, k, v, g, run, before)
        else:
            out, weight, state, total = _sums(q, k, v, g, run, before)
    if op.initial and op.normalized:
        return _scaled(op, out, weight), state, total
    return _scaled(op, out, weight), state


def _scaled(op: Recurrence, out: Array, weight: Array) -> Array:
    out = op.scale * out
    return out / (op.scale * weight + op.eps)[..., None] if op.normalized else out


def _before(op: Recurrence, real: Any, given: tuple[Array, ...]) -> tuple[Array, Array]:
    """The state and z that tokens before have left."""
    state = given[0].astype(real)
    return state, given[1].astype(real) if op.normalized else jnp.zeros(state.shape[:3], real)


def _build(eqn: Eqn, target: Target) -> Callable[..., tuple[Array, ...]]:
    op = eqn.op
    assert isinstance(op, Recurrence)
    real, dtypes = real_of(eqn), [DTYPES[v.type.dtype] for v in eqn.outs]

    def call(*operands: Array) -> tuple[Array, ...]:
        results = _run(op, real, *operands)
        return tuple(x.astype(d) for x, d in zip(results, dtypes, strict=True))

    return call


RECURRENCE = Kernel(name="xla", op=Recurrence, refuse=serve, build=_build)
