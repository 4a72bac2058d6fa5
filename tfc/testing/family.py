"""A folder of specs -> its models at the small sizes of their heads, whole or one part of them, changed or not.

What is asked for twice is built once.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tfc.testing.small import Array, Small

__all__ = ["Family", "close", "differ", "replaced", "softmax"]

Change = Callable[[str], str]


class Family:
    """Specs `folder/name.tfm`. In all methods, change and sets are those of `Small`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.small = cache(self._small)
        self.piece = cache(self._piece)

    def _small(self, name: str, change: Change | None = None, **sets: Any) -> Small:
        return Small(self.folder / f"{name}.tfm", change, **sets)

    def _piece(self, name: str, inputs: str, body: str, change: Change | None = None, **sets: Any) -> Small:
        """A model of one part of the spec: the model's text is replaced by `model piece(inputs) { body }`."""

        def cut(text: str) -> str:
            changed = text if change is None else change(text)
            if change is not None and changed == text:
                raise ValueError(f"{name}: the change finds nothing to change")
            return f"{changed[: changed.index(chr(10) + 'model ')]}\nmodel piece({inputs}) {{ {body} }}\n"

        return Small(self.folder / f"{name}.tfm", cut, **sets)


def replaced(*parts: tuple[str, str]) -> Change:
    """The change that replaces each (old, new). Raises ValueError, when it is made, for an old that is not there."""

    def change(text: str) -> str:
        for old, new in parts:
            if old not in text:
                raise ValueError(f"there is no {old!r}")
            text = text.replace(old, new)
        return text

    return change


def close(found: Array, expected: Any, atol: float = 1e-10) -> None:
    """Equal in float64, to the rounding of a model of a few layers."""
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=atol)


def differ(found: Array, other: Any) -> None:
    """Farther apart than rounding could bring them: what is compared next is not compared with itself."""
    assert np.abs(found - other).max() > 1e-6


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))
