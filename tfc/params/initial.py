"""A stored parameter and a random key turned into the array that it starts as."""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.identity import identity
from tfc.ir.program import Init, Stored
from tfc.ir.types import TensorType
from tfc.params.tree import DTYPES

__all__ = ["initial", "start"]

Array = jax.Array


TOGETHER = 8
"""Parameters that start alike which one call makes: a call takes longer than a small array."""

SMALL = 1024
"""Most elements of a parameter that is drawn together with others."""


def initial(stored: Iterable[Stored], key: Array) -> dict[str, Array]:
    """Every parameter by path. Each draws from a key of its own, made of `key` and its path: adding a parameter
    to a spec leaves the others as they were. Those that start alike are drawn by one compiled function."""
    stored = tuple(stored)
    alike: dict[object, list[Stored]] = {}  # equal layers share types and starts
    for p in stored:
        alike.setdefault((identity(p.type), identity(p.init), p.repeats), []).append(p)
    made = {p.path: x for params in alike.values() for p, x in zip(params, _alike(params, key), strict=False)}
    return {p.path: made[p.path] for p in stored}


def _alike(params: Sequence[Stored], key: Array) -> Iterator[Array]:
    """These parameters, which differ in their paths alone; some more may follow."""
    first = params[0]
    if first.init.kind == "table":
        for p in params:
            yield start(p, key)
        return
    many = range(0, len(params), TOGETHER)
    if first.init.kind in ("zeros", "ones", "constant"):
        filling = _filling(first.type.ints, DTYPES[first.type.dtype], first.init, min(len(params), TOGETHER))
        for _ in many:
            yield from filling()
        return
    codes = np.zeros(len(many) * TOGETHER, np.uint32)
    codes[: len(params)] = [zlib.crc32(p.path.encode()) for p in params]
    if math.prod(first.type.ints) <= SMALL:
        several = _drawing_several(first.type, first.init, first.repeats)
        for n in many:
            yield from several(key, codes[n : n + TOGETHER])
    else:
        one = _drawing(first.type, first.init, first.repeats)
        for code in codes[: len(params)]:
            yield one(key, code)


@lru_cache(maxsize=1024)
def _drawing(type: TensorType, init: Init, repeats: tuple[tuple[str, int], ...]) -> Callable[[Array, Any], Array]:
    """(key, code of the path) -> the parameter, compiled once for all layers."""
    param = Stored(init.kind, type, init, True, repeats)
    return jax.jit(lambda key, code: start(param, jax.random.fold_in(key, code)))


@lru_cache(maxsize=1024)
def _drawing_several(
    type: TensorType, init: Init, repeats: tuple[tuple[str, int], ...]
) -> Callable[[Array, Any], Sequence[Array]]:
    """(key, codes of TOGETHER paths) -> the parameters, each what `_drawing` gives, to the bit: turns of a loop draw
    them, in one vector operation they could be rounded otherwise. A turn moves up what was drawn, as copies need no
    compiling and parts of a stack do."""
    param = Stored(init.kind, type, init, True, repeats)

    def draw(key: Array, codes: Array) -> Sequence[Array]:
        def turn(drawn: tuple[Array, ...], code: Array) -> tuple[tuple[Array, ...], None]:
            return (*drawn[1:], start(param, jax.random.fold_in(key, code))), None

        none = (jnp.zeros(type.ints, DTYPES[type.dtype]),) * TOGETHER
        return jax.lax.scan(turn, none, codes)[0]

    return jax.jit(draw)


@lru_cache(maxsize=1024)
def _filling(shape: tuple[int, ...], dtype: str, init: Init, count: int) -> Callable[[], Sequence[Array]]:
    """So many new arrays with one number in them: compiled, as a call of that takes a fraction of the time of
    `jnp.full`."""
    number = {"zeros": 0.0, "ones": 1.0}.get(init.kind, init.value)
    return jax.jit(lambda: [jnp.full(shape, number, dtype) for _ in range(count)])


def start(param: Stored, key: Array) -> Array:
    """One parameter, drawn in float32 and rounded to its type.

    `glorot` is uniform within sqrt(6 / (K + O)) for a weight [K, O] (Glorot, Bengio 2010); of a stack, each turn
    draws for itself. A table is the same in every turn. A parameter in a format starts as it would without.
    """
    shape, dtype = param.type.ints, DTYPES[param.type.dtype]
    own = shape[len(param.repeats) :]
    init = param.init
    match init.kind:
        case "zeros":
            return jnp.zeros(shape, dtype)
        case "ones":
            return jnp.ones(shape, dtype)
        case "constant":
            return jnp.full(shape, init.value, dtype)
        case "normal":
            return (init.value * jax.random.normal(key, shape, jnp.float32)).astype(dtype)
        case "uniform":
            return jax.random.uniform(key, shape, jnp.float32, init.value, init.high).astype(dtype)
        case "orthogonal":
            return (init.value * _orthogonal(shape, key)).astype(dtype)
        case "glorot":
            fan = sum(own[-2:]) if len(own) > 1 else 2 * math.prod(own)
            limit = math.sqrt(6 / fan)
            return jax.random.uniform(key, shape, jnp.float32, -limit, limit).astype(dtype)
        case "table":
            return jnp.asarray(np.broadcast_to(np.reshape(init.table, own), shape), dtype)
    raise ValueError(f"{param.path} starts as `{init.kind}`, which is no start of its own")


def _orthogonal(shape: tuple[int, ...], key: Array) -> Array:
    """Rows of length 1, orthogonal to each other in blocks of as many as a row is long; the rest are a block of
    their own. Each block is uniform over all such: Q of a Gaussian matrix's QR, its signs those of R's diagonal
    (Mezzadri, arXiv:math-ph/0609050).   shape: [..., K, O], each [K, O] by itself
    """
    *above, rows, width = shape
    blocks = -(-rows // max(width, 1))
    drawn = jax.random.normal(key, (*above, blocks, width, width), jnp.float32)
    q, r = jnp.linalg.qr(drawn)
    q = q * jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1)[..., None, :]
    return jnp.reshape(q, (*above, blocks * width, width))[..., :rows, :]
