"""Whole models with a checkpoint of Hugging Face transformers against its outputs, read from files.

`tests/peers/write_models.py` writes the files, in an environment that has torch; TFC_PEERS is their folder.
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import tfc
from tfc.front import front
from tfc.testing.tolerance import compare

pytestmark = pytest.mark.peers

TESTS = Path(__file__).parent
SPECS = TESTS.parent / "examples" / "models"
NAMES = sorted(p.stem for p in (TESTS / "peers" / "models").glob("*.py") if p.stem != "__init__")
ROUNDOFF = 2.0**-8
"""bfloat16's."""
TOLERANCE = 1e-4
"""Of float32 results of size one."""


def folder(name: str) -> Path:
    """Where one model's files are, or the test is skipped in words."""
    found = Path(os.environ["TFC_PEERS"]) / name
    if not (found / "about.json").is_file():
        pytest.skip(f"{found} is missing: tests/peers/write_models.py writes it")
    return found


@cache
def written(name: str) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    """What transformers was given, all it answered, and what is known of it."""
    arrays = load_file(folder(name) / "reference.safetensors")
    given = {key[3:]: x for key, x in arrays.items() if key.startswith("in.")}
    return given, arrays, json.loads((folder(name) / "about.json").read_text(encoding="utf-8"))


def answers(arrays: Mapping[str, Any], kind: str) -> list[Any]:
    """The results in their order."""
    return [arrays[key] for key in sorted(arrays) if key.split(".")[0] == kind]


def compiled(name: str, **more: Any) -> Any:
    """The model, small."""
    about = written(name)[2]
    return tfc.compile(SPECS / f"{about['spec']}.tfm", target="cpu", **about["settings"], **more)


@cache
def built(name: str, compute: str = "f32") -> tuple[Any, Any]:
    """The model, small, and the checkpoint's parameters."""
    model = compiled(name, compute=compute)
    return model, model.pack(model.load(folder(name)))


def results(found: Any, given: Mapping[str, Any]) -> list[Any]:
    """As a list of float32; zeros behind each row's length, where rows have one."""
    out = [np.asarray(x, np.float32) for x in (found if isinstance(found, tuple) else (found,))]
    if "lengths" not in given:
        return out
    return [x * (np.arange(x.shape[1]) < given["lengths"][:, None])[..., None] if x.ndim == 3 else x for x in out]


def close(got: Any, want: Any) -> None:
    assert np.std(want) > 0.3
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("name", NAMES)
def test_float32_results_are_those_of_transformers(name: str):
    model, params = built(name)
    given, arrays, _ = written(name)
    wanted = answers(arrays, "f32")
    found = results(model(params, **given), given)
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        close(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_results_are_as_near_to_float32_as_those_of_transformers(name: str):
    """By the oracle's rule, with transformers' own bfloat16 as the plain computation."""
    model, params = built(name, "bf16")
    given, arrays, _ = written(name)
    found = results(model(params, **given), given)
    for got, want, plain in zip(found, answers(arrays, "f32"), answers(arrays, "bf16"), strict=True):
        definition = want.astype(np.float64)
        unit = np.full_like(definition, ROUNDOFF * np.sqrt(np.mean(definition**2)))
        measured = compare(name, got, definition, plain, unit)
        assert measured.ok, measured.reason


def decoders() -> list[str]:
    return [name for name in NAMES if "\nPROMPT = 0" not in (TESTS / "peers" / "models" / f"{name}.py").read_text()]


@pytest.mark.parametrize("name", decoders())
def test_decoding_piece_by_piece_is_the_whole_pass(name: str):
    model, params = built(name)
    given, arrays, _ = written(name)
    others = {key: x for key, x in given.items() if key != "tokens"}
    tokens = given["tokens"]
    cuts = [0, 5, 6, 7, tokens.shape[1] // 2, tokens.shape[1]]
    cache = model.init_cache(len(tokens), tokens.shape[1])
    pieces = []
    for i, j in pairwise(cuts):
        piece, cache = model.decode(params, cache, tokens=tokens[:, i:j], **others)
        pieces.append(np.asarray(piece, np.float32))
    close(np.concatenate(pieces, axis=1), arrays["f32"])


@pytest.mark.parametrize("name", decoders())
def test_generated_tokens_are_those_of_transformers(name: str):
    """64 greedy tokens, each row up to where two tokens are so near to each other that rounding decides."""
    model, params = built(name)
    given, arrays, _ = written(name)
    others = {key: x for key, x in given.items() if key != "tokens"}
    want, margin = arrays["generated"], arrays["margin"]
    got = model.generate(params, arrays["prompt"], steps=want.shape[1], progress=False, **others)
    near = margin <= 2 * TOLERANCE * max(1.0, np.abs(arrays["f32"]).max())
    certain = np.cumsum(near, axis=1) == 0
    assert certain.mean() > 0.5
    assert len(np.unique(want)) > 10
    np.testing.assert_array_equal(got[certain], want[certain])


@pytest.mark.parametrize("name", NAMES)
def test_exporting_gives_the_checkpoint_back_bit_for_bit(name: str, tmp_path: Path):
    model, _ = built(name)
    left_out = model.export_hf(model.load(folder(name)), tmp_path)
    theirs, ours = (load_file(place / "model.safetensors") for place in (folder(name), tmp_path))
    assert set(theirs) - set(ours) <= set(left_out) and not set(ours) - set(theirs)
    for key, x in ours.items():
        assert (x.dtype, x.shape) == (theirs[key].dtype, theirs[key].shape), key
        assert x.tobytes() == theirs[key].tobytes(), key


@pytest.mark.parametrize("name", NAMES)
def test_a_bfloat16_checkpoint_comes_back_in_bfloat16(name: str, tmp_path: Path):
    model = compiled(name, params="bf16")
    rounded = tmp_path / "rounded"
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), compiled(name).load(folder(name)))
    model.export_hf(params, rounded)
    model.export_hf(model.load(rounded), tmp_path / "again")
    first, second = (load_file(place / "model.safetensors") for place in (rounded, tmp_path / "again"))
    assert first.keys() == second.keys()
    for key, x in first.items():
        assert x.dtype == second[key].dtype == jnp.bfloat16
        assert x.tobytes() == second[key].tobytes(), key


@pytest.mark.parametrize("name", NAMES)
def test_published_sizes_have_as_many_parameters(name: str):
    about = written(name)[2]
    stored = front(SPECS / f"{about['spec']}.tfm", about["published_settings"]).lowered.program.stored()
    assert sum(prod(s.type.ints) for s in stored if s.trained) == about["published"]
