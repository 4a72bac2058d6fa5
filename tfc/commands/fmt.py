"""`tfc fmt`: specs -> the same specs in the one canonical layout, written whole or not at all."""

import os
import sys
import tempfile
from pathlib import Path

import click

from tfc.diagnostics import Diagnostic, TfcError
from tfc.grammar.format import format_module
from tfc.grammar.parser import parse, read_source

__all__ = ["fmt"]


def fmt(files: tuple[str, ...], only_check: bool) -> int:
    """Rewrites each file that is not in canonical layout; with `only_check`, names it. Returns the exit code.

    A file with errors of syntax is left as it is and its errors are printed; the others are done all the same.
    """
    failed, changed = False, []
    for name in files:
        try:
            before, after = _laid_out(name)
        except TfcError as error:
            click.echo(str(error), err=True)
            failed = True
            continue
        if before == after:
            continue
        changed.append(name)
        if not only_check:
            _replace(Path(name), after)
    for name in changed:
        click.echo(f"{'would reformat' if only_check else 'reformatted'} {name}", file=sys.stderr)
    done = "to reformat" if only_check else "reformatted"
    click.echo(f"{len(files)} read, {len(changed)} {done}", err=True)
    return 1 if failed or (only_check and changed) else 0


def _laid_out(name: str) -> tuple[str, str]:
    """The text of a file, and its canonical layout. Raises TfcError where it cannot be read or parsed."""
    source, faults = read_source(name)
    if source is None:
        raise TfcError(*faults)
    module, faults = parse(source)
    if module is None or any(d.severity == "error" for d in faults):
        raise TfcError(*faults)
    return source.text, format_module(module)


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all: beside it first, then moved into place, its permissions kept."""
    try:
        path = path.resolve()  # a link stays a link
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", newline="", delete=False) as file:
            file.write(text)
        os.chmod(file.name, path.stat().st_mode)
        os.replace(file.name, path)
    except OSError as error:
        raise TfcError(Diagnostic("E001", f"{path} cannot be written: {error.strerror or error}")) from error
