"""Whole models whose checkpoints differ in more than names: published sizes, and names and shapes at small ones."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tfc.exporters.hf import export_hf
from tfc.front import Front, front
from tfc.importers.hf import import_hf
from tfc.passes.decode import Decode, given_once

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"

PUBLISHED: Mapping[str, int] = {
    "deepseek_v2": 235_741_434_880,
    "gemma2": 2_614_341_888,
    "mixtral": 46_702_792_704,
    "t5": 222_903_552,
    "vit": 86_567_656,
}
"""Parameters of DeepSeek-V2, Gemma 2 2B, Mixtral 8x7B v0.1, t5-base and vit-base-patch16-224 with its head, as
transformers counts them."""

LITE: Mapping[str, int] = {
    "layers": 27, "width": 2048, "heads": 16, "hidden": 10_944, "query_rank": 0, "count": 64, "groups": 1, "near": 1,
    "strength": 1, "narrow": 1408,
}  # fmt: skip
"""DeepSeek-V2-Lite."""

SMALL: Mapping[str, Mapping[str, int]] = {
    "deepseek_v2": {
        "layers": 3, "width": 8, "heads": 2, "hidden": 12, "vocab": 11, "query_rank": 5, "kv_rank": 3, "plain_dim": 4,
        "rotated_dim": 2, "value_dim": 3, "count": 4, "chosen": 2, "groups": 2, "near": 1, "narrow": 6,
    },
    "gemma2": {"layers": 4, "width": 8, "heads": 4, "kv_heads": 2, "head_dim": 4, "hidden": 12, "vocab": 11},
    "mixtral": {"layers": 2, "width": 8, "heads": 4, "kv_heads": 2, "hidden": 12, "vocab": 11, "count": 3},
    "t5": {"layers": 2, "width": 8, "heads": 2, "head_dim": 3, "hidden": 12, "vocab": 11},
    "vit": {"layers": 2, "width": 8, "heads": 2, "hidden": 12, "side": 2, "pixels": 6, "classes": 5},
}  # fmt: skip

SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "deepseek_v2": {
        "model.layers.0.mlp.gate_proj.weight": (12, 8),
        "model.layers.1.mlp.gate.weight": (4, 8),
        "model.layers.2.mlp.experts.3.down_proj.weight": (8, 6),
        "model.layers.2.mlp.shared_experts.up_proj.weight": (12, 8),
        "model.layers.2.self_attn.q_b_proj.weight": (12, 5),
        "model.layers.2.self_attn.kv_a_proj_with_mqa.weight": (5, 8),
        "model.layers.2.self_attn.kv_b_proj.weight": (14, 3),
    },
    "gemma2": {
        "model.layers.3.self_attn.q_proj.weight": (16, 8),
        "model.layers.2.pre_feedforward_layernorm.weight": (8,),
    },
    "mixtral": {
        "model.layers.1.block_sparse_moe.gate.weight": (3, 8),
        "model.layers.1.block_sparse_moe.experts.2.w2.weight": (8, 12),
    },
    "t5": {
        "shared.weight": (11, 8),
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 2),
        "decoder.block.1.layer.1.EncDecAttention.k.weight": (6, 8),
    },
    "vit": {
        "vit.embeddings.cls_token": (1, 1, 8),
        "vit.embeddings.position_embeddings": (1, 10, 8),
        "vit.embeddings.patch_embeddings.projection.weight": (8, 3, 2, 2),
    },
}
"""Some arrays that a checkpoint of those sizes has."""


def small(name: str) -> Front:
    return front(MODELS / f"{name}.tfm", SMALL[name])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_default_sizes_are_the_published_ones(name: str):
    stored = front(MODELS / f"{name}.tfm").lowered.program.stored()
    assert sum(prod(s.type.ints) for s in stored) == PUBLISHED[name]


def test_lite_is_a_setting_of_deepseek():
    lowered = front(MODELS / "deepseek_v2.tfm", LITE).lowered
    stored = lowered.program.stored()
    assert sum(prod(s.type.ints) for s in stored) == 15_706_484_224
    found = {r.theirs: r.ours for r in lowered.names["hf"].rows(stored)}
    assert str(found["model.layers.1.self_attn.q_proj.weight"]).startswith(
        "transpose(reshape(roll(reshape(layer.look.q"
    )
    assert str(found["model.layers.1.self_attn.q_a_proj.weight"]) == "none"


def exported(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our parameters, all their numbers unlike, and the checkpoint of them."""
    lowered = small(name).lowered
    stored, names = lowered.program.stored(), lowered.names["hf"]
    numbers = np.arange(sum(prod(s.type.ints) for s in stored), dtype=np.float32)
    pieces = np.split(numbers, np.cumsum([prod(s.type.ints) for s in stored])[:-1])
    params = {s.path: x.reshape(s.type.ints) for s, x in zip(stored, pieces, strict=True)}
    export_hf(params, folder, stored, names)
    theirs = load_file(folder / "model.safetensors")
    assert sorted(n for x in theirs.values() for n in x.ravel().tolist()) == numbers.tolist()
    for path, x in import_hf(folder, stored, names).items():
        np.testing.assert_array_equal(x, params[path])
    return params, theirs


@pytest.mark.parametrize("name", SMALL)
def test_names_lead_there_and_back(name: str, tmp_path: Path):
    _, theirs = exported(name, tmp_path)
    found = {key: x.shape for key, x in theirs.items()}
    assert {key: found.get(key) for key in SHAPES[name]} == SHAPES[name]


def test_heads_of_deepseek_have_their_rotated_channels_last(tmp_path: Path):
    """Ours first: of each head's 4 + 2 rows of theirs, the last two are our first two."""
    ours, theirs = exported("deepseek_v2", tmp_path)
    q = ours["layer.look.q.weight"][1].reshape(5, 2, 6)
    want = np.concatenate([q[..., 2:], q[..., :2]], axis=-1).reshape(5, 12).T
    np.testing.assert_array_equal(theirs["model.layers.2.self_attn.q_b_proj.weight"], want)


def test_a_patch_of_vit_is_read_row_by_row_pixel_by_pixel(tmp_path: Path):
    ours, theirs = exported("vit", tmp_path)
    kernel = theirs["vit.embeddings.patch_embeddings.projection.weight"]
    for row, (y, x, c) in enumerate(np.ndindex(2, 2, 3)):
        np.testing.assert_array_equal(ours["patch.weight"][row], kernel[:, c, y, x])


def test_layers_of_gemma_alternate(tmp_path: Path):
    ours, theirs = exported("gemma2", tmp_path)
    for layer in range(4):
        half = "odd" if layer % 2 else "even"
        want = ours[f"pair.{half}.look.q.weight"][layer // 2].T
        np.testing.assert_array_equal(theirs[f"model.layers.{layer}.self_attn.q_proj.weight"], want)


def test_all_but_vit_can_be_decoded():
    """Latent attention, experts, windows, an encoder beside; T5's source is given once."""
    for name in SMALL:
        if name != "vit":
            program = small(name).program
            Decode()(program)
            assert given_once(program) == ({"source", "source_lengths"} if name == "t5" else set())
