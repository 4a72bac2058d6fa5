"""Losses against their formulas written out in float64, what does not count, and element types."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tfc.training import cross_entropy, masked_mean, token_losses

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((2, 5, 7)) * 3
LABELS = RNG.integers(0, 7, (2, 5))


def written(logits: np.ndarray, labels: np.ndarray, smoothing: float, z_loss: float) -> np.ndarray:
    """One token after another, in float64."""
    out = np.zeros(labels.shape)
    for at in np.ndindex(labels.shape):
        p = np.exp(logits[at]) / np.exp(logits[at]).sum()
        target = np.full(7, smoothing / 7) + (1 - smoothing) * np.eye(7)[labels[at]]
        out[at] = -(target * np.log(p)).sum() + z_loss * np.log(np.exp(logits[at]).sum()) ** 2
    return out


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.3, 1e-3)])
def test_losses_are_their_formula(smoothing: float, z_loss: float):
    expected = written(LOGITS, LABELS, smoothing, z_loss)
    got = token_losses(jnp.asarray(LOGITS, jnp.float32), LABELS, smoothing=smoothing, z_loss=z_loss)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    mean = cross_entropy(jnp.asarray(LOGITS, jnp.float32), LABELS, smoothing=smoothing, z_loss=z_loss)
    np.testing.assert_allclose(mean, expected.mean(), rtol=1e-5)


def test_optax_agrees():
    logits = jnp.asarray(LOGITS, jnp.float32)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    np.testing.assert_allclose(token_losses(logits, LABELS), plain, rtol=1e-5, atol=1e-6)


def test_what_is_ignored_neither_counts_nor_has_gradients():
    labels = np.where(np.arange(5) < 2, LABELS, -100)
    logits = jnp.asarray(np.where((np.arange(5) < 2)[:, None], LOGITS, np.nan), jnp.float32)

    def loss(x: Any) -> Any:
        return cross_entropy(x, labels, smoothing=0.1, z_loss=1e-3)

    value, slope = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, written(LOGITS, LABELS, 0.1, 1e-3)[:, :2].mean(), rtol=1e-5)
    assert bool(jnp.isfinite(slope).all()) and not slope[:, 2:].any() and slope[:, :2].all()
    np.testing.assert_array_equal(token_losses(logits, labels)[:, 2:], 0)
    other = np.where(np.arange(5) < 2, LABELS, 0)
    np.testing.assert_array_equal(token_losses(logits, other, ignore=0)[other == 0], 0)


def test_nothing_to_count_costs_nothing():
    value, slope = jax.value_and_grad(cross_entropy)(jnp.asarray(LOGITS, jnp.float32), np.full((2, 5), -100))
    assert value == 0 and not slope.any()


@pytest.mark.parametrize("label", [7, -1, 1000])
def test_a_label_that_is_none_costs_nan(label: int):
    labels = LABELS.copy()
    labels[1, 3] = label
    got = np.isnan(np.asarray(token_losses(jnp.asarray(LOGITS, jnp.float32), labels)))
    assert got[1, 3] and got.sum() == 1


def test_bfloat16_logits_are_summed_in_float32():
    """Of a flat distribution over 4096, a sum in bfloat16 stops at 256."""
    logits = jnp.zeros((1, 4096), jnp.bfloat16)
    value, slope = jax.value_and_grad(lambda x: cross_entropy(x, jnp.asarray([3])))(logits)
    assert value.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, np.log(4096), rtol=1e-6)


def test_large_logits_are_finite():
    value, slope = jax.value_and_grad(cross_entropy)(jnp.asarray([[1e4, 0.0, -1e4]]), jnp.asarray([1]))
    assert value == 1e4 and bool(jnp.isfinite(slope).all())


def test_the_gradient_is_the_difference_of_distributions():
    slope = jax.grad(lambda x: jnp.sum(token_losses(x, LABELS)))(jnp.asarray(LOGITS, jnp.float32))
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    np.testing.assert_allclose(slope, p - np.eye(7)[LABELS], rtol=0, atol=1e-6)


WRONG: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    r"logits \[2, 5, 7\] and labels \[2, 4\]": (LOGITS, LABELS[:, :4], {}),
    "logits are int": (LOGITS.astype(int), LABELS, {}),
    "smoothing is 0 or more": (LOGITS, LABELS, {"smoothing": 1.0}),
    "z_loss not negative": (LOGITS, LABELS, {"z_loss": -1.0}),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_refused(message: str):
    logits, labels, settings = WRONG[message]
    with pytest.raises(ValueError, match=message):
        cross_entropy(jnp.asarray(logits), labels, **settings)


def test_means_over_what_holds():
    x = jnp.asarray([[1.0, jnp.nan, 3.0], [jnp.inf, 5.0, 6.0]])
    where = jnp.asarray([[True, False, True], [False, True, True]])
    value, slope = jax.value_and_grad(masked_mean)(x, where)
    assert value == 15 / 4
    np.testing.assert_array_equal(slope, np.where(where, 0.25, 0))
    assert masked_mean(x, False) == 0
    assert masked_mean(jnp.ones((2, 3), jnp.bfloat16), jnp.asarray([True, False, True])).dtype == jnp.float32
