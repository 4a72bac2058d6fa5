"""Mistral: every layer sees a window that is shorter than the text, also while it generates."""

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SETTINGS = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 56, "vocab": 101, "sight": 12}
PROMPT = 20


def build(seed: int) -> transformers.MistralForCausalLM:
    config = transformers.MistralConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        sliding_window=12,
        tie_word_embeddings=False,
    )
    return scatter(transformers.MistralForCausalLM(config), seed)


def published() -> transformers.MistralForCausalLM:
    """Mistral 7B v0.1."""
    config = transformers.MistralConfig(
        vocab_size=32_000,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        sliding_window=4_096,
        tie_word_embeddings=False,
    )
    return transformers.MistralForCausalLM(config)


def inputs(rng: np.random.Generator) -> Inputs:
    return {"tokens": torch.from_numpy(rng.integers(0, 101, (3, 50)))}


def outputs(model: transformers.MistralForCausalLM, inputs: Inputs) -> torch.Tensor:
    return model(input_ids=inputs["tokens"]).logits


def generate(model: transformers.MistralForCausalLM, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return greedy(model, {"input_ids": inputs["tokens"][:, :PROMPT]})
