"""What the library's components compute, by the operations' definitions in float64, against formulas in numpy."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from tfc.backends.reference.program import evaluate
from tfc.front import front
from tfc.grammar.lowering.library import library_items
from tfc.grammar.samples import STAGE
from tfc.ir.program import Program

pytestmark = pytest.mark.usefixtures("x64")

Array = NDArray[Any]
B, T, C, H = 2, 16, 8, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, C))
IDS = RNG.integers(0, 10, size=(B, T))
IMAGE = RNG.normal(size=(B, 8, 8, 3))
SEGMENT, REAL, SIZE = IDS // 5, IDS > 0, IDS + 1
ROW, COLUMN = np.arange(T) // 4, np.arange(T) % 4
POS = np.arange(T)


def staged(written: str, before: str = "") -> Program:
    """The program of an expression on the samples' stage, lengths bound."""
    text = STAGE.replace("  return CALL", f"{before}  return {written}")
    return front(text, passes=()).program.bind({"B": B, "T": T})


def owned(program: Program) -> dict[str, Array]:
    """A value for each parameter, the same for the same path."""
    out = {}
    for stored in program.stored():
        rng = np.random.default_rng(list(stored.path.encode()))
        out[stored.path] = rng.normal(size=stored.type.ints)
    return out


def run(program: Program, params: dict[str, Array] | None = None, real: Any = jnp.float64, **inputs: Array) -> Array:
    given = {"x": X, "ids": IDS, "image": IMAGE, **inputs}
    named = {i.value.name: jnp.asarray(given[i.value.name]) for i in program.inputs}
    arrays = {n: jnp.asarray(a) for n, a in (params if params is not None else owned(program)).items()}
    call = jax.jit(lambda arrays, named: evaluate(program, arrays, named, real)[0], compiler_options=FAST)
    return np.asarray(call(arrays, named))


FAST = {"xla_backend_optimization_level": 0}
"""Compiled once as a whole: a tenth of the time that one operation after another takes."""


def value(written: str, before: str = "", **inputs: Array) -> tuple[Array, dict[str, Array]]:
    """What the expression gives, and the parameters by the last parts of their paths."""
    program = staged(written, before)
    params = owned(program)
    return run(program, params, **inputs), {p.split(".", 1)[-1]: a for p, a in params.items()}


def close(found: Array, expected: Array, atol: float = 1e-11) -> None:
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-9, atol=atol)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads(x: Array, count: int = H) -> Array:
    return x.reshape(*x.shape[:-1], count, -1)


def join(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], -1)


def test_every_item_of_the_library_is_tested() -> None:
    """By a call in this file."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert not [name for name in library_items() if not re.search(rf"\"[^\"]*\b{name}\b", text)]


# ---- linear


def test_projections() -> None:
    y, p = value("linear(x, 5, biased = yes)")
    close(y, X @ p["weight"] + p["bias"])
    y, p = value("lora_linear(x, 6, rank = 2, alpha = 8)")
    close(y, X @ p["base.weight"] + 4 * (X @ p["down.weight"] @ p["up.weight"]))
    y, p = value("adapter(x, hidden = 3, scale = 0.5)")
    hidden = np.maximum(X @ p["down.weight"] + p["down.bias"], 0)
    close(y, 0.5 * (hidden @ p["up.weight"] + p["up.bias"]))
    y, p = value("embed(ids, vocab = 10, width = 3)")
    close(y, p["weight"][IDS])
    y, p = value("unembed(x, words)", "  x = x + words(ids)\n")
    close(y, (X + p["weight"][IDS]) @ p["weight"].T)
    close(value("identity(x)")[0], X)


def test_what_starts_at_zero() -> None:
    """A fresh LoRA, adapter or layer scale changes nothing, or little."""
    for written in ("lora_linear(x, 6)", "adapter(x)"):
        (up,) = [s for s in staged(written).stored() if s.path.endswith("up.weight")]
        assert str(up.init) == "zeros"
    stored = {s.path.split(".", 1)[1]: s for s in staged("lora_linear(x, 6)").stored()}
    assert not stored["base.weight"].trained and stored["down.weight"].trained


# ---- norms


def normed(x: Array, axes: tuple[int, ...], eps: float = 1e-5) -> Array:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def rms(x: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def test_norms() -> None:
    y, p = value("layer_norm(x)")
    close(y, normed(X, (-1,)) * p["scale"] + p["bias"])
    close(value("layer_norm(x, affine = no)")[0], normed(X, (-1,)))
    y, p = value("rms(x)")
    close(y, rms(X, 1e-6) * p["scale"])
    close(value("rms(split(x, 2), affine = no)")[0], rms(heads(X), 1e-6))
    y, p = value("gated_rms(x, 2 * x)")
    close(y, rms(X, 1e-5) * p["norm.scale"] * silu(2 * X))
    y, p = value("gated_rms(x, 2 * x, before = yes)")
    close(y, rms(X * silu(2 * X), 1e-5) * p["norm.scale"])
    unit = X / np.linalg.norm(X, axis=-1, keepdims=True)
    close(value("unit(x)")[0], unit)
    close(value("unit(0 * x)")[0], 0 * X)
    y, p = value("scale_norm(x)")
    close(y, unit * p["length"])
    program = staged("batch_norm(x)")
    params = {path: abs(a) for path, a in owned(program).items()}
    p = {path.split(".", 1)[1]: a for path, a in params.items()}
    close(run(program, params), (X - p["center"]) / np.sqrt(p["variance"] + 1e-5) * p["scale"] + p["bias"])
    y, p = value("group_norm(x, groups = 2)")
    close(y, join(normed(heads(X), (1, 3))) * p["scale"] + p["bias"])
    close(value("instance_norm(x)")[0], normed(X, (1,)))
    y, p = value("layer_scale(x)")
    close(y, X * p["scale"])


# ---- functions of the last axis


def test_softmax() -> None:
    close(value("softmax(x)")[0], softmax(X))
    close(value("log_softmax(x)")[0], np.log(softmax(X)))
    close(value("logsumexp(x)")[0], np.log(np.exp(X).sum(-1, keepdims=True)))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_softmax_is_safe(size: float) -> None:
    x = X * size
    for written in ("softmax(x)", "log_softmax(x)", "logsumexp(x)"):
        found = run(staged(written), x=x, real=jnp.float32)
        assert np.isfinite(found).all(), written
    one_hot = x == x.max(-1, keepdims=True)
    close(run(staged("softmax(x)"), x=x, real=jnp.float32), one_hot.astype(float))


def test_softmax_of_nothing() -> None:
    none = np.full((B, T, C), -np.inf)
    close(run(staged("softmax(x)"), x=none), 0 * X)
    assert (run(staged("logsumexp(x)"), x=none) == -np.inf).all()
    some = none.copy()
    some[..., 3] = 7.0
    close(run(staged("softmax(x)"), x=some), (np.arange(C) == 3).astype(float))


def test_softmax_has_its_gradient() -> None:
    """Also where one element has all the weight."""
    program = staged("softmax(x)")
    weight = jnp.asarray(RNG.normal(size=(B, T, C)))

    def loss(x: Any, f: Callable[[Any], Any]) -> Any:
        return (f(x) * weight).sum()

    def ours(x: Any) -> Any:
        return evaluate(program, {}, {"x": x, "ids": jnp.asarray(IDS), "image": jnp.asarray(IMAGE)}, jnp.float64)[0]

    for scale in (1.0, 100.0):
        x = jnp.asarray(X * scale)
        slope = jax.jit(jax.grad(loss), static_argnums=1, compiler_options=FAST)
        close(np.asarray(slope(x, ours)), np.asarray(slope(x, jax.nn.softmax)))


def test_elementwise() -> None:
    x = X * 3
    close(run(staged("gelu(x)"), x=x), x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))
    close(run(staged("gelu_tanh(x)"), x=x), 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    close(run(staged("silu(x)"), x=x), silu(x))
    close(run(staged("relu(x) + relu2(x)"), x=x), np.maximum(x, 0) + np.maximum(x, 0) ** 2)
    close(run(staged("softplus(x)"), x=x), np.log1p(np.exp(x)))
    close(run(staged("elu(x)"), x=x), np.where(x > 0, x, np.expm1(x)))
    close(run(staged("quick_gelu(x)"), x=x), x * sigmoid(1.702 * x))
    close(run(staged("log_sigmoid(x)"), x=x), np.log(sigmoid(x)))
    assert np.isfinite(run(staged("log_sigmoid(x)"), x=x * 1e4)).all()
    close(run(staged("clip(x, -1, 2)"), x=x), np.clip(x, -1, 2))


# ---- attention


def attended(q: Array, k: Array, v: Array, scale: float, mask: Array) -> Array:
    z = np.einsum("bihd,bjhd->bhij", q, k) * scale
    return np.einsum("bhij,bjhd->bihd", softmax(np.where(mask, z, -np.inf)), v)


CAUSAL = POS[None, :] <= POS[:, None]


def turned(x: Array, angle: Array, pairing: str = "half") -> Array:
    """x [B, T, H, D] by angle [T, D / 2]."""
    pairs = x.shape[-1] // 2
    a, b = (x[..., :pairs], x[..., pairs:]) if pairing == "half" else (x[..., 0::2], x[..., 1::2])
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = a * cos - b * sin, b * cos + a * sin
    if pairing == "half":
        return np.concatenate([first, second], -1)
    return np.stack([first, second], -1).reshape(x.shape)


def rope(pairs: int, base: float = 1e4) -> Array:
    return POS[:, None] * base ** (-np.arange(pairs) / pairs)


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


# ---- features, decays, recurrences


def recurred(q: Array, k: Array, v: Array, decay: Array | None = None, segment: Array | None = None) -> Array:
    """q, k [B, T, H, K], v [B, T, H, V], decay the logarithm, of any shape that broadcasts to q's."""
    state = np.zeros((*q.shape[:1], q.shape[2], q.shape[3], v.shape[3]))
    g = np.zeros(q.shape) if decay is None else np.broadcast_to(decay, q.shape)
    out = []
    for t in range(q.shape[1]):
        if segment is not None and t:
            state = np.where((segment[:, t] == segment[:, t - 1])[:, None, None, None], state, 0)
        state = state * np.exp(g[:, t])[..., None] + k[:, t, :, :, None] * v[:, t, :, None]
        out.append(np.einsum("bhk,bhkv->bhv", q[:, t], state))
    return np.stack(out, 1)


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
    w = RNG.normal(size=(200_000, 4))
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
    a = a * (CAUSAL if direction == "causal" else 1)
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
    o = rms(o, 1e-5) * p["norm.norm.scale"] * silu(heads(X @ p["gate.weight"]))
    close(y, join(o) @ p["out.weight"])


def test_mamba2() -> None:
    y, p = value("mamba2(x, head_dim = 4, state = 3, groups = 2, segment = x.segment)")
    inner, n = 16, 3
    wide = X @ p["in.weight"]
    mixed = silu(convolved(wide, p["conv.weight"], SEGMENT) + p["conv.bias"])
    v = heads(mixed[..., :inner], 4)
    writes, reads = heads(mixed[..., inner : inner + 2 * n]), heads(mixed[..., inner + 2 * n :])
    dt = np.log1p(np.exp(X @ p["step_in.weight"] + p["step"]))
    k, q = np.repeat(writes, 2, 2) * dt[..., None], np.repeat(reads, 2, 2)
    o = recurred(q, k, v, (-np.exp(p["rate"]) * dt)[..., None], SEGMENT) + p["skip"][:, None] * v
    o = rms(join(o) * silu(X @ p["gate.weight"]), 1e-5) * p["norm.norm.scale"]
    close(y, o @ p["out.weight"])


def test_mamba2_starts_within_its_ranges() -> None:
    """Rates of 1 to 16, steps of 0.001 to 0.1 after softplus, as the paper starts them."""
    stored = {s.path.split(".", 1)[1]: s for s in staged("mamba2(x, head_dim = 4)").stored()}
    rate, step = np.exp(stored["rate"].init.table), np.log1p(np.exp(stored["step"].init.table))
    close(np.asarray([rate[0], rate[-1], step[0], step[-1]]), np.asarray([1, 16, 1e-3, 0.1]))


# ---- convolutions


def convolved(x: Array, weight: Array, segment: Array | None = None) -> Array:
    """Causal, a channel each; weight [kernel, C], its first row the token's own."""
    out = np.zeros_like(x)
    for t in range(x.shape[1]):
        for i in range(min(len(weight), t + 1)):
            same = 1.0 if segment is None else (segment[:, t] == segment[:, t - i])[:, None]
            out[:, t] += same * weight[i] * x[:, t - i]
    return out


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
    for written, grid in (("1d(x", X), ("2d(x, columns = 4", X.reshape(B, 4, 4, C))):
        spatial = grid.ndim - 2
        around = [(0, 0), *[(pad, pad)] * spatial, (0, 0)]
        window, strides = (1, *[kernel] * spatial, 1), (1, *[stride] * spatial, 1)

        def reduced(x: Array, fn: Any, start: float, window: Any = window, strides: Any = strides) -> Array:
            return np.asarray(jax.lax.reduce_window(jnp.asarray(x), start, fn, window, strides, "valid"))

        most = reduced(np.pad(grid, around, constant_values=-np.inf), jax.lax.max, -np.inf)
        total = reduced(np.pad(grid, around), jax.lax.add, 0.0)
        count = reduced(np.pad(np.ones_like(grid), around), jax.lax.add, 0.0)
        close(value(f"max_pool{written}, {given})")[0], most.reshape(B, -1, C))
        close(value(f"avg_pool{written}, {given})")[0], (total / count).reshape(B, -1, C))


def test_patches() -> None:
    cells = IMAGE.reshape(B, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, 16, 12)
    close(value("patches(image, side = 2)")[0], cells)
    found, _ = value("weights(split(patches(image, side = 2), 2), split(patches(image, side = 2), 2), mask = disc(2))")
    np.testing.assert_array_equal(found[0, 0] > 0, [[MASKS["disc(2)"](0, q, k) for k in range(T)] for q in range(T)])
    merged = X.reshape(B, 2, 2, 2, 2, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, 4, 4 * C)
    close(value("unfold2d(x, columns = 4)")[0], merged)


# ---- tokens


def test_tokens() -> None:
    close(value("shift(x, by = 2)")[0], np.concatenate([0 * X[:, :2], X[:, :-2]], 1))
    close(value("mean_pool(x)")[0], X.mean(1))
    close(value("mean_real(x)")[0], (X * REAL[..., None]).sum(1) / REAL.sum(1)[:, None])
    close(value("mean_real(x)", ids=0 * IDS)[0], np.zeros((B, C)))
    y, p = value("class_token(x)")
    close(y, np.concatenate([np.broadcast_to(p["token"], (B, 1, C)), X], 1))
    y, p = value("registers(x, count = 3)")
    close(y, np.concatenate([X, np.broadcast_to(p["tokens"], (B, 3, C))], 1))
    means = X.reshape(B, 4, 4, C).mean(2)
    close(value("shorten(x, count = 4)")[0], means)
    close(value("stretch(shorten(x, count = 4), count = 4)")[0], np.repeat(means, 4, 1))
    close(value("cumsum(x)")[0], np.cumsum(X, 1))


@pytest.mark.parametrize("capacity", [3, 16])
def test_keep(capacity: int) -> None:
    """In order, as many as there is room for; the places left over are marked."""
    wanted = IDS > 4
    y, _ = value(f"keep(x, ids_wanted, {capacity})", "  ids_wanted[b, t] = ids[b, t] > 4\n")
    real, _ = value(f"real_of(keep(x, ids_wanted, {capacity}))", READ)
    for b in range(B):
        where = np.flatnonzero(wanted[b])[:capacity]
        close(y[b, : len(where)], X[b, where])
        np.testing.assert_array_equal(real[b], np.arange(capacity) < len(where))


READ = """\
  block real_of(x) {
    y[b, t] = x.real[b, t]
    return y
  }
  ids_wanted[b, t] = ids[b, t] > 4
"""


# ---- experts


def feed(x: Array, p: dict[str, Array], e: int) -> Array:
    u = x @ p["expert.up.weight"][e]
    gelu = u * 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))
    return gelu @ p["expert.down.weight"][e]


@pytest.mark.parametrize("over", ["chosen", "all"])
def test_experts(over: str) -> None:
    y, p = value(f'experts(x, 4, chosen = 2, expert = ffn {{ hidden = 16 }}, over = "{over}")')
    logits = X @ p["router.weight"]
    expected = np.zeros_like(X)
    for b in range(B):
        for t in range(T):
            best = np.argsort(-logits[b, t], kind="stable")[:2]
            every = softmax(logits[b, t])
            weight = softmax(logits[b, t, best]) if over == "chosen" else every[best]
            expected[b, t] = sum(w * feed(X[b, t], p, e) for w, e in zip(weight, best, strict=True))
    close(y, expected)


def test_balance() -> None:
    """1 for even shares; count times share times probability, summed."""
    found, _ = value("balance(softmax(x), top(x, 2))")
    p, best = softmax(X), np.argsort(-X, -1, kind="stable")[..., :2]
    share = np.asarray([(best == e).mean() for e in range(C)])
    close(found, np.asarray([C * (share * p.mean((0, 1))).sum()]))
    close(value("balance(softmax(0 * x), top(x, 2))")[0], np.ones(1))
    close(value("z_loss(x)")[0], np.asarray([(np.log(np.exp(X).sum(-1)) ** 2).mean()]))


def test_capacity() -> None:
    """Earlier tokens first, of one token the first choice first."""
    found, _ = value("within_capacity(top(x, 2), count = 8, capacity = 3)")
    best = np.argsort(-X, -1, kind="stable")[..., :2]
    for b in range(B):
        taken = [0] * C
        for t in range(T):
            for n in range(2):
                e = int(best[b, t, n])
                assert found[b, t, n] == (e if taken[e] < 3 else -1)
                taken[e] += 1


# ---- quantization


def test_quantizers() -> None:
    close(value("signs(x)")[0], np.where(X >= 0, 1, -1))
    close(value("rounded_through(4 * x)")[0], np.round(4 * X))
    program = staged("stepped(x, low = -2, high = 1)")
    step = {"stepped.step": np.asarray(0.3)}
    close(run(program, step), 0.3 * np.round(np.clip(X / 0.3, -2, 1)))
    y, p = value("codebook(x, entries = 6, chosen = 2)")
    away = ((X[..., None, :] - p["codes"]) ** 2).sum(-1)
    close(y, p["codes"][np.argsort(away, -1, kind="stable")[..., :2]].mean(-2))


def test_gradients_of_quantizers() -> None:
    def grad(written: str, params: dict[str, Any], of: str | None = None) -> Array:
        program = staged(written)

        def loss(given: Any) -> Any:
            arrays = params if of is None else {**params, of: given}
            x = jnp.asarray(X) if of else given
            named = {"x": x, "ids": jnp.asarray(IDS), "image": jnp.asarray(IMAGE)}
            return evaluate(program, arrays, named, jnp.float64)[0].sum()

        slope = jax.jit(jax.grad(loss), compiler_options=FAST)
        return np.asarray(slope(jnp.asarray(X) if of is None else params[of]))

    close(grad("signs(x)", {}), (abs(X) < 1).astype(float))
    close(grad("rounded_through(x)", {}), np.ones_like(X))
    step = {"stepped.step": jnp.asarray(0.3)}
    inside = (X / 0.3 > -2) & (X / 0.3 < 1)
    close(grad("stepped(x, low = -2, high = 1)", step), inside.astype(float))
    by_step = np.where(inside, np.round(X / 0.3) - X / 0.3, np.clip(X / 0.3, -2, 1))
    close(grad("stepped(x, low = -2, high = 1)", step, "stepped.step"), by_step.sum())
    codes = {"codebook.codes": jnp.asarray(RNG.normal(size=(6, C)))}
    close(grad("codebook(x, entries = 6)", codes), np.ones_like(X))
