"""Mixtral: grouped heads, and a mixture of experts weighed by the softmax of the chosen ones."""

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SETTINGS = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 40, "vocab": 101, "count": 6, "chosen": 2,
}  # fmt: skip
PROMPT = 7


def build(seed: int) -> transformers.MixtralForCausalLM:
    config = transformers.MixtralConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=6,
        num_experts_per_tok=2,
        rms_norm_eps=1e-5,
        experts_implementation="eager",  # the others ask for rows of whole 16 bytes
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=False,
    )
    return scatter(transformers.MixtralForCausalLM(config), seed)


def published() -> transformers.MixtralForCausalLM:
    """Mixtral 8x7B."""
    config = transformers.MixtralConfig(
        vocab_size=32_000,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
    )
    return transformers.MixtralForCausalLM(config)


def inputs(rng: np.random.Generator) -> Inputs:
    return {"tokens": torch.from_numpy(rng.integers(0, 101, (3, 60)))}


def outputs(model: transformers.MixtralForCausalLM, inputs: Inputs) -> torch.Tensor:
    return model(input_ids=inputs["tokens"]).logits


def generate(model: transformers.MixtralForCausalLM, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return greedy(model, {"input_ids": inputs["tokens"][:, :PROMPT]})
