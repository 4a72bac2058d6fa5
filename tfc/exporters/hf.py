"""Parameters under a spec's names and its `names hf` turned into a checkpoint as Hugging Face transformers reads it.

The inverse of `tfc.importers.hf`: `model.safetensors`, or shards and their `model.safetensors.index.json`.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tfc.diagnostics import Diagnostic, TfcError
from tfc.importers.hf import INDEX, WHOLE, unnamed
from tfc.ir import names as naming
from tfc.ir.names import Ignored, Joined, NamesMap, Ours, Reordered, Reshaped, Rolled, Row, Transposed
from tfc.ir.program import Stored
from tfc.params.files import few

__all__ = ["SHARD", "export_hf"]

Array = np.ndarray[Any, np.dtype[Any]]

SHARD = 5_000_000_000
"""Bytes of a file, as transformers cuts checkpoints; one array may be larger."""


def export_hf(
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    stored: Sequence[Stored],
    names: NamesMap,
    shard: int = SHARD,
) -> tuple[str, ...]:
    """Writes the parameters (dotted path -> array, stacked) under a checkpoint's names, each in its own element type;
    what `import_hf` read comes back bit for bit. What the map names twice is written once, under the first name.

    Returns the names that are left out: what the map calls `none` is not among the parameters. The folder is made
    where it is missing; files appear whole or not at all; configuration and tokenizer are not written.
    Raises TfcError, ten complaints at most: E601 a parameter that the map does not name, E607 a folder that cannot be
    written, or that holds other weights, E620 turns that share one array and differ.
    """
    rows = names.rows(tuple(stored))
    if faults := [*unnamed(rows, stored, names.name)]:
        raise TfcError(*few(faults))
    source = _Source(params, {p.path: p for p in stored})
    kept: dict[str, list[Row]] = {}
    written: set[tuple[str, tuple[int, ...]]] = set()
    for row in rows:
        if not row.places <= written:
            kept.setdefault(row.theirs, []).append(row)
            written |= row.places
    if faults := [f for same in kept.values() if len(same) > 1 for f in source.differing(same)]:
        raise TfcError(*few(faults))
    plan = _plan({name: source.size(same[0]) for name, same in kept.items()}, shard)
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        _alone(place, {*plan, *([INDEX] if len(plan) > 1 else [])})
        with tempfile.TemporaryDirectory(dir=place, prefix=".tfc-") as made:
            _write(Path(made), plan, {name: same[0] for name, same in kept.items()}, source)
            for file in sorted(os.listdir(made)):
                os.replace(Path(made) / file, place / file)
    except OSError as e:
        raise TfcError(Diagnostic("E607", f"{place} cannot be written: {e.strerror or e}")) from None
    return tuple(name for row in rows if isinstance(row.ours, Ignored) for name in row.names)


@dataclass(frozen=True, slots=True)
class _Source:
    """The parameters, read turn by turn."""

    params: Mapping[str, Any]
    stored: Mapping[str, Stored]

    def array(self, row: Row) -> Array:
        """Their array."""
        return self._made(row, row.ours)

    def _made(self, row: Row, ours: Ours) -> Array:
        match ours:
            case naming.Path(path):
                return np.asarray(self.params[path][row.turns])
            case Transposed(of):
                return np.swapaxes(self._made(row, of), -1, -2)
            case Reordered(of, order):
                return np.transpose(self._made(row, of), order)
            case Reshaped(of, shape):
                return self._made(row, of).reshape(shape)
            case Rolled(of, by):
                return np.roll(self._made(row, of), by, axis=-1)
            case Joined(parts):
                return np.concatenate([self._made(row, p) for p in parts], axis=-1)
        raise TypeError(f"{type(ours).__name__} names no parameter")

    def size(self, row: Row) -> int:
        """Its bytes, without making it."""
        paths = list(naming.paths(row.ours))
        numbers = sum(prod(self.stored[p].type.ints[len(self.stored[p].repeats) :]) for p in paths)
        return numbers * int(self.params[paths[0]].dtype.itemsize)

    def differing(self, rows: Sequence[Row]) -> Iterator[Diagnostic]:
        """Turns that are one array there, and not equal here: the array cannot be both."""
        first = self.array(rows[0])
        for row in rows[1:]:
            if self.array(row).tobytes() != first.tobytes():
                one, other = (f"turn {', '.join(map(str, r.turns))}" for r in (rows[0], row))
                fact = f"`{row.theirs}` is {row.ours} of {one} and of {other}, which differ"
                hint = "the checkpoint has one array for both; a model that has learned has no such checkpoint"
                yield Diagnostic("E620", fact, help=hint)
                return


def _plan(sizes: Mapping[str, int], shard: int) -> dict[str, list[str]]:
    """The names in each file, in the map's order."""
    groups: list[list[str]] = [[]]
    room = shard
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = shard
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {WHOLE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _alone(place: Path, ours: set[str]) -> None:
    """Other weights beside these would be read for them. Raises TfcError (E607)."""
    others = sorted(p.name for p in (*place.glob("*.safetensors"), *place.glob(INDEX)) if p.name not in ours)
    if others:
        fact = f"{place} has {others[0]}, which belongs to other weights than {min(ours)}"
        raise TfcError(Diagnostic("E607", fact, help="write to a folder of their own"))


def _write(place: Path, plan: Mapping[str, Sequence[str]], rows: Mapping[str, Row], source: _Source) -> None:
    """The files; one file's arrays are in memory at a time."""
    from safetensors.numpy import save_file

    total = 0
    for file, group in plan.items():
        arrays = {name: np.ascontiguousarray(source.array(rows[name])) for name in group}
        total += sum(x.nbytes for x in arrays.values())
        save_file(arrays, place / file, metadata={"format": "pt"})
    if len(plan) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, group in plan.items() for name in group},
        }
        (place / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
