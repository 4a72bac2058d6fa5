"""Weights kept as thin products: their parameters, what they compute, how they start, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.front import front
from tfc.ir.ops import Linear, Repeat
from tfc.ir.program import Program

SPEC = """tfm 1

model m(x: real[B, 12]) {{
  {body}
}}
"""


def text(body: str) -> str:
    return SPEC.format(body=body)


def program(body: str) -> Program:
    return front(text(body)).lowered.program


def built(body: str) -> tuple[Any, dict[str, Any], Any]:
    model = tfc.compile(text(body), "cpu")
    params = model.init(jax.random.key(0))
    return model, params, jnp.asarray(np.random.default_rng(0).normal(size=(5, 12)), jnp.float32)


def refused(body: str) -> str:
    with pytest.raises(tfc.TfcError) as caught:
        program(body)
    (said,) = caught.value.diagnostics
    assert said.code == "E305"
    return f"{said.message} {said.help}"


def test_a_linear_map_goes_through_the_rank() -> None:
    model, params, x = built("return linear@map(x, 7, biased = yes, weights = low_rank(3))")
    stored = {s.path: s.type.ints for s in model.lowered.stored()}
    assert stored == {"map.bias": (7,), "map.weight.left": (12, 3), "map.weight.right": (3, 7)}
    assert [type(e.op) for e in model.lowered.eqns] == [Linear, Linear]
    own = params["map"]
    want = x @ own["weight"]["left"] @ own["weight"]["right"] + own["bias"]
    np.testing.assert_allclose(model(params, x), want, rtol=1e-5, atol=1e-6)


def test_the_product_starts_as_spread_as_the_weight_would() -> None:
    _, params, _ = built("return linear@map(x, 2_000, init = normal(0.3), weights = low_rank(6))")
    whole = params["map"]["weight"]["left"] @ params["map"]["weight"]["right"]
    # 12 rows of left decide most: their own spread is within a few tenths
    assert 0.2 < float(jnp.std(whole)) < 0.42
    made = program("return linear@map(x, 7, init = zeros, weights = low_rank(3))").stored()
    assert [s.init.kind for s in made] == ["normal", "zeros"]
    made = program("return linear@map(x, 7, init = glorot, weights = low_rank(3))").stored()
    assert [s.init.kind for s in made] == ["glorot", "glorot"]


def test_lora_starts_as_its_frozen_matrix_and_trains_beside_it() -> None:
    model, params, x = built("return linear@map(x, 7, biased = yes, weights = lora(2, alpha = 6))")
    own = params["map"]["weight"]
    assert own["base"].shape == (12, 7)
    np.testing.assert_allclose(model(params, x), x @ own["base"] + params["map"]["bias"], rtol=1e-5, atol=1e-6)
    own["right"] = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7)), jnp.float32)
    want = x @ (own["base"] + 3 * own["left"] @ own["right"]) + params["map"]["bias"]
    np.testing.assert_allclose(model(params, x), want, rtol=1e-5, atol=1e-6)
    slopes = jax.grad(lambda p: jnp.sum(model(p, x) ** 2))(params)["map"]["weight"]
    assert not np.any(slopes["base"]) and np.any(slopes["left"]) and np.any(slopes["right"])
    made = program("return linear@map(x, 7, trained = no, weights = lora(2))").stored()
    assert not any(s.trained for s in made)


def test_who_reads_the_matrix_otherwise_gets_the_product() -> None:
    body = "param w[12, 4] { format = low_rank(2) }\n  y[b, o] = sum[c](x[b, c] * w[c, o])\n"
    model, params, x = built(f"{body}  z[b, c] = sum[o](y[b, o] * w[c, o])\n  return z")
    whole = params["w"]["left"] @ params["w"]["right"]
    np.testing.assert_allclose(model(params, x), x @ whole @ whole.T, rtol=1e-4, atol=1e-6)
    assert sum(isinstance(e.op, Linear) for e in model.lowered.eqns) == 3


def test_written_out_layers_have_factors_of_their_own() -> None:
    """Layers alike are lowered once and repeated: each reads its own weights, from outside as well."""
    body = "repeat [1, 2, 3] as n { x = x + linear@map(x, 12, weights = low_rank(2)) * n }\n  return x"
    model, params, x = built(body)
    assert len(model.lowered.stored()) == 6 and not any(isinstance(e.op, Repeat) for e in model.lowered.eqns)
    want = x
    for n in range(3):
        own = params["n"][str(n)]["map"]["weight"] if "n" in params else None
        assert own is not None
        want = want + want @ own["left"] @ own["right"] * (n + 1)
    np.testing.assert_allclose(model(params, x), want, rtol=1e-5, atol=1e-6)


def test_a_map_shared_by_a_loop_keeps_its_factors() -> None:
    body = "block map = linear { out = 12   weights = low_rank(2) }\n  repeat 3 as n { x = x + map(x) }"
    body += "\n  return map(x)"
    model, params, x = built(body)
    own = params["map"]["weight"]
    assert own["left"].shape == (12, 2)
    want = x
    for _ in range(3):
        want = want + want @ own["left"] @ own["right"]
    np.testing.assert_allclose(model(params, x), want @ own["left"] @ own["right"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return linear@map(x, 7, weights = low_rank(8))", "at most 7"),
        ("return linear@map(x, 7, init = ones, weights = low_rank(2))", "normal(std), glorot or zeros"),
        ("param w[2, 3, 4] { format = low_rank(2) }\n  return x * sum(w[0, 0])", "has 3 axes"),
    ],
)
def test_what_is_no_thin_product(body: str, said: str) -> None:
    assert said in refused(body)
