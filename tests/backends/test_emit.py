"""Programs as functions: loops, lengths, defaults, kernels chosen in bodies, derivatives of kernels that have none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends import emit as emitting
from tfc.backends.binding import bind_call
from tfc.backends.emit import emit
from tfc.backends.kernel import Kernel, Target
from tfc.backends.reach import Indexed, indexed
from tfc.backends.reference.program import evaluate
from tfc.backends.table import Choice, choose, named
from tfc.diagnostics import TfcError
from tfc.ir.ops import Attention, Linear
from tfc.ir.program import Eqn, Program
from tfc.ir.text import parse
from tfc.targets import resolve

CPU = Target(name="cpu", platform="cpu")

DEEP = """
program deep(%x: f32[B, T, 8], %lengths: int[B] = T) {
  %scale: f32[8] = param scale ones
  %t: int[T] = index(axes=[t: T], expr=t)
  %real: bool[B, T] = index(axes=[b: B, t: T], expr=$0[t] < $1[b]) %t, %lengths
  %a: f32[B, T, 8] = mul %x, %scale
  %y: f32[B, T, 8] = repeat(count=3, label=layer, carries=1) %a, %real
  program layer(%i: int[], %c: f32[B, T, 8], %r: bool[B, T]) {
    %w: f32[8, 8] = param layer.w normal(0.3)
    %u: f32[8] = param layer.u ones frozen
    %p: f32[B, T, 8] = linear %c, %w
    %h: f32[B, T, 2, 4] = reshape(shape=[B, T, 2, 4]) %p
    %o: f32[B, T, 2, 4], %l: f32[B, 2, T] = attention(scale=0.5, mask=k <= q and $0.k) %h, %h, %h, %r
    %j: f32[B, T, 8] = reshape(shape=[B, T, 8]) %o
    %s: f32[B, T, 8] = mul %j, %u
    %n: f32[B, T, 8] = add %s, %c
    %m: f32[B, T, 8] = add %n, %i
    return %m
  }
  return %y
}"""


@pytest.fixture(scope="module")
def deep() -> Program:
    return parse(DEEP)


def arrays(seed: int = 0) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    rng = np.random.default_rng(seed)
    params = {"scale": np.ones(8), "layer.w": 0.3 * rng.standard_normal((3, 8, 8)), "layer.u": np.ones((3, 8))}
    return (
        {path: jnp.asarray(x, jnp.float32) for path, x in params.items()},
        {"x": jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32), "lengths": jnp.array([5, 3], jnp.int32)},
    )


@pytest.mark.parametrize("implementation", [None, "reference"])
def test_a_repeat_is_its_turns(deep: Program, implementation: str | None):
    """The scan against the definition's unrolled turns, values and gradients; frozen parameters have none."""
    params, inputs = arrays()
    bound = bind_call(deep, inputs).program

    def loss(f: Any) -> Any:
        return lambda params: jnp.sum(jnp.sin(f(params)[0]))

    emitted = emit(deep, CPU, implementation)
    ours = jax.jit(jax.value_and_grad(loss(lambda p: emitted(p, inputs))))(params)
    theirs = jax.jit(jax.value_and_grad(loss(lambda p: evaluate(bound, p, inputs, jnp.float32))))(params)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), ours, theirs)
    assert np.any(ours[1]["layer.w"]) and not np.any(ours[1]["layer.u"])


def test_the_loop_does_not_grow_with_depth(deep: Program):
    params, inputs = arrays()
    text = str(jax.make_jaxpr(lambda p: emit(deep, CPU)(p, inputs))(params))
    assert text.count("scan[") == 1 and text.count("dot_general") == 3


def test_a_length_by_default_is_the_whole(deep: Program):
    params, inputs = arrays()
    full = emit(deep, CPU)(params, {**inputs, "lengths": jnp.array([5, 5])})
    np.testing.assert_array_equal(emit(deep, CPU)(params, {"x": inputs["x"]})[0], full[0])
    assert np.any(full[0] != emit(deep, CPU)(params, inputs)[0])


def test_the_plan_says_which_kernel_and_why(deep: Program):
    rows = emit(deep, CPU).plan({"B": 2, "T": 5})
    assert [r.site for r in rows][:4] == ["%t", "%real", "%a", "layer/%p"]
    (row,) = (r for r in rows if isinstance(r.eqn.op, Attention))
    assert (row.kernel, row.count, row.within) == ("xla", 3, (("layer", 3),))
    assert [name for name, _ in row.refusals] == ["pallas_gpu", "cudnn"]
    with pytest.raises(TfcError, match="a number for T"):
        emit(deep, CPU).plan({"B": 2})


def faults(program: Program, **inputs: Any) -> list[tuple[str, str]]:
    with pytest.raises(TfcError) as caught:
        bind_call(program, {name: jnp.asarray(x) for name, x in inputs.items()})
    return [(d.code, f"{d.message} / {d.help}") for d in caught.value.diagnostics]


def test_arguments_that_do_not_fit_are_named_with_both_shapes(deep: Program):
    x = np.zeros((2, 5, 8), np.float32)
    ((code, text),) = faults(deep, x=x, lengths=np.zeros(3, np.int32))
    assert code == "E702" and "`lengths` is int[3], deep declares int[B]: B = 2 in `x` f32[2, 5, 8]" in text
    ((code, text),) = faults(deep, x=x[..., :7])
    assert code == "E702" and "`x` is f32[2, 5, 7], deep declares f32[B, T, 8]" in text
    ((code, text),) = faults(deep, x=x[0])
    assert code == "E702" and "x[None]" in text
    ((code, text),) = faults(deep, x=x.astype(np.float16))
    assert code == "E703" and "`x` is f16[2, 5, 8]" in text and "astype('float32')" in text
    found = faults(deep, y=x)
    assert [c for c, _ in found] == ["E701", "E701"]
    assert "no argument `y`" in found[0][1] and "lacks its argument `x`" in found[1][1]


def test_a_forced_kernel_must_have_something_to_do(deep: Program):
    with pytest.raises(TfcError, match="E811"):
        emit(deep, CPU, "cuda")
    with pytest.raises(TfcError, match=r"E812.*needs a GPU"):
        emit(deep, CPU, "pallas_gpu")(*arrays())
    plain = parse("program p(%x: f32[B]) {\n  %y: f32[B] = tanh %x\n  return %y\n}")
    with pytest.raises(TfcError, match=r"E813.*nothing in p can use .*\n.*it serves attention"):
        emit(plain, CPU, "pallas_gpu")


def test_float64_asks_for_x64():
    program = parse("program p(%x: f64[B]) {\n  %y: f64[B] = tanh %x\n  return %y\n}")
    with pytest.raises(TfcError, match=r"E814.*\n.*jax_enable_x64"):
        emit(program, CPU)


# --- a kernel without derivatives: here, the definition's forward pass with every derivative cut


def opaque(eqn: Eqn, target: Target) -> Any:
    form = named(Attention, "reference")
    assert form is not None
    call = form.build(eqn, target)
    return lambda *x: tuple(jax.lax.stop_gradient(y) for y in call(*x))


OPAQUE = Kernel(name="opaque", op=Attention, refuse=lambda e, t: None, build=opaque, differentiable=False)


@pytest.fixture
def without_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    def pick(eqn: Eqn, target: Target, implementation: str | None = None) -> Choice:
        return Choice(OPAQUE) if isinstance(eqn.op, Attention) else choose(eqn, target, implementation)

    monkeypatch.setattr(emitting, "choose", pick)


@pytest.mark.usefixtures("without_derivatives")
def test_a_kernel_without_derivatives_takes_those_of_the_xla_form(deep: Program):
    params, inputs = arrays()
    bound = bind_call(deep, inputs).program
    emitted = emit(deep, CPU)
    (row,) = (r for r in emitted.plan({"B": 2, "T": 5}) if isinstance(r.eqn.op, Attention))
    assert row.kernel == "opaque" and row.notes["gradients"] == "from the xla form"
    ours = jax.jit(jax.grad(lambda p: jnp.sum(emitted(p, inputs)[0] ** 2)))(params)
    theirs = jax.jit(jax.grad(lambda p: jnp.sum(evaluate(bound, p, inputs, jnp.float32)[0] ** 2)))(params)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.usefixtures("without_derivatives")
def test_such_a_kernel_is_mapped_and_refuses_forward_mode_in_words(deep: Program):
    params, inputs = arrays()
    emitted = emit(deep, CPU)
    x = jnp.stack([inputs["x"], -inputs["x"]])
    mapped = jax.jit(jax.vmap(lambda x: emitted(params, {**inputs, "x": x})[0]))(x)
    for got, one in zip(mapped, x, strict=True):
        np.testing.assert_allclose(got, emitted(params, {**inputs, "x": one})[0], rtol=1e-5, atol=1e-5)
    grads = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(emitted(params, {**inputs, "x": x})[0]))))(x)
    assert np.all(np.isfinite(grads)) and np.any(grads)
    with pytest.raises(TfcError, match=r"E818.*runs on opaque.*no forward-mode derivative.*\n.*jax.grad"):
        jax.jvp(lambda x: emitted(params, {"x": x}), (inputs["x"],), (inputs["x"],))


# --- tables and what indexes them


TABLES = """
program words(%ids: int[B, T], %other: int[B, T]) {
  %table: f32[10, 4] = param words.table normal(1.0)
  %place: f32[6, 4] = param places.table normal(1.0)
  %t: int[T] = index(axes=[t: T], expr=t)
  %two: int[T] = add %t, %t
  %flat: int[B * T] = reshape(shape=[B * T]) %ids
  %a: f32[B * T, 4] = take %table, %flat
  %b: f32[T, 4] = take %place, %two
  %c: f32[B, T] = index(axes=[b: B, t: T], expr=$0[$1[b, t], 0]) %place, %other
  return %a, %b, %c
}"""


def test_rows_that_a_table_lacks_for_these_lengths_are_an_error():
    program = parse(TABLES)
    params = {"words.table": jnp.ones((10, 4)), "places.table": jnp.ones((6, 4))}
    ids = jnp.zeros((1, 3), jnp.int32)
    emit(program, CPU)(params, {"ids": ids, "other": ids})
    longer = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(TfcError, match=r"E707.*row 6 of `places.table` is read, which has rows 0..5"):
        emit(program, CPU)(params, {"ids": longer, "other": longer})


def test_which_inputs_index_which_tables_is_known():
    assert indexed(parse(TABLES)) == (Indexed("ids", "words.table", 10), Indexed("other", "places.table", 6))


def test_a_position_table_read_by_its_index_is_checked_too():
    program = parse("""
    program p(%x: f32[T, 2]) {
      %place: f32[4, 2] = param place ones
      %y: f32[T, 2] = index(axes=[t: T, c: 2], expr=$0[t, c] + $1[t, c]) %x, %place
      return %y
    }""")
    emit(program, CPU)({"place": jnp.ones((4, 2))}, {"x": jnp.ones((3, 2))})
    with pytest.raises(TfcError, match=r"E707.*row 4 of `place`"):
        emit(program, CPU)({"place": jnp.ones((4, 2))}, {"x": jnp.ones((5, 2))})


def test_kernels_are_chosen_inside_bodies_for_the_target():
    """The same program in bf16 with two heads of 32: the Hopper kernel serves each of the three turns."""
    wide = DEEP.replace("8", "64").replace("2, 4]", "2, 32]").replace("f32", "bf16").replace("%l: bf16", "%l: f32")
    rows = emit(parse(wide), resolve("h200")).plan({"B": 2, "T": 5})
    (row,) = (r for r in rows if isinstance(r.eqn.op, Attention))
    assert (row.kernel, row.count) == ("pallas_gpu", 3)
    assert {r.kernel for r in rows if isinstance(r.eqn.op, Linear)} == {"xla"}
