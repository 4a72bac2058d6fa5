"""A function's import path and arguments turned into its result, in a process of its own, within a time limit.

An interpreted kernel that waits for an arrival nobody makes never returns, and no thread of the same process
can stop it. A `Worker` is a process that lives from case to case, so that JAX is imported once; a case that
exceeds its limit ends the process, is reported in words, and the next case starts a fresh one.
"""

import importlib
import os
import pickle
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["CaseFailed", "CaseHangs", "Worker"]

THREADS = "16"
"""XLA's threads in a worker. Interpreted warpgroups wait for one another, each in a thread of XLA's pool, which by
itself has no more threads than the machine has cores: with fewer than warpgroups, every case would hang."""


class CaseHangs(Exception):
    """The case did not end within its limit; its process was ended."""


class CaseFailed(Exception):
    """The case raised, or its process died. `kind` names the exception; the message holds its text and trace."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


@dataclass(slots=True)
class Worker:
    """Runs cases one after another.

    environment: variables for the process, over those of this one; its PYTHONPATH comes before this one's.
    preload: modules that the process imports before its first case, so that no case's time goes into that.
    setup_limit: seconds for the process to start. Use it as a context manager, or call `close`.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    setup_limit: float = 120.0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _line: Connection | None = field(default=None, init=False, repr=False)

    def call(self, path: str, *args: Any, limit: float = 60.0, **kwargs: Any) -> Any:
        """The result of `package.module:function`, given picklable arguments.

        limit: seconds. Raises CaseHangs after it, CaseFailed where the function raises or the process dies.
        """
        line = self._start()
        began = time.monotonic()
        try:
            line.send((path, args, kwargs))
            if not line.poll(limit):
                self.close()
                raise CaseHangs(
                    f"{path} hangs: no result after {time.monotonic() - began:.1f} s; its process was ended"
                )
            good, result = line.recv()
        except (EOFError, OSError) as lost:
            code = self._ended()
            raise CaseFailed("ProcessDied", f"{path}: the process ended with code {code}") from lost
        if not good:
            raise CaseFailed(*result)
        return result

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> Connection:
        if self._line is not None and self._process is not None and self._process.poll() is None:
            return self._line
        self.close()
        ours, theirs = socket.socketpair()
        # the package is found as it is found here, also where it is not installed
        places = (str(Path(__file__).parents[2]), self.environment.get("PYTHONPATH"), os.environ.get("PYTHONPATH"))
        paths = os.pathsep.join(p for p in places if p)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tfc.testing.worker", str(theirs.fileno()), *self.preload],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={"NPROC": THREADS, **os.environ, **self.environment, "PYTHONPATH": paths},
            )
        self._line = Connection(ours.detach())
        if not self._line.poll(self.setup_limit):
            self.close()
            raise CaseHangs(f"a worker process did not start within {self.setup_limit} s")
        try:
            self._line.recv()
        except EOFError as lost:
            raise CaseFailed("ProcessDied", f"a worker process did not start, code {self._ended()}") from lost
        return self._line

    def _ended(self) -> int | None:
        process = self._process
        code = None if process is None else process.wait(timeout=10)
        self.close()
        return code


def serve(line: Connection) -> None:
    """The process's own loop: one case after another until the other side closes the line."""
    line.send("ready")
    while True:
        try:
            path, args, kwargs = line.recv()
        except EOFError:
            return
        try:
            module, _, name = path.partition(":")
            result = (True, getattr(importlib.import_module(module), name)(*args, **kwargs))
            pickle.dumps(result)
        except Exception as error:  # whatever the case raises is its result
            result = (False, (type(error).__name__, f"{error}\n{traceback.format_exc()}"))
        line.send(result)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    serve(Connection(int(sys.argv[1])))
