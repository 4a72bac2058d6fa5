"""Packed query rows and a part of the keys turned into a partial output: the body of the Hopper kernel for decoding.

Few queries meet many keys: time is what the keys and values take to arrive (arXiv:1911.02150), and one tile of 64
rows holds the queries of all heads that share them, so that they arrive once. The keys are dealt out to several
blocks (arXiv:2311.01282): tile t goes to part t % splits, so that a window, wherever it lies, is shared by all. Each
part gives its own softmax's output and log-sum-exp, and a second kernel puts them together.

A block is one warpgroup. It asks for the tile that comes `stages` visits later as soon as it has read one, and waits
for its own products: two blocks or more on a multiprocessor compute while the others wait.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from tfc.backends.formula import LOG2E, Placed
from tfc.backends.pallas_gpu import streaming
from tfc.backends.pallas_gpu.mma import mma, product
from tfc.backends.pallas_gpu.streaming import COLUMN, ROW, ROWS, H
from tfc.compat import mosaic_interpreter, mosaic_load
from tfc.formula.expr import Const, Kind, Load, Read, Token

__all__ = ["BITS", "Plan", "launch", "merge"]

Array = jax.Array

BITS = 24
"""Places in a word of the visits; above them the word says how many of its places are visited."""

LANES = 128
"""Threads of a block, and elements that a block of the second kernel makes."""

AT_ONCE = 8
"""Parts whose loads the second kernel has under way together."""

WIDENED = 32
"""Keys of 8 bits that a block widens at a time: each round ends at a barrier, and more take more registers."""

YES = Const(True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(streaming.Plan):
    """The same, and into how many parts the keys are dealt out. Of `config` one warpgroup is used.

    page: where it is not 0, keys and values are pages of this many tokens, a multiple of block_k, in any order:
    [P, page, G, D]; a table says which page holds which tokens. m is then the tokens that the table reaches.
    pool: P of a row of stacks.
    kept: the type of keys and values where they have 8 bits, int8 or float8_e4m3fn; each has a scale for every token
    and head, x = kept * scale.
    """

    splits: int = 1
    page: int = 0
    pool: int = 0
    kept: Any = None

    @property
    def group(self) -> int:
        """Query heads that share keys and values."""
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Rows of a tile in global memory: those that are used, up to a multiple of the copy engine's 8."""
        return -(-self.n * self.group // 8) * 8

    @property
    def shared(self) -> bool:
        """Whether a tile holds eight heads as they lie in memory, of which one group is the block's own: so that the
        queries need no copy that pads each group to 8 rows. Parts alone are stored so; what they add up to is not."""
        return self.n == 1 and self.splits > 1 and self.placed and 8 % self.group == 0 and self.heads % 8 == 0

    @property
    def places(self) -> int:
        """Key tiles that a part has at most."""
        return -(-self.key_tiles // self.splits)

    @property
    def key_tiles(self) -> int:
        return -(-self.m // self.config.block_k)

    @property
    def words(self) -> int:
        return -(-self.places // BITS)

    @property
    def masked(self) -> bool:
        """Whether any score can be left out of a visited tile."""
        return self.mask != YES or self.m % self.config.block_k != 0

    @property
    def chunks(self) -> int:
        """Blocks of the second kernel that make a query's output of one group, where they are a whole number."""
        return self.group * self.head_dim // LANES

    @property
    def placed(self) -> bool:
        return self.group * self.head_dim % LANES == 0

    def row_slots(self) -> frozenset[int]:
        """Slots that have one value for each row of the tile: tables of heads, fields of queries where there are
        several queries (of one query's fields the block reads the number itself)."""
        read = (n.slot for n in self.nodes() if isinstance(n, Read) or (isinstance(n, Load) and n.side == "q"))
        tables = {n.slot for n in self.nodes() if isinstance(n, Read)}
        return frozenset(slot for slot in read if self.n > 1 or slot in tables)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """References: arrays in global memory, buffers and barriers in shared memory."""

    q: Any
    k: Any
    v: Any
    visits: Any
    captured: tuple[Any, ...]
    row: Any
    pages: Any
    scales: tuple[Any, ...]
    out: Any
    lse: Any
    q_tile: Any
    k_ring: Any
    v_ring: Any
    out_tile: Any
    lse_tile: Any
    q_ready: Any
    k_ready: Any
    v_ready: Any
    k_scales: Any = None
    v_scales: Any = None
    wide: Any = None
    staging: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """This block's place: a batch row, a head of the keys, a part of their tiles."""

    batch: Any
    kv_head: Any
    part: Any


class Rows(streaming.Rows):
    """The formulas, read for packed rows: row r is query r // group of head r % group of the group, also where eight
    rows are the heads of several groups, of which the block's own begin at a multiple of `group`."""

    def __init__(self, plan: Plan, here: Part, captured: tuple[Any, ...]) -> None:
        asked: Any = here  # of the visits, the batch row
        self.plan, self.visits, self.captured, self.here = plan, asked, captured, here
        row = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=ROW)
        self.leaves: dict[Any, Placed] = {}
        for node in plan.nodes():
            if node == H:
                self.leaves[node] = Placed(row % plan.group + here.kv_head * plan.group, (0,))
            match node:
                case Token("q"):
                    query = row // plan.group if plan.n > 1 else jnp.zeros_like(row)
                    self.leaves[node] = Placed(query + (plan.m - plan.n), (0,))
                case Load(slot, "q", kind) | Read(slot, _, kind):
                    value = self.of_rows(slot) if slot in plan.row_slots() else self.of_query(slot)
                    if kind is Kind.BOOL:
                        value = Placed(value.value != 0, value.axes)
                    self.leaves[node] = value

    def of_rows(self, slot: int) -> Placed:
        ref, here = self.captured[slot], self.here
        shared_batch, shared_head = (size == 1 for size in ref.shape[:2])
        at = (0 if shared_batch else here.batch, 0 if shared_head else here.kv_head)
        return Placed(mosaic_load(ref.at[at], ROW), (0,))

    def of_query(self, slot: int) -> Placed:
        ref = self.captured[slot]
        return Placed(mosaic_load(ref.at[self.here.batch, 0] if len(ref.shape) == 2 else ref.at[0]), ())

    def seen(self, key_tile: Any) -> Array:
        tile = self.tile(key_tile, self.plan.mask, {})
        seen = tile.spread(tile.evaluate(self.plan.mask))
        if self.plan.m % self.plan.config.block_k == 0:
            return seen
        return jnp.logical_and(seen, tile.spread(self.key_positions(key_tile)) < self.plan.m)


class Visits:
    """The key tiles of this part that are visited, as bits of words: place p is key tile p * splits + part."""

    def __init__(self, plan: Plan, mem: Memory, here: Part) -> None:
        self.plan, self.part = plan, here.part
        shared_batch, shared_head = (size == 1 for size in mem.visits.shape[:2])
        self.words = mem.visits.at[0 if shared_batch else here.batch, 0 if shared_head else here.kv_head]
        self.count = jnp.int32(0)
        for n in range(plan.words):
            self.count += lax.shift_right_logical(self.word(n * BITS), BITS)

    def word(self, place: Any) -> Array:
        return mosaic_load(self.words.at[lax.div(place, BITS), self.part])

    def next(self, place: Any, wanted: Any) -> Array:
        """The first visited place from `place` on; `place` itself where none is wanted. One that is must exist."""

        def missed(at: tuple[Any, Any]) -> Any:
            place, word = at
            return jnp.logical_and(wanted, (lax.shift_right_logical(word, lax.rem(place, BITS)) & 1) == 0)

        def onward(at: tuple[Any, Any]) -> tuple[Any, Any]:
            place, word = at
            place = jnp.where(word == 0, (lax.div(place, BITS) + 1) * BITS, place + 1)
            return place, self.word(place)

        found: Array = lax.while_loop(missed, onward, (place, self.word(place)))[0]
        return found

    def tile(self, place: Any) -> Any:
        return place * self.plan.splits + self.part


def keys_of(plan: Plan, mem: Memory, here: Part, tile: Any) -> tuple[Any, Any]:
    """Where a key tile lies: the row or page of k and v, and the first of its tokens there."""
    batch, first = here.batch, tile * plan.config.block_k
    rows = plan.batch
    if plan.page:
        batch = mosaic_load(mem.pages.at[here.batch, lax.div(first, plan.page)])
        first, rows = lax.rem(first, plan.page), plan.pool
    if mem.row is not None:
        batch = batch + mosaic_load(mem.row.at[0]) * rows
    return batch, pl.ds(first, plan.config.block_k)


def fill(plan: Plan, mem: Memory, here: Part, tile: Any, slot: Any) -> None:
    """Asks for a key tile; the slot's barriers say when it is there."""
    batch, keys = keys_of(plan, mem, here, tile)
    both = ((mem.k, mem.k_ring, mem.k_ready, mem.k_scales), (mem.v, mem.v_ring, mem.v_ready, mem.v_scales))
    for i, (x, ring, ready, scales) in enumerate(both):
        plgpu.copy_gmem_to_smem(x.at[batch, keys, here.kv_head], ring.at[slot], ready.at[slot])
        if plan.kept is not None:
            plgpu.copy_gmem_to_smem(mem.scales[i].at[batch, here.kv_head, keys], scales.at[slot], ready.at[slot])


class Arrived:
    """A key tile that the rings' slot holds, or will, as operands of products."""

    def __init__(self, plan: Plan, mem: Memory, slot: Any) -> None:
        self.plan, self.mem, self.slot = plan, mem, slot

    def keys(self) -> Any:
        plgpu.barrier_wait(self.mem.k_ready.at[self.slot])
        return self.operand(self.mem.k_ring.at[self.slot])

    def values(self) -> Any:
        plgpu.barrier_wait(self.mem.v_ready.at[self.slot])
        return self.operand(self.mem.v_ring.at[self.slot])

    def scaled(self, x: Array, scales: Any) -> Array:
        """[64, block_k] times the tokens' scales, of keys or of values: those of the ring, whose tile has arrived."""
        if self.plan.kept is None:
            return x
        return x * lax.broadcast_in_dim(mosaic_load(scales.at[self.slot], COLUMN), x.shape, (1,))

    def operand(self, ref: Any) -> Any:
        """What a product reads: the slot, or what stands in it in the plan's type, exactly."""
        if self.plan.kept is None:
            return ref
        plgpu.commit_smem()  # every warp has left what was there
        some = min(WIDENED, self.plan.config.block_k)
        for first in range(0, self.plan.config.block_k, some):
            part = pl.ds(first, some)
            x = mosaic_load(ref.at[part], narrow(self.plan.head_dim))
            if self.plan.kept != jnp.int8:  # Hopper turns floats of 8 bits into float16 alone
                x = x.astype(jnp.float16).astype(jnp.float32)
            self.mem.wide[part] = x.astype(self.plan.dtype)
        plgpu.commit_smem()
        return self.mem.wide


def narrow(columns: int) -> Any:
    """A layout of [rows, columns] in which a thread has 8 neighbours of a row: 8 bytes as int8, 16 as they are stored
    again, and a warp whole rows, so that neither way two threads meet in a bank."""
    lanes = columns // 8
    rows = 32 // lanes
    if rows == 1:
        return plgpu.Layout.TILED(plgpu.Tiling(((4, columns), (8,))), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1)
    tiling = plgpu.Tiling(((4 * rows, columns), (rows, columns), (8,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)


def attend(plan: Plan, mem: Memory, here: Part) -> None:
    """From Q to the part's output and log-sum-exp, one visited tile after another."""
    stages = plan.config.stages
    visits = Visits(plan, mem, here)

    def ask(place: Any, n: Any, slot: Any) -> Any:
        """Asks for the n-th visited tile, at or after `place`, if there is one; the place after it."""
        wanted = n < visits.count
        found = visits.next(place, wanted)
        pl.when(wanted)(lambda: fill(plan, mem, here, visits.tile(found), slot))
        return jnp.minimum(found + 1, plan.places - 1)

    # the rows below hold whatever was there: what becomes of them reaches no other row, and is not stored
    own = lax.div(here.kv_head * plan.group, 8) if plan.shared else here.kv_head
    plgpu.copy_gmem_to_smem(mem.q.at[here.batch, own], mem.q_tile.at[pl.ds(0, plan.rows)], mem.q_ready)
    ahead = jnp.int32(0)
    for n in range(stages):
        ahead = ask(ahead, n, n)
    rows = Rows(plan, here, mem.captured)
    plgpu.barrier_wait(mem.q_ready)

    def visit(n: Any, carry: Any) -> Any:
        place, ahead, out, top, total = carry
        slot = lax.rem(n, stages)
        place = visits.next(place, True)
        tile = visits.tile(place)
        arrived = Arrived(plan, mem, slot)
        raw = arrived.scaled(product(mem.q_tile, arrived.keys().T, watched=plan.interpret), mem.k_scales)
        shrink, top, total, p = rows.softmax(raw, tile, plan.masked, top, total)
        out = out * lax.broadcast_in_dim(shrink, out.shape, (0,))
        values = arrived.values()
        out = mma(out, arrived.scaled(p, mem.v_scales).astype(plan.dtype), values, mem.staging)
        plgpu.commit_smem()  # every warp has left the slot
        ahead = ask(ahead, n + stages, slot)
        return jnp.minimum(place + 1, plan.places - 1), ahead, out, top, total

    top, total = (plgpu.layout_cast(jnp.full((ROWS,), x, jnp.float32), ROW) for x in (-jnp.inf, 0.0))
    out = plgpu.layout_cast(jnp.zeros((ROWS, plan.head_dim), jnp.float32), plgpu.Layout.WGMMA)
    carry = (jnp.int32(0), ahead, out, top, total)
    _, _, out, top, total = lax.fori_loop(0, visits.count, visit, carry)
    finish(plan, mem, here, out, top, total)


def finish(plan: Plan, mem: Memory, here: Part, out: Array, top: Array, total: Array) -> None:
    """Divides by the sums and stores the rows that are used, through shared memory."""
    share = jnp.where(total == 0, 0.0, 1 / total)
    mem.out_tile[...] = (out * lax.broadcast_in_dim(share, out.shape, (0,))).astype(mem.out_tile.dtype)
    mem.lse_tile[...] = (top + plan.exponent.shift) * (1 / LOG2E) + jnp.log(total)
    plgpu.commit_smem()
    mine = (here.batch, here.kv_head, here.part)
    plgpu.copy_smem_to_gmem(mem.out_tile.at[pl.ds(0, plan.rows)], mem.out.at[mine])
    plgpu.copy_smem_to_gmem(mem.lse_tile, mem.lse.at[mine])
    plgpu.wait_smem_to_gmem(0)


def body(plan: Plan, *refs: Any, tiles: Any, **scratch: Any) -> None:
    """The kernel: references sorted, then one warpgroup's work."""
    q, k, v, visits, *captured, out, lse = refs
    scales = (captured.pop(-2), captured.pop(-1)) if plan.kept is not None else ()
    pages = captured.pop() if plan.page else None
    row = captured.pop() if plan.stacked else None
    rings, results = tiles
    arrays = dict(q=q, k=k, v=v, visits=visits, captured=tuple(captured), out=out, lse=lse)
    mem = Memory(
        **arrays,
        row=row,
        pages=pages,
        scales=scales,
        k_ring=rings[0],
        v_ring=rings[1],
        out_tile=results[0],
        lse_tile=results[1],
        **scratch,
    )
    here = Part(batch=lax.axis_index("batch"), kv_head=lax.axis_index("kv_head"), part=lax.axis_index("part"))
    attend(plan, mem, here)


def swizzled(shape: tuple[int, ...], dtype: Any) -> Any:
    """A buffer as `wgmma` and the copy engine like it: tiles of 8 rows, as wide as the longest swizzle that a row is a
    whole number of."""
    size = jnp.dtype(dtype).itemsize
    swizzle = next(s for s in (128, 64, 32) if shape[-1] * size % s == 0)
    transforms = (
        plgpu.TilingTransform((8, swizzle // size)),  # type: ignore[abstract]  # a protocol of JAX with an empty body
        plgpu.SwizzleTransform(swizzle),  # type: ignore[abstract]  # the same
    )
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def shared(plan: Plan) -> dict[str, Any]:
    """Buffers and barriers of a block. Results take the rings' place, once nothing arrives there any more."""
    config = plan.config
    shape = (config.stages, config.block_k, plan.head_dim)
    ring = swizzled(shape, plan.dtype) if plan.kept is None else plgpu.SMEM(shape, plan.kept)
    results = [swizzled((ROWS, plan.head_dim), out_dtype(plan)), plgpu.SMEM((ROWS,), jnp.float32)]
    copies = 1 if plan.kept is None else 2  # of a tile, and of its scales
    out = dict(
        q_tile=swizzled((ROWS, plan.head_dim), plan.dtype),
        tiles=plgpu.RefUnion([ring, ring], results),
        q_ready=plgpu.Barrier(),
        k_ready=plgpu.Barrier(num_arrivals=copies, num_barriers=config.stages),
        v_ready=plgpu.Barrier(num_arrivals=copies, num_barriers=config.stages),
    )
    if plan.kept is not None:
        out["wide"] = swizzled(shape[1:], plan.dtype)
        out |= {name: plgpu.SMEM(shape[:2], jnp.float32) for name in ("k_scales", "v_scales")}
    if plan.interpret:
        out["staging"] = plgpu.SMEM((ROWS, config.block_k), plan.dtype)
    return out


def out_dtype(plan: Plan) -> Any:
    """What a part gives: the result itself where it is the only one, else float32 for the sum."""
    return plan.dtype if plan.splits == 1 else jnp.float32


def compiler_params() -> Any:
    """Reductions stay within a warp, and what Mosaic would reserve for others keeps a second block from fitting."""
    semantics = plgpu.LoweringSemantics.Lane
    return plgpu.CompilerParams(approx_math=True, lowering_semantics=semantics, reduction_scratch_bytes=0)


def launch(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    """The kernel as a function of (q, k, v, visits, *captured) that gives the parts' (out, lse).

    q: [B, G, rows, D], rows packed as `Rows` says, or [B, H / 8, 8, D] where `Plan.shared`. k, v: [B, M, G, D], M a
    multiple of 8; or pages [P, page, G, D]; or rows of stacks, [S * B, ...] or [S * P, ...]. After `captured` follow,
    where the plan has them, the row of stacks, int32 [1]; the table of pages, int32 [B, m / page]; the scales of k and
    of v, float32 [B or P, G, tokens], rows of stacks like k and v, which reach to the end of the last tile.
    visits: int32 [Br, Gr, words, splits], for each part a bit for each of its places, and their number above; Br is 1
    or B, Gr 1 or G. captured: [1 or B, 1 or G, 64] of `Plan.row_slots`, other fields of queries [B, 1] or [1], fields
    of keys [B, T] or [T] that reach to the end of the last tile; booleans as int32.

    Raises ValueError for 8 bits and heads of other sizes than 32, 64 and 128 (a warp widens whole rows; beyond 128 it
    finds no registers), and for pages that are no whole number of key tiles.

    out: [B, G, splits, rows, D] in float32, in the plan's type where there is one part; lse: [B, G, splits, 64].
    """
    if plan.kept is not None and plan.head_dim not in (32, 64, 128):
        raise ValueError(f"keys of 8 bits have heads of 32, 64 or 128, not of {plan.head_dim}")
    if plan.page % plan.config.block_k:
        raise ValueError(f"pages of {plan.page} tokens are no whole number of key tiles of {plan.config.block_k}")
    shape = (plan.batch, plan.kv_heads, plan.splits)
    kernel: Callable[..., tuple[Array, Array]] = plgpu.kernel(
        partial(body, plan),
        out_type=(
            jax.ShapeDtypeStruct((*shape, plan.rows, plan.head_dim), out_dtype(plan)),
            jax.ShapeDtypeStruct((*shape, ROWS), jnp.float32),
        ),
        scratch_types=shared(plan),
        grid=shape,
        grid_names=("batch", "kv_head", "part"),
        kernel_name="decode_attention",
        compiler_params=compiler_params(),
        interpret=mosaic_interpreter() if plan.interpret else None,
    )
    return kernel


def rows_of_chunk(head_dim: int) -> int:
    """How many rows of `head_dim` elements 128 elements are in, or parts of them."""
    if LANES % head_dim == 0 or head_dim % LANES == 0:
        return max(1, LANES // head_dim)
    return (LANES - 2) // head_dim + 2


def merge_body(plan: Plan, out: Any, lse: Any, result: Any) -> None:
    """128 elements of the sum of all parts, each weighed by its row's share."""
    batch, kv_head, chunk = (lax.axis_index(name) for name in ("batch", "kv_head", "chunk"))
    layout = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1)
    own = lax.rem(kv_head * plan.group, 8) if plan.shared else 0  # the first row of the group
    here = pl.ds(own * plan.head_dim + chunk * LANES, LANES)
    first, several = lax.div(chunk * LANES, plan.head_dim), rows_of_chunk(plan.head_dim)
    row = (plgpu.broadcasted_iota(jnp.int32, (LANES,), 0, layout=layout) + chunk * LANES) // plan.head_dim - first

    def read(part: Any) -> tuple[Array, Array]:
        """Of each element its row's log-sum-exp, to base 2, and its value."""
        rows = [jnp.minimum(own + first + r, ROWS - 1) for r in range(several)]
        tops = [mosaic_load(lse.at[batch, kv_head, part, r]) for r in rows]
        top = jnp.full((LANES,), tops[0])
        for r in range(1, several):
            top = jnp.where(row >= r, tops[r], top)
        return top * LOG2E, mosaic_load(out.at[batch, kv_head, part, here], layout)

    def add(count: int, first: Any, carry: Any) -> Any:
        top, total, sum_ = carry
        parts = [read(first + n) for n in range(count)]
        raised = top
        for other, _ in parts:
            raised = jnp.maximum(raised, other)
        base = jnp.where(raised == -jnp.inf, 0.0, raised)
        shrink = jnp.exp2(top - base)
        total, sum_ = total * shrink, sum_ * shrink
        for other, value in parts:
            share = jnp.exp2(other - base)
            total, sum_ = total + share, sum_ + share * value
        return raised, total, sum_

    start = tuple(plgpu.layout_cast(jnp.full((LANES,), x, jnp.float32), layout) for x in (-jnp.inf, 0.0, 0.0))
    rounds, rest = divmod(plan.splits, AT_ONCE)
    carry = lax.fori_loop(0, rounds, lambda n, carry: add(AT_ONCE, n * AT_ONCE, carry), start)
    _, total, sum_ = add(rest, rounds * AT_ONCE, carry) if rest else carry
    sum_ = (sum_ / jnp.where(total == 0, 1.0, total)).astype(plan.dtype)
    if plan.placed:
        query, within = lax.div(chunk, plan.chunks), lax.rem(chunk, plan.chunks)
        result[batch, query, pl.ds((kv_head * plan.chunks + within) * LANES, LANES)] = sum_
    else:
        result[batch, kv_head, pl.ds(chunk * LANES, LANES)] = sum_


def merge(plan: Plan) -> Callable[[Array, Array], Array]:
    """The second kernel, (out, lse) of `launch` with several parts -> [B, N, H * D] in the plan's type where a group's
    heads are whole blocks (`Plan.placed`), else packed as they came, [B, G, rows * D]."""
    whole = (plan.batch, plan.kv_heads, plan.rows * plan.head_dim)
    shape = (plan.batch, plan.n, plan.heads * plan.head_dim) if plan.placed else whole
    kernel: Callable[[Array, Array], Array] = plgpu.kernel(
        partial(merge_body, plan),
        out_type=jax.ShapeDtypeStruct(shape, plan.dtype),
        grid=(*whole[:2], -(-plan.n * plan.group * plan.head_dim // LANES)),
        grid_names=("batch", "kv_head", "chunk"),
        kernel_name="decode_sum",
        compiler_params=compiler_params(),
        interpret=mosaic_interpreter() if plan.interpret else None,
    )

    def merged(out: Array, lse: Array) -> Array:
        return kernel(jnp.reshape(out, (*whole[:2], plan.splits, whole[2])), lse)

    return merged
