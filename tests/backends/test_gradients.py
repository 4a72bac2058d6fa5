"""A kernel's own gradient: what it is given, what is made of it, and where the xla form stands in for it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.gradients import differentiable, gradient_note
from tfc.backends.kernel import Gradient, Kernel, Late, Target
from tfc.backends.table import named
from tfc.formula.expr import Kind, Load, Read, Token, Var, apply
from tfc.ir.ops import Attention, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

CPU = Target(name="cpu", platform="cpu")
XLA = named(Attention, "xla")
assert XLA is not None
FORM: Kernel = XLA


def build(eqn: Eqn, target: Target) -> Any:
    call = FORM.build(eqn, target)
    return lambda *x: tuple(jax.lax.stop_gradient(y) for y in call(*x))


def times(factor: float) -> Any:
    """So many times the right gradient, so that one sees whose it is; NaN where results are not those of the call."""

    def build(eqn: Eqn, target: Target) -> Any:
        form = FORM.build(eqn, target)

        def gradient(operands: Sequence[Any], results: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
            found, pull = jax.vjp(form, *operands)
            same = jnp.array([jnp.allclose(x, y, rtol=1e-6) for x, y in zip(found, results, strict=True)])
            scale = jnp.where(jnp.all(same), factor, jnp.nan)
            return tuple(None if x.dtype == jax.dtypes.float0 else scale * x for x in pull(tuple(cotangents)))

        return gradient

    return build


def no_softcap(eqn: Eqn, target: Target) -> str | None:
    assert isinstance(eqn.op, Attention)
    return "has no tanh" if "tanh" in str(eqn.op.score) else None


def own(factor: float) -> Kernel:
    gradient = Gradient(refuse=no_softcap, build=times(factor), notes=lambda e, t: "its own, of 2 x 2")
    nothing = Kernel(name="own", op=Attention, refuse=lambda e, t: None, build=build, differentiable=False)
    return replace(nothing, gradient=gradient)


OWN = own(2.0)

SEGMENTS = apply("eq", Load(1, "q", Kind.INT), Load(1, "k", Kind.INT))
ALIBI = apply(
    "sub",
    S,
    apply("mul", Read(0, (Var("h", Kind.INT),), Kind.REAL), apply("abs", apply("sub", Token("q"), Token("k")))),
)


def equation(score: Any = ALIBI) -> tuple[Eqn, tuple[Any, ...]]:
    op = Attention(scale=0.5, score=score, mask=SEGMENTS)
    q = TensorType((2, 5, 2, 4), DType.F32)
    types = (q, q, q, TensorType((2,), DType.F32), TensorType((2, 5), DType.I32))
    outs = tuple(map(Value, ("out", "lse"), op.infer(*types)))
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=t.ints), jnp.float32) for t in types[:4]]
    ids = jnp.asarray(np.sort(rng.integers(0, 2, (2, 5)), axis=1), jnp.int32)
    return Eqn(outs, op, tuple(Value(f"a{i}", t) for i, t in enumerate(types))), (*arrays, ids)


def loss(call: Any, operands: tuple[Any, ...]) -> Any:
    """A function of the four real operands, of both results."""

    def f(*real: Any) -> Any:
        out, lse = call(*real, *operands[4:])
        return jnp.sum(out**2) + jnp.sum(jnp.sin(lse))

    return f


REAL = (0, 1, 2, 3)


def test_it_is_given_operands_results_and_cotangents():
    eqn, operands = equation()
    call = differentiable(OWN, eqn, CPU, FORM)
    ours = jax.grad(loss(call, operands), REAL)(*operands[:4])
    right = jax.grad(loss(FORM.build(eqn, CPU), operands), REAL)(*operands[:4])
    for x, y in zip(ours, right, strict=True):
        np.testing.assert_allclose(x, 2 * y, rtol=1e-6)


def test_a_gradient_of_a_gradient_is_the_xla_forms():
    eqn, operands = equation()

    def norm(call: Any) -> Any:
        def f(*real: Any) -> Any:
            return sum(jnp.sum(g**2) for g in jax.grad(loss(call, operands), REAL)(*real))

        return f

    ours = jax.grad(norm(differentiable(own(1.0), eqn, CPU, FORM)), REAL)(*operands[:4])
    right = jax.grad(norm(FORM.build(eqn, CPU)), REAL)(*operands[:4])
    for x, y in zip(ours, right, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_under_vmap_and_with_operands_put_off():
    eqn, (q, k, v, slopes, ids) = equation()
    call = differentiable(OWN, eqn, CPU, FORM)

    def f(stack: Any) -> Any:
        return jnp.sum(call(q, Late(stack, jnp.int32(1), jnp.float32), v, slopes, ids)[0] ** 2)

    stack = jnp.stack([k + 1, k])
    ours = jax.vmap(jax.grad(f))(jnp.stack([stack, 2 * stack]))
    for got, own in zip(ours, (k, 2 * k), strict=True):
        one = jax.grad(lambda k: jnp.sum(call(q, k, v, slopes, ids)[0] ** 2))(own)
        np.testing.assert_allclose(got[1], one, rtol=1e-5, atol=1e-6)
        assert not got[0].any()


@pytest.mark.parametrize("kernel", [OWN, replace(OWN, gradient=None)], ids=["refuses", "has none"])
def test_the_xla_form_stands_in(kernel: Kernel):
    eqn, operands = equation(score=apply("add", apply("tanh", S), Read(0, (Var("h", Kind.INT),), Kind.REAL)))
    ours = jax.grad(loss(differentiable(kernel, eqn, CPU, FORM), operands), REAL)(*operands[:4])
    right = jax.grad(loss(FORM.build(eqn, CPU), operands), REAL)(*operands[:4])
    for x, y in zip(ours, right, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_notes_say_whose_gradients_they_are():
    plain, capped = equation()[0], equation(score=apply("tanh", S))[0]
    assert gradient_note(OWN, plain, CPU) == "its own, of 2 x 2"
    assert gradient_note(OWN, capped, CPU) == "from the xla form: has no tanh"
    assert gradient_note(replace(OWN, gradient=None), plain, CPU) == "from the xla form"
    assert gradient_note(FORM, plain, CPU) is None
