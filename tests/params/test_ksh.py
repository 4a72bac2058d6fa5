"""Kernel-supervised hashing: its objective never rises, its residual is exact, it hears of no padding, and it helps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfc.diagnostics import TfcError
from tfc.params.fit import FITS
from tfc.params.fit.ksh import Attended, alike, fit_bits, ksh, nearness, random_hash

SETTINGS = {"bits": 4, "anchors": 5, "seed": 0, "steps": 20, "pairs": 3, "unlike": 0, "rate": 0.05, "frozen": True}
S, N, H, D = 3, 9, 2, 4
LENGTHS = np.array([9, 6, 4])


def drawn(seed: int, heads: int = H, turns: tuple[int, ...] = ()) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*turns, S, N, heads, D)).astype(np.float32)


def texts(seed: int = 0, shared: bool = False, heads: int = H, turns: tuple[int, ...] = ()) -> Attended:
    q = drawn(seed, heads, turns)
    real = np.arange(N) < LENGTHS[:, None]
    return Attended(q, q if shared else drawn(seed + 1, H, turns), real, real)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def centered(data: Attended, anchor: np.ndarray, center: np.ndarray, spread: np.ndarray) -> list[np.ndarray]:
    """Nearness of queries and of keys less the center, zero beyond a text's end."""
    out = []
    for x, there in ((data.queries, data.real), (data.keys, data.seen)):
        away = ((unit(x)[:, :, :, None] - anchor) ** 2).sum(-1)
        out.append((np.exp(-away / (2 * spread[:, None])) - center) * there[:, :, None, None])
    return out


def parts(seed: int, shared: bool = False) -> tuple[list[jax.Array], jax.Array, jax.Array, Attended]:
    data = texts(seed, shared)
    anchor, vote, center, spread = map(np.asarray, random_hash([], SETTINGS, data))
    near = [jnp.asarray(x) for x in centered(data, anchor, center, spread)]
    y = alike(jnp.asarray(unit(data.queries)), jnp.asarray(unit(data.keys)), data.real, data.seen, SETTINGS["pairs"])
    return near, y, jnp.asarray(vote), data


def codes(near: Any, vote: Any, there: np.ndarray) -> np.ndarray:
    """[S, N, H, bits]"""
    return np.where(np.einsum("snha,hra->snhr", near, vote) >= 0, 1, -1) * there[:, :, None, None]


@settings(max_examples=3)
@given(seed=st.integers(0, 99), shared=st.booleans())
def test_the_objective_never_rises_and_the_residual_is_exact(seed: int, shared: bool) -> None:
    (near, by), y, vote, data = parts(seed, shared)
    made = fit_bits(near, by, y, vote, data.real, data.seen, 20, 0.5)
    assert (made.after <= made.before).all() and (made.after < made.before).any()
    t, s = codes(near, made.vote, data.real), codes(by, made.vote, data.seen)
    np.testing.assert_array_equal(made.residual, 4 * y - np.einsum("snhr,smhr->shnm", t, s))
    # what the objective of each bit says is what is left
    left = 4 * np.asarray(y)
    for bit in range(4):
        each = np.einsum("snh,shnm,smh->sh", t[..., bit], left, s[..., bit]) / (LENGTHS[:, None] * 4)
        np.testing.assert_allclose(made.after[bit], -each.mean(), rtol=1e-5, atol=1e-6)
        left = left - np.einsum("snh,smh->shnm", t[..., bit], s[..., bit])


def test_a_step_is_that_of_nesterovs_descent() -> None:
    """Of one step the change is rate (1 + 0.9) times the slope, by differences of the objective in float64."""
    (near, by), y, vote, data = parts(3)
    made = fit_bits(near, by, y, vote[:, :1], data.real, data.seen, 1, 20.0)
    assert made.after[0] < made.before[0]  # a step that is kept

    def soft(a: np.ndarray) -> float:
        t, s = (np.tanh(np.einsum("snha,ha->snh", np.asarray(x, np.float64), a) / 2) for x in (near, by))
        return -(np.einsum("snh,shnm,smh->sh", t, np.asarray(y), s) / LENGTHS[:, None]).mean()

    start = np.asarray(vote[:, 0], np.float64)
    slope = np.zeros_like(start)
    for at in np.ndindex(*start.shape):
        step = np.zeros_like(start)
        step[at] = 1e-5
        slope[at] = (soft(start + step) - soft(start - step)) / 2e-5
    np.testing.assert_allclose(np.asarray(made.vote[:, 0]) - start, -20 * 1.9 * slope, atol=2e-4)


def test_what_is_alike() -> None:
    """Exactly 2 l of a row are not 0, the largest 1 and the least -1; short texts are split in two; padding is 0."""
    data = texts(5)
    u, w = (jnp.asarray(unit(x)) for x in (data.queries, data.keys))
    for pairs, unlike in ((2, 0), (3, 0), (1, 2), (1, 99)):
        y = np.asarray(alike(u, w, data.real, data.seen, pairs, unlike))
        close = np.einsum("snhd,smhd->shnm", u, w)
        for text, n in enumerate(LENGTHS):
            few = min(pairs, n // 2)
            many = min(unlike, n - few) if unlike else few
            own = y[text, :, :n, :n]
            assert ((own == 1).sum(-1) == few).all() and ((own == -1).sum(-1) == many).all()
            ranks = np.sort(close[text, :, :n, :n], axis=-1)
            assert (close[text, :, :n, :n][own == 1] >= np.repeat(ranks[..., -few], few)).all()
            assert (close[text, :, :n, :n][own == -1] <= np.repeat(ranks[..., many - 1], many)).all()
            assert not y[text, :, n:].any() and not y[text, :, :, n:].any()


def test_the_rest_is_taken_from_the_texts() -> None:
    data = texts(7)
    anchor, _, center, spread = map(np.asarray, ksh([], SETTINGS, data))
    pool = np.concatenate([unit(x)[there] for x, there in ((data.queries, data.real), (data.keys, data.seen))])
    for a in range(5):  # the same token in every head
        assert (np.abs(pool - anchor[:, a]).max((1, 2)) < 1e-6).sum() == 1
    far = ((unit(data.keys)[:, :, :, None] - anchor) ** 2).sum(-1).mean(-1)
    each = (far * data.seen[:, :, None]).sum(1) / LENGTHS[:, None]
    np.testing.assert_allclose(spread, each.mean(0), rtol=1e-5)
    near, by = centered(data, anchor, np.zeros_like(center), spread)
    mean = [(x.sum(1) / LENGTHS[:, None, None]).mean(0) for x in (near, by)]
    np.testing.assert_allclose(center, (mean[0] + mean[1]) / 2, rtol=1e-5)
    away = jnp.asarray(far[..., None])
    np.testing.assert_allclose(nearness(away, each), np.exp(-far / (2 * each[:, None]))[..., None], rtol=1e-5)


def test_deterministic_by_seed_and_turns_differ() -> None:
    data = texts(0, turns=(2,))
    data = Attended(np.stack([data.queries[0]] * 2), np.stack([data.keys[0]] * 2), data.real, data.seen)
    one, two = ksh([], SETTINGS, data), ksh([], SETTINGS, data)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape[0] == 2 and not np.array_equal(a[0], a[1])
    other = ksh([], {**SETTINGS, "seed": 1}, data)
    assert not np.array_equal(other[0], one[0]) and not np.array_equal(other[1], one[1])
    first = ksh([], SETTINGS, Attended(data.queries[0], data.keys[0], data.real, data.seen))
    for a, b in zip(first, one, strict=True):
        np.testing.assert_allclose(a, b[0], atol=1e-6)


def test_random_functions_are_those_that_fitting_starts_from() -> None:
    data = texts(0)
    fitted, start = ksh([], SETTINGS, data), random_hash([], SETTINGS, data)
    still = ksh([], {**SETTINGS, "steps": 0}, data)
    for n, name in enumerate(("anchor", "vote", "center", "spread")):
        np.testing.assert_array_equal(start[n], still[n])
        assert np.array_equal(fitted[n], start[n]) == (name != "vote")
    assert FITS["ksh"] is ksh and FITS["random_hash"] is random_hash


def test_padding_is_not_heard() -> None:
    data = texts(2)
    other = Attended(data.queries.copy(), data.keys.copy(), data.real, data.seen)
    for x in (other.queries, other.keys):
        x[~data.real] = 7.5
    for a, b in zip(ksh([], SETTINGS, data), ksh([], SETTINGS, other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_queries_of_one_key_head_are_queries_of_that_head() -> None:
    """Four query heads over two: the same as the two of each key head as tokens of their own."""
    data = texts(4, heads=4)
    laid = data.queries.reshape(S, N, 2, 2, D).swapaxes(2, 3).reshape(S, 2 * N, 2, D)
    plain = Attended(laid, data.keys, np.repeat(data.real, 2, 1), data.seen)
    for a, b in zip(ksh([], SETTINGS, data), ksh([], SETTINGS, plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_too_few_tokens_for_the_anchors() -> None:
    data = texts(0, shared=True)
    ksh([], {**SETTINGS, "anchors": 19, "steps": 1}, data)
    with pytest.raises(TfcError, match=r"19 tokens, and 20 of them are to be anchors") as caught:
        ksh([], {**SETTINGS, "anchors": 20}, data)
    assert caught.value.diagnostics[0].code == "E631"


def test_codes_that_were_fitted_tell_clusters_apart() -> None:
    """Tokens of three kinds: products of codes are nearer to bits * Y after fitting than before."""
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(3, 1, 8))
    x = (kinds[rng.integers(0, 3, (4, 18))] + 0.3 * rng.normal(size=(4, 18, 1, 8))).astype(np.float32)
    there = np.ones((4, 18), bool)
    data = Attended(x, x, there, there)
    chosen = {**SETTINGS, "bits": 8, "anchors": 10, "pairs": 4, "steps": 100, "rate": 0.5}
    y = np.asarray(alike(jnp.asarray(unit(x)), jnp.asarray(unit(x)), there, there, 4))
    far = []
    for fit in (random_hash, ksh):
        anchor, vote, center, spread = map(np.asarray, fit([], chosen, data))
        t = codes(centered(data, anchor, center, spread)[0], vote, there)
        far.append(np.linalg.norm(8 * y - np.einsum("snhr,smhr->shnm", t, t)))
    assert far[1] < 0.95 * far[0]
