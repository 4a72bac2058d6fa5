"""What the papers behind examples/zoo/linear promise, at small sizes, by the definitions in float64."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from tfc.backends.reference.functions import DEFINED
from tfc.front import front
from tfc.testing.family import Family, close, differ, replaced, softmax

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = Family(Path(__file__).parents[2] / "examples" / "zoo" / "linear")
small, piece = FAMILY.small, FAMILY.piece
RNG = np.random.default_rng(0)
T = 12
TOKENS = RNG.integers(0, 16, (2, T)).astype(np.int32)
ALL, NOTHING = 1e9, -1e9
"""Biases of a gate's logarithm of a sigmoid: nothing is forgotten, or all."""


def normal(*shape):
    return RNG.normal(size=shape)


def moved(f, x, at):
    """Which tokens of the result move, by more than rounding and exactly, when the token `at` of x does: [T], [T]"""
    other = x.copy()
    other[:, at] = (x[:, at] + 1) % 16 if x.dtype == np.int32 else x[:, at] + normal(*x[:, at].shape)
    change = np.abs(f(x) - f(other))
    change = change.max(axis=(0, *range(2, change.ndim)))
    return change > 1e-9, change > 0


def shuffled(x):
    """The same tokens, all but the last in another order."""
    return np.concatenate([x[:, -2::-1], x[:, -1:]], axis=1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- all that are causal

CAUSAL = {
    "linear_transformer": ("pixels", {"layers": 1}),
    "performer": ("tokens", {"layers": 1}),
    "retnet": ("tokens", {"layers": 1}),
    "gla": ("tokens", {"layers": 1}),
    "transnormer": ("tokens", {"layers": 2}),
    "mamba2": ("tokens", {"layers": 1}),
    "mamba2_hybrid": ("tokens", {}),
    "zebra_llama": ("tokens", {}),
    "sse": ("tokens", {"layers": 1}),
    "lawcat": ("tokens", {"layers": 1}),
    "gp_molformer": ("tokens", {"layers": 1}),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_no_token_hears_of_later_ones(name):
    """The past stays to the last bit, and the last token reads the change."""
    key, sets = CAUSAL[name]
    model = small(name, **sets)
    some, exact = moved(lambda x: model(**{key: x}), TOKENS, 5)
    assert not exact[:5].any() and some[5] and some[5:].any()


# ---- sums of features


def test_linear_transformer_averages_values():
    """Weights are positive with sum 1: equal values come out as they are, whatever queries and keys say."""
    model = small("linear_transformer", layers=1)
    same = {"v_weight": 0.0, "place_weight": 0.0}
    other = model.with_params(**same, q_weight=-model.params["layer.look.q.weight"], k_bias=-0.2)
    close(model(params=model.with_params(**same), pixels=TOKENS), model(params=other, pixels=TOKENS), 1e-5)


def test_linear_transformer_knows_no_order():
    model = small("linear_transformer", layers=1)
    params = model.with_params(place_weight=0.0)
    close(model(params=params, pixels=shuffled(TOKENS))[:, -1], model(params=params, pixels=TOKENS)[:, -1])
    differ(model(pixels=shuffled(TOKENS))[:, -1], model(pixels=TOKENS)[:, -1])


def test_performer_draws_orthogonal_blocks():
    params = piece("performer", "x: real[B, T, width]", "return look(x)").params
    w = params["look.turn"]
    assert w.shape == (16, 8)
    for block in (w[:8], w[8:]):
        close(block @ block.T, np.eye(8), 1e-5)


def test_performer_approaches_softmax():
    sums = "linear_attention@sums(x, heads = heads, feature = feature, eps = 0, direction = direction)"

    def plain(text):
        return text.replace(sums, "attention@sums(x, heads = heads, mask = causal)")

    def gentle(model):
        sums = {n: model.params[f"layer.look.sums.{n}.weight"] for n in "qk"}
        return model(params=model.with_params(**{f"{n}_weight": 0.3 * w for n, w in sums.items()}), tokens=TOKENS)

    true = gentle(small("performer", plain, layers=1))
    few, many = (np.abs(gentle(small("performer", layers=1, features=n)) - true).mean() for n in (16, 4096))
    assert many < few / 4 and many < 0.1 * np.abs(true).mean()


@pytest.mark.parametrize("kernel", ["softmax", "relu"])
def test_performer_forgets_the_order_of_features(kernel):
    model = piece("performer", "x: real[B, T, width]", "return look(x)", kernel=kernel)
    x = normal(2, T, 32)
    y = model(x=x)
    turned_round = {name: model.params[f"look.{name}"][::-1] for name in ("turn", "draw")}
    close(model(params=model.with_params(**turned_round), x=x), y)
    differ(model(params=model.with_params(turn=turned_round["turn"]), x=x), y)


def test_gp_molformer_averages_values_and_turns_before_the_features():
    model = small("gp_molformer", layers=1)
    same = model.with_params(v_weight=0.0)
    other = model.with_params(v_weight=0.0, q_weight=0.7, k_bias=-0.2)
    close(model(params=same, tokens=TOKENS), model(params=other, tokens=TOKENS), 1e-3)
    close(model(params=same, tokens=TOKENS)[:, -1], model(params=same, tokens=shuffled(TOKENS))[:, -1], 1e-3)
    differ(model(tokens=shuffled(TOKENS))[:, -1], model(tokens=TOKENS)[:, -1])


def test_one_layer_is_a_step_of_gradient_descent():
    model, d, n = small("one_layer"), 4, 10
    eta = 1 / (n + d + 1)
    params = model.with_params(map=np.diag([1.0] * d + [0]), value=np.array([0.0] * d + [eta]))
    x, y, query = normal(3, n, d), normal(3, n, 1), normal(3, 1, d)
    step = eta * np.einsum("bnd,bno->bd", x, y)  # from w = 0, of the sum of (w x - y)^2 / 2
    found = model(params=params, x=x, y=y, query=query)
    close(found, np.einsum("bd,bqd->bq", step, query)[..., None])
    close(model(params=params, x=x[:, ::-1], y=y[:, ::-1], query=query), found)
    turn = np.linalg.qr(normal(d, d))[0]
    close(model(params=params, x=x @ turn, y=y, query=query @ turn), found)
    close(model(params=params, x=x, y=-2 * y, query=query), -2 * found)


def test_one_layer_starts_at_the_optimum():
    start = {s.path: s.init.table for s in front(FAMILY.folder / "one_layer.tfm").program.stored()}
    assert start["value"][-1] == pytest.approx(1 / 61) and not np.any(start["value"][:-1])
    assert np.array_equal(np.reshape(start["map"], (21, 21)), np.diag([1.0] * 20 + [0]))


# ---- decays


def test_retnet_forgets_the_size_of_values_and_queries():
    """Each head is normalized after it, so what scales a whole row is lost."""
    model = small("retnet", layers=1)
    large = {name: 1000 * model.params[f"layer.look.{name}.weight"] for name in "qv"}
    first = model(params=model.with_params(look_v_weight=large["v"]), tokens=TOKENS)
    params = model.with_params(look_v_weight=large["v"], look_q_weight=large["q"])
    close(model(params=params, tokens=TOKENS), first, 1e-5)


def test_retnet_decays_by_head():
    """A value alone in a text is read `gap` tokens later as gamma ^ gap of itself, gamma = 1 - 2 ^ (-5 - h)."""
    alone = piece("retnet", "q: real[B, T, 2, 3], v: real[B, T, 2, 3]", "return recur(q, q, v, decay = retention)")
    v = np.zeros((1, T, 2, 3))
    v[:, 0] = 1
    y = alone(q=np.ones((1, T, 2, 3)), v=v)
    gamma = 1 - 2.0 ** (-5 - np.arange(2))
    close(y[0, :, :, 0], 3 * gamma ** np.arange(T)[:, None])


@pytest.mark.parametrize(("name", "gate"), [("gla", "decay"), ("lawcat", "gate")])
def test_gates_open_know_no_order_and_shut_no_past(name, gate):
    model = piece(name, "x: real[B, T, width]", "return look(x)")
    x = normal(2, T, 32)
    tap = np.zeros((4, 32))
    tap[0] = 1  # each token's own
    taps = {p.replace(".", "_"): tap[:, : v.shape[1]] for p, v in model.params.items() if p.endswith("taps")}
    given = {f"{gate}_weight": 0.0, **taps}
    open_ = model.with_params(**given, **{f"{gate}_bias": ALL})
    close(model(params=open_, x=shuffled(x))[:, -1], model(params=open_, x=x)[:, -1])
    differ(model(x=shuffled(x))[:, -1], model(x=x)[:, -1])
    shut = model.with_params(**given, **{f"{gate}_bias": NOTHING})
    some, _ = moved(lambda y: model(params=shut, x=y), x, 5)
    assert some[5] and some.sum() == 1


def test_lawcat_averages_values():
    """Values that are all 1 come out as 1, whatever is forgotten."""
    model = piece("lawcat", "x: real[B, T, width]", "return look(x)", replaced(("eps = 1e-6", "eps = 0.0")))
    x = normal(2, T, 32)
    x[..., 0] = 1
    v = np.zeros((32, 16))
    v[0] = 1
    y = model(params=model.with_params(look_v_weight=v), x=x)
    wanted = np.broadcast_to(model.params["look.out.weight"].sum(0), y.shape)
    close(y, wanted)


@pytest.mark.parametrize("variant", ["T1", "T2"])
def test_transnormer_looks_within_blocks_then_far(variant):
    near = piece("transnormer", "x: real[B, T, width]", "return near(x)", variant=variant)
    far = piece("transnormer", "x: real[B, T, width]", "return far(x)", variant=variant)
    x = normal(2, 20, 32)
    for at in (3, 7, 8, 17):
        some, exact = moved(lambda y: near(x=y), x, at)
        block = np.arange(20) // 8 == at // 8
        assert not exact[~block].any() and (some[at:] == block[at:]).all() and not exact[:at].any()
        some, exact = moved(lambda y: far(x=y), x, at)
        assert some[at:].all() and not exact[:at].any()


def test_transnormer_is_bounded():
    """The norm in place of the denominator: each head of what is far has mean square 1, however large values are."""
    far = piece("transnormer", "x: real[B, T, width]", "return far(x)")
    params = far.with_params(norm_scale=1.0, out_weight=np.eye(32), v_weight=1e4 * far.params["far.v.weight"])
    y = far(params=params, x=normal(2, 20, 32)).reshape(2, 20, 4, 8)
    close((y**2).mean(-1), np.ones((2, 20, 4)), 1e-5)


# ---- state space models

SCAN = "q: real[B, T, 2, 3], k: real[B, T, 2, 3], v: real[B, T, 2, 4], dt: real[B, T, 2]"


def test_mamba2_passes_over_tokens_of_no_time():
    scan = piece("mamba2", SCAN, "return state_space(q, k, v, dt)")
    given = {"q": normal(2, T, 2, 3), "k": normal(2, T, 2, 3), "v": normal(2, T, 2, 4), "dt": normal(2, T, 2)}
    given["dt"][:, 4] = -1e9
    without = {name: np.delete(x, 4, axis=1) for name, x in given.items()}
    close(np.delete(scan(**given), 4, axis=1), scan(**without))


def test_mamba2_without_decay_is_linear_attention():
    scan = piece("mamba2", SCAN, "return state_space(q, k, v, dt)")
    q, k, v, dt = normal(2, T, 2, 3), normal(2, T, 2, 3), normal(2, T, 2, 4), normal(2, T, 2)
    y = scan(params=scan.with_params(rate=-1e9, step=0.0, skip=0.5), q=q, k=k, v=v, dt=dt)
    score = np.einsum("bthn,buhn->bhtu", q, k * np.log1p(np.exp(dt))[..., None]) * np.tri(T)
    close(y, np.einsum("bhtu,buhd->bthd", score, v) + 0.5 * v)


def test_mamba2_groups_share_reads_and_writes():
    one = piece("mamba2", "x: real[B, T, 32]", "return mamba2(x, head_dim = 16, state = 3)")
    four = piece("mamba2", "x: real[B, T, 32]", "return mamba2(x, head_dim = 16, state = 3, groups = 4)")
    params, x = dict(one.params), normal(2, T, 32)
    for path in ("mamba2.in.weight", "mamba2.conv.weight", "mamba2.conv.bias"):
        values, writes, reads = np.split(params[path], [64, 67], axis=-1)
        params[path] = np.concatenate([values, *[writes] * 4, *[reads] * 4], axis=-1)
    close(four(params=params, x=x), one(x=x))


def test_mamba2_hybrid_has_the_published_order():
    order = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"
    assert [order.count(c) for c in "M-*"] == [24, 28, 4]
    kinds = {"core": "M", "up": "-", "q": "*"}
    stored = front(FAMILY.folder / "mamba2_hybrid.tfm").lowered.program.stored()
    parts = [s.path.split(".") for s in stored]
    made = {int(p[1]): kinds[p[3]] for p in parts if p[0] == "part" and p[3] in kinds}
    assert "".join(made[n] for n in range(56)) == order


def test_mamba2_hybrid_knows_order_by_its_state_alone():
    only = small("mamba2_hybrid", stack="[a]")
    close(only(tokens=shuffled(TOKENS))[:, -1], only(tokens=TOKENS)[:, -1])
    mixed = small("mamba2_hybrid", stack="[m, a]")
    differ(mixed(tokens=shuffled(TOKENS))[:, -1], mixed(tokens=TOKENS)[:, -1])


# ---- Zebra-Llama


def turned(x, base=10_000):
    """Rotary position of pairs (0, 1), (2, 3), .., x [B, T, .., D]."""
    d = x.shape[-1]
    angle = np.arange(T)[:, None] * base ** (-np.arange(d // 2) / (d // 2))
    angle = angle.reshape(1, T, *[1] * (x.ndim - 3), d // 2)
    a, b = x[..., ::2], x[..., 1::2]
    y = np.empty_like(x)
    y[..., ::2], y[..., 1::2] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return y


def test_zebra_llama_latent_attention_absorbs_its_maps():
    """Kept is the latent vector alone: keys' maps move to queries, values' behind the sum."""
    heads, groups, rank, plain, rotated, dim = 4, 2, 6, 4, 4, 8
    model = piece("zebra_llama", "x: real[B, T, width]", "return look(x, position = rope())")
    p = {path.split(".", 1)[1]: a for path, a in model.params.items()}
    x = normal(2, T, 32)
    latent = x @ p["kv_down.weight"]
    kept, shared = latent[..., :rank], turned(latent[..., rank:])
    q = (x @ p["q_down.weight"] @ p["q.weight"]).reshape(2, T, heads, rotated + plain)
    q_turned, q_plain = turned(q[..., :rotated]), q[..., rotated:]
    up = p["kv_up.weight"].reshape(rank, groups, plain + dim).repeat(heads // groups, axis=1)
    absorbed = np.einsum("bthd,rhd->bthr", q_plain, up[..., :plain])
    score = np.einsum("bthr,bur->bhtu", absorbed, kept) + np.einsum("bthd,bud->bhtu", q_turned, shared)
    score = np.where(np.tri(T, dtype=bool), score * (plain + rotated) ** -0.5, -np.inf)
    seen = np.einsum("bhtu,bur->bthr", softmax(score), kept)
    y = np.einsum("bthr,rhd->bthd", seen, up[..., plain:]).reshape(2, T, 32) @ p["out.weight"]
    close(model(x=x), y)


def test_zebra_llama_mamba_shares_keys_and_values_as_attention_did():
    """Heads of a group hold the same; and where all is forgotten at once, the convolution's reach is left."""
    x = normal(2, T, 16)
    model = piece("zebra_llama", "x: real[B, T, 16]", "return repeated(x)")
    close(model(x=x).reshape(2, T, 4, 8), x.reshape(2, T, 2, 8).repeat(2, axis=2))
    mamba = piece("zebra_llama", "x: real[B, T, width]", "return mamba(x)")
    x = normal(2, T, 32)
    some, exact = moved(lambda y: mamba(params=mamba.with_params(rate=40.0), x=y), x, 3)
    assert not exact[:3].any() and (some == (np.arange(T) >= 3) & (np.arange(T) < 7)).all()


# ---- Contrast

GRID = "x: real[B, 64, width]"


def test_contrast_scans_are_one_with_the_grid_turned():
    """One set of weights for all four ways: transposing or rotating the grid transposes or rotates the result."""
    model = piece("contrast", GRID, "return scanned(x)")
    params = dict(model.params)
    for path in params:
        for way in ("left", "down", "up"):
            if f".{way}." in path:
                params[path] = params[path.replace(f".{way}.", ".right.")]
    taps = params["scanned.near.weight"].copy()
    taps[[2, 6, 8]] = taps[0]
    taps[[3, 5, 7]] = taps[1]
    params["scanned.near.weight"] = taps
    x = normal(2, 8, 8, 16)
    y = model(params=params, x=x.reshape(2, 64, 16)).reshape(2, 8, 8, 16)
    transposed = model(params=params, x=x.swapaxes(1, 2).reshape(2, 64, 16)).reshape(2, 8, 8, 16)
    close(transposed, y.swapaxes(1, 2))
    rotated = model(params=params, x=x[:, ::-1, ::-1].reshape(2, 64, 16)).reshape(2, 8, 8, 16)
    close(rotated, y[:, ::-1, ::-1])
    differ(
        model(x=x.swapaxes(1, 2).reshape(2, 64, 16)).reshape(2, 8, 8, 16),
        model(x=x.reshape(2, 64, 16)).reshape(2, 8, 8, 16).swapaxes(1, 2),
    )


def test_contrast_windows_do_not_meet_where_they_do_not_fit():
    body = "return attention@look(grid(x, pixels), heads = heads, mask = squares(window))"
    model = piece("contrast", "x: real[B, 36, width]", body, pixels=6)
    row, column = np.arange(36) // 6, np.arange(36) % 6
    x = normal(1, 36, 16)
    for at in (0, 9, 28, 35):
        some, exact = moved(lambda y: model(x=y), x, at)
        met = (row // 4 == row[at] // 4) & (column // 4 == column[at] // 4)
        assert (some == met).all() and (exact == met).all()


# ---- SSE


def sse(**sets):
    return piece("sse", "x: real[B, T, width]", "return sse(x)", **sets)


def test_sse_partitions_are_changed_and_read_by_choice():
    """The shared state shut, a token is heard by later tokens of its own partition alone."""
    model = sse()
    given = {p.replace(".", "_"): NOTHING for p in model.params if p.endswith("shared.up.bias")}
    given |= {p.replace(".", "_"): 0.0 for p in model.params if p.endswith("shared.up.weight")}
    params = model.with_params(**given)
    x = normal(1, T, 32)
    choice = (x @ params["sse.router.weight"])[0].argmax(-1)
    assert len(set(choice)) > 1
    for at in range(T):
        other = x.copy()
        other[0, at] *= 1.5  # the same choice
        change = np.abs(model(params=params, x=other) - model(params=params, x=x)).max((0, 2))
        heard = (np.arange(T) == at) | ((np.arange(T) > at) & (choice == choice[at]))
        assert (change[~heard] == 0).all() and (change[heard] > 0).all()


def test_sse_partitions_have_no_order():
    model, x = sse(), normal(2, T, 32)
    params = model.with_params(router_weight=model.params["sse.router.weight"][:, [2, 0, 3, 1]])
    close(model(params=params, x=x), model(x=x))


def test_sse_with_one_partition_is_gated_linear_attention():
    """All choose the one with weight 1; with equal gates and no corrections it holds what the shared state does."""
    model, x = sse(partitions=1), normal(2, T, 32)
    p = model.with_params(q2_up_weight=0.0, k2_up_weight=0.0)
    for path in p:
        if ".sparse." in path:
            p[path] = p[path.replace(".sparse.", ".shared.")]
    by_head = {n: (x @ p[f"sse.{n}.weight"]).reshape(2, T, 2, 16) for n in "qkv"}
    g = (x @ p["sse.shared.down.weight"] @ p["sse.shared.up.weight"] + p["sse.shared.up.bias"]).reshape(2, T, 2, 16)
    keep = sigmoid(g) ** (1 / 16)
    q, k, v = by_head["q"] * sigmoid(by_head["q"]), softmax(by_head["k"]), by_head["v"] * sigmoid(by_head["v"])
    state, rows = np.zeros((2, 2, 16, 16)), []
    for t in range(T):
        state = keep[:, t, ..., None] * state + k[:, t, ..., None] * v[:, t, :, None]
        rows.append(np.einsum("bhk,bhkv->bhv", q[:, t], state) * 16**-0.5)
    y = 2 * np.stack(rows, 1)
    z = (x @ p["sse.gate_down.weight"] @ p["sse.gate_up.weight"]).reshape(2, T, 2, 16)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p["sse.norm.scale"] * z * sigmoid(z)
    close(model(params=p, x=x), y.reshape(2, T, 32) @ p["sse.out.weight"])


# ---- MossFormer


@pytest.mark.parametrize("term", ["near", "far"])
def test_mossformer_looks_within_groups_and_at_all(term):
    """Without convolutions, and the other kind of attention shut."""
    model = piece("mossformer", "x: real[B, T, width]", "return mixer(x)")
    other = {"near": "far", "far": "near"}[term]
    shut = {p.replace(".", "_"): 0.0 for p in model.params if f"{other}_q." in p or p.endswith("near.weight")}
    params, x = model.with_params(**shut), normal(2, 24, 16)
    some, exact = moved(lambda y: model(params=params, x=y), x, 2)
    if term == "near":
        assert some[2] and some[:8].sum() > 1 and not exact[8:].any()
    else:
        assert some.all()


def test_mossformer_gives_each_voice_the_whole_wave():
    model = small("mossformer", layers=1)
    wave = normal(1, 37, 1)  # no multiple of the stride
    y = model(wave=wave)
    assert y.shape == (1, 37, 2)
    silent = model(params=model.with_params(masks_weight=0.0, masks_bias=-1.0), wave=wave)
    assert not silent.any()


# ---- LMUFormer


def test_lmuformer_remembers_by_the_delay_system():
    order, window = 6, 16.0
    i, j = np.arange(order)[:, None], np.arange(order)[None, :]
    a = (2 * i + 1) / window * np.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    b = (2 * i + 1) / window * (-1.0) ** i
    held = scipy.linalg.expm(np.block([[a, b], [np.zeros((1, order + 1))]]))
    step, enter = held[:order, :order], held[:order, order]
    assert np.abs(np.linalg.eigvals(step)).max() < 1
    x = normal(2, 16, 4)
    model = piece("lmuformer", "x: real[B, steps, 4]", "return remembered(x)")
    p = {path.split(".", 1)[1]: v for path, v in model.params.items()}
    u = np.maximum(x @ p["input.weight"] + p["input.bias"], 0)[..., 0]
    m, rows = np.zeros((2, order)), []
    for t in range(16):
        m = m @ step.T + u[:, t, None] * enter
        rows.append(m)
    y = np.maximum(np.concatenate([np.stack(rows, 1), x], -1) @ p["state.weight"] + p["state.bias"], 0)
    close(model(x=x), y, 1e-6)  # the response is kept in float32


def test_lmuformer_memory_is_the_delayed_input():
    """The polynomials of degree n at 2 s / window - 1 give back what a smooth input was s steps ago."""
    response = np.asarray(DEFINED["legendre"](order=32, window=128.0, steps=128), np.float64)
    u = np.sin(np.arange(128) / 15)
    m = np.einsum("sn,s->n", response, u[::-1])
    for ago in (5, 20, 60, 100):
        assert abs(np.polynomial.legendre.legval(2 * ago / 128 - 1, m) - u[127 - ago]) < 0.05


def test_lmuformer_memory_is_causal():
    model = piece("lmuformer", "x: real[B, steps, 4]", "return remembered(x)")
    params = model.with_params(input_bias=5.0, state_bias=5.0)
    some, exact = moved(lambda y: model(params=params, x=y), normal(2, 16, 4), 6)
    assert not exact[:6].any() and some[6:].all()
