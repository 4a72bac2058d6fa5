"""Long work -> a moving line on stderr while it lasts, where stderr is a terminal; nothing elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["progress"]


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Shows `what` with a spinner and the seconds it takes."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task(what, total=None)
        yield
