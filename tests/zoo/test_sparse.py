"""What the papers behind examples/zoo/sparse promise, at small sizes, by the definitions in float64."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tfc.testing.family import Family, close, differ
from tfc.testing.small import Small

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = Family(Path(__file__).parents[2] / "examples" / "zoo" / "sparse")
small = FAMILY.small
RNG = np.random.default_rng(0)


def tokens(length):
    return RNG.integers(0, 64, (2, length)).astype(np.int32)


def reached(model, length, among=None, **inputs):
    """Which tokens of the result move when a token changes, for each of `among`: bool [T, T'], row by changed token."""
    x = inputs.pop("tokens", None)
    x = tokens(length) if x is None else x
    y = model(tokens=x, **inputs)
    rows = []
    for at in range(length) if among is None else among:
        other = x.copy()
        other[:, at] = (other[:, at] + 1) % 64
        rows.append(np.abs(model(tokens=other, **inputs) - y).max(axis=(0, 2)) > 0)
    return np.array(rows)


def pairs(length, visible):
    """visible(q, k) as bool [K, Q]: which tokens a token reaches in one layer, itself among them (the residual)."""
    return np.array([[q == k or visible(q, k) for q in range(length)] for k in range(length)])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A block of a spec on its own, its `let`s as the head of the spec has them."""
    folder = tmp_path_factory.mktemp("specs")

    def make(name, blocks, inputs, call, **lets):
        text = (FAMILY.folder / f"{name}.tfm").read_text(encoding="utf-8")
        body = text[: text.rindex("\nmodel ")].rstrip()
        body = body[: body.rindex("}") + 1]  # the documentation of the model
        path = folder / f"{name}_{blocks}.tfm"
        path.write_text(f"{body}\n\nmodel m({inputs}) {{ return {call} }}\n", encoding="utf-8")
        return Small(path, **lets)

    return make


# ---- static masks: exactly the pairs of the paper


def test_longformer_sees_its_window_and_what_is_global():
    model = small("longformer", layers=1)
    flags = np.zeros((2, 12), bool)
    flags[:, 4] = True
    seen = reached(model, 12, **{"global": flags})
    assert (seen == pairs(12, lambda q, k: abs(q - k) <= 3 or q == 4 or k == 4)).all()
    flags[:] = False
    dilated = reached(small("longformer", layers=1, step=2, reach=2), 12, **{"global": flags})
    assert (dilated == pairs(12, lambda q, k: abs(q - k) <= 4 and (q - k) % 2 == 0)).all()


def test_longformer_all_global_is_full_attention():
    model, x = small("longformer", layers=1, reach=12), tokens(12)
    every, nothing = np.ones((2, 12), bool), np.zeros((2, 12), bool)
    tied = {p: model.params[p.replace("whole", "local")] for p in model.params}
    close(model(params=tied, tokens=x, **{"global": every}), model(params=tied, tokens=x, **{"global": nothing}))
    close(model(tokens=x, **{"global": nothing}), model(params=tied, tokens=x, **{"global": nothing}))


def test_bigbird_sees_neighbours_ends_and_its_draw():
    model = small("bigbird", layers=1)
    draw = model.params["layer.sparse.drawn.draw"][0]
    blocks = 8
    i, j = np.ogrid[:blocks, :blocks]
    seen = np.isin(i, (0, blocks - 1)) | np.isin(j, (0, blocks - 1)) | (abs(i - j) <= 1)
    for i in range(blocks):
        free = [j for j in range(1, blocks - 1) if abs(i - j) > 1]
        for j in sorted(free, key=lambda j: -draw[i, j])[:2]:
            seen[i, j] = True
    among = range(1, 32, 4)
    found = reached(model, 32, among)
    assert (found == [[seen[q // 4, k // 4] for q in range(32)] for k in among]).all()


def test_bigbird_with_all_blocks_is_full_attention():
    full = small("bigbird", lambda t: t.replace("around(blocks - 1) or ", "yes or "), layers=1)
    x = tokens(32)
    close(small("bigbird", layers=1, random=8)(tokens=x), full(tokens=x))
    differ(small("bigbird", layers=1)(tokens=x), full(tokens=x))


@pytest.mark.parametrize("strides", ["no", "yes"])
def test_sparse_transformer_reaches_all_in_two_layers(strides):
    model = small("sparse_transformer", strides=strides)
    assert (reached(model, 16) == pairs(16, lambda q, k: k <= q)).all()


def test_sparse_transformer_with_a_long_stride_is_causal():
    def plain(text):
        return re.sub(r"causal and if\(.*\)", "causal", text)

    x = tokens(16)
    full = small("sparse_transformer", plain)
    long = small("sparse_transformer", stride=16, summaries=16)
    close(long(tokens=x), full(tokens=x))
    differ(small("sparse_transformer")(tokens=x), full(tokens=x))


def test_masformer_reaches_all_by_one_full_layer():
    near = reached(small("masformer", whole=0, short=1), 16)
    assert (near == pairs(16, lambda q, k: k <= q and q // 4 - k // 4 <= 1)).all()
    assert (reached(small("masformer"), 16) == pairs(16, lambda q, k: k <= q)).all()


def test_ls_attention_short_and_long_heads():
    near = reached(small("ls_attention", layers=1, short=4), 12)
    assert (near == pairs(12, lambda q, k: 0 <= q - k < 4)).all()
    assert (reached(small("ls_attention", layers=1), 12) == pairs(12, lambda q, k: k <= q)).all()
    x = tokens(12)
    close(small("ls_attention", layers=1, reach=12)(tokens=x), small("ls_attention", layers=1, short=0)(tokens=x))


def test_lra_local_class_sees_its_block():
    model = small("lra_local", layers=1)
    assert (reached(model, 12)[:, 0] == [True] * 3 + [False] * 9).all()
    x = tokens(12)
    whole = small("lra_local", lambda t: t.replace("blocks(block)", "yes"))
    close(small("lra_local", block=13)(tokens=x), whole(tokens=x))


# ---- CLEAR

PICTURE = {name: RNG.normal(size=(2, *n, 32)) for name, n in {"text": (3,), "image": (64,), "given": ()}.items()}


def pixels_moved(model, y, x):
    image = PICTURE["image"].copy()
    image[:, 8 * y + x, 0] += 1  # of all channels alike the norm would see nothing
    params = model.with_params(q_norm_scale=0.5)  # no weight so small that it is lost
    change = np.abs(model(params=params, **{**PICTURE, "image": image}) - model(params=params, **PICTURE))
    change = change.max(axis=(0, 2)) > 1e-9
    return {(t // 8, t % 8) for t in np.flatnonzero(change)}


@pytest.mark.parametrize("radius, count", [(1, 1), (2, 9), (3, 25)])
def test_clear_sees_a_circle(radius, count):
    model = small("clear", layers=1, radius=radius)
    inside = pixels_moved(model, 3, 4)
    assert len(inside) == count
    assert inside == {(y, x) for y in range(8) for x in range(8) if (y - 3) ** 2 + (x - 4) ** 2 < radius**2}


def test_clear_sums_of_squares_reach_all():
    model = small("clear", layers=1, pooled="yes")
    assert len(pixels_moved(model, 0, 0)) == 64
    shut = model.with_params(filter=np.array([[0.0, 1, 1, 1]] + [[1.0] * 4] * 3)[None])
    image = PICTURE["image"].copy()
    image[:, 0, 0] += 1  # the corner has no part in its square's sum, and is in the circles of three others
    change = np.abs(model(params=shut, **{**PICTURE, "image": image}) - model(params=shut, **PICTURE))
    assert (change.max(axis=(0, 2)) > 0).sum() == 4


def test_clear_with_a_large_circle_is_full():
    full = small("clear", lambda t: t.replace("= q.text or k.text or disc(radius)", "= q.text or yes"), layers=1)
    close(small("clear", layers=1, radius=12)(**PICTURE), full(**PICTURE))


# ---- Reformer


def test_reformer_is_causal_and_one_bucket_is_full():
    model, x = small("reformer", layers=1), tokens(24)
    found = reached(model, 24, (0, 9, 17), tokens=x)
    assert not any(row[:at].any() for row, at in zip(found, (0, 9, 17), strict=True)) and found[0].sum() < 24
    full = small("reformer", lambda t: t.replace("mask = met", "mask = causal"), layers=1, chunk=24)
    one = small("reformer", layers=1, chunk=24)
    close(one(params=one.with_params(turn=0.0), tokens=x), full(tokens=x, params=full.params))


def test_reformer_hashes_directions():
    model, x = small("reformer", layers=1), tokens(24)
    y = model(params=model.with_params(turn=3 * model.params["layer.look.turn"]), tokens=x)
    close(y, model(tokens=x))


# ---- Sinkhorn


def test_sinkhorn_mixes_are_doubly_stochastic(alone):
    model = alone("sinkhorn", "balanced", "x: real[B, 2, 4, 4]", "exp(balanced(x))", rounds=60)
    w = model(x=RNG.normal(size=(3, 2, 4, 4)))
    close(w.sum(-1), np.ones((3, 2, 4)), 1e-6)
    close(w.sum(-2), np.ones((3, 2, 4)), 1e-6)


def test_sinkhorn_of_one_block_is_full_attention():
    x = tokens(32)
    full = small("sinkhorn", lambda t: t.replace("join(y)", "join(attend(q, k, v))"), layers=1, block=32)
    close(small("sinkhorn", layers=1, block=32)(tokens=x), full(tokens=x))
    twice = small("sinkhorn", lambda t: t.replace("join(y)", "join(2 * attend(q, k, v))"), layers=1, block=32)
    close(small("sinkhorn", layers=1, block=32, joined="no")(tokens=x), twice(tokens=x))


# ---- Spark


def test_spark_keeping_all_is_attention():
    model, x = small("spark", layers=1, kept=12), tokens(12)
    plain = small("spark", lambda t: t.replace("score = survivors(kept)", "score = s"), layers=1)
    close(model(tokens=x), plain(tokens=x))
    differ(small("spark", layers=1)(tokens=x), plain(tokens=x))
    found = reached(small("spark", layers=1), 12, (5,))
    assert not found[0][:5].any() and found[0][5]


def test_spark_threshold(alone):
    model = alone("spark", "threshold", "x: real[B, T, 2000]", "statistical_top(x, 160)")
    x = RNG.normal(size=(1, 3, 2000))
    y = model(x=x)
    close(model(x=x + 5), y, 1e-8)
    close(model(x=3 * x), 3 * y, 1e-8)
    expected = np.maximum(x - x.mean(-1, keepdims=True) - x.std(-1, ddof=1, keepdims=True) * 1.4050715603, 0)
    close(y, expected, 1e-6)
    assert abs((y > 0).mean() - 0.08) < 0.02


# ---- SPT


def test_spt_keeping_all_is_attention():
    x = tokens(24)
    plain = small("spt", lambda t: t.replace("causal and q.taken[h, k]", "causal"), layers=1)
    close(small("spt", layers=1, kept=24)(tokens=x), plain(tokens=x))
    model = small("spt", layers=1)
    differ(model(tokens=x), plain(tokens=x))
    found = reached(model, 24, (9,), tokens=x)
    assert not found[0][:9].any() and found[0][9]


def test_spt_codes_are_nearest(alone):
    model = alone("spt", "coded", "x: real[B, T, 4, 8], book: real[2, 16, 4]", "coded(x, book)", parts=2)
    x, book = RNG.normal(size=(2, 3, 4, 8)), RNG.normal(size=(2, 16, 4))
    away = np.abs(x.reshape(2, 3, 4, 2, 1, 4) - book).sum(-1)
    assert (model(x=x, book=book) == away.argmin(-1)).all()


# ---- AxFormer


def test_axformer_keeps_the_largest_and_skips_padding():
    x = tokens(12)
    real = np.arange(12) < [[12], [7]]
    soft = small("axformer", lambda t: t.replace("largest(kept)", "s"))
    close(small("axformer", kept=12)(tokens=x, real=real), soft(tokens=x, real=real))
    model = small("axformer")
    y = model(tokens=x, real=real)
    differ(y, soft(tokens=x, real=real))
    other = np.where(real, x, (x + 1) % 64).astype(np.int32)
    assert (model(tokens=other, real=real) == y).all()


# ---- Informer


def test_informer_with_a_large_factor_attends_everywhere():
    given = {
        "past": RNG.normal(size=(2, 24, 3)), "past_marks": RNG.normal(size=(2, 24, 4)),
        "start": RNG.normal(size=(2, 18, 3)), "marks": RNG.normal(size=(2, 18, 4)),
    }  # fmt: skip
    plain = small("informer", lambda t: t.replace("any[i](best[b, h, i] == t)", "best[b, h, 0] >= 0"), factor=100)
    y = small("informer", factor=100)(**given)
    assert y.shape == (2, 6, 3)
    close(y, plain(**given))
    differ(small("informer", factor=2)(**given), y)


def test_informer_idle_queries_get_sums_or_means(alone):
    lets = {"width": 8, "heads": 1, "factor": 1}
    x = RNG.normal(size=(2, 24, 8))
    for masked in ("no", "yes"):
        model = alone("informer", f"probsparse_{masked}", "x: real[B, 24, 8]", f"probsparse(x, {masked})", **lets)
        params = model.with_params(q_weight=0.0, q_bias=0.0, out_weight=np.eye(8), out_bias=0.0)
        v = x @ params["probsparse.v.weight"] + params["probsparse.v.bias"]
        idle = np.cumsum(v, 1) if masked == "yes" else np.broadcast_to(v.mean(1, keepdims=True), v.shape)
        close(model(params=params, x=x)[:, 4:], idle[:, 4:], 1e-7)  # the first ceil(log(24)) queries are active


# ---- MoBA, VMoBA


def test_moba_is_causal_and_all_blocks_are_full_attention():
    x = tokens(22)
    full = small("moba", sparse=0, full=2)
    model = small("moba", sparse=1, full=0)
    close(small("moba", sparse=2, full=0, kept=6)(tokens=x), full(tokens=x))
    found = reached(model, 22, (0, 5, 13), tokens=x)
    for row, at in zip(found, (0, 5, 13), strict=True):
        assert not row[:at].any() and row[at : (at // 4 + 1) * 4].all()
    own = reached(small("moba", sparse=1, full=0, kept=1), 22)
    assert (own == pairs(22, lambda q, k: k <= q and q // 4 == k // 4)).all()


def test_vmoba_sees_more_with_a_larger_share():
    video = RNG.normal(size=(2, 32, 32))
    full = small("vmoba", lambda t: t.replace("q.seen[h, k.cell]", "q.seen[h, k.cell] or yes"))
    close(small("vmoba", tau=2)(video=video), full(video=video))
    differ(small("vmoba")(video=video), full(video=video))


def test_vmoba_choices(alone):
    inputs = "q: real[B, 16, 2, 4], k: real[B, 16, 2, 4], cell: int[16]"
    q, k = RNG.normal(size=(2, 2, 16, 2, 4))
    cell = (np.arange(16) // 2 % 4).astype(np.int32)
    kept = {}
    for tau in (0, 0.3, 0.6, 1.0):
        model = alone("vmoba", f"chosen_{int(10 * tau)}", inputs, "chosen(q, k, cell, 4)", tau=tau)
        kept[tau] = model(q=q, k=k, cell=cell)
        assert (model(q=7 * q, k=k, cell=cell) == kept[tau]).all()
        assert np.take_along_axis(kept[tau], cell[None, :, None, None], -1).all()
    counts = [x.sum(-1) for x in kept.values()]
    assert all((a <= b).all() for a, b in pairwise(counts))
    assert (counts[0] == 2).all() and (counts[-1] == 4).any() and (counts[1] < counts[-1]).any()
    means = np.stack([k[:, cell == n].mean(1) for n in range(4)], 1)
    g = np.einsum("bthd,bnhd->bthn", q, means)
    own = np.arange(4) == cell[None, :, None, None]
    best = np.where(own, -np.inf, g).argmax(-1)
    assert (kept[0] == (own | (np.arange(4) == best[..., None]))).all()
