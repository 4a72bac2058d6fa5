"""`tfc check`: specs -> every diagnostic of every file, as text or JSON."""

import json
from collections.abc import Mapping

import click

from tfc.diagnostics import Diagnostic, TfcError
from tfc.front import front

__all__ = ["check"]


def check(files: tuple[str, ...], sets: Mapping[str, str], style: str) -> int:
    """Prints what is wrong with each file and returns the exit code: 1 where anything is an error."""
    found: list[Diagnostic] = []
    for name in files:
        try:
            found += front(name, sets).warnings
        except TfcError as error:
            found += error.diagnostics
    errors = sum(d.severity == "error" for d in found)
    if style == "json":
        click.echo(json.dumps([d.to_json() for d in found], indent=2))
        return 1 if errors else 0
    for diagnostic in found:
        click.echo(f"{diagnostic}\n")
    warnings = len(found) - errors
    said = [_number(errors, "error")] if errors else ["no errors"]
    said += [_number(warnings, "warning")] if warnings else []
    click.echo(f"{_number(len(files), 'file')}: {', '.join(said)}")
    return 1 if errors else 0


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
