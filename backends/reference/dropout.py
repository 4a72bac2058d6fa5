"""Dropout as its definition reads: Threefry's rounds one after another, then MurmurHash3's finalizer."""

from typing import Any

import jax
import jax.numpy as jnp

from tfc.ir.dropout import GOLDEN, MURMUR, PARITY, ROTATIONS, Dropout, site, threshold

__all__ = ["dropout", "dropped"]

Array = jax.Array
Pair = tuple[Array, Array]


def _word(x: Any) -> Array:
    return jnp.uint32(x) if isinstance(x, int) else x.astype(jnp.uint32)


def _mix(key: Pair, counter: tuple[Any, Any]) -> Pair:
    """Threefry-2x32 with 20 rounds: a key is added before the first and after every fourth."""
    keys = (*key, key[0] ^ key[1] ^ _word(PARITY))
    x, y = _word(counter[0]) + keys[0], _word(counter[1]) + keys[1]
    for number in range(20):
        turn = ROTATIONS[number % 8]
        x = x + y
        y = (y << turn | y >> (32 - turn)) ^ x
        if number % 4 == 3:
            added = number // 4 + 1
            x, y = x + keys[added % 3], y + keys[(added + 1) % 3] + _word(added)
    return x, y


def _finalized(x: Array) -> Array:
    first, factor, second, further, third = MURMUR
    x = (x ^ x >> first) * _word(factor)
    x = (x ^ x >> second) * _word(further)
    return x ^ x >> third


def _kept(rate: float, path: str, shape: tuple[int, ...], seed: Array, turns: tuple[Array, ...]) -> Array:
    """Which elements stay, a boolean of this shape."""
    key: Pair = (_word(seed[0]), _word(seed[1]))
    key = _mix(key, site(path))
    for turn in turns:
        key = _mix(key, (turn, 1))
    rows = 1
    for n in shape[:-1]:
        rows *= n
    a, b = _mix(key, (jnp.arange(rows, dtype=jnp.uint32), jnp.zeros(rows, jnp.uint32)))
    place = jnp.arange(shape[-1], dtype=jnp.uint32)
    word = _finalized(_finalized(a[:, None] + place * _word(GOLDEN)) ^ b[:, None])
    return jnp.reshape(word >= _word(threshold(rate)), shape)


def dropped(rate: float, path: str, x: Array, seed: Array, *turns: Array) -> Array:
    """x with the elements that stay divided by 1 - rate, the others 0."""
    return jnp.where(_kept(rate, path, x.shape, seed, turns), x / (1 - rate), 0)


def dropout(op: Dropout, real: Any, x: Array, *given: Array) -> tuple[Array]:
    """given: nothing, or the seed and the turns."""
    return (dropped(op.rate, op.path, x, *given) if given else x,)
