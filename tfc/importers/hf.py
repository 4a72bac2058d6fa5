"""A Hugging Face checkpoint and a spec's `names hf` turned into parameters under the spec's names, checked.

Read: `model.safetensors`, or the shards that `model.safetensors.index.json` names. Every array must be named by the
map, as a parameter or as `none`; every parameter must be named by it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import jax
import numpy as np

from tfc.diagnostics import Diagnostic, TfcError, closest
from tfc.ir import names as naming
from tfc.ir.names import Ignored, Joined, NamesMap, Ours, Reordered, Reshaped, Rolled, Row, Transposed
from tfc.ir.program import Stored
from tfc.params.files import Arrays, few, fitted, opened
from tfc.params.initial import start

__all__ = ["INDEX", "WHOLE", "import_hf", "unnamed"]

Array = np.ndarray[Any, np.dtype[Any]]

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def import_hf(directory: str | os.PathLike[str], stored: Sequence[Stored], names: NamesMap) -> dict[str, Array]:
    """The parameters (dotted path -> array, stacked) of the checkpoint in a folder, or in one safetensors file.

    A type that holds every value of the checkpoint's is taken (bf16 as f32); nothing is rounded. A parameter that
    is not trained and that the map does not name starts as the spec says. Where the map names a parameter twice, as
    weights that are shared and by some saved twice, one array is enough, and several must be equal.
    Raises TfcError, ten complaints at most: E601 missing, E602 unknown, E603 shape, E605 element type, E606 no
    safetensors, E607 unreadable, E608 a shard outside the folder, E620 several arrays for one parameter that differ.
    """
    rows = names.rows(tuple(stored))
    with ExitStack() as stack:
        found = _arrays(Path(directory), stack)
        target = _Target({p.path: p for p in stored})
        faults = [*_strangers(rows, found), *unnamed(rows, stored, names.name)]
        for row in rows:
            there = [] if isinstance(row.ours, Ignored) else [name for name in row.names if name in found]
            faults += [f for name in there for f in target.enter(row, name, found[name][name])]
    if faults:
        raise TfcError(*few(faults))
    return target.arrays | {
        p.path: np.asarray(start(p, jax.random.key(0))) for p in stored if p.path not in target.arrays
    }


def _arrays(place: Path, stack: ExitStack) -> Mapping[str, Arrays]:
    """The name of every array, and the open file that has it."""
    if not place.is_dir():
        files = [place]
    elif (place / WHOLE).exists():
        files = [place / WHOLE]
    elif (place / INDEX).exists():
        files = [_inside(place, name) for name in _shards(place / INDEX)]
    else:
        raise TfcError(_nothing(place))
    return {name: arrays for f in files for arrays in [stack.enter_context(opened(f))] for name in arrays.names}


def _nothing(place: Path) -> Diagnostic:
    pickles = sorted(p.name for p in place.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if not pickles:
        return Diagnostic("E607", f"{place} has neither {WHOLE} nor {INDEX}")
    return Diagnostic(
        "E606",
        f"{place} has {pickles[0]}, but no {WHOLE}",
        help="a pickle can run code of whoever wrote it, so tfc reads safetensors only; "
        "save_pretrained(..., safe_serialization=True) writes them",
    )


def _shards(index: Path) -> list[str]:
    """The files that an index names, each once. Raises TfcError (E607) where it is none."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(s) for s in shards if isinstance(s, str)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TfcError(Diagnostic("E607", f"{index} is no index of shards")) from None
    return names


def _inside(folder: Path, name: str) -> Path:
    """The shard's path. Raises TfcError (E608) for a name that leads out of the folder, by itself or by a link."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor != ""
    path = folder / name
    if absolute or ".." in parts or not path.resolve().is_relative_to(folder.resolve()):
        hint = "a checkpoint's shards lie in its own folder"
        raise TfcError(Diagnostic("E608", f"the shard {name!r} of {folder} lies outside that folder", help=hint))
    return path


def _strangers(rows: Iterable[Row], found: Mapping[str, Arrays]) -> Iterator[Diagnostic]:
    """Arrays that the map expects and the checkpoint lacks, and the other way round."""
    expected = {row.theirs: row for row in rows}
    known = {name for row in rows for name in row.names}
    extra = [name for name in found if name not in known]
    filled = {place for row in rows if any(n in found for n in row.names) for place in row.places}
    for name, row in expected.items():
        if not any(n in found for n in row.names) and not row.places <= filled:
            near = closest(name, extra)
            hint = f"it has `{near}`, which the map does not name" if near else "is it a checkpoint of this model?"
            fact = f"the checkpoint lacks `{name}`, which is {_shown(row)}"
            yield Diagnostic("E601", fact, help=hint)
    for name in extra:
        hint = f'`"{name}" = none` in the names map leaves it out'
        yield Diagnostic("E602", f"the checkpoint has `{name}`, which the names map does not name", help=hint)


def _shown(row: Row) -> str:
    return f"{row.ours}{_of(row.turns)}"


def _of(turns: tuple[int, ...]) -> str:
    return f" of turn {', '.join(map(str, turns))}" if turns else ""


def unnamed(rows: Iterable[Row], stored: Sequence[Stored], name: str) -> Iterator[Diagnostic]:
    """Parameters, or turns of them, that no line of the map names."""
    given = {place for row in rows for place in row.places}
    for p in stored:
        if not p.trained and p.init.kind not in ("normal", "glorot"):
            continue
        turns = list(product(*(range(count) for _, count in p.repeats)))
        open_turns = [t for t in turns if (p.path, t) not in given]
        if open_turns:
            some = "" if len(open_turns) == len(turns) else f" for {len(open_turns)} of {len(turns)} turns"
            hint = f'a line `"their.name" = {p.path}` is missing'
            yield Diagnostic("E601", f"the names map `{name}` does not name the parameter `{p.path}`{some}", help=hint)


@dataclass(frozen=True, slots=True)
class _Target:
    """The parameters as they fill up: arrays are entered turn by turn."""

    stored: Mapping[str, Stored]
    arrays: dict[str, Array] = field(default_factory=dict)
    came: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict)
    """Path and turns -> the name of the array that it came from."""

    def enter(self, row: Row, name: str, array: Array) -> list[Diagnostic]:
        """Enters one of their arrays, which has that name; what is wrong with it, if anything."""
        shape = self._shape(row.ours)
        if array.shape != shape:
            fact = f"`{name}` has the shape {list(array.shape)}, {_shown(row)} has {list(shape)}"
            turned = array.shape[::-1] == shape and len(shape) == 2
            hint = "write transpose(...) in the names map" if turned else "is it a checkpoint of another size?"
            return [Diagnostic("E603", fact, help=hint)]
        return self._split(row.turns, name, row.ours, array)

    def _shape(self, ours: Ours) -> tuple[int, ...]:
        """The shape that their array should have."""
        known = {p: self.stored[p].type.ints[len(self.stored[p].repeats) :] for p in naming.paths(ours)}
        return naming.shape_of(ours, known)

    def _split(self, turns: tuple[int, ...], name: str, ours: Ours, array: Array) -> list[Diagnostic]:
        match ours:
            case naming.Path(path):
                p = self.stored[path]
                found = fitted(array, p.type.dtype, f"`{name}`")
                if isinstance(found, Diagnostic):
                    return [found]
                if path not in self.arrays:
                    self.arrays[path] = np.zeros(p.type.ints, found.dtype)
                first = self.came.setdefault((path, turns), name)
                if first != name and self.arrays[path][turns].tobytes() != found.tobytes():
                    fact = f"`{first}` and `{name}` are both {path}{_of(turns)}, and differ"
                    return [Diagnostic("E620", fact, help="the model has one array for both")]
                self.arrays[path][turns] = found
                return []
            case Transposed(of):
                return self._split(turns, name, of, np.swapaxes(array, -1, -2))
            case Reordered(of, order):
                return self._split(turns, name, of, np.transpose(array, np.argsort(order)))
            case Reshaped(of):
                return self._split(turns, name, of, array.reshape(self._shape(of)))
            case Rolled(of, by):
                return self._split(turns, name, of, np.roll(array, -by, axis=-1))
            case Joined(parts):
                ends = np.cumsum([self._shape(p)[-1] for p in parts])[:-1]
                pieces = np.split(array, ends, axis=-1)
                return [f for p, x in zip(parts, pieces, strict=True) for f in self._split(turns, name, p, x)]
        raise TypeError(f"{type(ours).__name__} names no parameter")
