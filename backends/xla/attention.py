"""Attention and its separate steps as jnp: grouped products, masks as small as their formulas, float32 softmax.

B batch, N queries, M keys, H query heads, G key/value heads, R = H / G, D head size. Keys and values are never
repeated for their group. Formulas are computed along the axes they depend on: a padding mask is [B, 1, 1, M],
a causal one [1, 1, N, M].
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Kernel, Late, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.backends.xla.blocks import Blocks
from tfc.backends.xla.dropout import dropped
from tfc.backends.xla.formula import Reader
from tfc.formula.expr import Const, Expr, Load, Read, Token, Var, walk
from tfc.formula.guard import SEEN, guarded
from tfc.formula.ranges import ranges
from tfc.ir.ops import ROW, Attention, Masked, Mix, Op, P, S, Score, Scores, Weigh, follows_mask
from tfc.ir.program import Eqn

__all__ = ["KERNEL", "KERNELS", "log_sum_exp"]

Array = jax.Array
Call = Callable[..., tuple[Array, ...]]
Exponents = Callable[[Array], tuple[Array, Array, Array]]
Shape = tuple[int, int, int, int]
EVERYTHING = Const(True)


def reader(shape: Shape, captured: tuple[Array, ...], real: Any) -> Callable[..., Array]:
    """What a formula is on scores of shape [B, H, N, M]; extra leaves are given with it.

    Each index that it reduces over has an axis of its own, after the four of the scores.
    """
    b, h, n, m = shape
    leaves: dict[Expr, Array] = {
        Token("q"): (jnp.arange(n, dtype=jnp.int32) + (m - n))[None, None, :, None],
        Token("k"): jnp.arange(m, dtype=jnp.int32)[None, None, None, :],
    }

    def read(formula: Expr, extra: Mapping[Expr, Array] | None = None) -> Array:
        sizes = ranges(formula, [x.shape for x in captured])
        axes = {"#b": (0, b), "h": (1, h), "#n": (2, n), "#m": (3, m)}
        axes |= {name: (4 + i, size) for i, (name, size) in enumerate(sizes.items())}
        wide = [1] * len(sizes)
        known = {leaf: jnp.reshape(x, (*x.shape, *wide)) for leaf, x in {**leaves, **(extra or {})}.items()}
        reader = Reader(real=real, leaves=known, operands=captured, axes=axes, tokens={"q": 2, "k": 3})
        values = reader(formula)
        return jnp.reshape(values, values.shape[:4])

    return read


def row_statistics(formula: Expr, s: Array) -> dict[Expr, Array]:
    """The statistics of each row that the formula reads, over the keys whose score is not -inf; 0 where there are none.

    s: [B, H, N, M]   -> [B, H, N, 1], the rank [B, H, N, M]
    """
    read = {node.name for node in walk(formula) if isinstance(node, Var) and node.name in ROW}
    if not read:
        return {}
    seen = ~jnp.isneginf(s)
    count = jnp.sum(seen, axis=-1, keepdims=True, dtype=jnp.int32)
    finite = jnp.where(seen, s, 0)
    made: dict[str, Array] = {"row.count": count}
    if "row.rank" in read:
        order = jnp.argsort(jnp.where(seen, -s, jnp.inf), axis=-1, stable=True)
        made["row.rank"] = jnp.where(seen, jnp.argsort(order, axis=-1), 0).astype(jnp.int32)
    if "row.max" in read:
        largest = jnp.max(s, axis=-1, keepdims=True, initial=-jnp.inf)
        made["row.max"] = jnp.where(count > 0, largest, 0)
    if read & {"row.mean", "row.deviation"}:
        made["row.mean"] = mean = jnp.sum(finite, axis=-1, keepdims=True) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.where(seen, finite - mean, 0) ** 2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
        varies = squares > 0  # a root has no slope at 0
        made["row.deviation"] = jnp.where(varies, jnp.sqrt(jnp.where(varies, squares, 1)), 0)
    if "row.lse" in read:
        made["row.lse"] = jnp.where(count > 0, exponentials(s)[2][..., None], 0)
    return {Var(name, kind): made[name] for name, kind in ROW.items() if name in read}


def grouped_scores(q: Array, k: Array | Blocks, scale: float, real: Any) -> Array:
    """scale * q k^T.   q: [B, N, H, D]   k: [B, M, G, D]   -> [B, H, N, M]

    Queries are brought into the order of the scores beforehand, so that no N x M array is transposed.
    """
    b, n, h, d = q.shape
    m, g = k.shape[1:3]
    exact = "highest" if q.dtype.itemsize > 2 else None
    rows = jnp.reshape(jnp.transpose(q, (0, 2, 1, 3)), (b, g, h // g * n, d))
    if isinstance(k, Blocks):
        s = k.scores(rows, real)
    else:
        s = jax.lax.dot_general(rows, k, (((3,), (3,)), ((0, 1), (0, 2))), precision=exact, preferred_element_type=real)
    return jnp.reshape(s, (b, h, n, m)) * jnp.asarray(scale, real)


def grouped_mix(w: Array, v: Array | Blocks, real: Any, total: Array | None = None) -> Array:
    """Weighted sums in `real`, divided by `total` if given.

    w: [B, H, N, M], rounded to v's type   v: [B, M, G, Dv]   total: [B, H, N, 1]   -> [B, N, H, Dv]
    """
    b, h, n, m = w.shape
    g, d = v.shape[2:]
    exact = "highest" if v.dtype.itemsize > 2 else None
    w = jnp.reshape(w.astype(v.dtype), (b, g, h // g * n, m))
    if isinstance(v, Blocks):
        out = v.sums(w, real)
    else:
        out = jax.lax.dot_general(w, v, (((3,), (1,)), ((0, 1), (0, 2))), precision=exact, preferred_element_type=real)
    out = jnp.reshape(out, (b, h, n, d))
    return jnp.transpose(out if total is None else out / total, (0, 2, 1, 3))


def exponentials(s: Array) -> tuple[Array, Array, Array]:
    """exp(s - top), its sum over keys (1/2 where a row sees none), and lse.   s: [B, H, N, M], -inf where unseen

    No comparison stands between the two products of an attention: for a CPU XLA makes one loop of them, and keeps no
    N x M array. The largest score of a row that sees none is the least number; of any other, exp(s - top) is 1
    somewhere, so that a sum below 1 is 0.
    """
    least = jnp.finfo(s.dtype).min  # type: ignore[no-untyped-call]  # it is ml_dtypes', which has no types
    top = jax.lax.stop_gradient(jnp.max(s, axis=-1, keepdims=True, initial=least))
    e = jnp.exp(s - top)
    found = jnp.sum(e, axis=-1, keepdims=True)
    total = jnp.maximum(found, 0.5)
    return e, total, jnp.where(found == 0, -jnp.inf, top + jnp.log(total))[..., 0]


def compared_exponentials(s: Array) -> tuple[Array, Array, Array]:
    """The same for accelerators, with comparisons: without them XLA for GPUs computes exp(s - top) twice, for the
    product and for the sum, and keeps the scores in between: half as much memory again for gradients."""
    top = jax.lax.stop_gradient(jnp.max(s, axis=-1, keepdims=True, initial=-jnp.inf))
    empty = jnp.isneginf(top)
    top = jnp.where(empty, 0, top)
    e = jnp.exp(s - top)
    total = jnp.where(empty, 1, jnp.sum(e, axis=-1, keepdims=True))
    return e, total, jnp.where(empty, -jnp.inf, top + jnp.log(total))[..., 0]


def weights(formula: Expr, read: Callable[..., Array], s: Array, p: Array, real: Any) -> Array:
    """The weigh formula over s and p; zero where a key is not seen."""
    seen = ~jnp.isneginf(s)
    w = read(guarded(formula), {S: jnp.where(seen, s, 0), P: p, SEEN: seen, **row_statistics(formula, s)}).astype(real)
    return jnp.where(seen, w, 0)


def masked_scores(op: Attention, q: Array, k: Array | Blocks, read: Callable[..., Array], real: Any) -> Array:
    s = grouped_scores(q, k, op.scale, real)
    late = follows_mask(op.score)
    if op.score != S and not late:
        s = jnp.broadcast_to(read(op.score, {S: s}), s.shape).astype(real)
    if op.mask != EVERYTHING:
        # a sum for the reason that `exponentials` has: scores are finite here, formulas that may not be come after
        s = s + jnp.where(read(op.mask), 0, -jnp.inf).astype(real)
    return scored(op.score, read, s).astype(real) if late else s


def scored(formula: Expr, read: Callable[..., Array], s: Array) -> Array:
    """The score formula over s, which stays -inf where it is."""
    seen = ~jnp.isneginf(s)
    made = read(guarded(formula), {S: jnp.where(seen, s, 0), SEEN: seen, **row_statistics(formula, s)})
    return jnp.where(seen, made, -jnp.inf)


def attend(
    op: Attention, real: Any, q: Array, k: Any, v: Any, *captured: Array, exponents: Exponents = exponentials
) -> tuple[Array, Array]:
    """out [B, N, H, Dv] in `real`, lse [B, H, N]. k, v: arrays, or `Late` ones, which are read block by block."""
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    read = reader(shape, captured, real)
    if any(isinstance(node, Load | Read) for node in walk(op.mask)):
        # a key beyond a length that is known at run time only may hold anything, and reaches nothing
        mask = read(op.mask)
        used = jnp.any(jnp.broadcast_to(mask, (*mask.shape[:3], shape[3])), axis=(1, 2))
        k, v = (_seen(x, used) for x in (k, v))
    k, v = (Blocks(x) if isinstance(x, Late) else x for x in (k, v))
    s = masked_scores(op, q, k, read, real)
    e, total, lse = exponents(s)
    if op.weigh != P or op.dropout:
        w = e / total if op.weigh == P else weights(op.weigh, read, s, e / total, real)
        if op.dropout:
            w = dropped(op.dropout, op.site, w, *captured[-op.seeds :])
        return grouped_mix(w, v, real), lse
    return grouped_mix(e, v, real, total), lse


def _seen(x: Any, used: Array) -> Any:
    """x [B, M, ...] with 0 where `used` [B or 1, M] is not."""
    if isinstance(x, Late):
        return Blocks(x, jnp.broadcast_to(used, x.shape[:2]))
    return jnp.where(used[..., None, None], x, 0)


def log_sum_exp(op: Attention, real: Any, q: Array, k: Any, *captured: Array) -> Array:
    """lse [B, H, N] alone."""
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    k = Blocks(k) if isinstance(k, Late) else k
    return exponentials(masked_scores(op, q, k, reader(shape, captured, real), real))[2]


def _attention(eqn: Eqn, op: Attention, target: Target) -> Call:
    out, lse = (DTYPES[v.type.dtype] for v in eqn.outs)
    exponents = exponentials if target.platform == "cpu" else compared_exponentials

    def call(*operands: Array) -> tuple[Array, ...]:
        y, log_sum = attend(op, real_of(eqn), *operands, exponents=exponents)
        return y.astype(out), log_sum.astype(lse)

    return call


def _scores(eqn: Eqn, op: Scores) -> Call:
    return lambda q, k: (grouped_scores(q, k, op.scale, real_of(eqn)),)


def _score(eqn: Eqn, op: Score) -> Call:
    def call(s: Array, *captured: Array) -> tuple[Array, ...]:
        b, h, n, m = s.shape
        read = reader((b, h, n, m), captured, real_of(eqn))
        return (scored(op.formula, read, s).astype(s.dtype),)

    return call


def _masked(eqn: Eqn, op: Masked) -> Call:
    def call(s: Array, *captured: Array) -> tuple[Array, ...]:
        b, h, n, m = s.shape
        return (jnp.where(reader((b, h, n, m), captured, real_of(eqn))(op.formula), s, -jnp.inf),)

    return call


def _weigh(eqn: Eqn, op: Weigh) -> Call:
    def call(s: Array, *captured: Array) -> tuple[Array, ...]:
        b, h, n, m = s.shape
        e, total, lse = exponentials(s)
        read = reader((b, h, n, m), captured, real_of(eqn))
        return (e / total if op.formula == P else weights(op.formula, read, s, e / total, s.dtype)), lse

    return call


def _mix(eqn: Eqn, op: Mix) -> Call:
    return lambda w, v: (grouped_mix(w, v, real_of(eqn)).astype(v.dtype),)


_FORMS: Mapping[type[Op], Callable[[Eqn, Any], Call]] = {
    Scores: _scores,
    Score: _score,
    Masked: _masked,
    Weigh: _weigh,
    Mix: _mix,
}


def _build(eqn: Eqn, target: Target) -> Call:
    if isinstance(eqn.op, Attention):
        return _attention(eqn, eqn.op, target)
    return _FORMS[type(eqn.op)](eqn, eqn.op)


_SERVED: tuple[type[Op], ...] = (Attention, *_FORMS)

KERNELS: Mapping[type[Op], Kernel] = {
    op: Kernel(name="xla", op=op, refuse=serve, build=_build, late=frozenset([1, 2] if op is Attention else ()))
    for op in _SERVED
}
KERNEL = KERNELS[Attention]
