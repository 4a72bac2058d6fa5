"""Query tiles turned into their gradients: a Hopper kernel over query tiles, dq summed in registers.

A block owns a tile of queries of one head. Its memory warpgroup moves the K and V tiles that the tile sees into
rings; each consumer owns 64 queries and computes

    s = q k^T    p = exp(score - lse)    dp = dout v^T    ds = p (dp - delta) d score / d s    dq += ds k

The last product of a tile can run beside the next tile's exponentials: `Config.ahead`.
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
from tfc.backends.pallas_gpu.by_keys import REGISTERS, transforms
from tfc.backends.pallas_gpu.inflight import anew, empty_sums, parts, successive, sums_of, terms, zeros
from tfc.backends.pallas_gpu.meetings import Meetings
from tfc.backends.pallas_gpu.pairs import Kept, Pairs, Plan
from tfc.backends.pallas_gpu.streaming import ROW, ROWS
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
    dq: Any
    sums: Any
    q_tile: Any
    do_tile: Any
    k_ring: Any
    v_ring: Any
    sums_tile: Any
    q_ready: Any
    do_ready: Any
    k_ready: Any
    v_ready: Any
    k_free: Any
    v_free: Any
    staging: Any = None


class Place:
    """Which queries a block owns, of which head, and what they see."""

    def __init__(self, plan: Plan, mem: Memory) -> None:
        self.batch, self.head = lax.axis_index("batch"), lax.axis_index("head")
        # under a causal mask the last query tiles see most: begin with them, so that short ones end the launch
        self.tile = plan.tiles - 1 - lax.axis_index("tile")
        self.meetings = Meetings(mem.firsts, mem.triples, self.batch, self.tile)

    def loop(self, visit: Callable[[Any, Any], Any], carry: Any) -> Any:
        return self.meetings.loop(self.head, self.meetings.first(self.head), visit, carry)


def produce(plan: Plan, place: Place, mem: Memory) -> None:
    """The memory warpgroup: fills each slot of the rings as soon as every consumer has left it."""
    (stages, passing), columns = plan.config.rings, plan.config.columns
    kv_head = lax.div(place.head, plan.heads // plan.kv_heads)

    def fill(tile: Any, step: Any) -> Any:
        slot, passed = lax.rem(step, stages), lax.rem(step, passing)
        keys = (place.batch, pl.ds(tile * columns, columns), kv_head)

        @pl.when(step >= stages)
        def _k_left() -> None:
            plgpu.barrier_wait(mem.k_free.at[slot])

        plgpu.copy_gmem_to_smem(mem.k.at[keys], mem.k_ring.at[slot], mem.k_ready.at[slot])

        @pl.when(step >= passing)
        def _v_left() -> None:
            plgpu.barrier_wait(mem.v_free.at[passed])

        plgpu.copy_gmem_to_smem(mem.v.at[keys], mem.v_ring.at[passed], mem.v_ready.at[passed])
        return step + 1

    def over_range(here: Any, step: Any) -> Any:
        start, end, _ = here
        return lax.fori_loop(start, end, fill, step)

    steps = place.loop(over_range, jnp.int32(0))

    for free, slots in ((mem.k_free, stages), (mem.v_free, passing)):

        @pl.loop(0, jnp.minimum(steps, slots))
        def _drain(left: Any, free: Any = free) -> None:  # every arrival at a barrier is met by a wait
            plgpu.barrier_wait(free.at[left])


class Consumer:
    """A warpgroup with 64 queries."""

    def __init__(self, plan: Plan, place: Place, mem: Memory) -> None:
        self.plan, self.place, self.mem, self.wg = plan, place, mem, lax.axis_index("wg")
        self.first = place.tile * plan.config.rows + self.wg * ROWS
        self.q_tile, self.do_tile = mem.q_tile.at[self.wg], mem.do_tile.at[self.wg]
        self.mine = (place.batch, pl.ds(self.first, ROWS), place.head)
        self.staging = None if mem.staging is None else mem.staging.at[self.wg]
        plgpu.copy_gmem_to_smem(mem.q.at[self.mine], self.q_tile, mem.q_ready.at[self.wg])
        plgpu.copy_gmem_to_smem(mem.do.at[self.mine], self.do_tile, mem.do_ready.at[self.wg])
        numbers = (place.batch, place.head, self.mine[1])
        self.lse = Placed(mosaic_load(mem.lse.at[numbers], ROW), (0,))
        self.delta = Placed(mosaic_load(mem.delta.at[numbers], ROW), (0,))
        self.pairs = Pairs(plan, place.batch, mem.captured, self.first)
        self.do: Array | None = None

    def run(self) -> None:
        plan, mem = self.plan, self.mem
        none = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), ROW)
        plgpu.barrier_wait(mem.q_ready.at[self.wg])
        plgpu.barrier_wait(mem.do_ready.at[self.wg])
        carry = (jnp.int32(0), empty_sums(plan.head_dim), (none,) * len(plan.leaves))
        _, dq, sums = self.place.loop(self.over_range, carry)
        self.finish(dq, sums)

    def over_range(self, here: Any, carry: Any) -> Any:
        start, end, full = here
        middle = jnp.where(full == 0, start, end)
        carry = lax.fori_loop(start, middle, partial(self.visit, masked=False), carry)
        return lax.fori_loop(middle, end, partial(self.visit, masked=True), carry)

    def visit(self, tile: Any, carry: Any, masked: bool) -> Any:
        """One tile of keys: its scores, and what they add to dq."""
        plan, mem = self.plan, self.mem
        step, dq, sums = carry
        slot, _ = plan.config.slots(step)
        (ds, more), _ = self.scores(tile * plan.config.columns, step, masked)
        dq = sums_of(*terms(dq, ds.astype(plan.dtype), mem.k_ring.at[slot]), staging=self.staging)
        plgpu.barrier_arrive(mem.k_free.at[slot])
        return step + 1, dq, tuple(a + b for a, b in zip(sums, more, strict=True))

    def scores(self, first: Any, step: Any, masked: bool, behind: Sequence[Any] = ()) -> Any:
        """((ds, sums of the leaves), the sums of the terms behind it) of a step's tile, from key `first` on. Leaves the
        values."""
        plan, mem, pairs = self.plan, self.mem, self.pairs
        tile = pairs.tile(first, self.place.head)
        mine = anew(self.wg, step)
        slot, passed = plan.config.slots(step)

        def early(raw: Array) -> Kept:
            return pairs.weights(tile, raw, self.lse, pairs.seen(tile, first) if masked else None)[1]

        none = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), ROW)
        plgpu.barrier_wait(mem.k_ready.at[slot])
        found = successive(
            mem.q_tile.at[mine],
            mem.k_ring.at[slot].T,
            mem.do_tile.at[mine] if self.do is None else self.do,
            mem.v_ring.at[passed].T,
            pairs.less(tile, self.delta),
            between=lambda: plgpu.barrier_wait(mem.v_ready.at[passed]),
            early=early,
            late=lambda kept, dp: pairs.gradients(tile, kept, dp),
            state=(zeros(ROWS, plan.config.columns), (none,) * len(plan.leaves)),
            behind=behind,
            staging=self.staging,
        )
        plgpu.barrier_arrive(mem.v_free.at[passed])
        return found

    def finish(self, dq: tuple[Array, ...], sums: tuple[Array, ...]) -> None:
        """Stores, through the shared memory that held the queries."""
        plan, mem, place = self.plan, self.mem, self.place
        for part, x in zip(parts(plan.head_dim), dq, strict=True):
            self.q_tile[:, part] = (x * plan.scale).astype(plan.dtype)
        for i, x in enumerate(sums):
            mem.sums_tile[self.wg, i] = x
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(self.q_tile, mem.dq.at[self.mine])
        for i in range(len(sums)):
            plgpu.copy_smem_to_gmem(mem.sums_tile.at[self.wg, i], mem.sums.at[i, place.batch, place.head, self.mine[1]])
        plgpu.wait_smem_to_gmem(0)


class Ahead(Consumer):
    """The same, with the product `ds k` of each tile beside the exponentials of the next one.

    What is summed comes one tile late: ds of the last tile is carried, and added at the end.
    """

    def run(self) -> None:
        plan, mem = self.plan, self.mem
        none = plgpu.layout_cast(jnp.zeros((ROWS,), jnp.float32), ROW)
        plgpu.barrier_wait(mem.q_ready.at[self.wg])
        plgpu.barrier_wait(mem.do_ready.at[self.wg])
        if plan.config.held and not plan.interpret:
            self.do = mosaic_load(self.do_tile, plgpu.Layout.WGMMA)
        first = self.place.meetings.first(self.place.head)
        count, start, *_ = first
        dq = empty_sums(plan.head_dim)
        nothing = (none,) * len(plan.leaves)
        some = count > 0

        @pl.when(jnp.logical_not(some))
        def _nothing() -> None:
            self.finish(dq, nothing)

        @pl.when(some)
        def _something() -> None:
            (ds, sums), _ = self.scores(start * plan.config.columns, jnp.int32(0), True)
            rest = (count, start + 1, *first[2:])
            carry = (jnp.int32(1), dq, sums, ds.astype(plan.dtype))
            step, total, sums, ds = self.place.meetings.loop(self.place.head, rest, self.over_range, carry)
            slot = lax.rem(step - 1, plan.config.stages)
            total = sums_of(*terms(total, ds, mem.k_ring.at[slot]), staging=self.staging)
            plgpu.barrier_arrive(mem.k_free.at[slot])
            self.finish(total, sums)

    def visit(self, tile: Any, carry: Any, masked: bool) -> Any:
        plan, mem = self.plan, self.mem
        step, dq, sums, before = carry
        last = lax.rem(step - 1, plan.config.stages)
        behind = terms(dq, before, mem.k_ring.at[last])
        (ds, more), dq = self.scores(tile * plan.config.columns, step, masked, behind)
        plgpu.barrier_arrive(mem.k_free.at[last])
        return step + 1, dq, tuple(a + b for a, b in zip(sums, more, strict=True)), ds.astype(plan.dtype)


def body(plan: Plan, *refs: Any, **scratch: Any) -> None:
    """The kernel: each warpgroup takes its part, and the registers it needs."""
    (q, k, v, do, lse, delta, firsts, triples), rest = refs[:8], refs[8:]
    outs = 2 if plan.leaves else 1
    captured, (dq, *sums) = tuple(rest[: len(rest) - outs]), rest[len(rest) - outs :]
    arrays = dict(q=q, k=k, v=v, do=do, lse=lse, delta=delta, firsts=firsts, triples=triples, captured=captured)
    own = dict(sums=sums[0] if sums else None, sums_tile=scratch.pop("sums_tile", None))
    mem = Memory(**arrays, dq=dq, **own, **scratch)
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


def tile_memory(plan: Plan) -> dict[str, Any]:
    """Buffers and barriers of a block."""
    config, d = plan.config, plan.head_dim
    consumers, (stages, passing) = config.consumers, config.rings
    tile = plgpu.SMEM((consumers, ROWS, d), plan.dtype, transforms=transforms(d))
    rings = [plgpu.SMEM((slots, config.columns, d), plan.dtype, transforms=transforms(d)) for slots in config.rings]
    out = dict(
        q_tile=tile,
        do_tile=tile,
        k_ring=rings[0],
        v_ring=rings[1],
        q_ready=plgpu.Barrier(num_barriers=consumers),
        do_ready=plgpu.Barrier(num_barriers=consumers),
        k_ready=plgpu.Barrier(num_barriers=stages),
        v_ready=plgpu.Barrier(num_barriers=passing),
        k_free=plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
        v_free=plgpu.Barrier(num_arrivals=consumers, num_barriers=passing),
    )
    if plan.leaves:
        out["sums_tile"] = plgpu.SMEM((consumers, len(plan.leaves), ROWS), jnp.float32)
    if plan.interpret:
        out["staging"] = plgpu.SMEM((consumers, ROWS, config.columns), plan.dtype)
    return out


def launch(plan: Plan) -> Callable[..., tuple[Array, ...]]:
    """The kernel as a function of (q, k, v, do, lse, delta, firsts, triples, *captured) that gives (dq,), and sums
    [leaves, B, H, queries] behind it where the plan has leaves.

    Operands as for `by_keys.launch`; firsts, triples: of key tiles by query tile; lse and delta reach to the end of
    the last tile of queries.
    """
    n = -(-plan.n // 8) * 8
    gradient = jax.ShapeDtypeStruct((plan.batch, n, plan.heads, plan.head_dim), plan.dtype)
    sums = (len(plan.leaves), plan.batch, plan.heads, plan.tiles * plan.config.rows)
    kernel: Callable[..., tuple[Array, ...]] = plgpu.kernel(
        partial(body, plan),
        out_type=(gradient, *([jax.ShapeDtypeStruct(sums, jnp.float32)] if plan.leaves else [])),
        scratch_types=tile_memory(plan),
        grid=(plan.batch, plan.heads, plan.tiles),
        grid_names=("batch", "head", "tile"),
        num_threads=plan.config.consumers + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=mosaic_interpreter() if plan.interpret else None,
    )
    return kernel
