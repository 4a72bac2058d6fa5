"""`tfc bench`: a suite measured beside its peers on the device at hand, as rows of data and as a table."""

import sys
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tfc.bench.results import Row, latest, markdown, read, write
from tfc.diagnostics import Diagnostic, TfcError

if TYPE_CHECKING:
    from tfc.backends.kernel import Target
    from tfc.bench.side_by_side import Turn

__all__ = ["SUITES", "bench", "charted", "render", "require_host", "section", "shown"]

SUITES = {
    "attention": "cudnn,tokamax,flex,flash2",
    "decode": "cudnn,tokamax,sdpa_cudnn,sdpa_flash",
    "scaling": "",
    "approximation": "",
    "minilm": "",
}
"""The suites, each with the peers that it is measured beside where none are named."""

MARKS = ("<!-- results -->\n", "<!-- /results -->")


def bench(
    suite: str,
    against: Sequence[str],
    only: str,
    samples: int,
    folder: Path,
    save: bool,
    direction: str | None = None,
    jobs: int = 1,
) -> int:
    """Measures and prints; with `save`, appends rows to folder/results/<device>/<suite>.jsonl. Exit code 1 where a
    result is wrong. direction: `forward` or `both` of the suites `attention` and `scaling`, None for each. jobs: in how
    many processes cases of `attention` and `decode` are prepared at once; they measure one after another.

    Raises TfcError (E820) where the suite, a peer, the direction or the device is not what the suite needs.
    """
    if direction is not None and suite not in ("attention", "scaling"):
        raise TfcError(Diagnostic("E820", f"`{suite}` has no directions", help="leave `--direction` out"))
    match suite:
        case "approximation":
            return _approximation(only, samples, folder, save)
        case "minilm":
            return _minilm(against, only, samples, folder, save)
        case "attention" | "decode" | "scaling":
            return _on_hopper(suite, against, only, samples, folder, save, direction, jobs)
    raise TfcError(Diagnostic("E820", f"there is no suite `{suite}`", help=f"suites are: {', '.join(SUITES)}"))


def _on_hopper(
    suite: str,
    against: Sequence[str],
    only: str,
    samples: int,
    folder: Path,
    save: bool,
    direction: str | None,
    jobs: int,
) -> int:
    """The suites of pallas_gpu's kernels; with `save`, rows under folder/results/<device>."""
    from tfc.bench.attention import BenchError
    from tfc.bench.side_by_side import Failed, share_memory
    from tfc.targets import resolve

    _check(suite, against, only)
    if jobs > 1:
        share_memory()
    target = resolve("auto")
    if target.platform != "gpu" or target.capability != 9.0:
        raise TfcError(
            Diagnostic(
                "E820",
                f"the suite `{suite}` measures pallas_gpu, which runs on Hopper GPUs; here is {target.name}",
                help="run it on an H100 or H200; committed results are in benchmarks/results/",
            )
        )
    require_host()
    rows: list[Row] = []
    try:
        for case, found, refusals in _outcomes(suite, target, against, only, samples, direction, jobs):
            rows += found
            for row in found:
                print(_line(row), flush=True)
            for name, reason in refusals.items():
                print(f"{case:32} {name} takes no part: {reason}", flush=True)
            if save and found:
                _kept(folder, found[0].device.lower().replace(" ", "_"), found)
    except (BenchError, Failed) as error:
        print(f"not timed: {error}", file=sys.stderr)
        return 1
    print(shown(rows), end="")
    return 0


def _line(row: Row) -> str:
    """What is printed of a row as soon as it is there."""
    peer, unit = f"{row.peer} ({row.beside})" if row.beside else row.peer, row.unit
    ratio = f"{row.ratio:.3f}, {row.ratio_of}" if row.ratio_of else f"{row.ratio:.2f}x"
    said = {**{f"error of {name}": x for name, x in row.errors.items()}, **row.quality}
    return (
        f"{row.case:24} {row.direction:7} ours {row.ours_ms:.4f} {unit}, {peer} {row.peer_ms:.4f} {unit}:"
        f" {ratio}, floor {row.floor_ms:.4f} {unit}; " + ", ".join(f"{name} {x:.4g}" for name, x in said.items())
    )


def require_host() -> None:
    """Raises TfcError (E820) where JAX was told to leave the CPU out, on which float64 is computed."""
    import jax

    try:
        jax.devices("cpu")
    except RuntimeError as error:
        raise TfcError(
            Diagnostic(
                "E820",
                "results are checked against float64 on the CPU, which JAX does not see here",
                help="unset JAX_PLATFORMS, or set it to `cuda,cpu`",
            )
        ) from error


def _check(suite: str, against: Sequence[str], only: str) -> None:
    """Raises TfcError (E820) for a peer that the suite does not have, or where no case has that name."""
    from tfc.bench import cases, decode, decode_peers, peers, scaling

    by_suite: dict[str, Collection[str]] = {"attention": peers.PEERS, "decode": decode_peers.PEERS}
    has = by_suite.get(suite, ())
    for name in against:
        if name not in has:
            hint = f"peers are: {', '.join(has)}" if has else "it compares our kernel with itself"
            raise TfcError(Diagnostic("E820", f"`{suite}` has no peer `{name}`", help=hint))
    if suite == "scaling":
        named = scaling.names()
    else:
        named = [c.name for c in (cases.ATTENTION if suite == "attention" else decode.DECODE)]
    if not any(cases.among(name, only) for name in named):
        raise TfcError(Diagnostic("E820", f"no case's name has `{only}`", help=f"cases are: {', '.join(named)}"))


def _outcomes(
    suite: str, target: "Target", against: Sequence[str], only: str, samples: int, direction: str | None, jobs: int
) -> Iterator[tuple[str, Sequence[Row], dict[str, str]]]:
    """Of each case: its name and direction, its rows, who takes no part and why."""
    from tfc.backends.pallas_gpu import backward
    from tfc.bench import attention, cases, decode, scaling
    from tfc.bench.side_by_side import side_by_side
    from tfc.commands.progress import counted

    directions: list[cases.Direction] = [d for d in cases.DIRECTIONS if direction in (None, d)]
    if suite == "scaling":
        one = directions[0] if direction else None
        for each in scaling.run(backward.KERNEL, target, only=only, samples=samples, direction=one):
            yield each.case, each.rows, each.refusals
        return
    chosen: list[Any]
    reached: dict[str, float] | float | None = None
    if suite == "decode":
        chosen = [c for c in decode.DECODE if cases.among(c.name, only)]
    else:
        chosen = [(c, d) for c in cases.ATTENTION if cases.among(c.name, only) for d in directions]
    if jobs == 1:
        yield from _measured(suite, target, against, samples, reached, chosen, None)
        return
    reached = decode.bandwidths() if suite == "decode" else attention.matrix_rate()
    work = partial(_measured, suite, target, against, samples, reached)
    with counted("cases prepared", len(chosen)) as step:

        def prepared(count: int) -> None:
            for _ in range(count):
                step("prepared")

        yield from side_by_side(work, chosen, jobs, prepared)


def _measured(
    suite: str,
    target: "Target",
    against: Sequence[str],
    samples: int,
    reached: Any,
    chosen: Sequence[Any],
    turn: "Turn | None",
) -> Iterator[tuple[str, Sequence[Row], dict[str, str]]]:
    """Of each chosen case its name and direction, its rows, who takes no part and why. reached: the device's rates."""
    from tfc.backends.pallas_gpu import backward
    from tfc.backends.pallas_gpu import decode as few
    from tfc.bench import attention, decode

    if suite == "decode":
        found = decode.run(few.KERNEL, target, against, cases=chosen, samples=samples, reached=reached, turn=turn)
        yield from ((outcome.case.name, outcome.rows, outcome.refusals) for outcome in found)
        return
    for outcome in attention.run(
        backward.KERNEL, target, against, chosen=chosen, samples=samples, rate=reached, turn=turn
    ):
        yield f"{outcome.case.name} {outcome.direction}", outcome.rows, outcome.refusals


def _kept(folder: Path, device: str, rows: Sequence[Row]) -> Path:
    """The file that the rows are added to."""
    file = folder / "results" / device / f"{rows[0].suite}.jsonl"
    write(file, rows)
    return file


def _approximation(only: str, samples: int, folder: Path, save: bool) -> int:
    """Approximations of a trained model beside it; with `save`, rows and a chart under folder/results/cpu."""
    from tfc.bench import approximation
    from tfc.commands.progress import progress

    variants = [v for v in approximation.VARIANTS if only in v.name]
    if not variants:
        names = ", ".join(v.name for v in approximation.VARIANTS)
        raise TfcError(Diagnostic("E820", f"no variant's name has `{only}`", help=f"variants are: {names}"))
    spec = folder.parent / "examples" / "minilm.tfm"
    with progress("fitting and measuring"):
        dense = approximation.opened(spec, folder / "approximation")
        rows = approximation.measured(dense, variants, samples)
    if save:
        _kept(folder, "cpu", rows).with_suffix(".svg").write_text(approximation.chart(rows), encoding="utf-8")
    print(approximation.table(rows), end="")
    return 0


def _minilm(against: Sequence[str], only: str, samples: int, folder: Path, save: bool) -> int:
    """The example model on the CPU beside transformers; with `save`, rows under folder/results/cpu."""
    from tfc.bench import minilm
    from tfc.bench.attention import BenchError

    for name in against:
        if name not in minilm.PEERS:
            peers = ", ".join(minilm.PEERS)
            raise TfcError(Diagnostic("E820", f"`minilm` has no peer `{name}`", help=f"its peers are: {peers}"))
    cases = [case for case in minilm.CASES if only in case.name]
    if not cases:
        names = ", ".join(case.name for case in minilm.CASES)
        raise TfcError(Diagnostic("E820", f"no case's name has `{only}`", help=f"cases are: {names}"))
    rows: list[Row] = []
    try:
        for row in minilm.run(folder.parent / "examples" / "minilm.tfm", cases, samples):
            rows.append(row)
            cpu = median(row.samples["transformers cpu"]) / median(row.samples["tfc cpu"])
            print(
                f"{row.case:16} ours {row.ours_ms:.0f} ms, {row.peer} {row.peer_ms:.0f} ms: {row.ratio:.2f}x"
                f" ({cpu:.2f}x of CPU time), floor {row.floor_ms:.0f} ms, {row.errors[row.peer]:.1e} apart",
                flush=True,
            )
            print("  time: " + ", ".join(f"{name} {share:.1%}" for name, share in row.profile.items() if share >= 1e-3))
            print("  a call of a small model: " + ", ".join(f"{n} {t:.0f} us" for n, t in row.overhead_us.items()))
    except BenchError as error:
        print(f"not timed: {error}", file=sys.stderr)
        return 1
    if save:
        _kept(folder, "cpu", rows)
    print(markdown(rows), end="")
    return 0


def shown(rows: list[Row]) -> str:
    """The table of a suite's rows, the newest of each case."""
    if rows and rows[0].suite == "approximation":
        from tfc.bench import approximation

        return approximation.table(latest(rows))
    if rows and rows[0].suite == "scaling":
        from tfc.bench import scaling_table

        return scaling_table.table(latest(rows))
    return markdown(rows)


def charted(rows: list[Row]) -> str:
    """The chart of a suite's rows, an SVG, of the newest of each case; empty where there is nothing to draw."""
    if rows and rows[0].suite == "approximation":
        from tfc.bench import approximation

        return approximation.chart(latest(rows))
    if rows and rows[0].suite == "scaling":
        from tfc.bench import scaling_table

        return scaling_table.chart(latest(rows))
    from tfc.bench.chart import bars

    return bars(rows)


def section(file: Path, beside: Path) -> str:
    """What a README in the folder `beside` shows of a file of results: its chart, if there is one, and its table."""
    rows, chart = read(file), file.with_suffix(".svg")
    what = f"{rows[0].suite} on {rows[0].device}" if rows else file.stem
    link = f"![{what}]({chart.relative_to(beside).as_posix()})\n\n" if chart.exists() else ""
    return link + shown(rows)


def render(folder: Path) -> int:
    """Writes a chart beside each file of results, and charts and tables of all between the marks of folder's README.md
    and the project's."""
    files = sorted(folder.glob("results/*/*.jsonl"))
    for file in files:
        if chart := charted(read(file)):
            file.with_suffix(".svg").write_text(chart, encoding="utf-8")
            print(f"wrote {file.with_suffix('.svg')}")
    for readme in (folder / "README.md", folder.parent / "README.md"):
        tables = "\n".join(section(file, readme.parent) for file in files)
        text = readme.read_text(encoding="utf-8")
        head, mark, rest = text.partition(MARKS[0])
        _, end, tail = rest.partition(MARKS[1])
        if mark and end:
            readme.write_text(head + mark + tables + end + tail, encoding="utf-8")
            print(f"wrote {readme}")
    return 0
