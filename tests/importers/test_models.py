"""The whole models of `examples/models` at their published sizes, and their checkpoints' names at small ones."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tfc import cli
from tfc.exporters.hf import export_hf
from tfc.front import front
from tfc.importers.hf import import_hf

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"

PUBLISHED: Mapping[str, int] = {
    "bert": 109_482_240,
    "gpt2": 124_439_808,
    "llama3": 8_030_261_248,
    "mistral": 7_241_732_096,
    "qwen3": 8_190_735_360,
}
"""Parameters of bert-base-uncased with its pooler, gpt2, Llama 3.1 8B, Mistral 7B v0.1 and Qwen3 8B, as transformers
counts them."""

TIED: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "llama3": (
        {"layers": 16, "width": 2048, "heads": 32, "hidden": 8192, "stretch": 32, "tied": True},
        1_235_814_400,
    ),
    "qwen3": ({"layers": 28, "width": 1024, "heads": 16, "hidden": 3072, "tied": True}, 596_049_920),
}
"""Settings and parameters of Llama 3.2 1B and Qwen3 0.6B, which share one table of words."""

SMALL: Mapping[str, Mapping[str, int]] = {
    "bert": {"layers": 2, "width": 8, "heads": 2, "vocab": 11, "longest": 5},
    "gpt2": {"layers": 2, "width": 8, "heads": 2, "vocab": 11, "longest": 5},
    "llama3": {"layers": 2, "width": 8, "heads": 4, "kv_heads": 2, "hidden": 12, "vocab": 11},
    "mistral": {"layers": 2, "width": 8, "heads": 4, "kv_heads": 2, "hidden": 12, "vocab": 11},
    "qwen3": {"layers": 2, "width": 8, "heads": 4, "kv_heads": 2, "head_dim": 4, "hidden": 12, "vocab": 11},
}


def size(name: str, settings: Mapping[str, Any]) -> int:
    made = front(MODELS / f"{name}.tfm", settings).lowered.program
    return sum(prod(s.type.ints) for s in made.stored())


def test_models_are_laid_out_canonically_and_pass_the_check():
    files = sorted(map(str, MODELS.glob("*.tfm")))
    assert {Path(f).stem for f in files} >= PUBLISHED.keys()
    assert cli.main(["fmt", "--check", *files]) == 0
    assert cli.main(["check", *files]) == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_default_sizes_are_the_published_ones(name: str):
    assert size(name, {}) == PUBLISHED[name]


@pytest.mark.parametrize("name", TIED)
def test_smaller_ones_of_the_family_are_settings(name: str):
    settings, count = TIED[name]
    assert size(name, settings) == count


@pytest.mark.parametrize("name", SMALL)
def test_names_lead_there_and_back(name: str, tmp_path: Path):
    """Every parameter has a name of its own, and no element is lost on the way."""
    lowered = front(MODELS / f"{name}.tfm", SMALL[name]).lowered
    stored, names = lowered.program.stored(), lowered.names["hf"]
    sizes = [prod(s.type.ints) for s in stored]
    numbers = np.arange(sum(sizes), dtype=np.float32)
    pieces = np.split(numbers, np.cumsum(sizes)[:-1])
    params = {s.path: x.reshape(s.type.ints) for s, x in zip(stored, pieces, strict=True)}
    export_hf(params, tmp_path, stored, names)
    theirs = load_file(tmp_path / "model.safetensors")
    assert sorted(n for x in theirs.values() for n in x.ravel().tolist()) == numbers.tolist()
    for path, x in import_hf(tmp_path, stored, names).items():
        np.testing.assert_array_equal(x, params[path])


def test_published_checkpoints_may_have_other_prefixes_and_words():
    """As the files of bert-base-uncased and of a saved GPT2LMHeadModel have them."""
    bert = front(MODELS / "bert.tfm", SMALL["bert"]).lowered
    known = {name for row in bert.names["hf"].rows(bert.program.stored()) for name in row.names}
    assert {"bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight", "cls.predictions.bias"} <= known
    gpt2 = front(MODELS / "gpt2.tfm", SMALL["gpt2"]).lowered
    known = {name for row in gpt2.names["hf"].rows(gpt2.program.stored()) for name in row.names}
    assert {"transformer.h.1.attn.bias", "h.0.attn.c_attn.weight", "lm_head.weight"} <= known
