"""A trained sentence model -> the same with attention to codes, fitted or random: rows of `tfc bench approximation`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tfc.attended import attended
from tfc.compiler import compile
from tfc.model import Model, Packed
from tfc.passes.hash_attention import HashAttention
from tfc.passes.pipeline import DEFAULT

if TYPE_CHECKING:
    from tfc.bench.approximation import Dense

__all__ = ["hashed"]

TEXTS = 64
"""Calibration sentences that hash functions are fitted to."""

FITTING = {"paired": {"pairs": 1, "unlike": 1_000, "rate": 0.5}, "self": {"rate": 1.0}}
"""Sentences have some fifteen tokens, of which attention picks one or two: those are alike, and where all pairs get the
bias, so that it is the others that have to be told apart, all others are unlike. The source's rate, 5e-4, hardly moves
the votes in a hundred steps on data that small. Chosen by trial on benchmarks/approximation/tuning.txt, before the
sentences that are judged were written."""


def hashed(variant: str, fit: str) -> Callable[["Dense", int], tuple[Model, Packed]]:
    """All attentions by codes of 16 bits."""

    def make(dense: "Dense", seed: int) -> tuple[Model, Packed]:
        step = HashAttention(variant=variant, fit=fit, seed=seed, **FITTING[variant])  # type: ignore[arg-type]  # whole numbers where they are due
        model = compile(dense.spec, "cpu", passes=(step, *DEFAULT))
        data = attended(dense.model, dense.params, dense.calibration, limit=TEXTS)
        return model, model.pack(dense.params, data)

    return make
