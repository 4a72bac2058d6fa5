"""A program -> the names of what it needs and no backend runs yet, from one table."""

from collections.abc import Iterator, Mapping

from tfc.ir.formats import FORMATS
from tfc.ir.program import Program

__all__ = ["WAITING", "found", "waits"]

WAITING: Mapping[str, str] = {f.name: f"weights kept as {f.doc}" for f in FORMATS.values() if not f.rounds}
"""Name -> what it is. A specification that needs one is checked and shown like any other, and not run."""


def found(program: Program) -> Iterator[tuple[str, str]]:
    """Each need with its place: a name of the table, and a parameter's path."""
    for param in program.stored():
        if param.format is not None and param.format.name in WAITING:
            yield param.format.name, param.path


def waits(program: Program) -> tuple[str, ...]:
    """The names, sorted, each once; empty for a program that runs."""
    return tuple(sorted({name for name, _ in found(program)}))
