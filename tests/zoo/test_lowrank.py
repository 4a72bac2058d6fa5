"""What the papers behind examples/zoo/lowrank promise, at small sizes, by the definitions in float64."""

from pathlib import Path

import numpy as np
import pytest

from tfc.testing.family import Family, close, differ, softmax

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = Family(Path(__file__).parents[2] / "examples" / "zoo" / "lowrank")
small, piece = FAMILY.small, FAMILY.piece
RNG = np.random.default_rng(0)
T, BITS = 12, 4
TOKENS = RNG.integers(0, 64, (2, T)).astype(np.int32)


def normal(*shape):
    return RNG.normal(size=shape)


# ---- EcoFormer


def eco(variant="paired"):
    """A block on tokens x [B, T, 8] with 2 heads, and parameters whose anchors are drawn: (model, params)."""
    model = piece("ecoformer", "x: real[B, T, 8]", "return eco(x, 2)", variant=variant)
    return model, model.with_params(anchor=ANCHOR, center=CENTER)


ANCHOR, CENTER = normal(2, 5, 4), 0.1 * normal(2, 5)


def codes(x, params):
    """By the equations of the paper, x [B, T, 8] -> [B, T, 2, BITS]."""
    u = (x @ params["eco.qk.weight"] + params["eco.qk.bias"]).reshape(*x.shape[:2], 2, 4)
    u = u / np.linalg.norm(u, axis=-1, keepdims=True)
    away = ((u[:, :, :, None] - ANCHOR) ** 2).sum(-1)
    near = np.exp(-away / (2 * away.mean((1, 3), keepdims=True))) - CENTER
    return np.where(np.einsum("btha,hra->bthr", near, params["eco.hashed.vote"]) >= 0, 1.0, -1.0)


@pytest.mark.parametrize("variant", ["paired", "self"])
def test_ecoformer_is_its_quadratic_form(variant):
    model, p = eco(variant)
    x = normal(2, T, 8)
    t = codes(x, p)
    products, constant = np.einsum("bthr,buhr->bhtu", t, t), BITS + 1
    total = (products + constant).sum(-1, keepdims=True)
    weights = (products + constant * (1 if variant == "paired" else np.eye(T))) / total
    assert np.abs(products).max() == BITS
    v = (x @ p["eco.v.weight"] + p["eco.v.bias"]).reshape(2, T, 2, 4)
    y = np.einsum("bhtu,buhd->bthd", weights, v).reshape(2, T, 8) @ p["eco.out.weight"] + p["eco.out.bias"]
    close(model(params=p, x=x), y)


def test_ecoformer_codes_are_signs_and_forget_lengths():
    model = piece("ecoformer", "x: real[B, T, 2, 4]", "return hashed(x, 2)")
    p, x = model.with_params(anchor=ANCHOR, center=CENTER), normal(3, T, 2, 4)
    found = model(params=p, x=x)
    assert found.shape == (3, T, 2, BITS) and set(np.unique(found)) == {-1.0, 1.0}
    close(model(params=p, x=x * RNG.uniform(0.1, 9, (3, T, 2, 1))), found)
    turn = np.linalg.qr(normal(4, 4))[0]
    close(model(params=model.with_params(anchor=ANCHOR @ turn, center=CENTER), x=x @ turn), found)


def test_ecoformer_forgets_the_order_and_the_signs_of_bits():
    model, p = eco()
    x = normal(2, T, 8)
    y = model(params=p, x=x)
    vote = p["eco.hashed.vote"]
    close(model(params={**p, "eco.hashed.vote": vote[:, ::-1]}, x=x), y)
    close(model(params={**p, "eco.hashed.vote": vote * np.array([1, -1, 1, -1])[:, None]}, x=x), y)
    close(model(params=p, x=x[:, ::-1]), y[:, ::-1])


def test_ecoformer_averages_where_codes_agree():
    """Anchors of zero, as before fitting, tell no token from another."""
    model = piece("ecoformer", "x: real[B, T, 8]", "return eco(x, 2)")
    p, x = model.params, normal(2, T, 8)
    v = (x @ p["eco.v.weight"] + p["eco.v.bias"]).mean(1, keepdims=True)
    y = model(x=x)
    close(y, np.broadcast_to(v @ p["eco.out.weight"] + p["eco.out.bias"], y.shape))


# ---- BiPFT

REAL = np.ones((2, T), np.int32)


def test_bipft_estimates_are_three_products():
    """Two products of sums are the three of the paper."""

    def three(text):
        text = text.replace("both = thin@q_plain(x, rank) + q_rest", "plain = thin@q_plain(x, rank)")
        return text.replace(
            "(dot(q.both, k.rest) + dot(q.rest, k.plain))",
            "(dot(q.plain, k.rest) + dot(q.rest, k.plain) + dot(q.rest, k.rest))",
        )

    model, other = small("bipft", layers=1, rank=3), small("bipft", three, layers=1, rank=3)
    p, given = model.with_params(look_step=0.1), {"tokens": TOKENS, "real": REAL}
    close(other(params=other.with_params(look_step=0.1), **given), model(params=p, **given))
    differ(
        model(params={**p, "layer.look.k_rest.weight": -p["layer.look.k_rest.weight"]}, **given),
        model(params=p, **given),
    )


def test_bipft_without_estimates():
    model, plain = small("bipft", layers=1), small("bipft", layers=1, estimated="no")
    maps = ("q_rest", "k_rest", "q_plain", "k_plain", "v_rest")
    p = model.with_params(look_step=0.1, **{f"{m}_{kind}": 0.0 for m in maps for kind in ("weight", "bias")})
    given = {"tokens": TOKENS, "real": REAL}
    close(model(params=p, **given), plain(params=plain.with_params(look_step=0.1), **given))
    differ(model(params=model.with_params(look_step=0.1), **given), model(params=p, **given))


def test_bipft_selects_few_keys():
    """A step above 2 selects none; no more than 2 / step keys have half a step of probability."""
    body = "q = split(x, 2)   return weights(q, q, weigh = selected(step))"
    for step in (0.1, 0.5, 2.0):
        model = piece("bipft", "x: real[B, T, 8]", body.replace("step)", f"{step})"))
        p = model(x=normal(2, T, 8))
        assert set(np.unique(p)) <= {0.0, step} and (np.count_nonzero(p, axis=-1) < 2 / step).all()
        assert p.any() == (step < 2)


def test_bipft_keeps_one_bit():
    model, x = piece("bipft", "x: real[B, T, 8]", "return bits(x, 3)"), normal(2, T, 8)
    p = model.with_params(step=0.7)
    w = p["bits.map.weight"]
    one = np.abs(w).mean() * np.where(w < w.mean(), -1, 1)
    inputs = 0.7 * np.where(x + p["bits.move"] >= 0, 1, -1)
    close(model(params=p, x=x), inputs @ one + p["bits.map.bias"])


def test_bipft_hears_no_padding():
    model, real, other = small("bipft", layers=1), REAL.copy(), TOKENS.copy()
    real[:, 9:] = 0
    other[:, 9:] = (other[:, 9:] + 1) % 64
    p = model.with_params(look_step=0.1)
    close(model(params=p, tokens=other, real=real)[:, :9], model(params=p, tokens=TOKENS, real=real)[:, :9])
    differ(model(params=p, tokens=other, real=REAL)[:, :9], model(params=p, tokens=TOKENS, real=REAL)[:, :9])


# ---- Linformer

LONG = RNG.integers(0, 64, (2, 24)).astype(np.int32)


@pytest.mark.parametrize("sharing", ["headwise", "key-value", "layerwise"])
def test_linformer_with_all_rows_is_attention(sharing):
    def plain(text):
        for name, rows in (("keys", "e"), ("values", "f")):
            text = text.replace(f"shortened@{name}(", "identity(").replace(f"heads), {rows})", "heads))")
        return text

    model, full = small("linformer", layers=1, short=24, sharing=sharing), small("linformer", plain, layers=1)
    for rows in (np.eye(24), np.eye(24)[RNG.permutation(24)]):
        close(model(params=model.with_params(rows=rows), tokens=LONG), full(tokens=LONG))
    differ(model(tokens=LONG), full(tokens=LONG))


def test_linformer_with_one_row_is_a_mean():
    model = small("linformer", layers=1, short=1)
    mean = {"rows": 1 / 24}
    found = model(params=model.with_params(**mean), tokens=LONG)
    close(model(params=model.with_params(**mean, q_weight=0.3, k_weight=-0.1), tokens=LONG), found)
    differ(model(params=model.with_params(**mean, v_weight=0.3), tokens=LONG), found)


def test_linformer_rows_are_shared():
    one, two = small("linformer", layers=2, sharing="layerwise"), small("linformer", layers=2)
    rows = one.params["rows"]
    both = {"look_key_rows": rows, "look_value_rows": rows}
    close(two(params=two.with_params(**both), tokens=LONG), one(tokens=LONG))


# ---- Synthesizer

LOOK = ("x: real[B, T, width]", "return look(x)")


@pytest.mark.parametrize("kind", ["factorized", "random", "dense"])
def test_synthesizer_without_scores_is_a_mean(kind):
    model, x = piece("synthesizer", *LOOK, kind=kind), normal(2, T, 32)
    zero = {"factorized": ["left"], "random": ["table"], "dense": ["second_weight", "second_bias"]}[kind]
    y = model(params=model.with_params(**dict.fromkeys(zero, 0.0)), x=x)
    mean = x.mean(1, keepdims=True) @ model.params["look.v.weight"] @ model.params["look.out.weight"]
    close(y, np.broadcast_to(mean, y.shape))
    differ(model(x=x), y)


@pytest.mark.parametrize("kind", ["factorized", "random", "dense"])
def test_synthesizer_mixed_with_nothing_is_attention(kind):
    model, x = piece("synthesizer", *LOOK, kind=kind, mixed="yes"), normal(2, T, 32)
    zero = {"factorized": ["left"], "random": ["table"], "dense": ["second_weight", "second_bias"]}[kind]
    full = piece("synthesizer", "x: real[B, T, width]", "return attention@look(x, heads = heads)")
    close(model(params=model.with_params(**dict.fromkeys(zero, 0.0)), x=x), full(x=x))


def test_synthesizer_factors_make_a_table():
    thin, whole = piece("synthesizer", *LOOK, rank=24), piece("synthesizer", *LOOK, kind="random")
    x, table = normal(2, T, 32), normal(4, 24, 24)
    y = whole(params=whole.with_params(table=table), x=x)
    close(thin(params=thin.with_params(left=table, right=np.eye(24)), x=x), y)
    close(whole(params=whole.with_params(table=table + normal(4, 24, 1)), x=x), y)  # the same for all keys of a row
    close(whole(params=whole.with_params(table=table), x=3 * x), 3 * y)  # weights hear nothing of x


# ---- LAMA


def test_lama_knows_no_order_and_no_padding():
    model, x, valid = small("lama"), normal(2, 10, 16), np.ones((2, 10), bool)
    valid[:, 7:] = False
    y = model(states=x, valid=valid)
    close(model(states=x[:, ::-1], valid=valid[:, ::-1]), y)
    other = x.copy()
    other[:, 7:] = normal(2, 3, 16)
    close(model(states=other, valid=valid), y)


def test_lama_is_attention_of_learned_queries():
    """Without tanh a head asks with its column of the tokens' map, times a number of the context; zero: a mean."""
    model = small("lama", lambda text: text.replace("e = tanh(", "e = 1 * ("))
    x, valid, p = normal(2, 10, 16), np.ones((2, 10), bool), model.params
    query = p["token.weight"] * (p["context"] @ p["question"])
    seen = np.einsum("bmn,bnc->bmc", softmax(np.einsum("bnc,cm->bmn", x, query)), x)
    close(model(states=x, valid=valid), seen.reshape(2, 64) @ p["head.weight"] + p["head.bias"])
    mean = np.tile(x.mean(1), 4) @ p["head.weight"] + p["head.bias"]
    close(small("lama")(params=small("lama").with_params(context=0.0), states=x, valid=valid), mean)


# ---- TokenFormer

VARIANTS = ["l2_norm_gelu", "gelu_l2_norm", "softmax"]


def pattention(variant=VARIANTS[0], count=12):
    return piece("tokenformer", "x: real[B, T, 8]", f"return pattention(x, 5, {count})", variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokenformer_forgets_lengths_and_the_order_of_its_tokens(variant):
    model, x = pattention(variant), normal(2, T, 8)
    y, p = model(x=x), model.params
    order = RNG.permutation(12)
    mixed = {**p, **{f"pattention.{n}": p[f"pattention.{n}"][order] for n in ("keys", "values")}}
    close(model(params=mixed, x=x), y)
    longer = model(x=x * RNG.uniform(0.1, 9, (2, T, 1)))
    if variant == "l2_norm_gelu":
        close(longer, y)
        assert not model(x=0 * x).any()
    else:
        differ(longer, y)


def test_tokenformer_grows_without_change():
    """New keys of zero give nothing while `tau` stays, whatever their values."""
    model, x = pattention(), normal(2, T, 8)
    large = pattention(count=20)
    p = model.params
    keys = np.concatenate([p["pattention.keys"], np.zeros((8, 8))])
    values = np.concatenate([p["pattention.values"], normal(8, 5)])
    tau = p["pattention.tau"]
    close(large(params=large.with_params(keys=keys, values=values, tau=tau), x=x), model(x=x))
    differ(large(params=large.with_params(keys=keys, values=values), x=x), model(x=x))


def test_tokenformer_is_causal():
    model, other = small("tokenformer", layers=1), TOKENS.copy()
    other[:, 5] = (other[:, 5] + 1) % 64
    change = np.abs(model(ids=other) - model(ids=TOKENS)).max((0, 2))
    assert not change[:5].any() and (change[5:] > 0).all()


# ---- the minimum


def test_minimum_collapses_two_matrices():
    two, one = (piece("minimum", "x: real[B, T, width]", "return look(x)", kind=k) for k in ("separate", "collapsed"))
    q, k = (two.params[f"look.{n}.weight"].reshape(16, 2, 8) for n in "qk")
    x = normal(2, T, 16)
    close(one(params=one.with_params(w=np.einsum("chd,ehd->hce", q, k)), x=x), two(x=x))


def test_minimum_gram_and_symmetric():
    gram, half = (piece("minimum", "x: real[B, T, width]", "return look(x)", kind=k) for k in ("gram", "symmetric"))
    q = gram.params["look.q.weight"].reshape(16, 2, 8)
    w = np.einsum("chd,ehd->hce", q, q)
    x = normal(2, T, 16)
    close(half(params=half.with_params(w=w), x=x), gram(x=x))
    close(half(params=half.with_params(w=np.triu(w)), x=x), gram(x=x))  # the upper half is all there is


def test_minimum_stays_among_the_tokens():
    model = piece("minimum", "x: real[B, T, width]", "return look(x)")
    x = normal(2, T, 16)
    x[..., 0] = 3
    y = model(x=x)
    close(y[..., 0], np.full((2, T), 3.0))
    assert (y <= x.max(1, keepdims=True) + 1e-9).all() and (y >= x.min(1, keepdims=True) - 1e-9).all()


# ---- attention taken apart


@pytest.mark.parametrize("form", ["softmax", "approximate"])
def test_deconstructed_weights_hear_of_their_source_alone(form):
    """With queries and keys from elsewhere the result is linear in the hidden states."""
    model = piece("deconstructed", "x: real[B, T, width], y: real[B, T, width]", "return look(x, y)", form=form)
    x, other, y = normal(2, T, 32), normal(2, T, 32), normal(2, T, 32)
    close(model(x=2 * x - 3 * other, y=y), 2 * model(x=x, y=y) - 3 * model(x=other, y=y))
    differ(model(x=x, y=other), model(x=x, y=y))


@pytest.mark.parametrize("source", ["static", "random", "fixed", "hidden", "none"])
def test_deconstructed_mixes_the_past_or_nothing(source):
    model, other = small("deconstructed", source=source), TOKENS.copy()
    other[:, 5] = (other[:, 5] + 1) % 64
    change = np.abs(model(tokens=other) - model(tokens=TOKENS)).max((0, 2))
    assert not change[:5].any() and change[5] > 0
    assert change[6:].any() == (source != "none")


def test_deconstructed_sources():
    """All sequences have the weights of the fixed one; what is drawn is not learned."""
    fixed = small("deconstructed", source="fixed")
    assert "sequence" in [s.path for s in fixed.program.stored() if not s.trained]
    drawn = small("deconstructed", source="random", hybrid="yes")
    rows = drawn.params["drawn"]
    differ(drawn(params=drawn.with_params(drawn=rows[::-1]), tokens=TOKENS), drawn(tokens=TOKENS))
    hidden = small("deconstructed", source="hidden", hybrid="yes")
    close(hidden(tokens=TOKENS), small("deconstructed", source="hidden")(tokens=TOKENS))
