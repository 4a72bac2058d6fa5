"""Query, key and value tiles turned into attention's output and log-sum-exp: the body of the Hopper kernel.

Threads of a block: one memory warpgroup moves K and V tiles into rings of shared memory; the others own 64
query rows each. They take turns at the matrix unit, and a warpgroup's softmax runs beside its own P V product
and beside the others' products (arXiv:2407.08608). Keys are visited from the last to the first: a causal
query tile then meets its partial tile first, where the running maximum starts in any case.

A query tile's visits are ranges of key tiles. Those of a full range are visited without mask code, those of a
partial range with it, all others never.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from tfc.backends.formula import LOG2E, Placed, Tile
from tfc.backends.pallas_gpu.mma import mma, paired, product
from tfc.compat import mosaic_interpreter, mosaic_load
from tfc.formula.expr import Expr, Kind, Load, Read, Token, Var, walk

__all__ = ["ROWS", "Config", "Plan", "launch"]

Array = jax.Array
State = tuple[Array, Array, Array, Array]
Range = tuple[Array, Array, Array]

ROWS = 64
"""Query rows of a warpgroup: the height of one `wgmma`."""

S, H = Var("s", Kind.REAL), Var("h", Kind.INT)
ROW = plgpu.Layout.WGMMA.reduce(1)
COLUMN = plgpu.Layout.WGMMA.reduce(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Block sizes. A query tile is `consumers * 64` rows, a key tile `block_k`; a ring holds `stages` key tiles.

    consumers: 2 or 3. block_k: a multiple of 64, as P V takes its weights from registers 64 columns at a time.
    """

    consumers: int = 2
    block_k: int = 128
    stages: int = 2

    @property
    def block_q(self) -> int:
        return self.consumers * ROWS


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is known of a call when its kernel is traced. Letters as everywhere: B, N, M, H, G, D.

    stacked: k and v are rows of stacks [S * B, M, G, D], and an operand says which. interpret: run on the CPU, races
    reported.
    """

    config: Config
    batch: int
    n: int
    m: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: Any
    scale: float
    score: Expr
    mask: Expr
    stacked: bool = False
    interpret: bool = False

    def nodes(self) -> Iterator[Expr]:
        for expr in (self.score, self.mask):
            yield from walk(expr)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """References: arrays in global memory, buffers and barriers in shared memory."""

    q: Any
    k: Any
    v: Any
    heads: Any
    triples: Any
    captured: tuple[Any, ...]
    row: Any
    out: Any
    lse: Any
    q_tile: Any
    k_ring: Any
    v_ring: Any
    lse_tile: Any
    q_ready: Any
    k_ready: Any
    v_ready: Any
    k_free: Any
    v_free: Any
    turn: Any
    staging: Any = None


class Visits:
    """The key tiles that this block's query tile visits, as each of its warpgroups reads them, last range first.

    A query tile that sees no key visits key tile 0 as a partial one, and there no key exists.
    """

    def __init__(self, plan: Plan, mem: Memory) -> None:
        self.batch, self.head = lax.axis_index("batch"), lax.axis_index("head")
        # under a causal mask the last query tiles see most: begin with them, so that short ones end the launch
        self.tile = mem.heads.shape[2] - 1 - lax.axis_index("tile")
        self.triples = mem.triples
        shared_batch, shared_head = (size == 1 for size in mem.heads.shape[:2])
        self.row = (0 if shared_batch else self.batch, 0 if shared_head else self.head, self.tile)
        count, start, end, full = (mosaic_load(mem.heads.at[(*self.row, i)]) for i in range(4))
        self.some = count > 0
        self.ranges = jnp.maximum(count, 1)
        self.keys = jnp.where(self.some, plan.m, 0)
        self.first: Range = jnp.where(self.some, start, 0), jnp.where(self.some, end, 1), full

    def range(self, turn: Any) -> Range:
        """The range visited at `turn` > 0, counted from the last one; any beyond the end."""
        at = (*self.row, jnp.maximum(self.ranges - 1 - turn, 0))
        start, end, full = (mosaic_load(self.triples.at[(*at, i)]) for i in range(3))
        return start, end, full

    def loop(self, visit: Callable[[Any, Range, Any], Any], carry: Any) -> Any:
        """visit(turn, range, carry) for each range; each is read while the one before it is visited."""

        def over(turn: Any, both: tuple[Range, Any]) -> tuple[Range, Any]:
            here, carry = both
            following = self.range(turn + 1)
            return following, visit(turn, here, carry)

        return lax.fori_loop(0, self.ranges, over, (self.first, carry))[1]


def produce(plan: Plan, visits: Visits, mem: Memory) -> None:
    """The memory warpgroup: fills each slot of the rings as soon as every consumer has left it.

    At the end it waits until all have left, so that every arrival at a barrier is met by a wait.
    """
    stages, block_k = plan.config.stages, plan.config.block_k
    kv_head = lax.div(visits.head, plan.heads // plan.kv_heads)
    batch = visits.batch if mem.row is None else visits.batch + mosaic_load(mem.row.at[0]) * plan.batch

    def fill(n: Any, step: Any, end: Any) -> Any:
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

    def over_range(_: Any, here: Range, step: Any) -> Any:
        start, end, _ = here
        return lax.fori_loop(0, end - start, partial(fill, end=end), step)

    steps = visits.loop(over_range, jnp.int32(0))

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
    """The formulas, read for 64 query rows against one key tile after another.

    What depends on the query or the head alone is read once, here.
    """

    def __init__(self, plan: Plan, visits: Visits, captured: tuple[Any, ...], first: Any) -> None:
        self.plan, self.visits, self.captured = plan, visits, captured
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
                    leaves[node] = Placed(tokens(ref, self.visits.batch, first, block_k, COLUMN, kind), (1,))
        return Tile((ROWS, block_k), leaves)

    def key_positions(self, key_tile: Any) -> Placed:
        block_k = self.plan.config.block_k
        position = plgpu.broadcasted_iota(jnp.int32, (block_k,), 0, layout=COLUMN) + key_tile * block_k
        return Placed(position, (1,))

    def seen(self, key_tile: Any) -> Array:
        """Which scores of the tile count: the mask leaves them, and their keys exist."""
        tile = self.tile(key_tile, self.plan.mask, {})
        if self.plan.m % self.plan.config.block_k:
            exists = tile.spread(self.key_positions(key_tile)) < self.visits.keys
        else:
            exists = tile.spread(Placed(self.visits.some, ()))
        return jnp.logical_and(tile.spread(tile.evaluate(self.plan.mask)), exists)

    def scores(self, raw: Array, key_tile: Any) -> tuple[Array, float]:
        """Scores and the factor that takes them to base 2; the scale joins the factor where the score is `s`."""
        plan = self.plan
        if plan.score == S and plan.scale > 0:
            return raw, plan.scale * LOG2E
        tile = self.tile(key_tile, plan.score, {S: Placed(raw * plan.scale, (0, 1))})
        return tile.spread(tile.evaluate(plan.score)), LOG2E

    def softmax(self, raw: Array, key_tile: Any, masked: bool, top: Array, total: Array) -> State:
        """One step of the running softmax (arXiv:1805.02867), in base 2.

        raw: float32 [64, block_k], q k^T without the scale. top, total: [64], the largest score so far and
        the sum of 2^(score - top).   -> (shrink, top, total, p): `shrink` [64] is what earlier sums are to be
        multiplied by, p [64, block_k] the tile's weights.
        """
        score, factor = self.scores(raw, key_tile)
        if masked:
            score = jnp.where(self.seen(key_tile), score, -jnp.inf)
        raised = jnp.maximum(top, score.max(axis=1) * factor)
        # a row that has seen nothing has no largest score; any finite one gives it weights of zero
        base = jnp.where(raised == -jnp.inf, 0.0, raised)
        p = jnp.exp2(score * factor - lax.broadcast_in_dim(base, score.shape, (0,)))
        shrink = jnp.exp2(top - base)
        total = total * shrink + p.sum(axis=1)
        return shrink, raised, total, p


def consume(plan: Plan, visits: Visits, mem: Memory) -> None:
    """A consumer warpgroup: 64 query rows, from Q to the finished output and log-sum-exp."""
    config, wg = plan.config, lax.axis_index("wg")
    first = visits.tile * config.block_q + wg * ROWS
    q_tile, mine = mem.q_tile.at[wg], (visits.batch, pl.ds(first, ROWS), visits.head)
    plgpu.copy_gmem_to_smem(mem.q.at[mine], q_tile, mem.q_ready.at[wg])
    rows = Rows(plan, visits, mem.captured, first)
    staging = None if mem.staging is None else mem.staging.at[wg]

    def take_turn() -> None:
        plgpu.barrier_wait(mem.turn.at[wg])

    def pass_turn() -> None:
        plgpu.barrier_arrive(mem.turn.at[lax.rem(wg + 1, config.consumers)])

    def visit(n: Any, carry: Any, last: Any, masked: bool) -> Any:
        """Scores and softmax of one tile, beside the P V product of the tile before."""
        step, out, top, total, weights = carry
        slot, before = lax.rem(step, config.stages), lax.rem(step - 1, config.stages)

        def v_ready() -> None:
            plgpu.barrier_wait(mem.v_ready.at[before])

        def softmax(raw: Array, state: State) -> State:
            plgpu.barrier_arrive(mem.k_free.at[slot])
            return rows.softmax(raw, last - n, masked, top, total)

        plgpu.barrier_wait(mem.k_ready.at[slot])
        take_turn()
        out, (shrink, top, total, p) = paired(
            q_tile,
            mem.k_ring.at[slot].T,
            out,
            weights,
            mem.v_ring.at[before],
            between=v_ready,
            issued=pass_turn,
            during=softmax,
            state=(top, top, total, weights.astype(jnp.float32)),
            staging=staging,
        )
        plgpu.barrier_arrive(mem.v_free.at[before])
        out = out * lax.broadcast_in_dim(shrink, out.shape, (0,))
        return step + 1, out, top, total, p.astype(plan.dtype)

    def over_range(turn: Any, here: Range, carry: Any) -> Any:
        start, end, full = here
        masked = jnp.logical_or(full == 0, jnp.logical_not(visits.some))
        last = jnp.where(turn == 0, end - 2, end - 1)  # the very last tile is visited before this loop
        count = last + 1 - start
        carry = lax.fori_loop(0, jnp.where(masked, 0, count), partial(visit, last=last, masked=False), carry)
        return lax.fori_loop(0, jnp.where(masked, count, 0), partial(visit, last=last, masked=True), carry)

    pl.when(wg == config.consumers - 1)(pass_turn)
    plgpu.barrier_wait(mem.q_ready.at[wg])
    plgpu.barrier_wait(mem.k_ready.at[0])
    take_turn()
    raw = product(q_tile, mem.k_ring.at[0].T, issued=pass_turn, watched=plan.interpret)
    plgpu.barrier_arrive(mem.k_free.at[0])
    top = plgpu.layout_cast(jnp.full((ROWS,), -jnp.inf, jnp.float32), ROW)
    _, top, total, p = rows.softmax(raw, visits.first[1] - 1, True, top, jnp.zeros_like(top))
    out = plgpu.layout_cast(jnp.zeros((ROWS, plan.head_dim), jnp.float32), plgpu.Layout.WGMMA)
    carry = (jnp.int32(1), out, top, total, p.astype(plan.dtype))
    step, out, top, total, weights = visits.loop(over_range, carry)
    slot = lax.rem(step - 1, config.stages)
    plgpu.barrier_wait(mem.v_ready.at[slot])
    out = mma(out, weights, mem.v_ring.at[slot], staging)
    plgpu.barrier_arrive(mem.v_free.at[slot])
    pl.when(wg == 0)(take_turn)  # the last one passed is nobody else's
    finish(visits, mem, wg, mine, out, top, total)


def finish(visits: Visits, mem: Memory, wg: Any, mine: Any, out: Array, top: Array, total: Array) -> None:
    """Divides by the sums and stores, through the shared memory that held Q."""
    q_tile, lse_tile = mem.q_tile.at[wg], mem.lse_tile.at[wg]
    share = jnp.where(total == 0, 0.0, 1 / total)
    q_tile[...] = (out * lax.broadcast_in_dim(share, out.shape, (0,))).astype(q_tile.dtype)
    lse_tile[...] = top * (1 / LOG2E) + jnp.log(total)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_tile, mem.out.at[mine])
    plgpu.copy_smem_to_gmem(lse_tile, mem.lse.at[visits.batch, visits.head, mine[1]])
    plgpu.wait_smem_to_gmem(0)


def body(plan: Plan, *refs: Any, **scratch: Any) -> None:
    """The kernel: each warpgroup takes its part, and the registers it needs."""
    q, k, v, heads, triples, *captured, out, lse = refs
    row = captured.pop() if plan.stacked else None
    arrays = dict(q=q, k=k, v=v, heads=heads, triples=triples, captured=tuple(captured), row=row, out=out, lse=lse)
    mem = Memory(**arrays, **scratch)
    visits = Visits(plan, mem)
    wg, consumers = lax.axis_index("wg"), plan.config.consumers

    @pl.when(wg < consumers)
    def _consumer() -> None:
        plgpu.set_max_registers(232 if consumers == 2 else 160, action="increase")
        consume(plan, visits, mem)

    @pl.when(wg == consumers)
    def _producer() -> None:
        plgpu.set_max_registers(40 if consumers == 2 else 32, action="decrease")
        produce(plan, visits, mem)


def shared(plan: Plan) -> dict[str, Any]:
    """Buffers and barriers of a block."""
    config, consumers, stages = plan.config, plan.config.consumers, plan.config.stages
    swizzle = min(plan.head_dim * 2, 128)
    transforms = (
        plgpu.TilingTransform((8, swizzle // 2)),  # type: ignore[abstract]  # a protocol of JAX with an empty body
        plgpu.SwizzleTransform(swizzle),  # type: ignore[abstract]  # the same
    )
    ring = plgpu.SMEM((stages, config.block_k, plan.head_dim), plan.dtype, transforms=transforms)
    out = dict(
        q_tile=plgpu.SMEM((consumers, ROWS, plan.head_dim), plan.dtype, transforms=transforms),
        k_ring=ring,
        v_ring=ring,
        lse_tile=plgpu.SMEM((consumers, ROWS), jnp.float32),
        q_ready=plgpu.Barrier(num_barriers=consumers),
        k_ready=plgpu.Barrier(num_barriers=stages),
        v_ready=plgpu.Barrier(num_barriers=stages),
        k_free=plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
        v_free=plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
        turn=plgpu.Barrier(num_barriers=consumers),
    )
    if plan.interpret:
        out["staging"] = plgpu.SMEM((consumers, ROWS, config.block_k), plan.dtype)
    return out


def launch(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    """The kernel as a function of (q, k, v, heads, triples, *captured) that gives (out, lse); where k and v are stacks,
    the last of `captured` is int32 [1], the row.

    N and M of q, k, v and out are the plan's, rounded up to a multiple of 8, as the copy engine moves tiles of 8
    rows; lse reaches to the end of the last query tile (a copy along one axis is not clipped).

    triples: int32 [Br, Hr, Tq, R, 3], (start, end, full) in key tiles, sorted, disjoint; Br is 1 or B, Hr 1 or H.
    heads: int32 [Br, Hr, Tq, 4], how many of the R there are, and the last of them. captured: fields [B, T] or [T]
    that reach to the end of the last tile, tables [H]; booleans as int32.
    """
    n, tiles = -(-plan.n // 8) * 8, -(-plan.n // plan.config.block_q)
    kernel: Callable[..., tuple[Array, Array]] = plgpu.kernel(
        partial(body, plan),
        out_type=(
            jax.ShapeDtypeStruct((plan.batch, n, plan.heads, plan.head_dim), plan.dtype),
            jax.ShapeDtypeStruct((plan.batch, plan.heads, tiles * plan.config.block_q), jnp.float32),
        ),
        scratch_types=shared(plan),
        grid=(plan.batch, plan.heads, tiles),
        grid_names=("batch", "head", "tile"),
        num_threads=plan.config.consumers + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=mosaic_interpreter() if plan.interpret else None,
    )
    return kernel
