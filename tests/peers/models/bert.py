"""BERT: norms after, learned positions, kinds of segments, texts of several lengths, and a vector for each text."""

import numpy as np
import torch
import transformers

from models import Inputs, scatter

SETTINGS = {"layers": 2, "width": 32, "heads": 4, "hidden": 72, "vocab": 97, "longest": 48, "kinds": 3}
PROMPT = 0


def build(seed: int) -> transformers.BertModel:
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=72,
        max_position_embeddings=48,
        type_vocab_size=3,
    )
    return scatter(transformers.BertModel(config), seed)


def published() -> transformers.BertModel:
    """bert-base-uncased, without the heads of its training."""
    return transformers.BertModel(transformers.BertConfig())


def inputs(rng: np.random.Generator) -> Inputs:
    found = {
        "tokens": rng.integers(0, 97, (3, 41)),
        "lengths": np.array([41, 17, 1]),
        "segments": rng.integers(0, 3, (3, 41)),
    }
    return {name: torch.from_numpy(x) for name, x in found.items()}


def outputs(model: transformers.BertModel, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    real = torch.arange(inputs["tokens"].shape[1]) < inputs["lengths"][:, None]
    found = model(input_ids=inputs["tokens"], token_type_ids=inputs["segments"], attention_mask=real.to(torch.int64))
    return found.last_hidden_state * real[..., None], found.pooler_output
