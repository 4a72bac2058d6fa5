"""Long work -> a moving line on stderr while it lasts, where stderr is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["counted", "progress"]


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


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """Gives a function that is called after each of `total` steps with what came of it: a bar with the time that is
    left, and beside it the last step; where stderr is no terminal, a line a step."""
    if not sys.stderr.isatty():
        count = iter(range(1, total + 1))
        yield lambda said: print(f"{next(count, total)}/{total} {said}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task(what, total=total)
        yield lambda said: shown.update(bar, advance=1, description=said, refresh=True)
