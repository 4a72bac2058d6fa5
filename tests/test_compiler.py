"""From text to a model by one call; the public names, and that they load nothing before they are used."""

import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

import tfc
from tfc.diagnostics import TfcError
from tfc.passes.pipeline import DEFAULT

ROOT = Path(__file__).parents[1]
SPEC = """tfm 1
let width = 16, layers = 2
attention look { heads = 2   mask = causal }
model small(x: f32[B, T, width]) {
  repeat layers as layer { x = x + look(x) }
  return x
}
"""


def test_text_and_file_give_the_same_model(tmp_path: Path):
    (tmp_path / "small.tfm").write_text(SPEC)
    a, b = tfc.compile(SPEC, target="cpu"), tfc.compile(tmp_path / "small.tfm", target="cpu")
    assert a.program == b.program
    x = np.ones((1, 3, 16), np.float32)
    np.testing.assert_array_equal(a(a.init(jax.random.key(1)), x), b(b.init(jax.random.key(1)), x))


def test_lets_are_overridden():
    model = tfc.compile(SPEC, target="cpu", layers=3, width="32")
    assert {s.type.ints for s in model.lowered.stored()} == {(3, 32, 32)}


def test_passes_by_name_or_itself():
    plain = tfc.compile(SPEC, target="cpu", passes=())
    assert plain.program == plain.lowered
    fused = tfc.compile(SPEC, target="cpu", passes=["fuse-attention"])
    assert (
        fused.program
        == tfc.compile(SPEC, target="cpu", passes=[p for p in DEFAULT if p.name == "fuse-attention"]).program
    )
    ops = {e.op.name for _, body in fused.program.bodies() for e in body.eqns}
    assert "attention" in ops and "scores" not in ops


def test_an_implementation_is_forced():
    model = tfc.compile(SPEC, target="cpu", implementation="reference")
    assert {line.row.kernel for line in model.explain().lines} == {"reference"}
    with pytest.raises(TfcError, match="E812"):
        tfc.compile(SPEC, target="cpu", implementation="pallas_gpu").explain()


def test_auto_is_this_machine():
    assert tfc.compile(SPEC).target.platform == jax.default_backend()
    with pytest.raises(TfcError, match="E801"):
        tfc.compile(SPEC, target="h20")


def test_complaints_about_the_spec_come_out_as_they_are():
    with pytest.raises(TfcError, match=r"<text>:\d+:\d+: error"):
        tfc.compile(SPEC.replace("causal", "casual"), target="cpu")


def test_importing_tfc_loads_no_jax():
    code = "import sys, tfc; dir(tfc); print([m for m in ('jax', 'numpy', 'lark') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    for name in tfc.__all__:
        assert getattr(tfc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        _ = tfc.Modle
    assert tfc.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
