"""Cases of a suite -> their outcomes: prepared in several processes at once, measured one after another.

Preparing (compiling, comparing with float64) takes most of a run, but measuring must have the device for itself: no
process begins to measure before all are prepared, nor before the one before it has ended.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Failed", "Suite", "Turn", "share_memory", "side_by_side"]

Turn = Callable[[], None]
"""To be called when all is prepared; returns when it is this process's turn to measure."""

Suite = Callable[[Sequence[Any], Turn], Iterator[Any]]
"""The outcomes of some cases. A module's function, or a `partial` of one, as it goes to other processes."""


class Failed(Exception):
    """What processes said that did not get to their end, a line each."""


def share_memory() -> None:
    """Lets several processes use one device: to be called before JAX looks for it. Each else takes most of the memory
    at once."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def side_by_side(
    suite: Suite, cases: Sequence[Any], jobs: int, prepared: Callable[[int], None] = lambda count: None
) -> Iterator[Any]:
    """The outcomes of all cases. prepared: called with the number of cases of each process that is prepared.

    Raises Failed, after the outcomes of all others, where a process raised or ended early.
    """
    context = multiprocessing.get_context("spawn")
    jobs = max(1, min(jobs, len(cases)))
    said, workers = list[str](), []
    for i in range(jobs):
        mine, own = cases[i::jobs], context.Pipe()
        process = context.Process(target=_work, args=(own[1], suite, mine), daemon=False)
        process.start()
        own[1].close()
        workers.append((process, own[0], mine))
    try:
        for _, connection, mine in workers:
            said += _until("prepared", connection)[1]
            prepared(len(mine))
        for _, connection, _ in workers:
            if connection.closed:
                continue
            connection.send("your turn")
            while True:
                outcomes, failures = _until("outcome", connection)
                said += failures
                yield from outcomes
                if connection.closed:
                    break
    finally:
        ended = [connection.closed for _, connection, _ in workers]
        for _, connection, _ in workers:
            connection.close()
        for done, (process, _, _) in zip(ended, workers, strict=True):
            process.join(timeout=5 if done else 0)
            if process.is_alive():
                process.kill()
    if said:
        raise Failed("\n".join(said))


def _until(wanted: str, connection: Connection) -> tuple[list[Any], list[str]]:
    """What the next message brings, if it is the one that is wanted, and what failed. Closes the connection where no
    more will come."""
    try:
        kind, what = connection.recv()
    except EOFError:
        kind, what = "failed", "a process ended early, without a word"
    if kind == wanted:
        return [what], []
    connection.close()
    return [], [what] if kind == "failed" else []


def _work(connection: Connection, suite: Suite, cases: Sequence[Any]) -> None:
    """A process's part: prepares, waits for its turn, measures."""

    def turn() -> None:
        connection.send(("prepared", None))
        connection.recv()

    try:
        for outcome in suite(cases, turn):
            connection.send(("outcome", outcome))
        connection.send(("ended", None))
    except EOFError:  # nobody listens any more
        return
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
