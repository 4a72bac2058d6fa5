"""The front half as a whole: paths and texts, values from outside, passes by name, what cannot be read."""

from pathlib import Path

import pytest

from tfc.diagnostics import TfcError
from tfc.front import front
from tfc.ir.ops import Attention, Weigh
from tfc.ir.program import Program

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = "tfm 1\nlet heads = 2\nmodel m(x: real[B, T, 8]) { return attention(x, heads = heads, mask = causal) }\n"


def names(program: Program) -> list[str]:
    return [e.op.name for e in program.eqns]


def test_a_text_and_a_file_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.tfm"
    path.write_text(TEXT, encoding="utf-8")
    built = front(TEXT)
    assert built.source.name == "<text>" and front(path).source.name == front(str(path)).source.name == str(path)
    assert built.program == front(path).program == front(str(path)).program
    assert front(TEXT.replace("\n", " ")).program == built.program  # one line, but a brace


def test_passes_are_chosen_by_name() -> None:
    assert any(isinstance(e.op, Attention) for e in front(TEXT).program.eqns)
    plain = front(TEXT, passes=[])
    assert plain.program == plain.lowered.program and any(isinstance(e.op, Weigh) for e in plain.program.eqns)
    fused = front(TEXT, passes=["fuse-attention"])
    assert [s.name for s in fused.result.stages] == ["lower", "fuse-attention"]
    assert "attention" in names(fused.program)
    with pytest.raises(TfcError, match="no pass is called `fuse-atention`"):
        front(TEXT, passes=["fuse-atention"])


def test_values_from_outside_reach_the_program() -> None:
    scores = next(e for e in front(TEXT, {"heads": "4"}, passes=[]).program.eqns if e.op.name == "scores")
    assert scores.args[0].type.shape[2] == 4
    with pytest.raises(TfcError, match="E308"):
        front(TEXT, {"heads": "yes"})


@pytest.mark.parametrize(
    ("name", "data"), [("gone.tfm", None), ("binary.tfm", b"tfm\x00\xff\xfe"), ("big.tfm", b"# " * 200_000)]
)
def test_what_cannot_be_read(tmp_path: Path, name: str, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TfcError, match="E00"):
        front(tmp_path / name)


def test_every_complaint_comes_at_once() -> None:
    with pytest.raises(TfcError) as caught:
        front("tfm 1\nlet a = zz, b = yy\nmodel m(x: real[B, 8]) { return rms(x, esp = 1) }\n")
    assert [d.code for d in caught.value.diagnostics] == ["E201", "E201", "E204"]


def test_minilm() -> None:
    built = front(EXAMPLES / "minilm.tfm", {"compute": "bf16"})
    assert str(built.program.results[0].type) == "f32[B, 384]"  # of a reduction, which runs in f32
    (body,) = [b for _, b in built.program.bodies()]
    assert names(body).count("attention") == 1 and names(body).count("ffn") == 1
    assert len(built.names["hf"].rows(built.lowered.program.stored())) == 5 + 6 * 16 + 3
    assert len(built.lowered.program.stored()) == 5 + 16
    tokens = front(EXAMPLES / "minilm.tfm", {"pooled": "no"}).program.results[0].type
    assert str(tokens) == "f32[B, T, 384]"
