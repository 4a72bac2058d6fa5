"""`tfc convert`: a trained model's weights -> those of another spec, copied and fitted, as one safetensors file."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import click
import numpy as np

from tfc.calibration import Batch
from tfc.commands.build import build
from tfc.commands.progress import progress
from tfc.commands.run import array_of, tokenizer_of, weights_path
from tfc.conversion import convert as converted
from tfc.diagnostics import Diagnostic, TfcError
from tfc.ir.types import DType
from tfc.model import Model
from tfc.params.tree import flatten

__all__ = ["convert"]

ROWS = 16
"""Rows of a calibration batch."""


def convert(
    file: str,
    to: str,
    weights: str,
    output: str,
    calibrate: Sequence[str],
    fit: str,
    sets: Mapping[str, str],
    to_sets: Mapping[str, str],
    seed: int,
) -> int:
    """Loads, fits, writes, and returns the exit code."""
    import jax

    with progress("compiling"):
        model, other = build(file, sets, "cpu"), build(to, to_sets, "cpu")
    path = weights_path(weights)
    with progress("loading weights"):
        params = model.load(str(path))
    folder = path if path.is_dir() else path.parent
    batches = [batch for data in calibrate for batch in _batches(data, model, folder)]
    made = converted(model, params, other, fit=fit, batches=batches, key=jax.random.key(seed))
    with progress(f"writing {output}"):
        other.save(made, output)
    before, after = (sum(prod(s.type.ints) for s in m.lowered.stored()) for m in (model, other))
    was, same = flatten(params), sum(1 for p in flatten(made) if p in flatten(params))
    click.echo(
        f"wrote {output}: {after:,} numbers where {file} has {before:,}; {same} of {len(flatten(made))} arrays "
        f"as they were, the others made of {len(was) - same}"
    )
    return 0


def _batches(data: str, model: Model, folder: Path) -> list[Batch]:
    """Calibration data as batches of the model's inputs: rows of an array, or a text file's lines as token ids.

    Lines of as many tokens go together, so nothing is padded. Raises TfcError: E721, E722 and E723 for texts, E724
    for a file that cannot be read.
    """
    if data.endswith(".npy"):
        array, name = array_of(data), model.lowered.inputs[0].value.name
        return [{name: array[n : n + ROWS]} for n in range(0, len(array), ROWS)]
    try:
        lines = [line.strip() for line in Path(data).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        help = "a text a line, or integers in a .npy file"
        raise TfcError(Diagnostic("E724", f"{data} cannot be read: {error}", help=help)) from None
    tokens = [i.value.name for i in model.lowered.inputs if i.value.type.dtype is DType.I32 and i.value.type.rank == 2]
    if not tokens:
        fact = f"{model.lowered.name} takes no token ids"
        raise TfcError(Diagnostic("E723", fact, help="give arrays of its first input as .npy"))
    alike: dict[int, list[Any]] = {}
    for found in tokenizer_of(folder).encode_batch([line for line in lines if line]):
        alike.setdefault(len(found.ids), []).append(found.ids)
    return [
        {tokens[0]: np.array(rows[n : n + ROWS], np.int32)}
        for _, rows in sorted(alike.items())
        for n in range(0, len(rows), ROWS)
    ]
