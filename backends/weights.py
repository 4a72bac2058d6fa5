"""A parameter that a format keeps -> the equation that rounds it where it is read, and the way its axes are turned."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from tfc.ir.formats import FORMATS, Format
from tfc.ir.ops import Rounded
from tfc.ir.program import Eqn, Param, Value
from tfc.ir.types import TensorType

__all__ = ["rounding", "turned"]

_TURNED = {"row": "column", "column": "row"}


def rounding(param: Param) -> Eqn | None:
    """The rounding of one turn's values of a parameter whose format is one, `turned`; None for any other parameter.

    A weight [..., K, O] is rounded along its inputs K, the axis that a product sums over, and `rounded` works along
    the last axis: so it sees [..., O, K], where a column of the weight is a row.
    """
    if param.format is None or not FORMATS[param.format.name].rounds:
        return None
    settings = tuple((k, _TURNED.get(str(v), v) if k == "per" else v) for k, v in param.format.settings)
    shape = param.value.type.shape[len(param.repeats) :]
    if len(shape) > 1:
        shape = (*shape[:-2], shape[-1], shape[-2])
    value = replace(param.value, type=TensorType(shape, param.value.type.dtype))
    return Eqn((value,), Rounded(format=Format(param.format.name, settings)), (Value(param.path, value.type),))


def turned(x: jax.Array) -> jax.Array:
    """[..., K, O] -> [..., O, K]; a vector stays as it is."""
    return jnp.swapaxes(x, -1, -2) if x.ndim > 1 else x
