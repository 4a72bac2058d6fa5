"""A `.tfm` file or its text -> its program after the passes, without JAX: parse, lower, run the passes."""

import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tfc.diagnostics import Diagnostic, TfcError
from tfc.grammar import ast
from tfc.grammar.lower import Lowered, lower
from tfc.grammar.parser import parse, read_source
from tfc.ir.names import NamesMap
from tfc.ir.program import Program
from tfc.passes import pipeline
from tfc.passes.base import Pass
from tfc.source import Source

__all__ = ["Front", "front", "source_of"]

_FROZEN_AT_START = 1000
"""More objects than Python itself freezes as it starts (none to 3.11, 375 in 3.12), fewer than a program does."""


@dataclass(frozen=True)
class Front:
    """What is known of a spec without a device.

    lowered: before the passes.   result: after each of them, with the map of the parameters.
    """

    source: Source
    module: ast.Module
    lowered: Lowered
    result: pipeline.Result

    @property
    def program(self) -> Program:
        """After all passes."""
        return self.result.program

    @property
    def names(self) -> Mapping[str, NamesMap]:
        """The checkpoint namings of the spec, by name."""
        return self.lowered.names

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        return self.lowered.warnings


def front(
    path_or_text: str | os.PathLike[str],
    sets: Mapping[str, object] | None = None,
    passes: Iterable[str | Pass] | None = None,
    model: str | None = None,
    hold: frozenset[str] = frozenset(),
) -> Front:
    """The whole front half.

    path_or_text: a path, or the text itself (what holds a line break or a brace). sets: other values for the file's
    `let`s, as values or text. passes: names or passes, in order; None for the default. model: which model to enter.
    hold: sites that passes leave alone. Raises TfcError with every complaint found.
    """
    source, folder = source_of(path_or_text)
    with _collecting_later():
        module, found = parse(source)
        if module is None or any(d.severity == "error" for d in found):
            raise TfcError(*found)
        lowered = lower(module, sets, model, folder)
        chosen = pipeline.DEFAULT if passes is None else tuple(_pass(p) for p in passes)
        first = pipeline.opening(lowered.program)
        return Front(source, module, lowered, pipeline.run(lowered.program, (*first, *chosen), hold))


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Without Python's collector of cycles, which would run every few thousand equations, look through all that JAX
    holds, and find nothing: half the time of a deep model. Where it was off, it stays off.

    Afterwards what was made counts as old, so that the collector does not begin by looking through it; not where
    somebody froze objects, which this would thaw.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            if gc.get_freeze_count() < _FROZEN_AT_START:
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _pass(chosen: str | Pass) -> Pass:
    return pipeline.choose([chosen])[0] if isinstance(chosen, str) else chosen


def source_of(path_or_text: str | os.PathLike[str]) -> tuple[Source, Path | None]:
    """The text with its name, and the folder its imports are looked up in. Raises TfcError for an unreadable file."""
    if isinstance(path_or_text, str) and any(c in path_or_text for c in "\n{"):
        return Source("<text>", path_or_text), None
    source, found = read_source(Path(path_or_text))
    if source is None:
        raise TfcError(*found)
    return source, Path(path_or_text).parent
