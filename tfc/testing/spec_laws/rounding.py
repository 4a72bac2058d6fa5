"""A program and roundoffs turned into how far off its results may be: measured, by rounding at random.

What an equation reads is changed by a random unit of roundoff of the type that it is declared in, everything else is
float64 (Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997). The largest change of a result among a few draws is
the measure. An error of a kernel may be FACTOR times as large, and FLOOR roundoffs of the largest element beside.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfc.formula.expr import Apply, Expr, Kind, Read, kind_of, walk
from tfc.ir.ops import Elementwise, Op, Repeat, Rounded, Route, Top
from tfc.ir.program import Program
from tfc.ir.types import DType
from tfc.testing.interpreted import Draw
from tfc.testing.spec_laws.subject import Array, Subject, Tree

__all__ = [
    "FACTOR",
    "FINEST",
    "FLOOR",
    "ROUNDOFF",
    "apart",
    "differs",
    "gradient_noise",
    "gradients_differ",
    "jumps",
    "noise",
    "operations_of",
]

FACTOR, FLOOR, DRAWS = 8.0, 8.0, 3

ROUNDOFF: Mapping[DType, float] = {DType.F64: 2.0**-53, DType.F32: 2.0**-24, DType.F16: 2.0**-11, DType.BF16: 2.0**-8}

FINEST = 2.0**-40
"""For two computations in float64: what any order of sums stays below, and what is still nothing beside a fault."""


def fine(bits: int) -> float:
    """The unit of a mark in the wide program: what is declared narrower there (a formula of positions) stays so."""
    return FINEST if bits > 23 else 2.0 ** -(bits + 1)


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
    said = f"{what}{place} is {found[at]:.9g}, not {right[at]:.9g}"
    return f"{said}: {off[at]:.3g} apart, where {allowed:.2g} is rounding"


def differs(got: Sequence[Any], right: Sequence[Array], noise: Sequence[float], roundoff: float) -> str | None:
    """The first result that differs, or None."""
    for i, (x, y, n) in enumerate(zip(got, right, noise, strict=True)):
        if said := apart(f"result {i}", x, y, n, roundoff):
            return said
    return None


def noise(subject: Subject, least: float = FINEST) -> list[float]:
    """How far rounding moves each result of the lowered program. least: the finest roundoff."""
    key = f"noise {least}"
    if key not in subject.kept:
        draws = [subject.rounded(_draw(n, least)) for n in range(DRAWS)]
        subject.kept[key] = noise_of(subject.values, draws)
    found: list[float] = subject.kept[key]
    return found


def gradient_noise(subject: Subject, least: float = FINEST) -> dict[str, float]:
    """The same for gradients."""
    key = f"gradients {least}"
    if key not in subject.kept:
        draws = [subject.rounded(_draw(n, least), gradients=True) for n in range(DRAWS)]
        paths = list(subject.gradients)
        right = [subject.gradients[p] for p in paths]
        found = noise_of(right, [[x[p] for p in paths] for x in draws])
        subject.kept[key] = dict(zip(paths, found, strict=True))
    return subject.kept[key]  # type: ignore[no-any-return]  # what the lines before put there


def _draw(seed: int, least: float) -> Draw:
    return Draw(np.random.default_rng(seed), lambda bits: max(least, fine(bits)))


def gradients_differ(subject: Subject, found: Tree, allowed: Mapping[str, float], roundoff: float) -> str | None:
    """The first gradient that differs from the lowered program's, or None.

    The largest gradient of all sets the floor: one may be zero as it cancels within an operation (a softmax over one
    key), where another order of sums leaves a roundoff of what cancelled.
    """
    largest = max((float(_largest(np.abs(x))) for x in subject.gradients.values()), default=0.0)
    for path, right in subject.gradients.items():
        noise = allowed[path] + roundoff * largest
        if said := apart(f"the gradient of {path}", found[path], right, noise, roundoff):
            return said
    return None


def _largest(x: Array) -> Any:
    return np.max(x, initial=0.0)


STEPS = frozenset({"sign", "round", "floor"})
COMPARED = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "floordiv", "mod"})


def jumps(program: Program) -> bool:
    """Whether a result may jump where a value changes by a rounding error: choices, formats, steps.

    Comparisons of reals count where sixteen bits are asked for: activations are written with them, and in float32 a
    value is seldom that near to a bound.
    """
    asked = program.precision
    coarse = any(d in (DType.BF16, DType.F16) for d in (asked.params, asked.compute, asked.reduce))
    formats = any(s.format is not None for s in program.stored())
    return formats or any(_jumps(op, kinds, coarse) for op, kinds in _operations(program))


def operations_of(program: Program) -> Iterator[Op]:
    """Every operation, those of bodies too."""
    return (op for op, _ in _operations(program))


def _operations(program: Program) -> Iterator[tuple[Op, tuple[DType, ...]]]:
    for eqn in program.eqns:
        yield eqn.op, tuple(a.type.dtype for a in eqn.args)
        if isinstance(eqn.op, Repeat | Route):
            yield from _operations(eqn.op.body)


def _jumps(op: Op, kinds: tuple[DType, ...], coarse: bool) -> bool:
    match op:
        case Top() | Rounded():
            return True
        case Elementwise(fn=fn):
            return fn in STEPS or (coarse and fn in COMPARED and any(k.floating for k in kinds))
    fields = [getattr(op, name) for name in type(op).__dataclass_fields__]
    nodes = [n for f in fields if isinstance(f, Expr) for n in walk(f)]
    return any(isinstance(n, Apply) and n.fn in STEPS and _computed(n) for n in nodes)


def _computed(node: Apply) -> bool:
    """Whether a step is taken from a real number that is no parameter's own."""
    reads = [n for n in walk(node) if isinstance(n, Read)]
    return kind_of(node.args[0]) is Kind.REAL and not reads
