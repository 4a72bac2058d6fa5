"""Llama 3.2: one table of words, read in both directions, and frequencies stretched further."""

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SPEC = "llama3"
SETTINGS = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 56, "vocab": 101,
    "longest": 400, "stretch": 32, "tied": "yes",
}  # fmt: skip
PUBLISHED = {"layers": 16, "width": 2_048, "heads": 32, "hidden": 8_192, "stretch": 32, "tied": "yes"}
PROMPT = 7


def build(seed: int) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4_096,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 400,
        },
        tie_word_embeddings=True,
    )
    return scatter(transformers.LlamaForCausalLM(config), seed)


def published() -> transformers.LlamaForCausalLM:
    """Llama 3.2 1B."""
    config = transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def inputs(rng: np.random.Generator) -> Inputs:
    return {"tokens": torch.from_numpy(rng.integers(0, 101, (3, 90)))}


def outputs(model: transformers.LlamaForCausalLM, inputs: Inputs) -> torch.Tensor:
    return model(input_ids=inputs["tokens"]).logits


def generate(model: transformers.LlamaForCausalLM, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return greedy(model, {"input_ids": inputs["tokens"][:, :PROMPT]})
