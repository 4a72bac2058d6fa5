"""Results into a drawing: a suite's ratios as an SVG of bars, and the frame that all drawings share."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from tfc.bench.results import Row, latest

__all__ = ["COLORS", "bars", "framed"]

COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
"""Of lines and bars, in order, again from the first where there are more."""

LEFT, SCALE, MOST = 260, 150, 3.0
"""Where bars begin and how long a ratio of 1 is, in pixels; the ratio at which bars are cut off."""
THICK, GAP, TOP = 9, 8, 46


def framed(wide: float, high: float, parts: Sequence[str]) -> str:
    """The parts on white, as a file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:g}" height="{high:g}" font-family="sans-serif"'
        ' font-size="12"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def bars(rows: Sequence[Row]) -> str:
    """The newest ratio of each case, direction and peer, a bar each, grouped by case; right of the line tfc is faster.

    What was measured beside another case is left to the table. Empty where nothing else is there.
    """
    rows = [row for row in latest(rows) if not row.beside]
    if not rows:
        return ""
    peers = list(dict.fromkeys(row.peer for row in rows))
    colors = {peer: COLORS[n % len(COLORS)] for n, peer in enumerate(peers)}
    several = len({row.direction for row in rows}) > 1
    parts, y, wide = [], TOP, LEFT + SCALE * MOST + 60
    for case, direction in dict.fromkeys((row.case, row.direction) for row in rows):
        of_case = [row for row in rows if (row.case, row.direction) == (case, direction)]
        label = f"{case}, {'with gradients' if direction == 'both' else direction}" if several else case
        middle = y + THICK * len(of_case) / 2 + 4
        parts.append(f'<text x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>')
        for row in of_case:
            long = SCALE * min(row.ratio, MOST)
            parts.append(f'<path d="M{LEFT} {y}h{long:.1f}v{THICK - 1}h-{long:.1f}z" fill="{colors[row.peer]}"/>')
            parts.append(f'<text x="{LEFT + long + 4:.1f}" y="{y + 8}" font-size="9">{row.ratio:.2f}</text>')
            y += THICK
        y += GAP
    legend, at = [], LEFT
    for peer, color in colors.items():
        legend.append(f'<text x="{at}" y="{TOP - 14}" fill="{color}">{escape(peer)}</text>')
        at += 8 * len(peer) + 16
    title = f"{rows[0].suite} on {rows[0].device}: a peer's time over tfc's"
    line = f'<path d="M{LEFT + SCALE} {TOP - 4}V{y}" stroke="black" stroke-dasharray="3 2"/>'
    one = f'<text x="{LEFT + SCALE}" y="{y + 12}" text-anchor="middle">1</text>'
    heading = f'<text x="8" y="14" font-weight="bold">{escape(title)}</text>'
    return framed(max(wide, at), y + 20, [heading, *legend, one, *parts, line])
