"""Offsets of a text into positions of the protocol and back; paths into URIs and back."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from lsprotocol import types
from pygls import uris

from tfc.grammar.syntax.scan import Scan, Token
from tfc.source import Source, Span

__all__ = ["Encoding", "Text", "Tokens", "path_of", "uri_of"]

Encoding = types.PositionEncodingKind | str

_LINE_END = re.compile(r"\r\n|\r|\n")


class Text:
    """The text of a document as an editor holds it, and as the parser sees it: one line end, no byte order mark.

    Positions are (line, unit) from 0; a unit is what the client agreed to, UTF-16 unless it offers better. Lines end at
    `\\n`, `\\r\\n` and `\\r` only, as the protocol says; `str.splitlines` knows more.
    """

    def __init__(self, name: str, written: str, encoding: Encoding = types.PositionEncodingKind.Utf16) -> None:
        self.written = written
        self.mark = 1 if written.startswith("\ufeff") else 0
        self.source = Source(name, _LINE_END.sub("\n", written[self.mark :]))
        self.encoding = encoding

    @cached_property
    def lines(self) -> list[str]:
        """Lines without their ends."""
        return self.source.text.split("\n")

    def units(self, text: str) -> int:
        """How many units of the protocol a piece of text takes."""
        if self.encoding == types.PositionEncodingKind.Utf32 or text.isascii():
            return len(text)
        if self.encoding == types.PositionEncodingKind.Utf8:
            return len(text.encode("utf-8", "surrogatepass"))
        return len(text) + sum(c > "\uffff" for c in text)

    def position(self, offset: int) -> types.Position:
        """Where a character of `source` is; beyond the text, its end."""
        offset = min(max(offset, 0), len(self.source.text))
        line = bisect_right(self.source.starts, offset) - 1
        before = self.source.text[self.source.starts[line] : offset]
        return types.Position(line, self.units(before) + self._marks(line))

    def offset(self, position: types.Position) -> int:
        """The character of `source` at a position; within a character, that character; beyond a line, its end."""
        if position.line >= len(self.lines):
            return len(self.source.text)
        start, line = self.source.starts[position.line], self.lines[position.line]
        wanted = position.character - self._marks(position.line)
        if line.isascii() or self.encoding == types.PositionEncodingKind.Utf32:
            return start + min(max(wanted, 0), len(line))
        taken = 0
        for i, char in enumerate(line):
            taken += self.units(char)
            if taken > wanted:
                return start + i
        return start + len(line)

    def range(self, span: Span) -> types.Range:
        return types.Range(self.position(span.start), self.position(span.end))

    def whole(self) -> types.Range:
        """From the very first unit, a byte order mark included, to the end."""
        return types.Range(types.Position(0, 0), self.position(len(self.source.text)))

    def _marks(self, line: int) -> int:
        """Units of the byte order mark, which `source` lacks."""
        return self.units("\ufeff") if self.mark and line == 0 else 0


class Tokens:
    """The tokens of a text by place: where names of a construct stand, which the tree tells only roughly."""

    def __init__(self, scanned: Scan) -> None:
        self.source = scanned.source
        self.all: Sequence[Token] = scanned.tokens
        self.starts = [t.start for t in self.all]

    def within(self, span: Span) -> Sequence[Token]:
        """The tokens of a span, without the documentation it may begin with."""
        first, last = bisect_right(self.starts, span.start - 1), bisect_right(self.starts, span.end - 1)
        while first < last - 1 and self.all[first].kind == "string":
            first += 1
        return self.all[first:last]

    def before(self, offset: int) -> int:
        """The number of the last token that begins before `offset`, or -1."""
        return bisect_right(self.starts, offset - 1) - 1

    def span(self, token: Token) -> Span:
        return Span(self.source, token.start, token.end)

    def name(self, span: Span, number: int = 0) -> Span | None:
        """The name that is a construct's n-th name: 0 of `attention look {`, its kind, 1 its own."""
        found = 0
        for token in self.within(span):
            if token.kind == "name":
                if found == number:
                    return self.span(token)
                found += 1
        return None

    def last(self, span: Span) -> Span | None:
        """The name that a construct ends with, parentheses aside: `f` of `x.f`, `(x.f)` and `x@f`."""
        for token in reversed(self.within(span)):
            if token.kind == "name":
                return self.span(token)
        return None

    def after(self, offset: int, word: str) -> Span | None:
        """The name that follows the word `word`, the first at or after `offset`."""
        for i in range(bisect_right(self.starts, offset - 1), len(self.all) - 1):
            if self.all[i].text == word and self.all[i + 1].kind == "name":
                return self.span(self.all[i + 1])
        return None


def uri_of(path: Path) -> str:
    return uris.from_fs_path(str(path)) or path.as_uri()


def path_of(uri: str) -> Path | None:
    """The path a URI names, or None where it names no file (an unsaved document)."""
    if not uri.startswith("file:"):
        return None
    found = uris.to_fs_path(uri)
    return Path(found) if found else None
