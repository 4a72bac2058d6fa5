"""The pass against the quadratic form of codes in numpy, float64, and against the library's own hashed attention."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.attended import attended
from tfc.backends.reference.program import evaluate
from tfc.diagnostics import TfcError
from tfc.front import front
from tfc.passes.base import Contract
from tfc.passes.hash_attention import ROLES, HashAttention
from tfc.passes.pipeline import DEFAULT
from tfc.testing.stage import FAST

B, T = 3, 7
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, 8))
REAL = np.arange(T) < np.array([7, 4, 0])[:, None]
SPEC = """tfm 1
let kv_heads = 4, mask = yes
model m(x: real[B, T, 8], real: bool[B, T]) {
  x = tag(x, real = real)
  return attention@look(x, heads = 4, kv_heads = kv_heads, head_dim = 2, mask = MASK)
}
"""
BITS, ANCHORS = 6, 5
HASH: dict[str, Any] = {"bits": BITS, "anchors": ANCHORS}


def spec(mask: str) -> str:
    return SPEC.replace("MASK", mask).replace(", mask = yes", "")


def drawn(program, scale=1.0) -> dict[str, np.ndarray]:
    """Of a stored parameter the same numbers whatever the program; distances of the size of 1."""
    out = {}
    for stored in program.stored():
        rng = np.random.default_rng(list(stored.path.encode()))
        out[stored.path] = scale * rng.normal(size=stored.type.ints)
        if stored.path.endswith("spread"):
            out[stored.path] = 0.5 + rng.uniform(size=stored.type.ints)
        if stored.path.endswith("center"):
            out[stored.path] = 0.3 + 0.1 * out[stored.path]
    return out


def values(program, params, x=X, real=REAL):
    bound = program.bind({"B": len(x), "T": x.shape[1]})
    tree = {p: jnp.asarray(v) for p, v in params.items()}
    given = {"x": jnp.asarray(x), "real": jnp.asarray(real)}
    call = jax.jit(lambda tree, given: evaluate(bound, tree, given, jnp.float64)[0], compiler_options=FAST)
    return np.asarray(call(tree, given))


def hashed(mask="k.real", kv_heads=4, **options):
    before = front(spec(mask), {"kv_heads": kv_heads}, ())
    done = HashAttention(**HASH, **options)(before.program)
    assert not done.notes
    return done


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def quadratic(p, seen, variant="paired", kv_heads=4, x=X, bias=BITS + 1):
    """seen: [B, T, T]"""
    heads = {"q": 4, "k": kv_heads, "v": kv_heads}
    q, k, v = ((x @ p[f"look.{n}.weight"]).reshape(*x.shape[:2], h, 2) for n, h in heads.items())

    def code(u, group):
        anchor, vote, center, spread = (np.repeat(p[f"look.{role}"], group, 0) for role in ROLES)
        away = ((unit(u)[:, :, :, None] - anchor) ** 2).sum(-1)
        g = np.einsum("hra,btha->bthr", vote, np.exp(-away / (2 * spread[:, None])) - center)
        assert np.abs(g).min() > 1e-9
        return np.where(g >= 0, 1, -1)

    t, s = code(q, 4 // kv_heads), np.repeat(code(k, 1), 4 // kv_heads, 2)
    own = np.einsum("bihr,bjhr->bhij", t, s) * seen[:, None]
    whole = own + bias * seen[:, None]
    weights = whole if variant == "paired" else own + bias * np.eye(x.shape[1])
    weights = weights / np.maximum(whole.sum(-1, keepdims=True), 1)
    y = np.einsum("bhij,bjhd->bihd", weights, np.repeat(v, 4 // kv_heads, 2))
    return y.reshape(*x.shape[:2], 8) @ p["look.out.weight"], whole


MASKS = {
    "yes": np.ones((B, T, T), bool),
    "k.real": np.broadcast_to(REAL[:, None], (B, T, T)),
    "causal": np.broadcast_to(np.tri(T, dtype=bool), (B, T, T)),
    "k.real and q >= k": REAL[:, None] & np.tri(T, dtype=bool),
    "k < 3": np.broadcast_to(np.arange(T) < 3, (B, T, T)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", ["paired", "self"])
@pytest.mark.parametrize(("mask", "kv_heads"), [*((m, 4) for m in MASKS), ("k.real", 2), ("causal", 1)])
def test_it_is_the_quadratic_form(mask: str, kv_heads: int, variant: str) -> None:
    done = hashed(mask, kv_heads, variant=variant)
    p = drawn(done.program)
    expected, whole = quadratic(p, MASKS[mask], variant, kv_heads)
    found = values(done.program, p)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if variant == "paired" and "real" in mask:
        assert not found[2].any()  # a row that sees no key
    seen = np.broadcast_to(MASKS[mask][:, None], whole.shape)
    assert whole[seen].min() >= 1 and whole[seen].max() <= 2 * BITS + 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("variant", ["paired", "self"])
def test_it_is_the_librarys_hashed_attention(variant: str) -> None:
    """Under the same paths, so that a spec that names hashed_attention takes the parameters that the pass makes."""
    done = hashed(variant=variant)
    text = spec("yes").replace("attention@look(x, heads = 4, kv_heads = kv_heads, head_dim = 2)",
        f'hashed_attention@look(x, heads = 4, bits = {BITS}, anchors = {ANCHORS}, shared = no, frozen = yes,'
        f' variant = "{variant}", real = real)')  # fmt: skip
    other = front(text, {}, ()).program
    assert {s.path: s.type for s in other.stored()} == {s.path: s.type for s in done.program.stored()}
    p = drawn(done.program)
    np.testing.assert_allclose(values(other, p), values(done.program, p), atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_bias_of_its_own() -> None:
    done = hashed(bias=8.0)
    p = drawn(done.program)
    np.testing.assert_allclose(values(done.program, p), quadratic(p, MASKS["k.real"], bias=8)[0], atol=1e-12)
    for wrong in ({"bias": 6.0}, {"variant": "both"}, {"fit": "svd"}, {"anchors": 0}):
        with pytest.raises(ValueError, match="hash-attention"):
            HashAttention(**{**HASH, **wrong})


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_xla_form_agrees() -> None:
    """All of it in float64, values and gradients, at a length over one chunk of the recurrence."""
    x, real = RNG.normal(size=(2, 70, 8)), np.ones((2, 70), bool)
    text = "default precision { params = f64   compute = f64   reduce = f64 }\n"
    for variant, mask in (("paired", "causal"), ("self", "k.real")):
        whole = spec(mask).replace("tfm 1\n", f"tfm 1\n{text}")
        model = tfc.compile(whole, "cpu", passes=(HashAttention(**HASH, variant=variant), *DEFAULT))
        program = model.program
        p = {k: jnp.asarray(v) for k, v in drawn(program).items()}
        given = {"x": jnp.asarray(x), "real": jnp.asarray(real)}
        bound = program.bind({"B": 2, "T": 70})

        def ours(p, model=model, given=given):
            return model._variant(frozenset())[1](p, given)[0]

        def theirs(p, bound=bound, given=given):
            return evaluate(bound, p, given, jnp.float64)[0]

        np.testing.assert_allclose(
            jax.jit(ours, compiler_options=FAST)(p), jax.jit(theirs, compiler_options=FAST)(p), atol=1e-10
        )
        towards = jnp.asarray(RNG.normal(size=(2, 70, 8)))
        a, b = (
            jax.jit(lambda p, towards, f=f: jax.vjp(f, p)[1](towards)[0], compiler_options=FAST)(p, towards)
            for f in (ours, theirs)
        )
        for path in p:
            scale = max(1.0, float(np.abs(b[path]).max()))
            np.testing.assert_allclose(a[path], b[path], atol=1e-9 * scale, err_msg=path)
            assert bool(np.any(b[path])) == path.endswith("weight")  # what was fitted stays as it is


# ---- of a model


TWO = """tfm 1
let layers = 2
attention look { heads = 2   mask = k.real }
model two(tokens: int[B, T], lengths: int[B] = T) {
  embed words = embed { vocab = 32   width = 8 }
  real[b, t] = t < lengths[b]
  x = tag(5 * unit(words(tokens)), real = real)
  repeat layers as layer { x = x + look(x) }
  return x
}
"""
TOKENS = RNG.integers(0, 32, (4, 9)).astype(np.int32)
GIVEN = np.array([9, 5, 7, 9], np.int32)


def real_of(given):
    return np.arange(given["tokens"].shape[1]) < np.asarray(given["lengths"])[:, None]


def test_of_a_model_with_loops_fitted_to_what_it_attends_to() -> None:
    dense = tfc.compile(TWO, "cpu")
    params = dense.init(jax.random.key(1))
    data = attended(dense, params, [(TOKENS[:2, :7], np.array([7, 5])), (TOKENS, GIVEN)], real=real_of, progress=False)
    (place,) = data
    assert place == "layer.look" and data[place].queries.shape == (2, 6, 9, 2, 4)
    np.testing.assert_array_equal(data[place].real.sum(1), [7, 5, *GIVEN])
    step = HashAttention(**HASH, rate=0.5)
    model = tfc.compile(TWO, "cpu", passes=(step, *DEFAULT))
    packed = model.pack(params, data)
    assert packed.arrays["layer.look.anchor"].shape == (2, 2, ANCHORS, 4)
    y = model(packed, TOKENS, GIVEN)
    assert y.shape == (4, 9, 8) and np.isfinite(y).all()
    # what stands beyond a row's length never affects it
    other = np.where(np.arange(9) < GIVEN[:, None], TOKENS, 0)
    close = np.where(real_of({"tokens": TOKENS, "lengths": GIVEN})[..., None], y - model(packed, other, GIVEN), 0)
    assert np.abs(close).max() < 1e-6
    back = model.unpack(packed)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    with pytest.raises(TfcError, match="no statistics of it") as caught:
        model(params, TOKENS, GIVEN)
    assert caught.value.diagnostics[0].code == "E631"


def test_converted_to_a_spec_that_names_it() -> None:
    """`tfc convert`'s function: the hash functions are fitted, the rest is copied; the same as the pass has."""
    from tfc.conversion import convert

    text = TWO.replace("attention look { heads = 2   mask = k.real }", "")
    hashing = f"hashed_attention@look(x, heads = 2, bits = {BITS}, anchors = {ANCHORS}, shared = no, frozen = yes"
    to = tfc.compile(text.replace("look(x)", f"{hashing}, real = real)"), "cpu")
    dense = tfc.compile(TWO, "cpu")
    params = dense.init(jax.random.key(1))
    made = convert(dense, params, to, batches=[(TOKENS, GIVEN)], real=real_of, progress=False)
    model = tfc.compile(TWO, "cpu", passes=(HashAttention(**HASH), *DEFAULT))
    packed = model.pack(params, attended(dense, params, [(TOKENS, GIVEN)], real=real_of, progress=False))
    for role in ROLES:
        np.testing.assert_array_equal(made["layer"]["look"][role], packed.arrays[f"layer.look.{role}"])
    np.testing.assert_allclose(to(made, TOKENS, GIVEN), model(packed, TOKENS, GIVEN), atol=1e-5)
    elsewhere = tfc.compile(text.replace("look(x)", f"{hashing.replace('@look', '@other')}, real = real)"), "cpu")
    with pytest.raises(TfcError) as caught:
        convert(dense, params, elsewhere, batches=[(TOKENS, GIVEN)], real=real_of, progress=False)
    assert {d.code for d in caught.value.diagnostics} == {"E632"}


def test_by_name_of_the_place_and_held() -> None:
    text = """tfm 1
model m(x: real[B, T, 8]) {
  x = attention@near(x, heads = 2)
  repeat 2 as layer { x = x + attention@look(x, heads = 2) }
  return attention@far(x, heads = 2)
}
"""
    program = front(text, {}, ()).program

    def places(step: HashAttention, hold: frozenset[str] = frozenset()) -> set[str]:
        return {path.rpartition(".")[0] for path in step(program, hold).map.forward}

    assert places(HashAttention()) == {"near", "layer.look", "far"}
    assert places(HashAttention(places="layer.*")) == {"layer.look"}
    assert places(HashAttention(places="[nf]*")) == {"near", "far"}
    assert places(HashAttention(), frozenset(["hash-attention:far"])) == {"near", "layer.look"}
    nothing = HashAttention(places="other")(program)
    assert nothing.program is program and "no attention stands at a place like other" in str(nothing.notes[0])
    assert HashAttention.contract is Contract.APPROXIMATE


def test_self_needs_queries_and_values_of_the_same_tokens() -> None:
    text = "tfm 1\nmodel m(x: real[B, T, 8], y: real[B, T, 8]) { return attention(x, y, heads = 2) }\n"
    program = front(text, {}, ()).program
    assert not HashAttention()(program).notes
    (note,) = HashAttention(variant="self")(program).notes
    assert note.held and "not known to be of the same tokens" in note.message
