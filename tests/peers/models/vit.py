"""ViT: patches by a convolution, a token for the class, learned positions."""

import numpy as np
import torch
import transformers

from models import Inputs, scatter

SETTINGS = {"layers": 2, "width": 32, "heads": 4, "hidden": 56, "side": 4, "pixels": 12, "classes": 7}
PROMPT = 0


def build(seed: int) -> transformers.ViTForImageClassification:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=56,
        image_size=12,
        patch_size=4,
        num_labels=7,
    )
    return scatter(transformers.ViTForImageClassification(config), seed)


def published() -> transformers.ViTForImageClassification:
    """vit-base-patch16-224, with its head of 1,000 classes."""
    return transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1_000))


def inputs(rng: np.random.Generator) -> Inputs:
    return {"image": torch.from_numpy(rng.normal(size=(5, 12, 12, 3))).float()}


def outputs(model: transformers.ViTForImageClassification, inputs: Inputs) -> torch.Tensor:
    return model(pixel_values=inputs["image"].permute(0, 3, 1, 2)).logits
