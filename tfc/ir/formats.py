"""What numbers can be kept in: the formats of weights, activations and caches, and the procedures that fit values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tfc.ir.op import Op
from tfc.ir.types import IRError, TensorType

__all__ = ["FITTERS", "FORMATS", "Fit", "Fitter", "Format", "FormatKind", "Rounded"]

Setting = bool | int | float | str


@dataclass(frozen=True, slots=True)
class FormatKind:
    """A row of the table of formats. `settings`: their defaults, or their type where one must be given.

    rounds: whether the format is a rounding of each number by itself or with its group, so that
    `Rounded` has a meaning; else it is another shape of weights (`low_rank`).
    """

    name: str
    settings: Mapping[str, Setting | type]
    rounds: bool
    doc: str


FORMATS: Mapping[str, FormatKind] = {
    f.name: f
    for f in (
        FormatKind("int8", {"group": 0, "per": "column", "symmetric": True, "outliers": float("inf")}, True,
                   "8-bit integers with a scale per column, row, tensor or group; inputs beyond `outliers` stay "
                   "as they are (LLM.int8, arXiv:2208.07339)"),
        FormatKind("int4", {"group": 128, "per": "column", "symmetric": True}, True,
                   "4-bit integers with a scale per group"),
        FormatKind("fp8", {"variant": "e4m3", "per": "tensor"}, True, "8-bit floats (arXiv:2209.05433)"),
        FormatKind("mx", {"variant": "e2m1", "group": 32}, True, "microscaling: blocks share a power of two "
                   "(arXiv:2310.10537)"),
        FormatKind("ternary", {"threshold": 0.7, "per": "tensor"}, True, "-1, 0, 1 and a scale (arXiv:1605.04711)"),
        FormatKind("binary", {"centered": True, "per": "tensor"}, True, "-1, 1 and a scale, the mean of the magnitudes "
                   "(XNOR-Net, arXiv:1603.05279)"),
        FormatKind("nm", {"n": int, "m": int}, True, "the n largest of every m along the inputs (arXiv:2104.08378)"),
        FormatKind("block_sparse", {"size": int, "density": float}, True, "whole blocks, the largest by L2 norm"),
        FormatKind("low_rank", {"rank": int}, False, "a product of two thin matrices"),
        FormatKind("lora", {"rank": int, "alpha": 1.0}, False, "a frozen matrix and a thin product (arXiv:2106.09685)"),
    )
}  # fmt: skip
"""Every format, by its name in the language."""

CHOICES: Mapping[tuple[str, str], tuple[str, ...]] = {
    **{(f.name, "per"): ("column", "row", "tensor") for f in FORMATS.values() if "per" in f.settings},
    ("fp8", "variant"): ("e4m3", "e5m2"),
    ("mx", "variant"): ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "int8"),
}
"""Format and setting -> the words that it may be."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format with its settings, complete and in the table's order: `int4(group=64)`."""

    name: str
    settings: tuple[tuple[str, Setting], ...] = ()

    def __getitem__(self, name: str) -> Setting:
        return dict(self.settings)[name]

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.settings if FORMATS[self.name].settings[k] != v)
        return f"{self.name}({shown})" if shown else self.name


@dataclass(frozen=True, slots=True)
class Fitter:
    """A row of the table of fitting procedures: what may be set, and what it finds."""

    name: str
    settings: Mapping[str, Setting | type]
    doc: str


FITTERS: Mapping[str, Fitter] = {
    f.name: f
    for f in (
        Fitter("svd", {}, "the nearest matrix of that rank (Eckart and Young)"),
        Fitter("activation_svd", {}, "the nearest in the outputs on calibration data"),
        Fitter("nearest", {}, "each number to the nearest that the format has"),
        Fitter("gptq", {"damp": 0.01, "block": 128}, "column by column, the rest compensating (arXiv:2210.17323)"),
        Fitter("shift_scale", {"steps": 100}, "channels shifted and scaled first (Outlier Suppression+, "
               "arXiv:2304.09145)"),
        Fitter("ksh", {"steps": 100, "pairs": 10, "unlike": 0, "rate": 5e-4}, "kernel-supervised hashing, bit by "
               "bit: of each query `pairs` keys are alike, `unlike` (0: as many) are not (EcoFormer, "
               "arXiv:2209.09004)"),
        Fitter("kmeans", {"rounds": 20}, "centres of clusters"),
        Fitter("balanced_kmeans", {"rounds": 20}, "centres of clusters of one size"),
    )
}  # fmt: skip
"""Every fitting procedure, by its name in the language; tfc/params holds their arithmetic."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitting procedure with its settings: `gptq(damp=0.01)`."""

    name: str
    settings: tuple[tuple[str, Setting], ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.settings if FITTERS[self.name].settings[k] != v)
        return f"{self.name}({shown})" if shown else self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounded(Op):
    """Each number replaced by the nearest that the format has: what is read back after keeping x in it.

    x: [..., C] -> x's type; groups and per-row scales run along C. Gradients pass as if nothing had happened, and
    are zero where the format saturates.
    """

    name: ClassVar[str] = "rounded"
    format: Format

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        (x,) = operands
        known = FORMATS.get(self.format.name)
        if not (x.dtype.floating and x.rank > 0 and known is not None and known.rounds):
            raise IRError(f"rounded: {x} to {self.format.name}")
        return (x,)
