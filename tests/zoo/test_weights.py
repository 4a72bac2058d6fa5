"""What the papers behind examples/zoo/weights and examples/zoo/precision promise, at small sizes, in float64."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.reference.program import evaluate
from tfc.front import front
from tfc.testing.family import Family, close, differ, replaced

pytestmark = pytest.mark.usefixtures("x64")

ZOO = Path(__file__).parents[2] / "examples" / "zoo"
T = 8
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 64, (2, T)).astype(np.int32)
LENGTHS = np.array([T, 5], np.int32)
PICTURES = RNG.normal(size=(2, 16, 16, 3))


FAMILIES = {name: Family(ZOO / name) for name in ("weights", "precision")}


def small(family, name, change=None, **sets):
    return FAMILIES[family].small(name, change, **sets)


# ---- causality, and padding that changes nothing

CAUSAL = [
    "matformer",
    "mixtral",
    "smoe_dropout",
    "spark_ffn",
    "lora",
    "memoryformer",
    "mohd",
    "gstack",
    "lipschitz",
    "fusegpt",
]


@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name):
    model = small("weights", name)
    moved = TOKENS.copy()
    moved[:, 5] = (moved[:, 5] + 1) % 64
    change = np.abs(model(tokens=TOKENS) - model(tokens=moved)).max(axis=(0, 2))
    assert (change[:5] == 0).all() and change[5] > 0


@pytest.mark.parametrize("family, name", [
    ("weights", "essential_sparsity"), ("weights", "dsformer"), ("weights", "emoe"), ("weights", "flexibert"),
    ("precision", "outlier_suppression"),
])  # fmt: skip
def test_padding_changes_nothing(family, name):
    # flexibert's Fourier and convolution layers mix all positions: only its attention is masked
    change = replaced(("[look, dynamic, look, fourier]", "[look, look]")) if name == "flexibert" else None
    model = small(family, name, change)
    moved = TOKENS.copy()
    moved[1, 5:] = (moved[1, 5:] + 1) % 64
    found, other = (model(tokens=t, lengths=LENGTHS) for t in (TOKENS, moved))
    if name == "outlier_suppression":  # one scale for the whole tensor, padding included
        differ(found[1, :5], other[1, :5])
        model = small(
            family, name, replaced(('rounded((x - center) / stretch, int8(per = "tensor"))', "(x - center) / stretch"))
        )
        found, other = (model(tokens=t, lengths=LENGTHS) for t in (TOKENS, moved))
    close(found[0], other[0])
    close(found[1, :5], other[1, :5])


# ---- weights


def test_essential_sparsity_two_of_four():
    model = small("weights", "essential_sparsity")
    params = {}
    for path, x in model.params.items():
        pruned = x.copy()
        if path.endswith(".weight") and "embed" not in path and x.ndim == 3:
            groups = np.abs(x).reshape(x.shape[0], -1, 4, x.shape[2])
            rank = np.argsort(np.argsort(-groups, axis=2, kind="stable"), axis=2)
            pruned = np.where((rank < 2).reshape(x.shape), x, 0)
            assert ((pruned != 0).reshape(x.shape[0], -1, 4, x.shape[2]).sum(axis=2) == 2).all()
        params[path] = pruned
    dense = small("weights", "essential_sparsity", replaced(("weights = pattern", "weights = none")))
    close(model(tokens=TOKENS, lengths=LENGTHS), dense(params=params, tokens=TOKENS, lengths=LENGTHS))
    close(model(params=params, tokens=TOKENS, lengths=LENGTHS), model(tokens=TOKENS, lengths=LENGTHS))  # idempotent


def test_dsformer_all_of_a_group_is_low_rank():
    whole = small("weights", "dsformer", kept=4)
    plain = small("weights", "dsformer", replaced((", weights = nm(kept, group)", "")))
    close(whole(tokens=TOKENS, lengths=LENGTHS), plain(tokens=TOKENS, lengths=LENGTHS))
    differ(whole(tokens=TOKENS, lengths=LENGTHS), small("weights", "dsformer")(tokens=TOKENS, lengths=LENGTHS))


def test_matformer_uses_a_prefix():
    half, whole = small("weights", "matformer", share=2), small("weights", "matformer")
    params = dict(half.params)
    for name, at in (("layer.feed.up", -1), ("layer.feed.down", -2)):
        params[name] = params[name].copy()
        params[name][(..., slice(32, None)) if at == -1 else (slice(None), slice(32, None))] = 7.0
    close(half(params=params, tokens=TOKENS), half(tokens=TOKENS))  # the units beyond are not read
    params["layer.feed.down"] = params["layer.feed.down"].copy()
    params["layer.feed.down"][:, 32:] = 0.0
    close(half(tokens=TOKENS), whole(params=params, tokens=TOKENS))


def test_mixtral_equal_experts_are_one():
    model = small("weights", "mixtral")
    params = {p: np.broadcast_to(x[:, :1], x.shape) if ".expert." in p else x for p, x in model.params.items()}
    experts = "experts(rms@before_feed(x, eps = 1e-5), count, chosen, expert)"

    def dense(text):
        return text[: text.index("names hf")].replace(experts, "expert(rms@before_feed(x, eps = 1e-5))")

    one = small("weights", "mixtral", dense)
    theirs = {p.replace("experts.expert", "expert"): x[:, 0] if ".expert." in p else x for p, x in params.items()}
    theirs = {p: x for p, x in theirs.items() if p in one.params}
    close(model(params=params, tokens=TOKENS), one(params=theirs, tokens=TOKENS))
    assert (model.report("balance", tokens=TOKENS) > 0).all()


def test_mixtral_permuting_experts():
    model, order = small("weights", "mixtral"), [2, 0, 3, 1]
    params = {
        p: x[:, order] if ".expert." in p else x[..., order] if "router" in p else x for p, x in model.params.items()
    }
    close(model(params=params, tokens=TOKENS), model(tokens=TOKENS))


def test_smoe_dropout_all_chosen():
    every, model = small("weights", "smoe_dropout", chosen=4), small("weights", "smoe_dropout")
    differ(every(tokens=TOKENS), model(tokens=TOKENS))
    frozen = [s.path for s in model.program.stored() if not s.trained]
    assert frozen == ["layer.experts.router.weight"]


def test_emoe_all_clusters_are_the_dense_network():
    every = small("weights", "emoe", chosen=8)
    dense = small("weights", "emoe", replaced(("if(kept[b, t, e], 1, 0) *", "")))
    close(every(tokens=TOKENS, lengths=LENGTHS), dense(tokens=TOKENS, lengths=LENGTHS))
    differ(every(tokens=TOKENS, lengths=LENGTHS), small("weights", "emoe")(tokens=TOKENS, lengths=LENGTHS))


def test_spark_threshold_is_shift_invariant_and_leaves_few():
    model = small("weights", "spark_ffn")
    x = RNG.normal(size=4000)
    theta = x.mean() + x.std(ddof=1) * 1.4050715603096329  # the quantile of 0.92
    assert abs((x > theta).mean() - 0.08) < 3 * np.sqrt(0.08 * 0.92 / 4000)
    params = model.with_params(predict_weight=0.0)  # all equal: nothing is above the mean
    other = model.with_params(predict_weight=0.0, up_weight=5.0)
    close(model(params=params, tokens=TOKENS), model(params=other, tokens=TOKENS))


def test_lora_starts_as_the_frozen_model():
    model = small("weights", "lora")
    params = model.with_params(own_up_weight=0.0)
    other = model.with_params(own_up_weight=0.0, own_down_weight=3.0)
    close(model(params=params, tokens=TOKENS), model(params=other, tokens=TOKENS))
    trained = {s.path for s in model.program.stored() if s.trained and "own" in s.path}
    assert len(trained) == 4 and not any("base" in path for path in trained)


def test_adaptformer_starts_as_the_frozen_model():
    model = small("weights", "adaptformer")
    params = model.with_params(adapter_up_weight=0.0, adapter_up_bias=0.0)
    other = model.with_params(adapter_up_weight=0.0, adapter_up_bias=0.0, adapter_down_weight=3.0)
    close(model(params=params, image=PICTURES), model(params=other, image=PICTURES))
    differ(model(params=params, image=PICTURES), model(image=PICTURES))


def test_memoryformer_codes_keep_when_scaled_and_weights_saturate():
    source = (ZOO / "weights" / "memoryformer.tfm").read_text(encoding="utf-8")
    start, end = source.index('"A linear layer as lookups'), source.index("attention look")
    alone = "tfm 1\nlet bits = 4\n" + source[start:end]
    alone += "model m(x: real[B, T, 8]) { return lookup(x, 3) }\n"

    program = front(alone, None, ()).lowered.program.bind({"B": 1, "T": 4})
    table, bias = RNG.normal(size=(2, 16, 3)), np.zeros(3)
    x = RNG.normal(size=(1, 4, 8))

    def run(x):
        params = {"lookup.table": jnp.asarray(table), "lookup.bias": jnp.asarray(bias)}
        return np.asarray(evaluate(program, params, {"x": jnp.asarray(x)}, jnp.float64)[0])

    code = (x.reshape(1, 4, 2, 4) >= 0) @ np.array([8, 4, 2, 1])
    sure = np.prod(1 / (1 + np.exp(-2 * np.abs(x.reshape(1, 4, 2, 4)))), axis=-1)
    rows = table[np.arange(2), code]
    close(run(x), (sure[..., None] * rows).sum(axis=2))
    close(run(1e3 * x), rows.sum(axis=2))


def test_acm_no_learner_and_every_learner():
    model = small("weights", "acm")
    bias = model.params["layer.feed.choose.bias"]
    none, every = (np.zeros_like(bias) for _ in range(2))
    none[..., 0], every[..., -1] = 1e3, 1e3
    params = model.with_params(choose_bias=none)
    close(
        model(params=params, image=PICTURES),
        model(params={**params, "layer.feed.down": 9 + params["layer.feed.down"]}, image=PICTURES),
    )
    close(model.report("cost", params=params, image=PICTURES), 0)
    close(model.report("cost", params=model.with_params(choose_bias=every), image=PICTURES), 1)


def test_mohd_all_parts_are_the_dense_model():
    model = small("weights", "mohd", shared=7, chosen=1, parts=8)  # the softmax over one part is 1
    parts = [(f"part_of@around_{f}(rms@before_{f}(x), {f})", f"{f}(rms@before_{f}(x))") for f in ("look", "feed")]
    dense = small("weights", "mohd", replaced(*parts))
    theirs = {p: model.params[_inside(p, model.params)] for p in dense.params}
    close(model(tokens=TOKENS), dense(params=theirs, tokens=TOKENS))


def _inside(path, known):
    for old, new in (("layer.look.", "layer.around_look.layer."), ("layer.feed.", "layer.around_feed.layer.")):
        moved = path.replace(old, new)
        if moved in known and moved != path:
            return moved
    return path


def test_looped_shares_and_one_turn_is_a_stack_of_three():
    model = small("weights", "looped")
    assert not any(s.repeats for s in model.program.stored())
    points = RNG.normal(size=(2, T, 5))
    one = small("weights", "looped", turns=1)
    three = small(
        "weights", "looped", replaced(("repeat turns as turn { x = body(x + start) }", "x = body(x + start)"))
    )
    close(one(points=points), three(points=points))
    differ(one(points=points), model(points=points))


def test_tleg_layers_lie_on_a_line():
    model = small("weights", "tleg")
    flat = model.with_params(slope=0.0)
    shared = small("weights", "tleg", replaced(("turn / turns", "0")))
    close(model(params=flat, image=PICTURES), shared(params={p: flat[p] for p in shared.params}, image=PICTURES))
    differ(model(image=PICTURES), model(params=flat, image=PICTURES))


def test_gstack_names_repeat_the_shallow_model():

    made = front(ZOO / "weights" / "gstack.tfm", {"width": "32", "heads": "4", "hidden": "64", "vocab": "64"})
    rows = [r for r in made.names["shallow"].each(made.lowered.program.stored()) if "feed.up" in r.theirs]
    assert [(r.theirs.split(".")[1], r.turns) for r in rows] == [(str(i % 6), (i,)) for i in range(24)]


def test_flexibert_fourier_mixes_as_the_transform_does():
    source = (ZOO / "weights" / "flexibert.tfm").read_text(encoding="utf-8")
    start, end = source.index('"Tokens mixed by the real part'), source.index('"A convolution whose kernel')

    alone = "tfm 1\n" + source[start:end] + "model m(x: real[B, T, 6]) { return fourier(x) }\n"
    program = front(alone, None, ()).lowered.program.bind({"B": 2, "T": 5})
    x = RNG.normal(size=(2, 5, 6))
    (y,) = evaluate(program, {}, {"x": jnp.asarray(x)}, jnp.float64)
    close(np.asarray(y), np.fft.fft2(x).real)


def test_lipschitz_residuals_are_convex():
    model = small("weights", "lipschitz", layers=1)
    still = small("weights", "lipschitz", replaced(("let share = 1 / (2 * layers)", "let share = 0")), layers=1)
    params = still.params
    words = params["words.weight"][TOKENS]
    close(still(tokens=TOKENS), words @ params["head.weight"])
    differ(still(tokens=TOKENS), model(tokens=TOKENS))


def test_fusegpt_starts_as_plain_removal_and_ones_add_the_removed_weight():
    model = small("weights", "fusegpt")
    start = model.with_params(rows=0.0, up=0.0)
    close(
        model(params=start, tokens=TOKENS),
        model(params={p: 4 * x if p.endswith("removed") else x for p, x in start.items()}, tokens=TOKENS),
    )
    ones = model.with_params(rows=1.0, columns=0.5, up=0.0)  # rank 2: 1 * 0.5 twice
    folded = {p: x + ones[p[: -len("kept")] + "removed"] if p.endswith("kept") else x for p, x in start.items()}
    close(model(params=ones, tokens=TOKENS), model(params=folded, tokens=TOKENS))


def test_wide_counts_its_parameters():
    model = small("weights", "wide")
    assert model.params["look.q.weight"].shape == (32, 64)
    permuted = TOKENS[:, ::-1].copy()
    differ(model(tokens=TOKENS), model(tokens=permuted))  # positions count


def test_vit_permuting_patches_with_their_positions():
    model = small("weights", "vit")
    order = RNG.permutation(16)
    moved = PICTURES.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 4, 4, 3)[:, order]
    image = moved.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 16, 3)
    params = dict(model.params)
    place = params["place.weight"].copy()
    place[1:] = place[1:][order]
    close(model(params={**params, "place.weight": place}, image=image), model(image=PICTURES))


# ---- precision


@pytest.mark.parametrize("name, off", [
    ("llm_int8", 'weights = int8   inputs = int8(per = "row", outliers = 6.0)'),
    ("fp8", "weights = fp8   inputs = fp8(per = \"row\")"),
    ("teacher_intervention", 'weights = ternary   inputs = int8(per = "tensor")'),
])  # fmt: skip
def test_rounding_is_near_and_is_rounding(name, off):
    change = (
        replaced((off, ""))
        if name != "fp8"
        else replaced((off, ""), ("   kv_cache = fp8", ""), (", weights = none, inputs = none", ""))
    )
    model, exact = small("precision", name), small("precision", name, change)
    given = {"tokens": TOKENS}
    if name == "teacher_intervention":
        given |= {"taught": RNG.normal(size=(2, T, 32)), "lengths": LENGTHS}
    found, wanted = model(**given), exact(**given)
    differ(found, wanted)
    far = {"llm_int8": 0.1, "fp8": 0.5, "teacher_intervention": 2.0}[name]
    assert np.sqrt(((found - wanted) ** 2).mean()) < far * np.sqrt((wanted**2).mean())


def test_llm_int8_keeps_outlying_channels():
    every = small("precision", "llm_int8", replaced(("outliers = 6.0", "outliers = 0.0"), ("weights = int8   ", "")))
    exact = small(
        "precision", "llm_int8", replaced(('weights = int8   inputs = int8(per = "row", outliers = 6.0)', ""))
    )
    close(every(tokens=TOKENS), exact(tokens=TOKENS), 1e-9)


def test_gptq_weights_on_their_grid_stay():
    model = small("precision", "gptq", layers=1)
    held = {s.path: s.fit for s in model.program.stored() if s.format is not None}
    assert {str(f) for f in held.values()} == {"gptq"} and "head.weight" not in held
    assert len(held) == 7


def test_kv_int8_rounds_keys_and_values_only():
    model = small("precision", "kv_int8")
    names = [e.op.name for _, body in model.program.bodies() for e in body.eqns]
    assert names.count("rounded") == 2
    exact = small("precision", "kv_int8", replaced(('kv_cache = int8(per = "row")', "kv_cache = none")))
    found, wanted = model(tokens=TOKENS), exact(tokens=TOKENS)
    differ(found, wanted)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_outlier_suppression_is_the_same_function_before_rounding():
    bare = (("format = int8(fit = shift_scale)", "trained = yes"),
            ('rounded((x - center) / stretch, int8(per = "tensor"))', "(x - center) / stretch"))  # fmt: skip
    model = small("precision", "outlier_suppression", replaced(*bare))
    given = {"tokens": TOKENS, "lengths": LENGTHS}
    params = dict(model.params)
    new = {"center": lambda x: RNG.normal(size=x.shape), "stretch": lambda x: 1 + RNG.random(x.shape)}
    moved = {p: new.get(p.rsplit(".", 1)[-1], lambda x: x)(x) for p, x in params.items()}
    close(model(params=moved, **given), model(params=params, **given))


def test_bct_a_block_as_long_as_the_row_is_one_scale_a_row():
    given = {"tokens": TOKENS, "lengths": LENGTHS}
    sizes = {"block_size": 64, "hidden": 64, "width": 64}
    change = replaced(("inputs  = int8(group = block_size)", 'inputs  = int8(per = "row")'))
    close(small("precision", "bct", **sizes)(**given), small("precision", "bct", change, **sizes)(**given))
    differ(
        small("precision", "bct", **sizes)(**given), small("precision", "bct", **{**sizes, "block_size": 8})(**given)
    )


def test_teacher_intervention_layers_do_not_depend_on_those_before():
    model = small("precision", "teacher_intervention")
    taught = RNG.normal(size=(2, T, 32))
    given = {"tokens": TOKENS, "lengths": LENGTHS, "taught": taught}
    other = model.with_params(look_out_weight=3.0)
    close(model(**given), model(params=other, **given))  # the student's own step is reported, not used
    differ(model.report("gap", **given), model.report("gap", params=other, **given))


def test_codebook_writes_sums_of_entries():
    model = small("precision", "codebook_features", layers=1)
    flat = model.with_params(codes=0.0)
    other = model.with_params(codes=0.0, look_out_weight=2.0)
    close(model(params=flat, tokens=TOKENS), model(params=other, tokens=TOKENS))


def test_mx_scales_by_powers_of_two():
    model = small("precision", "mxfp4", layers=1)
    held = [s.path for s in model.program.stored() if s.format is not None]
    assert held and all(".expert." in p for p in held)
    # twice the weights of `up`, half those of `down`: only exponents move
    params = {
        p: 2 * x if p.endswith("up.weight") else x / 2 if p.endswith("down.weight") else x
        for p, x in model.params.items()
    }
    close(model(params=params, tokens=TOKENS), model(tokens=TOKENS))
