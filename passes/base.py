"""What a pass is: Program -> program, what becomes of its parameters, and why it held back where it did."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, runtime_checkable

from tfc.ir.param_map import IDENTITY, ParamMap
from tfc.ir.program import Program
from tfc.source import Span

__all__ = ["Contract", "Note", "Pass", "Rewritten"]


class Contract(Enum):
    """What a pass promises about the function that the program computes."""

    EXACT = "exact"  # the same function, up to rounding
    APPROXIMATE = "approximate"  # another function, with a known limit at which it is the same

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass has to say about one place.

    site: `pass-name:place`, where the place is a parameter's path or a value of the program; what `hold` names.
    held: the pass left the place as it was, and `message` is the reason; else the message is a finding.
    span: where the user wrote it.
    """

    site: str
    message: str
    held: bool = True
    span: Span | None = None

    def __str__(self) -> str:
        return f"{self.site}: {'held back: ' if self.held else ''}{self.message}"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a pass gives. The map leads from the parameters of the old program to those of the new one."""

    program: Program
    map: ParamMap = IDENTITY
    notes: Sequence[Note] = ()


@runtime_checkable
class Pass(Protocol):
    """A frozen dataclass whose fields are its options; its docstring is the rule and when it holds back."""

    name: ClassVar[str]
    """As users write it: `fuse-attention`."""

    contract: ClassVar[Contract]

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        """The program after the pass; sites in `hold` stay as they are. The program given is a verified one."""
        ...
