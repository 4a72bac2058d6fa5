"""Specs whose scores read something trained, turned into two backward passes: one with its gradient, one without."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.emit import emit
from tfc.backends.gradients import own_gradient
from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.bench.peers import Operands
from tfc.front import front
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn
from tfc.ir.types import DType, TensorType

__all__ = ["TRAINED", "Shape", "Trained", "backward", "equation", "operands", "refusal", "true"]

Array = jax.Array
Gradients = Callable[..., tuple[Array, ...]]

SPEC = """tfm 1
default precision {{ params = f32   compute = bf16   reduce = f32 }}
let width = {width}, heads = {heads}, head_dim = {head_dim}
model trained(x: f32[B, T, width]{inputs}) {{
  {params}
  attention look {{ heads = heads   head_dim = head_dim   mask = causal   {formula} }}
  return look({x})
}}
"""
"""Causal self-attention of one layer, as anybody would write it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Something trained that scores or weights read: how a spec says it. slopes: it starts as ALiBi's slopes do
    (arXiv:2108.12409), and from small random numbers where it does not."""

    name: str
    formula: str
    params: str = ""
    inputs: str = ""
    x: str = "x"
    slopes: bool = False


TRAINED: tuple[Trained, ...] = (
    Trained(name="slope of a head", formula="score = tilt(slope)", params="param slope[heads]", slopes=True),
    Trained(
        name="gate of a token",  # the sums of log gates up to the token (arXiv:2503.02130), of all heads alike
        formula="score = s + q.gate - k.gate",
        inputs=", gates: f32[B, T]",
        x="tag(x, gate = gates)",
    ),
    Trained(name="T5 table", formula="score = t5(table, no)", params="param table[32, heads]"),
    Trained(name="sink of a head", formula="weigh = sink(logit)", params="param logit[heads]"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    batch: int = 2
    length: int = 4096
    heads: int = 16
    head_dim: int = 128


def equation(of: Trained, shape: Shape, target: Target) -> Eqn:
    """The attention of the spec after the passes, at this size; what is trained is all that it captures."""
    sizes = dict(width=shape.heads * shape.head_dim, heads=shape.heads, head_dim=shape.head_dim)
    text = SPEC.format(**sizes, formula=of.formula, params=of.params, inputs=of.inputs, x=of.x)
    plan = emit(front(text).result.program, target).plan({"B": shape.batch, "T": shape.length})
    (eqn,) = (row.eqn for row in plan if isinstance(row.eqn.op, Attention))
    return eqn


def refusal(kernel: Kernel, eqn: Eqn, target: Target) -> str | None:
    """Why the equation's gradient is not the kernel's own, None where it is."""
    if reason := kernel.refuse(eqn, target):
        return reason
    if kernel.differentiable:
        return None
    return "has no gradient of its own" if kernel.gradient is None else kernel.gradient.refuse(eqn, target)


def operands(of: Trained, eqn: Eqn, seed: int) -> Operands:
    """q, k, v and what is captured, then a cotangent of the result."""
    keys = jax.random.split(jax.random.key(seed), len(eqn.args) + 1)
    made: list[Array] = []
    for key, a in zip(keys, eqn.args, strict=False):
        shape, dtype = a.type.ints, DTYPES[a.type.dtype]
        if len(made) < 3:
            made.append(jax.random.normal(key, shape, dtype))
        elif of.slopes:
            made.append(2.0 ** (-8.0 * (jnp.arange(shape[0], dtype=dtype) + 1) / shape[0]))
        else:
            made.append(jax.random.normal(key, shape, dtype) / 4)
    return (*made, jax.random.normal(keys[-1], eqn.outs[0].type.ints, DTYPES[eqn.outs[0].type.dtype]))


def backward(kernel: Kernel, eqn: Eqn, target: Target, *, captured: bool) -> Gradients:
    """The gradients of q, k and v, then with `captured` of what is captured, as a function of (operands, out, lse,
    cotangent of out). Of a kernel that JAX differentiates the forward pass is a part of it.

    Without, the kernels are those of an equation whose captured arrays are integers, which have no gradient.
    """
    count = len(eqn.args)
    if own_gradient(kernel, eqn, target) is None:
        serve = kernel.build(eqn, target)

        def pulled(*given: Array) -> tuple[Array, ...]:
            ours, rest = given[: count if captured else 3], given[count if captured else 3 : count]
            _, pull = jax.vjp(lambda *x: serve(*x, *rest)[0], *ours)
            return tuple(pull(given[-1]))

        return pulled
    asked = eqn if captured else _integers(eqn)
    own = own_gradient(kernel, asked, target)
    assert own is not None  # what it refuses is asked of formulas and head sizes
    gradient = own.build(asked, target)

    def owned(*given: Any) -> tuple[Array, ...]:
        *of_args, out, lse, cotangent = given
        found = gradient(of_args, (out, lse), (cotangent, jnp.zeros_like(lse)))
        return tuple(x for x in found[: count if captured else 3] if x is not None)

    return owned


def _integers(eqn: Eqn) -> Eqn:
    """The equation with captured arrays of integers."""
    args = [replace(a, type=TensorType(a.type.shape, DType.I32)) for a in eqn.args[3:]]
    return replace(eqn, args=(*eqn.args[:3], *args))


def true(xla: Kernel, eqn: Eqn, target: Target, given: Sequence[Array]) -> tuple[Array, ...]:
    """The gradients of all operands by the xla form, of (operands, cotangent)."""
    whole = backward(xla, eqn, target, captured=True)
    found: tuple[Array, ...] = jax.jit(whole)(*given)
    return found
