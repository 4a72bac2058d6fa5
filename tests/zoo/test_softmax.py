"""What the papers behind examples/zoo/softmax promise, at small sizes, by the definitions in float64."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tfc.testing.family import Family, close, differ
from tfc.testing.small import Small

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = Family(Path(__file__).parents[2] / "examples" / "zoo" / "softmax")
small = FAMILY.small
T = 10
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 64, (2, T)).astype(np.int32)
FRAMES = RNG.normal(size=(2, T, 8))
PICTURES = RNG.normal(size=(2, 32, 32, 3))


def moved(model, name, at, **inputs):
    """How much each token of the result moves when the input `name` changes at token `at`: [T]"""
    x = inputs[name].copy()
    x[:, at] = (x[:, at] + 1) % 64 if x.dtype == np.int32 else x[:, at] + 1
    change = np.abs(model(**inputs) - model(**{**inputs, name: x}))
    return change.max(axis=(0, *range(2, change.ndim)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A block of a spec on its own: `alone(spec, block, inputs, call)`."""
    folder = tmp_path_factory.mktemp("specs")
    for path in FAMILY.folder.glob("*.tfm"):
        shutil.copy(path, folder)

    def make(name, block, inputs, call):
        path = folder / f"{name}_{block}.tfm"
        text = f'import "{name}.tfm" ({block})\nmodel m({inputs}) {{ return {call} }}\n'
        path.write_text(f"# small: \ntfm 1\n{text}", encoding="utf-8")
        return Small(path)

    return make


# ---- causal ones: what follows a token leaves it bit for bit as it is

CAUSAL = ["bloom", "clipped_softmax", "gated_attention", "gemma2", "llama3", "qwen3", "streaming_llm", "gpt_oss"]


@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name):
    model = small(name, **({"turns": 1} if name in ("gemma2", "gpt_oss") else {"layers": 1}))
    change = moved(model, "tokens", 6, tokens=TOKENS)
    assert (change[:6] == 0).all() and change[6] > 0


def test_llama3_groups_are_repeated_heads():
    grouped, whole = small("llama3", layers=1), small("llama3", layers=1, kv_heads=4)
    params = dict(grouped.params)
    for name in ("layer.look.k.weight", "layer.look.v.weight"):
        params[name] = params[name].reshape(1, 32, 2, 8).repeat(2, axis=2).reshape(1, 32, 32)
    close(grouped(tokens=TOKENS), whole(params=params, tokens=TOKENS))


def test_bloom_penalty_is_one_of_the_key_alone():
    of_keys = small("bloom", lambda t: t.replace("alibi(heads)", "s + alibi_slope(h, heads) * k"), layers=1)
    close(small("bloom", layers=1)(tokens=TOKENS), of_keys(tokens=TOKENS))


def test_gemma2_logits_are_capped_and_a_wide_window_sees_all():
    model = small("gemma2", turns=1)
    params = model.with_params(words_weight=100 * model.params["words.weight"])
    y = model(params=params, tokens=TOKENS)
    assert np.abs(y).max() <= 30 and np.abs(y).max() > 29
    wide = small("gemma2", turns=1, reach=T)
    open_ = small("gemma2", lambda t: t.replace("causal and window(reach)", "causal"), turns=1)
    close(wide(tokens=TOKENS), open_(tokens=TOKENS))
    differ(wide(tokens=TOKENS), model(tokens=TOKENS))


def test_qwen3_forgets_the_size_of_queries_and_keys():
    model = small("qwen3", layers=1)
    params = model.with_params(
        look_q_weight=1000 * model.params["layer.look.q.weight"], look_k_weight=5 * model.params["layer.look.k.weight"]
    )
    close(model(params=params, tokens=TOKENS), model(tokens=TOKENS), 1e-4)  # eps of the norm


def test_gpt_oss_sinks():
    model = small("gpt_oss", turns=1)
    plain = small("gpt_oss", lambda t: re.sub(r"weigh *= sink\(logit\)", "", t), turns=1)
    close(model(params=model.with_params(logit=-1e9), tokens=TOKENS), plain(tokens=TOKENS))
    shut, other = model.with_params(logit=1e9), model.with_params(logit=1e9, v_weight=7.0)
    close(model(params=shut, tokens=TOKENS), model(params=other, tokens=TOKENS))


def test_streaming_sees_the_first_and_the_last():
    model = small("streaming_llm", layers=1)
    for at in range(T):
        change = moved(model, "tokens", at, tokens=TOKENS)
        seen = np.array([t >= at and (t - at < 4 or at < 2) for t in range(T)])
        assert ((change > 0) == seen).all(), at


# ---- T5

TEXTS = {"tokens": TOKENS[:, :7], "target": TOKENS}


def test_t5_decodes_causally_and_reads_all_of_the_text():
    model = small("t5", layers=1)
    change = moved(model, "target", 6, **TEXTS)
    assert (change[:6] == 0).all() and (change[6:] > 0).all()
    assert (moved(model, "tokens", 6, **TEXTS) > 0).all()


def test_t5_knows_order_by_its_tables_alone():
    model = small("t5", layers=1)
    flat = model.with_params(reach=0.0)
    turned = {**TEXTS, "tokens": TEXTS["tokens"][:, ::-1]}
    close(model(params=flat, **turned), model(params=flat, **TEXTS))
    differ(model(**turned), model(**TEXTS))


# ---- packed texts


@pytest.mark.parametrize("name", ["bytetransformer", "primer"])
def test_packed_texts_are_texts_apart(name):
    model = small(name, layers=1)
    segment = np.array([[0] * 4 + [1] * 6] * 2, np.int32)
    packed = model(tokens=TOKENS, segment=segment)
    close(packed[:, :4], model(tokens=TOKENS[:, :4], segment=segment[:, :4]))
    close(packed[:, 4:], model(tokens=TOKENS[:, 4:], segment=segment[:, 4:]))
    swapped = model(tokens=np.roll(TOKENS, 6, 1), segment=np.roll(segment, 6, 1))
    close(np.roll(swapped, 4, 1), packed)


def test_primer_with_one_tap_is_attention():
    model = small("primer", layers=1)
    plain = small("primer", lambda t: re.sub(r"[qkv] += convolved", "", t), layers=1)
    segment = np.zeros((2, T), np.int32)
    params = model.with_params(taps=np.array([1.0, 0, 0])[None, :, None])
    theirs = {p: params.get(p, params.get(p.replace(".weight", ".linear.weight"))) for p in plain.params}
    close(model(params=params, tokens=TOKENS, segment=segment), plain(params=theirs, tokens=TOKENS, segment=segment))
    change = moved(model, "tokens", 6, tokens=TOKENS, segment=segment)
    assert (change[:6] == 0).all() and (change[6:] > 0).all()


# ---- heads by keys


def test_kdgqa_gives_the_least_group_no_head():
    model = small("kdgqa", layers=1)
    k, v = model.params["classify.layer.look.k.weight"].copy(), model.params["classify.layer.look.v.weight"].copy()
    k[..., :8] *= 0.01
    v[..., :8] += 1
    y = model(params=model.with_params(k_weight=k), image=PICTURES)
    close(model(params=model.with_params(k_weight=k, v_weight=v), image=PICTURES), y)
    v[..., 8:] += 1
    differ(model(params=model.with_params(k_weight=k, v_weight=v), image=PICTURES), y)


def test_kdgqa_looks_at_the_whole_batch_and_not_at_its_size():
    model = small("kdgqa", layers=1)
    y = model(image=PICTURES)
    close(model(image=np.concatenate([PICTURES, PICTURES])), np.concatenate([y, y]))


def test_kdgqa_with_equal_norms_is_grouped_attention():
    model = small("kdgqa", layers=1)
    plain = small("kdgqa", lambda t: re.sub(r"shared_out@\w+\((\w+), share, heads\)", r"\1", t), layers=1)
    k = model.params["classify.layer.look.k.weight"].copy()
    k[..., 8:] = k[..., :8]
    params = model.with_params(k_weight=k)
    close(model(params=params, image=PICTURES), plain(params=params, image=PICTURES))


def test_dgqa_follows_what_has_changed():
    model = small("dgqa", layers=1)
    n = model.report("cache", image=PICTURES)
    assert n.shape == (1, 2) and (n > 0).all()
    v = model.params["classify.layer.look.v.weight"].copy()
    v[..., :8] += 1
    kept = model.with_params(look_cache=n * [1, 0.5])  # the first group is as it was: no head for it
    other = {**kept, "classify.layer.look.v.weight": v}
    close(model(params=other, image=PICTURES), model(params=kept, image=PICTURES))
    close(model.report("cache", params=kept, image=PICTURES), n)
    kept = model.with_params(look_cache=n * [0.5, 0.5])
    other = {**kept, "classify.layer.look.v.weight": v}
    differ(model(params=other, image=PICTURES), model(params=kept, image=PICTURES))


@pytest.mark.parametrize("norms, total", [([1.0, 1, 1], 4), ([1.0, 2, 4], 7), ([1.0, 1, 1], 8), ([0.1, 0.1, 5], 9)])
def test_dgqa_shares_sum_to_the_heads(alone, norms, total):
    model = alone("dgqa", "shares", "n: real[3]", f"shares(n, {total})")
    share = model(params=model.params, n=np.array(norms))
    fair = total * np.array(norms) / sum(norms)
    assert share.sum() == total and (share >= 0).all() and (np.abs(share - fair) < 2).all()


def test_pgqa_noise_leaves_means_of_zero(alone):
    model = alone("pgqa", "noise", "y: real[B, 5, 6, 4]", "y - noise(y)")
    y = RNG.normal(size=(3, 5, 6, 4))
    close(model(y=y).mean(axis=(1, 3)), np.zeros((3, 6)))
    noise = y - model(y=y)
    close(noise.std(axis=(1, 3), ddof=1), y.std(axis=(1, 3), ddof=1))


# ---- heads that do nothing


def test_clipped_rows_over_many_equal_keys_are_zero():
    model = small("clipped_softmax", layers=1)  # 12 / 16: three equal keys or more get nothing
    flat = model.with_params(look_q_weight=0.0, look_q_bias=0.0)
    silent = model.with_params(look_q_weight=0.0, look_q_bias=0.0, look_v_weight=0.0, look_v_bias=0.0)
    close(model(params=flat, tokens=TOKENS)[:, 2:], model(params=silent, tokens=TOKENS)[:, 2:])
    differ(model(params=flat, tokens=TOKENS)[:, :2], model(params=silent, tokens=TOKENS)[:, :2])


def test_clipping_nothing_and_open_gates_are_attention():
    gated, plain = small("gated_attention", layers=1), small("clipped_softmax", layers=1, alpha=0)
    renamed = {p: p.replace("r.look.", "r.gated_look.").replace("r.feed.", "r.ffn.") for p in plain.params}
    renamed = {p: ours.replace("before_feed", "before_think") for p, ours in renamed.items()}
    params = {p: gated.params[ours] for p, ours in renamed.items()}
    opened = gated.with_params(gated_look_bias=1e9)
    close(gated(params=opened, tokens=TOKENS), plain(params=params, tokens=TOKENS))
    shut, other = gated.with_params(gated_look_bias=-1e9), gated.with_params(gated_look_bias=-1e9, v_weight=9.0)
    close(gated(params=shut, tokens=TOKENS), gated(params=other, tokens=TOKENS))


# ---- HSTU

ACTIONS = {"actions_seen": TOKENS % 50, "time": np.cumsum(RNG.integers(0, 99, (2, T)), 1).astype(np.int32)}


def test_hstu_times_are_relative_and_the_past_is_all():
    model = small("hstu", layers=1)
    y = model(**ACTIONS)
    close(model(**{**ACTIONS, "time": ACTIONS["time"] + 1000}), y)
    change = moved(model, "actions_seen", 6, **ACTIONS)
    assert (change[:6] == 0).all() and (change[6:] > 0).all()


def test_hstu_without_scores_adds_its_bias():
    model = small("hstu", layers=1)
    wide = model.params["layer.mixer.uvqk.weight"].copy()
    wide[..., 2 * 2 * 8 :] = 0
    params = model.with_params(uvqk_weight=wide, lags=0.0, times=0.0)
    other = {**params, "layer.mixer.uvqk.weight": np.concatenate([wide[..., :16] + 1, wide[..., 16:]], -1)}
    close(model(params=params, **ACTIONS), model(params=other, **ACTIONS))


# ---- DependencyViT


def test_dependency_messages_are_conserved_and_linear_in_their_share(alone):
    model = alone("dependency_vit", "reversed", "x: real[B, T, 192], m: real[B, T]", "reversed(x, m)")
    x, m = RNG.normal(size=(2, 5, 192)), RNG.uniform(size=(2, 5))
    params = model.with_params(out_weight=np.eye(192), out_bias=0.0)
    y = model(params=params, x=x, m=m)
    v = (x @ params["reversed.v.weight"] + params["reversed.v.bias"]).reshape(2, 5, 12, 16)
    logits = 10 * x @ params["reversed.selector.weight"]
    head = np.exp(logits - logits.max(-1, keepdims=True))
    sent = (head / head.sum(-1, keepdims=True))[..., None] * m[..., None, None] * v
    close(y.sum(1), sent.sum(1).reshape(2, 192), 1e-7)
    half = np.where(np.arange(5) == 3, 0, m)
    close(y, model(params=params, x=x, m=half) + model(params=params, x=x, m=m - half))


def test_dependency_vit_drops_tokens():
    whole, light = small("dependency_vit"), small("dependency_vit", ratio=0.16)
    differ(whole(image=PICTURES), light(image=PICTURES))
    assert {p: x.shape for p, x in whole.params.items()} == {p: x.shape for p, x in light.params.items()}


# ---- ANCAT


def test_ancat_gates():
    soft, hard = small("ancat", layers=1), small("ancat", layers=1, hard="yes")
    path = next(p for p in soft.params if p.endswith("openness.linear.bias"))
    weight = path.replace("bias", "weight")
    for bias, last in ((-1e9, 6), (1e9, 9)):
        params = {**soft.params, path: 0 * soft.params[path] + bias, weight: 0 * soft.params[weight]}
        close(soft(params=params, frames=FRAMES), hard(params=params, frames=FRAMES))
        x = FRAMES.copy()
        x[:, last:] += 1
        change = np.abs(soft(params=params, frames=FRAMES) - soft(params=params, frames=x)).max(axis=(0, 2))
        assert change[5] == 0 if bias < 0 else (change[:6] == 0).all() and change[6] > 0
        assert np.isclose(soft.report("lookahead", params=params, frames=FRAMES).mean(), 0 if bias < 0 else 3)


# ---- GTrXL

MEMORY = RNG.normal(size=(2, 2, 4, 32))


def test_gtrxl_shut_gates_let_the_stream_pass():
    model = small("gtrxl")
    params = model.with_params(shut=1e9)
    x = FRAMES @ params["enter.weight"]
    close(model(params=params, observed=FRAMES, memory=MEMORY), x)


def test_gtrxl_memory_continues_a_segment():
    model = small("gtrxl")
    whole = model(observed=FRAMES, memory=MEMORY)
    entered = model.report("entered", observed=FRAMES[:, :6], memory=MEMORY)
    rest = model(observed=FRAMES[:, 6:], memory=np.concatenate([MEMORY, entered], 2))
    close(rest, whole[:, 6:])
    change = moved(model, "observed", 6, observed=FRAMES, memory=MEMORY)
    assert (change[:6] == 0).all() and (change[6:] > 0).all()
