"""A trained model's parameters under another spec: copied, fitted, refused; the command."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc import cli
from tfc.conversion import convert

SPEC = """tfm 1

let width = 8

DEFAULT

attention look { heads = 2 }

model m(tokens: int[B, T]) {
  embed words = embed { vocab = 9   width = width }
  x = words(tokens)
  repeat 2 as layer {
    x = x + look(rms@before(x))
    x = x + ffn@feed(x, 16)
  }
  return rms@last(x)
}
"""
TOKENS = np.random.default_rng(0).integers(0, 9, (6, 5))


def spec(weights: str = "") -> str:
    return SPEC.replace("DEFAULT", f"default linear {{ weights = {weights} }}" if weights else "")


@pytest.fixture(scope="module")
def dense():
    model = tfc.compile(spec(), "cpu")
    # matrices that do something; norms' scales stay ones, so results are about 1
    return model, jax.tree.map(lambda x: x if jnp.all(x == 1) else x * 10, model.init(jax.random.key(0)))


def distance(dense, other, made):
    model, params = dense
    return float(jnp.max(jnp.abs(other(made, TOKENS) - model(params, TOKENS))))


@pytest.mark.parametrize("fit", ["svd", "activation_svd"])
def test_full_rank_is_the_same_model(dense, fit):
    other = tfc.compile(spec("low_rank(8)"), "cpu")
    made = convert(dense[0], dense[1], other, fit=fit, batches=[[TOKENS]], progress=False)
    assert distance(dense, other, made) < 1e-4
    np.testing.assert_array_equal(made["words"]["weight"], dense[1]["words"]["weight"])


def test_data_makes_a_low_rank_better(dense):
    """On the texts that it was fitted to; the format's own fit wins over the argument."""
    plain = tfc.compile(spec("low_rank(4)"), "cpu")
    near = convert(dense[0], dense[1], plain, progress=False)
    data = convert(dense[0], dense[1], plain, fit="activation_svd", batches=[[TOKENS]], progress=False)
    assert distance(dense, plain, data) < distance(dense, plain, near)
    named = tfc.compile(spec("low_rank(4, fit = activation_svd)"), "cpu")
    own = convert(dense[0], dense[1], named, batches=[[TOKENS]], progress=False)
    jax.tree.map(np.testing.assert_array_equal, own, data)
    with pytest.raises(tfc.TfcError, match="there is none"):
        convert(dense[0], dense[1], named, progress=False)


def test_lora_starts_where_the_trained_model_is(dense):
    other = tfc.compile(spec("lora(2)"), "cpu")
    made = convert(dense[0], dense[1], other, progress=False)
    assert distance(dense, other, made) < 1e-4 and np.any(made["layer"]["look"]["q"]["weight"]["left"])


def test_the_same_spec_is_a_copy(dense):
    model, params = dense
    jax.tree.map(np.testing.assert_array_equal, convert(model, params, model, progress=False), params)
    packed = convert(model, model.pack(params), model, progress=False)  # norms' scales are multiplied in and out
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), packed, params)


def complaints(dense, text):
    with pytest.raises(tfc.TfcError) as caught:
        convert(dense[0], dense[1], tfc.compile(text, "cpu"), progress=False)
    assert {d.code for d in caught.value.diagnostics} == {"E632"}
    return "\n".join(f"{d.message}; {d.help}" for d in caught.value.diagnostics)


def test_what_has_no_place_is_named_with_both_sides(dense):
    said = complaints(dense, spec().replace("rms@last(x)", "rms@final(x)"))
    assert "`final.scale`" in said and "`last.scale`" in said
    said = complaints(dense, spec().replace("return rms@last(x)", "return x"))
    assert "`last.scale` of m has no place in m; a conversion drops nothing" in said
    said = complaints(dense, spec().replace("feed(x, 16)", "feed(x, 12)"))
    assert "f32[2, 8, 16]" in said and "f32[2, 8, 12]" in said
    said = complaints(dense, spec("low_rank(2)").replace("feed(x, 16)", "feed(x, 12)"))
    assert "as a thin product" in said


def test_no_such_fit(dense):
    with pytest.raises(ValueError, match="thin product"):
        convert(dense[0], dense[1], dense[0], fit="gptq")


def test_the_command(dense, tmp_path: Path, capsys):
    model, params = dense
    (tmp_path / "a.tfm").write_text(spec())
    (tmp_path / "b.tfm").write_text(spec("low_rank(rank)").replace("let width = 8", "let width = 8, rank = 2"))
    model.save(params, tmp_path / "a.safetensors")
    np.save(tmp_path / "texts.npy", TOKENS)
    words = ["convert", str(tmp_path / "a.tfm"), "--to", str(tmp_path / "b.tfm"), "--to-set", "rank=3", "--weights",
             str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "b.safetensors")]  # fmt: skip
    assert cli.main([*words, "--fit", "activation_svd"]) == 1
    assert "E631" in capsys.readouterr().err
    assert cli.main([*words, "--fit", "activation_svd", "--calibrate", str(tmp_path / "texts.npy")]) == 0
    said = capsys.readouterr().out
    assert "wrote" in said and "3 of 15 arrays as they were" in said
    other = tfc.compile(tmp_path / "b.tfm", "cpu", rank=3)
    made = other.load(tmp_path / "b.safetensors")
    want = convert(model, params, other, fit="activation_svd", batches=[[TOKENS]], progress=False)
    assert distance(dense, other, made) == pytest.approx(distance(dense, other, want), rel=1e-3)
    (tmp_path / "lines.txt").write_text("a text\n")
    assert cli.main([*words, "--calibrate", str(tmp_path / "lines.txt")]) == 1
    assert "tokenizer.json" in capsys.readouterr().err
    assert cli.main([*words, "--calibrate", str(tmp_path / "none.txt")]) == 1
    assert "E724" in capsys.readouterr().err
