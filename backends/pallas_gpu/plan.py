"""What is chosen and known of an attention call turned into the plan that its Hopper kernel is traced from."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import jax.numpy as jnp

from tfc.backends.pallas_gpu.exponent import Exponent, exponent
from tfc.backends.pallas_gpu.weighing import Weighing, weighing
from tfc.formula.expr import Apply, Expr, Load, walk
from tfc.ir.ops import P

__all__ = ["ROWS", "Config", "Plan", "intricate"]

ROWS = 64
"""Query rows of a warpgroup: the height of one `wgmma`."""
INTRICATE = frozenset(("tanh", "sigmoid", "log1p", "sin", "cos", "floordiv", "mod"))
"""Functions with many values under way at once, which want registers."""


def intricate(formula: Expr) -> bool:
    """Whether it has functions that have many values under way at once."""
    return any(isinstance(node, Apply) and node.fn in INTRICATE for node in walk(formula))


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Block sizes. A query tile is `consumers * 64` rows, a key tile `block_k`; a ring holds `stages` key tiles.

    consumers: 2 or 3. block_k: a multiple of 64, as P V takes its weights from registers 64 columns at a time.
    persistent: blocks take query tiles off lists, where the visited ranges are known when the call is traced.
    bounded: a bound of the scores, where there is one, stands for each row's largest.
    """

    consumers: int = 2
    block_k: int = 128
    stages: int = 2
    persistent: bool = False
    bounded: bool = True

    @property
    def block_q(self) -> int:
        return self.consumers * ROWS


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is known of a call when its kernel is traced. Letters as everywhere: B, N, M, H, G, D.

    value_dim: the values' size, 0 where it is the head size. blocks: how many blocks take query tiles off lists, 0
    where each block has one tile.
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
    weigh: Expr = P
    value_dim: int = 0
    blocks: int = 0
    stacked: bool = False
    interpret: bool = False

    def nodes(self) -> Iterator[Expr]:
        for expr in (self.score, self.mask, self.weigh):
            yield from walk(expr)

    @property
    def values(self) -> int:
        """The values' size."""
        return self.value_dim or self.head_dim

    @property
    def weighing(self) -> Weighing:
        return weighing(self.weigh)

    @property
    def exponent(self) -> Exponent:
        """What a score is to its weight, computed of the product without the scale."""
        return exponent(self.score, self.scale, max(self.n, self.m))

    @property
    def base(self) -> float | None:
        """What stands for each row's largest exponent, where scores are bounded: then no maximum is looked for and no
        earlier sum shrinks. None where there is no bound, or f16 has no such weights."""
        return self.exponent.base if self.config.bounded and self.dtype == jnp.bfloat16 else None

    def beside(self, masked: bool) -> bool:
        """Whether a thread's registers hold what a tile's weights are computed with beside the weights of the tile
        before, which the P V product in flight reads: not with a mask and functions that have many values under way at
        once or fields of 128 keys, nor with such functions and no softmax beside an output of more than 128 columns."""
        score, weight = intricate(self.score), intricate(self.weighing.tile)
        wide = self.config.block_k >= 128
        fields = wide and any(isinstance(node, Load) and node.side == "k" for node in self.nodes())
        return not (masked and (score or weight or fields)) and not (weight and self.values > 128)

    @property
    def tiles(self) -> int:
        """Query tiles of a head."""
        return -(-self.n // self.config.block_q)

    @property
    def swizzle(self) -> int:
        """Bytes of the chunks that rows in shared memory are made of: the longest that the rows of q, k and v have.

        So no head size is padded, in memory or in products: 80 is five chunks of 16 elements. Raises StopIteration
        unless both sizes are multiples of 16.
        """
        return next(s for s in (128, 64, 32) if gcd(self.head_dim, self.values) * 2 % s == 0)

    @property
    def shared_bytes(self) -> int:
        """Shared memory that a block takes: queries and outputs, the rings, log-sum-exps; barriers beside them."""
        config, wide = self.config, max(self.head_dim, self.values)
        rows = config.block_q * (2 * (wide + (self.values if self.blocks else 0)) + 4)
        return rows + config.stages * config.block_k * 2 * (self.head_dim + self.values) + 1024
