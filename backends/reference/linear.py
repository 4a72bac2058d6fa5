"""Products with weights, alone and as feed-forward layers, as their definitions read."""

from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.reference.dense import Dense
from tfc.ir.ops import FeedForward, Linear

__all__ = ["ffn", "linear"]

Array = jax.Array


def linear(op: Linear, real: Any, x: Array, weight: Array, *bias: Array) -> tuple[Array]:
    """x weight (+ bias).   x: [..., K]   weight: [K, O]   bias: [O]   -> [..., O]"""
    y = jnp.einsum("...k,ko->...o", x, weight, precision="highest")
    return (y + bias[0] if bias else y,)


def ffn(op: FeedForward, real: Any, x: Array, *weights: Array) -> tuple[Array]:
    """down(activation(up(x), gate(x))).

    x: [..., C]   weights: up [C, F], its bias [F] if biased; gate [C, F] if gated, its bias if biased;
    down [F, O], its bias [O] if biased   -> [..., O]
    """
    rest = list(weights)

    def product(y: Array) -> Array:
        parts = [rest.pop(0)] + ([rest.pop(0)] if op.biased else [])
        return linear(Linear(), real, y, *parts)[0]

    names = {"u": product(x)}
    if op.gated:
        names["g"] = product(x)
    hidden = Dense(real=real, vars=names)(op.activation).astype(real)
    return (product(jnp.broadcast_to(hidden, names["u"].shape)),)
