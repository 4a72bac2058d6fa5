"""`tfc import hf`: the safetensors of a Hugging Face folder -> one safetensors file under a spec's names."""

from collections.abc import Mapping
from math import prod

import click

from tfc.commands.build import build
from tfc.commands.progress import progress

__all__ = ["import_hf"]


def import_hf(folder: str, output: str, spec: str, sets: Mapping[str, str]) -> int:
    """Loads, checks every name and shape, writes, and returns the exit code."""
    model = build(spec, sets, "cpu")
    with progress(f"reading {folder}"):
        params = model.load(folder)
    with progress(f"writing {output}"):
        model.save(params, output)
    stored = model.program.stored()
    numbers = sum(prod(s.type.ints) for s in stored)
    click.echo(f"wrote {output}: {len(stored)} arrays, {numbers:,} numbers, under the names of {spec}")
    return 0
