"""Formats of weights and of values, turned into attributes of a projection."""

from tfc.testing.drawn.writer import Writer

__all__ = ["formatted"]

_ROUNDED = ("int8", "int8(group = 4)", "int4(group = 4)", "fp8", "mx(group = 4)", "ternary", "binary", "nm(2, 4)",
            'int8(per = "tensor", symmetric = no)', 'binary(centered = no, per = "column")')  # fmt: skip


def formatted(w: Writer) -> str:
    """Settings of a `linear`: a format of its weight, or of its inputs by rows, or a bias."""
    match w.one(["weights", "weights", "inputs", "biased"]):
        case "weights":
            w.uses("weight format")
            return f"weights = {w.one(_ROUNDED)}"
        case "inputs":
            w.uses("input format")
            return f'inputs = {w.one(["int8", "fp8"])}(per = "row")'
    return "biased = yes"
