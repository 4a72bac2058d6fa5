"""Diagnostics: a stable code, a fact with its values, the place, an edit that would work.

Finders return diagnostics; one place raises `TfcError` with all of them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tfc.source import Span

__all__ = ["CODES", "Diagnostic", "Edit", "Note", "TfcError", "closest"]

MOST_SAID = 2_000
"""Characters of a message or a help."""
_LONG_WORD = re.compile(r"[^\s`\"]{300,}")


def _bounded(text: str) -> str:
    """Words and texts of absurd length cut, so that what is printed stays readable whatever a file contains."""
    if len(text) > 300:
        text = _LONG_WORD.sub(lambda word: f"{word.group()[:60]}...", text)
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]} ..."


CODES: dict[str, str] = {
    # E0xx: the file itself          E1xx: syntax              E2xx: names
    # E3xx: types and formulas       E4xx: shapes and sizes    E5xx: limits
    # E6xx: parameters and weights   E7xx: inputs of a call    E8xx: targets and kernels
    # W9xx: warnings
    "E001": "the file cannot be read",
    "E002": "the file is not UTF-8 text",
    "E003": "the text is too large",
    "E004": "an invisible character",
    "E005": "nested too deep",
    "E006": "a number out of range",
    "E101": "`tfm 1` is missing",
    "E102": "an unknown version of the language",
    "E103": "a character that is not of the language",
    "E104": "an operator of another language",
    "E105": "not a number",
    "E106": "a string that does not end, or an unknown escape",
    "E107": "a bracket without its partner",
    "E108": "a word of the language used as a name",
    "E109": "a word of another language",
    "E110": "something unexpected",
    "E111": "a value is missing",
    "E112": "`=`, `==` and `:` confused",
    "E113": "a comma too many or too few",
    "E114": "a bracket in a wrong place",
    "E115": "a misspelt word",
    "E116": "in a wrong place",
    "E117": "`repeat` without a name",
    "E118": "a documentation that describes nothing",
    "E119": "a declaration of a wrong shape",
    "E201": "an unknown name",
    "E202": "a name declared twice",
    "E203": "a word of formulas used as a name",
    "E204": "an unknown attribute or input",
    "E205": "an unknown kind, or another kind than declared",
    "E206": "an input without a value",
    "E207": "too many or too few arguments",
    "E208": "a label that labels nothing, or names two uses",
    "E209": "something defined by itself",
    "E210": "no model to enter",
    "E211": "no such `let` to override",
    "E212": "`return` missing, unreachable or in a loop",
    "E213": "a tensor of a turn read outside its loop",
    "E214": "something given twice",
    "E220": "a file that cannot be imported",
    "E301": "an operand of another kind",
    "E302": "an implicit variable where it means nothing",
    "E303": "a formula of another role",
    "E304": "a tensor read by a formula in a wrong way",
    "E305": "a value of another sort",
    "E306": "an unknown field",
    "E307": "two different fields of one name",
    "E308": "an override of another kind",
    "E309": "an index equation of a wrong shape",
    "E401": "shapes that do not fit",
    "E402": "not a whole number, or a division without a result",
    "E403": "an index over two sizes",
    "E404": "heads that do not divide into kv_heads",
    "E405": "a loop that changes what it carries",
    "E406": "a size that is known too late",
    "E407": "one weight of two sizes",
    "E408": "something routed that looks at other tokens",
    "E501": "a number too large",
    "E502": "too many elements, turns or operations",
    "E503": "not built yet",
    "E504": "nested too deep to be understood",
    "E601": "a parameter is missing",
    "E602": "an unknown parameter",
    "E603": "a parameter of another shape",
    "E604": "parameters whose paths clash",
    "E605": "a parameter of another element type",
    "E606": "weights that are not safetensors",
    "E607": "weights that cannot be read or written",
    "E608": "a shard outside its checkpoint's folder",
    "E609": "a checkpoint without a names map",
    "E611": "a checkpoint's name for no parameter",
    "E612": "a checkpoint's name that cannot be written out",
    "E613": "a checkpoint's name given twice",
    "E614": "a checkpoint's name for a use without a label",
    "E620": "arrays that should be equal and are not",
    "E631": "a fit without what it is fitted to",
    "E632": "weights that another spec cannot take",
    "E701": "an argument missing or unknown",
    "E702": "an argument of another shape",
    "E703": "an argument of another element type",
    "E704": "a number of a row that a table lacks",
    "E705": "a length out of range",
    "E706": "an empty call",
    "E707": "a table too short for the lengths of a call",
    "E708": "a cache that does not fit, or is full",
    "E721": "texts without a tokenizer",
    "E722": "an extra is not installed",
    "E723": "the model does not take texts",
    "E724": "an array file that cannot be read",
    "E725": "a model too large to check laws on",
    "E801": "no such target",
    "E802": "the compiler of a target is not installed",
    "E803": "cuDNN is needed to compile",
    "E804": "an artifact cannot be written without an extra",
    "E805": "a second compute capability in one process",
    "E806": "no such length",
    "E807": "a file cannot be written",
    "E810": "no such pass",
    "E811": "no such implementation",
    "E812": "a kernel refuses",
    "E813": "an implementation that serves nothing of the program",
    "E814": "float64 that JAX was not told to enable",
    "E815": "a target that is not this machine",
    "E816": "a model that cannot be decoded token by token",
    "E817": "too few threads to interpret kernels",
    "E818": "a forward-mode derivative of a kernel that has none",
    "W901": "a use without a label",
}
"""Every code in use and its one-line title. Extend it where a code is introduced; a test keeps it complete."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the text of `span` by `text`: applied mechanically, it fixes the fault."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """A second place that the message speaks of: where the other value came from."""

    message: str
    span: Span

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _bounded(self.message))


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One complaint. `span` is None only where there is no text to point at (a weights file, a call)."""

    code: str
    message: str
    span: Span | None = None
    help: str = ""
    severity: str = "error"  # error | warning
    notes: tuple[Note, ...] = ()
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _bounded(self.message))
        object.__setattr__(self, "help", _bounded(self.help))

    def __str__(self) -> str:
        """The drawing: place, code, message; the line with its carets; notes; the help."""
        lines = []
        if self.span is None:
            lines.append(f"{self.severity}[{self.code}]: {self.message}")
        else:
            place = f"{self.span.source.name}:{self.span.line}:{self.span.column}"
            lines.append(f"{place}: {self.severity}[{self.code}]: {self.message}")
            lines.extend(_underline(self.span))
        for note in self.notes:
            place = f"{note.span.source.name}:{note.span.line}:{note.span.column}"
            lines.append(f"note: {note.message} ({place})")
            lines.extend(_underline(note.span))
        if self.help:
            lines.append(f"help: {self.help}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The object that `--format json` prints; places count from 1, the end is exclusive."""
        span = self.span
        return {
            "file": span.source.name if span else None,
            "line": span.line if span else None,
            "column": span.column if span else None,
            "end_line": span.end_line if span else None,
            "end_column": span.end_column if span else None,
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "help": self.help,
        }


def _underline(span: Span) -> list[str]:
    text = span.source.line(span.line)
    width = span.end_column - span.column if span.end_line == span.line else len(text) - span.column + 1
    start = span.column - 1
    if len(text) > 160:  # a minified or hostile line: show the part around the fault
        cut = max(0, start - 60)
        text, start = text[cut : cut + 160], start - cut
        width = min(width, max(1, len(text) - start))
    text = "".join(c if c == "\t" or c.isprintable() else "\ufffd" for c in text)  # no escape reaches a terminal
    head = f"{span.line} | "
    pad = "".join("\t" if c == "\t" else " " for c in text[:start])
    return [head + text, " " * len(head) + pad + "^" * max(1, width)]


class TfcError(Exception):
    """One or more diagnostics; its text is their drawing."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)
        self.diagnostics = diagnostics

    def __str__(self) -> str:
        return "\n\n".join(str(d) for d in self.diagnostics)


def closest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, or an empty string: for `help: did you mean ...?`."""
    if len(name) > 100:
        return ""
    names = sorted(known)
    if len(names) > 1_000:  # comparing takes a while: only those that begin alike
        names = [n for n in names if n[:1] == name[:1] and abs(len(n) - len(name)) <= 2][:1_000]
    return next(iter(get_close_matches(name, names, n=1, cutoff=0.6)), "")
