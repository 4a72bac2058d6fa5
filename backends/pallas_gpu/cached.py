"""Packed query rows and a part of the keys turned into a partial output: the body of the Hopper kernel for decoding.

Few queries meet many keys: time is what the keys and values take to arrive (arXiv:1911.02150), and one tile holds the
queries of all heads that share them, so that they arrive once. The keys are dealt out to several blocks
(arXiv:2311.01282): tile t goes to part t % splits, so that a window, wherever it lies, is shared by all. Each part
gives its own softmax's output and log-sum-exp, and a second kernel puts them together.

Products are transposed: S^T = K Q^T and O^T += V^T P^T. One `wgmma` takes 64 rows of its first operand and as few as
8 columns of the second, and there are many keys and few queries: 8 rows cost an eighth of what 64 do. A thread has 4
scores of 64 keys, and a row's maximum is found across the warps.

A block is one warpgroup. It asks for the tile that comes `stages` visits later as soon as it has read one, and waits
for its own products: two blocks or more on a multiprocessor compute while the others wait. Its warps meet at barriers
only where this file says so (`commit_smem`) and within reductions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from tfc.backends.formula import LOG2E, Placed
from tfc.backends.pallas_gpu import streaming
from tfc.backends.pallas_gpu.decode_plan import BITS, LANES, SCRATCH, Memory, Part, Plan, out_dtype, shared
from tfc.backends.pallas_gpu.mma import added, nothing, product
from tfc.backends.pallas_gpu.streaming import COLUMN, ROW, H
from tfc.compat import mosaic_interpreter, mosaic_load
from tfc.formula.expr import Kind, Load, Read, Token

__all__ = ["launch", "merge"]

Array = jax.Array

AT_ONCE = 16
"""Parts whose loads the second kernel has under way together."""

WIDENED = 64
"""Keys of 8 bits that a block loads before it stores them widened: more take more registers."""

State = tuple[Any, Any]
"""A place among a part's key tiles, and the word of the visits that says of it."""


class Rows(streaming.Rows):
    """The formulas, read for packed rows: row r is query r // group of head r % group of the group, also where eight
    rows are the heads of several groups, of which the block's own begin at a multiple of `group`. A tile is [keys,
    rows]."""

    rows, keys = 1, 0
    of_rows, of_keys = COLUMN, ROW

    def __init__(self, plan: Plan, here: Part, captured: tuple[Any, ...]) -> None:
        asked: Any = here  # of the visits, the batch row
        self.plan, self.visits, self.captured, self.here = plan, asked, captured, here
        self.shape = plan.config.block_k, plan.rows
        row = plgpu.broadcasted_iota(jnp.int32, (plan.rows,), 0, layout=self.of_rows)
        self.leaves: dict[Any, Placed] = {}
        for node in plan.nodes():
            if node == H:
                self.leaves[node] = Placed(row % plan.group + here.kv_head * plan.group, (self.rows,))
            match node:
                case Token("q"):
                    query = row // plan.group if plan.n > 1 else jnp.zeros_like(row)
                    self.leaves[node] = Placed(query + (plan.m - plan.n), (self.rows,))
                case Load(slot, "q", kind) | Read(slot, _, kind):
                    value = self.by_row(slot) if slot in plan.row_slots() else self.by_query(slot)
                    if kind is Kind.BOOL:
                        value = Placed(value.value != 0, value.axes)
                    self.leaves[node] = value

    def by_row(self, slot: int) -> Placed:
        ref, here = self.captured[slot], self.here
        shared_batch, shared_head = (size == 1 for size in ref.shape[:2])
        at = (0 if shared_batch else here.batch, 0 if shared_head else here.kv_head)
        return Placed(mosaic_load(ref.at[at], self.of_rows), (self.rows,))

    def by_query(self, slot: int) -> Placed:
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
        first = [mosaic_load(self.words.at[n, here.part]) for n in range(plan.words)]
        self.count = sum((lax.shift_right_logical(word, BITS) for word in first), jnp.int32(0))
        self.only = first[0] if plan.words == 1 else None

    def word(self, place: Any) -> Array:
        return self.only if self.only is not None else mosaic_load(self.words.at[lax.div(place, BITS), self.part])

    def start(self) -> State:
        return self.at(jnp.int32(0))

    def at(self, place: Any) -> State:
        return place, self.word(place)

    def next(self, state: State, wanted: Any) -> State:
        """The first visited place at or after one; the same where none is wanted. One that is must exist."""

        def missed(state: State) -> Any:
            place, word = state
            return jnp.logical_and(wanted, (lax.shift_right_logical(word, lax.rem(place, BITS)) & 1) == 0)

        def onward(state: State) -> State:
            place, word = state
            return self.at(jnp.where(word == 0, (lax.div(place, BITS) + 1) * BITS, place + 1))

        found: State = lax.while_loop(missed, onward, state)
        return found

    def after(self, state: State) -> State:
        """The place that follows, if there is one: its word is on its way while the block computes."""
        return self.at(jnp.minimum(state[0] + 1, self.plan.places - 1))

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


def fill(plan: Plan, mem: Memory, here: Part, tile: Any, slot: Any, which: str) -> None:
    """Asks for the keys or the values ("k", "v") of a key tile; the slot's barrier says when they are there."""
    batch, keys = keys_of(plan, mem, here, tile)
    if which == "k":
        x, ring, ready, scales = mem.k, mem.k_ring.at[slot], mem.k_ready.at[slot], mem.k_scales
    else:
        x, ring, ready, scales = mem.v, mem.v_ring.at[slot], mem.v_ready.at[slot], mem.v_scales
    at = (batch, keys, here.kv_head)
    whole = which == "k" or plan.kept is not None
    plgpu.copy_gmem_to_smem(x.at[at] if whole else x.at[*at, every_column(plan, here)], ring, ready)
    if plan.kept is not None:
        of_keys = mem.scales[which == "v"].at[batch, here.kv_head, keys]
        plgpu.copy_gmem_to_smem(of_keys, scales.at[slot], ready)


def every_column(plan: Plan, here: Part) -> Any:
    """As many columns of global memory as a tile of values or results has: the copy engine reads zeros beyond those
    that exist, and does not write them. The start is a zero that JAX, which looks for such slices, does not see."""
    if plan.columns == plan.head_dim:
        return slice(None)
    return pl.ds(jnp.minimum(here.part, 0), plan.columns)


class Arrived:
    """A key tile that the rings' slot holds, or will, as operands of products."""

    def __init__(self, plan: Plan, mem: Memory, slot: Any) -> None:
        self.plan, self.mem, self.slot = plan, mem, slot

    def keys(self) -> Any:
        """[block_k, D] for a product, once they are there; where they are widened, for the block to meet first."""
        plgpu.barrier_wait(self.mem.k_ready.at[self.slot])
        return self.operand(self.mem.k_ring.at[self.slot], self.mem.wide_k)

    def values(self) -> Any:
        """[block_k, columns], as the keys."""
        plgpu.barrier_wait(self.mem.v_ready.at[self.slot])
        return self.operand(self.mem.v_ring.at[self.slot], self.mem.wide_v)

    def operand(self, ref: Any, wide: Any) -> Any:
        if self.plan.kept is None:
            return ref
        self.widen(ref, wide)
        return wide

    def scale(self, scales: Any) -> Any:
        """Of each token, where they have one."""
        return None if self.plan.kept is None else mosaic_load(scales.at[self.slot], ROW)

    def widen(self, ref: Any, wide: Any) -> None:
        """Writes what stands in `ref` in the plan's type, exactly."""
        some = min(WIDENED, self.plan.config.block_k)
        for first in range(0, self.plan.config.block_k, some):
            part = pl.ds(first, some)
            x = mosaic_load(ref.at[part], narrow(self.plan.head_dim))
            if self.plan.kept != jnp.int8:  # Hopper turns floats of 8 bits into float16 alone
                x = x.astype(jnp.float16).astype(jnp.float32)
            wide[part, pl.ds(0, self.plan.head_dim)] = x.astype(self.plan.dtype)


def scaled(x: Array, scale: Any) -> Array:
    """[block_k, rows] times what each token has, if it has."""
    return x if scale is None else x * lax.broadcast_in_dim(scale, x.shape, (0,))


def narrow(columns: int) -> Any:
    """A layout of [rows, columns] in which a thread has 8 neighbours of a row: 8 bytes as int8, 16 as they are stored
    again, and a warp whole rows, so that neither way two threads meet in a bank."""
    lanes = columns // 8
    rows = 32 // lanes
    if rows == 1:
        return plgpu.Layout.TILED(plgpu.Tiling(((4, columns), (8,))), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1)
    tiling = plgpu.Tiling(((4 * rows, columns), (rows, columns), (8,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1)


def spread(of_rows: Array, x: Array) -> Array:
    """[rows] beside x, [..., rows]."""
    return lax.broadcast_in_dim(of_rows, x.shape, (1,))


def attend(plan: Plan, mem: Memory, here: Part) -> None:
    """From Q to the part's output and log-sum-exp, one visited tile after another."""
    stages, widened = plan.config.stages, plan.kept is not None
    visits = Visits(plan, mem, here)

    def find(state: State, wanted: Any) -> tuple[Any, State]:
        """The first visited tile at or after a place, if there is one, and where to look for the one after it."""
        found = visits.next(state, wanted)
        return visits.tile(found[0]), visits.after(found)

    def ask(tile: Any, slot: Any, wanted: Any, which: str) -> None:
        pl.when(wanted)(lambda: fill(plan, mem, here, tile, slot, which))

    own = lax.div(here.kv_head * plan.group, 8) if plan.shared else here.kv_head
    plgpu.copy_gmem_to_smem(mem.q.at[here.batch, own], mem.q_tile, mem.q_ready)
    ahead, tiles = visits.start(), []
    for n in range(stages):
        tile, ahead = find(ahead, n < visits.count)
        for which in ("k", "v"):
            ask(tile, n, n < visits.count, which)
        tiles.append(tile)
    rows = Rows(plan, here, mem.captured)
    plgpu.barrier_wait(mem.q_ready)

    def visit(n: Any, carry: Any) -> Any:
        ahead, (tile, *tiles), out, *stats = carry
        slot, wanted = lax.rem(n, stages), n + stages < visits.count
        later, ahead = find(ahead, wanted)
        arrived = Arrived(plan, mem, slot)
        keys, k_scale = arrived.keys(), arrived.scale(mem.k_scales)
        if widened:
            plgpu.commit_smem()  # every warp has left the slot's keys, and what the products before read
            ask(later, slot, wanted, "k")
        waited = arrived.values if widened else nothing
        raw = product(keys, mem.q_tile.T, issued=waited, watched=plan.interpret)
        if plan.crowded:
            stats = [mosaic_load(x, COLUMN) for x in (mem.top, mem.total)]
        shrink, top, p = rows.raised(scaled(raw, k_scale), tile, plan.masked, stats[0])
        if plan.crowded:
            mem.top[...], mem.total[...] = top, stats[1] * shrink + p.sum(axis=0)
            stats = []
        else:
            stats = [top, stats[1] * spread(shrink, p) + p]
        out = out * spread(shrink, out)
        p = scaled(p, arrived.scale(mem.v_scales)).astype(plan.dtype)
        mem.p_tile.T[...] = plgpu.layout_cast(p, plgpu.Layout.WGMMA_TRANSPOSED)
        plgpu.commit_smem()  # every warp has left the keys, and values that were widened
        ask(later, slot, wanted, "v" if widened else "k")
        values = mem.wide_v if widened else arrived.values()
        out = added(out, values.T, mem.p_tile.T, watched=plan.interpret)
        if not widened:
            plgpu.commit_smem()  # every warp has left the values
            ask(later, slot, wanted, "v")
        return ahead, (*tiles, later), out, *stats

    sizes = ((plan.columns, plan.rows), (plan.config.block_k, plan.rows))
    out, total = (plgpu.layout_cast(jnp.zeros(size, jnp.float32), plgpu.Layout.WGMMA) for size in sizes)
    top, zero = (plgpu.layout_cast(jnp.full((plan.rows,), x, jnp.float32), COLUMN) for x in (-jnp.inf, 0.0))
    if plan.crowded:
        mem.top[...], mem.total[...] = top, zero
    stats = () if plan.crowded else (top, total)
    _, _, out, *stats = lax.fori_loop(0, visits.count, visit, (ahead, tuple(tiles), out, *stats))
    if plan.crowded:
        finish(plan, mem, here, out, *(mosaic_load(x, COLUMN) for x in (mem.top, mem.total)))
    else:
        finish(plan, mem, here, out, stats[0], stats[1].sum(axis=0))


def finish(plan: Plan, mem: Memory, here: Part, out: Array, top: Array, total: Array) -> None:
    """Divides by the sums and stores, through shared memory.   out: [columns, rows]; top, total: [rows]"""
    share = jnp.where(total == 0, 0.0, 1 / total)
    out = (out * spread(share, out)).astype(mem.out_tile.dtype)
    mem.out_tile.T[...] = plgpu.layout_cast(out, plgpu.Layout.WGMMA_TRANSPOSED)
    mem.lse_tile[...] = (top + plan.exponent.shift) * (1 / LOG2E) + jnp.log(total)
    plgpu.commit_smem()
    mine = (here.batch, here.kv_head, here.part)
    plgpu.copy_smem_to_gmem(mem.out_tile, mem.out.at[*mine, :, every_column(plan, here)])
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


def compiler_params() -> Any:
    """No barriers beside those that this file has, and no more memory for reductions than keeps blocks from fitting."""
    return plgpu.CompilerParams(
        approx_math=True,
        lowering_semantics=plgpu.LoweringSemantics.Lane,
        reduction_scratch_bytes=SCRATCH,
        unsafe_no_auto_barriers=True,
    )


def launch(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    """The kernel as a function of (q, k, v, visits, *captured) that gives the parts' (out, lse).

    q: [B, G, rows, D], rows packed as `Rows` says, or [B, H / 8, 8, D] where `Plan.shared`. k, v: [B, M, G, D], M a
    multiple of 8; or pages [P, page, G, D]; or rows of stacks, [S * B, ...] or [S * P, ...]. After `captured` follow,
    where the plan has them, the row of stacks, int32 [1]; the table of pages, int32 [B, m / page]; the scales of k and
    of v, float32 [B or P, G, tokens], rows of stacks like k and v, which reach to the end of the last tile.
    visits: int32 [Br, Gr, words, splits], for each part a bit for each of its places, and their number above; Br is 1
    or B, Gr 1 or G. captured: [1 or B, 1 or G, rows] of `Plan.row_slots`, other fields of queries [B, 1] or [1], fields
    of keys [B, T] or [T] that reach to the end of the last tile; booleans as int32.

    Raises ValueError for 8 bits and heads of other sizes than 32, 64 and 128 (a warp widens whole rows; beyond 128 it
    finds no registers), and for pages that are no whole number of key tiles.

    out: [B, G, splits, rows, D] in float32, in the plan's type where there is one part; lse: [B, G, splits, rows].
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
            jax.ShapeDtypeStruct((*shape, plan.rows), jnp.float32),
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
        rows = [jnp.minimum(own + first + r, plan.rows - 1) for r in range(several)]
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
