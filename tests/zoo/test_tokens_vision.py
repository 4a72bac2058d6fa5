"""What the papers behind the visual specs of examples/zoo/tokens promise, at small sizes, in float64."""

from pathlib import Path

import numpy as np
import pytest

from tfc.testing.family import Family, close, differ

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = Family(Path(__file__).parents[2] / "examples" / "zoo" / "tokens")
small, piece = FAMILY.small, FAMILY.piece
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


def drawn(*shape):
    """Attention weights: positive, each row of sum 1."""
    e = np.exp(normal(*shape))
    return e / e.sum(-1, keepdims=True)


# ---- ToMe

FUSED = "y = fused(tag(x, size = size), keys, {})   return [y, y.size]"
MERGED = "x: real[B, 9, 4], size: real[B, 9], keys: real[B, 9, 4]"


def test_tome_keeps_mass_and_loses_tokens():
    x, size, keys = normal(2, 9, 4), RNG.uniform(1, 3, (2, 9)), normal(2, 9, 4)
    y, sizes = piece("tome", MERGED, FUSED.format(3)).all(x=x, size=size, keys=keys)
    assert y.shape == (2, 6, 4)
    close((sizes[..., None] * y).sum(1), (size[..., None] * x).sum(1))
    close(sizes.sum(1), size.sum(1))
    close(y[:, 0], x[:, 0])
    whole, _ = piece("tome", MERGED, FUSED.format(0)).all(x=x, size=size, keys=keys)
    close(whole, x[:, [0, 2, 4, 6, 8, 1, 3, 5, 7]])


def test_tome_merges_equal_tokens_without_loss():
    x, keys = normal(2, 9, 4), normal(2, 9, 4)
    x[:, 4], keys[:, 4] = x[:, 7], keys[:, 7]
    body = """y = fused(tag(x, size = size), keys, 1)
      return attend(split(asked, 1), split(y, 1), split(y, 1), score = proportional)"""
    merged = piece("tome", f"{MERGED}, asked: real[B, 3, 4]", body)
    whole = piece(
        "tome", "x: real[B, 9, 4], asked: real[B, 3, 4]", "x = split(x, 1) return attend(split(asked, 1), x, x)"
    )
    asked = normal(2, 3, 4)
    close(merged(x=x, keys=keys, size=np.ones((2, 9)), asked=asked), whole(x=x, asked=asked))


def test_tome_merges_the_most_alike():
    x = np.eye(9)[None, :, :] @ normal(9, 4)
    keys = normal(1, 9, 4)
    _, sizes = piece("tome", MERGED, FUSED.format(2)).all(x=x, size=np.ones((1, 9)), keys=keys)
    unit = keys[0] / np.linalg.norm(keys[0], axis=-1, keepdims=True)
    alike = unit[2::2] @ unit[1::2].T
    first = np.argsort(-alike.max(1))[:2]
    expected = np.ones(4)
    np.add.at(expected, alike.argmax(1)[first], 1)
    np.testing.assert_array_equal(sizes[0, -4:], expected)


# ---- ATS

SAMPLED = "given: real[B, 2, 12, 12], v: real[B, 12, 2, 3]"
FLAT = {"given": np.full((1, 2, 12, 12), 1 / 12), "v": np.ones((1, 12, 2, 3))}


def sampled(given, v, most=12):
    return piece("ats", SAMPLED, "return sampled(given, v)", most=most)(given=given, v=v)


def test_ats_keeps_all_of_equal_tokens_and_few_beside_a_loud_one():
    # the least score is nothing after it is taken off the running sum: the first of equal tokens is not sampled
    assert sampled(**FLAT).sum() == 11
    loud = {**FLAT, "v": FLAT["v"].copy()}
    loud["v"][:, 5] = 1000
    kept = sampled(**loud)[0]
    assert kept[0] and kept[5] and kept.sum() <= 4


def test_ats_count_is_bounded_and_scores_have_no_scale():
    given, v = drawn(8, 2, 12, 12), normal(8, 12, 2, 3)
    for most in (6, 12):
        kept = sampled(given, v, most)
        assert kept[:, 0].all() and (kept.sum(1) <= most).all() and (kept.sum(1) >= 2).all()
        np.testing.assert_array_equal(sampled(given, 7 * v, most), kept)
    assert len(set(sampled(given, v).sum(1))) > 1


def test_ats_samples_are_nearest_in_the_running_sum():
    given, v = drawn(3, 2, 12, 12), normal(3, 12, 2, 3)
    kept = sampled(given, v, 7)
    for b in range(3):
        score = given[b, :, 0, 1:].sum(0) * np.linalg.norm(v[b].reshape(12, 6), axis=1)[1:]
        order = np.argsort(score)
        share = np.cumsum(score[order])
        share = (share - share[0]) / (share[-1] - share[0])
        points = share[1] + (1 - share[1]) * np.arange(6) / 5
        right = np.clip(np.searchsorted(share, points), 1, 10)
        nearest = np.where(points - share[right - 1] <= share[right] - points, right - 1, right)
        assert set(np.flatnonzero(kept[b])) == {0, *(order[nearest] + 1)}


def test_ats_padding_is_not_seen():
    body = "y = layer(tag(x, real = real), {})   return [y, y.real]"
    inputs = "x: real[B, 9, width], real: bool[B, 9]"
    x, real = normal(3, 9, 32), np.arange(9) < np.array([[9], [6], [4]])
    other = np.where(real[..., None], x, x + 1)
    plain = piece("ats", inputs, body.format("no"))
    np.testing.assert_array_equal(plain(x=other, real=real)[real], plain(x=x, real=real)[real])
    sampling = piece("ats", inputs, body.format("yes"), most=9)
    y, left = sampling.all(x=x, real=real)
    assert (left.sum(1) <= real.sum(1)).all() and (left.sum(1) >= 2).all()
    y_other, left_other = sampling.all(x=other, real=real)
    np.testing.assert_array_equal(left_other, left)
    np.testing.assert_array_equal(y_other[left], y[left])


# ---- Zero-TPrune


def ranked(given, turns):
    return piece("zero_tprune", "given: real[B, 2, N, N]", f"return importance(given, {turns})")(given=given)


def test_zero_tprune_rank_is_conserved_and_uniform_where_all_give_alike():
    given = drawn(2, 1, 6, 6).repeat(2, 1)
    rank = ranked(given, 5)
    power = np.full((2, 6), 1 / 6)
    for _ in range(5):
        power = np.einsum("bqk,bq->bk", given[:, 0], power)
    close(power.sum(1), np.ones(2))
    assert np.isinf(rank[:, 0]).all()
    close(rank[:, 1:], power[:, 1:])
    cyclic = np.stack([np.roll([0.5, 0.3, 0.2, 0, 0, 0], n) for n in range(6)])
    close(ranked(np.broadcast_to(cyclic, (1, 2, 6, 6)), 4)[:, 1:], np.full((1, 5), 1 / 6))
    left = ranked(given, 60)[:, 1:]
    close(ranked(given, 61)[:, 1:], left)


def test_zero_tprune_of_one_turn_is_the_mean_given():
    given = drawn(2, 2, 6, 6)
    close(ranked(given, 1)[:, 1:], np.sqrt((given.mean(2) ** 2).mean(1))[:, 1:])


def test_zero_tprune_drops_one_of_two_equals():
    inputs, x, keys = "x: real[B, 7, 4], k: real[B, 7, 1, 4]", normal(1, 7, 4), normal(1, 7, 1, 4)
    keys[:, 3] = 2 * keys[:, 4]  # the third comes before: at an odd place, it may go
    left = piece("zero_tprune", inputs, "return unrepeated(x, k, 1)")(x=x, k=keys)
    np.testing.assert_array_equal(left, x[:, [0, 1, 2, 4, 5, 6]])
    all_left = piece("zero_tprune", inputs, "return unrepeated(x, k, 0)")(x=x, k=keys)
    np.testing.assert_array_equal(all_left, x)


# ---- GTP-ViT


def test_gtp_graph():
    x = normal(1, 17, 8)
    model = piece("gtp_vit", "x: real[B, 17, 8]", "return graph(x, 4)")
    g = model(x=x)[0]
    assert (g[0] == 0).all() and (g[:, 0] == 0).all() and (np.diag(g) == 0).all()
    joined = g > 0
    row, column = np.arange(16) // 4, np.arange(16) % 4
    touching = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column)) == 1
    assert joined[1:, 1:][touching].all()
    u = x[0, 1:] / np.linalg.norm(x[0, 1:], axis=1, keepdims=True)
    alike = u @ u.T - 9 * np.eye(16)
    near = np.zeros((16, 16), bool)
    np.put_along_axis(near, np.argsort(-alike)[:, :3], True, 1)
    np.testing.assert_array_equal(joined[1:, 1:], near | touching)
    degree = joined.sum(1)
    close(g, joined / np.sqrt(np.maximum(degree[:, None] * degree, 1)))


def test_gtp_without_alpha_prunes_and_with_it_tells():
    inputs = "x: real[B, 6, width], g: real[B, 6, 6], size: real[B, 6]"
    body = "pair = layer(tag(x, size = size), g, 2)   return [pair[0], pair[1], pair[0].size]"
    told, pruned = (piece("gtp_vit", inputs, body, alpha=a) for a in (0.1, 0.0))
    g = np.abs(normal(2, 6, 6)) / 6
    given = {"x": normal(2, 6, 32), "g": g, "size": np.ones((2, 6))}
    alone = {**given, "g": 0 * g}
    y, left, size = told.all(**given)
    assert y.shape == (2, 4, 32) and left.shape == (2, 4, 4)
    close(told(**alone), pruned(**given))
    differ(y, pruned(**given))
    assert (size >= 1).all() and (size > 1).any() and (size.sum(1) <= 6).all()
    whole = piece("gtp_vit", inputs, body.replace("g, 2", "g, 0"))
    order = np.array([0, 3, 5, 1, 4, 2])  # equivariant: the result's order is that of the worth
    turned = {"x": given["x"][:, order], "g": g[:, order][:, :, order], "size": given["size"]}
    close(whole(**turned), whole(**given))


# ---- CrossGET

GUIDED = "x: real[B, 9, 4], size: real[B, 9], keys: real[B, 9, 4], guide: real[B, 9, 4]"
FUSE = "y = fused(tag(x, size = size), keys, guide, {})   return [y, y.size]"


def test_crossget_keeps_order_and_ends():
    x, keys, guide = normal(2, 9, 4), normal(2, 9, 4), normal(2, 9, 4)
    given = {"x": x, "size": np.ones((2, 9)), "keys": keys, "guide": guide}
    whole, _ = piece("crossget", GUIDED, FUSE.format(0)).all(**given)
    np.testing.assert_array_equal(whole, x)
    y, size = piece("crossget", GUIDED, FUSE.format(3)).all(**given)
    assert y.shape == (2, 6, 4)
    np.testing.assert_array_equal(size.sum(1), [9, 9])
    for b in range(2):
        np.testing.assert_array_equal(y[b, [0, -1]], x[b, [0, -1]])
        untouched = [np.flatnonzero((x[b] == token).all(-1)) for token, n in zip(y[b], size[b], strict=True) if n == 1]
        places = [p[0] for p in untouched]
        assert places == sorted(places) and len(places) >= 3


def test_crossget_of_equal_importance_is_the_mean():
    x, size = normal(2, 9, 4), RNG.uniform(1, 3, (2, 9))
    given = {"x": x, "size": size, "keys": normal(2, 9, 4), "guide": np.zeros((2, 9, 4))}
    y, sizes = piece("crossget", GUIDED, FUSE.format(3)).all(**given)
    close((sizes[..., None] * y).sum(1), (size[..., None] * x).sum(1))
    guided = {**given, "guide": normal(2, 9, 4)}
    differ(piece("crossget", GUIDED, FUSE.format(3)).all(**guided)[0], y)


# ---- SparseFormer


def looked(map, place):
    side = round(map.shape[1] ** 0.5)
    return piece("sparseformer", f"map: real[B, {side * side}, 3], place: real[B, N, P, 2]",
                 f"return sampled(map, place, {side})")(map=map, place=place)  # fmt: skip


def test_sparseformer_samples():
    map, cells = normal(2, 16, 3), (np.arange(4) + 0.5) / 4
    place = np.stack(np.meshgrid(cells, cells), -1).reshape(1, 1, 16, 2).repeat(2, 0)
    close(looked(map, place)[:, 0], map)
    assert (looked(map, place + 1.2) == 0).all() and (looked(map, place - 1.2) == 0).all()
    plane = np.stack([place[0, 0, :, 0], place[0, 0, :, 1], 0 * place[0, 0, :, 0] + 1], -1)[None]
    inside = RNG.uniform(0.125, 0.875, (1, 3, 5, 2))
    close(looked(plane, inside), np.concatenate([inside, np.ones((1, 3, 5, 1))], -1))


FOCUS = "x: real[B, 4, narrow], box: real[B, 4, 4], map: real[B, 16, channels]"


def test_sparseformer_boxes():
    model = piece("sparseformer", FOCUS, "pair = focus(x, box, map, 4)   return [pair[0], pair[1]]")
    box = np.concatenate([RNG.uniform(0.3, 0.7, (2, 4, 2)), RNG.uniform(0.1, 0.3, (2, 4, 2))], -1)
    given = {"x": normal(2, 4, 16), "box": box, "map": normal(2, 16, 8)}
    still = model.with_params(adjust_weight=0.0, adjust_bias=0.0)
    close(model.all(params=still, **given)[1], box)
    moved = model.all(params=model.with_params(adjust_weight=5.0), **given)[1]
    assert (moved[..., 2:] > 0).all()
    differ(moved, box)
    # a map that is moved with its boxes, beyond the borders zero, gives the same
    wide = np.zeros((2, 8, 8, 8))
    wide[:, 2:6, 2:6] = given["map"].reshape(2, 4, 4, 8)
    far = piece("sparseformer", FOCUS.replace("16,", "64,"), "pair = focus(x, box, map, 8)   return [pair[0], pair[1]]")
    shifted = {
        **given,
        "box": np.concatenate([box[..., :2] / 2 + 0.25, box[..., 2:] / 2], -1),
        "map": wide.reshape(2, 64, 8),
    }
    close(far(params=still, **shifted), model(params=still, **given))


# ---- PH-Reg

IMAGE = normal(1, 16, 16, 3)


def _untaught(model, moves):
    """The student's parameters are the teacher's."""
    teacher = {p: x for p, x in model.params.items() if p.startswith("teacher.")}
    same = {p.replace("teacher.", "student.", 1): x for p, x in teacher.items()}
    return {**model.params, **same, "moves": np.asarray(moves, float)}


def test_ph_reg_of_one_view_and_no_registers_is_the_teacher():
    model = small("ph_reg", count=0, views=1)
    params = _untaught(model, [[0, 0, 0]])
    close(model.report("distance", params=params, image=IMAGE), np.zeros((1, 16, 1)))
    close(model.report("angle", params=params, image=IMAGE), np.zeros((1, 16, 1)))
    other = _untaught(model, [[1, 0, 0]])
    differ(model.report("distance", params=other, image=IMAGE), np.zeros((1, 16, 1)))


def test_ph_reg_registers_have_no_order():
    model = small("ph_reg")
    tokens = model.params["student.extra.tokens"]
    params = {**model.params, "student.extra.tokens": tokens[::-1]}
    close(model(params=params, image=IMAGE), model(image=IMAGE))
    differ(model(params={**params, "student.extra.tokens": 0 * tokens}, image=IMAGE), model(image=IMAGE))


def test_ph_reg_mirrors_are_a_group():
    target = piece("ph_reg", "image: real[B, pixels, pixels, 3]", TARGET, views=2)
    params = {**target.params, "moves": np.array([[0.0, 0, 0], [0, 0, 1]])}
    y = target(params=params, image=IMAGE).reshape(4, 4, 32)
    close(target(params=params, image=IMAGE[:, :, ::-1]).reshape(4, 4, 32), y[:, ::-1])
    alone = target(params={**params, "moves": np.zeros((2, 3))}, image=IMAGE)
    differ(alone.reshape(4, 4, 32), y)


SPEC = (FAMILY.folder / "ph_reg.tfm").read_text(encoding="utf-8")
TARGET = SPEC[SPEC.index("model ph_reg") : SPEC.index("  student = ")].split("{", 1)[1] + "  return target"
