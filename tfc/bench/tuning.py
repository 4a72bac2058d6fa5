"""Equations into times of their kernels' candidate configurations, one line of a table as soon as each is known.

What a table has is not measured again: a run that was interrupted goes on where it stopped.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.kernel import DTYPES, Target
from tfc.backends.pallas_gpu import attention, backward, decode, tuned
from tfc.backends.pallas_gpu.candidates import Fields, candidates, kernels_of
from tfc.bench.attention import ROTATED
from tfc.bench.timing import JaxRunner
from tfc.ir.program import Eqn
from tfc.ir.types import DType

__all__ = ["Device", "DeviceLost", "Task", "Timer", "ship", "tasks", "tune"]

Operands = tuple[jax.Array, ...]

WRONG = 2e-2
"""A candidate whose result is further from that of the configuration in use is none: both round to bf16."""


class DeviceLost(Exception):
    """A configuration after which the device computes nothing any more: this process can measure nothing more."""


@dataclass(frozen=True)
class Task:
    """One configuration of one kernel of one equation. captured: the arrays of its formulas' slots, where others than
    random ones are to be measured."""

    kernel: str
    eqn: Eqn
    config: Fields = field(hash=False)
    device: str
    captured: Callable[[], Sequence[jax.Array]] | None = field(default=None, compare=False)

    @property
    def line(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "device": self.device,
            "equation": tuned.equation(self.eqn),
            "versions": tuned.versions(),
            "config": dict(self.config),
        }


Timer = Callable[[Task], float]
"""Microseconds of a task; raises where its configuration does not run, or gives something else."""


def tasks(
    eqns: Iterable[tuple[Eqn, Callable[[], Sequence[jax.Array]] | None]], target: Target, kernels: Sequence[str] = ()
) -> list[Task]:
    """Every candidate of every kernel of the equations that has more than one, each once, an equation's together.

    kernels: the first words of those that are wanted, `forward`, `backward`, `decode`; all if there are none.
    """
    out: dict[str, Task] = {}
    for eqn, captured in eqns:
        for kernel in kernels_of(eqn, target):
            wanted = not kernels or kernel.split()[0] in kernels
            found = candidates(kernel, eqn, target) if wanted else []
            for config in found if len(found) > 1 else ():
                task = Task(kernel, eqn, config, target.name, captured)
                out.setdefault(_key(task.line), task)
    return list(out.values())


def _key(line: Fields) -> str:
    words = ("kernel", "device", "equation", "versions", "config")
    return json.dumps([line[word] for word in words], sort_keys=True)


def tune(work: Sequence[Task], timer: Timer, file: Path, step: Callable[[Task, str], None]) -> None:
    """Times what the file does not have yet and appends a line for each. step: is told what came of each task.

    Raises DeviceLost once a configuration has ended the device's work; its line says so, and later runs pass over it.
    """
    known = {_key(line): line for line in tuned.lines(file, tuned.versions())} if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    with file.open("a", encoding="utf-8") as out:
        if text and not text.endswith("\n"):  # the line that an interrupted run was writing
            out.write("\n")
        for task in work:
            line = known.get(_key(task.line))
            if line is None:
                found, lost = _measured(task, timer)
                line = task.line | found
                out.write(json.dumps(line, sort_keys=True) + "\n")
                out.flush()
                if lost is not None:
                    raise lost
            step(task, f"{line['us']:.1f} us" if "us" in line else line["error"])
    tuned.forget()


def _measured(task: Task, timer: Timer) -> tuple[dict[str, Any], DeviceLost | None]:
    try:
        return {"us": timer(task)}, None
    except Exception as error:  # a configuration that the compiler refuses is a result like others
        said = str(error).splitlines()
        found = {"error": f"{type(error).__name__}: {said[0] if said else ''}"[:300]}
        return found, error if isinstance(error, DeviceLost) else None


def ship(file: Path, device: str) -> int:
    """Writes the best line of each kernel and equation of a device into the table that the package ships, which keeps
    its lines of other equations; returns how many are new or changed. The versions of JAX may be others than here."""
    into = tuned.SHIPPED
    kept = tuned.best(tuned.lines(into)) if into.exists() else {}
    of_these = (line for line in tuned.lines(file) if line["versions"].get("kernels") == tuned.versions()["kernels"])
    found = {key: line for key, line in tuned.best(of_these).items() if key[1] == device}
    changed = sum(1 for key, line in found.items() if kept.get(key) != line)
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for _, line in sorted((kept | found).items()))
    into.write_text(text, encoding="utf-8")
    tuned.forget()
    return changed


# ---- timing on a device


class Device:
    """Times tasks on the first JAX device. What a candidate gives is compared with what is in use gives."""

    def __init__(self, target: Target, samples: int = 5) -> None:
        self.target, self.samples = target, samples
        self.kept: tuple[tuple[str, Eqn], list[Operands], Any] | None = None

    def __call__(self, task: Task) -> float:
        try:
            return self.measured(task)
        except Exception as error:
            try:
                jax.block_until_ready(jnp.ones(8) + 1)
            except Exception:
                raise DeviceLost(str(error)) from error
            raise

    def measured(self, task: Task) -> float:
        sets, known = self.given(task)
        runner = JaxRunner(self.function(task.kernel, task.eqn, task.config), sets)
        far = _apart(known, runner.program(sets)[0])
        if not far <= WRONG:
            raise ValueError(f"its result is {far:.1e} from that of the configuration in use")
        return 1e3 * median(runner.sample() for _ in range(self.samples))

    def given(self, task: Task) -> tuple[list[Operands], Any]:
        """Operand sets, and what the configuration in use gives of the first; kept, as tasks of an equation follow one
        another."""
        kind = task.kernel.split()[0]
        if self.kept is None or self.kept[0] != (kind, task.eqn):
            self.kept = None
            sets = _sets(kind == "backward", task.eqn, self.target, task.captured() if task.captured else None)
            known = jax.jit(self.function(task.kernel, task.eqn, None))(*sets[0])
            self.kept = (kind, task.eqn), sets, known
        return self.kept[1:]

    def function(self, kernel: str, eqn: Eqn, config: Fields | None) -> Callable[..., Any]:
        """The kernel as a function of operands; for gradients, also of results and cotangents."""
        target, config = self.target, dict(config or {})
        if kernel == "forward":
            return attention.build(eqn, target, replace(attention.config_of(eqn, target), **config))
        if kernel == "decode":
            plan = decode.plan_of(eqn, target)
            splits = config.pop("splits", plan.splits)
            return decode.build(eqn, target, replace(plan, splits=splits, config=replace(plan.config, **config)))
        gives, configs = kernel.split()[1], backward.configs_of(eqn, target)
        gradient = backward.build(eqn, target, configs | {gives: replace(configs[gives], **config)})
        count = len(eqn.args)

        def call(*arrays: jax.Array) -> Any:
            made = gradient(arrays[:count], arrays[count : count + 2], arrays[count + 2 :])
            return tuple(x for x in made if x is not None)

        return call


def _sets(backward: bool, eqn: Eqn, target: Target, captured: Sequence[jax.Array] | None) -> list[Operands]:
    """Operand sets that together exceed the cache; for gradients, with results and cotangents.

    Fields that nobody gave are such that a formula like `k < length` or `k <= q.at` leaves every pair: integers the
    number of keys, booleans true, reals random.
    """
    types = [a.type for a in eqn.args]
    size = sum(math.prod(t.ints) * t.dtype.bytes for t in types)
    m = types[1].ints[1]

    def one(seed: int, n: int) -> jax.Array:
        shape, dtype = types[n].ints, types[n].dtype
        if dtype.floating:
            return jax.random.normal(jax.random.fold_in(jax.random.key(seed), n), shape, DTYPES[dtype])
        return jnp.full(shape, m if dtype is not DType.BOOL else True, DTYPES[dtype])

    made: list[Operands] = []
    for seed in range(max(2, math.ceil(ROTATED / size))):
        operands = tuple(one(seed, n) for n in range(3))
        more = captured if captured is not None else tuple(one(seed, n) for n in range(3, len(types)))
        given = (*operands, *more)
        if backward:
            out, lse = jax.jit(attention.build(eqn, target))(*given)
            cotangent = jax.random.normal(jax.random.key(seed + 1), out.shape, out.dtype)
            given = (*given, out, lse, cotangent, jnp.zeros_like(lse))
        made.append(given)
    return made


def _apart(a: Any, b: Any) -> float:
    """The largest norm-wise distance of arrays from those of a, of finite elements."""

    def one(x: jax.Array, y: jax.Array) -> float:
        x, y = (jnp.where(jnp.isfinite(z), z, 0).astype(jnp.float32) for z in (x, y))
        return float(jnp.linalg.norm(jnp.ravel(x - y)) / jnp.maximum(jnp.linalg.norm(jnp.ravel(x)), 1e-30))

    return max(map(one, jax.tree.leaves(a), jax.tree.leaves(b)))
