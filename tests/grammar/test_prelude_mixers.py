"""What the library's features, decays, recurrences and convolutions compute, against loops in numpy and JAX's own."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.testing.stage import (
    COLUMN,
    IMAGE,
    POS,
    ROW,
    SEGMENT,
    Array,
    B,
    C,
    H,
    X,
    close,
    convolved,
    heads,
    join,
    recurred,
    rms,
    rope,
    sigmoid,
    silu,
    softmax,
    staged,
    turned,
    value,
)

pytestmark = pytest.mark.usefixtures("x64")


# ---- features, decays, recurrences


FEATURES: dict[str, Callable[[Array, Array], Array]] = {
    "elu1": lambda u, w: np.where(u > 0, u + 1, np.exp(u)),
    "rectified(0.01)": lambda u, w: np.maximum(u, 0) + 0.01,
    "exponential": lambda u, w: np.exp(u),
    "squared": lambda u, w: u**2,
    "softmaxed": lambda u, w: softmax(u),
    "favor(w, scale = 0.5)": lambda u, w: np.exp(u @ w.T / 2 - (u**2).sum(-1, keepdims=True) / 8),
    "random_relu(w, scale = 0.5)": lambda u, w: np.maximum(u @ w.T / 2, 0) + 1e-3,
}


@pytest.mark.parametrize("feature", FEATURES)
def test_features(feature: str) -> None:
    found, p = value(f"recur(split(x, 2), split(x, 2), split(x, 2), feature = {feature})")
    phi = FEATURES[feature](heads(X), p.get("w", np.zeros((6, 4))))
    close(found, recurred(phi, phi, heads(X)))


def test_random_features_approach_softmax() -> None:
    """The mean over many draws of phi(q) phi(k) is exp(q k / sqrt(D))."""
    w = np.random.default_rng(1).normal(size=(200_000, 4))
    q, k = heads(X)[0, 0, 0], heads(X)[0, 1, 1]
    phi = FEATURES["favor(w, scale = 0.5)"]
    scaled = 4**-0.25 / 0.5  # the sample's scale is 0.5, the kernel's D ^ -0.25
    products = phi(q * scaled, w) * phi(k * scaled, w)
    assert abs(products.mean() - math.exp(q @ k / 2)) < 5 * products.std() / math.sqrt(len(w))


def test_decays() -> None:
    x = heads(X)
    found, _ = value("recur(split(x, 2), split(x, 2), split(x, 2), decay = retention)")
    close(found, recurred(x, x, x, np.log(1 - 2.0 ** (-5 - np.arange(H)))[:, None]))
    found, _ = value("recur(tag(split(x, 2), gate = split(-abs(x), 2)), split(x, 2), split(x, 2), decay = gated)")
    close(found, recurred(x, x, x, -abs(x)))
    step = "cut(abs(x), 0, 2)"
    found, p = value(f"recur(tag(split(x, 2), step = {step}), split(x, 2), split(x, 2), decay = selective(slope))")
    close(found, recurred(x, x, x, (-np.exp(p["slope"]) * abs(X)[..., :2])[..., None]))


@pytest.mark.parametrize("direction", ["causal", "both"])
def test_linear_attention(direction: str) -> None:
    y, p = value(f'linear_attention(x, heads = 2, direction = "{direction}", position = rope())')
    q, k, v = (heads(X @ p[f"{n}.weight"]) for n in "qkv")
    phi = FEATURES["elu1"]
    a = np.einsum("bihd,bjhd->bhij", phi(turned(q, rope(2)), q), phi(turned(k, rope(2)), k))
    a = a * (POS[None, :] <= POS[:, None] if direction == "causal" else 1)
    o = np.einsum("bhij,bjhd->bihd", a / (a.sum(-1, keepdims=True) + 1e-6), v)
    close(y, join(o) @ p["out.weight"])


def test_retention_mixer() -> None:
    y, p = value("retention_mixer(x, heads = 2)")
    q, k, v = (heads(X @ p[f"{n}.weight"]) for n in "qkv")
    q, k = turned(q, rope(2), "interleaved"), turned(k, rope(2), "interleaved")
    o = recurred(q, k, v, np.log(1 - 2.0 ** (-5 - np.arange(H)))[:, None]) * 0.5
    close(y, (join(rms(o, 1e-6)) * silu(X @ p["gate.weight"])) @ p["out.weight"])


def test_gated_linear_attention() -> None:
    y, p = value("gated_linear_attention(x, heads = 2, rank = 3, segment = x.segment)")
    gate = np.log(sigmoid(X @ p["decay_down.weight"] @ p["decay.weight"] + p["decay.bias"])) / 16
    q, k, v = (heads(X @ p[f"{n}.weight"]) for n in "qkv")
    o = recurred(q, k, v, heads(gate), SEGMENT) * 2**-0.5
    o = rms(o, 1e-5) * p["norm.scale"] * silu(heads(X @ p["gate.weight"]))
    close(y, join(o) @ p["out.weight"])


def test_mamba2() -> None:
    y, p = value("mamba2(x, head_dim = 4, state = 3, groups = 2, segment = x.segment)")
    inner, n = 16, 3
    wide = X @ p["in.weight"]
    mixed = silu(convolved(wide, p["conv.weight"], SEGMENT) + p["conv.bias"])
    v = heads(mixed[..., :inner], 4)
    writes, reads = heads(mixed[..., inner : inner + 2 * n]), heads(mixed[..., inner + 2 * n :])
    dt = np.log1p(np.exp(X @ p["step_in.weight"] + p["core.step"]))
    k, q = np.repeat(writes, 2, 2) * dt[..., None], np.repeat(reads, 2, 2)
    o = recurred(q, k, v, (-np.exp(p["core.rate"]) * dt)[..., None], SEGMENT) + p["core.skip"][:, None] * v
    o = rms(join(o) * silu(X @ p["gate.weight"]), 1e-5) * p["norm.scale"]
    close(y, o @ p["out.weight"])


def test_state_space_in_reverse_is_that_of_the_reversed_tokens() -> None:
    y, p = value('state_space(y, y, y, linear(x, 2), direction = "reverse")')
    x = heads(X)[:, ::-1]
    dt = np.log1p(np.exp(X[:, ::-1] @ p["weight"] + p["step"]))
    o = recurred(x, x * dt[..., None], x, (-np.exp(p["rate"]) * dt)[..., None]) + p["skip"][:, None] * x
    close(y[:, ::-1], o)


def test_mamba2_starts_within_its_ranges() -> None:
    """Rates of 1 to 16, steps of 0.001 to 0.1 after softplus, as the paper starts them."""
    stored = {s.path.split(".", 1)[1]: s for s in staged("mamba2(x, head_dim = 4)").stored()}
    rate, step = np.exp(stored["core.rate"].init.table), np.log1p(np.exp(stored["core.step"].init.table))
    close(np.asarray([rate[0], rate[-1], step[0], step[-1]]), np.asarray([1, 16, 1e-3, 0.1]))


# ---- convolutions


def lax_conv(x: Array, weight: Array, stride: int, pad: int, groups: int = 1) -> Array:
    """x [B, .., C], weight [.., in / groups, out]."""
    spatial = x.ndim - 2
    names = "HW"[:spatial]
    out = jax.lax.conv_general_dilated(
        jnp.asarray(x), jnp.asarray(weight), (stride,) * spatial, [(pad, pad)] * spatial,
        dimension_numbers=(f"N{names}C", f"{names}IO", f"N{names}C"), feature_group_count=groups,
    )  # fmt: skip
    return np.asarray(out)


SHAPES = [(1, 1, 0), (3, 1, 1), (3, 2, 1), (2, 2, 0), (4, 4, 0), (5, 3, 2)]


def test_causal_convolution() -> None:
    y, p = value("causal_conv1d(x, kernel = 3)")
    close(y, convolved(X, p["weight"]))
    assert np.allclose(y[:, 0], X[:, 0] * p["weight"][0])
    y, p = value("causal_conv1d(x, kernel = 3, segment = x.segment, biased = yes)")
    close(y, convolved(X, p["weight"], SEGMENT) + p["bias"])


@pytest.mark.parametrize(("kernel", "stride", "pad"), SHAPES)
def test_convolutions(kernel: int, stride: int, pad: int) -> None:
    given = f"kernel = {kernel}, stride = {stride}, pad = {pad}"
    y, p = value(f"conv1d(x, 5, {given})")
    close(y, lax_conv(X, p["weight"], stride, pad) + p["bias"])
    y, p = value(f"depthwise_conv1d(x, {given})")
    close(y, lax_conv(X, p["weight"][:, None], stride, pad, C) + p["bias"])
    grid = X.reshape(B, 4, 4, C)
    y, p = value(f"conv2d(x, 5, columns = 4, {given})")
    weight = p["weight"].reshape(kernel, kernel, C, 5)
    close(y, lax_conv(grid, weight, stride, pad).reshape(B, -1, 5) + p["bias"])
    y, p = value(f"depthwise_conv2d(x, columns = 4, {given})")
    weight = p["weight"].reshape(kernel, kernel, 1, C)
    close(y, lax_conv(grid, weight, stride, pad, C).reshape(B, -1, C) + p["bias"])


@pytest.mark.parametrize(("kernel", "stride", "pad"), SHAPES)
def test_pooling(kernel: int, stride: int, pad: int) -> None:
    given = f"kernel = {kernel}, stride = {stride}, pad = {pad}"
    for of_max, of_mean, grid in (
        ("max_pool1d(x", "avg_pool1d(x", X),
        ("max_pool2d(x, columns = 4", "avg_pool2d(x, columns = 4", X.reshape(B, 4, 4, C)),
    ):
        spatial = grid.ndim - 2
        around = [(0, 0), *[(pad, pad)] * spatial, (0, 0)]
        window, strides = (1, *[kernel] * spatial, 1), (1, *[stride] * spatial, 1)

        def reduced(x: Array, fn: Any, start: float, window: Any = window, strides: Any = strides) -> Array:
            return np.asarray(jax.lax.reduce_window(jnp.asarray(x), start, fn, window, strides, "valid"))

        most = reduced(np.pad(grid, around, constant_values=-np.inf), jax.lax.max, -np.inf)
        total = reduced(np.pad(grid, around), jax.lax.add, 0.0)
        count = reduced(np.pad(np.ones_like(grid), around), jax.lax.add, 0.0)
        close(value(f"{of_max}, {given})")[0], most.reshape(B, -1, C))
        close(value(f"{of_mean}, {given})")[0], (total / count).reshape(B, -1, C))


def test_patches() -> None:
    cells = IMAGE.reshape(B, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, 16, 12)
    close(value("patches(image, side = 2)")[0], cells)
    found, _ = value("weights(split(patches(image, side = 2), 2), split(patches(image, side = 2), 2), mask = disc(2))")
    away = (ROW[:, None] - ROW[None, :]) ** 2 + (COLUMN[:, None] - COLUMN[None, :]) ** 2
    np.testing.assert_array_equal(found[0, 0] > 0, away < 4)
    merged = X.reshape(B, 2, 2, 2, 2, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, 4, 4 * C)
    close(value("unfold2d(x, columns = 4)")[0], merged)


def test_squeeze_and_excitation() -> None:
    y, p = value("squeeze_excite(x, ratio = 2)")
    hidden = np.maximum(X.mean(1) @ p["down.weight"] + p["down.bias"], 0)
    close(y, X * sigmoid(hidden @ p["up.weight"] + p["up.bias"])[:, None])


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsampling(factor: int) -> None:
    grid = jnp.asarray(X.reshape(B, 4, 4, C))
    wanted = jax.image.resize(grid, (B, 4 * factor, 4 * factor, C), "bilinear")
    close(value(f"upsample2d(x, columns = 4, factor = {factor})")[0], np.asarray(wanted).reshape(B, -1, C))
