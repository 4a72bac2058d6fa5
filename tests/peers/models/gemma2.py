"""Gemma 2: windowed and full attention in turn, capped scores and logits, scales of norms kept as distances from 1."""

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SETTINGS = {
    "layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 12, "hidden": 56, "vocab": 101, "reach": 9,
    "query_scale": 20,
}  # fmt: skip
PROMPT = 7


def build(seed: int) -> transformers.Gemma2ForCausalLM:
    config = transformers.Gemma2Config(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        query_pre_attn_scalar=20,
        sliding_window=9,
        attn_implementation="eager",  # the others leave out the cap of the scores
    )
    model = scatter(transformers.Gemma2ForCausalLM(config), seed, spread=0.5, centre=0.0)
    with torch.no_grad():  # logits that the cap bends, and that speak less of the last token itself
        model.model.embed_tokens.weight.mul_(0.2)
        model.model.norm.weight.add_(20)
    return model


def published() -> transformers.Gemma2ForCausalLM:
    """Gemma 2 2B."""
    config = transformers.Gemma2Config(
        vocab_size=256_000,
        hidden_size=2_304,
        intermediate_size=9_216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=4_096,
    )
    return transformers.Gemma2ForCausalLM(config)


def inputs(rng: np.random.Generator) -> Inputs:
    return {"tokens": torch.from_numpy(rng.integers(0, 101, (3, 60)))}


def outputs(model: transformers.Gemma2ForCausalLM, inputs: Inputs) -> torch.Tensor:
    return model(input_ids=inputs["tokens"]).logits


def generate(model: transformers.Gemma2ForCausalLM, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return greedy(model, {"input_ids": inputs["tokens"][:, :PROMPT]})
