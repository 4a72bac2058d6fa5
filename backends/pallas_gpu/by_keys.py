"""Key and value tiles turned into their gradients: a Hopper kernel over key tiles, dk and dv summed in registers.

A block owns a tile of keys of one key/value head. Its memory warpgroup moves the tiles of Q and dO that see the tile,
head by head of the group, into rings; each consumer owns 64 keys and computes, transposed, so that what it sums is
in registers already (arXiv:2407.08608),

    s^T = k q^T    p^T = exp(score - lse)    dv += p^T dO    dp^T = v dO^T    dk += ds^T q

The last product of a tile can run beside the next tile's exponentials: `Config.ahead`. Then a tile's p^T dO also runs
beside the rest of its own arithmetic.

The heads of a group are added up in order by the same threads: two runs give the same bits. Where both sums do not
fit the registers, one launch makes dk and one dv (`Plan.gives`), and s^T is computed twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from tfc.backends.formula import Placed
from tfc.backends.pallas_gpu.inflight import Term, anew, empty_sums, parts, successive, sums_of, terms, zeros
from tfc.backends.pallas_gpu.meetings import Meetings
from tfc.backends.pallas_gpu.mma import product
from tfc.backends.pallas_gpu.pairs import Kept, Pairs, Plan
from tfc.backends.pallas_gpu.streaming import COLUMN, ROW, ROWS
from tfc.compat import mosaic_interpreter, mosaic_load

__all__ = ["launch", "tile_memory"]

Array = jax.Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """References: arrays in global memory, buffers and barriers in shared memory."""

    q: Any
    k: Any
    v: Any
    do: Any
    lse: Any
    delta: Any
    firsts: Any
    triples: Any
    captured: tuple[Any, ...]
    given: dict[str, Any]
    sums: Any
    k_tile: Any
    q_ring: Any
    do_ring: Any
    lse_ring: Any
    delta_ring: Any
    k_ready: Any
    q_ready: Any
    do_ready: Any
    q_free: Any
    do_free: Any
    v_tile: Any = None
    v_ready: Any = None
    sums_tile: Any = None
    staging: Any = None
    zeroed: Any = None


class Place:
    """Which keys a block owns, of which heads, and what sees them."""

    def __init__(self, plan: Plan, mem: Memory) -> None:
        self.batch, self.kv_head, self.tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
        self.group = plan.heads // plan.kv_heads
        self.head = self.kv_head * self.group
        self.meetings = Meetings(mem.firsts, mem.triples, self.batch, self.tile, early=False)


def produce(plan: Plan, place: Place, mem: Memory) -> None:
    """The memory warpgroup: fills each slot of the rings as soon as every consumer has left it.

    Consumers that run ahead leave a slot a step late; until their first step they are in the last one, as `Ahead` says.
    """
    (stages, passing), columns = plan.config.rings, plan.config.columns
    unused = stages - 1 if plan.config.ahead else stages

    def fill(tile: Any, step: Any, head: Any) -> Any:
        slot, passed = lax.rem(step, stages), lax.rem(step, passing)
        part = pl.ds(tile * columns, columns)

        @pl.when(step >= unused)
        def _q_left() -> None:
            plgpu.barrier_wait(mem.q_free.at[slot])

        ready, rows, numbers = mem.q_ready.at[slot], (place.batch, part, head), (place.batch, head, part)
        plgpu.copy_gmem_to_smem(mem.q.at[rows], mem.q_ring.at[slot], ready)
        plgpu.copy_gmem_to_smem(mem.lse.at[numbers], mem.lse_ring.at[slot], ready)
        plgpu.copy_gmem_to_smem(mem.delta.at[numbers], mem.delta_ring.at[slot], ready)

        @pl.when(step >= passing)
        def _do_left() -> None:
            plgpu.barrier_wait(mem.do_free.at[passed])

        plgpu.copy_gmem_to_smem(mem.do.at[rows], mem.do_ring.at[passed], mem.do_ready.at[passed])
        return step + 1

    def over_range(head: Any, here: Any, step: Any) -> Any:
        start, end, _ = here
        return lax.fori_loop(start, end, partial(fill, head=head), step)

    steps = place.meetings.heads(place.head, place.group, over_range, jnp.int32(0))

    for free, slots in ((mem.q_free, unused), (mem.do_free, passing)):

        @pl.loop(0, jnp.minimum(steps, slots))
        def _drain(left: Any, free: Any = free) -> None:  # every arrival at a barrier is met by a wait
            plgpu.barrier_wait(free.at[left])

    if plan.config.ahead:
        plgpu.barrier_wait(mem.q_free.at[stages - 1])


class Consumer:
    """A warpgroup with 64 keys."""

    def __init__(self, plan: Plan, place: Place, mem: Memory) -> None:
        self.plan, self.place, self.mem, self.wg = plan, place, mem, lax.axis_index("wg")
        self.first = place.tile * plan.config.rows + self.wg * ROWS
        self.k_tile = mem.k_tile.at[self.wg]
        self.v_tile = None if mem.v_tile is None else mem.v_tile.at[self.wg]
        self.mine = (place.batch, pl.ds(self.first, ROWS), place.kv_head)
        self.staging = None if mem.staging is None else mem.staging.at[self.wg]
        plgpu.copy_gmem_to_smem(mem.k.at[self.mine], self.k_tile, mem.k_ready.at[self.wg])
        if self.v_tile is not None:
            plgpu.copy_gmem_to_smem(mem.v.at[self.mine], self.v_tile, mem.v_ready.at[self.wg])
        self.pairs = Pairs(plan, place.batch, mem.captured, self.first)

    def run(self) -> None:
        carry = self.place.meetings.heads(self.place.head, self.place.group, self.over_range, self.begin())
        self.finish(*carry[1:])

    def begin(self) -> tuple[Any, dict[str, tuple[Array, ...]], tuple[Array, ...]]:
        """Waits for the keys and values -> the first step, and empty sums."""
        plan, mem = self.plan, self.mem
        none = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), ROW)
        plgpu.barrier_wait(mem.k_ready.at[self.wg])
        if self.v_tile is not None:
            plgpu.barrier_wait(mem.v_ready.at[self.wg])
        totals = {name: empty_sums(plan.head_dim) for name in plan.gives}
        return jnp.int32(0), totals, (none,) * len(plan.leaves)

    def over_range(self, head: Any, here: Any, carry: Any) -> Any:
        start, end, full = here
        middle = jnp.where(full == 0, start, end)
        carry = lax.fori_loop(start, middle, partial(self.visit, head=head, masked=False), carry)
        return lax.fori_loop(middle, end, partial(self.visit, head=head, masked=True), carry)

    def visit(self, tile: Any, carry: Any, head: Any, masked: bool) -> Any:
        """One tile of queries: its scores, and what they add to dk and dv."""
        plan, mem = self.plan, self.mem
        step, totals, sums = carry
        slot, passed = plan.config.slots(step)
        (p, ds, more), _ = self.scores(tile * plan.config.columns, head, step, masked)
        products = []
        if "v" in totals:
            products += terms(totals["v"], p.astype(plan.dtype), mem.do_ring.at[passed])
        else:
            plgpu.barrier_arrive(mem.do_free.at[passed])
        if "k" in totals:
            products += terms(totals["k"], ds.astype(plan.dtype), mem.q_ring.at[slot])
        found = iter(sums_of(*products, staging=self.staging))
        totals = {name: tuple(next(found) for _ in totals[name]) for name in ("v", "k") if name in totals}
        if "v" in totals:
            plgpu.barrier_arrive(mem.do_free.at[passed])
        plgpu.barrier_arrive(mem.q_free.at[slot])
        return step + 1, totals, tuple(a + b for a, b in zip(sums, more, strict=True))

    def scores(
        self,
        first: Any,
        head: Any,
        step: Any,
        masked: bool,
        behind: Sequence[Term] = (),
        dv: Sequence[Array] = (),
    ) -> tuple[tuple[Array, Array, tuple[Array, ...]], tuple[Array, ...]]:
        """p and ds [64, columns], ds without the scale, and the leaves' sums, of a step's tile; the sums of the terms
        behind it, and dv with what the tile adds to it where it is given."""
        plan, mem, pairs = self.plan, self.mem, self.pairs
        slot, passed = plan.config.slots(step)
        plgpu.barrier_wait(mem.q_ready.at[slot])
        tile = pairs.tile(first, head)
        mine = anew(self.wg, step)
        k_tile = mem.k_tile.at[mine]
        q, do = mem.q_ring.at[slot], mem.do_ring.at[passed]

        def early(raw: Array) -> tuple[Array, Kept]:
            lse = Placed(mosaic_load(mem.lse_ring.at[slot], COLUMN), (1,))
            return pairs.weights(tile, raw, lse, pairs.seen(tile, first) if masked else None)

        def do_ready() -> None:
            plgpu.barrier_wait(mem.do_ready.at[passed])

        if self.v_tile is None:
            p = early(product(k_tile, q.T, watched=plan.interpret))[0]
            do_ready()
            return (p, p, ()), ()
        nothing = zeros(ROWS, plan.config.columns)
        none = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), ROW)
        delta = Placed(mosaic_load(mem.delta_ring.at[slot], COLUMN), (1,))
        return successive(
            k_tile,
            q.T,
            mem.v_tile.at[mine],
            do.T,
            pairs.less(tile, delta),
            between=do_ready,
            early=early,
            late=lambda found, dp: (found[0], *pairs.gradients(tile, found[1], dp)),
            state=(nothing, nothing, (none,) * len(plan.leaves)),
            behind=behind,
            beside=terms(dv, lambda found: found[0].astype(plan.dtype), do) if dv else (),
            staging=self.staging,
        )

    def finish(self, totals: dict[str, tuple[Array, ...]], sums: tuple[Array, ...]) -> None:
        """Stores, through the shared memory that held the keys and values."""
        plan, mem, place = self.plan, self.mem, self.place
        tiles = {"k": self.k_tile, "v": self.k_tile if self.v_tile is None else self.v_tile}
        for name, total in totals.items():
            for part, x in zip(parts(plan.head_dim), total, strict=True):
                tiles[name][:, part] = (x * plan.scale if name == "k" else x).astype(plan.dtype)
        for i, x in enumerate(sums):
            mem.sums_tile[self.wg, i] = x
        plgpu.commit_smem()
        for name in totals:
            plgpu.copy_smem_to_gmem(tiles[name], mem.given[name].at[self.mine])
        for i in range(len(sums)):
            plgpu.copy_smem_to_gmem(
                mem.sums_tile.at[self.wg, i], mem.sums.at[i, place.batch, place.kv_head, self.mine[1]]
            )
        plgpu.wait_smem_to_gmem(0)


class Ahead(Consumer):
    """The same, with the product `ds^T q` of each tile beside the exponentials of the next one, and `p^T dO` beside
    what is left of its own.

    What is added to dk comes one tile late. Before the first there is a tile of zeros, in the last slot of the ring,
    so that the loop begins like any other step and a block that meets no queries ends like any other.
    """

    def run(self) -> None:
        plan, mem = self.plan, self.mem
        nothing = plgpu.layout_cast(jnp.zeros((ROWS, plan.config.columns), plan.dtype), plgpu.Layout.WGMMA)
        before = mem.q_ring.at[plan.config.stages - 1]

        @pl.when(self.wg == 0)
        def _zeros() -> None:
            before[...] = plgpu.layout_cast(jnp.zeros(before.shape, plan.dtype), plgpu.Layout.WGMMA)
            plgpu.commit_smem()
            plgpu.barrier_arrive(mem.zeroed)

        plgpu.barrier_wait(mem.zeroed)
        carry = (*self.begin(), nothing)
        carry = self.place.meetings.heads(self.place.head, self.place.group, self.over_range, carry)
        step, totals, sums, ds = carry
        last = self.before(step)
        totals["k"] = sums_of(*terms(totals["k"], ds, mem.q_ring.at[last]), staging=self.staging)
        plgpu.barrier_arrive(mem.q_free.at[last])
        self.finish(totals, sums)

    def before(self, step: Any) -> Any:
        """The slot of the step before."""
        return lax.rem(step + (self.plan.config.stages - 1), self.plan.config.stages)

    def visit(self, tile: Any, carry: Any, head: Any, masked: bool) -> Any:
        plan, mem = self.plan, self.mem
        step, totals, sums, ds = carry
        last = anew(self.before(step), step)
        behind = terms(totals["k"], ds, mem.q_ring.at[last])
        first = tile * plan.config.columns
        (_, ds, more), found = self.scores(first, head, step, masked, behind, totals.get("v", ()))
        for free, left in ((mem.q_free, last), (mem.do_free, plan.config.slots(step)[1])):
            plgpu.barrier_arrive(free.at[left])
        made = {"k": found[: len(behind)], "v": found[len(behind) :]}
        sums = tuple(a + b for a, b in zip(sums, more, strict=True))
        return step + 1, {name: made[name] for name in totals}, sums, ds.astype(plan.dtype)


def body(plan: Plan, *refs: Any, **scratch: Any) -> None:
    """The kernel: each warpgroup takes its part, and the registers it needs."""
    (q, k, v, do, lse, delta, firsts, triples), rest = refs[:8], refs[8:]
    outs = len(plan.gives) + bool(plan.leaves)
    captured, made = tuple(rest[: len(rest) - outs]), rest[len(rest) - outs :]
    arrays = dict(q=q, k=k, v=v, do=do, lse=lse, delta=delta, firsts=firsts, triples=triples, captured=captured)
    given = dict(zip(plan.gives, made[: len(plan.gives)], strict=True))
    mem = Memory(**arrays, given=given, sums=made[-1] if plan.leaves else None, **scratch)
    place = Place(plan, mem)
    wg, consumers = lax.axis_index("wg"), plan.config.consumers

    @pl.when(wg < consumers)
    def _consumer() -> None:
        plgpu.set_max_registers(REGISTERS[consumers][0], action="increase")
        (Ahead if plan.config.ahead else Consumer)(plan, place, mem).run()

    @pl.when(wg == consumers)
    def _producer() -> None:
        plgpu.set_max_registers(REGISTERS[consumers][1], action="decrease")
        produce(plan, place, mem)


REGISTERS = {1: (256 - 16, 24), 2: (240, 24), 3: (160, 32)}
"""Of a consumer's thread and of the memory warpgroup's, by the number of consumers: 64 Ki for the block."""


def transforms(head_dim: int) -> tuple[Any, ...]:
    """How tiles of head_dim columns lie in shared memory, for the copy engine and `wgmma` alike."""
    swizzle = min(head_dim * 2, 128)
    return (
        plgpu.TilingTransform((8, swizzle // 2)),  # type: ignore[abstract]  # a protocol of JAX with an empty body
        plgpu.SwizzleTransform(swizzle),  # type: ignore[abstract]  # the same
    )


def tile_memory(plan: Plan) -> dict[str, Any]:
    """Buffers and barriers of a block."""
    config, d = plan.config, plan.head_dim
    consumers, (stages, passing) = config.consumers, config.rings
    tile = plgpu.SMEM((consumers, ROWS, d), plan.dtype, transforms=transforms(d))
    rings = [plgpu.SMEM((slots, config.columns, d), plan.dtype, transforms=transforms(d)) for slots in config.rings]
    numbers = plgpu.SMEM((stages, config.columns), jnp.float32)
    out = dict(
        k_tile=tile,
        v_tile=tile if "k" in plan.gives else None,
        q_ring=rings[0],
        do_ring=rings[1],
        lse_ring=numbers,
        delta_ring=numbers,
        k_ready=plgpu.Barrier(num_barriers=consumers),
        v_ready=plgpu.Barrier(num_barriers=consumers) if "k" in plan.gives else None,
        zeroed=plgpu.Barrier() if config.ahead else None,
        q_ready=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
        do_ready=plgpu.Barrier(num_barriers=passing),
        q_free=plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
        do_free=plgpu.Barrier(num_arrivals=consumers, num_barriers=passing),
    )
    if plan.leaves:
        out["sums_tile"] = plgpu.SMEM((consumers, len(plan.leaves), ROWS), jnp.float32)
    if plan.interpret:
        out["staging"] = plgpu.SMEM((consumers, ROWS, config.columns), plan.dtype)
    return {name: buffer for name, buffer in out.items() if buffer is not None}


def launch(plan: Plan) -> Callable[..., tuple[Array, ...]]:
    """The kernel as a function of (q, k, v, do, lse, delta, firsts, triples, *captured) that gives the plan's
    of (dk, dv), in its order, and sums [leaves, B, G, keys] behind them where it has leaves.

    M of k, v, dk, dv is the plan's rounded up to a multiple of 8, as is N of q and do: the copy engine moves tiles of
    8 rows. lse, delta: float32 [B, H, N], to the end of the last tile of queries, lse in base 2 and +inf for queries
    that see nothing or do not exist, delta finite. firsts, triples: as in `Meetings`, of query tiles by key tile.
    captured: as for the forward kernel. Raises ValueError where dv alone is asked for ahead: nothing of it comes late.
    """
    if plan.config.ahead and "k" not in plan.gives:
        raise ValueError("dv alone has no product that could run beside the next tile's exponentials")
    m = -(-plan.m // 8) * 8
    gradient = jax.ShapeDtypeStruct((plan.batch, m, plan.kv_heads, plan.head_dim), plan.dtype)
    sums = (len(plan.leaves), plan.batch, plan.kv_heads, plan.tiles * plan.config.rows)
    kernel: Callable[..., tuple[Array, ...]] = plgpu.kernel(
        partial(body, plan),
        out_type=(*(gradient for _ in plan.gives), *([jax.ShapeDtypeStruct(sums, jnp.float32)] if plan.leaves else [])),
        scratch_types=tile_memory(plan),
        grid=(plan.batch, plan.kv_heads, plan.tiles),
        grid_names=("batch", "head", "tile"),
        num_threads=plan.config.consumers + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=mosaic_interpreter() if plan.interpret else None,
    )
    return kernel
