"""Numbers as they come back from a format: quantized, scaled, thinned out, as the definitions read.

Everything runs along the last axis unless a format says otherwise; round means to the nearest, half to even. A value
that is not finite is outside every format, and comes back as NaN where its scale is taken from it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tfc.ir.formats import Format
from tfc.ir.ops import Rounded

__all__ = ["ROUNDINGS", "rounded"]

Array = jax.Array
Rounding = Callable[[Array, Format], tuple[Array, Array]]


def rounded(op: Rounded, real: Any, x: Array) -> tuple[Array]:
    """What is read back of x, [..., C]. Its derivative is 1 where the format does not saturate, else 0."""
    values, inside = ROUNDINGS[op.format.name](jax.lax.stop_gradient(x), op.format)
    passing = jnp.where(inside, x, 0)
    return (jax.lax.stop_gradient(values) + (passing - jax.lax.stop_gradient(passing)),)


def _over(x: Array, per: object) -> tuple[int, ...]:
    """The axes that share a scale."""
    return {"row": (x.ndim - 1,), "column": tuple(range(x.ndim - 1)), "tensor": tuple(range(x.ndim))}[str(per)]


def _grouped(x: Array, group: int) -> Array:
    """[..., C] -> [..., C / group, group], the last group filled up with zeros."""
    short = -x.shape[-1] % group
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)])
    return jnp.reshape(padded, (*x.shape[:-1], -1, group))


def _flat(groups: Array, size: int) -> Array:
    """Undoes `_grouped`."""
    return jnp.reshape(groups, (*groups.shape[:-2], -1))[..., :size]


def _integers(x: Array, bits: int, symmetric: bool, axes: tuple[int, ...], counted: Array) -> tuple[Array, Array]:
    """Affine quantization with one scale over `axes`; the range is that of the counted elements, and of 0."""
    known = jnp.where(counted, x, 0)
    if symmetric:
        most = 2 ** (bits - 1) - 1
        largest = jnp.max(jnp.abs(known), axis=axes, keepdims=True)
        scale = jnp.where(largest == 0, 1, largest) / most
        codes = jnp.round(x / scale)
        return scale * jnp.clip(codes, -most, most), jnp.abs(codes) <= most
    most = 2**bits - 1
    low = jnp.min(jnp.minimum(known, 0), axis=axes, keepdims=True)
    high = jnp.max(jnp.maximum(known, 0), axis=axes, keepdims=True)
    flat = low == high
    low, high = jnp.where(flat, -1, low), jnp.where(flat, 1, high)
    scale = (high - low) / most
    zero = jnp.clip(jnp.round(-low / scale), 0, most)
    codes = jnp.round(x / scale) + zero
    return scale * (jnp.clip(codes, 0, most) - zero), (codes >= 0) & (codes <= most)


def _int(bits: int) -> Rounding:
    def rounding(x: Array, format: Format) -> tuple[Array, Array]:
        symmetric, group = bool(format["symmetric"]), int(format["group"])
        limit = float(dict(format.settings).get("outliers", float("inf")))
        largest = jnp.max(jnp.abs(x), axis=tuple(range(x.ndim - 1)), keepdims=True)  # of each channel
        beyond = jnp.broadcast_to(largest >= limit, x.shape)
        if group:
            values, inside = _integers(
                _grouped(x, group), bits, symmetric, (x.ndim,), ~_grouped(beyond.astype(jnp.int32), group).astype(bool)
            )
            values, inside = (_flat(y, x.shape[-1]) for y in (values, inside))
        else:
            values, inside = _integers(x, bits, symmetric, _over(x, format["per"]), ~beyond)
        return jnp.where(beyond, x, values), inside | beyond

    return rounding


@dataclass(frozen=True)
class _Float:
    """A small float: digits after the leading one, exponent of the smallest normal number, largest number."""

    digits: int
    smallest: int
    largest: float

    @property
    def top(self) -> int:
        """The exponent of the largest number."""
        return math.frexp(self.largest)[1] - 1


FLOATS: Mapping[str, _Float] = {
    "e4m3": _Float(3, -6, 448.0),
    "e5m2": _Float(2, -14, 57344.0),
    "e3m2": _Float(2, -2, 28.0),
    "e2m3": _Float(3, 0, 7.5),
    "e2m1": _Float(1, 0, 6.0),
    "int8": _Float(6, 0, 127 / 64),  # one binade and what lies below it: steps of 2^-6
}


def _float(x: Array, kind: _Float) -> Array:
    """x to the nearest number of the kind, saturating."""
    exponent = jnp.maximum(jnp.frexp(x)[1] - 1, kind.smallest)
    codes = jnp.round(jnp.ldexp(x, kind.digits - exponent))
    return jnp.clip(jnp.ldexp(codes, exponent - kind.digits), -kind.largest, kind.largest)


def _fp8(x: Array, format: Format) -> tuple[Array, Array]:
    """Scaled so that the largest magnitude is the largest number (arXiv:2209.05433)."""
    kind = FLOATS[str(format["variant"])]
    largest = jnp.max(jnp.abs(x), axis=_over(x, format["per"]), keepdims=True)
    scale = jnp.where(largest == 0, 1, largest / kind.largest)
    return scale * _float(x / scale, kind), jnp.abs(x) <= largest


def _mx(x: Array, format: Format) -> tuple[Array, Array]:
    """Blocks along the last axis share the power of two that brings their largest magnitude near the largest number;
    what then lies above it saturates (arXiv:2310.10537)."""
    kind = FLOATS[str(format["variant"])]
    blocks = _grouped(x, int(format["group"]))
    largest = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    shared = jnp.clip(jnp.where(largest == 0, -127, jnp.frexp(largest)[1] - 1 - kind.top), -127, 127)
    scaled = jnp.ldexp(blocks, -shared)
    values = jnp.ldexp(_float(scaled, kind), shared)
    values = jnp.where(jnp.isfinite(largest), values, jnp.nan)
    return _flat(values, x.shape[-1]), _flat(jnp.abs(scaled) <= kind.largest, x.shape[-1])


def _ternary(x: Array, format: Format) -> tuple[Array, Array]:
    """-1, 0, 1 times the mean magnitude of what is above the threshold, a part of the mean magnitude of all."""
    axes = _over(x, format["per"])
    above = jnp.abs(x) > float(format["threshold"]) * jnp.mean(jnp.abs(x), axis=axes, keepdims=True)
    count = jnp.sum(above, axis=axes, keepdims=True)
    scale = jnp.sum(jnp.where(above, jnp.abs(x), 0), axis=axes, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(above, jnp.sign(x) * scale, 0), jnp.ones_like(x, bool)


def _binary(x: Array, format: Format) -> tuple[Array, Array]:
    """The sign, less the mean of all if centered, times the mean magnitude; the sign of 0 is 1."""
    centre = jnp.mean(x) if format["centered"] else 0
    scale = jnp.mean(jnp.abs(x), axis=_over(x, format["per"]), keepdims=True)
    return jnp.where(x - centre < 0, -scale, scale), jnp.ones_like(x, bool)


def _nm(x: Array, format: Format) -> tuple[Array, Array]:
    """The n of largest magnitude in every m neighbours stay, of equal ones those that come first."""
    groups = _grouped(x, int(format["m"]))
    size, place = jnp.abs(groups), jnp.arange(groups.shape[-1])
    larger = size[..., None, :] > size[..., :, None]
    before = (size[..., None, :] == size[..., :, None]) & (place[None, :] < place[:, None])
    rank = jnp.sum(larger | before, axis=-1)
    return _flat(jnp.where(rank < int(format["n"]), groups, 0), x.shape[-1]), jnp.ones_like(x, bool)


def _block_sparse(x: Array, format: Format) -> tuple[Array, Array]:
    """Of the blocks [size, size] of each matrix (the last two axes), a part `density` stays: those of the largest
    L2 norm, of equal ones those that come first, row by row; at least one. A vector is one row."""
    if x.ndim == 1:
        values, inside = _block_sparse(x[None], format)
        return values[0], inside[0]
    size, rows, columns = int(format["size"]), x.shape[-2], x.shape[-1]
    down, across = -(-rows // size), -(-columns // size)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, down * size - rows), (0, across * size - columns)])
    blocks = jnp.reshape(padded, (*x.shape[:-2], down, size, across, size))
    norms = jnp.reshape(jnp.sum(blocks**2, axis=(-3, -1)), (*x.shape[:-2], down * across))
    kept = max(1, round(float(format["density"]) * down * across))
    order = jnp.argsort(-norms, axis=-1, stable=True)
    stays = jnp.argsort(order, axis=-1) < kept
    mask = jnp.reshape(stays, (*x.shape[:-2], down, 1, across, 1))
    values = jnp.reshape(jnp.where(mask, blocks, 0), padded.shape)[..., :rows, :columns]
    return values, jnp.ones_like(x, bool)


ROUNDINGS: Mapping[str, Rounding] = {
    "int8": _int(8),
    "int4": _int(4),
    "fp8": _fp8,
    "mx": _mx,
    "ternary": _ternary,
    "binary": _binary,
    "nm": _nm,
    "block_sparse": _block_sparse,
}
"""Every format that rounds: x and the format -> what is read back, and where the derivative is 1."""
