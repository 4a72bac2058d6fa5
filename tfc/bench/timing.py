"""Times functions on the device: many calls in one program, operands rotated, candidates in turn."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import jax

__all__ = ["JaxRunner", "Runner", "TorchGraphRunner", "TorchRunner", "interleave"]

CALLS = 12
"""Calls of one program or between two events."""

LASTING = 10.0
"""Milliseconds that a sample of programs takes at least: they follow one another, and what the host is away from its
turn now and then counts for little."""

MOST = 100
"""Programs of a sample at most."""


class Runner(Protocol):
    """Something that can be timed once: device milliseconds of one call."""

    def sample(self) -> float: ...


@dataclass
class JaxRunner:
    """A JAX function over several operand sets, which together exceed the L2 cache.

    One jitted program makes `CALLS` calls, each held back until the last has ended (an optimization barrier ties
    them), so neither dispatch nor overlap enters. A sample is several such programs, dispatched without waiting; the
    time of one of them is subtracted, and with it what the first dispatch and the last wait take.
    """

    function: Callable[..., Any]
    sets: Sequence[tuple[jax.Array, ...]]

    def __post_init__(self) -> None:
        self.program = jax.jit(self.chain(CALLS))
        self.timed(2)  # compile, then warm up

    def chain(self, calls: int) -> Callable[..., Any]:
        """A program of so many calls. It returns every result: an unread call would be dropped."""
        function = jax.jit(self.function)  # lowered once, called often

        def program(sets: Sequence[tuple[jax.Array, ...]]) -> Any:
            outs: list[Any] = []
            for i in range(calls):
                operands = sets[i % len(sets)]
                if outs:
                    operands, outs[-1] = jax.lax.optimization_barrier((operands, outs[-1]))
                outs.append(function(*operands))
            return outs

        return program

    def sample(self) -> float:
        self.timed(1)  # what ran before moved the results elsewhere, and a captured graph is first brought up to date
        one = self.timed(1)
        more = min(MOST, math.ceil(LASTING / one))
        return (self.timed(1 + more) - one) / (more * CALLS)

    def timed(self, runs: int) -> float:
        """Milliseconds until so many programs, one after another, have ended."""
        start, last = time.perf_counter(), None
        for _ in range(runs):
            last = self.program(self.sets)
        jax.block_until_ready(last)
        return 1e3 * (time.perf_counter() - start)


@dataclass
class TorchRunner:
    """A torch function over several operand sets, timed by CUDA events around `CALLS` launches."""

    function: Callable[..., Any]
    sets: Sequence[tuple[Any, ...]]

    def __post_init__(self) -> None:
        for i in range(3):
            self.function(*self.sets[i % len(self.sets)])

    def sample(self) -> float:
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for i in range(CALLS):
            self.function(*self.sets[i % len(self.sets)])
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / CALLS


@dataclass
class TorchGraphRunner:
    """A torch function over several operand sets, `CALLS` launches captured in one CUDA graph and timed by events
    around it: for functions that end before the next could be launched by hand."""

    function: Callable[..., Any]
    sets: Sequence[tuple[Any, ...]]

    def __post_init__(self) -> None:
        import torch

        beside = torch.cuda.Stream()
        with torch.cuda.stream(beside):  # what a library sets up in its first call is not captured
            for i in range(3):
                self.function(*self.sets[i % len(self.sets)])
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.kept = [self.function(*self.sets[i % len(self.sets)]) for i in range(CALLS)]
        self.graph.replay()

    def sample(self) -> float:
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        self.graph.replay()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / CALLS


def interleave(runners: dict[str, Runner], samples: int) -> dict[str, list[float]]:
    """`samples` raw times of each runner, taken in turn so that drift of the clock hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(samples):
        for name, runner in runners.items():
            times[name].append(runner.sample())
    return times


def middle(times: Sequence[float]) -> float:
    return float(median(times))
