"""Small random models of Hugging Face transformers: one module a model, each of them a `Peer`.

A module has the name of its spec: `models/llama3.py` for `examples/models/llama3.tfm`. The modules run where torch and
transformers are; tfc is not imported.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

__all__ = ["Inputs", "Peer", "greedy", "scatter"]

Inputs = Mapping[str, torch.Tensor]
"""Arguments by the names that the spec gives its inputs; integers are int64."""

GENERATED = 64
"""Tokens that a decoder goes on with."""


class Peer(Protocol):
    """What a module of this folder has. `generate` is missing where `PROMPT` is 0. `SAVED = "transformer"`, if there,
    names the part of the model whose checkpoint is written, where that is how the published one is. `SPEC`, if there,
    is the spec's name where it is not the module's, and `PUBLISHED` are the settings of the published sizes where they
    are not the spec's defaults."""

    SETTINGS: Mapping[str, Any]
    """The `--set` that make the spec as small as the model that `build` makes: numbers, words, lists of them."""

    PROMPT: int
    """How many of the first tokens of each row generation starts with; 0 for a model that does not generate."""

    @staticmethod
    def build(seed: int) -> Any:
        """A model as transformers has it (`save_pretrained`), 2 or 3 layers of width 32 to 64, float32, eval mode,
        every feature of the system in use, every parameter random: see `scatter`."""

    @staticmethod
    def published() -> Any:
        """The model of the sizes that are the spec's defaults; called with the device `meta`, so that it costs
        nothing. Its parameters are counted (tied ones once)."""

    @staticmethod
    def inputs(rng: np.random.Generator) -> Inputs:
        """Arguments for one call: ids int64 [B, T], images float32 [B, ...], lengths int64 [B]."""

    @staticmethod
    def outputs(model: Any, inputs: Inputs) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """What the spec's model returns for them, in whatever type `model` computes in. Where rows have lengths, what
        lies behind them is set to zero here, and by the test in our own result ([B, T, ..])."""

    @staticmethod
    def generate(model: Any, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """(int64 [B, GENERATED], the logits [B, GENERATED, V] they are the argmax of); most are `greedy(...)`."""


def scatter(model: Any, seed: int, spread: float = 0.15, centre: float = 1.0) -> Any:
    """The model in eval mode, each parameter drawn wide enough that no part of it is close to identity or to zero.

    Matrices and biases: normal, standard deviation `spread`. Scales of norms (vectors called weight): uniform within
    0.5 of `centre`, which is 0 where the system adds 1 to them. Buffers stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and name.endswith("weight"):
                p.uniform_(centre - 0.5, centre + 0.5, generator=generator)
            else:
                p.normal_(0, spread, generator=generator)
    return model.eval()


def greedy(model: Any, start: Mapping[str, torch.Tensor], steps: int = GENERATED) -> tuple[Any, Any]:
    """transformers' own greedy generation, with its cache. start: keyword arguments of `model.generate`."""
    model.generation_config.eos_token_id = None  # nothing ends early, and no token is kept from being chosen
    settings = {"do_sample": False, "max_new_tokens": steps, "pad_token_id": 0}
    found = model.generate(**start, **settings, return_dict_in_generate=True, output_logits=True)
    return found.sequences[:, -steps:], torch.stack(found.logits, dim=1)
