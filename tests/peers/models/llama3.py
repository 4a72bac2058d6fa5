"""Llama 3.1: grouped heads, rotary positions stretched by frequency."""

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SETTINGS = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 56, "vocab": 101, "longest": 400}
PROMPT = 7


def build(seed: int) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1_024,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 400,
        },
        tie_word_embeddings=False,
    )
    return scatter(transformers.LlamaForCausalLM(config), seed)


def published() -> transformers.LlamaForCausalLM:
    """Llama 3.1 8B."""
    config = transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def inputs(rng: np.random.Generator) -> Inputs:
    return {"tokens": torch.from_numpy(rng.integers(0, 101, (3, 90)))}


def outputs(model: transformers.LlamaForCausalLM, inputs: Inputs) -> torch.Tensor:
    return model(input_ids=inputs["tokens"]).logits


def generate(model: transformers.LlamaForCausalLM, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return greedy(model, {"input_ids": inputs["tokens"][:, :PROMPT]})
