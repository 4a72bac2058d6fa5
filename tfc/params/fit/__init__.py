"""A `Call` of a parameter map, its arrays and calibration statistics -> arrays, by the table of fitting procedures."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.core import Tracer

from tfc.diagnostics import Diagnostic, TfcError
from tfc.ir.param_map import Call
from tfc.params.fit.ksh import ksh, random_hash
from tfc.params.fit.low_rank import activation_svd, pooling, product, svd

__all__ = ["FITS", "Procedure", "fitted"]

Array = jax.Array


class Procedure(Protocol):
    """arrays [stacks..., ...], settings, statistics (None where the call names none) -> arrays with the same stacks."""

    def __call__(self, arrays: Sequence[Array], settings: Mapping[str, Any], data: Any, /) -> tuple[Array, ...]: ...


FITS: Mapping[str, Procedure] = {
    "svd": svd,
    "activation_svd": activation_svd,
    "product": product,
    "pooling": pooling,
    "ksh": ksh,
    "random_hash": random_hash,
}
"""Every procedure by the name that a `Call` gives."""


def fitted(call: Call, arrays: Sequence[Array], data: Mapping[str, Any] | None) -> tuple[Array, ...]:
    """All results of the call. Raises TfcError E631 where it asks for statistics that `data` lacks, and where it
    needs values that are not known, under a trace."""
    found = None
    if call.data:
        if data is None or call.data not in data:
            fact = f"`{call.fn}` fits to what the model sees at `{call.data}`, and there are no statistics of it"
            hint = "give calibration data: tfc convert --calibrate, or pack(params, data=statistics(...))"
            raise TfcError(Diagnostic("E631", fact, help=hint))
        if any(isinstance(x, Tracer) for x in arrays):
            fact = f"`{call.fn}` needs values, which a traced call does not have"
            raise TfcError(Diagnostic("E631", fact, help="pack the parameters once, outside of jit"))
        found = data[call.data]
    return FITS[call.fn](arrays, dict(call.settings), found)
