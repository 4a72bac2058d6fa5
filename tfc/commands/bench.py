"""`tfc bench`: a suite measured beside its peers on the device at hand, as rows of data and as a table."""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tfc.bench.results import Row, latest, markdown, read, write
from tfc.diagnostics import Diagnostic, TfcError

__all__ = ["bench", "render", "shown"]

MARKS = ("<!-- results -->\n", "<!-- /results -->")


def bench(
    suite: str,
    against: Sequence[str],
    only: str,
    samples: int,
    folder: Path,
    save: bool,
    direction: str | None = None,
) -> int:
    """Measures and prints; with `save`, appends rows to folder/results/<device>/<suite>.jsonl. Exit code 1 where a
    result is wrong. direction: `forward` or `both` of the suite `attention`, None for each.

    Raises TfcError (E820) where the suite, a peer, the direction or the device is not what the suite needs.
    """
    from tfc.bench.attention import BenchError, run
    from tfc.bench.cases import DIRECTIONS, Direction
    from tfc.bench.peers import PEERS
    from tfc.targets import resolve

    if direction is not None and suite != "attention":
        raise TfcError(Diagnostic("E820", f"`{suite}` has no directions", help="leave `--direction` out"))
    if suite == "approximation":
        return _approximation(only, samples, folder, save)
    if suite == "minilm":
        return _minilm(against, only, samples, folder, save)
    if suite != "attention":
        raise TfcError(
            Diagnostic("E820", f"there is no suite `{suite}`", help="suites are: attention, approximation, minilm")
        )
    for name in against:
        if name not in PEERS:
            raise TfcError(Diagnostic("E820", f"there is no peer `{name}`", help=f"peers are: {', '.join(PEERS)}"))
    target = resolve("auto")
    if target.platform != "gpu" or target.capability != 9.0:
        raise TfcError(
            Diagnostic(
                "E820",
                f"the suite `attention` measures pallas_gpu, which runs on Hopper GPUs; here is {target.name}",
                help="run it on an H100 or H200; committed results are in benchmarks/results/",
            )
        )
    from tfc.backends.pallas_gpu.backward import KERNEL

    rows: list[Row] = []
    try:
        directions: list[Direction] = [d for d in DIRECTIONS if direction in (None, d)]
        for outcome in run(KERNEL, target, against, only=only, samples=samples, directions=directions):
            rows += outcome.rows
            for row in outcome.rows:
                peer = f"{row.peer} ({row.beside})" if row.beside else row.peer
                print(f"{row.case:24} {row.direction:7} ours {row.ours_ms:.3f} ms, {peer} {row.peer_ms:.3f} ms:"
                      f" {row.ratio:.2f}x, floor {row.floor_ms:.3f} ms, error {row.errors}", flush=True)  # fmt: skip
            for name, reason in outcome.refusals.items():
                print(f"{outcome.case.name:24} {outcome.direction:7} {name} takes no part: {reason}", flush=True)
            if save and outcome.rows:
                _kept(folder, outcome.rows[0].device.lower().replace(" ", "_"), outcome.rows)
    except BenchError as error:
        print(f"not timed: {error}", file=sys.stderr)
        return 1
    print(markdown(rows), end="")
    return 0


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
    return markdown(rows)


def render(folder: Path) -> int:
    """Writes the tables of all committed results between the marks of folder's README.md and the project's."""
    tables = "\n".join(shown(read(file)) for file in sorted(folder.glob("results/*/*.jsonl")))
    for readme in (folder / "README.md", folder.parent / "README.md"):
        text = readme.read_text(encoding="utf-8")
        head, mark, rest = text.partition(MARKS[0])
        _, end, tail = rest.partition(MARKS[1])
        if mark and end:
            readme.write_text(head + mark + tables + end + tail, encoding="utf-8")
            print(f"wrote {readme}")
    return 0
