"""What the library's attentions, masks, scores, weights and positions compute, against formulas in numpy."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tfc.testing.stage import (
    COLUMN,
    POS,
    REAL,
    ROW,
    SEGMENT,
    SIZE,
    Array,
    B,
    C,
    H,
    T,
    X,
    close,
    heads,
    join,
    owned,
    rms,
    rope,
    run,
    sigmoid,
    silu,
    softmax,
    staged,
    turned,
    value,
)

pytestmark = pytest.mark.usefixtures("x64")


# ---- attention


def attended(q: Array, k: Array, v: Array, scale: float, mask: Array) -> Array:
    z = np.einsum("bihd,bjhd->bhij", q, k) * scale
    return np.einsum("bhij,bjhd->bihd", softmax(np.where(mask, z, -np.inf)), v)


CAUSAL = POS[None, :] <= POS[:, None]


def test_attention_with_normed_heads() -> None:
    y, p = value("attention(x, heads = 2, mask = causal, position = rope(), qk_norm = rms)")
    q, k, v = (heads(X @ p[f"{n}.weight"]) for n in "qkv")
    q, k = rms(q, 1e-6) * p["q_norm.scale"], rms(k, 1e-6) * p["k_norm.scale"]
    o = attended(turned(q, rope(2)), turned(k, rope(2)), v, 0.5, CAUSAL)
    close(y, join(o) @ p["out.weight"])


def test_cross_attention() -> None:
    y, p = value("attention(x, shorten(x, count = 4), heads = 2)")
    memory = X.reshape(B, 4, 4, C).mean(2)
    q, k, v = heads(X @ p["q.weight"]), heads(memory @ p["k.weight"]), heads(memory @ p["v.weight"])
    close(y, join(attended(q, k, v, 0.5, np.ones((T, 4), bool))) @ p["out.weight"])


@pytest.mark.parametrize("rank", [None, 3])
def test_latent_attention(rank: int | None) -> None:
    settings = "kv_rank = 5, plain_dim = 4, rotated_dim = 2, value_dim = 3, mask = causal"
    y, p = value(f"latent_attention(x, heads = 2, query_rank = {rank or 'none'}, {settings})")
    latent = X @ p["kv_down.weight"]
    kept, shared = latent[..., :5], latent[..., 5:]
    pairs = heads((rms(kept, 1e-6) * p["kv_norm.scale"]) @ p["kv_up.weight"])
    short = X if rank is None else rms(X @ p["q_down.weight"], 1e-6) * p["q_norm.scale"]
    q = heads(short @ p["q.weight"])
    k = np.concatenate([turned(np.repeat(shared[:, :, None], H, 2), rope(1)), pairs[..., :4]], -1)
    q = np.concatenate([turned(q[..., :2], rope(1)), q[..., 2:]], -1)
    close(y, join(attended(q, k, pairs[..., 4:], 6**-0.5, CAUSAL)) @ p["out.weight"])


# ---- weights of attention: masks and weighs


Seen = Callable[[int, int, int], bool]
WINDOWS = [(int(r + 1) // 2, int(c + 1) // 2) for r, c in zip(ROW, COLUMN, strict=True)]
MASKS: dict[str, Seen] = {
    "causal": lambda b, q, k: k <= q,
    "window(3)": lambda b, q, k: -3 < q - k < 3,
    "documents": lambda b, q, k: SEGMENT[b, q] == SEGMENT[b, k],
    "unpadded": lambda b, q, k: REAL[b, k],
    "prefix(4)": lambda b, q, k: k <= q or k < 4,
    "dilated(4)": lambda b, q, k: (q - k) % 4 == 0,
    "blocks(5)": lambda b, q, k: q // 5 == k // 5,
    "previous_block(5)": lambda b, q, k: q // 5 == k // 5 or q // 5 == k // 5 + 1,
    "strided(4)": lambda b, q, k: k <= q and (q - k < 4 or (q - k) % 4 == 0),
    "fixed(4, count = 2)": lambda b, q, k: k <= q and (q // 4 == k // 4 or k % 4 >= 2),
    "globals": lambda b, q, k: q < 2 or k < 2,
    "disc(2)": lambda b, q, k: (ROW[q] - ROW[k]) ** 2 + (COLUMN[q] - COLUMN[k]) ** 2 < 4,
    "squares(2)": lambda b, q, k: (ROW[q] // 2, COLUMN[q] // 2) == (ROW[k] // 2, COLUMN[k] // 2),
    "squares(2, shift = 1)": lambda b, q, k: WINDOWS[q] == WINDOWS[k],
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str) -> None:
    found, _ = value(f"weights(split(x, 2), split(x, 2), mask = {mask})")
    seen = np.array([[[MASKS[mask](b, q, k) for k in range(T)] for q in range(T)] for b in range(B)])
    np.testing.assert_array_equal(found > 0, np.repeat(seen[:, None], H, 1))


def test_a_circle_has_as_many_points_as_it_should() -> None:
    """CLEAR's counts: grid points nearer than r, for r = 1, 2, 3, 4, 8."""
    for radius, count in [(1, 1), (2, 9), (3, 25), (4, 45), (8, 193)]:
        near = [(y, x) for y in range(-9, 10) for x in range(-9, 10) if y * y + x * x < radius * radius]
        assert len(near) == count


def scores() -> Array:
    return np.einsum("bihd,bjhd->bhij", heads(X), heads(X)) * 0.5


WEIGHS: dict[str, Callable[[Array, Array], Array]] = {
    "clipped(-0.03, high = 1.1)": lambda s, slope: np.clip(1.13 * softmax(s) - 0.03, 0, 1),
    "sink(slope)": lambda s, slope: np.exp(s) / (np.exp(s).sum(-1, keepdims=True) + np.exp(slope[:, None, None])),
    "softmax1": lambda s, slope: np.exp(s) / (np.exp(s).sum(-1, keepdims=True) + 1),
    "hstu(128)": lambda s, slope: silu(s) / 128,
    "pointwise_relu(128)": lambda s, slope: np.maximum(s, 0) / 128,
    "pointwise_relu2(8)": lambda s, slope: (np.maximum(s, 0) / 8) ** 2,
    "pointwise_sigmoid(16)": lambda s, slope: sigmoid(s - math.log(16)),
}


@pytest.mark.parametrize("weigh", WEIGHS)
def test_weighs(weigh: str) -> None:
    found, p = value(f"weights(split(x, 2), split(x, 2), weigh = {weigh})")
    close(found, WEIGHS[weigh](scores(), p.get("slope", np.zeros(H))))


# ---- scores


def scored(score: str, real: Any = jnp.float64, before: str = "") -> tuple[Array, dict[str, Array]]:
    """The scores, read as weights that are not normalized; query and key vectors are zero but for what they carry."""
    program = staged(f"weights(split(x, 2), split(x, 2), score = {score}, weigh = s)", before)
    params = owned(program)
    return run(program, params, real), params


LAG = POS[:, None] - POS[None, :]


def test_scores() -> None:
    s = scores()
    close(scored("softcap(2)")[0], 2 * np.tanh(s / 2))
    close(scored("approximate_softcap(2)")[0], 2 * np.tanh(s / 2))
    found, p = scored("tilt(slope)")
    close(found, s - p["slope"][:, None, None] * abs(LAG))
    found, p = scored("relative(near, 4)")
    close(found, s + np.moveaxis(p["near"][np.clip(LAG, -4, 4) + 4], -1, 0))
    found, p = scored("offsets(square, 4)")
    dy, dx = ROW[:, None] - ROW[None, :], COLUMN[:, None] - COLUMN[None, :]
    close(found, s + np.moveaxis(p["square"][(dy + 3) * 7 + dx + 3], -1, 0))
    close(scored("proportional")[0], s + np.log(SIZE)[:, None, None, :])


@pytest.mark.parametrize(
    ("count", "slopes"),
    [
        (2, [1 / 16, 1 / 256]),
        (8, [2.0**-n for n in range(1, 9)]),
        (12, [*(2.0**-n for n in range(1, 9)), 0.70710678, 0.35355339, 0.1767767, 0.08838835]),
        (6, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]),
    ],
)
def test_alibi(count: int, slopes: list[float]) -> None:
    """The paper's slopes, where the heads are no power of two as well."""
    x = f"split(concat({', '.join(['x'] * 3)}), {count})"
    program = staged(f"weights(0 * {x}, {x}, score = alibi({count}), weigh = s)")
    found = run(program)
    close(found, -np.asarray(slopes)[:, None, None] * abs(LAG), atol=1e-7)


BUCKETS = {
    True: {0: 0, -1: 1, 1: 17, -7: 7, -8: 8, 8: 24, -15: 9, -16: 10, 16: 26, -64: 14, -127: 15, 500: 31, -32: 12},
    False: {-15: 15, -16: 16, -20: 17, -32: 21, -64: 26, -127: 31, 5: 0, 0: 0, -1: 1},
}


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("real", [jnp.float32, jnp.float64])
def test_t5_buckets(both: bool, real: Any) -> None:
    """T5's vectors, key minus query; the edges hold in float32, too."""
    lags, buckets = (np.resize(list(row), (B, T)) for row in (BUCKETS[both], BUCKETS[both].values()))
    program = staged(
        f"weights(tag(split(x, 2), pos = before), split(x, 2), score = 1.0 * {written(both)}, weigh = s)",
        "  before[b, t] = t - ids[b, t]\n",
    )
    found = run(program, real=real, ids=lags)
    np.testing.assert_array_equal(np.diagonal(found, axis1=2, axis2=3)[:, 0], buckets)


def written(both: bool) -> str:
    return f"bucket(k - q, 32, 128, {'yes' if both else 'no'})"


def test_t5_bias() -> None:
    found, p = scored("t5(buckets)")
    side = [[16 * (k > q) + min(abs(k - q), 8 + (abs(k - q) > 11)) for k in range(T)] for q in range(T)]
    bias = p["buckets"][np.asarray(side)]  # nearer than 16: two buckets of the logarithmic part
    close(found, scores() + np.moveaxis(bias, -1, 0))


# ---- positions


def angles(position: str, dims: int = 8) -> Array:
    """The angles [T, pairs], read off what rotation does with (1, 0) pairs."""
    ones = f"split(concat({', '.join(['0 * x + 1'] * (dims // 4))}), 2)"
    found = run(staged(f'rotate({ones}, {position}, pairing = "interleaved")'))[0, :, 0]
    # (1, 1) turned by a is (cos a - sin a, cos a + sin a)
    return np.arctan2(found[:, 1::2] - found[:, 0::2], found[:, 0::2] + found[:, 1::2])


def same_angle(found: Array, expected: Array) -> None:
    close(np.cos(found - expected), np.ones_like(expected), atol=1e-9)
    close(np.sin(found - expected), np.zeros_like(expected), atol=1e-9)


def yarn(pairs: int, factor: float, original: float, base: float, fast: float, slow: float) -> Array:
    """The inverse frequencies as the paper's code computes them."""
    dim = 2 * pairs

    def dimension(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), dim - 1)
    ramp = np.clip((np.arange(pairs) - low) / max(high - low, 0.001), 0, 1)
    plain = base ** (-np.arange(pairs) / pairs)
    return plain / factor * ramp + plain * (1 - ramp)


def llama3(pairs: int, factor: float, low: float, high: float, original: float, base: float) -> Array:
    """The inverse frequencies as the released code computes them."""
    out = []
    for freq in base ** (-np.arange(pairs) / pairs):
        wave = 2 * math.pi / freq
        if wave < original / high:
            out.append(freq)
        elif wave > original / low:
            out.append(freq / factor)
        else:
            smooth = (original / wave - low) / (high - low)
            out.append((1 - smooth) * freq / factor + smooth * freq)
    return np.asarray(out)


def test_rotary_angles() -> None:
    t, pairs = POS[:, None], 8
    plain = np.arange(pairs) / pairs
    same_angle(angles("rope()", 16), t * 1e4**-plain)
    same_angle(angles("rope_stretched(4)", 16), t / 4 * 1e4**-plain)
    same_angle(angles("rope_ntk(4)", 16), t * (1e4 * 4 ** (16 / 14)) ** -plain)
    same_angle(angles("rope_yarn(8)", 32), t * yarn(16, 8, 4096, 1e4, 32, 1))
    same_angle(angles("rope_yarn(4, 256, 500, 8, 2)", 32), t * yarn(16, 4, 256, 500, 8, 2))
    same_angle(angles("rope_llama3()", 32), t * llama3(16, 8, 1, 4, 8192, 5e5))
    same_angle(angles("rope_llama3(32, original = 64, base = 100)", 32), t * llama3(16, 32, 1, 4, 64, 100))


def test_the_slowest_pair_of_ntk_is_factor_times_slower() -> None:
    same_angle(angles("rope_ntk(4)", 16)[:, -1], angles("rope_stretched(4)", 16)[:, -1])
    same_angle(angles("rope_ntk(4)", 16)[:, 0], angles("rope()", 16)[:, 0])


def test_rotation_on_a_grid() -> None:
    found = value("rotate(split(tag(concat(x, x), y = row, x = column), 2), rope_2d())")[0]
    inverse = 1e4 ** (-np.arange(2) / 2)
    angle = np.concatenate([ROW[:, None] * inverse, COLUMN[:, None] * inverse], -1)
    close(found, turned(heads(np.concatenate([X, X], -1)), angle))


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    ones = "split(0 * x + 1, 2)"
    for position in ("rope()", "rope_yarn(4)", "rope_llama3()", "rope_ntk(2)"):
        s = run(staged(f"weights({ones}, {ones}, position = {position}, weigh = s)"))[0, 0]
        for lag in range(T):
            along = np.diagonal(s, -lag)
            close(along, along[:1])


def test_added_positions() -> None:
    y, p = value("learned_positions(x, longest = 20)")
    close(y, X + p["weight"][:T])
    channel = np.arange(C)
    angle = POS[:, None] / 1e4 ** (2 * (channel // 2) / C)
    close(value("sinusoidal(x)")[0], X + np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)))
