"""Results as JSON lines, the hash of the kernel they were measured with, and the tables made of them."""

import hashlib
import io
import json
import tokenize
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tfc.backends

__all__ = ["Row", "kernel_hash", "latest", "markdown", "read", "write"]

SOURCES = {
    "attention": ("formula.py", "pallas_gpu/attention.py", "pallas_gpu/*.py"),
    "decode": ("formula.py", "pallas_gpu/*.py"),
    "scaling": ("bounds.py", "formula.py", "gradients.py", "pallas_gpu/*.py"),
    "minilm": ("xla/arrays.py", "xla/attention.py", "xla/formula.py", "xla/index.py", "xla/linear.py", "xla/norm.py"),
    "approximation": ("tfc/params/fit/*.py", "tfc/passes/factorize.py", "tfc/passes/hash_attention.py"),
}
"""The files of `backends/` whose code decides a suite's figures; those that begin with `tfc/` are looked up in tfc."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case against one peer, measured in one run. Times are device milliseconds, medians of `samples`.

    ratio: peer_ms / ours_ms, above 1 tfc is faster, unless `ratio_of` says otherwise. floor_ms: what FLOPs and bytes
    alone need on this device.
    errors: norm-wise distance to float64 on sampled rows, ours and the peer's; of direction `both`, ours also of the
    gradients of a shorter problem, and the peer's to ours. beside: the case that the peer computes, where it is another
    than ours. quality: what else was measured or judged, by name; the suite's module says what.
    """

    suite: str
    case: str
    direction: str
    implementation: str
    peer: str
    ours_ms: float
    peer_ms: float
    ratio: float
    samples: dict[str, list[float]]
    floor_ms: float
    device: str
    versions: dict[str, str]
    date: str
    kernel_hash: str
    command: str
    errors: dict[str, float] = field(default_factory=dict)
    profile: dict[str, float] = field(default_factory=dict)
    """The share of our time that operations take, those of a fused loop together."""
    overhead_us: dict[str, float] = field(default_factory=dict)
    """What a call of a small model costs through `Model` and through its jitted function alone."""
    quality: dict[str, float] = field(default_factory=dict)
    beside: str = ""
    ratio_of: str = ""
    """What peer_ms over ours_ms is, where it is not a peer's time over ours; the suite's module says more."""
    unit: str = "ms"
    """What ours_ms, peer_ms and floor_ms are in."""


def kernel_hash(suite: str) -> str:
    """A hash of the tokens of the suite's kernel sources; comments and blank lines do not count."""
    backends, package = Path(tfc.backends.__file__).parent, Path(tfc.__file__).parent
    files: dict[Path, str] = {}
    for pattern in SOURCES[suite]:
        root, below = (package, pattern.removeprefix("tfc/")) if pattern.startswith("tfc/") else (backends, pattern)
        files |= {f: f.relative_to(root).as_posix() for f in root.glob(below)}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(files[file].encode())
        for token in tokenize.generate_tokens(io.StringIO(file.read_text(encoding="utf-8")).readline):
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                digest.update(token.string.encode() + b"\0")
    return digest.hexdigest()[:16]


def read(path: Path) -> list[Row]:
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Appends rows; a file is only ever added to by the program that measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(asdict(row), sort_keys=True) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as out:
        out.write(text)


def latest(rows: Sequence[Row]) -> list[Row]:
    """The newest row of every case, direction and peer, in the order of first appearance."""
    newest: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row.case, row.direction, row.peer)
        if key not in newest or row.date >= newest[key].date:
            newest[key] = row
    return list(newest.values())


def markdown(rows: Sequence[Row]) -> str:
    """The README's tables: a row a case; peer over ours, so above 1 tfc is faster; share of the floor reached. What
    was measured beside another case has a table of its own.

    Cases that were measured with other kernel sources than those of today are marked.
    """
    if not rows:
        return "_No results yet._\n"
    rows = latest(rows)
    stale = {(r.case, r.beside) for r in rows if r.kernel_hash != kernel_hash(r.suite)}
    lines: list[str] = []
    for beside, table in ((False, _against), (True, _beside)):
        if chosen := [r for r in rows if bool(r.beside) is beside]:
            lines += [*table(chosen, stale), ""]
    commands: dict[str, list[Row]] = {}
    for row in rows:
        commands.setdefault(row.command, []).append(row)
    for command, of_command in commands.items():
        of_all = {name: version for row in of_command for name, version in row.versions.items()}
        versions = ", ".join(f"{name} {version}" for name, version in sorted(of_all.items()))
        lines.append(f"Measured {of_command[0].date[:10]} with {versions}; `{command}` repeats it.")
    if stale:
        lines.append("\\* measured with an earlier version of the kernel, whose sources have changed since.")
    return "\n".join(lines) + "\n"


def _against(rows: Sequence[Row], stale: Container[tuple[str, str]]) -> list[str]:
    peers = list(dict.fromkeys(r.peer for r in rows))
    lines = [
        f"| {rows[0].suite} on {rows[0].device} | direction | share of the floor | " + " | ".join(peers) + " |",
        "|---|---|---|" + "---|" * len(peers),
    ]
    for case, direction in dict.fromkeys((r.case, r.direction) for r in rows):
        by_peer: dict[str, Any] = {r.peer: r for r in rows if (r.case, r.direction) == (case, direction)}
        one = next(iter(by_peer.values()))
        cells = [f"{by_peer[p].ratio:.2f}" if p in by_peer else "refuses" for p in peers]
        mark = " *" if (case, "") in stale else ""
        lines.append(f"| {case}{mark} | {direction} | {one.floor_ms / one.ours_ms:.0%} | " + " | ".join(cells) + " |")
    return lines


def _beside(rows: Sequence[Row], stale: Container[tuple[str, str]]) -> list[str]:
    lines = [
        f"| {rows[0].suite} on {rows[0].device} | direction | beside | by | its time over ours | predicted |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        mark, predicted = " *" if (r.case, r.beside) in stale else "", f"{r.quality['predicted']:.2f}"
        lines.append(f"| {r.case}{mark} | {r.direction} | {r.beside} | {r.peer} | {r.ratio:.2f} | {predicted} |")
    return lines
