"""What a run holds comes back bit for bit, or the complaint says what differs; files appear whole or not at all."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from tfc.diagnostics import TfcError
from tfc.training import State, restore, save

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def state(width: int = 3, dtype: Any = jnp.float32) -> State:
    key = jax.random.key(3)
    params = {"word": {"weight": jax.random.normal(key, (4, width), dtype)}, "scale": jnp.ones(width, jnp.bfloat16)}
    return State(params, OPTIMIZER.init(params), jnp.asarray(12, jnp.int32), key)


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_state_comes_back(tmp_path: Path):
    before = state()
    before.params["word"]["weight"] = before.params["word"]["weight"].at[0].set(jnp.asarray([jnp.nan, -0.0, jnp.inf]))
    save(before, tmp_path / "state.safetensors")
    same(restore(tmp_path / "state.safetensors", state()), before)
    same(restore(tmp_path / "state.safetensors", jax.eval_shape(state)), before)
    assert [f.name for f in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_keep_their_kind(tmp_path: Path, impl: str):
    key = jax.random.split(jax.random.key(5, impl=impl), 3)
    save({"key": key}, tmp_path / "k.safetensors")
    same(restore(tmp_path / "k.safetensors", {"key": key}), {"key": key})
    with pytest.raises(TfcError, match=r"E605\]: `key` is a key of"):
        other = "rbg" if impl == "threefry2x32" else "threefry2x32"
        restore(tmp_path / "k.safetensors", {"key": jax.random.split(jax.random.key(5, impl=other), 3)})


def test_numbers_and_numpy_come_back_as_they_were(tmp_path: Path):
    before = {"step": 7, "rate": 0.1, "done": True, "mask": np.array([[True, False]])}
    before["empty"] = np.zeros((0, 3), np.uint8)
    save(before, tmp_path / "n.safetensors")
    after = restore(tmp_path / "n.safetensors", before)
    assert {n: type(x) for n, x in after.items()} == {n: type(x) for n, x in before.items()}
    assert (after["step"], after["rate"], after["done"]) == (7, 0.1, True)
    np.testing.assert_array_equal(after["mask"], before["mask"])
    assert after["empty"].shape == (0, 3)


DIFFERS = {
    r"E603\]: `params.word.weight` has the shape \[4, 3\] in the file, \[4, 5\] here": lambda: state(5),
    r"E605\]: `params.word.weight` is float32, not float16": lambda: state(dtype=jnp.float16),
    r"E601\]: .* lacks `params.bias`": lambda: state()._replace(params={**state().params, "bias": jnp.ones(3)}),
    r"E602\]: .* has `params.scale`": lambda: state()._replace(params={"word": state().params["word"]}),
    r"E605\]: `key` is a key of .*, not one of": lambda: state()._replace(key=jax.random.key(0, impl="rbg")),
}


@pytest.mark.parametrize("message", DIFFERS)
def test_another_run_is_refused_in_words(tmp_path: Path, message: str):
    save(state(), tmp_path / "state.safetensors")
    with pytest.raises(TfcError, match=message):
        restore(tmp_path / "state.safetensors", DIFFERS[message]())


def test_an_array_is_no_key(tmp_path: Path):
    save({"key": jnp.ones(2, jnp.uint32)}, tmp_path / "a.safetensors")
    with pytest.raises(TfcError, match=r"E605\]: `key` is no key"):
        restore(tmp_path / "a.safetensors", {"key": jax.random.key(0)})


def test_other_files_are_refused(tmp_path: Path):
    with pytest.raises(TfcError, match="E606"):
        save(state(), tmp_path / "state.npz")
    with pytest.raises(TfcError, match=r"E607.*there is no file"):
        restore(tmp_path / "none.safetensors", state())
    with pytest.raises(TfcError, match=r"E607\]: .* cannot be written"):
        save(state(), tmp_path / "no" / "state.safetensors")
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(TfcError, match="is no state of a training run"):
        restore(tmp_path / "other.safetensors", {"x": jnp.ones(3)})
    with pytest.raises(TfcError, match=r"two leaves of the state are called `a\.b`"):
        save({"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)}, tmp_path / "twice.safetensors")
    with pytest.raises(TfcError, match="`name` is str, no array"):
        save({"name": "x"}, tmp_path / "text.safetensors")
    assert [f.name for f in tmp_path.iterdir()] == ["other.safetensors"]


def test_an_interrupted_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "state.safetensors"
    save(state(), file)
    before = file.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(TfcError, match="No space left on device"):
        save(state()._replace(step=jnp.asarray(13, jnp.int32)), file)
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == [file.name]
