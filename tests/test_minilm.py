"""The main example for an H200, in bf16: as close to float64 as bf16 allows, interpreted and on the device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.ir.types import DType
from tfc.testing.float64 import DTYPES, ROUNDOFF
from tfc.testing.tolerance import compare
from tfc.testing.worker import Worker

HERE = str(Path(__file__).parent)


def judge(found: Mapping[str, Any], layers: int) -> None:
    """Against the float64 definition of the program as lowered, relative to what plain jnp loses in the same types.

    A unit is bf16's roundoff of a row's typical element: each ends in a layer norm, whose errors spread over it.
    """
    assert found["chosen"] == [("pallas_gpu", layers)] and not found["raced"]
    real = np.arange(7) < np.array([7, 4])[:, None]
    got, plain, definition = (found[name][real] for name in ("kernels", "plain", "definition"))
    unit = ROUNDOFF[DTYPES[DType.BF16]] * np.sqrt(np.mean(definition**2, axis=-1, keepdims=True))
    verdict = compare("hidden", got, definition, plain, np.broadcast_to(unit, definition.shape))
    assert verdict.ok, verdict.reason
    assert np.max(np.abs(got - definition)) > 1e-4  # bf16 was computed in, not float64


@pytest.mark.parametrize("layers", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_minilm_interpreted(layers: int):
    with Worker(environment={"PYTHONPATH": HERE, "JAX_PLATFORMS": "cpu"}) as worker:
        judge(worker.call("minilm_in_bf16:hidden_states", layers, limit=600), layers)


@pytest.mark.device
def test_minilm_on_the_device():
    with Worker(environment={"PYTHONPATH": HERE}) as worker:
        judge(worker.call("minilm_in_bf16:hidden_states", 6, interpret=False, limit=600), 6)
