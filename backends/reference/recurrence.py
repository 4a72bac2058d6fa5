"""The linear recurrence token by token, as its definition reads."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from tfc.ir.ops import Recurrence

__all__ = ["recurrence"]

Array = jax.Array


def recurrence(op: Recurrence, real: Any, q: Array, k: Array, v: Array, *rest: Array) -> tuple[Array, ...]:
    """S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t,   out_t = scale q_t S_t / (normalized: scale q_t z_t + eps).

    q: [B, N, H, K]   k: [B, M, G, K]   v: [B, M, G, V]   rest: log decay, segments; initially the
    state, z, the last segment   -> [B, N, H, V], [B, H, K, V], with an initial z the last one [B, H, K]
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    decay = rest[0] if op.decay != "none" else None
    segment = rest[op.decay != "none"] if op.segmented else None
    if op.direction == "both":
        return _whole(op, q, k, v, segment)
    shape = (*q.shape[:3], q.shape[3])
    match op.decay, decay:
        case "head", Array() as g:
            decay = g[None, None, :, None]
        case "token", Array() as g:
            decay = g[..., None]
    factor = jnp.ones(shape, real) if decay is None else jnp.broadcast_to(jnp.exp(decay), shape)
    runs = jnp.zeros(q.shape[:2], jnp.int32) if segment is None else segment
    tokens = [q, k, v, factor, runs]
    if op.direction == "reverse":
        tokens = [x[:, ::-1] for x in tokens]
    if op.initial:
        return _continued(op, tokens, rest[(op.decay != "none") + op.segmented :])
    out, state, _ = _steps(op, *tokens, *_nothing(q, v, tokens[-1][:, 0]))
    return (out[:, ::-1] if op.direction == "reverse" else out), state


def _nothing(q: Array, v: Array, run: Array) -> tuple[Array, Array, Array]:
    """The state, z and run before the first token."""
    batch, _, heads, keys = q.shape
    return jnp.zeros((batch, heads, keys, v.shape[3]), v.dtype), jnp.zeros((batch, heads, keys), v.dtype), run


def _continued(op: Recurrence, tokens: list[Array], before: tuple[Array, ...]) -> tuple[Array, ...]:
    state, *others = before
    _, total, run = _nothing(tokens[0], tokens[2], tokens[-1][:, 0])
    total = others[0] if op.normalized else total
    out, state, total = _steps(op, *tokens, state, total, others[-1] if op.segmented else run)
    return (out, state, total) if op.normalized else (out, state)


@partial(jax.jit, static_argnums=0)  # compiled once, however often a program is evaluated
def _steps(
    op: Recurrence, q: Array, k: Array, v: Array, factor: Array, runs: Array, state: Array, total: Array, run: Array
) -> tuple[Array, Array, Array]:
    """One token after another, from a state, z and run; the state is zero where another run starts."""

    def step(carry: tuple[Array, Array, Array], token: tuple[Array, ...]) -> tuple[tuple[Array, Array, Array], Array]:
        state, total, before = carry
        q, k, v, factor, run = token
        same = (run == before)[:, None, None]
        state = factor[..., None] * jnp.where(same[..., None], state, 0) + k[..., :, None] * v[..., None, :]
        total = factor * jnp.where(same, total, 0) + k
        out = op.scale * jnp.einsum("bhk,bhkv->bhv", q, state, precision="highest")
        if op.normalized:
            out = out / (op.scale * jnp.sum(q * total, axis=-1, keepdims=True) + op.eps)
        return (state, total, run), out

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, factor, runs))
    (state, total, _), out = jax.lax.scan(step, (state, total, run), tokens)
    return jnp.moveaxis(out, 0, 1), state, total


def _whole(op: Recurrence, q: Array, k: Array, v: Array, segment: Array | None) -> tuple[Array, Array]:
    """Every token reads all of its run; the state is that of the last run."""
    same = jnp.ones((k.shape[0], q.shape[1], k.shape[1]), bool)
    if segment is not None:
        run = jnp.cumsum(jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0))), axis=1)
        same = run[:, :, None] == run[:, None, :]
    pairs = jnp.where(same[:, None], jnp.einsum("bnhk,bmhk->bhnm", q, k, precision="highest"), 0)
    out = op.scale * jnp.einsum("bhnm,bmhv->bnhv", pairs, v, precision="highest")
    if op.normalized:
        out = out / (op.scale * jnp.moveaxis(jnp.sum(pairs, axis=-1), 1, 2)[..., None] + op.eps)
    last = jnp.where(same[:, -1][:, :, None, None], k, 0)
    return out, jnp.einsum("bmhk,bmhv->bhkv", last, v, precision="highest")
