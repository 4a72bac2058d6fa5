"""Laws of texts: the canonical layout means the same, and every program is read back from its text."""

from tfc.grammar.format import format_module
from tfc.grammar.parser import parse as parse_spec
from tfc.ir.text import parse, show
from tfc.source import Source
from tfc.testing.spec_laws.subject import Subject

__all__ = ["canonical", "read_back"]


def canonical(s: Subject) -> str | None:
    """The formatted text lowers to the same program, and is formatted already."""
    once = format_module(s.module)
    again, faults = parse_spec(Source("<formatted>", once))
    if again is None or faults:
        return f"the formatted text is refused: {faults[0].message if faults else ''}\n{once}"
    if format_module(again) != once:
        return f"formatting changes the formatted text\n{once}"
    if s.lower(again).program != s.narrow.lowered:
        return f"the formatted text means another program\n{once}"
    return None


def read_back(s: Subject) -> str | None:
    """After lowering and after each pass."""
    for stage in s.narrow.result.stages:
        text = show(stage.program)
        if parse(text) != stage.program:
            return f"after {stage.name} the text is of another program\n{text}"
    return None
