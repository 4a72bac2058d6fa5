"""What EcoFormer promises beyond tests/zoo/test_lowrank.py, at small sizes, by the definitions in float64."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.testing.small import Small

pytestmark = pytest.mark.usefixtures("x64")

SPEC = Path(__file__).parents[2] / "examples" / "zoo" / "lowrank" / "ecoformer.tfm"
RNG = np.random.default_rng(0)
T, BITS = 12, 4
X = RNG.normal(size=(2, T, 8))
ANCHOR, CENTER = RNG.normal(size=(2, 5, 4)), 0.1 * RNG.normal(size=(2, 5))


def piece(inputs: str, body: str, **sets: object) -> Small:
    def cut(text: str) -> str:
        return f"{text[: text.index(chr(10) + 'model ')]}\nmodel piece({inputs}) {{ {body} }}\n"

    return Small(SPEC, cut, **sets)


def block(**sets: object) -> tuple[Small, dict[str, np.ndarray]]:
    model = piece("x: real[B, T, 8]", "return eco(x, 2)", **sets)
    return model, model.with_params(anchor=ANCHOR, center=CENTER)


def test_weights_are_positive_and_sum_to_one() -> None:
    """With values and outputs that are left as they are a result is among the values; a constant value stays."""
    model, p = block()
    eye = {f"eco.{n}.weight": np.eye(8) for n in ("v", "out")} | {f"eco.{n}.bias": np.zeros(8) for n in ("v", "out")}
    y = model(params={**p, **eye}, x=X)
    assert (y < X.max(1, keepdims=True)).all() and (y > X.min(1, keepdims=True)).all()
    same = {**p, **eye, "eco.v.weight": np.zeros((8, 8)), "eco.v.bias": np.arange(8.0)}
    np.testing.assert_allclose(model(params=same, x=X), np.broadcast_to(np.arange(8.0), X.shape), atol=1e-12)


def test_products_of_codes_count_unlike_bits() -> None:
    """t . t' = bits - 2 popcount(xor), and packing goes both ways."""
    model = piece("x: real[B, T, 2, 4]", "return hashed(x, 2)", bits=16)
    t = model(params=model.with_params(anchor=ANCHOR, center=CENTER), x=RNG.normal(size=(2, T, 2, 4))).astype(int)
    assert set(np.unique(t)) == {-1, 1}
    packed = ((t > 0) << np.arange(16)).sum(-1).astype(np.uint16)
    np.testing.assert_array_equal(np.where(packed[..., None] >> np.arange(16) & 1, 1, -1), t)
    unlike = np.bitwise_count(packed[:, :, None] ^ packed[:, None])
    np.testing.assert_array_equal(16 - 2 * unlike.astype(int), np.einsum("bthr,buhr->btuh", t, t))


def test_straight_through_where_it_is_not_saturated() -> None:
    """The gradient of codes by u is that of g itself where |g| < 1, and zero elsewhere."""
    codes = piece("x: real[B, T, 2, 4]", "return hashed(x, 2)")
    sums = Small(SPEC, _plain)
    p = {k: jnp.asarray(v) for k, v in codes.with_params(anchor=ANCHOR, center=CENTER).items()}
    x = jnp.asarray(RNG.normal(size=(2, T, 2, 4)))
    towards = jnp.asarray(RNG.normal(size=(2, T, 2, BITS)))
    (g,), pull = jax.vjp(lambda x: sums._results(p, {"x": x}), x)
    inside = np.abs(g) < 1
    assert inside.any() and not inside.all()
    (t,), back = jax.vjp(lambda x: codes._results(p, {"x": x}), x)
    np.testing.assert_array_equal(t, np.where(g >= 0, 1, -1))
    np.testing.assert_allclose(back((towards,))[0], pull((jnp.where(inside, towards, 0),))[0], atol=1e-12)


def _plain(text: str) -> str:
    """`hashed` alone, giving the sums instead of their signs."""
    cut = text[: text.index("\nmodel ")].replace("return signs(g)", "return g")
    return f"{cut}\nmodel piece(x: real[B, T, 2, 4]) {{ return hashed(x, 2) }}\n"


CAUSAL = """tfm 1
model piece(x: real[B, T, 8]) {
  return hashed_attention(x, heads = 2, bits = 4, anchors = 5, direction = "causal", frozen = FROZEN, variant = "KIND")
}
"""


def causal(frozen: str, kind: str = "paired") -> tuple[tfc.Model, dict[str, dict[str, jax.Array]]]:
    model = tfc.compile(CAUSAL.replace("FROZEN", frozen).replace("KIND", kind), "cpu")
    p = model.init(jax.random.key(0))
    own = p["hashed_attention"]
    own["anchor"], own["center"] = (jnp.asarray(a, jnp.float32) for a in (ANCHOR, CENTER + 0.4))
    own["qk"]["weight"], own["v"]["weight"] = jnp.eye(8, dtype=jnp.float32), jnp.eye(8, dtype=jnp.float32)
    return model, p


@pytest.mark.parametrize("kind", ["paired", "self"])
def test_causal_with_a_bandwidth_that_is_kept_and_only_then(kind: str) -> None:
    """A bandwidth of the call's own tokens lets the past hear of the future."""
    x = X.astype(np.float32)
    other = x.copy()
    other[:, 8:] = ANCHOR[:, 0].reshape(8)  # near one anchor: another bandwidth
    for frozen in ("yes", "no"):
        model, p = causal(frozen, kind)
        change = np.abs(np.asarray(model(p, other)) - np.asarray(model(p, x))).max((0, 2))
        assert change[8:].all()
        assert bool(change[:8].any()) == (frozen == "no")


def test_the_split_of_the_tokens_does_not_matter() -> None:
    """Decoding in calls of any size gives what one call gives; so does a length beyond one chunk of the scan."""
    model, p = causal("yes")
    x = RNG.normal(size=(2, 70, 8)).astype(np.float32)
    whole = np.asarray(model(p, x))
    for sizes in ([1, 69], [40, 20, 10]):
        cache, found, at = model.init_cache(2, 70), [], 0
        for n in sizes:
            y, cache = model.decode(p, cache, x[:, at : at + n])
            found.append(np.asarray(y))
            at += n
        np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-5)
    np.testing.assert_allclose(whole[:, :20], np.asarray(model(p, x[:, :20])), atol=1e-5)
