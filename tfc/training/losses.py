"""Logits and labels turned into losses, in float32 whatever the logits are (float64 beside float64)."""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["IGNORE", "cross_entropy", "masked_mean", "token_losses"]

Array = jax.Array

IGNORE = -100
"""The label that does not count, as elsewhere in the field."""


def token_losses(
    logits: Any, labels: Any, *, ignore: int = IGNORE, smoothing: float = 0.0, z_loss: float = 0.0
) -> Array:
    """What each token's label costs, in nats.   logits: [..., V]   labels: int [...]   -> float32 [...]

    (1 - smoothing) * -log p[label] + smoothing * mean over the vocabulary of -log p (arXiv:1512.00567)
    + z_loss * logsumexp(logits)^2, which keeps logits from drifting (arXiv:2204.02311).

    ignore: tokens with this label cost 0 and have zero gradients, whatever their logits are. Any other label outside
    0..V-1 costs NaN. Raises ValueError for shapes, element types and settings that do not fit.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {list(logits.shape)} and labels {list(labels.shape)}: [..., V] and [...] are needed")
    if not jnp.issubdtype(logits.dtype, jnp.floating) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"logits are {logits.dtype} and labels {labels.dtype}: reals and integers are needed")
    if not 0 <= smoothing < 1 or z_loss < 0:
        raise ValueError(f"smoothing is 0 or more and below 1, z_loss not negative; they are {smoothing} and {z_loss}")
    vocabulary = logits.shape[-1]
    counts = labels != ignore
    wide = jnp.where(counts[..., None], logits, 0).astype(jnp.promote_types(logits.dtype, jnp.float32))
    known = (labels >= 0) & (labels < vocabulary)
    chosen = jnp.take_along_axis(wide, jnp.where(known, labels, 0)[..., None], axis=-1)[..., 0]
    total = jax.nn.logsumexp(wide, axis=-1)
    loss = total - jnp.where(known, chosen, jnp.nan)
    if smoothing:
        loss = (1 - smoothing) * loss + smoothing * (total - jnp.mean(wide, axis=-1))
    if z_loss:
        loss = loss + z_loss * total**2
    return jnp.where(counts, loss, 0)


def cross_entropy(
    logits: Any, labels: Any, *, ignore: int = IGNORE, smoothing: float = 0.0, z_loss: float = 0.0
) -> Array:
    """The mean of `token_losses` over the tokens whose label counts; 0 where none does.   -> float32 []"""
    losses = token_losses(logits, labels, ignore=ignore, smoothing=smoothing, z_loss=z_loss)
    return masked_mean(losses, jnp.asarray(labels) != ignore)


def masked_mean(x: Any, where: Any) -> Array:
    """The mean of the elements at which `where`, a boolean that broadcasts to x, holds; 0 where it never does.

    In float32 or wider; what is left out has zero gradients and may be anything.
    """
    x = jnp.asarray(x)
    where = jnp.broadcast_to(where, x.shape)
    wide = jnp.where(where, x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sum(wide) / jnp.maximum(jnp.sum(where), 1)
