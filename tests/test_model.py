"""A model's parameters, files, calls and complaints, on small programs and the real passes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from tfc.backends import table
from tfc.backends.emit import emit
from tfc.backends.kernel import Target
from tfc.backends.table import KERNELS
from tfc.diagnostics import TfcError
from tfc.ir.ops import Attention
from tfc.ir.param_map import Concat, NonZero, ParamMap, Part, Source
from tfc.ir.program import Program
from tfc.ir.text import parse
from tfc.model import Model, Packed
from tfc.passes import pipeline
from tfc.targets import resolve

CPU = Target(name="cpu", platform="cpu")

TEXT = """
program tiny(%tokens: int[B, T], %lengths: int[B] = T) {
  %table: f32[20, 8] = param words.table normal(1.0)
  %place: f32[6, 8] = param places.table normal(1.0)
  %slope: f32[2] = param slope table([0.5, 0.25]) frozen
  %t: int[T] = index(axes=[t: T], expr=t)
  %real: bool[B, T] = index(axes=[b: B, t: T], expr=$0[t] < $1[b]) %t, %lengths
  %a: f32[B, T, 8] = take %table, %tokens
  %p: f32[T, 8] = take %place, %t
  %x: f32[B, T, 8] = add %a, %p
  %y: f32[B, T, 8] = repeat(count=3, label=layer, carries=1) %x, %real, %slope
  program layer(%i: int[], %c: f32[B, T, 8], %r: bool[B, T], %s: f32[2]) {
    %wq: f32[8, 8] = param layer.look.q.weight glorot
    %bq: f32[8] = param layer.look.q.bias zeros
    %wk: f32[8, 8] = param layer.look.k.weight glorot
    %bk: f32[8] = param layer.look.k.bias zeros
    %wv: f32[8, 8] = param layer.look.v.weight glorot
    %bv: f32[8] = param layer.look.v.bias ones
    %q0: f32[B, T, 8] = linear %c, %wq, %bq
    %k0: f32[B, T, 8] = linear %c, %wk, %bk
    %v0: f32[B, T, 8] = linear %c, %wv, %bv
    %q: f32[B, T, 2, 4] = reshape(shape=[B, T, 2, 4]) %q0
    %k: f32[B, T, 2, 4] = reshape(shape=[B, T, 2, 4]) %k0
    %v: f32[B, T, 2, 4] = reshape(shape=[B, T, 2, 4]) %v0
    %z: f32[B, 2, T, T] = scores(scale=0.5) %q, %k
    %zs: f32[B, 2, T, T] = score(formula=s - $0[h] * abs(q - k)) %z, %s
    %zm: f32[B, 2, T, T] = masked(formula=$0.k) %zs, %r
    %w: f32[B, 2, T, T], %l: f32[B, 2, T] = weigh %zm
    %o: f32[B, T, 2, 4] = mix %w, %v
    %j: f32[B, T, 8] = reshape(shape=[B, T, 8]) %o
    %n: f32[B, T, 8] = add %c, %j
    return %n
  }
  return %y
}"""


def built(text: str = TEXT, **options: Any) -> Model:
    program = parse(text)
    return Model(program, lambda held: pipeline.run(program, hold=held), options.pop("target", CPU), **options)


@pytest.fixture(scope="module")
def model() -> Model:
    return built()


@pytest.fixture(scope="module")
def params(model: Model) -> dict[str, Any]:
    return model.init(jax.random.key(0))


TOKENS = np.array([[1, 2, 3, 4], [5, 6, 7, 19]])


def complaints(code: str, call: Any, *args: Any, **named: Any) -> str:
    """The text of the complaints, all of that code."""
    with pytest.raises(TfcError) as caught:
        call(*args, **named)
    assert {d.code for d in caught.value.diagnostics} == {code}
    return str(caught.value)


def test_parameters_start_as_declared(model: Model, params: dict[str, Any]):
    look = params["layer"]["look"]
    assert params["words"]["table"].shape == (20, 8) and look["q"]["weight"].shape == (3, 8, 8)
    assert not np.any(look["q"]["bias"]) and np.all(look["v"]["bias"] == 1)
    assert params["slope"].tolist() == [0.5, 0.25]
    limit = np.sqrt(6 / 16)
    assert limit * 0.9 < np.max(np.abs(look["q"]["weight"])) <= limit
    assert np.any(look["q"]["weight"][0] != look["q"]["weight"][1]) and np.any(
        look["q"]["weight"] != look["k"]["weight"]
    )
    assert 0.8 < np.std(params["words"]["table"]) < 1.2
    jax.tree.map(np.testing.assert_array_equal, params, model.init(jax.random.key(0)))


def test_a_call_is_the_program_before_the_passes(model: Model, params: dict[str, Any]):
    """Fused and merged, packed or not, by position or by name: the same results as the program as lowered."""
    flat = {
        "words.table": params["words"]["table"],
        "places.table": params["places"]["table"],
        "slope": params["slope"],
    }
    flat |= {f"layer.look.{n}.{w}": params["layer"]["look"][n][w] for n in "qkv" for w in ("weight", "bias")}
    inputs = {"tokens": jnp.asarray(TOKENS), "lengths": jnp.array([4, 2])}
    (want,) = emit(model.lowered, CPU)(flat, inputs)
    packed = model.pack(params)
    for got in (
        model(params, TOKENS, np.array([4, 2])),
        model(packed, TOKENS, lengths=[4, 2]),
        jax.jit(model)(params, **inputs),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model(params, TOKENS), model(params, TOKENS, [4, 4]), rtol=1e-6)
    assert {e.op.name for _, body in model.program.bodies() for e in body.eqns} & {"attention"}


def test_gradients_and_maps(model: Model, params: dict[str, Any]):
    def loss(p: dict[str, Any], tokens: Any = TOKENS) -> jax.Array:
        return jnp.sum(jnp.sin(model(p, tokens)))

    grads = jax.grad(loss)(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert np.any(grads["layer"]["look"]["k"]["weight"]) and not np.any(grads["slope"])
    packed = jax.grad(loss)(model.pack(params))
    assert isinstance(packed, Packed)
    np.testing.assert_allclose(packed.arrays["words.table"], grads["words"]["table"], rtol=1e-4, atol=1e-5)
    one = jax.vmap(lambda t: model(params, t[None])[0])(TOKENS)
    np.testing.assert_allclose(one, model(params, TOKENS), rtol=1e-5, atol=1e-5)


def test_packing_is_undone(model: Model, params: dict[str, Any]):
    packed = model.pack(params)
    assert "layer.look.q.weight" not in packed.arrays and not packed.held
    jax.tree.map(np.testing.assert_array_equal, params, model.unpack(packed))
    leaves, structure = jax.tree.flatten(packed)
    assert jax.tree.unflatten(structure, leaves).arrays.keys() == packed.arrays.keys()
    assert repr(packed) == f"Packed({len(packed.arrays)} arrays)"


def test_a_pass_that_values_do_not_allow_is_held_back():
    """A guard on a scale: with a zero in it, `pack` keeps the program without the pass, and calls follow it."""
    program = parse("""
    program p(%x: f32[B, 2]) {
      %a: f32[2] = param a ones
      %b: f32[2] = param b ones
      %y: f32[B, 2] = mul %x, %a
      %z: f32[B, 2] = add %y, %b
      return %z
    }""")
    joined = parse("""
    program p(%x: f32[B, 2]) {
      %c: f32[4] = param ab packed
      %a: f32[2] = slice(start=0, size=2) %c
      %b: f32[2] = slice(start=2, size=2) %c
      %y: f32[B, 2] = mul %x, %a
      %z: f32[B, 2] = add %y, %b
      return %z
    }""")
    a, b, ab = Source("a"), Source("b"), Source("ab")
    join = ParamMap(
        {"ab": Concat((a, b))},
        {"a": Part(ab, 0, 2), "b": Part(ab, 2, 2)},
        frozenset("ab"),
        guards=(NonZero("a", "join:a"),),
    )

    def optimize(held: frozenset[str]) -> pipeline.Result:
        return pipeline.Result((pipeline.Stage("join", program if held else joined),), ParamMap() if held else join)

    model = Model(program, optimize, CPU)
    x = np.ones((1, 2), np.float32)
    fine, zero = ({"a": jnp.array(v), "b": jnp.ones(2)} for v in ([2.0, 3.0], [2.0, 0.0]))
    assert set(model.pack(fine).arrays) == {"ab"} and not model.pack(fine).held
    packed = model.pack(zero)
    assert set(packed.arrays) == {"a", "b"} and packed.held == {"join:a"} and "join:a" in repr(packed)
    assert model(packed, x).tolist() == [[3.0, 1.0]] and model(model.pack(fine), x).tolist() == [[3.0, 4.0]]
    assert model(zero, x).tolist() == [[3.0, 1.0]]  # inside the jit values are unknown, and nothing is held back
    assert jnp.array_equal(model.unpack(packed)["a"], zero["a"])


# --- files


def test_files_keep_every_turn_under_its_name(model: Model, params: dict[str, Any], tmp_path: Path):
    file = tmp_path / "w.safetensors"
    model.save(params, file)
    with safe_open(file, "numpy") as f:
        assert "layer.2.look.q.weight" in f.keys() and "words.table" in f.keys()
        np.testing.assert_array_equal(f.get_tensor("layer.2.look.q.weight"), params["layer"]["look"]["q"]["weight"][2])
    jax.tree.map(np.testing.assert_array_equal, params, model.load(file))
    model.save(model.pack(params), file)
    jax.tree.map(np.testing.assert_array_equal, params, model.load(file))
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def stored(model: Model, params: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    model.save(params, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "numpy") as f:
        return {name: f.get_tensor(name) for name in f.keys()}


def test_files_that_do_not_fit_are_told_apart(model: Model, params: dict[str, Any], tmp_path: Path):
    arrays = stored(model, params, tmp_path)
    file = tmp_path / "x.safetensors"
    save_file({("layer.1.look.q.wieght" if n == "layer.1.look.q.weight" else n): x for n, x in arrays.items()}, file)
    with pytest.raises(TfcError) as caught:
        model.load(file)
    first, second = caught.value.diagnostics
    assert (first.code, second.code) == ("E601", "E602")
    assert "lacks the parameter `layer.1.look.q.weight`" in first.message and "layer.1.look.q.wieght" in first.help
    assert second.help == "did you mean `layer.1.look.q.weight`?"
    save_file({**arrays, "words.table": np.zeros((19, 8), np.float32)}, file)
    text = complaints("E603", model.load, file)
    assert "`words.table` has the shape [19, 8] in the file, [20, 8] in the model" in text
    save_file({**arrays, "words.table": arrays["words.table"].astype(np.float64)}, file)
    assert "`words.table` is float64, not float32" in complaints("E605", model.load, file)
    save_file({n: x for n, x in arrays.items() if not n.startswith("layer")}, file)
    with pytest.raises(TfcError) as caught:
        model.load(file)
    assert len(caught.value.diagnostics) == 11 and "and 8 more" in caught.value.diagnostics[-1].message


def test_narrower_types_are_taken_where_nothing_is_lost(model: Model, params: dict[str, Any], tmp_path: Path):
    arrays = stored(model, params, tmp_path)
    save_file({n: x.astype(ml_dtypes.bfloat16) for n, x in arrays.items()}, tmp_path / "b.safetensors")
    table = model.load(tmp_path / "b.safetensors")["words"]["table"]
    assert table.dtype == jnp.float32
    np.testing.assert_array_equal(table, arrays["words.table"].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_pickles_and_damaged_files_are_refused_in_words(model: Model, params: dict[str, Any], tmp_path: Path):
    for name in ("pytorch_model.bin", "w.pt"):
        assert "can run code" in complaints("E606", model.load, tmp_path / name)
    hidden = tmp_path / "hidden.safetensors"
    hidden.write_bytes(b"\x80\x04." + bytes(100))
    assert "is a pickle under another name" in complaints("E606", model.load, hidden)
    hidden.write_bytes(b"\x10")
    assert "cannot be read" in complaints("E607", model.load, hidden)
    assert "there is no file" in complaints("E607", model.load, tmp_path / "none.safetensors")
    complaints("E606", model.save, params, tmp_path / "w.bin")
    assert "cannot be written" in complaints("E607", model.save, params, tmp_path / "nowhere" / "w.safetensors")


# --- complaints about calls


def test_parameters_that_do_not_fit_are_named(model: Model, params: dict[str, Any]):
    assert "`slope`, f32[2], is missing" in complaints(
        "E601", model, {k: v for k, v in params.items() if k != "slope"}, TOKENS
    )
    assert "no parameter `slpe`" in complaints("E602", model, {**params, "slpe": params["slope"]}, TOKENS)
    wide = {**params, "words": {"table": np.zeros((8, 20), np.float32)}}
    assert "[8, 20], not [20, 8]" in complaints("E603", model, wide, TOKENS)
    low = {**params, "slope": params["slope"].astype(jnp.bfloat16)}
    assert "`slope` is bfloat16, not float32" in complaints("E605", model.pack, low)
    assert len(complaints("E601", model, {}, TOKENS).split("\n\n")) <= 11


def test_ids_outside_their_table_are_named_with_their_place(model: Model, params: dict[str, Any]):
    bad = TOKENS.copy()
    bad[1, 2] = 20
    text = complaints("E704", model, params, bad)
    assert "`tokens[1, 2]` is 20, outside 0..19" in text and "words.table" in text
    bad[0, 0] = -1
    assert "`tokens[0, 0]` is -1, outside 0..19 (and 1 more)" in complaints("E704", model, params, bad)
    # under a trace values cannot be looked at: NaN comes out, no other row
    assert np.any(np.isnan(jax.jit(model)(params, bad)))


def test_lengths_out_of_range_are_named(model: Model, params: dict[str, Any]):
    assert "`lengths[1]` is 5, outside 1..4" in complaints("E705", model, params, TOKENS, [4, 5])
    assert "`lengths[0]` is 0" in complaints("E705", model, params, TOKENS, lengths=[0, 4])


def test_empty_and_ill_shaped_calls(model: Model, params: dict[str, Any]):
    assert "B = 0" in complaints("E706", model, params, TOKENS[:0])
    assert "T = 0" in complaints("E706", model, params, TOKENS[:, :0])
    assert "x[None]" in complaints("E702", model, params, TOKENS[0])
    assert "`lengths` is int[3]" in complaints("E702", model, params, TOKENS, [1, 2, 3])
    assert "`tokens` is f32[2, 4]" in complaints("E703", model, params, TOKENS.astype(np.float32))
    assert "lists" not in complaints("E703", model, params, [[1, 2], [3]])
    assert "not an array of numbers" in complaints("E703", model, params, "words")
    assert "row 6 of `places.table`" in complaints("E707", model, params, np.ones((1, 7), np.int32))


def test_arguments_by_name_and_number(model: Model, params: dict[str, Any]):
    assert "given 3 arguments" in complaints("E701", model, params, TOKENS, [4, 4], 1)
    assert "`tokens` twice" in complaints("E701", model, params, TOKENS, tokens=TOKENS)
    assert "did you mean `lengths`" in complaints("E701", model, params, TOKENS, length=[4, 4])
    assert "lacks its argument `tokens`" in complaints("E701", model, params)


def test_a_target_that_is_elsewhere_is_not_called(params: dict[str, Any]):
    if jax.default_backend() != "gpu":
        away = built(target=resolve("h200"))
        assert "compiled for h200" in complaints("E815", away, params, TOKENS)


def test_interpretation_is_refused_where_it_would_hang(params: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NPROC", "2")
    assert "NPROC=16" in complaints("E817", built(target=resolve("h200", interpret=True)), params, TOKENS)


FORWARD: dict[str, Callable[[Callable[[Any], Any], Any], Any]] = {
    "jvp": lambda f, p: jax.jvp(f, (p,), (p,))[1],
    "jvp of a jit": lambda f, p: jax.jvp(jax.jit(f), (p,), (p,))[1],
    "jit of a jvp": lambda f, p: jax.jit(lambda p: jax.jvp(f, (p,), (p,)))(p)[1],
    "linearize": lambda f, p: jax.linearize(f, p)[1](p),
    "jacfwd": lambda f, p: jax.jacfwd(lambda t: f(jax.tree.map(lambda x: t * x, p)))(1.0),
    "jacfwd of a jit": lambda f, p: jax.jacfwd(jax.jit(lambda t: f(jax.tree.map(lambda x: t * x, p))))(1.0),
    "hessian": lambda f, p: jax.hessian(lambda t: f(jax.tree.map(lambda x: t * x, p)))(1.0),
    "of a checkpoint": lambda f, p: jax.jvp(jax.checkpoint(f), (p,), (p,))[1],
    "of a scan": lambda f, p: jax.jvp(lambda p: jax.lax.map(lambda _: f(p), jnp.arange(2)), (p,), (p,))[1],
}


@pytest.mark.parametrize("way", FORWARD)
def test_forward_mode_through_such_kernels_is_refused_in_words(
    way: str, model: Model, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """However the caller asks for it, also where no call of ours is under way; and without them it works."""
    assert np.any(FORWARD[way](lambda p: jnp.sum(model(p, TOKENS) ** 2), params))
    (form,) = (k for k in KERNELS[Attention] if k.name == "xla")
    row = (replace(form, differentiable=False), form)
    monkeypatch.setattr(table, "KERNELS", {**KERNELS, Attention: row})
    other = built()
    text = complaints("E818", FORWARD[way], lambda p: jnp.sum(other(p, TOKENS) ** 2), params)
    assert "this attention" in text and "runs on xla" in text and "jax.grad" in text and "implementation='xla'" in text


def test_a_model_of_whole_sequences_is_not_decoded(model: Model):
    assert "its input `lengths` says how many" in complaints("E816", model.init_cache, 2, 8)


def test_explain_counts_every_turn(model: Model):
    lines = [line for line in model.explain(B=2, T=4).lines if line.row.op == "attention"]
    assert [(line.row.kernel, line.row.count) for line in lines] == [("xla", 3)]
    assert "tiny" in repr(model) and "cpu" in repr(model)


def test_the_program_is_a_program(model: Model):
    assert isinstance(model.program, Program) and model.program != model.lowered


TOLD = """
program told(%x: f32[B, T, 4]) {
  %a: f32[B, T, 4], %sizes: f32[2, B, T, 1] = repeat(count=2, label=layer, carries=1) %x
    program layer(%i: int[], %x: f32[B, T, 4]) {
      %w: f32[4, 4] = param layer.weight normal(0.5)
      %y: f32[B, T, 4] = linear %x, %w
      %m: f32[B, T, 1] = reduction(fn=sum) %y
      report layer.size = %m
      return %y
    }
  %s: f32[B, T, 3] = slice(start=0, size=3) %a
  %chosen: int[B, T, 2] = top(count=2) %s
  %v: f32[B, T, 2] = slice(start=0, size=2) %s
  %y: f32[B, T, 4] = route(count=3, label=experts) %a, %chosen, %v
    program experts(%i: int[], %x: f32[B, T, 4]) {
      %up: f32[4, 4] = param experts.up.weight normal(0.5)
      %gate: f32[4, 4] = param experts.gate.weight normal(0.5)
      %u: f32[B, T, 4] = linear %x, %up
      %g: f32[B, T, 4] = linear %x, %gate
      %y: f32[B, T, 4] = mul %u, %g
      return %y
    }
  %z: f32[B, T, 1] = reduction(fn=mean) %y
  report chosen = %chosen
  report layer.size = %sizes
  return RESULTS
}"""


@pytest.fixture(scope="module")
def told() -> tuple[Model, dict[str, Any], jax.Array]:
    model = built(TOLD.replace("RESULTS", "%y"))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
    return model, model.init(jax.random.key(1)), x


def test_reports_have_their_paths_and_a_call_gives_results_only(told: tuple[Model, dict[str, Any], jax.Array]):
    """Packed or not; in a loop one row a turn."""
    model, params, x = told
    y = model(params, x)
    assert y.shape == (2, 3, 4)
    for given in (params, model.pack(params)):
        found = model.reports(given, x)
        assert sorted(found) == ["chosen", "layer.size"]
        assert (found["chosen"].shape, found["layer.size"].shape) == ((2, 3, 2), (2, 2, 3, 1))
        first = jnp.sum(x @ params["layer"]["weight"][0], axis=-1, keepdims=True)
        np.testing.assert_allclose(found["layer.size"][0], first, rtol=1e-5, atol=1e-5)
    assert model.reports(params, x=x).keys() == found.keys()
    less = built(TOLD.replace("RESULTS", "%y").replace("  report chosen = %chosen\n", ""))
    assert less.reports(params, x).keys() == {"layer.size"}


def test_reports_are_differentiable_and_complain_like_a_call(told: tuple[Model, dict[str, Any], jax.Array]):
    model, params, x = told
    slope = jax.grad(lambda p: jnp.sum(model.reports(p, x)["layer.size"]))(params)
    assert np.any(slope["layer"]["weight"]) and not np.any(slope["experts"]["up"]["weight"])
    assert "takes x" in complaints("E701", model.reports, params)


def test_a_model_may_have_several_results(told: tuple[Model, dict[str, Any], jax.Array]):
    _, params, x = told
    y, z = built(TOLD.replace("RESULTS", "%y, %z"))(params, x)
    assert (y.shape, z.shape) == ((2, 3, 4), (2, 3, 1))
    np.testing.assert_allclose(jnp.mean(y, axis=-1, keepdims=True), z, rtol=1e-5, atol=1e-6)


def test_copies_of_a_route_are_parameters_like_others(told: tuple[Model, dict[str, Any], jax.Array], tmp_path: Path):
    """Merged by the passes and taken apart again, saved one name a copy; alike in every form."""
    model, params, x = told
    assert params["experts"]["up"]["weight"].shape == (3, 4, 4)
    packed = model.pack(params)
    assert "experts.up_gate.weight" in packed.arrays
    np.testing.assert_allclose(model(packed, x), model(params, x), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, model.unpack(packed), params)
    model.save(packed, tmp_path / "told.safetensors")
    with safe_open(tmp_path / "told.safetensors", "np") as f:
        assert {f"experts.{n}.up.weight" for n in range(3)} <= set(f.keys())
    jax.tree.map(np.testing.assert_array_equal, model.load(tmp_path / "told.safetensors"), params)
    slow = built(TOLD.replace("RESULTS", "%y"), implementation="reference")
    np.testing.assert_allclose(slow(params, x), model(params, x), rtol=1e-5, atol=1e-6)
