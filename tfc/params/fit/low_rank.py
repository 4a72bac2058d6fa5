"""A matrix -> two thin ones whose product is near it: in its numbers (svd), or in what it does to given inputs.

Both factors get the roots of the singular values (balanced, as PELA has them, arXiv:2310.10700): left^T left equals
right right^T for `svd`, so that neither trains faster than the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["activation_svd", "pooling", "product", "svd"]

Array = jax.Array


def svd(arrays: Sequence[Array], settings: Mapping[str, Any], data: Any = None) -> tuple[Array, Array]:
    """weight [.., K, O], rank r -> left [.., K, r], right [.., r, O]: the nearest product of that rank in the
    Frobenius norm, at the distance sqrt(sum of the squares of the singular values after the r-th) (Eckart and Young,
    1936). In float32 or wider; at full rank the product is the weight to rounding.
    """
    (weight,) = arrays
    rank = settings["rank"]
    wide = weight.astype(jnp.promote_types(jnp.float32, weight.dtype))
    u, s, v = jnp.linalg.svd(wide, full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    left, right = u[..., :rank] * root[..., None, :], root[..., :, None] * v[..., :rank, :]
    return left.astype(weight.dtype), right.astype(weight.dtype)


def activation_svd(arrays: Sequence[Array], settings: Mapping[str, Any], data: Any) -> tuple[Array, Array]:
    """weight [.., K, O], rank r, Gram matrix G = sum x x^T [.., K, K] of its inputs -> left [.., K, r], right
    [.., r, O]: the product of that rank whose outputs are nearest to x weight, summed over those inputs.

    With G = C C^T (Cholesky), the squared distance of outputs is |C^T (W - left right)|^2, which the truncated svd of
    C^T W makes least. `damp` times the mean of G's diagonal is added to it, so that directions that no input had keep
    a weight; at G = identity this is `svd`. In float64 on the host.
    """
    (given,) = arrays
    rank, damp = settings["rank"], settings["damp"]
    weight = np.asarray(given, np.float64)
    gram: np.ndarray[Any, Any] = np.asarray(data.gram, np.float64)
    size = gram.shape[-1]
    spread = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / size
    # inputs that are all zero say nothing: every direction counts alike
    gram = np.where(spread > 0, gram / np.where(spread > 0, spread, 1), 0) + np.eye(size) * np.where(
        spread > 0, damp, 1
    )
    root = np.linalg.cholesky(gram)
    turned = np.swapaxes(root, -1, -2)
    u, s, v = np.linalg.svd(turned @ weight, full_matrices=False)
    half = np.sqrt(s[..., :rank])
    left = np.linalg.solve(turned, u[..., :rank] * half[..., None, :])
    right = half[..., :, None] * v[..., :rank, :]
    return jnp.asarray(left, given.dtype), jnp.asarray(right, given.dtype)


def product(arrays: Sequence[Array], settings: Mapping[str, Any], data: Any = None) -> tuple[Array]:
    """left [.., K, r], right [.., r, O] -> their product [.., K, O], summed in float32 or wider."""
    left, right = arrays
    wide = jnp.promote_types(jnp.float32, left.dtype)
    return (jnp.matmul(left.astype(wide), right.astype(wide), precision="highest").astype(left.dtype),)


def pooling(arrays: Sequence[Array], settings: Mapping[str, Any], data: Any = None) -> tuple[Array, Array]:
    """A weight [.., K, O] whose stacks and type are taken -> means of neighbouring tokens [.., length, rows], twice:
    token t has its part in row t * rows // length, an even part of it. At rows = length it is the identity.
    """
    (like,) = arrays
    length, rows = settings["length"], settings["rows"]
    row = np.arange(length) * rows // length
    means = (row[:, None] == np.arange(rows)) / np.bincount(row, minlength=rows)
    stacked = jnp.asarray(np.broadcast_to(means, (*like.shape[:-2], length, rows)), like.dtype)
    return stacked, stacked
