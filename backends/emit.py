"""A program and a target turned into a function of parameters and inputs, with a report of every choice and why.

Shapes are bound when the function is traced, from the inputs' shapes. Each equation becomes a call of the first
kernel that serves it, a `repeat` a `lax.scan` over its stacked parameters, so compile time does not grow with depth.
A `route` is a scan over its copies, each of which sees every token: right, and as much work as if all were chosen.
A parameter in a format that rounds is rounded where a program reads it.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.binding import Bound, bind_call
from tfc.backends.gradients import differentiable, gradient_note
from tfc.backends.kernel import DTYPES, Kernel, Late, Target
from tfc.backends.reach import check_reach
from tfc.backends.table import KERNELS, choose, known, named, refused
from tfc.backends.weights import rounding, turned
from tfc.diagnostics import Diagnostic, TfcError
from tfc.ir.ops import CacheRead, Cast, Repeat, Route
from tfc.ir.program import Eqn, Param, Program
from tfc.ir.types import DType
from tfc.ir.verify import verify
from tfc.source import Span

__all__ = ["Emitted", "Row", "emit"]

Array = jax.Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One equation's kernel. Equations of a body appear once, with the number of turns or copies; a route itself is
    `emit`'s work, its kernel called `loop`.

    within: label and count of each enclosing repeat and route, outermost first. count: how often a call runs it.
    refusals: (kernel, reason) of those asked before. notes: what the kernel says of itself, and of its gradients.
    """

    eqn: Eqn
    within: tuple[tuple[str, int], ...]
    kernel: str
    refusals: tuple[tuple[str, str], ...]
    notes: Mapping[str, Any]

    @property
    def op(self) -> str:
        return self.eqn.op.name

    @property
    def span(self) -> Span | None:
        return self.eqn.span

    @property
    def site(self) -> str:
        """`layer/%attn`: the enclosing repeats and the first value bound."""
        return "/".join([*(label for label, _ in self.within), str(self.eqn.outs[0])])

    @property
    def count(self) -> int:
        total = 1
        for _, n in self.within:
            total *= n
        return total


@dataclass(frozen=True, slots=True)
class Emitted:
    """A program for a target: call it, or ask what a call would run."""

    program: Program
    target: Target
    implementation: str | None = None

    def __call__(self, params: Mapping[str, Array], inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """The program's results, then its reports.

        params: arrays by path, stacked for the bodies of repeats. inputs: arrays by name, those with a default
        may be missing. Differentiable in reverse; traceable under jit. Raises TfcError: E701 to E703 for inputs
        that do not fit, E707 for a table too short for them, E812 where a kernel that was asked for refuses.
        """
        return self.run(params, bind_call(self.program, inputs))

    def run(self, params: Mapping[str, Array], bound: Bound) -> tuple[Array, ...]:
        """The results for inputs that `bind_call` has fitted to the program."""
        check_reach(bound.program)
        check_forced(bound.program, self.target, self.implementation)
        return _run(bound.program, self.target, self.implementation, params, bound.inputs)

    def plan(self, lengths: Mapping[str, int]) -> tuple[Row, ...]:
        """What a call with these lengths would run, in order, without running anything.

        Raises TfcError (E702) where a length is missing.
        """
        bound = self.program.bind(lengths)
        missing = sorted(
            {n for i in bound.inputs for s in i.value.type.shape if not isinstance(s, int) for n in s.names}
        )
        if missing:
            raise TfcError(Diagnostic("E702", f"a plan needs a number for {', '.join(missing)}"))
        verify(bound)
        check_forced(bound, self.target, self.implementation)
        return tuple(_rows(bound, self.target, self.implementation, ()))


def emit(program: Program, target: Target, implementation: str | None = None) -> Emitted:
    """The program for the target.

    implementation: the kernel to use wherever an operation has one of that name; other operations choose for
    themselves. Raises TfcError: E811 for a name that no kernel has, E813 where no operation of the program has it,
    E814 for float64 that JAX was not told to enable.
    """
    known(implementation)
    present = {type(e.op) for e in _equations(program)}
    if implementation is not None and not any(named(op, implementation) for op in present):
        serves = sorted(op.name for op, row in KERNELS.items() if any(k.name == implementation for k in row))
        raise TfcError(
            Diagnostic(
                "E813",
                f"nothing in {program.name} can use the implementation `{implementation}`",
                help=f"it serves {', '.join(serves)}; the program has {', '.join(sorted(op.name for op in present))}",
            )
        )
    wide = any(v.type.dtype is DType.F64 for e in _equations(program) for v in (*e.args, *e.outs))
    if wide and not jax.config.jax_enable_x64:
        raise TfcError(
            Diagnostic("E814", f"{program.name} computes in f64", help="jax.config.update('jax_enable_x64', True)")
        )
    return Emitted(program, target, implementation)


def _equations(program: Program) -> Iterator[Eqn]:
    """Every equation that a kernel serves, those of bodies and the roundings of parameters included."""
    yield from filter(None, map(rounding, program.params))
    for eqn in program.eqns:
        if isinstance(eqn.op, Repeat | Route):
            yield from _equations(eqn.op.body)
        else:
            yield eqn


def check_forced(program: Program, target: Target, implementation: str | None) -> None:
    """Raises TfcError (E812) with every reason of every equation that the kernel asked for cannot serve.

    Lengths are numbers. Equations that stand at one place of the text, turn after turn, say the same once.
    """
    if implementation is not None and (found := dict.fromkeys(_refused(program, target, implementation, ()))):
        raise TfcError(*found)


def _refused(program: Program, target: Target, implementation: str, within: tuple[str, ...]) -> Iterator[Diagnostic]:
    for eqn in [*filter(None, map(rounding, program.params)), *program.eqns]:
        if isinstance(eqn.op, Repeat | Route):
            yield from _refused(eqn.op.body, target, implementation, (*within, eqn.op.label))
        elif (forced := named(type(eqn.op), implementation)) is not None:
            if forced.refuse(eqn, target) is not None:
                yield from refused(eqn, target, forced, "/".join([*within, str(eqn.outs[0])]))


def _rows(
    program: Program, target: Target, implementation: str | None, within: tuple[tuple[str, int], ...]
) -> Iterator[Row]:
    for eqn in [*filter(None, map(rounding, program.params)), *program.eqns]:
        if isinstance(eqn.op, Repeat | Route):
            if isinstance(eqn.op, Route):
                notes = {
                    "copies": f"each of the {eqn.op.count} computes every token; those not chosen count zero times"
                }
                yield Row(eqn=eqn, within=within, kernel="loop", refusals=(), notes=notes)
            yield from _rows(eqn.op.body, target, implementation, (*within, (eqn.op.label, eqn.op.count)))
            continue
        choice = choose(eqn, target, implementation)
        notes = dict(choice.kernel.notes(eqn, target)) if choice.kernel.notes else {}
        if (said := gradient_note(choice.kernel, eqn, target)) is not None:
            notes["gradients"] = said
        yield Row(eqn=eqn, within=within, kernel=choice.kernel.name, refusals=choice.refusals, notes=notes)


def _run(
    program: Program,
    target: Target,
    implementation: str | None,
    params: Mapping[str, Array],
    inputs: Mapping[str, Array],
) -> tuple[Array, ...]:
    """The results of a bound program, equation by equation, then its reports."""
    values: dict[str, Any] = dict(inputs)
    for p in program.params:
        x = params[p.path] if p.trained else jax.lax.stop_gradient(params[p.path])
        values[p.value.name] = _rounded(p, target, implementation, x)
    plain = {p.value.name for p in program.params}  # what a cast may be put off of: it is cast once
    for eqn in program.eqns:
        if target.platform == "gpu" and (late := _late(eqn, values, plain)) is not None:
            values[eqn.out.name] = late
            if isinstance(eqn.op, CacheRead):
                plain.add(eqn.out.name)
            continue
        if isinstance(eqn.op, Repeat):
            results = _scan(eqn.op, target, implementation, params, _made(values, eqn))
        elif isinstance(eqn.op, Route):
            results = _route(eqn, eqn.op, target, implementation, params, _made(values, eqn))
        else:
            kernel = choose(eqn, target, implementation).kernel
            with jax.named_scope(eqn.op.name):
                results = _callable(kernel, eqn, target)(*_made(values, eqn, kernel.late))
        values.update((out.name, x) for out, x in zip(eqn.outs, results, strict=True))
    return tuple(_array(values[v.name]) for v in (*program.results, *(v for _, v in program.reports)))


def _late(eqn: Eqn, values: Mapping[str, Any], plain: Container[str]) -> Late | None:
    """A row of a cache, or the cast of one or of a parameter, put off until somebody reads it."""
    match eqn.op:
        case CacheRead():
            stack, index = (values[a.name] for a in eqn.args)
            return Late(_array(stack), index, DTYPES[eqn.out.type.dtype])
        case Cast(dtype=dtype) if dtype.floating and eqn.args[0].name in plain:
            x = values[eqn.args[0].name]
            return Late(x.x, x.index, DTYPES[dtype]) if isinstance(x, Late) else Late(x, None, DTYPES[dtype])
    return None


def _made(values: Mapping[str, Any], eqn: Eqn, late: Container[int] = ()) -> list[Any]:
    """The operands; those put off are made now, but for the ones that the kernel takes as they are."""
    return [values[a.name] if n in late else _array(values[a.name]) for n, a in enumerate(eqn.args)]


def _array(x: Any) -> Array:
    return x.array() if isinstance(x, Late) else x


def _rounded(param: Param, target: Target, implementation: str | None, x: Array) -> Array:
    """The parameter as its format keeps it; each turn of the loops it belongs to by itself."""
    eqn = rounding(param)
    if eqn is None:
        return x
    call = _callable(choose(eqn, target, implementation).kernel, eqn, target)

    def one(x: Array) -> Array:
        return turned(call(turned(x))[0])

    for _ in param.repeats:
        one = jax.vmap(one)
    return one(x)


_POLICIES: Mapping[str, Any] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a turn of a loop keeps for its gradients besides the carries, by `Repeat.remat`."""


def _scan(
    op: Repeat, target: Target, implementation: str | None, params: Mapping[str, Array], operands: list[Array]
) -> tuple[Array, ...]:
    """The body, turn after turn; a turn sees its own slice of the stacked parameters. Reports come stacked."""
    names = [i.value.name for i in op.body.inputs]
    stacked = {s.path: params[s.path] for s in op.body.stored()}
    invariants = operands[op.carries :]

    def turn(
        carried: tuple[Array, ...], own: tuple[Array, Mapping[str, Array]]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        index, slices = own
        inputs = dict(zip(names, (index, *carried, *invariants), strict=True))
        results = _run(op.body, target, implementation, slices, inputs)
        return results[: op.carries], results[op.carries :]

    if op.remat != "none":
        # no prevent_cse: what a scan computes again cannot meet what it computed before
        turn = jax.checkpoint(turn, prevent_cse=False, policy=_POLICIES[op.remat])
    with jax.named_scope(op.label):
        turns = (jnp.arange(op.count, dtype=jnp.int32), stacked)
        carried, reports = jax.lax.scan(turn, tuple(operands[: op.carries]), turns, length=op.count)
    return (*carried, *reports)


def _route(
    eqn: Eqn, op: Route, target: Target, implementation: str | None, params: Mapping[str, Array], operands: list[Array]
) -> tuple[Array, ...]:
    """Copy after copy on every token, its results weighed and added up in float32 (float64 beside float64)."""
    x, chosen, weight, *invariants = operands
    names = [i.value.name for i in op.body.inputs]
    stacked = {s.path: params[s.path] for s in op.body.stored()}
    out = eqn.out.type
    real = jnp.promote_types(jnp.promote_types(DTYPES[out.dtype], weight.dtype), jnp.float32)

    def copy(total: Array, own: tuple[Array, Mapping[str, Array]]) -> tuple[Array, None]:
        index, slices = own
        inputs = dict(zip(names, (index, x, *invariants), strict=True))
        (y,) = _run(op.body, target, implementation, slices, inputs)
        mine = chosen == index
        share = jnp.sum(jnp.where(mine, weight.astype(real), 0), axis=-1)
        wide = [*share.shape, *[1] * (len(out.shape) - 2)]
        chose = jnp.any(mine, axis=-1).reshape(wide)  # an infinity that a copy makes of another's token adds nothing
        return total + share.reshape(wide) * jnp.where(chose, y.astype(real), 0), None

    with jax.named_scope(op.label):
        copies = (jnp.arange(op.count, dtype=jnp.int32), stacked)
        total, _ = jax.lax.scan(copy, jnp.zeros(out.ints, real), copies, length=op.count)
    return (total.astype(DTYPES[out.dtype]),)


def _callable(kernel: Kernel, eqn: Eqn, target: Target) -> Callable[..., tuple[Array, ...]]:
    """The kernel's function; one without derivatives takes its own gradient's, or those of the xla form."""
    if kernel.differentiable:
        return kernel.build(eqn, target)
    xla = named(type(eqn.op), "xla")
    assert xla is not None, f"{eqn.op.name} has no xla form to differentiate"
    return differentiable(kernel, eqn, target, xla)
