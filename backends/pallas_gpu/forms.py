"""A choice between accuracy and rate turned into the forms that formulas' functions take in a Hopper kernel.

Hopper computes 16 exponentials, reciprocals or hyperbolic tangents a cycle and multiprocessor, and 128
multiply-adds. A softcap with `accurate` forms takes two of the former for each score beside the softmax's own: more
time than the matrix unit needs at head size 128. `balanced` replaces one by seven of the latter, `hardware` both by
one of the former.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from tfc.backends.formula import LOG2E, MOSAIC_GPU, Forms

__all__ = ["FORMS", "Functions"]

Array = jax.Array
Functions = Literal["accurate", "balanced", "hardware"]

GUESS = 0x7EF31000
"""The bits of a float less than this are those of its reciprocal within 5.06 %, evenly to both sides."""
LARGEST = 80.0
"""Exponents are cut off here: the reciprocal of more than 2^80 is nothing beside 1, and that of infinity no number."""


def _reciprocal(z: Array) -> Array:
    """1 / z within 2e-7 of itself for z from 1 to 2^LARGEST, by one integer subtraction and five multiply-adds.

    The error e of a guess becomes e^3 by y (1 + e + e^2), then e^2 by y (1 + e): 0.0506, 1.3e-4, 1.7e-8.
    """
    y = lax.bitcast_convert_type(GUESS - lax.bitcast_convert_type(z, jnp.int32), jnp.float32)
    e = 1 - z * y
    y = y + y * (e * e + e)
    return y + y * (1 - z * y)


def _tanh(x: Array) -> Array:
    """Within 3e-7 of tanh everywhere."""
    return 1 - 2 * _reciprocal(1 + jnp.exp2(jnp.minimum(x * (2 * LOG2E), LARGEST)))


def _sigmoid(x: Array) -> Array:
    """Within 2e-7 of the logistic function, relative to it where x > -55; below, 2^-80."""
    return _reciprocal(1 + jnp.exp2(jnp.minimum(x * -LOG2E, LARGEST)))


FORMS: Mapping[Functions, Forms] = {
    "accurate": MOSAIC_GPU,
    "balanced": {**MOSAIC_GPU, "tanh": _tanh, "sigmoid": _sigmoid},
    # `tanh.approx.f32`: within 5e-4 of tanh
    "hardware": {**MOSAIC_GPU, "tanh": jnp.tanh, "sigmoid": lambda x: 0.5 + 0.5 * jnp.tanh(0.5 * x)},
}
"""Per choice, the form of each primitive."""
