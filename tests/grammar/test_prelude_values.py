"""What the library's components compute in float64, by the operations' definitions, against formulas in numpy."""

import math
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.reference.program import evaluate
from tfc.grammar.lowering.library import library_items
from tfc.testing.stage import (
    FAST,
    IDS,
    IMAGE,
    REAL,
    Array,
    B,
    C,
    T,
    X,
    close,
    heads,
    join,
    owned,
    rms,
    run,
    sigmoid,
    silu,
    softmax,
    staged,
    value,
)

pytestmark = pytest.mark.usefixtures("x64")

PARTS = {
    "places1d": "conv1d", "places2d": "conv2d", "yarn_ramp": "rope_yarn", "interpolated": "rope_yarn",
    "sinusoid": "sinusoidal", "alibi_slope": "alibi", "avg_pool": "avg_pool1d", "max_pool": "max_pool1d",
}  # fmt: skip
"""Items that are tested as part of another."""


def test_every_item_of_the_library_is_tested() -> None:
    """By a call in one of these files or among the tests of dropout, or as part of an item that is."""
    tests = Path(__file__).parents[1]
    files_ = (*tests.glob("grammar/test_prelude_*.py"), tests / "test_dropout.py")
    called = "".join(p.read_text(encoding="utf-8") for p in files_)
    for name, (file, start, end) in library_items().items():
        if name in PARTS:
            _, start, end = library_items()[PARTS[name]]
            text = (files("tfc.grammar") / "prelude" / file).read_text(encoding="utf-8")[start:end]
            assert re.search(rf"\b{name}\(", text), name
        else:
            assert re.search(rf"[\"'][^\"'\n]*\b{name}\b", called), name


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


def test_norms() -> None:
    y, p = value("layer_norm(x)")
    close(y, normed(X, (-1,)) * p["scale"] + p["bias"])
    close(value("layer_norm(x, affine = no)")[0], normed(X, (-1,)))
    y, p = value("rms(x)")
    close(y, rms(X, 1e-6) * p["scale"])
    close(value("rms(split(x, 2), affine = no)")[0], rms(heads(X), 1e-6))
    y, p = value("gated_rms(x, 2 * x)")
    close(y, rms(X, 1e-5) * p["scale"] * silu(2 * X))
    y, p = value("gated_rms(x, 2 * x, before = yes)")
    close(y, rms(X * silu(2 * X), 1e-5) * p["scale"])
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


@pytest.mark.parametrize("count", [2, 4, 7.5])
def test_statistical_top(count: float) -> None:
    threshold = X.mean(-1, keepdims=True) + X.std(-1, ddof=1, keepdims=True) * NormalDist().inv_cdf(1 - count / C)
    close(value(f"statistical_top(x, count = {count})")[0], np.maximum(X - threshold, 0))


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
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, C)))

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


def test_merged() -> None:
    """Sizes are ids + 1, slots ids // 2: a slot without tokens is zero; with other weights, the sizes stay below."""
    slots, sizes = IDS // 2, IDS + 1
    taken = (slots[:, None] == np.arange(6)[:, None]) * sizes[:, None]
    total = taken.sum(-1, keepdims=True)
    body = "  slot[b, t] = ids[b, t] // 2\n  one[b, t] = 1.0 + ids[b, t] * 0\n"
    y, _ = value("merged(x, slot, 6)", body)
    close(y, taken @ X / np.maximum(total, 1))
    assert (total[:, 5] == 0).all() and (y[:, 5] == 0).all()
    y, _ = value("merged(x, slot, 6, one)", body)
    close(y, (taken > 0) @ X / np.maximum(total, 1))
    close(value("sizes_of(merged(x, slot, 6))", body + READ_SIZE)[0], total[..., 0])


READ_SIZE = """\
  block sizes_of(x) {
    y[b, t] = x.size[b, t]
    return y
  }
"""


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
    codes = {"codebook.codes": jnp.asarray(np.random.default_rng(1).normal(size=(6, C)))}
    close(grad("codebook(x, entries = 6)", codes), np.ones_like(X))
