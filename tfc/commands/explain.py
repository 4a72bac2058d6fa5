"""`tfc explain`: a spec, a target and lengths -> which kernel runs each operation, and why, without running any."""

import json
from collections.abc import Mapping

import click

from tfc.commands.numbers import whole_numbers
from tfc.explain import Report, default_lengths
from tfc.explain import explain as report_on
from tfc.front import front
from tfc.targets import resolve

__all__ = ["explain", "report"]


def explain(
    file: str,
    sets: Mapping[str, str],
    target: str,
    shape: Mapping[str, str],
    implementation: str | None,
    every: bool,
    as_json: bool,
) -> int:
    """Prints the report and returns the exit code."""
    said = report(file, sets, target, whole_numbers(shape), implementation)
    click.echo(json.dumps(said.to_json(), indent=2) if as_json else said.text(every))
    return 0


def report(
    file: str, sets: Mapping[str, str], target: str, shape: Mapping[str, int], implementation: str | None
) -> Report:
    """The report on a spec; lengths that `shape` leaves out get defaults. Raises TfcError as its parts do."""
    built = front(file, sets)
    program = built.result.program
    return report_on(
        program,
        resolve(target),
        default_lengths(program, shape),
        implementation,
        stages=[stage.name for stage in built.result.stages[1:]],
        notes=built.result.notes,
    )
