"""Hugging Face checkpoints under a names map: what is read, what is refused, and what each complaint names."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tfc.diagnostics import TfcError
from tfc.formula.expr import Const, Kind, Var, apply
from tfc.importers.hf import import_hf
from tfc.ir.names import Ignored, Joined, NameEntry, NamesMap, Transposed
from tfc.ir.names import Path as Named
from tfc.ir.program import Stored
from tfc.ir.text import parse

PROGRAM = parse("""
program p(%x: f32[B, 4]) {
  %w: f32[4, 3] = param head.weight glorot
  %s: f32[2] = param slope table([1.0, 0.5]) frozen
  %y: f32[B, 4] = repeat(count=2, label=layer, carries=1) %x
    program layer(%i: int[], %c: f32[B, 4]) {
      %q: f32[4, 2] = param layer.q.weight glorot
      %k: f32[4, 2] = param layer.k.weight glorot
      %b: f32[4] = param layer.bias zeros
      %a: f32[B, 4] = add %c, %b
      return %a
    }
  return %y
}""")
STORED: tuple[Stored, ...] = PROGRAM.stored()

TURN = Var("layer", Kind.INT)
HF = NamesMap(
    "hf",
    (
        NameEntry(("head.weight",), Transposed(Named("head.weight"))),
        NameEntry(("h.", TURN, ".qk.weight"), Joined((Named("layer.q.weight"), Named("layer.k.weight")))),
        NameEntry(("h.", apply("mul", Const(2), TURN), ".bias"), Named("layer.bias")),
        NameEntry(("ids",), Ignored()),
    ),
)


def checkpoint() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "head.weight": draw(3, 4),
        "h.0.qk.weight": draw(4, 4),
        "h.1.qk.weight": draw(4, 4),
        "h.0.bias": draw(4),
        "h.2.bias": draw(4),
        "ids": np.arange(3),
    }


def written(folder: Path, arrays: dict[str, Any]) -> Path:
    save_file(arrays, folder / "model.safetensors")
    return folder


def complaints(place: Path, names: NamesMap = HF) -> list[tuple[str, str]]:
    with pytest.raises(TfcError) as caught:
        import_hf(place, STORED, names)
    return [(d.code, f"{d.message} / {d.help}") for d in caught.value.diagnostics]


def check(params: dict[str, Any], theirs: dict[str, Any]) -> None:
    np.testing.assert_array_equal(params["head.weight"], theirs["head.weight"].T)
    for turn in (0, 1):
        fused = theirs[f"h.{turn}.qk.weight"]
        np.testing.assert_array_equal(params["layer.q.weight"][turn], fused[:, :2])
        np.testing.assert_array_equal(params["layer.k.weight"][turn], fused[:, 2:])
        np.testing.assert_array_equal(params["layer.bias"][turn], theirs[f"h.{2 * turn}.bias"])
    assert params["slope"].tolist() == [1.0, 0.5]
    assert set(params) == {s.path for s in STORED}


def test_a_checkpoint_is_transposed_split_and_stacked(tmp_path: Path):
    theirs = checkpoint()
    check(import_hf(written(tmp_path, theirs), STORED, HF), theirs)
    check(import_hf(tmp_path / "model.safetensors", STORED, HF), theirs)


def test_ignored_names_may_be_absent(tmp_path: Path):
    theirs = checkpoint()
    check(import_hf(written(tmp_path, {k: v for k, v in theirs.items() if k != "ids"}), STORED, HF), theirs)


def sharded(folder: Path, second: str = "b.safetensors") -> dict[str, Any]:
    theirs = checkpoint()
    first = {k: v for k, v in theirs.items() if k.startswith("h.")}
    rest = {k: v for k, v in theirs.items() if k not in first}
    save_file(first, folder / "a.safetensors")
    save_file(rest, folder / "b.safetensors")
    index = {"weight_map": dict.fromkeys(first, "a.safetensors") | dict.fromkeys(rest, second)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return theirs


def test_shards_are_read_through_their_index(tmp_path: Path):
    theirs = sharded(tmp_path)
    check(import_hf(tmp_path, STORED, HF), theirs)


@pytest.mark.parametrize(
    "name", ["../b.safetensors", "/etc/b.safetensors", "x/../../b.safetensors", "C:\\b.safetensors"]
)
def test_shards_may_not_leave_the_folder(tmp_path: Path, name: str):
    sharded(tmp_path, name)
    ((code, text),) = complaints(tmp_path)
    assert code == "E608" and "lies outside" in text


def test_nor_by_a_link(tmp_path: Path):
    (tmp_path / "in").mkdir()
    sharded(tmp_path / "in", "link.safetensors")
    os.rename(tmp_path / "in" / "b.safetensors", tmp_path / "b.safetensors")
    (tmp_path / "in" / "link.safetensors").symlink_to(tmp_path / "b.safetensors")
    assert complaints(tmp_path / "in")[0][0] == "E608"


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 3}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert complaints(tmp_path)[0][0] == "E607"


def test_pickles_and_empty_folders_are_refused_in_words(tmp_path: Path):
    assert "neither model.safetensors nor" in complaints(tmp_path)[0][1]
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    ((code, text),) = complaints(tmp_path)
    assert code == "E606" and "pytorch_model.bin" in text and "can run code" in text
    assert complaints(tmp_path / "pytorch_model.bin")[0][0] == "E606"


def test_missing_and_unknown_arrays_are_named(tmp_path: Path):
    theirs = checkpoint()
    theirs["h.1.qk.weihgt"] = theirs.pop("h.1.qk.weight")
    first, second = complaints(written(tmp_path, theirs))
    assert (
        first[0] == "E601"
        and "lacks `h.1.qk.weight`, which is concat(layer.q.weight, layer.k.weight) of turn 1" in first[1]
    )
    assert "h.1.qk.weihgt" in first[1]
    assert second[0] == "E602" and '`"h.1.qk.weihgt" = none`' in second[1]


def test_shapes_and_types_are_compared(tmp_path: Path):
    theirs = checkpoint()
    theirs["head.weight"] = np.ascontiguousarray(theirs["head.weight"].T)
    ((code, text),) = complaints(written(tmp_path, theirs))
    assert code == "E603" and "`head.weight` has the shape [4, 3], transpose(head.weight) has [3, 4]" in text
    assert "write transpose" in text
    theirs = checkpoint()
    theirs["h.0.qk.weight"] = theirs["h.0.qk.weight"][:, :3].copy()
    ((code, text),) = complaints(written(tmp_path, theirs))
    assert code == "E603" and "[4, 3]" in text and "of turn 0 has [4, 4]" in text
    theirs = {k: v.astype(np.float64) if k == "h.0.bias" else v for k, v in checkpoint().items()}
    ((code, text),) = complaints(written(tmp_path, theirs))
    assert code == "E605" and "`h.0.bias` is float64, not float32" in text


def test_a_narrower_checkpoint_is_taken_as_it_is(tmp_path: Path):
    theirs = {k: v if k == "ids" else v.astype(ml_dtypes.bfloat16) for k, v in checkpoint().items()}
    params = import_hf(written(tmp_path, theirs), STORED, HF)
    assert params["head.weight"].dtype == np.float32
    check(params, {k: np.asarray(v, np.float32) for k, v in theirs.items()})


def test_a_map_that_leaves_parameters_out_is_told_so(tmp_path: Path):
    written(tmp_path, {k: v for k, v in checkpoint().items() if "bias" not in k})
    short = NamesMap("hf", tuple(e for e in HF.entries if "bias" not in str(e)))
    ((code, text),) = complaints(tmp_path, short)
    assert code == "E601" and "the names map `hf` does not name the parameter `layer.bias`" in text
