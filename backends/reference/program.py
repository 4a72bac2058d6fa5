"""A program turned into its results by its operations' definitions, one equation after another.

The oracle of whole models: every real value stays in one float type from inputs to results, whatever types
the program declares, so with float64 it says what the program's text means before any rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.reference import arrays, attention, index, linear, rotate
from tfc.ir import ops
from tfc.ir.ops import Op, Repeat
from tfc.ir.program import Eqn, Program
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
}
"""Every operation but Repeat, whose definition is `evaluate` of its body, turn by turn."""


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
    program: Program, params: Mapping[str, Array], inputs: Mapping[str, Array], real: Any
) -> tuple[Array, ...]:
    """The results of a program whose lengths are numbers.

    params: arrays by path, stacked for the bodies of repeats. inputs: an array for every declared input.
    """
    values = {name: _as(x, real) for name, x in inputs.items()}
    for p in program.params:
        x = _as(params[p.path], real)
        values[p.value.name] = x if p.trained else jax.lax.stop_gradient(x)
    for eqn in program.eqns:
        operands = tuple(values[a.name] for a in eqn.args)
        if isinstance(eqn.op, Repeat):
            results = _turns(eqn.op, params, operands, real)
        else:
            results = define(eqn.op, real, *operands)
        values.update((out.name, x) for out, x in zip(eqn.outs, results, strict=True))
    return tuple(values[v.name] for v in program.results)


def _turns(op: Repeat, params: Mapping[str, Array], operands: tuple[Array, ...], real: Any) -> tuple[Array, ...]:
    """The body, turn after turn, each with its own slice of the stacked parameters."""
    own = {s.path for s in op.body.stored()}
    carried, invariants = operands[: op.carries], operands[op.carries :]
    for turn in range(op.count):
        names = [i.value.name for i in op.body.inputs]
        inputs = dict(zip(names, (jnp.asarray(turn, jnp.int32), *carried, *invariants), strict=True))
        carried = evaluate(op.body, {path: params[path][turn] for path in own}, inputs, real)
    return carried


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
