"""Choices of Hypothesis turned into the text of a spec: the file's items, the body being written, names, fields."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hypothesis import strategies as st

__all__ = ["HEADS", "LENGTHS", "VOCAB", "WIDTH", "Mode", "Writer"]

WIDTH, HEADS, VOCAB = 8, 2, 11
LENGTHS = {"B": 2, "T": 6, "S": 3}
"""Of every drawn spec: few shapes, so that what is compiled for one serves the next."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What a token's results may depend on, whatever else is drawn.

    causal: on no later token. padded: on no token beyond the input `lengths`. packed: on no token of another
    `document`. placed: positions are given by the input `place`.
    """

    causal: bool = False
    padded: bool = False
    packed: bool = False
    placed: bool = False

    @property
    def free(self) -> bool:
        return not (self.causal or self.padded or self.packed)

    @property
    def shifted(self) -> bool:
        """Whether places count from elsewhere for some tokens, so that only differences of places may be read."""
        return self.packed and not self.placed


class Writer:
    """A spec in the making. The tokens are always called `x`, [B, T, 8], and `tokens`, int [B, T].

    top: items of the file. lines: statements of the body that is being written. loops: its turns' names.
    owned: components declared in a body, which need no label. concepts: what has been used.
    """

    def __init__(self, draw: st.DrawFn, mode: Mode) -> None:
        self.draw, self.mode = draw, mode
        self.top: list[str] = []
        self.lines: list[str] = []
        self.concepts: set[str] = set()
        self.loops: list[str] = []
        self.owned: set[str] = set()
        self.fields: dict[str, tuple[str, str]] = {}
        self.real = self.memory = False
        self._taken: dict[str, int] = {}

    # --- choices

    def often(self) -> bool:
        return self.draw(st.integers(0, 3)) > 0

    def half(self) -> bool:
        return self.draw(st.booleans())

    def seldom(self) -> bool:
        return self.draw(st.integers(0, 5)) == 5

    def one[X](self, of: Sequence[X]) -> X:
        return self.draw(st.sampled_from(of))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    # --- text

    def name(self, hint: str) -> str:
        """A name that is not taken: drawn specs use each once in a file."""
        n = self._taken[hint] = self._taken.get(hint, 0) + 1
        return f"{hint}_{n}"

    def uses(self, concept: str) -> None:
        self.concepts.add(concept)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def item(self, text: str) -> None:
        self.top.append(text)

    def param(self, hint: str, dims: str, start: str = "") -> str:
        """A parameter of the file."""
        name = self.name(hint)
        self.item(f"param {name}[{dims}]{start and ' = '}{start}")
        self.uses("param")
        return name

    def field(self, kind: str, which: int = 0) -> str:
        """A field that every token carries: `int`, `bool` or `real`."""
        name = f"{kind}_field_{which}"
        made = {
            "int": f"(tokens[b, t] * {which + 2}) % 5",
            "bool": f"(tokens[b, t] + {which}) % 3 > 0",
            "real": f"0.5 * x[b, t, {which}]",
        }[kind]
        self.fields[name] = (f"{name}[b, t] = {made}", name)
        self.uses("field")
        return name

    @contextmanager
    def body(self) -> Iterator[list[str]]:
        """What is written meanwhile goes into a body of its own."""
        outer, self.lines = self.lines, []
        try:
            yield self.lines
        finally:
            self.lines = outer
