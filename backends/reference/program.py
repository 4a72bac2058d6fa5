"""A program turned into its results by its operations' definitions, one equation after another.

The oracle of whole models: every real value stays in one float type from inputs to results, whatever types
the program declares, so with float64 it says what the program's text means before any rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.reference import (
    arrays,
    attention,
    caching,
    dropout,
    formats,
    functions,
    index,
    linear,
    norm,
    recurrence,
    rotate,
    routing,
)
from tfc.backends.weights import rounding, turned
from tfc.ir import ops
from tfc.ir.ops import Op, Repeat, Route
from tfc.ir.program import Eqn, Param, Program
from tfc.ir.types import DType

__all__ = ["DEFINITIONS", "KERNELS", "define", "evaluate"]

Array = jax.Array
Definition = Callable[..., tuple[Array, ...]]

DEFINITIONS: Mapping[type[Op], Definition] = {
    ops.Constant: arrays.constant,
    ops.Elementwise: arrays.elementwise,
    ops.Reduction: arrays.reduction,
    ops.Index: index.index,
    ops.Take: index.take,
    ops.Linear: linear.linear,
    ops.Reshape: arrays.reshape,
    ops.Slice: arrays.slice_,
    ops.Concat: arrays.concat,
    ops.Cast: arrays.cast,
    ops.Rotate: rotate.rotate,
    ops.Scores: attention.scores,
    ops.Score: attention.score,
    ops.Masked: attention.masked,
    ops.Weigh: attention.weigh,
    ops.Mix: attention.mix,
    ops.Attention: attention.attention,
    ops.FeedForward: linear.ffn,
    ops.Recurrence: recurrence.recurrence,
    ops.Top: routing.top,
    ops.Calibrated: routing.calibrated,
    ops.Rounded: formats.rounded,
    ops.ArrayFunction: functions.function,
    ops.CacheRead: caching.cache_read,
    ops.CacheWrite: caching.cache_write,
    ops.Dropout: dropout.dropout,
    ops.ResidualNorm: norm.norm,
}
"""Every operation but Repeat and Route, whose definitions are `evaluate` of their bodies, turn by turn."""


def define(op: Op, real: Any, *operands: Array) -> tuple[Array, ...]:
    """The results of one operation by its definition.

    real: jnp.float32 or jnp.float64 (which needs `jax.enable_x64`): operands are brought to it and real results
    have it; integers are int32. Lengths in the operation's attributes are numbers by now.
    """
    return DEFINITIONS[type(op)](op, real, *(_as(x, real) for x in operands))


def _as(x: Array, real: Any) -> Array:
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(real)
    return x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x


def evaluate(
    program: Program,
    params: Mapping[str, Array],
    inputs: Mapping[str, Array],
    real: Any,
    read: Callable[[Eqn, tuple[Array, ...]], tuple[Array, ...]] | None = None,
) -> tuple[Array, ...]:
    """The results of a program whose lengths are numbers, then its reports.

    params: arrays by path, stacked for the bodies of repeats and routes. inputs: an array for every declared input.
    read: what is done to the operands of every equation but loops before they are used (rounding errors, say).
    """
    values = {name: _as(x, real) for name, x in inputs.items()}
    for p in program.params:
        x = _as(params[p.path], real)
        values[p.value.name] = _kept(p, x if p.trained else jax.lax.stop_gradient(x), real)
    for eqn in program.eqns:
        operands = tuple(values[a.name] for a in eqn.args)
        if isinstance(eqn.op, Repeat):
            results = _turns(eqn.op, params, operands, real, read)
        elif isinstance(eqn.op, Route):
            results = _copies(eqn.op, params, operands, real, read)
        else:
            results = define(eqn.op, real, *(operands if read is None else read(eqn, operands)))
        values.update((out.name, x) for out, x in zip(eqn.outs, results, strict=True))
    return tuple(values[v.name] for v in (*program.results, *(v for _, v in program.reports)))


def _kept(param: Param, x: Array, real: Any) -> Array:
    """The parameter as its format keeps it, each turn of the loops it belongs to by itself."""
    kept = rounding(param)
    if kept is None:
        return x
    turns = len(param.repeats)
    flat = jnp.reshape(x, (-1, *x.shape[turns:]))
    return jnp.reshape(jnp.stack([turned(define(kept.op, real, turned(y))[0]) for y in flat]), x.shape)


def _turns(
    op: Repeat, params: Mapping[str, Array], operands: tuple[Array, ...], real: Any, read: Any
) -> tuple[Array, ...]:
    """The body, turn after turn, each with its own slice of the stacked parameters; its reports are stacked."""
    own = {s.path for s in op.body.stored()}
    carried, invariants = operands[: op.carries], operands[op.carries :]
    names = [i.value.name for i in op.body.inputs]
    reports: list[tuple[Array, ...]] = []
    for turn in range(op.count):
        inputs = dict(zip(names, (jnp.asarray(turn, jnp.int32), *carried, *invariants), strict=True))
        results = evaluate(op.body, {path: params[path][turn] for path in own}, inputs, real, read)
        carried = results[: op.carries]
        reports.append(results[op.carries :])
    if not reports:  # a loop of no turns
        kinds = [v.type for _, v in op.body.reports]
        return (*carried, *(jnp.zeros((0, *t.ints), real if t.dtype.floating else DTYPES[t.dtype]) for t in kinds))
    return (*carried, *(jnp.stack(column) for column in zip(*reports, strict=True)))


def _copies(
    op: Route, params: Mapping[str, Array], operands: tuple[Array, ...], real: Any, read: Any
) -> tuple[Array, ...]:
    """sum over k of weight[b, t, k] * copy_{chosen[b, t, k]}(x)[b, t]: every copy of every token, then those chosen."""
    x, chosen, weight, *rest = operands
    own = {s.path for s in op.body.stored()}
    names = [i.value.name for i in op.body.inputs]
    copies: list[Array] = []
    for copy in range(op.count):
        inputs = dict(zip(names, (jnp.asarray(copy, jnp.int32), x, *rest), strict=True))
        copies += evaluate(op.body, {path: params[path][copy] for path in own}, inputs, real, read)
    every = jnp.stack(copies, axis=2)  # [B, T, copy, ...]
    shape = (*chosen.shape, *(1,) * (every.ndim - 3))
    picked = jnp.take_along_axis(every, jnp.reshape(jnp.clip(chosen, 0, op.count - 1), shape), axis=2)
    there = jnp.reshape((chosen >= 0) & (chosen < op.count), shape)
    return (jnp.sum(jnp.where(there, jnp.reshape(weight, shape) * picked, 0), axis=2),)


def _refuse(eqn: Eqn, target: Target) -> str | None:
    wide = any(v.type.dtype is DType.F64 for v in (*eqn.args, *eqn.outs))
    return "float64 needs jax_enable_x64" if wide and not jax.config.jax_enable_x64 else None


def _build(eqn: Eqn, target: Target) -> Callable[..., tuple[Array, ...]]:
    """The definition in float32, or float64 where a value is, its results rounded to the declared types."""
    wide = any(v.type.dtype is DType.F64 for v in (*eqn.args, *eqn.outs))
    real = jnp.float64 if wide else jnp.float32

    def call(*operands: Array) -> tuple[Array, ...]:
        results = define(eqn.op, real, *operands)
        return tuple(x.astype(DTYPES[v.type.dtype]) for x, v in zip(results, eqn.outs, strict=True))

    return call


KERNELS: Mapping[type[Op], Kernel] = {
    op: Kernel(name="reference", op=op, refuse=_refuse, build=_build) for op in DEFINITIONS
}
"""Each definition as a kernel: it serves every target."""
