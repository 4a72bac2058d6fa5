"""A program and roundoffs turned into how far off its results may be: measured, by rounding at random.

What an equation reads is changed by a random unit of roundoff of the type that it is declared in, everything else is
float64 (Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997). The largest change of a result among a few draws is
the measure. An error of a kernel may be FACTOR times as large, and FLOOR roundoffs of the largest element beside.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tfc.backends.reference.program import evaluate
from tfc.formula.expr import Apply, Expr, Kind, kind_of, walk
from tfc.ir.ops import Elementwise, Op, Repeat, Rounded, Route, Top
from tfc.ir.program import Eqn, Program
from tfc.ir.types import DType
from tfc.testing.interpreted import interpreted
from tfc.testing.spec_laws.subject import Array, Form, Subject, Tree

__all__ = ["FACTOR", "FINE", "FINEST", "FLOOR", "ROUNDOFF", "Noise", "apart", "differs", "fine_gradients", "fine_noise",
           "gradient_noise", "gradients_differ", "jumps", "noise", "operations_of"]  # fmt: skip

FACTOR, FLOOR, DRAWS = 8.0, 8.0, 3

ROUNDOFF: Mapping[DType, float] = {DType.F64: 2.0**-53, DType.F32: 2.0**-24, DType.F16: 2.0**-11, DType.BF16: 2.0**-9}

FINEST = 2.0**-40
FINE: Mapping[DType, float] = {**ROUNDOFF, DType.F64: FINEST}
"""For two computations in float64: what any order of sums stays below, and what is still nothing beside a fault."""


class Noise:
    """Random rounding of what equations read: a function for `evaluate`."""

    def __init__(self, seed: int, roundoff: Mapping[DType, float]) -> None:
        self.rng, self.roundoff = np.random.default_rng(seed), roundoff

    def __call__(self, eqn: Eqn, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._rounded(a.type.dtype, x) for a, x in zip(eqn.args, operands, strict=True))

    def _rounded(self, dtype: DType, x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x * (1 + self.roundoff[dtype] * self.rng.uniform(-1, 1, x.shape))


def noise_of(clean: Sequence[Array], noisy: Sequence[Sequence[Array]]) -> list[float]:
    """The largest change of each array among the draws."""
    return [max(float(_largest(np.abs(n[i] - x))) for n in noisy) for i, x in enumerate(clean)]


def apart(what: str, got: Any, right: Array, noise: float, roundoff: float) -> str | None:
    """How an array differs from the right one by more than rounding explains, or None."""
    found = np.asarray(got).astype(np.float64)
    if found.shape != right.shape:
        return f"{what} has the shape {list(found.shape)}, not {list(right.shape)}"
    if found.size == 0:
        return None
    with np.errstate(invalid="ignore"):
        off = np.where((found == right) | (np.isnan(found) & np.isnan(right)), 0.0, np.abs(found - right))
    off = np.where(np.isnan(off), np.inf, off)
    allowed = FACTOR * noise + FLOOR * roundoff * float(_largest(np.abs(np.where(np.isfinite(right), right, 0))))
    at = np.unravel_index(int(np.argmax(off)), off.shape)
    if off[at] <= allowed:
        return None
    place = f"[{', '.join(map(str, at))}]" if at else ""
    return f"{what}{place} is {found[at]:.9g}, not {right[at]:.9g}: {off[at]:.3g} apart, where {allowed:.2g} is rounding"


def differs(got: Sequence[Any], right: Sequence[Array], noise: Sequence[float], roundoff: float) -> str | None:
    """The first result that differs, or None."""
    for i, (x, y, n) in enumerate(zip(got, right, noise, strict=True)):
        if said := apart(f"result {i}", x, y, n, roundoff):
            return said
    return None


def fine_noise(subject: Subject) -> list[float]:
    """What roundoffs of 2^-40 do to each result of the lowered program: for two ways of computing in float64."""
    if "fine" not in subject.kept:
        subject.kept["fine"] = noise(subject, subject.wide.lowered, FINE)
    found: list[float] = subject.kept["fine"]
    return found


def fine_gradients(subject: Subject) -> dict[str, float]:
    """The same for gradients."""
    if "gradients" not in subject.kept:
        subject.kept["gradients"] = gradient_noise(subject, subject.wide, FINE)
    found: dict[str, float] = subject.kept["gradients"]
    return found


def gradient_noise(subject: Subject, form: Form, roundoff: Mapping[DType, float]) -> dict[str, float]:
    """How far rounding moves each gradient of a form after its passes."""
    noisy = [subject.pulled(form.program, form.map, Noise(n, roundoff)) for n in range(2)]
    paths = list(subject.gradients)
    return dict(zip(paths, noise_of([subject.gradients[p] for p in paths], [[x[p] for p in paths] for x in noisy]),
                    strict=True))  # fmt: skip


def gradients_differ(subject: Subject, found: Tree, allowed: Mapping[str, float], roundoff: float) -> str | None:
    """The first gradient that differs from the lowered program's, or None."""
    for path, right in subject.gradients.items():
        if said := apart(f"the gradient of {path}", found[path], right, allowed[path], roundoff):
            return said
    return None


def noise(subject: Subject, program: Program, roundoff: Mapping[DType, float], map: Any = None) -> list[float]:
    """How far rounding moves each result of a program."""
    params, given = subject.arrays(subject.wide, map)
    bound = program.bind(subject.lengths)

    def draws(p: Any, x: Any) -> Any:
        return [evaluate(bound, p, x, jnp.float64, Noise(n, roundoff)) for n in range(DRAWS)]

    return noise_of(subject.values, interpreted(draws)(params, given))


def _largest(x: Array) -> Any:
    return np.max(x, initial=0.0)


STEPS = frozenset({"sign", "round", "floor"})
COMPARED = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "floordiv", "mod"})


def jumps(program: Program) -> bool:
    """Whether a result may jump where a value changes by a rounding error: choices, formats, steps."""
    return any(_jumps(op, kinds) for op, kinds in _operations(program)) or any(
        s.format is not None for s in program.stored()
    )


def _operations(program: Program) -> Iterator[tuple[Op, tuple[DType, ...]]]:
    for eqn in program.eqns:
        yield eqn.op, tuple(a.type.dtype for a in eqn.args)
        if isinstance(eqn.op, Repeat | Route):
            yield from _operations(eqn.op.body)


def operations_of(program: Program) -> Iterator[Op]:
    """Every operation, those of bodies too."""
    return (op for op, _ in _operations(program))


def _jumps(op: Op, kinds: tuple[DType, ...]) -> bool:
    match op:
        case Top() | Rounded():
            return True
        case Elementwise(fn=fn):
            return fn in STEPS or (fn in COMPARED and any(k.floating for k in kinds))
    fields = [getattr(op, name) for name in type(op).__dataclass_fields__]
    formulas = [f for f in fields if isinstance(f, Expr)]
    return any(isinstance(n, Apply) and _steps(n) for f in formulas for n in walk(f))


def _steps(node: Apply) -> bool:
    if node.fn in STEPS:
        return kind_of(node.args[0]) is Kind.REAL
    return node.fn in COMPARED and any(kind_of(a) is Kind.REAL for a in node.args)
