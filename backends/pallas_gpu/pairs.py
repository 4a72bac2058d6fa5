"""Formulas and a tile of raw scores turned into softmax weights and score gradients: what both gradient kernels do.

A tile has 64 rows and as many columns as its kernel likes. For the gradient of the queries its rows are queries and
its columns keys, for those of the keys and values the other way round: `Side` says which. From the saved log-sum-exp,
p = exp(score - lse) (arXiv:2205.14135), and with dp = dout v^T, delta = sum(dout * out) - dlse per query,

    dscore = p (dp - delta),   ds = dscore * d score / d s,   d leaf = sum of dscore * d score / d leaf.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from tfc.backends.formula import LOG2E, Placed, Tile
from tfc.backends.pallas_gpu.inflight import anew
from tfc.backends.pallas_gpu.streaming import COLUMN, ROW, ROWS, tokens
from tfc.compat import mosaic_load
from tfc.formula.derive import S, derivative
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Side, Token, Var, walk

__all__ = ["Config", "Kept", "Leaf", "Pairs", "Plan", "leaves_of"]

Array = jax.Array
Leaf = Load | Read

H = Var("h", Kind.INT)
ONE = Const(1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Block sizes of one gradient kernel: its own side's tile is `consumers * 64` rows, the other side's `columns`.

    columns: a multiple of 64, as a product takes its weights from registers 64 columns at a time. stages: tiles of
    the other side in a ring. ahead: the last product of a tile runs beside the next tile's (its operand then stays
    in registers for as long). passing: tiles in the ring of values or of output cotangents, which are left earlier than
    the others; 0: as many. held: the kernel over queries keeps their output cotangents in registers.
    """

    consumers: int = 2
    columns: int = 64
    stages: int = 2
    ahead: bool = False
    passing: int = 0
    held: bool = False

    def __post_init__(self) -> None:
        if self.ahead and self.stages < 2:
            raise ValueError("a ring of one tile has no next tile for a product to run beside")

    @property
    def rings(self) -> tuple[int, int]:
        """Tiles in the ring of keys or queries, and in that of values or cotangents."""
        return self.stages, self.passing or self.stages

    def slots(self, step: Any) -> tuple[Any, Any]:
        """Where a step's tiles lie in the two rings."""
        stages, passing = self.rings
        slot = anew(lax.rem(step, stages), step)
        return slot, slot if passing == stages else anew(lax.rem(step, passing), step)

    @property
    def rows(self) -> int:
        return self.consumers * ROWS


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is known of a gradient kernel when it is traced. Letters as everywhere: B, N, M, H, G, D.

    rows: the side that the kernel's rows are of. gives: the gradients that it sums, "q", or "k", "v" or both of them.
    leaves: captured elements whose gradients it sums along its rows.
    interpret: run on the CPU, races reported.
    """

    config: Config
    rows: Side
    gives: tuple[str, ...]
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
    leaves: tuple[Leaf, ...] = ()
    interpret: bool = False

    @property
    def columns(self) -> Side:
        return "k" if self.rows == "q" else "q"

    def length(self, side: Side) -> int:
        return self.n if side == "q" else self.m

    @property
    def tiles(self) -> int:
        """How many tiles of rows there are."""
        return -(-self.length(self.rows) // self.config.rows)

    def nodes(self) -> Iterator[Expr]:
        for expr in (self.score, self.mask):
            yield from walk(expr)


def leaves_of(score: Expr, trained: frozenset[int]) -> dict[Side, tuple[Leaf, ...]]:
    """The elements of captured slots that gradients flow to, by the side whose rows sum them: tables with queries.

    trained: the slots whose gradients are asked for.
    """
    found = dict.fromkeys(
        node
        for node in walk(score)
        if isinstance(node, Load | Read) and node.kind is Kind.REAL and node.slot in trained
    )
    keys = tuple(leaf for leaf in found if isinstance(leaf, Load) and leaf.side == "k")
    return {"q": tuple(leaf for leaf in found if leaf not in keys), "k": keys}


class Known(Tile):
    """A tile that remembers the value of every part of a formula: a score and its derivatives share parts."""

    def evaluate(self, expr: Expr) -> Placed:
        if expr not in self.leaves:
            found = Tile.evaluate(self, expr)
            self.leaves[expr] = found  # type: ignore[index]  # a dict here, made by `Pairs.tile`
        return self.leaves[expr]


class Kept(NamedTuple):
    """What a tile keeps of its scores until dp is there.

    weight: float32 [64, columns], p d score/d s where no leaf asks for more, else p. slopes: those by `s` and by each
    leaf that are made of scores; the others are made again when they are used. seen: of a partial tile.
    """

    weight: Array
    slopes: dict[Expr, Array]
    seen: Array | None


class Pairs:
    """The formulas read for 64 rows of one side against tiles of the other.

    What depends on the row alone is read once, here. first: of the rows, counted from the first token of their side.
    """

    def __init__(self, plan: Plan, batch: Any, captured: tuple[Any, ...], first: Any) -> None:
        self.plan, self.batch, self.captured = plan, batch, captured
        self.by_s = derivative(plan.score, S)
        self.by_leaf = tuple(derivative(plan.score, leaf) for leaf in plan.leaves)
        self.own = self._tokens(plan.rows, first, ROWS, 0)

    def _tokens(self, side: Side, first: Any, count: int, axis: int) -> dict[Expr, Placed]:
        """The leaves of one side, for `count` tokens from `first` on."""
        layout, out = (ROW, COLUMN)[axis], dict[Expr, Placed]()
        for node in self.plan.nodes():
            match node:
                case Token(found) if found == side:
                    out[node] = self._positions(side, first, count, axis)
                case Load(slot, found, kind) if found == side:
                    value = tokens(self.captured[slot], self.batch, first, count, layout, kind)
                    out[node] = Placed(value, (axis,))
        return out

    def _positions(self, side: Side, first: Any, count: int, axis: int) -> Placed:
        """Positions: query i stands at i + (M - N)."""
        offset = self.plan.m - self.plan.n if side == "q" else 0
        iota = plgpu.broadcasted_iota(jnp.int32, (count,), 0, layout=(ROW, COLUMN)[axis])
        return Placed(iota + (first + offset), (axis,))

    def tile(self, first: Any, head: Any) -> Known:
        """The tile whose columns begin with token `first` of the other side, for a query head."""
        plan = self.plan
        leaves = {**self.own, **self._tokens(plan.columns, first, plan.config.columns, 1), H: Placed(head, ())}
        for node in plan.nodes():
            if isinstance(node, Read):
                value = mosaic_load(self.captured[node.slot].at[head])
                leaves[node] = Placed(value != 0 if node.kind is Kind.BOOL else value, ())
        return Known((ROWS, plan.config.columns), leaves)

    def seen(self, tile: Known, first: Any) -> Array:
        """Which pairs of the tile count: the mask leaves them, and their columns exist.

        Rows that do not exist are left: what they give is stored nowhere.
        """
        plan = self.plan
        seen = tile.spread(tile.evaluate(plan.mask))
        if plan.length(plan.columns) % plan.config.columns:
            position = self._positions(plan.columns, first, plan.config.columns, 1)
            seen = jnp.logical_and(seen, tile.spread(position) < plan.m)
        return seen

    def weights(self, tile: Known, raw: Array, lse: Placed, seen: Array | None) -> tuple[Array, Kept]:
        """raw: float32 [64, columns], q k^T without the scale; lse: in base 2, +inf where nothing is seen.

        -> p [64, columns], and what `gradients` needs. seen: of a partial tile; None where all of it counts.
        """
        plan = self.plan
        if plan.score == S:
            score, factor = raw, plan.scale * LOG2E
        else:
            tile.leaves[S] = Placed(raw * plan.scale, (0, 1))  # type: ignore[index]  # a dict, as above
            score, factor = tile.spread(tile.evaluate(plan.score)), LOG2E
        p = _only(jnp.exp2(score * factor - tile.spread(lse)), seen)
        if not plan.leaves:
            return p, Kept(p if self.by_s == ONE else _only(p * _slope(tile, self.by_s), seen), {}, seen)
        of_scores = [slope for slope in {self.by_s, *self.by_leaf} if S in set(walk(slope))]
        return p, Kept(p, {slope: _only(_slope(tile, slope), seen) for slope in of_scores}, seen)

    def less(self, tile: Known, delta: Placed) -> Array:
        """-delta [64, columns], where the sum that is dp begins: so dp - delta costs nothing."""
        return -tile.spread(delta)

    def gradients(self, tile: Known, kept: Kept, dp: Array) -> tuple[Array, tuple[Array, ...]]:
        """ds [64, columns] without the scale, and for each leaf the sum over its row [64]. dp: less delta."""
        flow = kept.weight * dp
        if not self.plan.leaves:
            return flow, ()

        def times(slope: Expr) -> Array:
            if slope == ONE:
                return flow
            made = kept.slopes.get(slope)
            return _only(flow * _slope(tile, slope), kept.seen) if made is None else flow * made

        return times(self.by_s), tuple(times(slope).sum(axis=1) for slope in self.by_leaf)


def _only(x: Array, seen: Array | None) -> Array:
    """x where it counts: hidden pairs may have scores and slopes that are not finite."""
    return x if seen is None else jnp.where(seen, x, 0.0)


def _slope(tile: Known, slope: Expr) -> Array:
    return tile.spread(tile.evaluate(slope)).astype(jnp.float32)
