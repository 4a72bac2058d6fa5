"""Rounding to a format as jnp operations: float codes by the hardware's own rounding of mantissas, ranks by sorting.

Computed in float32 (float64 beside float64) and rounded once to the declared type. Scales are divided by, not
multiplied with their inverse, so that codes are those of the definition.
"""

from collections.abc import Callable, Mapping
from math import frexp, inf
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.xla.arrays import real_of, serve
from tfc.ir.formats import Format
from tfc.ir.ops import Rounded
from tfc.ir.program import Eqn

__all__ = ["FORMS", "ROUNDED"]

Array = jax.Array
Form = Callable[[Array, Format], tuple[Array, Array]]
"""What is read back, and where the derivative is 1; groups lie along the last axis."""

SMALL: Mapping[str, tuple[int, int, float]] = {
    "e4m3": (3, -6, 448.0),
    "e5m2": (2, -14, 57344.0),
    "e3m2": (2, -2, 28.0),
    "e2m3": (3, 0, 7.5),
    "e2m1": (1, 0, 6.0),
    "int8": (6, 0, 1.984375),
}
"""Small floats: bits of the mantissa, exponent of the smallest normal number, largest number."""


def _axes(x: Array, per: object) -> tuple[int, ...]:
    every = range(x.ndim)
    return tuple(every[-1:] if per == "row" else every[:-1] if per == "column" else every)


def _split(x: Array, size: int, fill: Any = 0) -> Array:
    """[..., C] -> [..., n, size]."""
    width = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)]
    return jnp.pad(x, width, constant_values=fill).reshape(*x.shape[:-1], -1, size)


def _join(x: Array, size: int) -> Array:
    return x.reshape(*x.shape[:-2], -1)[..., :size]


def _affine(x: Array, low: Array, high: Array, bits: int, symmetric: bool) -> tuple[Array, Array]:
    """low <= 0 <= high: the range of what shares a scale."""
    if symmetric:
        most = float(2 ** (bits - 1) - 1)
        reach = jnp.maximum(-low, high)
        scale = jnp.where(reach > 0, reach, 1) / most
        codes = jnp.round(x / scale)
        return jnp.clip(codes, -most, most) * scale, jnp.abs(codes) <= most
    most = float(2**bits - 1)
    empty = low == high
    low, high = jnp.where(empty, -1, low), jnp.where(empty, 1, high)
    scale = (high - low) / most
    zero = jnp.clip(jnp.round(-low / scale), 0, most)
    codes = jnp.round(x / scale) + zero
    return (jnp.clip(codes, 0, most) - zero) * scale, (codes >= 0) & (codes <= most)


def _int(bits: int) -> Form:
    def form(x: Array, format: Format) -> tuple[Array, Array]:
        group, symmetric = int(format["group"]), bool(format["symmetric"])
        limit = float(dict(format.settings).get("outliers", inf))
        kept = jnp.max(jnp.abs(x), axis=tuple(range(x.ndim - 1)), keepdims=True) >= limit if limit < inf else None
        known = x if kept is None else jnp.where(kept, 0, x)
        if group:
            blocks = _split(known, group)
            low, high = jnp.min(blocks, -1, keepdims=True), jnp.max(blocks, -1, keepdims=True)
            out, inside = _affine(blocks, jnp.minimum(low, 0), jnp.maximum(high, 0), bits, symmetric)
            out, inside = _join(out, x.shape[-1]), _join(inside, x.shape[-1])
        else:
            axes = _axes(x, format["per"])
            low, high = jnp.min(known, axes, keepdims=True), jnp.max(known, axes, keepdims=True)
            out, inside = _affine(known, jnp.minimum(low, 0), jnp.maximum(high, 0), bits, symmetric)
        return (out, inside) if kept is None else (jnp.where(kept, x, out), inside | kept)

    return form


def _small(x: Array, variant: str) -> Array:
    """Normal numbers by rounding the mantissa, those below by the step that they share."""
    digits, smallest, largest = SMALL[variant]
    normal = lax.reduce_precision(x, exponent_bits=11 if x.dtype == jnp.float64 else 8, mantissa_bits=digits)
    step = 2.0 ** (smallest - digits)
    below = jnp.round(x / step) * step
    return jnp.clip(jnp.where(jnp.abs(x) < 2.0**smallest, below, normal), -largest, largest)


def _fp8(x: Array, format: Format) -> tuple[Array, Array]:
    variant = str(format["variant"])
    reach = jnp.max(jnp.abs(x), axis=_axes(x, format["per"]), keepdims=True)
    scale = jnp.where(reach > 0, reach / SMALL[variant][2], 1)
    return _small(x / scale, variant) * scale, jnp.ones(x.shape, bool)


def _mx(x: Array, format: Format) -> tuple[Array, Array]:
    variant, size = str(format["variant"]), int(format["group"])
    largest = SMALL[variant][2]
    blocks = _split(x, size)
    reach = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    exponent = jnp.frexp(reach)[1] - frexp(largest)[1]
    exponent = jnp.clip(jnp.where(reach > 0, exponent, -127), -127, 127)
    scaled = jnp.ldexp(blocks, -exponent)
    out = jnp.ldexp(_small(scaled, variant), exponent) + (reach - reach)  # a block that is not finite is NaN
    return _join(out, x.shape[-1]), _join(jnp.abs(scaled) <= largest, x.shape[-1])


def _ternary(x: Array, format: Format) -> tuple[Array, Array]:
    axes, size = _axes(x, format["per"]), jnp.abs(x)
    above = size > float(format["threshold"]) * jnp.mean(size, axes, keepdims=True)
    count = jnp.sum(above, axes, keepdims=True)
    scale = jnp.sum(size * above, axes, keepdims=True) / jnp.maximum(count, 1)
    return jnp.sign(x) * above * scale, jnp.ones(x.shape, bool)


def _binary(x: Array, format: Format) -> tuple[Array, Array]:
    scale = jnp.mean(jnp.abs(x), _axes(x, format["per"]), keepdims=True)
    above = x >= jnp.mean(x) if format["centered"] else x >= 0
    return jnp.where(above, scale, -scale), jnp.ones(x.shape, bool)


def _ranks(size: Array) -> Array:
    """How many of the last axis come first: larger ones, and equal ones before."""
    order = jnp.argsort(-size, axis=-1, stable=True)
    return jnp.argsort(order, axis=-1)


def _nm(x: Array, format: Format) -> tuple[Array, Array]:
    groups = _split(x, int(format["m"]))
    kept = _ranks(jnp.abs(groups)) < int(format["n"])
    return _join(groups * kept, x.shape[-1]), jnp.ones(x.shape, bool)


def _block_sparse(x: Array, format: Format) -> tuple[Array, Array]:
    size = int(format["size"])
    rows, columns = x.shape[-2:] if x.ndim > 1 else (1, x.shape[-1])
    whole = x.reshape(-1, rows, columns)
    padded = jnp.pad(whole, [(0, 0), (0, -rows % size), (0, -columns % size)])
    down, across = padded.shape[1] // size, padded.shape[2] // size
    squares = lax.reduce_window(padded**2, 0.0, lax.add, (1, size, size), (1, size, size), "valid")
    kept = max(1, round(float(format["density"]) * down * across))
    stays = (_ranks(squares.reshape(len(whole), -1)) < kept).reshape(squares.shape)
    mask = jnp.repeat(jnp.repeat(stays, size, 1), size, 2)[:, :rows, :columns]
    return jnp.where(mask, whole, 0).reshape(x.shape), jnp.ones(x.shape, bool)


FORMS: Mapping[str, Form] = {
    "int8": _int(8),
    "int4": _int(4),
    "fp8": _fp8,
    "mx": _mx,
    "ternary": _ternary,
    "binary": _binary,
    "nm": _nm,
    "block_sparse": _block_sparse,
}


def _build(eqn: Eqn, target: Target) -> Callable[..., tuple[Array, ...]]:
    op = eqn.op
    assert isinstance(op, Rounded)
    real, out = real_of(eqn), DTYPES[eqn.out.type.dtype]

    def call(x: Array) -> tuple[Array, ...]:
        wide = x.astype(real)
        values, inside = FORMS[op.format.name](lax.stop_gradient(wide), op.format)
        through = jnp.where(inside, wide, 0)
        return ((lax.stop_gradient(values) + (through - lax.stop_gradient(through))).astype(out),)

    return call


ROUNDED = Kernel(name="xla", op=Rounded, refuse=serve, build=_build)
