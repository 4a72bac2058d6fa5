"""A candidate's error to the float64 definition turned into a ratio to what its precision allows: the one table.

Every comparison of values in the oracle goes through `compare`. What it allows is derived, in three steps:

1.  *The unit.* Rounding errors are taken as independent, of mean zero and at most one unit roundoff u each, so
    that they add up in squares (Higham, Mary, "A new approach to probabilistic rounding error analysis", SIAM J.
    Sci. Comput. 41, 2019). A result that is stored in a type of roundoff u, made of weights w stored in it, is
    expected to be off by

        unit = u sqrt(sum_j (w_j v_j)^2 + out^2) + u32 sum_j (error_j + w_j) |v_j|

    where u32 is float32's roundoff, and error_j, by running error analysis, what the score's, the formula's and
    the exponential's own roundings in float32 do to a weight. The second part matters for float32 operands, and
    for log-sum-exps, whose unit consists of it: there it is a bound, and hence generous; but a fault changes
    float32 results by a million units. Units are known for results and gradients alike (`float64`). Divided by
    them, errors are comparable from one element to the next, whatever the sizes of rows, heads and slots.

2.  *The plain computation.* A unit says how errors compare, not how large they are. That is measured: the same
    formula, written plainly, at the kernel's own precision (operands in their type, sums in float32, weights
    rounded to the values' type before the second product), on the same operands.

3.  *The factor and the floor.* With errors in units, and n rows of results,

        largest error of the candidate          <= FACTOR * largest error of the plain computation   + FLOOR
        root mean square of the candidate's     <= FACTOR * root mean square of the plain one's      + FLOOR / sqrt(n)

    FACTOR is 2: a kernel may round twice where the plain computation rounds once (weights relative to a running
    maximum, and rescaled sums), which doubles variances, and a factor sqrt(2) of deviations; as much again is
    for both sides being draws of a random error, not its deviation. FLOOR is 2: where few elements, or exact ones,
    make the plain error vanish by luck, a result of one rounded weight, rounded, may be off by sqrt(2) units;
    a mean over n rows tells a fluctuation of one row from a fault sqrt(n) times better.

The first line finds one wrong element among many, the second a small error of all. Neither depends on a kernel.
A factor is never raised to let a kernel pass: what cannot meet it states another precision, or is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfc.ir.ops import Attention
from tfc.testing import float64
from tfc.testing.float64 import DTYPES, Precision

__all__ = ["FACTOR", "FLOOR", "Expected", "Measured", "compare", "expected", "expected_gradients"]

Array = np.ndarray[Any, np.dtype[Any]]

FACTOR = 2.0
"""How many times the plain computation's error a candidate's may be."""

FLOOR = 2.0
"""How many units one element may be off where the plain computation is exact."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How a candidate's array compares with the definition's.

    ratio: its error to what is allowed, the worse of the two criteria; above 1 it fails. `at` is the element
    furthest off, `got` and `expected` its values; `reason` is empty where the ratio is at most 1.
    """

    what: str
    ratio: float
    at: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.ratio <= 1


def compare(what: str, candidate: Any, definition: Array, plain: Array, unit: Array) -> Measured:
    """The candidate's array against the definition's, both of one shape; `plain` and `unit` as above.

    An infinity of the definition must be met exactly; where it is NaN the candidate is not looked at.
    """
    got = np.asarray(candidate).astype(np.float64)
    if got.shape != definition.shape:
        reason = f"{what} has shape {list(got.shape)}, not {list(definition.shape)}"
        return Measured(what, np.inf, reason=reason)
    if got.size == 0:
        return Measured(what, 0.0)
    errors, own = (_in_units(x, definition, unit) for x in (got, plain.astype(np.float64)))
    worst = np.unravel_index(int(np.argmax(errors)), errors.shape)
    at = tuple(int(i) for i in worst)
    values = at, float(got[at]), float(definition[at])
    if not np.isfinite(errors[at]):
        reason = f"{what}{list(at)} is {values[1]:g}, the definition says {values[2]:g}"
        return Measured(what, np.inf, *values, reason)
    rows = max(1, errors.size // errors.shape[-1]) if errors.ndim else 1
    largest = errors[at] / (FACTOR * _finite(own).max() + FLOOR)
    mean = _rms(errors) / (FACTOR * _rms(_finite(own)) + FLOOR / np.sqrt(rows))
    ratio = float(max(largest, mean))
    reason = ""
    if ratio > 1:
        part = "this element" if largest >= mean else "the root mean square"
        reason = (
            f"{what}{list(at)} is {values[1]:.9g}, the definition says {values[2]:.9g}: "
            f"{part} is off by {ratio:.3g} times what rounding allows"
        )
    return Measured(what, ratio, *values, reason)


def _in_units(x: Array, definition: Array, unit: Array) -> Array:
    """|x - definition| / unit: 0 where both agree exactly or the definition says nothing, inf where a NaN is new."""
    with np.errstate(all="ignore"):
        off = np.where(x == definition, 0.0, np.abs(x - definition))
        off = np.where(np.isfinite(off) & np.isfinite(x), off, np.inf)
        off = np.where(x == definition, 0.0, off)
        ratio = np.where(off == 0, 0.0, off / unit)
    return np.where(np.isnan(definition), 0.0, ratio)


def _finite(x: Array) -> Array:
    """Errors of the plain computation: an overflow of its own allows a candidate nothing."""
    return np.where(np.isfinite(x), x, 0.0)


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


@dataclass(frozen=True, slots=True)
class Expected:
    """A result as the definition has it, as the plain computation has it, and its units: all in float64."""

    what: str
    definition: Array
    plain: Array
    unit: Array

    def compare(self, candidate: Any) -> Measured:
        return compare(self.what, candidate, self.definition, self.plain, self.unit)


def precision_of(operands: Sequence[Array]) -> Precision:
    """The precision that a kernel of these operands (q, k, v, ...) has."""
    (dtype,) = (t for t, d in DTYPES.items() if d == operands[0].dtype)
    return Precision.of(dtype)


def expected(op: Attention, operands: Sequence[Array]) -> tuple[Expected, Expected]:
    """What attention's two results, out and lse, ought to be, and how far off they may be."""
    own = precision_of(operands)
    right = float64.attention(op, *operands, judged=own)
    plain = float64.attention(op, *operands, at=own)
    return (
        Expected("out", right.out, plain.out, right.out_unit),
        Expected("lse", right.lse, plain.lse, right.lse_unit),
    )


def expected_gradients(
    op: Attention, operands: Sequence[Array], dout: Array, dlse: Array | None = None
) -> dict[int, Expected]:
    """The same for the gradient of sum(out * dout) + sum(lse * dlse), by operand number."""
    own = precision_of(operands)
    right = float64.gradients(op, operands, dout, dlse, judged=own)
    plain = float64.gradients(op, operands, dout, dlse, at=own)
    names = dict(enumerate(("dq", "dk", "dv")))
    return {i: Expected(names.get(i, f"d${i - 3}"), g.value, plain[i].value, g.unit) for i, g in right.items()}
