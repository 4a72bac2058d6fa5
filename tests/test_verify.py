"""`tfc verify` and `tfc.verify`: sound specs pass, what an author overlooked is named, what is planted made small."""

import json
from pathlib import Path

import pytest

import tfc
from tfc import cli
from tfc.backends.xla import attention
from tfc.diagnostics import TfcError
from tfc.testing.mutants import mutants, planted
from tfc.testing.spec_laws import LAWS, Claims, SpecReport, verify

FEW = ("kernels give the definition's values", "padding does not matter", "no later token matters",
       "texts packed are texts apart", "the canonical text means the same")  # fmt: skip

SPEC = """tfm 1

let layers = 2

attention look {{ heads = 2   mask = {mask} }}

model m(tokens: int[B, T], document: int[B, T] = 0, lengths: int[B] = T) {{
  embed words = embed {{ vocab = 16   width = 8 }}
  x = words(tokens)
  real[b, t: length(x)] = t < lengths[b]
  x = tag(x, segment = document, real = real)
  repeat layers as layer {{ x = x + look(rms@before(x)) }}
  return x
}}
"""


@pytest.fixture
def few(monkeypatch):
    """Only the laws that a test speaks of: the rest have tests of their own."""
    chosen = tuple(law for law in LAWS if law.name in FEW)
    monkeypatch.setattr("tfc.testing.spec_laws.verifying.LAWS", chosen)


def written(folder: Path, mask: str) -> str:
    path = folder / "m.tfm"
    path.write_text(SPEC.format(mask=mask), encoding="utf-8")
    return str(path)


def status(report: SpecReport) -> dict[str, str]:
    return {v.law: v.status for v in report.verdicts}


@pytest.mark.usefixtures("few")
def test_a_sound_spec_passes(tmp_path, capsys):
    file = written(tmp_path, "unpadded and documents and causal")
    assert cli.main(["verify", file, "--documents", "document", "--causal"]) == 0
    said = capsys.readouterr().out
    assert "m.tfm, B=2 T=6: ok" in said and said.endswith("1 file: no violation\n")
    assert [line.split()[-1] for line in said.splitlines()[1:6]] == ["passed"] * 5


@pytest.mark.usefixtures("few")
def test_padding_that_leaks_is_named(tmp_path, capsys):
    """The author declared lengths and forgot the mask."""
    assert cli.main(["verify", written(tmp_path, "documents"), "--json"]) == 1
    (said,) = json.loads(capsys.readouterr().out)
    laws = {law["law"]: law for law in said["laws"]}
    assert laws["padding does not matter"]["status"] == "violated"
    assert "tokens beyond `lengths` matter" in laws["padding does not matter"]["detail"]
    assert "layers=1" in laws["padding does not matter"]["case"]
    assert laws["kernels give the definition's values"]["status"] == "passed"


@pytest.mark.usefixtures("few")
def test_claims_are_checked():
    spec = SPEC.format(mask="unpadded")
    free = status(verify(spec))
    assert free["no later token matters"] == free["texts packed are texts apart"] == "-"
    claimed = status(verify(spec, claims=Claims(causal=True, documents="document")))
    assert claimed["no later token matters"] == claimed["texts packed are texts apart"] == "violated"


@pytest.mark.usefixtures("few")
def test_a_violation_is_made_small():
    """A fault in a kernel: on fewer tokens, and one row."""
    fault = next(m for m in mutants(attention.exponentials) if m.kind == "factor or term dropped")
    with planted(attention.exponentials, fault):
        report = verify(SPEC.format(mask="unpadded"), lengths={"B": 3, "T": 5})
    (found,) = [v for v in report.violations if v.law == "kernels give the definition's values"]
    assert "B=1" in found.case
    assert int(found.case.split("T=")[1]) < 5


@pytest.mark.usefixtures("few")
def test_a_compiled_model_is_verified():
    model = tfc.compile(SPEC.format(mask="causal and unpadded"), target="cpu", layers=1)
    assert tfc.verify(model).ok
    with pytest.raises(ValueError, match=r"not made by tfc\.compile"):
        made = tfc.Model(model.lowered, lambda held: model._variant(held)[0], model.target)
        tfc.verify(made)


def test_large_models_are_refused_in_words(capsys):
    assert cli.main(["verify", str(Path(__file__).parents[1] / "examples/zoo/softmax/gemma2.tfm")]) == 1
    said = capsys.readouterr().err
    assert "error[E725]" in said and "--set layers=2" in said


def test_lengths_that_fit_nowhere():
    with pytest.raises(TfcError, match="E702"):
        verify("tfm 1\nmodel m(x: real[B, T, 4]) { return learned_positions(x, longest = 3) }", lengths={"T": 9})
