"""Parameters as a Hugging Face checkpoint: every bit comes back, files, and what is refused."""

import json
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import tfc
from tfc import cli
from tfc.diagnostics import TfcError
from tfc.exporters.hf import export_hf
from tfc.formula.expr import Const, Kind, Var, apply
from tfc.importers.hf import import_hf
from tfc.ir.names import (
    Either,
    Ignored,
    Joined,
    NameEntry,
    NamesMap,
    Ours,
    Reordered,
    Reshaped,
    Rolled,
    Transposed,
    paths,
    shape_of,
)
from tfc.ir.names import Path as Named
from tfc.ir.program import Stored
from tfc.ir.text import parse
from tfc.ir.types import DType, TensorType

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
HEAD = NameEntry((Either(("", "model.")), "head.weight"), Transposed(Named("head.weight")))
FUSED = NameEntry(("h.", TURN, ".qk.weight"), Joined((Named("layer.q.weight"), Named("layer.k.weight"))))
BIAS = NameEntry(("h.", TURN, ".bias"), Named("layer.bias"))
HF = NamesMap("hf", (HEAD, FUSED, BIAS, NameEntry(("ids.", TURN), Ignored())))


def drawn(dtype: Any = np.float32) -> dict[str, Any]:
    """Parameters of any bits at all, those of no number, too."""
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    return {s.path: rng.integers(0, 256, (*s.type.ints, kind.itemsize), np.uint8).view(kind)[..., 0] for s in STORED}


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert (x.dtype, x.shape) == (b[name].dtype, b[name].shape), name
        assert x.tobytes() == b[name].tobytes(), name


def refusals(place: Path, params: Mapping[str, Any], names: NamesMap) -> list[tuple[str, str]]:
    with pytest.raises(TfcError) as caught:
        export_hf(params, place, STORED, names)
    return [(d.code, d.message) for d in caught.value.diagnostics]


def trained(params: Mapping[str, Any]) -> dict[str, Any]:
    return {path: x for path, x in params.items() if path != "slope"}


def test_every_bit_comes_back(tmp_path: Path):
    params = drawn()
    assert export_hf(params, tmp_path / "made" / "here", STORED, HF) == ("ids.0", "ids.1")
    file = tmp_path / "made" / "here" / "model.safetensors"
    assert sorted(p.name for p in file.parent.iterdir()) == ["model.safetensors"]
    theirs = load_file(file)
    same(
        theirs,
        {"head.weight": np.ascontiguousarray(params["head.weight"].T)}
        | {f"h.{i}.bias": params["layer.bias"][i] for i in (0, 1)}
        | {f"h.{i}.qk.weight": np.concatenate([params[f"layer.{n}.weight"][i] for n in "qk"], axis=1) for i in (0, 1)},
    )
    with safe_open(str(file), "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}  # which transformers asks for
    same(trained(import_hf(tmp_path / "made" / "here", STORED, HF)), trained(params))


def test_arrays_keep_their_element_types(tmp_path: Path):
    params = drawn() | {"layer.bias": drawn(ml_dtypes.bfloat16)["layer.bias"]}
    export_hf(params, tmp_path, STORED, HF)
    theirs = load_file(tmp_path / "model.safetensors")
    assert {n: x.dtype.name for n, x in theirs.items() if n.startswith("h.0.")} == {
        "h.0.bias": "bfloat16", "h.0.qk.weight": "float32",
    }  # fmt: skip


@pytest.mark.parametrize(("shard", "files"), [(1, 5), (64, 4), (112, 2), (208, 1)])
def test_large_checkpoints_are_cut_into_shards(tmp_path: Path, shard: int, files: int):
    """One array at least a file, and as many as fit: 48, 64, 64, 16 and 16 bytes in the map's order."""
    params = drawn()
    export_hf(params, tmp_path, STORED, HF, shard)
    found = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    same(trained(import_hf(tmp_path, STORED, HF)), trained(params))
    if files == 1:
        assert found == ["model.safetensors"]
    else:
        assert found == [f"model-{i:05}-of-{files:05}.safetensors" for i in range(1, files + 1)]
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 48 + 2 * 64 + 2 * 16
        assert {n: load_file(tmp_path / f).keys() >= {n} for n, f in index["weight_map"].items()} == dict.fromkeys(
            index["weight_map"], True
        )


def test_other_weights_in_the_folder_are_neither_mixed_in_nor_deleted(tmp_path: Path):
    params = drawn()
    export_hf(params, tmp_path, STORED, HF, 1)
    ((code, message),) = refusals(tmp_path, params, HF)
    assert code == "E607" and "model-00001-of-00005.safetensors" in message
    same(trained(import_hf(tmp_path, STORED, HF)), trained(params))
    export_hf(params | {"layer.bias": params["layer.bias"][::-1]}, tmp_path, STORED, HF, 1)  # over its own: fine
    assert import_hf(tmp_path, STORED, HF)["layer.bias"].tobytes() == params["layer.bias"][::-1].tobytes()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    ((code, message),) = refusals(tmp_path / "file" / "in", drawn(), HF)
    assert code == "E607" and "cannot be written" in message


def test_a_map_that_leaves_parameters_out_is_refused(tmp_path: Path):
    ((code, message),) = refusals(tmp_path, drawn(), NamesMap("hf", (HEAD, FUSED)))
    assert code == "E601" and "`hf` does not name the parameter `layer.bias`" in message
    assert not list(tmp_path.iterdir())


def test_turns_that_share_an_array_must_be_equal(tmp_path: Path):
    shared = NamesMap(
        "hf", (HEAD, FUSED, NameEntry(("h.", apply("mod", TURN, Const(1)), ".bias"), Named("layer.bias")))
    )
    params = drawn()
    ((code, message),) = refusals(tmp_path, params, shared)
    assert code == "E620" and "`h.0.bias` is layer.bias of turn 0 and of turn 1, which differ" in message
    params["layer.bias"] = np.stack([params["layer.bias"][0]] * 2)
    export_hf(params, tmp_path, STORED, shared)
    same(trained(import_hf(tmp_path, STORED, shared)), trained(params))


def test_what_is_named_twice_is_written_once_and_read_from_either(tmp_path: Path):
    tied = NamesMap("hf", (*HF.entries, NameEntry(("out.weight",), Transposed(Named("head.weight")))))
    params = drawn()
    export_hf(params, tmp_path, STORED, tied)
    theirs = load_file(tmp_path / "model.safetensors")
    assert "head.weight" in theirs and "out.weight" not in theirs
    for names in (["out.weight"], ["out.weight", "model.head.weight"], ["model.head.weight", "head.weight"]):
        others = {n: x for n, x in theirs.items() if n != "head.weight"} | dict.fromkeys(names, theirs["head.weight"])
        save_file(others, tmp_path / "model.safetensors")
        same(trained(import_hf(tmp_path, STORED, tied)), trained(params))
    others = theirs | {"out.weight": np.ascontiguousarray(theirs["head.weight"][::-1])}
    save_file(others, tmp_path / "model.safetensors")
    with pytest.raises(TfcError, match=r"`head.weight` and `out.weight` are both head.weight, and differ"):
        import_hf(tmp_path, STORED, tied)
    del others["head.weight"], others["out.weight"]
    save_file(others, tmp_path / "model.safetensors")
    with pytest.raises(TfcError, match=r"lacks `head.weight`"):
        import_hf(tmp_path, STORED, tied)


# ---- any map


@st.composite
def expressions(draw: st.DrawFn, counter: Iterator[int], sizes: dict[str, tuple[int, ...]], depth: int = 3) -> Ours:
    """What an array may be of ours; its new parameters and their shapes go into `sizes`."""
    kind = draw(st.sampled_from(["path", "turned", "ordered", "shaped", "rolled", "joined"])) if depth else "path"
    if kind == "path":
        path = f"p{next(counter)}"
        sizes[path] = tuple(draw(st.lists(st.integers(1, 3), min_size=2, max_size=3)))
        return Named(path)
    of = draw(expressions(counter, sizes, depth - 1))
    shape = shape_of(of, sizes)
    match kind:
        case "turned" if len(shape) > 1:
            return Transposed(of)
        case "ordered":
            return Reordered(of, tuple(draw(st.permutations(range(len(shape))))))
        case "shaped":
            return Reshaped(of, draw(st.sampled_from([(*shape[:-2], int(np.prod(shape[-2:]))), (1, *shape)])))
        case "rolled":
            return Rolled(of, draw(st.integers(-3, 3)))
        case "joined":
            width = draw(st.integers(1, 2))
            path = f"p{next(counter)}"
            sizes[path] = (*shape[:-1], width)
            return Joined((of, Named(path)))
    return of


@given(st.data(), st.integers(1, 3))
@settings(max_examples=100)
def test_importing_undoes_exporting_for_any_map(tmp_path_factory: pytest.TempPathFactory, data: Any, turns: int):
    sizes: dict[str, tuple[int, ...]] = {}
    counter = count()
    ours = [data.draw(expressions(counter, sizes)) for _ in range(2)]
    entries = tuple(NameEntry((f"x{i}.", TURN, ".w"), o) for i, o in enumerate(ours))
    stored = tuple(
        Stored(f"layer.{p}", TensorType((turns, *s), DType.F32), STORED[0].init, True, (("layer", turns),))
        for p, s in sizes.items()
    )
    entries = tuple(NameEntry(e.theirs, _inside(e.ours)) for e in entries)
    names = NamesMap("hf", entries)
    assert {p for e in entries for p in paths(e.ours)} == {s.path for s in stored}
    rng = np.random.default_rng(0)
    params = {s.path: rng.standard_normal(s.type.ints).astype(np.float32) for s in stored}
    folder = tmp_path_factory.mktemp("any")
    export_hf(params, folder, stored, names)
    same(import_hf(folder, stored, names), params)


def _inside(ours: Ours) -> Ours:
    """The same of parameters in the loop."""
    match ours:
        case Named(path):
            return Named(f"layer.{path}")
        case Joined(parts):
            return Joined(tuple(map(_inside, parts)))
        case Transposed(of):
            return Transposed(_inside(of))
        case Reordered(of, order):
            return Reordered(_inside(of), order)
        case Reshaped(of, shape):
            return Reshaped(_inside(of), shape)
        case Rolled(of, by):
            return Rolled(_inside(of), by)
    raise TypeError(ours)


# ---- a spec's


SPEC = """tfm 1

let tied = yes

model m(tokens: int[B, T]) {
  embed words = embed { vocab = 7   width = 4 }
  x = words(tokens)
  repeat 2 as layer { x = x + linear@map(rms@norm(x), 4) }
  return if(tied, unembed(x, words), linear@head(x, 7))
}

names hf {
  "[|model.]embed.weight"        = words.weight
  "[|model.]h.{layer}.norm.[weight|gamma]" = layer.norm.scale
  "[|model.]h.{layer}.map.weight" = transpose(layer.map.weight)
  "[|model.]h.{layer}.mask" = none
  "lm_head.weight" = if(tied, words.weight, transpose(head.weight))
}
"""


def test_a_model_exports_what_it_loads(tmp_path: Path):
    for tied in ("yes", "no"):
        model = tfc.compile(SPEC, target="cpu", tied=tied)
        params = model.init(jax.random.key(0))
        left = model.export_hf(params, tmp_path / tied)
        assert left == ("h.0.mask", "model.h.0.mask", "h.1.mask", "model.h.1.mask")
        theirs = load_file(tmp_path / tied / "model.safetensors")
        assert ("lm_head.weight" in theirs) == (tied == "no")
        saved = {f"model.{n}" if n != "lm_head.weight" else n: x for n, x in theirs.items()}
        saved = {n.replace("norm.weight", "norm.gamma"): x for n, x in saved.items()}
        (tmp_path / tied / "old").mkdir()
        save_file(saved | {"model.h.1.mask": np.zeros(3)}, tmp_path / tied / "old" / "model.safetensors")
        jax.tree.map(np.testing.assert_array_equal, model.load(tmp_path / tied / "old"), params)


def test_a_spec_without_a_map_has_no_checkpoint(tmp_path: Path):
    model = tfc.compile(SPEC.partition("names")[0], target="cpu")
    with pytest.raises(TfcError, match=r"E609.*has no `names hf`"):
        model.export_hf(model.init(jax.random.key(0)), tmp_path)


def test_the_command_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    spec, weights, out = tmp_path / "m.tfm", tmp_path / "w.safetensors", tmp_path / "hf"
    spec.write_text(SPEC)
    model = tfc.compile(SPEC, target="cpu")
    model.save(model.init(jax.random.key(0)), weights)
    assert cli.main(["export", "hf", str(spec), "--weights", str(weights), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert f"wrote {out}: model.safetensors" in said.out and "[|model.]h.{layer}.mask" in said.out
    assert "config.json" in said.err
    again = tmp_path / "again.safetensors"
    assert cli.main(["import", "hf", str(out), "-o", str(again), "--spec", str(spec)]) == 0
    assert again.read_bytes() == weights.read_bytes()
    assert cli.main(["export", "hf", str(spec), "--weights", str(weights), "-o", str(out), "--set", "tied=no"]) == 1
    assert "E601" in capsys.readouterr().err
