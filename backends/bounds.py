"""A mask and the arrays it captures turned into the key tiles that each query tile visits, as two integer arrays.

Arrays known when a kernel is built go through `tfc.formula.tiles` on the host. Where one is traced, the same
interval rules run on the device: derived fields are evaluated for every token, reduced to their minimum and
maximum per tile, and each pair of tiles is classed from them.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.scipy.special import ndtri

from tfc.formula.arithmetic import NOTHING_KNOWN, Interval, Numbers
from tfc.formula.expr import Expr, FormulaError, Kind, Load, Read, Token, Var, kind_of, sides, walk
from tfc.formula.fields import DerivedField, split_fields
from tfc.formula.interval import compiled
from tfc.formula.scalar import INT_MAX, INT_MIN
from tfc.formula.tiles import Tiles, visited

__all__ = ["Traced", "host_tiles", "traced", "visited_ranges", "visited_tiles", "visiting_ranges"]

Array = jax.Array
DTYPES: Mapping[Kind, Any] = {Kind.BOOL: jnp.bool_, Kind.INT: jnp.int32, Kind.REAL: jnp.float32}

H = Var("h", Kind.INT)
RANKED = 256
"""Key tiles of a row up to which runs are numbered by comparing each tile with each."""


def visited_ranges(
    mask: Expr, captured: Sequence[Any], *, n: int, m: int, block_q: int, block_k: int, batch: int, heads: int
) -> tuple[Any, Any]:
    """The key tiles that each query tile visits under a mask.

    captured: the arrays of the formula's slots, in order: [B, N] or [N] for a field of `q`, [B, M] or [M] for one
    of `k`, with axes of its own after them where the mask indexes it; any shape for a table.
    n, m: queries and keys; query i has position i + (m - n).
    results: counts int32 [Br, Hr, Tq], ranges int32 [Br, Hr, Tq, R, 3]: the first `counts` of the R triples
    (start, end, full) are sorted and disjoint, the others (0, 0, 0). Br is `batch` or 1, where no field has a
    batch axis; Hr is `heads` or 1, where the mask does not read `h`; R is at least 1.

    Without a traced array the results are numpy constants, and R is the largest count. With one they are traced,
    also under vmap, and R is the number of key tiles, as many ranges as there can be: 12 * Br * Hr * Tq * Tk bytes.
    Raises FormulaError where the mask is no boolean or a slot's array does not fit.
    """
    if not traced(mask, captured):
        return arrays(host_tiles(mask, captured, n=n, m=m, block_q=block_q, block_k=block_k, heads=heads))
    return _ranges(_Case(mask, captured, n, m, heads).classes(block_q, block_k))


def visited_tiles(
    mask: Expr, captured: Sequence[Any], *, n: int, m: int, block_q: int, block_k: int, batch: int, heads: int
) -> Any:
    """What `visited_ranges` says of each pair of tiles: int32 [Br, Hr, Tq, Tk], 0 never visited, 1 with the mask, 2
    without; operands, Br, Hr and errors as there. Traced it is one computation without sorting, of arrays this size."""
    if traced(mask, captured):
        return _Case(mask, captured, n, m, heads).classes(block_q, block_k)
    tiles = host_tiles(mask, captured, n=n, m=m, block_q=block_q, block_k=block_k, heads=heads)
    out = np.zeros((len(tiles.rows), len(tiles.rows[0]), tiles.query_tiles, -(-m // block_k)), np.int32)
    for b, by_head in enumerate(tiles.rows):
        for h, rows in enumerate(by_head):
            for i, row in enumerate(rows):
                for start, end, full in row:
                    out[b, h, i, start:end] = 2 if full else 1
    return out


def traced(mask: Expr, captured: Sequence[Any]) -> bool:
    """Whether the mask reads an array that is not known yet. Raises FormulaError for a mask that is none."""
    read = {node.slot for node in walk(mask) if isinstance(node, Load | Read)}
    if missing := [slot for slot in sorted(read) if slot >= len(captured)]:
        raise FormulaError(f"`{mask}` reads slot ${missing[0]} of {len(captured)}")
    if not any(isinstance(captured[slot], Tracer) for slot in read):
        return False
    if kind_of(mask) is not Kind.BOOL:
        raise FormulaError(f"`{mask}` is {kind_of(mask)}: a mask is a boolean")
    return True


def host_tiles(mask: Expr, captured: Sequence[Any], *, n: int, m: int, block_q: int, block_k: int, heads: int) -> Tiles:
    """`tiles.visited` for arrays that are known now; reals are rounded to float32 first, as kernels read them."""
    loads: dict[int, Any] = {}
    reads: dict[int, Any] = {}
    for node in walk(mask):
        if isinstance(node, Load | Read):
            array = np.asarray(captured[node.slot])
            if node.kind is Kind.REAL:
                array = array.astype(np.float32)
            (loads if isinstance(node, Load) else reads)[node.slot] = array.tolist()
    return visited(mask, n=n, m=m, block_q=block_q, block_k=block_k, loads=loads, reads=reads, heads=heads)


def arrays(tiles: Tiles) -> tuple[np.ndarray, np.ndarray]:
    """(counts [Br, Hr, Tq], ranges [Br, Hr, Tq, R, 3]) of `Tiles`, int32."""
    shape = (len(tiles.rows), len(tiles.rows[0]), tiles.query_tiles)
    counts = np.zeros(shape, np.int32)
    triples = np.zeros((*shape, max(tiles.most_ranges, 1), 3), np.int32)
    for b, by_head in enumerate(tiles.rows):
        for h, rows in enumerate(by_head):
            for i, row in enumerate(rows):
                counts[b, h, i] = len(row)
                if row:
                    triples[b, h, i, : len(row)] = row
    return counts, triples


class Traced(Numbers):
    """Bounds that are arrays: booleans bool, integers int32 (saturating), reals float32."""

    def where(self, condition: Any, x: Any, y: Any) -> Array:
        return jnp.where(condition, x, y)

    def minimum(self, x: Any, y: Any) -> Array:
        return jnp.minimum(x, y)

    def maximum(self, x: Any, y: Any) -> Array:
        return jnp.maximum(x, y)

    def constant(self, value: bool | int | float) -> Array:
        kind = Kind.BOOL if isinstance(value, bool) else Kind.INT if isinstance(value, int) else Kind.REAL
        return jnp.asarray(value, DTYPES[kind])

    def to_real(self, x: Any) -> Array:
        return jnp.asarray(x).astype(jnp.float32)

    def to_int(self, x: Any) -> Array:
        return jnp.floor(x).astype(jnp.int32)

    def add(self, x: Any, y: Any) -> Array:
        return _saturated(x, y, lambda a, b: a + b)

    def sub(self, x: Any, y: Any) -> Array:
        return _saturated(x, y, lambda a, b: a - b)

    def mul(self, x: Any, y: Any) -> Array:
        return _saturated(x, y, lambda a, b: a * b)

    def floordiv(self, x: Any, y: Any) -> Array:
        x, y = jnp.asarray(x, jnp.int32), jnp.asarray(y, jnp.int32)
        return jnp.where(y == 0, 0, x // jnp.where(y == 0, 1, y))

    def mod(self, x: Any, y: Any) -> Array:
        x, y = jnp.asarray(x, jnp.int32), jnp.asarray(y, jnp.int32)
        return jnp.where(y == 0, 0, x % jnp.where(y == 0, 1, y))

    def div(self, x: Any, y: Any) -> Array:
        return jnp.divide(x, jnp.where(y == 0, jnp.nan, y))

    def power(self, x: Any, y: Any) -> Array:
        return jnp.power(jnp.asarray(x, jnp.float32), y)

    def call(self, fn: str, x: Any) -> Array:
        found: Array = FUNCTIONS[fn](jnp.asarray(x, jnp.float32))
        return found

    def read(self, table: Array, indices: Sequence[Interval], kind: Kind) -> Interval:
        """The element where every index is one number, else the range of the whole table."""
        if not table.size:
            lo, hi = NOTHING_KNOWN[kind]
            return jnp.asarray(lo, DTYPES[kind]), jnp.asarray(hi, DTYPES[kind])
        at = [jnp.clip(lo, 0, size - 1) for (lo, _), size in zip(indices, table.shape, strict=True)]
        alone: Any = True
        for a, (_, hi), size in zip(at, indices, table.shape, strict=True):
            alone &= a == jnp.clip(hi, 0, size - 1)
        element = table[tuple(jnp.broadcast_arrays(*at))] if at else table
        lo, hi = _ends(table, kind, tuple(range(table.ndim)))
        return jnp.where(alone, element, lo), jnp.where(alone, element, hi)


TRACED = Traced()

FUNCTIONS: Mapping[str, Any] = {
    "round": jnp.round,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "tanh": jnp.tanh,
    "approximate_tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "erf": lax.erf,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "normal_quantile": ndtri,
}


def _saturated(x: Any, y: Any, op: Any) -> Array:
    """Integer arithmetic that stops at the ends of int32, told by the float32 result: it stops a little early."""
    x, y = jnp.asarray(x, jnp.int32), jnp.asarray(y, jnp.int32)
    about = op(x.astype(jnp.float32), y.astype(jnp.float32))
    edge = (1 - 2.0**-20) * 2.0**31
    return jnp.where(about >= edge, INT_MAX, jnp.where(about <= -edge, INT_MIN, op(x, y)))


def _ends(x: Array, kind: Kind, axes: tuple[int, ...]) -> Interval:
    if kind is Kind.BOOL:
        return jnp.all(x, axes), jnp.any(x, axes)
    return jnp.min(x, axes), jnp.max(x, axes)


class _Case:
    """A mask and its arrays. leaves: the values of tokens, fields and the head, as intervals.

    Values and bounds have four axes, batch, heads, query tokens or tiles, key tokens or tiles, each of length 1
    where nothing depends on it.
    """

    def __init__(self, mask: Expr, captured: Sequence[Any], n: int, m: int, heads: int) -> None:
        self.n, self.m = n, m
        self.formula, self.fields = split_fields(mask)
        self.tables: dict[int, Array] = {}
        with jax.ensure_compile_time_eval():  # constants, and what is computed of them alone (`bounds`)
            self.leaves: dict[Expr, Interval] = {
                Token("q"): _known(jnp.arange(m - n, m, dtype=jnp.int32)[None, None, :, None], Kind.INT),
                Token("k"): _known(jnp.arange(m, dtype=jnp.int32)[None, None, None, :], Kind.INT),
                H: _known(jnp.arange(heads, dtype=jnp.int32)[None, :, None, None], Kind.INT),
            }
        batch, nodes = 1, list(walk(mask))
        for node in nodes:
            if isinstance(node, Read):
                self.tables[node.slot] = jnp.asarray(captured[node.slot]).astype(DTYPES[node.kind])
        for node in reversed(nodes):  # a field before the one that it is an index of
            if isinstance(node, Load):
                x = self._rows(node, jnp.asarray(captured[node.slot]))
                batch = max(batch, x.shape[0])
                if not node.indices:
                    x = x[:, None, :, None] if node.side == "q" else x[:, None, None, :]
                    self.leaves[node] = _known(x, node.kind)
                elif len(sides(node)) == 1:
                    self.leaves[node] = self._chosen(node, x)
        self.axes = (batch, heads if H in set(nodes) else 1)

    def _rows(self, node: Load, x: Array) -> Array:
        """A field's values as [B or 1, tokens, ...]."""
        tokens, axes = self.n if node.side == "q" else self.m, len(node.indices)
        if x.ndim not in (1 + axes, 2 + axes) or x.shape[x.ndim - 1 - axes] != tokens:
            raise FormulaError(f"`{node}` reads an array of shape {x.shape}, there are {tokens} tokens")
        return (x if x.ndim == 2 + axes else x[None]).astype(DTYPES[node.kind])

    def _chosen(self, node: Load, x: Array) -> Interval:
        """The element of each token that the indices give, anything where they are not known."""
        shape = (self.n, 1) if node.side == "q" else (1, self.m)
        batch = jnp.arange(x.shape[0])[:, None, None, None]
        at, alone = [], jnp.asarray(True)
        for index, size in zip(node.indices, x.shape[2:], strict=True):
            lo, hi = (jnp.clip(end, 0, size - 1) for end in self.values(index))
            at.append(lo)
            alone &= lo == hi
        token = jnp.arange(x.shape[1]).reshape(1, 1, *shape)
        lo, hi = _known(x[(batch, token, *at)], node.kind)
        nothing = NOTHING_KNOWN[node.kind]
        return jnp.where(alone, lo, nothing[0]), jnp.where(alone, hi, nothing[1])

    def values(self, expr: Expr) -> Interval:
        """A formula's value for each token, as an interval: reals have a width."""
        used = [leaf for leaf in self.leaves if leaf in set(walk(expr))]
        formula = compiled(expr, {leaf: i for i, leaf in enumerate(used)}, TRACED, self.tables)
        return formula([self.leaves[leaf] for leaf in used])

    def bounds(self, derived: DerivedField, block_q: int, block_k: int) -> Interval:
        """A field's bounds over each tile; the tokens missing from the last tile are copies of its last one.

        Those of positions are known when the call is traced: four of the launches that a causal mask would take.
        """
        known = not any(isinstance(node, Load | Read) for node in walk(derived.expr))
        with jax.ensure_compile_time_eval() if known else nullcontext():
            return self._bounds(derived, block_q, block_k)

    def _bounds(self, derived: DerivedField, block_q: int, block_k: int) -> Interval:
        ends = self.values(derived.expr)
        if derived.side is None:
            return ends
        axis, count, block = (2, self.n, block_q) if derived.side == "q" else (3, self.m, block_k)
        own = tuple(count if a == axis else 1 for a in range(4))
        pad = [(0, -count % block if a == axis else 0) for a in range(4)]
        out = []
        for end, x in enumerate(ends):
            x = jnp.asarray(x)
            x = jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, own))
            x = jnp.pad(x, pad, mode="edge")
            x = x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])
            out.append(_ends(x, kind_of(derived.expr), (axis + 1,))[end])
        return out[0], out[1]

    def classes(self, block_q: int, block_k: int) -> Array:
        """int32 [Br, Hr, Tq, Tk]: 0 empty, 1 partial, 2 full."""
        shape = (*self.axes, -(-self.n // block_q), -(-self.m // block_k))
        if 0 in shape:
            return jnp.zeros(shape, jnp.int32)
        leaves: dict[Expr, int] = {f.leaf: i for i, f in enumerate(self.fields)}
        formula = compiled(self.formula, leaves, TRACED, self.tables)
        every, some = formula([self.bounds(f, block_q, block_k) for f in self.fields])
        whole = jnp.arange(shape[3]) < self.m // block_k  # a key tile that lacks keys is never full
        found = jnp.where(some, jnp.where(every & whole, 2, 1), 0)
        return jnp.broadcast_to(found, shape).astype(jnp.int32)


def _known(x: Array, kind: Kind) -> Interval:
    """Arrays' values as intervals; an integer at the ends of int32 may be anything."""
    if kind is not Kind.INT:
        return x, x
    out = (x == INT_MIN) | (x == INT_MAX)
    return jnp.where(out, INT_MIN, x), jnp.where(out, INT_MAX, x)


def _ranges(classes: Array) -> tuple[Array, Array]:
    """[Br, Hr, Tq, Tk] classes to counts and ranges: runs of equal classes, empty ones dropped."""
    tiles = classes.shape[3]
    if not tiles:
        return jnp.zeros(classes.shape[:3], jnp.int32), jnp.zeros((*classes.shape[:3], 1, 3), jnp.int32)
    at = jnp.arange(tiles, dtype=jnp.int32)
    changes = classes[..., 1:] != classes[..., :-1]
    edge = jnp.ones((*classes.shape[:3], 1), bool)
    first = jnp.concatenate([edge, changes], 3) & (classes > 0)
    last = jnp.concatenate([changes, edge], 3) & (classes > 0)
    counts = jnp.sum(first, 3, dtype=jnp.int32)
    if tiles <= RANKED:
        # a run's number is how many begin before it; what belongs to the run of each number is summed up: plain
        # reductions, which XLA launches together, where a sort is a launch of its own
        number = jnp.sum(first[..., None, :] & (at[:, None] >= at), 4, dtype=jnp.int32) - 1
        mine = number[..., None, :] == at[:, None]
        begins, stops = mine & first[..., None, :], mine & last[..., None, :]
        parts = (begins, at), (stops, at + 1), (begins, (classes == 2)[..., None, :])
        return counts, jnp.stack([jnp.sum(jnp.where(chosen, x, 0), 4, dtype=jnp.int32) for chosen, x in parts], 4)
    # runs have as many first as last tiles, in the same order: sorting brings both to the front
    starts = jnp.sort(jnp.where(first, at, tiles), 3)
    ends = jnp.sort(jnp.where(last, at, tiles), 3) + 1
    full = jnp.take_along_axis(classes, jnp.minimum(starts, tiles - 1), 3) == 2
    triples = jnp.stack([starts, ends, full.astype(jnp.int32)], 4)
    return counts, jnp.where((at < counts[..., None])[..., None], triples, 0)


def visiting_ranges(
    mask: Expr, captured: Sequence[Any], *, n: int, m: int, block_q: int, block_k: int, batch: int, heads: int
) -> tuple[Any, Any]:
    """The query tiles that visit each key tile: `visited_ranges` with the roles exchanged.

    results: counts int32 [Br, Hr, Tk], ranges int32 [Br, Hr, Tk, R, 3]. A range is full where every pair of tokens in
    it is visible and no query is beyond the last one; keys may be.
    """
    read = {node.slot for node in walk(mask) if isinstance(node, Load | Read)}
    if any(isinstance(captured[slot], Tracer) for slot in read):
        classes = _Case(mask, captured, n, m, heads).classes(block_q, block_k)
        ragged = jnp.arange(classes.shape[2])[:, None] >= n // block_q
        return _ranges(jnp.swapaxes(jnp.where(ragged, jnp.minimum(classes, 1), classes), 2, 3))
    tiles = host_tiles(mask, captured, n=n, m=m, block_q=block_q, block_k=block_k, heads=heads)
    found = [[_exchanged(rows, tiles.key_tiles, n // block_q) for rows in by_head] for by_head in tiles.rows]
    most = max([1, *(len(row) for by_head in found for rows in by_head for row in rows)])
    counts = np.zeros((len(found), len(found[0]), tiles.key_tiles), np.int32)
    triples = np.zeros((*counts.shape, most, 3), np.int32)
    for b, by_head in enumerate(found):
        for h, rows in enumerate(by_head):
            for j, row in enumerate(rows):
                counts[b, h, j] = len(row)
                if row:
                    triples[b, h, j, : len(row)] = row
    return counts, triples


def _exchanged(rows: Sequence[Sequence[Any]], key_tiles: int, whole: int) -> list[list[tuple[int, int, int]]]:
    """Query tiles by key tile, of key tiles by query tile; query tiles from `whole` on are never full.

    A key tile's runs end where a query tile's class differs from the one before: changes alone are looked at.
    """
    out: list[list[tuple[int, int, int]]] = [[] for _ in range(key_tiles)]
    before = np.zeros(key_tiles, np.int8)
    begun = np.zeros(key_tiles, np.int64)
    for i in range(len(rows) + 1):
        here = np.zeros(key_tiles, np.int8)
        for start, end, full in rows[i] if i < len(rows) else ():
            here[start:end] = 2 if full and i < whole else 1
        changed = np.flatnonzero(here != before)
        for j in changed:
            if before[j]:
                out[j].append((int(begun[j]), i, int(before[j] == 2)))
        begun[changed] = i
        before = here
    return out
