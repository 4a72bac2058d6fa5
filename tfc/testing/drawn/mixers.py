"""Linear recurrences and convolutions over time, turned into expressions of the tokens."""

from tfc.testing.drawn.norms import norm
from tfc.testing.drawn.writer import Writer

__all__ = ["mixer"]

FEATURES = ("elu1", "rectified(0.1)", "exponential", "softmaxed", "squared")


def mixer(w: Writer) -> str:
    """An expression of [B, T, 8], causal where the mode asks for it, documents apart where it asks for that."""
    w.uses("recurrence")
    n, x = w.name("mixer"), w.name("before")
    w.line(f"{x} = {norm(w)}")
    segment = "segment = x.segment" if w.mode.packed else "segment = none"
    # what sees later tokens sees padding
    direction = "causal" if not w.mode.free else w.one(["causal", "causal", "reverse", "both"])
    kept = "" if direction == "both" else f", {segment}"
    feature = f"feature = {w.one(FEATURES)}"
    normalized = w.one(["yes", "no"])
    q, k, v = (f"split(linear@{w.name(a)}({x}, 8), 2)" for a in "qkv")
    decay = w.one(["", ", decay = retention", f', decay = -0.1 * (h + 1), direction = "{direction}"'])
    if direction == "both":
        decay = ', direction = "both"'
    elif "direction" not in decay:
        decay += f', direction = "{direction}"'
    made = [
        f"linear_attention@{n}({x}, heads = 2, {feature}, normalized = {normalized}, eps = 0.1, "
        f'direction = "{direction}"{kept})',
        f"retention_mixer@{n}({x}, heads = 2, {segment})",
        f"gated_linear_attention@{n}({x}, heads = 2, rank = 2, {segment})",
        f"mamba2@{n}({x}, inner = 8, head_dim = 4, state = 4, {segment})",
        f"causal_conv1d@{n}({x}, kernel = {w.number(2, 3)}, {segment})",
        f"join(recur({q}, {k}, {v}, scale = 0.5{decay}{', ' + segment if w.mode.packed else ''}))",
    ]
    if not w.mode.packed:
        made += [f"shift({x})", f"0.2 * cumsum({x})"]
    if w.mode.free:
        made += [f"depthwise_conv1d@{n}({x})", f"avg_pool1d({x}) - {x}", f"max_pool1d({x})"]
    return w.one(made)
