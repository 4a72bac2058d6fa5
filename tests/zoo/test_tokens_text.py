"""What the papers behind the text systems of examples/zoo/tokens promise, at small sizes, in float64."""

from pathlib import Path

import numpy as np
import pytest

from tfc.testing.family import Family, close, replaced

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = Family(Path(__file__).parents[2] / "examples" / "zoo" / "tokens")
small = FAMILY.small
T = 12
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 64, (2, T)).astype(np.int32)
BYTES = RNG.integers(1, 256, (2, 16)).astype(np.int32)


def moved(model, name, at, **inputs):
    """How much each token of the result moves when the input `name` changes at token `at`: [T]"""
    x = inputs[name].copy()
    x[:, at] = (x[:, at] + 1) % 64
    change = np.abs(model(**inputs) - model(**{**inputs, name: x}))
    return change.max(axis=(0, *range(2, change.ndim)))


@pytest.mark.parametrize("name, at, input", [
    ("first", 6, "tokens"), ("early_exit", 6, "tokens"), ("hourglass", 6, "tokens"), ("hnet", 9, "bytes"),
])  # fmt: skip
def test_causal(name, at, input):
    change = moved(small(name), input, at, **{input: BYTES if input == "bytes" else TOKENS})
    assert (change[:at] == 0).all() and change[at:].max() > 0


def test_first_open_routers_are_the_model_and_shut_ones_skip():
    model = small("first")
    plain = small("first", replaced(("share * y + (1 - share) * x", "y")))
    open_ = model.with_params(router_weight=0.0, router_bias=1e3)
    close(model(params=open_, tokens=TOKENS), plain(params=open_, tokens=TOKENS))
    shut = model.with_params(router_weight=0.0, router_bias=-1e3)
    other = {p: 3 * x if ".look." in p or ".feed." in p else x for p, x in shut.items()}
    close(model(params=shut, tokens=TOKENS), model(params=other, tokens=TOKENS))
    close(model.report("use", params=shut, tokens=TOKENS), 0)


def test_first_hard_takes_the_sides_of_one_half():
    hard, soft = small("first", mode="hard"), small("first")
    sure = hard.with_params(router_weight=0.0, router_bias=1e3)
    close(hard(params=sure, tokens=TOKENS), soft(params=sure, tokens=TOKENS))


def test_early_exit_threshold():
    never, plain = small("early_exit", threshold=1.1), small("early_exit", replaced(("if(stay, y, x)", "y")))
    close(never(tokens=TOKENS), plain(tokens=TOKENS))
    soon = small("early_exit", threshold=0.0)
    one = small("early_exit", threshold=1.1, layers=1)
    first = {p: soon.params[p][:1] if p.startswith("layer.") else x for p, x in one.params.items()}
    close(soon(tokens=TOKENS), one(params=first, tokens=TOKENS))


def test_hourglass_leaks_without_its_shift():
    model = small("hourglass", replaced(("shorten(shift(x, factor - 1), factor)", "shorten(x, factor)")))
    assert moved(model, "tokens", 7, tokens=TOKENS)[6] > 0


def test_hourglass_factor_one_keeps_the_length():
    model = small("hourglass", factor=1)
    assert model(tokens=TOKENS).shape == (2, T, 64)
    assert (moved(model, "tokens", 6, tokens=TOKENS)[:6] == 0).all()


def test_hnet_equal_bytes_are_one_chunk():
    # the routing maps begin as random ones here: made equal, equal neighbours have distance 0
    model = small("hnet", outer=0)
    eye = np.eye(32)
    params = {
        p: eye if p.endswith(("boundaries.q.weight", "boundaries.k.weight")) else x for p, x in model.params.items()
    }
    same = np.full((2, 16), 7, np.int32)
    close(model.report("chunks", params=params, bytes=same).max(), 1 / 16)


def test_hnet_counts_its_chunks():
    model = small("hnet")
    share = model.report("chunks", bytes=BYTES)
    assert (share >= 1 / 16).all() and (share <= 1).all()


def test_hat_words_see_earlier_words_only():
    model = small("hat")
    bytes_ = RNG.integers(1, 256, (2, 4, 5)).astype(np.int32)
    changed = bytes_.copy()
    changed[:, 2] = changed[:, 2, ::-1] % 255 + 1
    change = np.abs(model(bytes=bytes_) - model(bytes=changed)).max(axis=(0, 2))
    assert (change[: 2 * 5] == 0).all() and change[2 * 5 :].max() > 0


def test_hat_a_word_is_read_from_both_sides_by_the_next():
    model = small("hat")
    bytes_ = RNG.integers(1, 256, (2, 4, 5)).astype(np.int32)
    changed = bytes_.copy()
    changed[:, 1, 4] = changed[:, 1, 4] % 255 + 1  # the last byte of a word reaches the word's vector
    change = np.abs(model(bytes=bytes_) - model(bytes=changed)).max(axis=(0, 2))
    assert change[2 * 5] > 0


FRAMES = RNG.normal(size=(2, 14, 10))


def test_cif_weights_are_shared_out():
    model = small("cif")
    # all weights equal to 1: token n is frame n
    params = model.with_params(fire_weight_weight=0.0, fire_weight_bias=1e3)
    close(model.report("quantity", params=params, frames=FRAMES), 14)
    half = model.with_params(fire_weight_weight=0.0, fire_weight_bias=0.0)
    close(model.report("quantity", params=half, frames=FRAMES), 7)


def test_cif_interval_form_equals_integrate_and_fire():
    alpha, h = RNG.random(20), RNG.normal(size=(20, 3))
    until = alpha.cumsum()
    n = int(until[-1])
    part = np.maximum(
        0, np.minimum(until, np.arange(1, n + 1)[:, None]) - np.maximum(until - alpha, np.arange(n)[:, None])
    )
    tokens, held, left = [], np.zeros(3), 1.0
    for a, x in zip(alpha, h, strict=True):
        if a < left:
            held, left = held + a * x, left - a
        else:
            tokens.append(held + left * x)
            held, left = (a - left) * x, 1 - (a - left)
    close(part @ h, np.array(tokens[:n]))
    close(part.sum(axis=1), 1)


def test_ftp_a_position_reads_its_own_future_only():
    model = small("ftp")
    tokens = RNG.integers(0, 64, (2, 6)).astype(np.int32)
    y = model(tokens=tokens)
    assert y.shape == (2, 6, 2, 64)
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 64
    change = np.abs(y - model(tokens=changed)).max(axis=(0, 3))
    assert (change[:4] == 0).all() and (change[4, 0] == 0) and change[5].max() > 0


def test_prefix_families():
    prompt = np.array([0, 0], np.int32)
    model, causal = small("prefix_lm"), small("prefix_lm", family="causal")
    close(model(tokens=TOKENS, prompt=prompt), causal(tokens=TOKENS, prompt=prompt))
    every = small("prefix_lm", family="both ways")
    whole = np.array([T, T], np.int32)
    close(model(tokens=TOKENS, prompt=whole), every(tokens=TOKENS, prompt=whole))
    part = np.array([4, 4], np.int32)
    change = moved(model, "tokens", 8, tokens=TOKENS, prompt=part)
    assert (change[:8] == 0).all() and change[8] > 0
    change = moved(model, "tokens", 3, tokens=TOKENS, prompt=part)
    assert change[0] > 0
