"""What the papers behind examples/zoo/vision promise, at small sizes, by the definitions in float64."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.testing.family import Family, close, differ, softmax

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = Family(Path(__file__).parents[2] / "examples" / "zoo" / "vision")
small, piece = FAMILY.small, FAMILY.piece
RNG = np.random.default_rng(0)
ROW, COLUMN = np.arange(64) // 8, np.arange(64) % 8


def normal(*shape):
    return RNG.normal(size=shape)


def moved(f, x, *at):
    """How much each token of the result moves when x does at a place: [T]"""
    other = x.copy()
    other[(slice(None), *at)] += 1 + normal(*other[(slice(None), *at)].shape)
    change = np.abs(f(x) - f(other))
    return change.max(axis=(0, *range(2, change.ndim)))


def visible(name, mask, **sets):
    """The mask between the 64 cells of an 8 x 8 grid."""
    body = f"x = split(grid(x, 8), 1)   return weights(x, x, mask = {mask})"
    found = piece(name, "x: real[B, 64, 4]", body, **sets)(x=np.zeros((1, 64, 4)))
    return found[0, 0] > 0


# ---- Swin


def test_swin_shift_is_a_roll_with_a_mask_of_regions():
    side, shift = 4, 2
    region = np.zeros((8, 8), int)
    parts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for n, (rows, columns) in enumerate((r, c) for r in parts for c in parts):
        region[rows, columns] = n
    window = ROW // side * 8 + COLUMN // side
    met = (window[:, None] == window) & (region.ravel()[:, None] == region.ravel())
    before = (ROW + shift) % 8 * 8 + (COLUMN + shift) % 8  # where the cell of the rolled map came from
    expected = np.zeros((64, 64), bool)
    expected[np.ix_(before, before)] = met
    np.testing.assert_array_equal(visible("swin", "squares(4, 2)"), expected)


def test_swin_bias_is_of_offsets_and_a_constant_one_is_none():
    model = piece("swin", "x: real[B, 16, 16]", "return layer(grid(x, 4), 2, 0)")
    x = normal(2, 16, 16)
    y = model(params=model.with_params(table=0.0), x=x)
    close(model(params=model.with_params(table=3.0), x=x), y)
    differ(model(x=x), y)
    change = moved(lambda x: model(x=x), x, 5)
    np.testing.assert_array_equal(np.flatnonzero(change), [0, 1, 4, 5])


def test_swin_squeeze_and_excitation_scales_channels():
    model = piece("swin", "x: real[B, 9, 32]", "return squeeze_excite(x)")
    x = normal(2, 9, 32)
    ratio = model(x=x) / x
    close(ratio, np.broadcast_to(ratio[:, :1], ratio.shape))
    close(model(params=model.with_params(up_weight=0.0, up_bias=0.0), x=x), x / 2)


# ---- CrossFormer


def test_crossformer_long_groups():
    group = [(y // 4, x // 4, y % 2, x % 2) for y, x in zip(ROW, COLUMN, strict=True)]
    expected = np.array([[a == b for b in group] for a in group])
    np.testing.assert_array_equal(visible("crossformer", "sampled(2)"), expected)
    assert (expected.sum(1) == 2**2).all()
    np.testing.assert_array_equal(visible("crossformer", "sampled(1)"), visible("crossformer", "squares(group)"))


@pytest.mark.parametrize(("group", "step"), [(2, 2), (2, 4), (4, 2)])
def test_crossformer_two_layers_join_a_region_where_the_step_is_small(group, step):
    near, far = (visible("crossformer", m, group=group) for m in ("squares(group)", f"sampled({step})"))
    region = visible("crossformer", f"squares({group * step})")
    assert ((near @ far)[region].all()) == (step <= group)


def test_crossformer_bias_is_a_function_of_the_offset():
    body = "return offset_bias(2, 4, 3)   "
    model = piece("crossformer", "x: real[B]", body)
    table = model(x=np.zeros(1))
    wider = piece("crossformer", "x: real[B]", body.replace("3", "4"))(params=model.params, x=np.zeros(1))
    close(table.reshape(5, 5, 2), wider.reshape(7, 7, 2)[1:-1, 1:-1])
    differ(table[0], table[1])


# ---- GC ViT

GLOBAL = "return layer(grid(x, 4), 2, 2, 4, asked)"


def test_gc_vit_windows_are_asked_the_same():
    model = piece("gc_vit", "x: real[B, 16, 16], asked: real[B, 4, 16]", GLOBAL)
    x, asked = normal(2, 4, 4, 16), normal(2, 4, 16)
    x[:, 2:, :2] = x[:, :2, :2]
    y = model(x=x.reshape(2, 16, 16), asked=asked).reshape(2, 4, 4, 16)
    close(y[:, 2:, :2], y[:, :2, :2])
    turned = model(x=np.roll(x, 2, axis=2).reshape(2, 16, 16), asked=asked).reshape(2, 4, 4, 16)
    close(turned, np.roll(y, 2, axis=2))


def test_gc_vit_own_queries_give_local_attention():
    model = piece(
        "gc_vit", "x: real[B, 4, 16], asked: real[B, 4, 16]", GLOBAL.replace("x, 4), 2, 2, 4", "x, 2), 2, 2, 2")
    )
    local = piece("gc_vit", "x: real[B, 4, 16]", "return layer(grid(x, 2), 2, 2, 2)")
    x, p = normal(2, 4, 16), local.params
    centered = x - x.mean(-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    normed = normed * p["layer.before_look.scale"] + p["layer.before_look.bias"]
    asked = normed @ p["layer.look.q.weight"] + p["layer.look.q.bias"]
    close(model(params={n: p[n] for n in model.params}, x=x, asked=asked), local(x=x))


# ---- FIT


def test_fit_groups_have_no_order():
    model, x = small("fit"), normal(2, 3, 4, 16)
    turned = [2, 0, 1]
    start = model.params["start"].reshape(3, 2, 32)
    y, latents = model.all(x=x.reshape(2, 12, 16))
    params = {**model.params, "start": start[turned].reshape(6, 32)}
    y_turned, latents_turned = model.all(params=params, x=x[:, turned].reshape(2, 12, 16))
    close(y_turned.reshape(2, 3, 4, 16), y.reshape(2, 3, 4, 16)[:, turned])
    close(latents_turned.reshape(2, 3, 2, 32), latents.reshape(2, 3, 2, 32)[:, turned])


def test_fit_autoregressive():
    model, x = small("fit", autoregressive="yes"), normal(2, 12, 16)
    for result, at, first in ((0, 6, 6), (1, 6, 2)):
        change = moved(lambda x, result=result: model.all(x=x)[result], x, at)
        assert (change[:first] == 0).all() and (change[first:] > 0).all()


# ---- FlatFormer

POINTS = RNG.permutation(100)[:12]
PLACES = {"y_at": np.stack([POINTS // 10] * 2).astype(np.int32), "x_at": np.stack([POINTS % 10] * 2).astype(np.int32)}


def test_flatformer_points_have_no_order():
    model, x, order = small("flatformer"), normal(2, 12, 16), RNG.permutation(12)
    y = model(x=x, **PLACES)
    close(model(x=x[:, order], **{n: p[:, order] for n, p in PLACES.items()}), y[:, order])


def test_flatformer_one_group_sees_all():
    model, x = small("flatformer", group=12), normal(2, 12, 16)
    full = small("flatformer", lambda t: t.replace("mask = runs(order)", "mask = yes"))
    close(model(x=x, **PLACES), full(x=x, **PLACES))
    differ(small("flatformer")(x=x, **PLACES), full(x=x, **PLACES))


def test_flatformer_runs_are_full():
    body = """rank = ranks(y_at, x_at)   seen[b, t, o: 1] = rank[b, t]   late[b, t, o: 1] = rank[b, t] >= 10
      tail[b, t, o: 1] = rank[b, t] >= 7   x = split(tag(x, rank = seen, late = late, tail = tail), 1)
      return [weights(x, x, mask = runs(0)), rank]"""
    model = piece("flatformer", "x: real[B, T, 4], y_at: int[B, T], x_at: int[B, T]", body)
    given, rank = model.all(x=np.zeros((2, 12, 4)), **PLACES)
    assert ((given[:, 0] > 0).sum(-1) == 5).all()
    y, x = (PLACES[n][0].astype(int) for n in ("y_at", "x_at"))
    sign = 1 - 2 * (y // 4 % 2)  # windows of side 4
    key = (1000 * (y // 4) + sign * (x // 4)) * 10**6 + sign * (1000 * (x % 4) + (1 - 2 * (x % 2)) * (y % 4))
    np.testing.assert_array_equal(rank[0], np.argsort(np.argsort(key)))


# ---- FlashVGGT


def test_flashvggt_without_compression_is_full_attention():
    model = small("flashvggt", factor=1, reference="no", layers=1)
    full = small("flashvggt", lambda t: re.sub(r"look@all\(y, if\(.*?\)\)\)", "look@all(y))", t), layers=1)
    x = normal(2, 3 * 26, 32)
    params = model.with_params(descriptors_weight=1.0)
    close(model(params=params, x=x), full(params={p: params[p] for p in full.params}, x=x))


def test_flashvggt_streams():
    model, x = small("flashvggt", streaming="yes", layers=1), normal(1, 3 * 26, 32)
    change = moved(lambda x: model(x=x), x, slice(26, 52))
    assert (change[:26] == 0).all() and (change[26:] > 0).all()


def test_flashvggt_frames_have_no_order():
    model, x = small("flashvggt", reference="no", layers=1), normal(2, 3, 26, 32)
    y = model(x=x.reshape(2, 78, 32)).reshape(2, 3, 26, 32)
    close(model(x=x[:, [2, 0, 1]].reshape(2, 78, 32)).reshape(2, 3, 26, 32), y[:, [2, 0, 1]])


# ---- CvT


def test_cvt_with_one_tap_is_attention():
    convolved = piece("cvt", "x: real[B, 16, 16]", "return layer(x, 2, 4)", _without_stride)
    plain = piece("cvt", "x: real[B, 16, 16]", "return layer(x, 2, 4)", _plain)
    tap = np.zeros((9, 16))
    tap[4] = 1
    params = convolved.with_params(
        conv_weight=tap, norm_scale=np.sqrt(1 + 1e-5), norm_bias=0.0, norm_center=0.0, norm_variance=1.0
    )
    theirs = {p: params.get(p, params.get(re.sub(r"look\.(\w)\.", r"look.\1.map.", p))) for p in plain.params}
    x = normal(2, 16, 16)
    close(convolved(params=params, x=x), plain(params=theirs, x=x))


def _without_stride(text):
    return text.replace("stride = 2 }", "}")


def _plain(text):
    return re.sub(r"([qkv]) = project \{[^}]*\}", r"\1 = linear { biased = yes }", text)


def test_cvt_class_token_goes_past_the_convolution():
    model, x = piece("cvt", "x: real[B, 17, 8]", "return project(x, 6, 4, 2)"), normal(2, 17, 8)
    y = model(x=x)
    assert y.shape == (2, 5, 6)
    close(y[:, 0], x[:, 0] @ model.params["project.map.weight"] + model.params["project.map.bias"])
    change = moved(lambda x: model(x=x), x, 0)
    assert change[0] > 0 and (change[1:] == 0).all()


# ---- MixFormer

VIEWS = {"template": normal(1, 16, 16, 3), "online": normal(1, 16, 16, 3), "search": normal(1, 32, 32, 3)}
MIXED = {"stages": "[[7, 4, 16, 2, 2]]"}


def test_mixformer_templates_do_not_see_the_search():
    model, other = small("mixformer", **MIXED), {**VIEWS, "search": VIEWS["search"] + 1}
    old, new, place = model.all(**VIEWS)
    for mine, theirs in zip((old, new), model.all(**other), strict=False):
        np.testing.assert_array_equal(mine, theirs)
    differ(place, model.all(**{**VIEWS, "online": VIEWS["online"] + 1})[2])
    middle = VIEWS["search"].copy()
    middle[:, 16:20, 16:20] += 1  # attention takes it everywhere
    assert (np.abs(place - model.all(**{**VIEWS, "search": middle})[2]).max(-1) > 0).all()
    joint = small("mixformer", **MIXED, asymmetry="no")
    differ(joint.all(**VIEWS)[0], joint.all(**other)[0])


def test_mixformer_templates_are_alike():
    model = small("mixformer", **MIXED)
    old, new, place = model.all(**VIEWS)
    swapped = model.all(template=VIEWS["online"], online=VIEWS["template"], search=VIEWS["search"])
    for mine, theirs in zip((new, old, place), swapped, strict=True):
        close(mine, theirs)


# ---- IFactFormer

FLOW = "u: real[B, nx, ny, nz, width]"


def test_ifactformer_axes_are_treated_alike():
    model, u = piece("ifactformer", FLOW, "return body(u)", nz=4), normal(2, 4, 3, 4, 8)
    swap = {"x": "z", "z": "x", "y": "y"}
    params = {
        p: model.params[re.sub(r"body\.(to_)?([xyz])\.", lambda m: f"body.{m[1] or ''}{swap[m[2]]}.", p)]
        for p in model.params
    }
    hidden = params["body.hidden.weight"].reshape(3, 8, 8)
    params["body.hidden.weight"] = hidden[::-1].reshape(24, 8)
    close(model(params=params, u=u.transpose(0, 3, 2, 1, 4)), model(u=u).transpose(0, 3, 2, 1, 4))


def test_ifactformer_without_kernels_is_constant():
    model = piece("ifactformer", FLOW, "return body(u)")
    y = model(params=model.with_params(x_q_weight=0.0, y_q_weight=0.0, z_q_weight=0.0), u=normal(2, 4, 3, 5, 8))
    close(y, np.broadcast_to(y[:1, :1, :1, :1], y.shape))
    only = model.with_params(y_q_weight=0.0, z_q_weight=0.0)
    hidden = only["body.hidden.weight"].copy()
    hidden[8:] += 5
    u = normal(2, 4, 3, 5, 8)
    close(model(params=only, u=u), model(params={**only, "body.hidden.weight": hidden}, u=u))


# ---- TransDAE


def _heads(model, name, x, heads):
    y = x @ model.params[f"{name}.weight"] + model.params.get(f"{name}.bias", 0)
    return y.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def test_transdae_places_in_quadratic_form():
    model, x = piece("transdae", "x: real[B, N, 8]", "return efficient(x, 2)"), normal(2, 7, 8)
    q, k, v = (_heads(model, f"efficient.{n}", x, 2) for n in "qkv")
    given = softmax(q) @ softmax(k, axis=2).swapaxes(2, 3)
    close(given.sum(-1), np.ones(given.shape[:-1]))
    joined = (given @ v).transpose(0, 2, 1, 3).reshape(2, 7, 8)
    close(model(x=x), joined @ model.params["efficient.out.weight"] + model.params["efficient.out.bias"])


def test_transdae_channels():
    model, x = piece("transdae", "x: real[B, N, 8]", "return transposed(x, 2)"), normal(2, 7, 8)
    order = RNG.permutation(7)
    close(model(x=x[:, order]), model(x=x)[:, order])
    q, k, v = (_heads(model, f"transposed.{n}", x, 2) for n in "qkv")
    cosine = np.einsum(
        "bhne,bhnd->bhed", q / np.linalg.norm(q, axis=2)[:, :, None], k / np.linalg.norm(k, axis=2)[:, :, None]
    )
    share = softmax(cosine / model.params["transposed.tau"][:, None, None])
    y = np.einsum("bhed,bhnd->bnhe", share, v).reshape(2, 7, 8)
    close(model(x=x), y @ model.params["transposed.out.weight"] + model.params["transposed.out.bias"])


# ---- iTransformer

SERIES = {"series": normal(2, 24, 5), "marks": normal(2, 24, 2)}


def test_itransformer_variates_have_no_order_and_no_number():
    model, y, order = small("itransformer"), small("itransformer")(**SERIES), [3, 1, 4, 0, 2]
    close(model(**{**SERIES, "series": SERIES["series"][..., order]}), y[..., order])
    assert model(**{**SERIES, "series": normal(2, 24, 3)}).shape == (2, 8, 3)


def test_itransformer_scale_and_shift():
    model, series = small("itransformer"), 100 * SERIES["series"]
    y = model(**{**SERIES, "series": series})
    scaled = model(**{**SERIES, "series": series * [1, 3, 1, 1, 1] + [0, 7, 0, 0, 0]})
    np.testing.assert_allclose(scaled, y * [1, 3, 1, 1, 1] + [0, 7, 0, 0, 0], rtol=1e-6, atol=1e-5)


# ---- SegFormer


def test_segformer_mean_filter_is_average_pooling():
    inputs, body = "x: real[B, 16, 16]", "return layer(x, 4, 2, 2)"
    model = piece("segformer", inputs, body)
    pooled = piece("segformer", inputs, body, _pooled)
    taps = np.stack([np.eye(16) / 4] * 4)
    params, x = model.with_params(reduce_weight=taps, reduce_bias=0.0), normal(2, 16, 16)
    close(model(params=params, x=x), pooled(params={p: params[p] for p in pooled.params}, x=x))


def _pooled(text):
    return text.replace(
        "conv2d@reduce(x, size(x), columns, ratio, ratio, 0)", "avg_pool2d(x, columns, ratio, ratio, 0)"
    )


def test_segformer_without_reduction_or_neighbours_has_no_order():
    model = piece("segformer", "x: real[B, 4, 16]", "return layer(x, 2, 2, 1)")
    assert not [p for p in model.params if "reduce" in p]
    order, x = [2, 0, 3, 1], normal(2, 4, 16)
    params = model.with_params(conv_weight=np.eye(9)[4][:, None] * np.ones(64))
    close(model(params=params, x=x[:, order]), model(params=params, x=x)[:, order])


def test_segformer3d_convolutions():
    x = normal(2, 64, 3)
    model = piece("segformer3d", "x: real[B, 64, 3]", "return conv3d(x, 5, 4, 3, 2, 1)")
    weight = model.params["conv3d.map.weight"].reshape(3, 3, 3, 3, 5)
    sizes = ("NDHWC", "DHWIO", "NDHWC")
    theirs = jax.lax.conv_general_dilated(
        jnp.asarray(x.reshape(2, 4, 4, 4, 3)), jnp.asarray(weight), (2, 2, 2), [(1, 1)] * 3, dimension_numbers=sizes
    )
    close(model(x=x), np.asarray(theirs).reshape(2, 8, 5) + model.params["conv3d.map.bias"])
    model = piece("segformer3d", "x: real[B, 64, 3]", "return depthwise_conv3d(x, 4)")
    weight = model.params["depthwise_conv3d.weight"].reshape(3, 3, 3, 1, 3)
    theirs = jax.lax.conv_general_dilated(
        jnp.asarray(x.reshape(2, 4, 4, 4, 3)),
        jnp.asarray(weight),
        (1, 1, 1),
        [(1, 1)] * 3,
        dimension_numbers=sizes,
        feature_group_count=3,
    )
    close(model(x=x), np.asarray(theirs).reshape(2, 64, 3))


def test_segformer3d_upsampling_is_trilinear():
    x = normal(2, 27, 3)
    y = piece("segformer3d", "x: real[B, 27, 3]", "return upsample3d(x, 3, 2)")(x=x)
    theirs = jax.image.resize(x.reshape(2, 3, 3, 3, 3), (2, 6, 6, 6, 3), "trilinear")
    close(y, np.asarray(theirs).reshape(2, 216, 3))


# ---- Transformer in Transformer


def test_tnt_words_stay_in_their_sentence():
    body = "return layer(x, look { heads = word_heads   mask = blocks(words) })"
    model, x = piece("tnt", "x: real[B, 48, 8]", body), normal(2, 48, 8)
    np.testing.assert_array_equal(np.flatnonzero(moved(lambda x: model(x=x), x, 20)), np.arange(16, 32))


def test_tnt_without_words_is_a_vit():
    image = normal(2, 16, 16, 3)
    model = small("tnt")
    plain = small("tnt", lambda t: re.sub(r"    y = layer@inner.*?x\[b, t, c\] = .*?\n", "", t, flags=re.S))
    params = model.with_params(layer_read_map_weight=0.0, layer_read_map_bias=0.0)
    close(model(params=params, image=image), plain(params={p: params[p] for p in plain.params}, image=image))
    differ(model(image=image), plain(image=image))


# ---- T2T-ViT


def test_t2t_soft_splits():
    for columns, kernel, stride, pad in ((32, 7, 4, 2), (8, 3, 2, 1)):
        body = f"return unfold2d(x, {columns}, {kernel}, {stride}, {pad})"
        x = normal(1, columns**2, 2)
        y = piece("t2t_vit", f"x: real[B, {columns**2}, 2]", body)(x=x)
        across = (columns + 2 * pad - kernel) // stride + 1
        assert y.shape == (1, across**2, kernel**2 * 2)
        one = np.array([sum(0 <= i - (t * stride - pad) < kernel for t in range(across)) for i in range(columns)])
        count = one[:, None] * one
        close(y.reshape(-1, 2).sum(0), (x.reshape(columns, columns, 2) * count[..., None]).sum((0, 1)))


def test_t2t_performer_goes_around_the_value():
    model = piece("t2t_vit", "x: real[B, N, 12]", "return token_performer(x)")
    x = normal(2, 6, 12)
    params = model.with_params(down_weight=0.0, down_bias=0.0, before_look_scale=1.0, before_look_bias=0.0)
    centered = x - x.mean(-1, keepdims=True)
    z = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    at = "token_performer"
    q, k, v = (z @ params[f"{at}.{n}.weight"] + params[f"{at}.{n}.bias"] for n in "qkv")
    w = params[f"{at}.w"]
    close(w @ w[:16].T[:, :8], w @ w[:8].T)
    fq, fk = (np.exp(u @ w.T - (u**2).sum(-1, keepdims=True) / 2) / np.sqrt(8) for u in (q, k))
    given = fq @ fk.swapaxes(1, 2)
    seen = given @ v / (given.sum(-1, keepdims=True) + 1e-8)
    close(model(params=params, x=x), v + seen @ params[f"{at}.out.weight"] + params[f"{at}.out.bias"])


# ---- PoolFormer


def test_poolformer_pools_as_uniform_attention():
    inputs, body = "x: real[B, 16, 8]", "return layer(x, 4)"
    model, x = piece("poolformer", inputs, body), normal(2, 16, 8)
    close(model(x=x), piece("poolformer", inputs, body, _uniform)(params=model.params, x=x))


def _uniform(text):
    attention = (
        "block uniform(x) { z = split(grid(0 * x, 4), 1)   "
        "return join(attend(z, z, split(x, 1), mask = abs(q.y - k.y) <= 1 and abs(q.x - k.x) <= 1)) }\n\nblock layer"
    )
    return text.replace("block layer", attention).replace("avg_pool2d(y, columns)", "uniform(y)")


def test_poolformer_leaves_a_constant_map():
    model = piece("poolformer", "x: real[B, 16, 8]", "return avg_pool2d(x, 4) - x")
    close(model(x=np.broadcast_to(normal(2, 1, 8), (2, 16, 8))), np.zeros((2, 16, 8)))
    x = normal(2, 16, 8)
    shifted = np.roll(x.reshape(2, 4, 4, 8), 1, axis=2).reshape(2, 16, 8)
    inner = [5, 9]  # columns 1, which the roll brings to columns 2
    close(model(x=shifted)[:, np.add(inner, 1)], model(x=x)[:, inner])


# ---- Activator


def test_activator_tokens_do_not_meet():
    model, x = piece("activator", "x: real[B, N, 32]", "return x + gated(layer_norm@before(x))"), normal(2, 5, 32)
    np.testing.assert_array_equal(np.flatnonzero(moved(lambda x: model(x=x), x, 3)), [3])


def test_activator_without_its_norm_is_a_gated_feed_forward():
    x = normal(2, 5, 32)
    model = piece("activator", "x: real[B, N, 32]", "return gated(x)", normed="no")
    plain = piece("activator", "x: real[B, N, 32]", "return ffn(x, hidden, gate = gelu, biased = yes)")
    names = {"gate": "w1", "up": "w2", "down": "w3"}
    params = {p: model.params["gated.{}.{}".format(names[p.split(".")[1]], p.split(".")[2])] for p in plain.params}
    close(model(x=x), plain(params=params, x=x))


# ---- Mixture of Transformers

WORDS = {"tokens": RNG.integers(0, 64, (2, 8)).astype(np.int32), "kind": RNG.integers(0, 2, (2, 8)).astype(np.int32)}


def _by_kind(params, order):
    """The weights of the modalities in another order, or one's for all."""
    return {p: x[:, order] if "own" in p or "feed." in p else x for p, x in params.items()}


def test_mixture_of_transformers_with_equal_weights_is_dense():
    model = small("mixture_of_transformers", layers=1)
    tied = _by_kind(model.params, [0, 0])
    close(model(params=tied, **WORDS), model(params=tied, tokens=WORDS["tokens"], kind=0 * WORDS["kind"]))
    differ(model(**WORDS), model(params=tied, **WORDS))
    close(model(params=_by_kind(model.params, [1, 0]), tokens=WORDS["tokens"], kind=1 - WORDS["kind"]), model(**WORDS))


def test_mixture_of_transformers_is_causal_over_all_modalities():
    model = small("mixture_of_transformers", layers=1)
    other = {**WORDS, "tokens": WORDS["tokens"].copy()}
    other["tokens"][:, 5] = (other["tokens"][:, 5] + 1) % 64
    change = np.abs(model(**WORDS) - model(**other)).max((0, 2))
    assert (change[:5] == 0).all() and (change[5:] > 0).all()


# ---- LXMERT

PAIR = """real[b, t] = a[b, t, 0] > -inf   pair = exchange(tag(a, real = real), b)   return [pair[0], pair[1]]"""


def test_lxmert_sides_exchange_by_the_same_weights():
    model = piece("lxmert", "a: real[B, 5, width], b: real[B, 5, width]", PAIR)
    params = {p: model.params[p.replace(".things.", ".words.")] for p in model.params}
    a, b = normal(2, 5, 32), normal(2, 5, 32)
    for mine, theirs in zip(model.all(params=params, a=a, b=b), model.all(params=params, a=b, b=a)[::-1], strict=True):
        close(mine, theirs)


SEEN = {
    "tokens": RNG.integers(0, 64, (2, 5)).astype(np.int32), "real": np.array([[True] * 3 + [False] * 2, [True] * 5]),
    "features": normal(2, 4, 16), "boxes": normal(2, 4, 4),
}  # fmt: skip


def test_lxmert_objects_have_no_order_and_padding_no_voice():
    model, order = small("lxmert"), [2, 0, 3, 1]
    words, things, pooled = model.all(**SEEN)
    turned = model.all(**{**SEEN, "features": SEEN["features"][:, order], "boxes": SEEN["boxes"][:, order]})
    for mine, theirs in zip((words, things[:, order], pooled), turned, strict=True):
        close(mine, theirs)
    tokens = SEEN["tokens"].copy()
    tokens[0, 3:] = (tokens[0, 3:] + 1) % 64
    other = model.all(**{**SEEN, "tokens": tokens})
    np.testing.assert_array_equal(other[1], things)
    np.testing.assert_array_equal(other[0][0, :3], words[0, :3])


# ---- RMT


def test_rmt_without_queries_is_separable():
    inputs, body = "x: real[B, 16, 8]", "return look(grid(x, 4), 4, 2, 4, {})"
    whole, parts = (piece("rmt", inputs, body.format(d)) for d in ("no", "yes"))
    x, params = normal(2, 16, 8), whole.with_params(q_weight=0.0, q_bias=0.0)
    close(whole(params=params, x=x), parts(params=params, x=x))
    differ(whole(x=x), parts(params=whole.params, x=x))


@pytest.mark.parametrize("place", ["logit", "prob"])
def test_rmt_rows(place):
    body = "return look(grid(x, 4), 4, 2, 4, no)"
    model = piece("rmt", "x: real[B, 16, 8]", body, decay_place=place)
    one = {
        "v_weight": 0.0,
        "v_bias": 1.0,
        "lepe_weight": 0.0,
        "lepe_bias": 0.0,
        "out_weight": np.eye(8),
        "out_bias": 0.0,
    }
    y = model(params=model.with_params(**one), x=normal(2, 16, 8))
    if place == "logit":
        close(y, np.ones_like(y))
    else:
        assert (y < 1).all() and (y > 0).all()


def test_rmt_knows_the_grid_by_distances():
    body = "return look(grid(x, 4), 4, 2, 4, no)"
    model = piece("rmt", "x: real[B, 16, 8]", body, lambda t: t.replace("position = turned,", "position = none,"))
    params, x = model.with_params(lepe_weight=0.0), normal(2, 4, 4, 8)
    y = model(params=params, x=x.reshape(2, 16, 8)).reshape(2, 4, 4, 8)
    for turned in (lambda a: a[:, ::-1], lambda a: np.rot90(a, axes=(1, 2))):
        close(model(params=params, x=turned(x).reshape(2, 16, 8)).reshape(2, 4, 4, 8), turned(y))
