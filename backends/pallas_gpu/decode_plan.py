"""What is known of a call of few queries over many keys turned into its plan and the memory that a block has for it."""

from dataclasses import dataclass
from typing import Any

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from tfc.backends.pallas_gpu import plan as attention
from tfc.backends.pallas_gpu.plan import Config
from tfc.formula.expr import Const, Load, Read

__all__ = ["BITS", "CROWDED", "LANES", "SCRATCH", "Memory", "Part", "Plan", "out_dtype", "shared", "shared_bytes"]

BITS = 24
"""Places in a word of the visits; above them the word says how many of its places are visited."""

LANES = 128
"""Threads of a block, and elements that a block of the second kernel makes."""

SCRATCH = 2048
"""Bytes for reductions across warps: of 16 rows at a time."""

CROWDED = 48
"""Rows of which a thread's registers hold the accumulators where heads have more than 192 elements."""

YES = Const(True)


def up64(size: int) -> int:
    return -(-size // 64) * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan(attention.Plan):
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
    def columns(self) -> int:
        """Columns of a tile of values in shared memory: as rows of V^T `wgmma` takes 64 of them at a time. What those
        beyond the head size hold goes to rows of O^T that are not stored."""
        return up64(self.head_dim)

    @property
    def crowded(self) -> bool:
        """Whether accumulators leave a thread no registers for the rows' statistics: then those lie in shared memory,
        and the block sums the weights of each tile, where else a thread has a sum for each of its scores until the end.
        """
        return self.rows * (self.columns + 2 * self.config.block_k) > 64 * 256

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
    p_tile: Any
    k_ring: Any
    v_ring: Any
    out_tile: Any
    lse_tile: Any
    q_ready: Any
    k_ready: Any
    v_ready: Any
    k_scales: Any = None
    v_scales: Any = None
    top: Any = None
    total: Any = None
    wide_k: Any = None
    wide_v: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """This block's place: a batch row, a head of the keys, a part of their tiles."""

    batch: Any
    kv_head: Any
    part: Any


def swizzled(shape: tuple[int, ...], dtype: Any, row: int) -> Any:
    """A buffer as `wgmma` and the copy engine like it: tiles of 8 rows, as wide as the longest swizzle that `row`
    elements are a whole number of."""
    size = jnp.dtype(dtype).itemsize
    swizzle = next(s for s in (128, 64, 32) if row * size % s == 0)
    transforms = (
        plgpu.TilingTransform((8, swizzle // size)),  # type: ignore[abstract]  # a protocol of JAX with an empty body
        plgpu.SwizzleTransform(swizzle),  # type: ignore[abstract]  # the same
    )
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def shared(plan: Plan) -> dict[str, Any]:
    """Buffers and barriers of a block. Results take the rings' place, once nothing arrives there any more."""
    config, d = plan.config, plan.head_dim
    tiles = (config.stages, config.block_k)
    if plan.kept is None:
        rings = [swizzled((*tiles, size), plan.dtype, d) for size in (d, plan.columns)]
    else:
        rings = [plgpu.SMEM((*tiles, d), plan.kept)] * 2
    results = [swizzled((plan.rows, plan.columns), out_dtype(plan), d), plgpu.SMEM((plan.rows,), jnp.float32)]
    copies = 1 if plan.kept is None else 2  # of a tile, and of its scales
    out = dict(
        q_tile=swizzled((plan.rows, d), plan.dtype, d),
        p_tile=swizzled((plan.rows, config.block_k), plan.dtype, d),
        tiles=plgpu.RefUnion(rings, results),
        q_ready=plgpu.Barrier(),
        k_ready=plgpu.Barrier(num_arrivals=copies, num_barriers=config.stages),
        v_ready=plgpu.Barrier(num_arrivals=copies, num_barriers=config.stages),
    )
    if plan.crowded:
        out |= {name: plgpu.SMEM((plan.rows,), jnp.float32) for name in ("top", "total")}
    if plan.kept is not None:
        for name, size in (("k", d), ("v", plan.columns)):
            out[f"wide_{name}"] = swizzled((config.block_k, size), plan.dtype, d)
            out[f"{name}_scales"] = plgpu.SMEM(tiles, jnp.float32)
    return out


def shared_bytes(config: Config, head_dim: int, rows: int, kept: bool) -> int:
    """Shared memory that a block takes of a multiprocessor's: buffers, each a whole number of KiB, what reductions and
    barriers need, and the KiB that each block costs besides."""
    columns, tokens = up64(head_dim), config.stages * config.block_k
    k, v = (tokens * (head_dim if kept else 2 * size) for size in (head_dim, columns))
    buffers = [2 * rows * head_dim, 2 * rows * config.block_k, max(k + v, 4 * rows * columns + 1024), SCRATCH]
    buffers += [2 * config.block_k * head_dim, 2 * config.block_k * columns, 4 * tokens, 4 * tokens] if kept else []
    buffers += [4 * rows, 4 * rows]  # statistics
    return sum(-(-size // 1024) for size in buffers) * 1024 + 16 * config.stages + 128 + 1024


def out_dtype(plan: Plan) -> Any:
    """What a part gives: the result itself where it is the only one, else float32 for the sum."""
    return plan.dtype if plan.splits == 1 else jnp.float32
