"""Logits and labels turned into losses, and what a training run holds into files; steps are optax's."""

from tfc.training.checkpoint import State, restore, save
from tfc.training.losses import cross_entropy, masked_mean, token_losses

__all__ = ["State", "cross_entropy", "masked_mean", "restore", "save", "token_losses"]
