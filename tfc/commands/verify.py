"""`tfc verify`: specs -> a table of laws: passed, refused in words, not applicable, or violated, and then exit 1."""

import json
from collections.abc import Mapping

import click

from tfc.commands.numbers import whole_numbers
from tfc.commands.progress import progress
from tfc.testing.spec_laws.judging import SpecReport
from tfc.testing.spec_laws.subject import Claims
from tfc.testing.spec_laws.verifying import verify as verify_spec

__all__ = ["verify"]


def verify(
    files: tuple[str, ...],
    sets: Mapping[str, str],
    target: str,
    shape: Mapping[str, str],
    deep: bool,
    documents: str | None,
    causal: bool,
    seed: int,
    as_json: bool,
) -> int:
    """Prints a table a file and returns the exit code."""
    name, _, place = (documents or "").partition(":")
    claims = Claims(causal, name or None, place or None)
    reports: list[SpecReport] = []
    for file in files:
        with progress(f"verifying {file}"):
            report = verify_spec(
                file, target=target, deep=deep, lengths=whole_numbers(shape), claims=claims, seed=seed, lets=sets
            )
        reports.append(report)
        if not as_json:
            click.echo(f"{report}\n")
    if as_json:
        click.echo(json.dumps([r.to_json() for r in reports], indent=2))
    else:
        wrong = sum(not r.ok for r in reports)
        said = f"{wrong} with violations" if wrong else "no violation"
        click.echo(f"{len(files)} file{'' if len(files) == 1 else 's'}: {said}")
    return 1 if any(not r.ok for r in reports) else 0
