"""An attention equation of few queries over many keys turned into a call of the decoding kernel, and its parts summed.

Time is the bytes of keys and values over the bandwidth, where all multiprocessors ask for them at once: the keys of a
row are dealt out to as many blocks as fill the device.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.bounds import visited_tiles
from tfc.backends.kernel import DTYPES, Kernel, Late, Target
from tfc.backends.pallas_gpu import tuned
from tfc.backends.pallas_gpu.attention import of_size, padded, up
from tfc.backends.pallas_gpu.cached import launch, merge
from tfc.backends.pallas_gpu.decode_plan import BITS, CROWDED, Plan, shared_bytes
from tfc.backends.pallas_gpu.refusals import of_device, of_dropout, of_formulas, of_types
from tfc.backends.pallas_gpu.streaming import ROWS, Config
from tfc.backends.refusal import Change, Reason, first, resized
from tfc.formula.expr import Load, Read
from tfc.ir.ops import Attention, P
from tfc.ir.program import Eqn

__all__ = ["KERNEL", "build", "call", "config_for", "reasons", "refuse", "resident", "splits_for"]

Array = jax.Array

SMS = 132
"""Multiprocessors of a Hopper GPU, where a target does not say."""


SHARED_MEMORY = 228 * 1024
"""Bytes of a Hopper multiprocessor."""


def config_for(head_dim: int, rows: int = 8, kept: bool = False) -> Config:
    """Block sizes by head size, rows of queries and whether keys have 8 bits: 64 keys or, of small heads, 128 a tile,
    and as long a ring as memory has for it.

    On its way to a multiprocessor must be what the full bandwidth brings in a microsecond, 36 KB of 4.8 TB/s.
    """
    return _config(head_dim, rows, kept, resident(head_dim, rows, kept))


def _config(head_dim: int, rows: int, kept: bool, blocks: int) -> Config:
    made = Config(consumers=1, block_k=64 if head_dim > 64 else 128, stages=6)
    while made.stages > 1 and shared_bytes(made, head_dim, rows, kept) * blocks > SHARED_MEMORY:
        made = replace(made, stages=made.stages - 1)
    return made


def resident(head_dim: int, rows: int = 8, kept: bool = False) -> int:
    """Blocks that share a multiprocessor: while one computes others wait. Two, three of those that widen keys, where
    their rings hold two tiles."""
    ways = (3, 2) if kept else (2,)
    return next((n for n in ways if _config(head_dim, rows, kept, n).stages > 1), 1)


def splits_for(rows: int, tiles: int, slots: int) -> int:
    """How many parts the key tiles of each of `rows` (batch row, key/value head) are dealt out to.

    slots: blocks that the device runs at a time. Taken is what ends first, if a block takes as long as the tiles that
    it visits and two more, for its start, its end and its share of the sum; of equals the least.
    """

    def time(splits: int) -> int:
        return -(-rows * splits // slots) * (-(-tiles // splits) + 2)

    return min(range(1, min(tiles, slots) + 1), key=time, default=1)


def reasons(eqn: Eqn, target: Target) -> Iterator[Reason]:
    """Why this kernel cannot serve `eqn` on `target`: nothing when it can."""
    op = eqn.op
    assert isinstance(op, Attention)
    (_, n, heads, head_dim), (_, m, kv_heads, _) = eqn.args[0].type.ints, eqn.args[1].type.ints
    v, group = eqn.args[2].type, heads // kv_heads
    yield from of_device(target)
    most = ROWS if head_dim <= 192 else CROWDED
    if n * group > most:
        few = most // group
        change = Change(words=f"at most {few} tokens a call", types=resized(eqn, "q", few)) if few else None
        text = f"packs {most} rows, and {n} queries of {group} heads that share keys are more"
        yield Reason("rows", text, change)
    if n >= m:
        # no cache: a short sequence as it is trained on, one tile, for which the other kernel has gradients
        change = Change(words=f"a cache of more than {n} tokens", types=resized(eqn, "k", n + 1))
        text = f"is for few queries over many keys, and {n} queries over {m} keys have nothing to split"
        yield Reason("few keys", text, change)
    yield from of_types(eqn)
    if head_dim % 16 or not 0 < head_dim <= 256:
        text = f"head size {head_dim} is no multiple of 16 up to 256"
        yield Reason("head size", text, of_size(eqn, head_dim))
    if v.last != head_dim:
        change = Change(words=f"values of size {head_dim}", types={2: v.with_last(head_dim)})
        yield Reason("value size", f"values of size {v.last} differ from the head size {head_dim}", change)
    yield from of_dropout(op)
    if op.weigh != P:
        yield Reason("weigh", f"weighs by the softmax alone, not by `{op.weigh}`")
    yield from of_formulas(eqn, "score", "mask")


def refuse(eqn: Eqn, target: Target) -> str | None:
    """The first reason why this kernel cannot serve `eqn` on `target`, or None when it can."""
    return first(reasons(eqn, target))


def packed(q: Array, plan: Plan) -> Array:
    """[B, N, H, D] as [B, G, rows, D]: row n * group + r is query n of head r of the group; zeros below. Where tiles
    are shared (`Plan.shared`), as it lies: [B, H / 8, 8, D]."""
    b, n, heads, d = q.shape
    if plan.shared:
        return jnp.reshape(q, (b, heads // 8, 8, d))
    x = jnp.reshape(q, (b, n, plan.kv_heads, plan.group, d))
    x = jnp.reshape(jnp.swapaxes(x, 1, 2), (b, plan.kv_heads, n * plan.group, d))
    return padded(x, 2, plan.rows)


def unpacked(x: Array, plan: Plan) -> Array:
    """[B, G, rows, ...] as [B, N, H, ...]."""
    b, g, _, *rest = x.shape
    if plan.shared:  # each group's own rows of the eight
        own = np.arange(plan.heads).reshape(1, g, plan.group, *(1 for _ in rest)) % 8
        x = jnp.take_along_axis(x, own, axis=2)
    x = jnp.reshape(x[:, :, : plan.n * plan.group], (b, g, plan.n, plan.group, *rest))
    return jnp.reshape(jnp.swapaxes(x, 1, 2), (b, plan.n, plan.heads, *rest))


def bits(tiles: Any, plan: Plan) -> Any:
    """Visited key tiles as the kernel reads them: int32 [Br, Gr, words, splits].

    tiles: int32 [Br, Hr, 1, tiles], 0 where never visited. A tile that a head of a group visits, all of it visit. Of
    numpy arrays a numpy array: what is known when the call is traced costs nothing when it runs. Else one sum.
    """
    xp: Any = np if isinstance(tiles, np.ndarray) else jnp
    seen = tiles[:, :, 0] > 0
    if seen.shape[1] > 1:
        seen = seen.reshape(seen.shape[0], plan.kv_heads, plan.group, -1).any(axis=2)
    whole = plan.words * BITS * plan.splits
    seen = xp.pad(seen, [(0, 0), (0, 0), (0, whole - plan.key_tiles)])
    seen = seen.reshape(*seen.shape[:2], plan.words, BITS, plan.splits)
    own = (1 << np.arange(BITS, dtype=np.int32)) + (1 << BITS)  # its bit, and one more
    return xp.where(seen, own[:, None], 0).sum(axis=3, dtype=np.int32)


def operands(captured: Sequence[Array], plan: Plan) -> tuple[Array, ...]:
    """Captured arrays as the kernel reads them: int32 or float32; those of queries and heads a value for each row."""
    rows, keys = plan.row_slots(), {n.slot for n in plan.nodes() if isinstance(n, Load) and n.side == "k"}
    tables = {n.slot for n in plan.nodes() if isinstance(n, Read)}
    out = []
    for slot, x in enumerate(captured):
        x = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)
        if slot in rows:
            if slot in tables:
                times = 8 // plan.group if plan.shared else plan.n
                x = jnp.tile(jnp.reshape(x, (1, plan.kv_heads, plan.group)), (1, 1, times))
            else:
                x = jnp.repeat(jnp.reshape(x, (-1, 1, plan.n)), plan.group, axis=2)
            x = padded(x, 2, plan.rows)
        elif slot in keys:
            x = padded(x, -1, up(plan.m, plan.config.block_k))
        out.append(x)
    return tuple(out)


def total(lse: Array) -> Array:
    """The parts' log-sum-exps as one, [B, G, splits, rows] -> [B, G, rows]: unread, as mostly, it costs nothing."""
    top = jnp.max(lse, axis=2)
    base = jnp.where(jnp.isneginf(top), 0, top)
    return base + jnp.log(jnp.sum(jnp.exp(lse - base[:, :, None]), axis=2))


def call(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    """The plan as a function of (q, k, v, visits, *captured, *more), lengths and types as the equation has them; k and
    v are `Late` where the plan says that they are rows of stacks. visits: of `bits`.

    more, where the plan has them: the table of pages, int32 [B, m / page], for k and v [P, page, G, D]; the scales of
    k and of v, float32 [B, G, M] or [P, G, page], rows of stacks where k and v are.
    """
    kernel, sum_, extra = launch(plan), merge(plan), (plan.page > 0) + 2 * (plan.kept is not None)

    def attention(q: Array, k: Any, v: Any, visits: Any, *captured: Any) -> tuple[Array, Array]:
        captured, more = captured[: len(captured) - extra], captured[len(captured) - extra :]
        pages, scales = more[: extra % 2], list(more[extra % 2 :])
        row: tuple[Array, ...] = ()
        if plan.stacked:
            row = (jnp.reshape(k.index, 1).astype(jnp.int32),)
            k, v, *scales = (jnp.reshape(x.x, (-1, *x.x.shape[2:])) for x in (k, v, *scales))
        k, v = (padded(x, 1, up(x.shape[1], 8)) for x in (k, v))
        scales = [padded(x, 2, up(x.shape[2], plan.config.block_k)) for x in scales]
        given = (jnp.asarray(visits), *operands(captured, plan), *row, *pages, *scales)
        out, lse = kernel(packed(q, plan), k, v, *given)
        if plan.splits > 1:
            out = sum_(out, lse)
        if plan.splits > 1 and plan.placed:
            out = jnp.reshape(out, (plan.batch, plan.n, plan.heads, plan.head_dim))
        else:
            out = unpacked(jnp.reshape(out, (plan.batch, plan.kv_heads, plan.rows, plan.head_dim)), plan)
        return out, jnp.swapaxes(unpacked(total(lse), plan), 1, 2)

    return attention


def plan_of(eqn: Eqn, target: Target, kept: Any = None) -> Plan:
    """The plan of an equation whose shapes are bound, by measured block sizes, where a table has them, or by rule.
    kept: of `Plan`."""
    op, (q, k, _, *_) = eqn.op, (a.type for a in eqn.args)
    assert isinstance(op, Attention)
    (batch, n, heads, head_dim), (_, m, kv_heads, _) = q.ints, k.ints
    found = dict(tuned.fields("decode", eqn, target)) if kept is None else {}
    splits = found.pop("splits", 0)
    sizes = head_dim, up(n * (heads // kv_heads), 8), kept is not None
    config = replace(config_for(*sizes), **found)
    slots = (target.sms or SMS) * resident(*sizes)
    return Plan(
        config=config,
        batch=batch,
        n=n,
        m=m,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=DTYPES[q.dtype],
        scale=op.scale,
        score=op.score,
        mask=op.mask,
        interpret=target.interpret,
        kept=kept,
        splits=splits or splits_for(batch * kv_heads, -(-m // config.block_k), slots),
    )


def build(eqn: Eqn, target: Target, plan: Plan | None = None) -> Callable[..., tuple[Array, Array]]:
    """The equation as a function of q, k, v and the captured arrays that gives (out, lse). plan: another than
    `plan_of`'s."""
    op, (batch, n, heads, _) = eqn.op, eqn.args[0].type.ints
    assert isinstance(op, Attention)
    if batch * n == 0:  # nobody to see anything
        return lambda q, *_: (jnp.zeros_like(q), jnp.full((batch, heads, n), -jnp.inf, jnp.float32))
    plan = plan or plan_of(eqn, target)
    sizes = dict(n=n, m=plan.m, block_q=n, block_k=plan.config.block_k, batch=batch, heads=heads)

    def attention(q: Array, k: Any, v: Any, *captured: Array) -> tuple[Array, Array]:
        stacked = plan.m % 8 == 0 and all(isinstance(x, Late) and _whole(x) for x in (k, v))
        if not stacked:
            k, v = (x.array() if isinstance(x, Late) else x for x in (k, v))
        kernel = _called(replace(plan, stacked=stacked))
        return kernel(q, k, v, bits(visited_tiles(op.mask, captured, **sizes), plan), *captured)

    return attention


def _whole(x: Late) -> bool:
    """Whether it is a row of a stack in the stack's own type."""
    return x.index is not None and x.x.dtype == x.dtype


def _called(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    """The plan's function. Layers that are written out share one, so that their kernel is lowered once."""
    return call(plan) if plan.interpret else _jitted(plan)


@lru_cache(maxsize=256)
def _jitted(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    return jax.jit(call(plan))


def notes(eqn: Eqn, target: Target) -> dict[str, Any]:
    """Block sizes, for reports."""
    plan = plan_of(eqn, target)
    return {"splits": plan.splits, "block_k": plan.config.block_k, "stages": plan.config.stages}


KERNEL = Kernel(
    name="pallas_gpu",
    op=Attention,
    refuse=refuse,
    build=build,
    differentiable=False,
    notes=notes,
    reasons=reasons,
    late=frozenset([1, 2]),
)
