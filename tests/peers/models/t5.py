"""T5: an encoder over sources of several lengths, a decoder, one table of biases by buckets of distance for each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SETTINGS = {
    "layers": 3, "width": 32, "heads": 4, "head_dim": 6, "hidden": 56, "vocab": 101, "buckets": 12, "farthest": 20,
}  # fmt: skip
PROMPT = 5


def build(seed: int) -> transformers.T5ForConditionalGeneration:
    config = transformers.T5Config(
        vocab_size=101,
        d_model=32,
        d_kv=6,
        d_ff=56,
        num_layers=3,
        num_heads=4,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=20,
    )
    model = scatter(transformers.T5ForConditionalGeneration(config), seed, spread=0.3)
    with torch.no_grad():  # attention by position more than by source, so that the generated text varies
        model.shared.weight.mul_(0.25)
        model.decoder.final_layer_norm.weight.mul_(4)
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(4)
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.o.weight.mul_(0.5)
    return model


def published() -> transformers.T5ForConditionalGeneration:
    """T5 base."""
    config = transformers.T5Config(d_model=768, d_kv=64, d_ff=3_072, num_layers=12, num_heads=12)
    return transformers.T5ForConditionalGeneration(config)


def inputs(rng: np.random.Generator) -> Inputs:
    found = {
        "tokens": rng.integers(1, 101, (3, 50)),
        "source": rng.integers(0, 101, (3, 37)),
        "source_lengths": np.array([37, 20, 1]),
    }
    found["tokens"][:, 0] = 0  # what T5's answers begin with; transformers puts it before those that do not
    return {name: torch.from_numpy(x) for name, x in found.items()}


def read(inputs: Inputs) -> Mapping[str, Any]:
    """The source as transformers takes it."""
    real = torch.arange(inputs["source"].shape[1]) < inputs["source_lengths"][:, None]
    return {"input_ids": inputs["source"], "attention_mask": real.to(torch.int64)}


def outputs(model: transformers.T5ForConditionalGeneration, inputs: Inputs) -> torch.Tensor:
    return model(**read(inputs), decoder_input_ids=inputs["tokens"]).logits


def generate(model: transformers.T5ForConditionalGeneration, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    model.generation_config.decoder_start_token_id = 0
    return greedy(model, {**read(inputs), "decoder_input_ids": inputs["tokens"][:, :PROMPT]})
