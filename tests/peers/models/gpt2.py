"""GPT-2: norms before, learned positions, a fused projection of queries, keys and values, tied vocabulary."""

import numpy as np
import torch
import transformers

from models import Inputs, greedy, scatter

SETTINGS = {"layers": 2, "width": 32, "heads": 4, "vocab": 101, "longest": 96}
SAVED = "transformer"
PROMPT = 7


def build(seed: int) -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(
        vocab_size=101, n_positions=96, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return scatter(transformers.GPT2LMHeadModel(config), seed, spread=0.2)


def published() -> transformers.GPT2LMHeadModel:
    """gpt2, the smallest of them."""
    return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def inputs(rng: np.random.Generator) -> Inputs:
    return {"tokens": torch.from_numpy(rng.integers(0, 101, (3, 90)))}


def outputs(model: transformers.GPT2LMHeadModel, inputs: Inputs) -> torch.Tensor:
    return model(input_ids=inputs["tokens"]).logits


def generate(model: transformers.GPT2LMHeadModel, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return greedy(model, {"input_ids": inputs["tokens"][:, :PROMPT]})
