"""Index equations, turned into statements and the value that they give."""

from tfc.testing.drawn.writer import Writer

__all__ = ["indexed"]


def indexed(w: Writer) -> str:
    """The name of a value of [B, T, 8] that an index equation has given."""
    y = w.name("y")
    w.uses("index equation")
    each = [
        f"{y}[b, t, c: 8] = x[b, t, 7 - c] * 0.5",
        f"{y}[.., o: 8] = sum[c](x[.., c] * {{w}}[c, o])",
        f"{y}[b, t, c] = if(tokens[b, t] % 2 == 0, x[b, t, c], -x[b, t, (c + 1) % 8])",
        f"{y}[b, t, c] = max[d](x[b, t, d] * {{w}}[c, d]) - 0.5 * x[b, t, c]",
        f"{y}[b, t, c] = {{w}}[tokens[b, t] % 8, c] * x[b, t, c]",
    ]
    before = [
        f"{y}[b, t, c] = sum[i: 3](x[b, t - i, c] * {{k}}[i, c])",
        f"{y}[b, t, c] = x[b, t - 1, c] + 0.5 * x[b, t, c]",
        f"{y}[b, t, c] = x[b, t, c] * cos(0.3 * t * (c + 1))",
        f"{y}[b, t, c] = if(any[j: 2](tokens[b, t - j] == 3), 0, x[b, t, c])",
    ]
    every = [
        f"{y}[b, t, c] = x[b, t, c] - mean[u: length(x)](x[b, u, c])",
        f"{y}[b, t, c] = sum[i: 3](x[b, t + i - 1, c] * {{k}}[i, c])",
        f"{y}[b, t, c] = x[b, length(x) - 1 - t, c]",
        f"{y}[b, t, c] = 0.2 * sum[u: length(x)](if(u <= t, x[b, u, c], 0))",
    ]
    choices: list[str] = [*each, *([] if w.mode.packed else before), *(every if w.mode.free else [])]
    chosen = w.one(choices)
    if "{w}" in chosen:
        chosen = chosen.replace("{w}", w.param("square", "8, 8", "normal(0.5)"))
    if "{k}" in chosen:
        chosen = chosen.replace("{k}", w.param("kernel", "3, 8", "normal(0.5)"))
    w.line(chosen)
    return y
