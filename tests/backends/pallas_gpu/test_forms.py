"""How far the kernel's forms of functions are from the functions, over all that a score can be."""

import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.formula import MOSAIC_GPU
from tfc.backends.pallas_gpu.forms import FORMS, LARGEST, Functions

WIDE = np.concatenate([np.linspace(-60, 60, 1_000_001), [-np.inf, -1e30, -200.0, 0.0, 200.0, 1e30, np.inf]])


@pytest.mark.parametrize("functions", ["accurate", "balanced"])
def test_tanh(functions: Functions) -> None:
    x = WIDE.astype(np.float32)
    made = np.asarray(FORMS[functions]["tanh"](jnp.asarray(x)), np.float64)
    assert np.abs(made - np.tanh(x.astype(np.float64))).max() <= 3e-7


def test_sigmoid_is_as_near_as_a_quotient() -> None:
    x = np.linspace(-50, 50, 1_000_001).astype(np.float32)
    right = 1 / (1 + np.exp(-x.astype(np.float64)))
    near = [np.abs(np.asarray(f["sigmoid"](jnp.asarray(x))) / right - 1).max() for f in (MOSAIC_GPU, FORMS["balanced"])]
    assert near[1] <= near[0] + 2e-7
    far = np.asarray(FORMS["balanced"]["sigmoid"](jnp.asarray([-1e30, -np.inf, 1e30, np.inf], jnp.float32)))
    assert np.allclose(far, [2.0**-LARGEST, 2.0**-LARGEST, 1, 1], rtol=2e-7, atol=0)


def test_only_these_functions_differ() -> None:
    for functions, forms in FORMS.items():
        assert forms.keys() == MOSAIC_GPU.keys()
        changed = {name for name, form in forms.items() if form is not MOSAIC_GPU[name]}
        assert changed == (set() if functions == "accurate" else {"tanh", "sigmoid"})
