"""Qwen3: each head's queries and keys are normed, and heads are wider than their share of the model."""

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SETTINGS = {
    "layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 56, "vocab": 101,
}  # fmt: skip
PROMPT = 7


def build(seed: int) -> transformers.Qwen3ForCausalLM:
    config = transformers.Qwen3Config(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=False,
    )
    return scatter(transformers.Qwen3ForCausalLM(config), seed)


def published() -> transformers.Qwen3ForCausalLM:
    """Qwen3 8B."""
    config = transformers.Qwen3Config(
        vocab_size=151_936,
        hidden_size=4_096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    )
    return transformers.Qwen3ForCausalLM(config)


def inputs(rng: np.random.Generator) -> Inputs:
    return {"tokens": torch.from_numpy(rng.integers(0, 101, (3, 50)))}


def outputs(model: transformers.Qwen3ForCausalLM, inputs: Inputs) -> torch.Tensor:
    return model(input_ids=inputs["tokens"]).logits


def generate(model: transformers.Qwen3ForCausalLM, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return greedy(model, {"input_ids": inputs["tokens"][:, :PROMPT]})
