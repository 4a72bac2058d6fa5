"""Choosing: top and its ties, routed copies by both forms, statistics, apportioned heads, tokens cut and joined."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.backends.emit import emit
from tfc.backends.kernel import Target
from tfc.backends.reach import Indexed, indexed
from tfc.backends.reference.functions import DEFINED
from tfc.backends.reference.program import define, evaluate
from tfc.backends.table import KERNELS, named
from tfc.explain import explain
from tfc.formula.expr import Kind, Var
from tfc.ir.functions import FUNCTIONS
from tfc.ir.names import NameEntry, NamesMap, Path
from tfc.ir.ops import ArrayFunction, Calibrated, Concat, Op, Slice, Top
from tfc.ir.program import Eqn, Program, Value
from tfc.ir.text import parse
from tfc.ir.types import DType, TensorType
from tfc.ir.verify import verify
from tfc.params.files import places
from tfc.testing.programs import LENGTHS

CPU = Target(name="cpu", platform="cpu")
FORMS = ["xla", "reference"]
KINDS = {"float32": DType.F32, "int32": DType.I32, "bfloat16": DType.BF16}


def run(op: Op, form: str, *operands: Any) -> jax.Array:
    arrays = [jnp.asarray(x) for x in operands]
    types = [TensorType(x.shape, KINDS[x.dtype.name]) for x in arrays]
    (out,) = op.infer(*types)
    args = tuple(Value(f"a{i}", t) for i, t in enumerate(types))
    kernel = named(type(op), form)
    assert kernel is not None
    (result,) = kernel.build(Eqn((Value("o", out),), op, args), CPU)(*arrays)
    assert (result.shape, result.dtype.name) == (out.shape, {v: k for k, v in KINDS.items()}[out.dtype])
    return result


# --- top


def larger(a: float, b: float) -> bool:
    return (np.isnan(a) and not np.isnan(b)) or a > b


VALUES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 0.5]))


@pytest.mark.parametrize("form", FORMS)
@given(
    rows=st.lists(st.lists(VALUES, min_size=5, max_size=5), min_size=2, max_size=2), count=st.sampled_from([0, 1, 3, 5])
)
def test_top_in_plain_python(form: str, rows: list[list[float]], count: int):
    """An element comes after every larger one and every equal one (0 is -0, NaN is NaN) of a lower index."""
    got = run(Top(count=count), form, np.asarray(rows, np.float32))
    for row, found in zip(rows, got, strict=True):
        place = [
            sum(larger(b, a) or (not larger(a, b) and j < i) for j, b in enumerate(row)) for i, a in enumerate(row)
        ]
        assert list(found) == [place.index(n) for n in range(count)]


@pytest.mark.parametrize("form", FORMS)
def test_top_of_integers(form: str):
    """Down to the smallest, whose negative does not exist."""
    x = np.array([[3, -(2**31), 3, 2**31 - 1, 0]], np.int32)
    np.testing.assert_array_equal(run(Top(count=5), form, x), [[3, 0, 2, 4, 1]])


@pytest.mark.parametrize("form", FORMS)
def test_top_has_no_gradient(form: str):
    slope = jax.grad(lambda x: jnp.sum(x * run(Top(count=3), form, x).astype(jnp.float32)))(
        jnp.asarray([[1.0, 3.0, 2.0]])
    )
    np.testing.assert_array_equal(slope, [[1.0, 2.0, 0.0]])


# --- routes

ROUTED = """
program routed(%x: f32[B, T, 4], %chosen: int[B, T, 2], %weight: f32[B, T, 2], %ids: int[B, T]) {
  %y: f32[B, T, 3] = route(count=3, label=experts) %x, %chosen, %weight, %ids
    program experts(%i: int[], %x: f32[B, T, 4], %ids: int[B, T]) {
      %w: f32[4, 3] = param experts.w normal(0.5)
      %t: f32[7, 3] = param experts.t normal(0.5)
      %b: f32[3] = param experts.b ones frozen
      %h: f32[B, T, 3] = linear %x, %w
      %g: f32[B, T, 3] = tanh %h
      %n: f32[B, T, 3] = add %g, %b
      %m: f32[B, T, 3] = mul %n, %i
      %r: f32[B, T, 3] = take %t, %ids
      %z: f32[B, T, 3] = add %m, %r
      return %z
    }
  return %y
}"""


def routed(chosen: Any = None) -> tuple[Program, dict[str, jax.Array], dict[str, jax.Array]]:
    rng = np.random.default_rng(0)
    shapes = {"experts.w": (3, 4, 3), "experts.t": (3, 7, 3), "experts.b": (3, 3)}
    params = {p: jnp.asarray(rng.standard_normal(s), jnp.float32) for p, s in shapes.items()}
    b, t = 2, 5
    inputs = {
        "x": jnp.asarray(rng.standard_normal((b, t, 4)), jnp.float32),
        "chosen": jnp.asarray(rng.integers(-1, 4, (b, t, 2)) if chosen is None else chosen, jnp.int32),
        "weight": jnp.asarray(rng.uniform(0.1, 1.0, (b, t, 2)), jnp.float32),
        "ids": jnp.asarray(rng.integers(0, 7, (b, t)), jnp.int32),
    }
    return parse(ROUTED), params, inputs


def by_hand(params: Any, inputs: Any) -> Any:
    """Token by token, in float64."""
    p: dict[str, Any] = {path: np.asarray(x, np.float64) for path, x in params.items()}
    x, weight = (np.asarray(inputs[name], np.float64) for name in ("x", "weight"))
    chosen, ids = (np.asarray(inputs[name]) for name in ("chosen", "ids"))
    out = np.zeros((*chosen.shape[:2], 3))
    for b, t, k in np.ndindex(chosen.shape):
        if 0 <= (e := chosen[b, t, k]) < 3:
            copy = (np.tanh(x[b, t] @ p["experts.w"][e]) + p["experts.b"][e]) * e + p["experts.t"][e, ids[b, t]]
            out[b, t] += weight[b, t, k] * copy
    return out


@pytest.mark.parametrize("form", FORMS)
def test_a_route_is_its_chosen_copies(form: str):
    """A token twice through one copy counts twice; a choice outside the copies (here -1 and 3) adds nothing."""
    program, params, inputs = routed()
    verify(program)
    (got,) = emit(program, CPU, form)(params, inputs)
    np.testing.assert_allclose(got, by_hand(params, inputs), rtol=1e-5, atol=1e-5)
    bound = program.bind({"B": 2, "T": 5})
    np.testing.assert_allclose(evaluate(bound, params, inputs, jnp.float32)[0], got, rtol=1e-5, atol=1e-5)
    (none,) = emit(program, CPU, form)(params, inputs | {"chosen": jnp.full((2, 5, 2), 3)})
    assert not np.any(none)


def test_gradients_of_a_route_are_those_of_its_definition():
    program, params, inputs = routed()
    bound, real = program.bind({"B": 2, "T": 5}), ("x", "weight")

    def loss(f: Any) -> Any:
        return jax.grad(lambda p, x: jnp.sum(jnp.sin(f(p, inputs | x)[0])), argnums=(0, 1))(
            params, {n: inputs[n] for n in real}
        )

    ours, true = loss(emit(program, CPU)), loss(lambda p, x: evaluate(bound, p, x, jnp.float32))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), ours, true)
    assert not np.any(ours[0]["experts.b"]) and all(np.any(g) for n, g in ours[0].items() if n != "experts.b")


def test_a_copy_that_is_not_chosen_may_overflow():
    program, params, inputs = routed(np.zeros((2, 5, 2)))
    (got,) = emit(program, CPU)(params | {"experts.t": params["experts.t"].at[1:].set(jnp.inf)}, inputs)
    assert np.all(np.isfinite(got))


def test_tables_within_a_route_are_looked_at():
    program, _, _ = routed()
    assert indexed(program) == (Indexed("ids", "experts.t", 7),)


def test_the_report_counts_every_copy():
    """And says so."""
    program, _, _ = routed()
    report = explain(program, CPU, {"B": 2, "T": 5})
    (line,) = (x for x in report.lines if x.row.op == "route")
    assert line.row.kernel == "loop" and "each of the 3" in line.row.notes["copies"]
    (product,) = (x for x in report.lines if x.row.op == "linear")
    assert (product.row.within, product.row.count) == ((("experts", 3),), 3)
    assert "route" in report.text() and "every token" in report.text()


def test_copies_have_names_of_their_own_in_a_checkpoint():
    """A route within a loop: one name for each turn and each copy."""
    program, _, _ = routed()
    (stored,) = (s for s in program.stored() if s.path == "experts.w")
    inner = replace(stored, path="layer.experts.w", repeats=(("layer", 2), ("experts", 3)))
    theirs = ("h.", Var("layer", Kind.INT), ".e.", Var("experts", Kind.INT), ".w")
    rows = NamesMap("hf", (NameEntry(theirs, Path("layer.experts.w")),)).rows((inner,))
    assert [(r.theirs, r.turns) for r in rows][::4] == [("h.0.e.0.w", (0, 0)), ("h.1.e.1.w", (1, 1))]
    assert len(rows) == 6
    assert list(places([inner]))[4] == "layer.1.experts.1.w"


# --- the others


def test_a_calibrated_statistic_is_itself_until_it_is_frozen():
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    for form in FORMS:
        np.testing.assert_array_equal(run(Calibrated(path="a.calibrated"), form, x), x)


@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_cut_and_joined(form: str):
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    np.testing.assert_array_equal(run(Slice(start=1, size=2, axis=1), form, x), x[:, 1:3])
    np.testing.assert_array_equal(run(Slice(start=1, size=2), form, x), x[..., 1:3])
    np.testing.assert_array_equal(run(Concat(axis=1), form, x, x[:, :1]), np.concatenate([x, x[:, :1]], axis=1))
    np.testing.assert_array_equal(run(Concat(axis=1), form, x[..., 0], x[..., 0]), np.concatenate([x[..., 0]] * 2, 1))


def test_every_registered_function_is_defined_and_has_no_kernel():
    assert FUNCTIONS.keys() == DEFINED.keys() and len(FUNCTIONS) <= 10
    assert [k.name for k in KERNELS[ArrayFunction]] == ["reference"]


def apportion(norms: Any, total: int) -> list[int]:
    op = ArrayFunction(fn="apportion", settings=(("total", total),))
    (shares,) = define(op, jnp.float32, jnp.asarray(norms, jnp.float32))
    return [int(n) for n in shares]


def test_apportioned_heads():
    """Norms less their minimum, as key-driven GQA takes them (arXiv:2408.08454): its worked cases and its ties."""
    assert apportion([0, 1, 2, 3], 12) == [0, 2, 4, 6]
    assert apportion([0, 1, 2, 3], 8) == [0, 1, 3, 4]
    assert apportion([1, 2, 3, 4], 12) == [1, 2, 4, 5]
    assert apportion([0, 0, 0], 6) == apportion([5, 5, 5], 6) == [2, 2, 2]
    assert apportion([5, 5, 5], 8) == [2, 3, 3]  # 3 each is one too many: from the first of the largest
    assert apportion([5, 5, 5], 7) == [3, 2, 2]  # 2 each is one too few: to the first of the smallest
    assert apportion([0], 8) == apportion([3], 8) == [8]
    assert apportion([float("nan"), 1], 4) == apportion([float("inf"), 1], 4) == [2, 2]


@given(norms=st.lists(st.floats(0, 100, width=32), min_size=1, max_size=6), total=st.sampled_from([1, 8, 12, 31]))
def test_every_head_is_given_to_somebody(norms: list[float], total: int):
    shares = apportion(norms, total)
    assert sum(shares) == total and min(shares) >= 0
    assert apportion([8 * n for n in norms], total) == shares  # exact: only the proportion counts


def test_lengths_are_those_of_drawn_programs():
    """What binds the sizes of `top` and `slice` binds them everywhere."""
    source = """
    program p(%x: f32[B, T, 4]) {
      %y: f32[B, T - 1, 4] = slice(start=1, size=T - 1, axis=1) %x
      %i: int[B, T, T] = index(axes=[b: B, t: T, u: T], expr=t * u)
      %n: int[B, T, T - 1] = top(count=T - 1) %i
      return %y, %n
    }"""
    program = parse(source).bind(LENGTHS)
    verify(program)
    x = jnp.ones((LENGTHS["B"], LENGTHS["T"], 4))
    y, n = emit(parse(source), CPU)({}, {"x": x})
    assert (y.shape, n.shape) == ((2, 2, 4), (2, 3, 2))
