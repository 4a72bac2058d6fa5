"""Parameters <-> a safetensors file: one array a turn of each `repeat`, under the names of the spec.

`layer.look.q.weight`, stacked over six turns of `layer`, is written as `layer.0.look.q.weight` to
`layer.5.look.q.weight`. Only safetensors is read: pickles can run code of whoever wrote them.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tfc.diagnostics import Diagnostic, TfcError, closest
from tfc.ir.program import Stored
from tfc.ir.types import DType, IRError
from tfc.params.tree import DTYPES

__all__ = ["Arrays", "Place", "few", "fitted", "load", "opened", "places", "save"]

Array = np.ndarray[Any, np.dtype[Any]]
Place = tuple[str, tuple[int, ...]]
"""A parameter's path, and the turn on each of its leading axes."""

SHOWN = 10
"""Complaints about one file that are worth reading."""

EXACT: Mapping[str, frozenset[str]] = {
    "float32": frozenset(["float16", "bfloat16"]),
    "float64": frozenset(["float16", "bfloat16", "float32"]),
}
"""Element type -> those whose every value it holds."""


def few(faults: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """The first of many complaints, and how many more there are."""
    found = tuple(faults)
    if len(found) <= SHOWN:
        return found
    return (*found[:SHOWN], Diagnostic(found[SHOWN].code, f"and {len(found) - SHOWN} more like these"))


def places(stored: Iterable[Stored]) -> dict[str, Place]:
    """The name of every array in a file, and where it belongs."""
    out: dict[str, Place] = {}
    for p in stored:
        for turns in product(*(range(count) for _, count in p.repeats)):
            out[_name(p, turns)] = (p.path, turns)
    return out


def _name(param: Stored, turns: tuple[int, ...]) -> str:
    """The path with the number of the turn after the segment of each repeat, outermost first."""
    rest, out = param.path, ""
    for (label, _), turn in zip(param.repeats, turns, strict=True):
        head, found, rest = f".{rest}".partition(f".{label}.")
        if not found:
            raise IRError(f"{param.path} is stacked over `{label}`, which its path does not name")
        out += f"{head}.{label}.{turn}".lstrip(".") + "."
    return out + rest


class Arrays:
    """An open safetensors file: names, shapes, and arrays read when asked for."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.names: tuple[str, ...] = tuple(handle.keys())
        self.metadata: Mapping[str, str] = handle.metadata() or {}

    def __getitem__(self, name: str) -> Array:
        array: Array = self._handle.get_tensor(name)
        return array


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Arrays]:
    """Raises TfcError: E606 for a file of another kind, E607 for one that is missing or damaged."""
    file = Path(path)
    if file.suffix != ".safetensors":
        raise TfcError(_kind(file))
    if not file.is_file():
        raise TfcError(Diagnostic("E607", f"there is no file {file}"))
    from safetensors import SafetensorError, safe_open

    try:
        handle = safe_open(str(file), framework="numpy")
    except (SafetensorError, OSError) as e:
        with file.open("rb") as f:
            start = f.read(4)
        if start[:1] == b"\x80" or start == b"PK\x03\x04":
            raise TfcError(_kind(file, "is a pickle under another name")) from None
        raise TfcError(Diagnostic("E607", f"{file} cannot be read as safetensors: {e}")) from None
    with handle as f:
        yield Arrays(f)


def _kind(file: Path, fact: str = "is no safetensors file") -> Diagnostic:
    why = "a pickle can run code of whoever wrote it, so tfc reads safetensors only"
    how = "torch.load(..., weights_only=True) and safetensors.torch.save_file convert it"
    return Diagnostic("E606", f"{file} {fact}", help=f"{why}; {how}")


def fitted(array: Array, dtype: DType, what: str) -> Array | Diagnostic:
    """The array in the type asked for where that keeps every value, else the complaint (E605)."""
    have, want = array.dtype.name, DTYPES[dtype]
    if have == want:
        return array
    if have in EXACT.get(want, ()):
        return array.astype(want)
    hint = f"declare the precision `params = {_word(have)}`" if _word(have) else "convert the file"
    return Diagnostic("E605", f"{what} is {have}, not {want}", help=hint)


def _word(name: str) -> str:
    return next((str(d) for d, n in DTYPES.items() if n == name and d.floating), "")


def load(path: str | os.PathLike[str], stored: Iterable[Stored]) -> dict[str, Array]:
    """The parameters of a file that `save` wrote: dotted path -> array, stacked again.

    A type that holds every value of the file's is taken (bf16 as f32); nothing is rounded.
    Raises TfcError with what is wrong, ten complaints at most: E601 missing, E602 unknown, E603 shape, E605 element
    type, E606 no safetensors, E607 unreadable.
    """
    wanted = {p.path: p for p in stored}
    names = places(wanted.values())
    out: dict[str, Array] = {}
    with opened(path) as arrays:
        faults = list(_strangers(str(path), names, arrays.names))
        for name, (parameter, turns) in names.items():
            if name not in arrays.names:
                continue
            found = _fit(wanted[parameter], arrays[name], name)
            if isinstance(found, Diagnostic):
                faults.append(found)
            else:
                _enter(out, wanted[parameter], turns, found)
    if faults:
        raise TfcError(*few(faults))
    return out


def _enter(out: dict[str, Array], param: Stored, turns: tuple[int, ...], array: Array) -> None:
    if param.path not in out:
        out[param.path] = np.zeros(param.type.ints, array.dtype)
    out[param.path][turns] = array


def _strangers(file: str, names: Mapping[str, Place], found: tuple[str, ...]) -> Iterator[Diagnostic]:
    extra = [n for n in found if n not in names]
    missing = [n for n in names if n not in found]
    for name in missing:
        near = closest(name, extra)
        hint = f"there is `{near}`, which the model does not have" if near else "was it saved from another spec?"
        yield Diagnostic("E601", f"{file} lacks the parameter `{name}`", help=hint)
    for name in extra:
        near = closest(name, missing)
        hint = f"did you mean `{near}`?" if near else "weights of another naming are imported with a names map"
        yield Diagnostic("E602", f"{file} has `{name}`, which the model does not", help=hint)


def _fit(param: Stored, array: Array, name: str) -> Array | Diagnostic:
    own = param.type.ints[len(param.repeats) :]
    if array.shape != own:
        return Diagnostic(
            "E603",
            f"`{name}` has the shape {list(array.shape)} in the file, {list(own)} in the model",
            help="the file is of a model of another size, or of another spec",
        )
    return fitted(array, param.type.dtype, f"`{name}`")


def save(tree: Mapping[str, Any], path: str | os.PathLike[str], stored: Iterable[Stored]) -> None:
    """Writes the parameters, dotted path -> array. The file appears whole or not at all.

    Raises TfcError (E606) for another ending than `.safetensors`, (E607) where the file cannot be written.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise TfcError(Diagnostic("E606", f"{file} does not end in .safetensors", help="that is what tfc writes"))
    from safetensors.numpy import save_file

    whole = {p: np.asarray(x) for p, x in tree.items()}
    arrays = {name: np.ascontiguousarray(whole[p][turns]) for name, (p, turns) in places(stored).items()}
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".tfc-") as folder:
            save_file(arrays, Path(folder) / file.name)
            os.replace(Path(folder) / file.name, file)
    except OSError as e:
        raise TfcError(Diagnostic("E607", f"{file} cannot be written: {e.strerror or e}")) from None
