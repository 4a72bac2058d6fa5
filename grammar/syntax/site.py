"""An item with a fault -> what stands around the fault, and whether an edit would mend it."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tfc.diagnostics import Diagnostic, Edit
from tfc.grammar.syntax.scan import Scan, Token
from tfc.grammar.syntax.words import RESERVED
from tfc.source import Source, Span

__all__ = ["CLOSERS", "Fault", "Retry", "Site", "checked"]

CLOSERS = {"(": ")", "[": "]", "{": "}"}
_LONGEST_TRIAL = 20_000
"""Characters of an item beyond which edits are not tried out (and so not proposed)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Where the parser stopped, and what it could have gone on with, as a person would write it: "`(`", "a name"."""

    at: int
    expected: frozenset[str]


Retry = Callable[[Source, str], int | None]
"""Parses a text of items: None if all is well, else the offset of its first fault."""


@dataclass(frozen=True)
class Site:
    """The item around a fault, as tokens; `here` is the number of the token that did not fit (or their count)."""

    scanned: Scan
    fault: Fault
    start: int
    end: int
    retry: Retry

    @cached_property
    def tokens(self) -> list[Token]:
        return [t for t in self.scanned.tokens if self.start <= t.start < self.end]

    @cached_property
    def here(self) -> int:
        return next((i for i, t in enumerate(self.tokens) if t.start >= self.fault.at), len(self.tokens))

    def text(self, offset: int = 0) -> str:
        """The token `offset` places from the fault, as written; an empty string beyond the item."""
        i = self.here + offset
        return self.tokens[i].text if 0 <= i < len(self.tokens) else ""

    def is_name(self, offset: int) -> bool:
        i = self.here + offset
        return 0 <= i < len(self.tokens) and self.tokens[i].kind == "name" and self.tokens[i].text not in RESERVED

    def token(self, offset: int = 0) -> Token:
        return self.tokens[self.here + offset]

    def span(self, token: Token) -> Span:
        return Span(self.scanned.source, token.start, token.end)

    @property
    def place(self) -> Span:
        """The token that did not fit; at the end of an item, the place after its last token."""
        if self.here < len(self.tokens):
            return self.span(self.token())
        return self.after(self.tokens[-1]) if self.tokens else Span(self.scanned.source, self.start, self.start)

    def after(self, token: Token) -> Span:
        return Span(self.scanned.source, token.end, token.end)

    @cached_property
    def brackets(self) -> list[int]:
        """Numbers of the tokens whose brackets are open at the fault, outermost first."""
        stack: list[int] = []
        for i, token in enumerate(self.tokens[: self.here]):
            if token.kind == "bracket":
                if token.text in CLOSERS:
                    stack.append(i)
                elif stack:
                    stack.pop()
        return stack

    @property
    def inside(self) -> str:
        """The innermost bracket open at the fault, or an empty string."""
        return self.tokens[self.brackets[-1]].text if self.brackets else ""

    @cached_property
    def line_start(self) -> int:
        """The number of the first token on the fault's line, within the item."""
        i = min(self.here, len(self.tokens) - 1)
        while i > 0 and not self.tokens[i].first:
            i -= 1
        return max(i, 0)

    def mends(self, edits: tuple[Edit, ...]) -> bool:
        """Whether the item, so edited, parses beyond the fault's line."""
        text = self.scanned.source.text
        if self.end - self.start > _LONGEST_TRIAL:
            return False
        item, moved = text[self.start : self.end], 0
        for edit in sorted(edits, key=lambda e: e.span.start, reverse=True):
            a, b = edit.span.start - self.start, edit.span.end - self.start
            if not 0 <= a <= b <= len(item):
                return False
            item = item[:a] + edit.text + item[b:]
            moved += len(edit.text) - (b - a)
        stopped = self.retry(self.scanned.source, item)
        if stopped is None:
            return True
        if stopped >= len(item.rstrip()):
            return False  # it only moved the fault to the end
        # a later fault is another one, unless it is what the edit made of the next line's first word
        line_end = text.find("\n", self.fault.at, self.end)
        later = [t for t in self.tokens if t.start > line_end >= 0]
        return len(later) > 1 and stopped + self.start - moved >= later[1].start


def checked(scanned: Scan, fault: Diagnostic, bounds: Sequence[int], retry: Retry) -> Diagnostic:
    """A fault of a token or bracket, its edit kept if it works, or replaced by one that does, or dropped.

    With several faults in one item, an edit cannot be told to fail, and is kept.
    """
    if fault.span is None or not fault.edits:
        return fault
    item = max(0, bisect_right(bounds, fault.span.start) - 1)
    start, end = bounds[item], max(bounds[min(item + 1, len(bounds) - 1)], fault.edits[0].span.end)
    site = Site(scanned, Fault(at=fault.span.start, expected=frozenset()), start, end, retry)
    tries = [fault.edits]
    if fault.code == "E107":
        closer = CLOSERS.get(fault.span.text)
        if closer in (")", "]"):
            on_line = [t for t in site.tokens if t.start > fault.span.start and site.span(t).line == fault.span.line]
            tries += [(Edit(site.after(t), closer),) for t in on_line]
    elif sum(start <= f.span.start < end for f in scanned.faults if f.span) > 1 or len(site.tokens) > _LONGEST_TRIAL:
        return fault
    else:
        tries.append((Edit(fault.span, ""),))
    edits = next((edits for edits in tries if site.mends(edits)), ())
    if edits and edits[0] == Edit(fault.span, "") and edits != fault.edits:
        return replace(fault, edits=edits, help="remove it")
    return replace(fault, edits=edits)
