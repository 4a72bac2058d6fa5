"""Rows of the suite `scaling` into a table, with what refuses in words, and a drawing of time over visited tiles."""

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tfc.bench.chart import COLORS, framed
from tfc.bench.results import Row, kernel_hash
from tfc.bench.scaling import PREDICTED, SCALING, SUITE, TILES, Scaling
from tfc.bench.trained import TRAINED, equation, refusal
from tfc.targets import of_kind, resolve

__all__ = ["chart", "refusals", "table"]


def refusals(device: str, sizes: Scaling = SCALING) -> dict[str, str]:
    """Cases whose gradient pallas_gpu leaves to another form on the GPU of that name, and why, long formulas left out.
    Today's kernel is asked, for which the device need not be here. None where no target is of that name."""
    from tfc.backends.pallas_gpu.backward import KERNEL

    if not (name := of_kind("gpu", device)):
        return {}
    target = resolve(name)
    found = {sizes.of_trained(of): refusal(KERNEL, equation(of, sizes.trained, target), target) for of in TRAINED}
    return {case: re.sub(r"`[^`]{48,}`", "`..`", reason) for case, reason in found.items() if reason}


def table(rows: Sequence[Row]) -> str:
    """A row a case: its ratio, of what, and the figures behind it; then the cases that are refused."""
    if not rows:
        return "_No results yet._\n"
    current = kernel_hash(SUITE)
    lines = [f"| {SUITE} on {rows[0].device} | direction | ratio | of what | figures |", "|---|---|---|---|---|"]
    for row in rows:
        mark = "" if row.kernel_hash == current else " *"
        cells = (row.direction, f"{row.ratio:.3f}", row.ratio_of, _figures(row))
        lines.append(f"| {row.case}{mark} | " + " | ".join(cells) + " |")
    measured = {row.case for row in rows}
    for name, reason in refusals(rows[0].device).items():
        if name not in measured:
            lines.append(f"| {name} | backward | refuses | | {reason} |")
    versions = ", ".join(f"{k} {v}" for k, v in sorted(rows[0].versions.items()))
    lines += ["", f"Measured {rows[0].date[:10]} with {versions}; `{rows[0].command}` repeats it."]
    if any(row.kernel_hash != current for row in rows):
        lines.append("\\* measured with an earlier version of the kernel, whose sources have changed since.")
    return "\n".join(lines) + "\n"


def _figures(row: Row) -> str:
    q = row.quality
    if "deviation" in q:
        return (
            f"{q['sets']:.0f} sets of {q['least_tiles']:.0f} to {q['most_tiles']:.0f} tiles, {q['compilations']:.0f}"
            f" compilation; {q['constant_ms']:.3f} ms and {q['ns_a_tile']:.2f} ns a tile, of which a set is at most"
            f" {q['deviation']:.1%} away, half of them {q['deviation_median']:.1%}"
        )
    if "most" in q:
        return f"{row.peer_ms:.3f} ms over {row.ours_ms:.3f} ms; at most {q['most']:.2f} is asked for"
    lengths = [name.removeprefix("compiled ") for name in q if name.startswith("compiled ")]
    return "; ".join(
        f"{n}: {q[f'compiled {n}']:.0f} bytes a token"
        + (f", {q[f'device {n}']:.0f} on the device" if f"device {n}" in q else "")
        for n in sorted(lengths, key=_tokens)
    )


def _tokens(short: str) -> int:
    return 1024 * int(short[:-1]) if short.endswith("k") else int(short)


WIDE, HIGH, LEFT, TOP, FOOT = 640, 400, 70, 40, 50


def chart(rows: Sequence[Row]) -> str:
    """Milliseconds of each set of documents over the tiles that it visits, with the fitted line, as an SVG; of several
    directions, each in its color. Empty where no such row is there."""
    rows = [row for row in rows if TILES in row.samples]
    if not rows:
        return ""
    most_x = max(max(row.samples[TILES]) for row in rows)
    most_y = max(max(row.samples[row.implementation]) for row in rows)

    def x(tiles: float) -> float:
        return LEFT + (WIDE - LEFT - 30) * tiles / most_x

    def y(ms: float) -> float:
        return TOP + (HIGH - TOP - FOOT) * (1 - ms / most_y)

    parts = [f'<text x="8" y="16" font-weight="bold">{escape(f"{SUITE} on {rows[0].device}: {rows[0].case}")}</text>']
    for n in range(5):
        tiles, ms = most_x * n / 4, most_y * n / 4
        parts.append(f'<path d="M{LEFT} {y(ms):.1f}H{WIDE - 30}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(ms) + 4:.1f}" text-anchor="end">{ms:.2f}</text>')
        parts.append(f'<text x="{x(tiles):.1f}" y="{HIGH - FOOT + 18}" text-anchor="middle">{tiles:.0f}</text>')
    parts.append(f'<text x="{WIDE / 2}" y="{HIGH - 10}" text-anchor="middle">tiles of 128 x 128 visited</text>')
    parts.append(f'<text x="14" y="{HIGH / 2}" text-anchor="middle" transform="rotate(-90 14 {HIGH / 2})">ms</text>')
    for n, row in enumerate(rows):
        color = COLORS[n % len(COLORS)]
        counts, predicted = row.samples[TILES], row.samples[PREDICTED]
        ends = sorted(zip(counts, predicted, strict=True))
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in (ends[0], ends[-1]))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}"/>')
        for tiles, ms in zip(counts, row.samples[row.implementation], strict=True):
            parts.append(f'<circle cx="{x(tiles):.1f}" cy="{y(ms):.1f}" r="3" fill="{color}"/>')
        fit = f"{row.quality['constant_ms']:.3f} ms + {row.quality['ns_a_tile']:.2f} ns a tile"
        said = f"{row.direction}: measured, and {fit}"
        parts.append(f'<text x="{LEFT + 10}" y="{TOP + 14 * (n + 1)}" fill="{color}">{escape(said)}</text>')
    return framed(WIDE, HIGH, parts)
