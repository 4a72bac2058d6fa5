"""A call's arguments turned into complaints about their values: rows that a table lacks, lengths that cannot be.

What lies on the host is looked at in each call. A JAX array does not change: it is brought to the host and looked at
when it is first given, once, which waits for it to be computed. Not looked at are traced values and arrays of which
other processes hold a part; rows that a table lacks are NaN then.
"""

import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tfc.backends.binding import lengths_of
from tfc.backends.reach import Indexed, indexed
from tfc.diagnostics import Diagnostic, TfcError
from tfc.ir.program import Program
from tfc.ir.types import Dim, bind

__all__ = ["Values"]


class Values:
    """What is known of the values that a program takes; remembers the arrays that were found to fit."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tables: Sequence[Indexed] = indexed(program)
        # what a length stands for when left out is the most it can be; a plain number is a value like others
        self.lengths = {i.value.name: i.default for i in program.inputs if isinstance(i.default, Dim)}
        self._fit: dict[tuple[int, int, int], weakref.ref[Any]] = {}

    def check(self, given: Mapping[str, Any]) -> None:
        """Arrays by input name, which need not fit in any other respect.

        Raises TfcError: E704 for a row that a table lacks, E705 for a length.
        """
        faults: list[Diagnostic] = []
        for use in self.tables:
            if use.input in given and (fact := self._outside(use.input, given[use.input], 0, use.rows - 1)):
                help = f"it indexes `{use.table}`, whose rows are 0..{use.rows - 1}"
                faults.append(Diagnostic("E704", fact, help=help))
        if limited := [name for name in self.lengths if name in given]:
            known = lengths_of(self.program, given)
            for name in limited:
                most = bind(self.lengths[name], known)
                if isinstance(most, int) and (fact := self._outside(name, given[name], 1, most)):
                    help = f"a length here is 1..{most}, and {most} if left out"
                    faults.append(Diagnostic("E705", fact, help=help))
        if faults:
            raise TfcError(*faults)

    def _outside(self, name: str, x: Any, low: int, high: int) -> str:
        """The first element that is not in low..high, in words; nothing where all are, or none is known."""
        if isinstance(x, Tracer) or not _whole(x.dtype):
            return ""
        if not isinstance(x, jax.Array):
            return _found(name, x, low, high)
        key = (id(x), low, high)
        before = self._fit.get(key)
        if (before is not None and before() is x) or not x.is_fully_addressable:
            return ""
        fault = _found(name, np.asarray(x), low, high)
        if not fault:
            self._fit[key] = weakref.ref(x, lambda _: self._fit.pop(key, None))
        return fault


@lru_cache(maxsize=64)
def _whole(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer))


def _found(name: str, values: np.ndarray[Any, Any], low: int, high: int) -> str:
    if not values.size or (values.min() >= low and values.max() <= high):
        return ""
    wrong = (values < low) | (values > high)
    at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    place = f"[{', '.join(map(str, map(int, at)))}]" if at else ""
    more = f" (and {int(wrong.sum()) - 1} more)" if wrong.sum() > 1 else ""
    return f"`{name}{place}` is {int(values[at])}, outside {low}..{high}{more}"
