"""Norms of every kind, turned into expressions of the tokens."""

from tfc.testing.drawn.writer import Writer

__all__ = ["norm"]

_EACH = ("rms@{n}({x})", "layer_norm@{n}({x})", "scale_norm@{n}({x})", "unit({x})", "batch_norm@{n}({x})",
         "gated_rms@{n}({x}, x)", "rms@{n}({x}, affine = no)", "layer_norm@{n}({x}, biased = no)", "{x}")  # fmt: skip
_ALL = ("group_norm@{n}({x}, groups = 2)", "instance_norm@{n}({x})")


def norm(w: Writer, x: str = "x") -> str:
    """Of each token by itself, or, where a token may depend on all, of all of them."""
    w.uses("norm")
    if w.mode.free and w.seldom() and w.seldom():
        w.uses("norm of all tokens")
        return w.one(_ALL).format(n=w.name("norm"), x=x)
    common = ("rms@{n}({x})", "layer_norm@{n}({x})")
    return w.one((*common, *common, *_EACH)).format(n=w.name("norm"), x=x)
