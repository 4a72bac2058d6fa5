"""A program and the arrays of a call turned into the program with its lengths bound, and an array for every input."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES
from tfc.diagnostics import Diagnostic, TfcError, closest
from tfc.ir.program import Input, Program
from tfc.ir.types import Dim, DType, Size, TensorType, bind
from tfc.ir.verify import verify

__all__ = ["Bound", "bind_call", "lengths_of", "shown"]

Array = jax.Array


@dataclass(frozen=True, slots=True)
class Bound:
    """A program whose sizes are numbers, the lengths that made it so, and its inputs, defaults filled in."""

    program: Program
    lengths: Mapping[str, int]
    inputs: Mapping[str, Array]


def shown(x: Array) -> str:
    """`int[4, 9]`: an array's type in the words of the language."""
    words: dict[str, object] = {jnp.dtype(d).name: word for word, d in DTYPES.items()}
    if jnp.issubdtype(x.dtype, jnp.integer):
        words[x.dtype.name] = DType.I32
    return f"{words.get(x.dtype.name, x.dtype.name)}[{', '.join(map(str, x.shape))}]"


def lengths_of(program: Program, given: Mapping[str, Array]) -> dict[str, int]:
    """The named lengths that the arrays' shapes fix by themselves, whether or not everything fits."""
    out: dict[str, int] = {}
    for i in program.inputs:
        x = given.get(i.value.name)
        if x is not None and x.ndim == i.value.type.rank:
            for size, n in zip(i.value.type.shape, x.shape, strict=True):
                match size:
                    case Dim((((str(name),), 1),)):
                        out[name] = n
    return out


def bind_call(program: Program, given: Mapping[str, Array]) -> Bound:
    """Lengths from the shapes of the arrays given by input name; an input that has a default may be left out.

    Integers of any width are taken for `int`. Raises TfcError: E701 for a missing or an unknown argument, E702 for
    a shape, E703 for an element type; each names the argument, what it is and what is expected.
    """
    faults = _names(program, given)
    lengths: dict[str, int] = {}
    origin: dict[str, str] = {}
    for declared in program.inputs:
        name = declared.value.name
        if name in given:
            faults += _fit(program, declared, given[name], lengths, origin)
    if faults:
        raise TfcError(*faults)
    bound = program.bind(lengths)
    faults = [f for i in bound.inputs if (f := _still_open(i))] or list(dict.fromkeys(_negative(program, lengths)))
    if faults:
        raise TfcError(*faults)
    verify(bound)
    inputs = {}
    for i in bound.inputs:
        name, dtype = i.value.name, DTYPES[i.value.type.dtype]
        if name in given:
            inputs[name] = given[name].astype(dtype)
        else:
            assert isinstance(i.default, int), f"{name} has no default that the lengths fix"
            inputs[name] = jnp.full(i.value.type.ints, i.default, dtype)
    return Bound(bound, lengths, inputs)


def _negative(program: Program, lengths: Mapping[str, int]) -> Iterator[Diagnostic]:
    """Sizes like `T - 4` that a call too short makes negative."""
    for eqn in program.eqns:
        for size in (size for out in eqn.outs for size in out.type.shape if isinstance(size, Dim)):
            n = bind(size, lengths)
            if isinstance(n, int) and n < 0:
                given = ", ".join(f"{name} = {lengths[name]}" for name in sorted(size.names))
                yield Diagnostic(
                    "E705", f"the size {size} is {n} where {given}", span=eqn.span, help="give longer inputs"
                )
    for _, body in program.bodies():
        yield from _negative(body, lengths)


def _names(program: Program, given: Mapping[str, Array]) -> list[Diagnostic]:
    declared = {i.value.name: i for i in program.inputs}
    takes = ", ".join(f"{name}: {i.value.type}" for name, i in declared.items())
    faults = []
    for name in given:
        if name not in declared:
            like = closest(name, declared)
            hint = f"did you mean `{like}`? " if like else ""
            faults.append(
                Diagnostic("E701", f"{program.name} has no argument `{name}`", help=f"{hint}it takes {takes}")
            )
    for name, i in declared.items():
        if name not in given and i.default is None:
            faults.append(Diagnostic("E701", f"{program.name} lacks its argument `{name}`", help=f"it takes {takes}"))
    return faults


def _fit(
    program: Program, declared: Input, x: Array, lengths: dict[str, int], origin: dict[str, str]
) -> list[Diagnostic]:
    """What is wrong with one argument; the lengths that it fixes are entered."""
    name, expected = declared.value.name, declared.value.type
    fact = f"`{name}` is {shown(x)}, {program.name} declares {expected}"
    if not _same_kind(x, expected.dtype):
        wanted = jnp.dtype(DTYPES[expected.dtype]).name
        return [Diagnostic("E703", fact, help=f"convert it: {name}.astype('{wanted}')")]
    if x.ndim != expected.rank:
        return [Diagnostic("E702", fact, help=_rank_help(x, expected))]
    for axis, (size, actual) in enumerate(zip(expected.shape, x.shape, strict=True)):
        if isinstance(size, Dim) and size == Dim.named(str(size)) and str(size) not in lengths:
            lengths[str(size)], origin[str(size)] = actual, f"`{name}` {shown(x)}"
            continue
        wants: Size = bind(size, lengths)
        if isinstance(wants, int) and wants != actual:
            sources = sorted({origin[n] for n in size.names}) if isinstance(size, Dim) else []
            cause = f": {size} = {wants} in {', '.join(sources)}" if sources else ""
            return [Diagnostic("E702", fact + cause, help=f"axis {axis} of `{name}` should be {wants}, not {actual}")]
    return []


def _same_kind(x: Array, dtype: DType) -> bool:
    if dtype is DType.I32:
        return bool(jnp.issubdtype(x.dtype, jnp.integer))
    return bool(x.dtype == DTYPES[dtype])


def _rank_help(x: Array, expected: TensorType) -> str:
    if x.ndim == expected.rank - 1:
        return "one sequence is a batch of one: add a leading axis with x[None]"
    return f"it has {x.ndim} axes where {expected.rank} are expected"


def _still_open(i: Input) -> Diagnostic | None:
    if i.value.type.static:
        return None
    return Diagnostic("E702", f"no argument fixes the lengths of `{i.value.name}`: {i.value.type}")
