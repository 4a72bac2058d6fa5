"""The suite `minilm`: results compared before they are timed, peers that are missing, what the profile counts."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tfc
from tfc.bench import minilm
from tfc.bench.attention import BenchError
from tfc.bench.profile import operations, shares
from tfc.diagnostics import TfcError
from tfc.ir.ops import OPS
from tfc.model import Model

SPEC = Path(__file__).parents[2] / "examples" / "minilm.tfm"
SMALL: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "hidden": 32, "vocab": 50, "longest": 16}
CASE = minilm.Case("small", 2, 8, 4)


@pytest.fixture(scope="module")
def model() -> Model:
    return tfc.compile(SPEC, "cpu", **SMALL)


def test_a_peer_that_is_not_installed_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    absent = tmp_path / "transformers.py"
    absent.write_text("raise ImportError('there is no transformers here')")
    (tmp_path / "torch.py").write_text("")
    monkeypatch.setenv(minilm.VARIABLE, sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with (
        pytest.raises(TfcError, match=r"there is no transformers here.*TFC_PEERS_PYTHON|transformers does not run"),
        minilm.started("nowhere", *CASE.inputs()),
    ):
        pass


@pytest.mark.parametrize("apart", [0.0, 1e-2])
def test_embeddings_are_compared_before_the_clock_starts(model: Model, monkeypatch: pytest.MonkeyPatch, apart: float):
    params = model.pack(model.init(jax.random.key(0)))
    monkeypatch.setattr(minilm.Case, "inputs", lambda self: (np.ones((2, 8), np.int32), np.array([4, 8], np.int32)))
    result = np.asarray(model(params, *CASE.inputs())) + apart
    monkeypatch.setattr(minilm, "opened", lambda spec: (model, params, ""))
    monkeypatch.setattr(minilm, "product_rate", lambda: 1e9)
    monkeypatch.setattr(minilm, "overhead", lambda: {"jit": 1.0})

    class Peer:
        def __init__(self) -> None:
            self.versions = {"torch": "0"}

        def sample(self) -> tuple[float, float]:
            assert not apart, "timed, though it is wrong"
            return 2.0, 1.0

    @contextmanager
    def started(*args: Any) -> Any:
        peer = Peer()
        peer.result = result  # type: ignore[attr-defined]  # as a process would have written it
        yield peer

    monkeypatch.setattr(minilm, "started", started)
    if apart:
        with pytest.raises(BenchError, match="embeddings are"):
            list(minilm.run(SPEC, [CASE], 3))
        return
    (row,) = minilm.run(SPEC, [CASE], 3)
    assert row.peer_ms == 2000 and row.ratio == pytest.approx(2000 / row.ours_ms) and len(row.samples["tfc cpu"]) == 3
    assert row.floor_ms == pytest.approx(1e3 * model.explain(B=2, T=8).total("matmul") / 1e9)
    assert sum(row.profile.values()) == pytest.approx(1, abs=1e-2) and any("attention" in name for name in row.profile)


def test_instructions_are_counted_to_their_operations():
    text = """
%fused (a: f32[2]) -> f32[2] {
  %e = f32[2]{0} exponential(%a), metadata={op_name="jit(f)/layer/attention/exp"}
  ROOT %m = f32[2]{0} multiply(%e, %e), metadata={op_name="jit(f)/layer/linear/mul;jit(f)/x"}
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %loop = (f32[2]) while(%p), condition=%c, body=%b
  %copy.1 = f32[2]{0} copy(%p)
  %one = f32[2]{0:T(8)} add(%p, %p), metadata={op_name="jit(f)/elementwise/add"}
  ROOT %fusion.7 = f32[2]{0} fusion(%copy.1), kind=kLoop, calls=%fused
}
"""
    found = operations(text, OPS)
    assert found["fusion.7"] == "attention+linear" and found["one"] == "elementwise" and found["copy.1"] == "other"
    assert "loop" not in found


def test_shares_of_a_jitted_function():
    def f(x: Any) -> Any:
        with jax.named_scope("linear"):
            y = x @ x
        with jax.named_scope("elementwise"):
            return jax.lax.sort(y)

    call, x = jax.jit(f), np.ones((64, 64), np.float32)
    found = shares(lambda: call(x), call.lower(x).compile().as_text() or "", OPS, calls=2)
    assert set(found) <= {"linear", "elementwise", "elementwise+linear", "other"} and len(found) >= 2
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)


def test_a_call_costs_little_beside_its_jit():
    """Python's part of a call, in CPU time: about 10 us where this was written, far below what it must not become."""
    found = minilm.overhead(rounds=5, calls=40)
    assert set(found) == {"jit", "model", "model, host"} and found["model"] - found["jit"] < 150
