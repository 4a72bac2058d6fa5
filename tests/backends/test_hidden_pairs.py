"""Scores that are not finite for pairs that no query sees: values and gradients are those of the seen pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.formula.expr import Apply, Const, Kind, Read, Token, Var
from tfc.formula.guard import guarded, partial

FORMULAS = {
    "s - pace[h] * log(1 + q - k)": lambda s, pace, lag: s - pace * np.log(1 + lag),
    "s - pace[h] * exp(4 * (k - q))": lambda s, pace, lag: s - pace * np.exp(-4.0 * lag),
    "s - (1 + q - k) ^ pace[h]": lambda s, pace, lag: s - (1.0 + lag) ** pace,
    "s + pace[h] / (q - k + 1)": lambda s, pace, lag: s + pace / (lag + 1),
    "s - pace[h] * sqrt(q - k + 1)": lambda s, pace, lag: s - pace * np.sqrt(lag + 1),
}
B, T, H, D = 1, 40, 2, 4


def model(score: str, implementation: str | None, passes: tuple[str, ...] | None) -> tfc.Model:
    text = f"""tfm 1
model m(x: real[B, T, 8]) {{
  param pace[h: 2] = 0.5 + h
  return join(attend(split(x, 2), split(x, 2), split(x, 2), mask = causal, score = {score}))
}}
"""
    return tfc.compile(text, target="cpu", implementation=implementation, passes=passes)


@pytest.mark.parametrize("score", FORMULAS)
@pytest.mark.parametrize("implementation, passes", [(None, None), ("reference", None), (None, ())])
def test_hidden_pairs_have_no_gradient(score, implementation, passes):
    made = model(score, implementation, passes)
    x = jax.random.normal(jax.random.key(0), (B, T, H * D))
    params = made.init(jax.random.key(1))
    value, slopes = jax.value_and_grad(lambda p, x: jnp.sum(made(p, x) ** 2), (0, 1))(params, x)

    def seen_only(pace, x):
        """The same with lags that are harmless where nothing is seen."""
        heads = jnp.reshape(x, (T, H, D)).transpose(1, 0, 2)
        lag = np.arange(T)[:, None] - np.arange(T)
        s = heads @ heads.transpose(0, 2, 1) * D**-0.5
        s = jnp.where(lag >= 0, FORMULAS[score](s, pace[:, None, None], np.maximum(lag, 0)), -jnp.inf)
        return jnp.sum((jax.nn.softmax(s) @ heads) ** 2)

    wanted, (pace_slope, x_slope) = jax.value_and_grad(seen_only, (0, 1))(params["pace"], x[0])
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(slopes[0]["pace"], pace_slope, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(slopes[1][0], x_slope, rtol=2e-3, atol=1e-4)


def test_only_what_can_do_harm_is_guarded():
    lag = Apply("sub", (Token("q"), Token("k")))
    s, h = Var("s", Kind.REAL), Var("h", Kind.INT)
    harmless = [
        Apply("div", (s, Const(30.0))),
        Apply("pow", (lag, Const(2))),
        Apply("pow", (Const(2.0), Apply("neg", (h,)))),
        Apply("floor", (Apply("log", (lag,)),)),
        Read(0, (Apply("floordiv", (lag, Const(2))),), Kind.REAL),
    ]
    assert not any(map(partial, harmless)) and all(guarded(e) is e for e in harmless)
    assert all(map(partial, [Apply("log", (lag,)), Apply("div", (s, lag)), Apply("pow", (Const(2.0), lag))]))
