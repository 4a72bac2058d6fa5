"""`tfc run --generate N`: a spec, weights and prompts -> the texts or token ids that follow them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np

from tfc.commands.build import build
from tfc.commands.progress import progress
from tfc.commands.run import array_of, parameters, tokenize, tokenizer_of

__all__ = ["generate"]


def generate(
    file: str,
    sets: Mapping[str, str],
    weights: str | None,
    texts: Sequence[str],
    array: str | None,
    steps: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    stop: Sequence[int],
    target: str,
    implementation: str | None,
    as_json: bool,
) -> int:
    """Generates, prints, and returns the exit code."""
    with progress("compiling"):
        model = build(file, sets, target, implementation)
    params, folder = parameters(model, weights, Path(file).parent)
    prompts, lengths = (array_of(array), None) if array else tokenize(texts, folder)
    found = model.generate(
        model.pack(params),
        prompts,
        steps,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=jax.random.key(seed),
        lengths=lengths,
        stop=tuple(stop) or None,
    )
    rows = [_until(row, stop) for row in found]
    said = [] if array else [tokenizer_of(folder).decode(row) for row in rows]
    if as_json:
        click.echo(json.dumps({"tokens": rows} | ({"texts": said} if texts else {})))
        return 0
    for text, more in zip(texts, said, strict=True):
        click.echo(f"{text}{'' if more.startswith(' ') else ' '}{more}")
    for row in rows if array else ():
        click.echo(" ".join(map(str, row)))
    return 0


def _until(row: np.ndarray[Any, Any], stop: Sequence[int]) -> list[int]:
    """The tokens up to the first that stops, with it."""
    tokens: list[int] = row.tolist()
    ends = [i for i, token in enumerate(tokens) if token in stop]
    return tokens[: ends[0] + 1] if ends else tokens
