"""`tfc tune`: the attentions of a spec or of a suite -> measured block sizes, kept for later calls, resumable."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfc.commands.numbers import whole_numbers
from tfc.commands.progress import counted
from tfc.diagnostics import Diagnostic, TfcError

if TYPE_CHECKING:
    from tfc.backends.kernel import Target
    from tfc.bench.tuning import Task, Timer
    from tfc.ir.program import Eqn

__all__ = ["SUITES", "tune"]

Captured = Callable[[], Sequence[Any]] | None
SUITES = ("attention", "decode")


def tune(
    what: str | None,
    sets: Mapping[str, str],
    target: str,
    shape: Mapping[str, str],
    length: int | None,
    kernels: Sequence[str],
    only: str,
    ship: bool,
    timer: "Timer | None" = None,
) -> int:
    """Measures and prints what is best; returns the exit code. timer: in place of the device's.

    Raises TfcError: E820 where the target is not the Hopper GPU that is here, or nothing is there to be tuned; and what
    reading the spec raises.
    """
    from tfc.backends.pallas_gpu import tuned
    from tfc.bench import tuning
    from tfc.targets import resolve

    here = resolve(target)
    if what is not None:
        if timer is None and resolve("auto").name != here.name:
            fact = f"block sizes are measured on the device itself; {here.name} is not here"
            raise TfcError(Diagnostic("E820", fact, help="leave `--target` out on a machine that has one"))
        work = tuning.tasks(_equations(what, sets, here, shape, length, only), here, kernels)
        if not work:
            fact = f"no attention of {what} runs on pallas_gpu's kernels on {here.name}"
            raise TfcError(Diagnostic("E820", fact, help="tfc explain FILE says why"))
        file = tuned.user_file()
        try:
            with counted("measuring", len(work)) as step:
                tuning.tune(work, timer or tuning.Device(here), file, lambda task, said: step(f"{_name(task)}: {said}"))
        except KeyboardInterrupt:
            click.echo(f"interrupted: what was measured is in {file}; the same command goes on from there", err=True)
            return 1
        except tuning.DeviceLost as error:
            click.echo(f"the device has failed ({error}); the same command goes on behind that configuration", err=True)
            return 1
        _summary(work, file)
    if ship:
        changed = tuning.ship(tuned.user_file(), here.name)
        click.echo(f"{changed} lines for {here.name} are new in {tuned.SHIPPED}")
    return 0


def _equations(
    what: str, sets: Mapping[str, str], target: "Target", shape: Mapping[str, str], length: int | None, only: str
) -> "Iterator[tuple[Eqn, Captured]]":
    """The attention equations, with the arrays of their formulas' slots where they are known."""
    if what in SUITES:
        yield from _of_suite(what, only)
        return
    from tfc.backends.emit import emit
    from tfc.explain import default_lengths
    from tfc.front import front
    from tfc.ir.ops import Attention
    from tfc.passes.decode import Decode, tokens_of

    program, given = front(what, sets).result.program, whole_numbers(shape)
    if length is not None:
        time = tokens_of(program)
        program = Decode()(program).program
        new = {str(time.type.shape[1]): 1} if time is not None else {}
        lengths = {name: length if name not in new else 1 for name in default_lengths(program, {})}
        given = {**lengths, **dict(list(default_lengths(program, {}).items())[:1]), **given}
    for row in emit(program, target).plan(default_lengths(program, given)):
        if isinstance(row.eqn.op, Attention) and row.kernel == "pallas_gpu" and only in row.site:
            yield row.eqn, None


def _of_suite(what: str, only: str) -> "Iterator[tuple[Eqn, Captured]]":
    from tfc.bench.attention import captured
    from tfc.bench.cases import ATTENTION, among
    from tfc.bench.decode import DECODE, captured_of

    if what == "attention":
        for case in (c for c in ATTENTION if among(c.name, only)):
            yield case.eqn(), lambda case=case: captured(case)  # type: ignore[misc]  # bound here
    else:
        for few in (c for c in DECODE if among(c.name, only) and not c.page and not c.kept):
            yield few.eqn(), lambda few=few: captured_of(few)  # type: ignore[misc]  # bound here


def _name(task: "Task") -> str:
    shape = "x".join(map(str, task.eqn.args[0].type.ints))
    return f"{task.kernel} {shape} {', '.join(f'{name} {x}' for name, x in task.config.items())}"


def _summary(work: "Sequence[Task]", file: Path) -> None:
    """A line for each kernel and equation: the best time, and that of the configuration that was in use."""
    from tfc.backends.pallas_gpu import tuned

    known = list(tuned.lines(file, tuned.versions()))
    best = tuned.best(iter(known))
    times = {(r["kernel"], r["device"], r["equation"], str(r["config"])): r["us"] for r in known if "us" in r}
    firsts: dict[tuple[str, str, str], Task] = {}
    for task in work:
        firsts.setdefault((task.kernel, task.device, tuned.equation(task.eqn)), task)
    for key, first in firsts.items():
        if key not in best:
            click.echo(f"{_name(first)}: nothing ran")
            continue
        before = times.get((*key, str(dict(first.config))))
        line, was = best[key], f"{before:.1f} us" if before else "nothing"
        said = ", ".join(f"{name} {x}" for name, x in line["config"].items())
        click.echo(f"{_name(first)} took {was}; best {line['us']:.1f} us: {said}")
