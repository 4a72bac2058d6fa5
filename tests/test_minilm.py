"""The main example for an H200, in bf16, its kernels interpreted: as close to float64 as bf16 allows."""

from pathlib import Path

import numpy as np
import pytest

from tfc.ir.types import DType
from tfc.testing.float64 import DTYPES, ROUNDOFF
from tfc.testing.tolerance import compare
from tfc.testing.worker import Worker


@pytest.mark.parametrize("layers", [2])
def test_minilm_for_h200_is_the_definition_up_to_bf16(layers: int):
    """Against the float64 definition of the program as lowered, relative to what plain jnp loses in the same types.

    A unit is bf16's roundoff of a row's typical element: each ends in a layer norm, whose errors spread over it.
    """
    with Worker(environment={"PYTHONPATH": str(Path(__file__).parent), "JAX_PLATFORMS": "cpu"}) as worker:
        found = worker.call("minilm_in_bf16:hidden_states", layers, limit=300)
    assert found["kernels"] == [("pallas_gpu", layers)] and not found["raced"]
    real = np.arange(7) < np.array([7, 4])[:, None]
    got, plain, definition = (found[name][real] for name in ("interpreted", "plain", "definition"))
    unit = ROUNDOFF[DTYPES[DType.BF16]] * np.sqrt(np.mean(definition**2, axis=-1, keepdims=True))
    verdict = compare("hidden", got, definition, plain, np.broadcast_to(unit, definition.shape))
    assert verdict.ok, verdict.reason
    assert np.max(np.abs(got - definition)) > 0  # bf16 was computed in, not float64
