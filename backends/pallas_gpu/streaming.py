"""Query, key and value tiles turned into attention's output and log-sum-exp: the body of the Hopper kernel.

Threads of a block: one memory warpgroup moves K and V tiles into rings of shared memory; the others own 64
query rows each. They take turns at the matrix unit, and a warpgroup's softmax runs beside its own P V product
and beside the others' products (arXiv:2407.08608). Keys are visited from the last to the first: a causal
query tile then meets its partial tile first, where the running maximum starts in any case.

A query tile's visits are ranges of key tiles. Those of a full range are visited without mask code, those of a
partial range with it, all others never.

A block takes one query tile, or one after another off a list of its own: then the memory warpgroup fills the rings
for the next tile while the others finish this one, and each of them fetches its next queries before its last product.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from tfc.backends.formula import LOG2E, MOSAIC_GPU, Placed, Tile
from tfc.backends.pallas_gpu.exponent import RAW
from tfc.backends.pallas_gpu.mma import mma, paired, product
from tfc.backends.pallas_gpu.plan import ROWS, Config, Plan
from tfc.backends.pallas_gpu.visits import Memory, Range, Visits, each, here
from tfc.backends.pallas_gpu.weighing import LSE, ONE
from tfc.compat import mosaic_interpreter, mosaic_load
from tfc.formula.expr import Expr, Kind, Load, Read, Token, Var, walk
from tfc.ir.ops import P, S

__all__ = ["ROWS", "Config", "Memory", "Plan", "Range", "Rows", "Visits", "launch", "tokens"]

Array = jax.Array
State = tuple[Array, Array, Array, Array]
Stats = tuple[Array, ...]
Followed = tuple[Any, Visits] | None
Following = Callable[[], tuple[Any, Visits]] | None

SHARED_MEMORY = 227 * 1024
"""Bytes that a block may have on Hopper."""
H = Var("h", Kind.INT)
ROW = plgpu.Layout.WGMMA.reduce(1)
COLUMN = plgpu.Layout.WGMMA.reduce(0)


def produce(plan: Plan, mem: Memory, only: Visits | None) -> None:
    """The memory warpgroup: fills each slot of the rings as soon as every consumer has left it.

    At the end it waits until all have left, so that every arrival at a barrier is met by a wait.
    """
    stages, block_k = plan.config.stages, plan.config.block_k
    before = 0 if mem.row is None else mosaic_load(mem.row.at[0]) * plan.batch

    def fill(n: Any, step: Any, end: Any, batch: Any, kv_head: Any) -> Any:
        slot = lax.rem(step, stages)
        keys = (batch, pl.ds((end - 1 - n) * block_k, block_k), kv_head)

        @pl.when(step >= stages)
        def _k_left() -> None:
            plgpu.barrier_wait(mem.k_free.at[slot])

        plgpu.copy_gmem_to_smem(mem.k.at[keys], mem.k_ring.at[slot], mem.k_ready.at[slot])

        @pl.when(step >= stages)
        def _v_left() -> None:
            plgpu.barrier_wait(mem.v_free.at[slot])

        plgpu.copy_gmem_to_smem(mem.v.at[keys], mem.v_ring.at[slot], mem.v_ready.at[slot])
        return step + 1

    def over_tile(visits: Visits, following: Following, step: Any) -> tuple[Any, Followed]:
        kv_head = lax.div(visits.head, plan.heads // plan.kv_heads)

        def over_range(_: Any, here: Range, step: Any) -> Any:
            start, end, _ = here
            one = partial(fill, end=end, batch=visits.batch + before, kv_head=kv_head)
            return lax.fori_loop(0, end - start, one, step)

        step = visits.loop(over_range, step)
        return step, following() if following else None

    steps = each(plan, mem, only, over_tile, jnp.int32(0))

    @pl.loop(0, jnp.minimum(steps, stages))
    def _drain(left: Any) -> None:
        plgpu.barrier_wait(mem.k_free.at[left])
        plgpu.barrier_wait(mem.v_free.at[left])


def tokens(ref: Any, batch: Any, first: Any, count: int, layout: Any, kind: Kind) -> Array:
    """`count` tokens of a [B, T] or [T] field, from `first` on. Booleans are kept as int32."""
    part = pl.ds(first, count)
    value = mosaic_load(ref.at[batch, part] if len(ref.shape) == 2 else ref.at[part], layout)
    return value != 0 if kind is Kind.BOOL else value


class Rows:
    """The formulas, read for query rows against one key tile after another. A tile is [rows, keys], here of 64 rows.

    What depends on the query or the head alone is read once, here.
    """

    rows, keys = 0, 1  # the axes of a tile
    of_rows, of_keys = ROW, COLUMN  # the layouts of what varies along one of them

    def __init__(self, plan: Plan, visits: Visits, captured: tuple[Any, ...], first: Any) -> None:
        self.plan, self.visits, self.captured = plan, visits, captured
        self.shape = ROWS, plan.config.block_k
        offset = plan.m - plan.n
        self.leaves: dict[Expr, Placed] = {H: Placed(visits.head, ())}
        for node in plan.nodes():
            match node:
                case Token("q"):
                    position = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=ROW)
                    self.leaves[node] = Placed(position + (first + offset), (0,))
                case Load(slot, "q", kind):
                    self.leaves[node] = Placed(tokens(captured[slot], visits.batch, first, ROWS, ROW, kind), (0,))
                case Read(slot, (index,), kind) if index == H:
                    value = mosaic_load(captured[slot].at[visits.head])
                    self.leaves[node] = Placed(value != 0 if kind is Kind.BOOL else value, ())

        self.lse: Array | None = None  # where weights read it

    def tile(self, key_tile: Any, expr: Expr, given: Mapping[Expr, Placed]) -> Tile:
        """The tile at `key_tile`, with the leaves that `expr` reads and those given."""
        block_k = self.plan.config.block_k
        leaves = {**self.leaves, **given}
        for node in walk(expr):
            match node:
                case Token("k"):
                    leaves[node] = self.key_positions(key_tile)
                case Load(slot, "k", kind):
                    ref = self.captured[slot]
                    first = key_tile * block_k
                    value = tokens(ref, self.visits.batch, first, block_k, self.of_keys, kind)
                    leaves[node] = Placed(value, (self.keys,))
        return Tile(self.shape, leaves, MOSAIC_GPU)

    def key_positions(self, key_tile: Any) -> Placed:
        block_k = self.plan.config.block_k
        position = plgpu.broadcasted_iota(jnp.int32, (block_k,), 0, layout=self.of_keys) + key_tile * block_k
        return Placed(position, (self.keys,))

    def seen(self, key_tile: Any) -> Array:
        """Which scores of the tile count: the mask leaves them, and their keys exist."""
        tile = self.tile(key_tile, self.plan.mask, {})
        visible = tile.spread(tile.evaluate(self.plan.mask))
        if self.plan.m % self.plan.config.block_k:
            exists = tile.spread(self.key_positions(key_tile)) < self.plan.m
        else:
            exists = tile.spread(Placed(self.visits.some, ()))
        return jnp.logical_and(visible, exists)

    def core(self, raw: Array, key_tile: Any) -> Array:
        """What the exponents of weights are a multiple of, and a constant more."""
        core = self.plan.exponent.core
        tile = self.tile(key_tile, core, {RAW: Placed(raw, (0, 1))})
        return tile.spread(tile.evaluate(core)).astype(jnp.float32)

    def raised(self, raw: Array, key_tile: Any, masked: bool, top: Array) -> tuple[Array, Array, Array]:
        """The tile's weights beside the largest exponent so far.

        raw: float32, q k^T without the scale, a tile. top: [rows], the largest exponent of earlier tiles, without the
        constant term of all.   -> (shrink, top, p): `shrink` [rows] is what earlier sums are to be multiplied by, p
        the tile's weights, 2^(exponent - top).
        """
        core, factor = self.core(raw, key_tile), self.plan.exponent.factor
        if factor <= 0:  # the largest core is no largest exponent, nor infinity's multiple infinite
            core, factor = core * factor, 1.0
        if masked:
            core = jnp.where(self.seen(key_tile), core, -jnp.inf)
        raised = jnp.maximum(top, core.max(axis=self.keys) * factor)
        # a row that has seen nothing has no largest score; any finite one gives it weights of zero
        base = jnp.where(raised == -jnp.inf, 0.0, raised)
        p = jnp.exp2(core * factor - lax.broadcast_in_dim(base, core.shape, (self.rows,)))
        return jnp.exp2(top - base), raised, p

    def softmax(self, raw: Array, key_tile: Any, masked: bool, top: Array, total: Array) -> State:
        """One step of the running softmax (arXiv:1805.02867), in base 2: as `raised`, and `total` [rows], the sum of
        all weights so far.   -> (shrink, top, total, p)"""
        shrink, top, p = self.raised(raw, key_tile, masked, top)
        return shrink, top, total * shrink + p.sum(axis=self.keys), p

    def bounded(self, raw: Array, key_tile: Any, masked: bool, base: float) -> Array:
        """The tile's weights beside 2^base, where no score is far from it: 2^(exponent - base), float32."""
        exponent = self.plan.exponent
        above = self.core(raw, key_tile) * exponent.factor
        p = jnp.exp2(above if exponent.shift == base else above + (exponent.shift - base))
        return jnp.where(self.seen(key_tile), p, 0.0) if masked else p

    def weights(self, raw: Array, key_tile: Any, masked: bool, stats: Stats) -> tuple[Array, Array | None, Stats]:
        """The tile's weights [64, block_k], what earlier sums are multiplied by, where there is such a thing, and the
        row's statistics with this tile: (top, total) of a softmax, (total,) of one with a base, else none."""
        weighing, base = self.plan.weighing, self.plan.base
        if not weighing.softmax:
            return self.weight(raw, key_tile, masked), None, ()
        shrink = None
        if base is None:
            shrink, top, total, p = self.softmax(raw, key_tile, masked, *stats)
            stats = top, total
        else:
            p = self.bounded(raw, key_tile, masked, base)
            stats = (stats[0] + p.sum(axis=1),)
        if weighing.tile != ONE:
            p = self.weight(raw, key_tile, masked, p)
        return p, shrink, stats

    def weight(self, raw: Array, key_tile: Any, masked: bool, p: Array | None = None) -> Array:
        """The formula that weights are, or that a softmax's weights p are multiplied by: float32 [64, block_k]."""
        plan, weighing, scaled = self.plan, self.plan.weighing, raw * self.plan.scale
        tile = self.tile(key_tile, plan.score, {S: Placed(scaled, (0, 1))})
        natural = scaled if plan.score == S else tile.spread(tile.evaluate(plan.score))
        early = masked and weighing.silent_at_zero
        if early:
            natural = jnp.where(self.seen(key_tile), natural, 0.0)
        given: dict[Expr, Placed] = {S: Placed(natural, (0, 1))}
        if self.lse is not None:
            given[LSE] = Placed(jnp.where(self.lse == -jnp.inf, 0.0, self.lse), (0,))
            base = lax.broadcast_in_dim(self.lse * LOG2E - plan.exponent.shift, raw.shape, (0,))
            given[P] = Placed(jnp.exp2(self.core(raw, key_tile) * plan.exponent.factor - base), (0, 1))
        tile = self.tile(key_tile, weighing.tile, given)
        weight = tile.spread(tile.evaluate(weighing.tile)).astype(jnp.float32)
        weight = weight if p is None else p * weight
        return jnp.where(self.seen(key_tile), weight, 0.0) if masked and not early else weight

    def results(self, out: Array, stats: Stats) -> tuple[Array, Array | None]:
        """The sums, divided and multiplied by what their rows share, and a softmax's log-sum-exp [64]."""
        row = self.plan.weighing.row
        if not stats:
            return out * Tile((ROWS, ROWS), {}, MOSAIC_GPU).evaluate(row).value, None
        total, exponent = stats[-1], self.plan.exponent
        top: Any = self.plan.base if len(stats) == 1 else stats[0] + exponent.shift
        lse = top * (1 / LOG2E) + jnp.log(total)
        known = {**self.leaves, LSE: Placed(jnp.where(total == 0, 0.0, lse), (0,))}
        share = Tile((ROWS, ROWS), known, MOSAIC_GPU).evaluate(row)
        shared = jnp.where(total == 0, 0.0, share.value / total)
        return out * lax.broadcast_in_dim(shared, out.shape, (0,)), lse


def consume(plan: Plan, mem: Memory, only: Visits | None) -> None:
    """A consumer warpgroup: 64 query rows of one query tile after another."""
    consumers, wg = plan.config.consumers, lax.axis_index("wg")

    def take_turn() -> None:
        plgpu.barrier_wait(mem.turn.at[wg])

    def pass_turn() -> None:
        plgpu.barrier_arrive(mem.turn.at[lax.rem(wg + 1, consumers)])

    pl.when(wg == consumers - 1)(pass_turn)
    each(plan, mem, only, partial(attend, plan, mem, wg, take_turn, pass_turn), jnp.int32(0))
    pl.when(wg == 0)(take_turn)  # the last one passed is nobody else's
    plgpu.wait_smem_to_gmem(0)


def attend(
    plan: Plan,
    mem: Memory,
    wg: Any,
    take_turn: Callable[[], None],
    pass_turn: Callable[[], None],
    visits: Visits,
    following: Following,
    step: Any,
) -> tuple[Any, Followed]:
    """64 query rows of a query tile, from Q to the finished output and log-sum-exp.

    step: how many key tiles this warpgroup has visited before   -> and after, and what `following` gave
    """
    config = plan.config
    q_tile = mem.q_tile.at[wg]

    def rows_of(batch: Any, head: Any, tile: Any) -> tuple[Any, ...]:
        return batch, pl.ds(tile * config.block_q + wg * ROWS, ROWS), head

    def fetch(tile: Visits) -> None:
        plgpu.copy_gmem_to_smem(mem.q.at[rows_of(*tile.at[:3])], q_tile, mem.q_ready.at[wg])

    def visit(n: Any, carry: Any, last: Any, masked: bool) -> Any:
        """Weights of one tile, beside the P V product of the tile before."""
        step, out, stats, weights = carry
        slot, before = lax.rem(step, config.stages), lax.rem(step - 1, config.stages)

        def v_ready() -> None:
            plgpu.barrier_wait(mem.v_ready.at[before])

        def weigh(raw: Array, state: Any) -> Any:
            plgpu.barrier_arrive(mem.k_free.at[slot])
            p, shrink, kept = rows.weights(raw, last - n, masked, stats)
            return shrink, kept, p

        plgpu.barrier_wait(mem.k_ready.at[slot])
        take_turn()
        out, (shrink, stats, p) = paired(
            q_tile,
            mem.k_ring.at[slot].T,
            out,
            weights,
            mem.v_ring.at[before],
            between=v_ready,
            issued=pass_turn,
            during=weigh,
            state=(stats[0] if len(stats) == 2 else None, stats, weights.astype(jnp.float32)),
            staging=staging,
            beside=plan.beside(masked),
        )
        plgpu.barrier_arrive(mem.v_free.at[before])
        if shrink is not None:
            out = out * lax.broadcast_in_dim(shrink, out.shape, (0,))
        return step + 1, out, stats, p.astype(plan.dtype)

    def over_range(turn: Any, here: Range, carry: Any) -> Any:
        start, end, full = here
        last = jnp.where(turn == 0, end - 2, end - 1)  # the very last tile is visited before this loop
        count = last + 1 - start
        carry = lax.fori_loop(0, jnp.where(full, count, 0), partial(visit, last=last, masked=False), carry)
        return lax.fori_loop(0, jnp.where(full, 0, count), partial(visit, last=last, masked=True), carry)

    mine = rows_of(*visits.at[:3])
    if following is None:
        fetch(visits)
    else:
        pl.when(step == 0)(lambda: fetch(visits))
    rows = Rows(plan, visits, mem.captured, mine[1].start)
    if mem.row_lse is not None:
        rows.lse = mosaic_load(mem.row_lse.at[visits.batch, visits.head, mine[1]], ROW)
    staging = None if mem.staging is None else mem.staging.at[wg]
    begin = lax.rem(step, config.stages)
    plgpu.barrier_wait(mem.q_ready.at[wg])
    plgpu.barrier_wait(mem.k_ready.at[begin])
    take_turn()
    raw = product(q_tile, mem.k_ring.at[begin].T, issued=pass_turn, watched=plan.interpret)
    plgpu.barrier_arrive(mem.k_free.at[begin])
    p, _, stats = rows.weights(raw, visits.begin, True, nothing_yet(plan))
    out = plgpu.layout_cast(jnp.zeros((ROWS, plan.values), jnp.float32), plgpu.Layout.WGMMA)
    step, out, stats, weights = visits.loop(over_range, (step + 1, out, stats, p.astype(plan.dtype)))
    followed: Followed = None
    mine = rows_of(*visits.where())
    if following is not None:
        more, upcoming = followed = following()
        plgpu.commit_smem()  # all of the warpgroup have read Q
        pl.when(more)(partial(fetch, upcoming))
    slot = lax.rem(step - 1, config.stages)
    plgpu.barrier_wait(mem.v_ready.at[slot])
    out = mma(out, weights, mem.v_ring.at[slot], staging)
    plgpu.barrier_arrive(mem.v_free.at[slot])
    finish(plan, mem, wg, mine, *rows.results(out, stats))
    return step, followed


def nothing_yet(plan: Plan) -> Stats:
    """The statistics of rows that have seen no key."""
    if not plan.weighing.softmax:
        return ()
    top = plgpu.layout_cast(jnp.full((ROWS,), -jnp.inf, jnp.float32), ROW)
    total = jnp.zeros_like(top)
    return (top, total) if plan.base is None else (total,)


def finish(plan: Plan, mem: Memory, wg: Any, mine: Any, out: Array, lse: Array | None) -> None:
    """Begins to store, through shared memory: that which held Q, where the next tile's Q is not on its way there."""
    out_tile = (mem.q_tile if mem.out_tile is None else mem.out_tile).at[wg]
    if plan.blocks:
        plgpu.wait_smem_to_gmem(0)  # what the tile before stored
    elif mem.out_tile is not None:
        plgpu.commit_smem()  # a warp writes where others of its warpgroup have read Q
    out_tile[...] = out.astype(plan.dtype)
    if lse is not None:
        mem.lse_tile.at[wg][...] = lse
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out_tile, mem.out.at[mine])
    if lse is not None:
        plgpu.copy_smem_to_gmem(mem.lse_tile.at[wg], mem.lse.at[mine[0], mine[2], mine[1]])


def body(plan: Plan, *refs: Any, **scratch: Any) -> None:
    """The kernel: each warpgroup takes its part, and the registers it needs."""
    softmax = plan.weighing.softmax
    q, k, v, turns, ranges, *captured = refs
    lse = captured.pop() if softmax else None
    out = captured.pop()
    row_lse = captured.pop() if plan.weighing.reads_lse else None
    row = captured.pop() if plan.stacked else None
    if "q_or_out" in scratch:
        scratch["q_tile"], scratch["out_tile"] = scratch.pop("q_or_out")
    arrays = dict(q=q, k=k, v=v, turns=turns, ranges=ranges, captured=tuple(captured), row=row, out=out, lse=lse)
    mem = Memory(**arrays, row_lse=row_lse, **scratch)
    # read before the warpgroups part, it is read once; but beside an output of more than 128 columns ptxas, which keeps
    # a part of it in the same registers on both sides, spills
    only = Visits(mem, here(mem)) if not plan.blocks and plan.values <= 128 else None
    wg, consumers = lax.axis_index("wg"), plan.config.consumers

    @pl.when(wg < consumers)
    def _consumer() -> None:
        plgpu.set_max_registers(240 if consumers == 2 else 160, action="increase")
        consume(plan, mem, only)

    @pl.when(wg == consumers)
    def _producer() -> None:
        plgpu.set_max_registers(24 if consumers == 2 else 32, action="decrease")
        produce(plan, mem, only)


def shared(plan: Plan) -> dict[str, Any]:
    """Buffers and barriers of a block."""
    config, consumers, stages = plan.config, plan.config.consumers, plan.config.stages

    transforms = (
        plgpu.TilingTransform((8, plan.swizzle // 2)),  # type: ignore[abstract]  # a protocol with an empty body
        plgpu.SwizzleTransform(plan.swizzle),  # type: ignore[abstract]  # the same
    )

    def tiles(*shape: int) -> Any:
        return plgpu.SMEM(shape, plan.dtype, transforms=transforms)

    out = dict(
        k_ring=tiles(stages, config.block_k, plan.head_dim),
        v_ring=tiles(stages, config.block_k, plan.values),
        q_ready=plgpu.Barrier(num_barriers=consumers),
        k_ready=plgpu.Barrier(num_barriers=stages),
        v_ready=plgpu.Barrier(num_barriers=stages),
        k_free=plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
        v_free=plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
        turn=plgpu.Barrier(num_barriers=consumers),
    )
    if plan.weighing.softmax:
        out["lse_tile"] = plgpu.SMEM((consumers, ROWS), jnp.float32)
    queries, outputs = tiles(consumers, ROWS, plan.head_dim), tiles(consumers, ROWS, plan.values)
    if plan.blocks or (plan.interpret and plan.values != plan.head_dim):  # the interpreter knows no unions
        out |= dict(q_tile=queries, out_tile=outputs)
    elif plan.values != plan.head_dim:
        out["q_or_out"] = plgpu.RefUnion(queries, outputs)
    else:
        out["q_tile"] = queries
    if plan.interpret:
        out["staging"] = plgpu.SMEM((consumers, ROWS, config.block_k), plan.dtype)
    return out


def launch(plan: Plan) -> Callable[..., tuple[Array, ...]]:
    """The kernel as a function of (q, k, v, turns, ranges, *captured) that gives (out, lse); (out,) where weights are
    pointwise. The last of `captured` are, as far as the plan has them: int32 [1], the row of stacks that k and v are;
    float32 [B, H, N'], each row's log-sum-exp.

    N and M of q, k, v and out are the plan's, rounded up to a multiple of 8, as the copy engine moves tiles of 8
    rows; lse and N' reach to the end of the last query tile (a copy along one axis is not clipped).

    turns, ranges: as `schedule.packed` gives them, Br 1 or B, Hr 1 or H; where blocks take query tiles off lists, turns
    are `schedule.lists`. captured: fields [B, T] or [T] that reach to the end of the last tile, tables [H]; booleans as
    int32.
    """
    if plan.shared_bytes > SHARED_MEMORY:
        raise ValueError(f"{plan.config} takes {plan.shared_bytes} bytes of shared memory, a block has {SHARED_MEMORY}")
    n = -(-plan.n // 8) * 8
    out = jax.ShapeDtypeStruct((plan.batch, n, plan.heads, plan.values), plan.dtype)
    lse = jax.ShapeDtypeStruct((plan.batch, plan.heads, plan.tiles * plan.config.block_q), jnp.float32)
    grid: dict[str, Any] = dict(grid=(plan.batch, plan.heads, plan.tiles), grid_names=("batch", "head", "tile"))
    if plan.blocks:
        grid = dict(grid=(plan.blocks,), grid_names=("block",))
    kernel: Callable[..., tuple[Array, ...]] = plgpu.kernel(
        partial(body, plan),
        out_type=(out, lse) if plan.weighing.softmax else (out,),
        scratch_types=shared(plan),
        **grid,
        num_threads=plan.config.consumers + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=mosaic_interpreter() if plan.interpret else None,
    )
    return kernel
