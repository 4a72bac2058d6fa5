"""The text of a document -> all that the features ask of it: tokens, tree, symbols, complaints, and what lowering saw.

A text with faults keeps what can be read: faulty lines, then faulty items, are blanked and the rest is understood.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tfc.diagnostics import Diagnostic, TfcError
from tfc.grammar import ast
from tfc.grammar.lower import lower
from tfc.grammar.lowering.seen import Seen
from tfc.grammar.lowering.values import Meaning
from tfc.grammar.parser import parse, read_source
from tfc.grammar.syntax.scan import Scan, check_characters, scan
from tfc.lsp.symbols import Table, table
from tfc.lsp.text import Text, Tokens
from tfc.source import Source, Span

__all__ = ["MAX_MODELS", "Analysis", "OpenTexts", "tolerant"]

MAX_MODELS = 6
"""Models of one file that are lowered, the last ones."""
ROUNDS = 8
"""How often something is blanked before a text is given up."""

OpenTexts = Callable[[Path], str | None]
"""The unsaved text of an open file, or None."""


@dataclass
class Analysis:
    """One version of a document. path: None where it was never saved; opened: how unsaved imports are read."""

    text: Text
    path: Path | None
    opened: OpenTexts = field(default=lambda path: None)
    read: set[Path] = field(default_factory=set)  # the files that imports led to

    @property
    def source(self) -> Source:
        return self.text.source

    @cached_property
    def scanned(self) -> Scan:
        found = check_characters(self.source)
        return Scan(self.source, (), (), tuple(found), ()) if found else scan(self.source)

    @cached_property
    def tokens(self) -> Tokens:
        return Tokens(self.scanned)

    @cached_property
    def _parsed(self) -> tuple[ast.Module | None, list[Diagnostic]]:
        return parse(self.source)

    @property
    def whole(self) -> bool:
        """Whether the text has no fault of syntax."""
        return self._parsed[0] is not None

    @cached_property
    def module(self) -> ast.Module:
        """The tree, without what cannot be read."""
        return self._parsed[0] or tolerant(self.source, self._parsed[1], self.scanned)

    @cached_property
    def table(self) -> Table:
        return table(self.module, self.tokens)

    @cached_property
    def _lowered(self) -> tuple[Seen, list[Diagnostic]]:
        """Every model of the file lowered: what was seen, and each complaint once."""
        seen = Seen(read=self._read)
        kinds = (ast.Block, ast.Declaration)
        models: list[str | None] = [i.name for i in self.module.items if isinstance(i, kinds) and i.kind == "model"]
        folder = self.path.parent if self.path is not None else None
        found: dict[tuple[str, Span | None, str], Diagnostic] = {}
        for name in models[-MAX_MODELS:] or [None]:
            for diagnostic in self._lower(name, folder, seen):
                found.setdefault((diagnostic.code, diagnostic.span, diagnostic.message), diagnostic)
        return seen, sorted(found.values(), key=lambda d: d.span.start if d.span else 0)

    def _lower(self, model: str | None, folder: Path | None, seen: Seen) -> list[Diagnostic]:
        try:
            return list(lower(self.module, None, model, folder, seen).warnings)
        except TfcError as error:
            return [_softened(d, model) for d in error.diagnostics]
        except Exception as error:  # a fault of tfc must not take the editor's help away
            first = Span(self.source, 0, len(self.source.line(1)))
            said = f"tfc failed on this file, which is no fault of yours: {type(error).__name__}: {error}"
            return [Diagnostic("internal", said, first, severity="warning")]

    @property
    def seen(self) -> Seen:
        return self._lowered[0]

    @cached_property
    def diagnostics(self) -> list[Diagnostic]:
        """As `tfc check` says them: faults of syntax, or if there are none, all others and warnings."""
        return self._lowered[1] if self.whole else self._parsed[1]

    def _read(self, path: Path) -> tuple[Source | None, list[Diagnostic]]:
        self.read.add(path)
        text = self.opened(path)
        return read_source(path) if text is None else (Text(str(path), text).source, [])

    @cached_property
    def _imports(self) -> dict[str, "Analysis | None"]:
        return {}

    def imported(self, item: ast.Import) -> "Analysis | None":
        """The file that an import names, under the rules of lowering: beside this file or below."""
        if item.path not in self._imports:
            self._imports[item.path] = self._import(Path(item.path))
        return self._imports[item.path]

    def _import(self, written: Path) -> "Analysis | None":
        if self.path is None or written.is_absolute() or ".." in written.parts:
            return None
        folder = self.path.parent.resolve()
        path = (folder / written).resolve()
        if not path.is_relative_to(folder):
            return None
        source, _ = self._read(path)
        return Analysis(Text(str(path), source.text), path, self.opened) if source is not None else None

    def meanings(self, node: ast.Node) -> Mapping[str, Meaning]:
        """What lowering found an expression of this file to be, in words and as values."""
        return self.seen.values.get((self.source.name, node.span.start, node.span.end), {})

    def bound(self, item: ast.Node, name: str) -> Mapping[str, Meaning]:
        """What lowering bound to a name at a statement."""
        return self.seen.bound.get((self.source.name, item.span.start, name), {})


def _softened(found: Diagnostic, model: str | None) -> Diagnostic:
    """A file of parts has no model and need have none."""
    return replace(found, severity="information") if found.code == "E210" and model is None else found


def tolerant(source: Source, faults: list[Diagnostic], scanned: Scan) -> ast.Module:
    """The tree of what can be read; every place stays what it is in the text."""
    text, lost = source.text, Span(source, 0, len(source.text))
    struck: set[int] = set()  # lines blanked already: a fault there again costs the whole item
    for _ in range(ROUNDS):
        for found in faults:
            if found.span is None:
                continue
            start, end = _line(source, found.span)
            if start in struck or not text[start:end].strip():
                start, end = _segment(scanned, found.span.start)
            struck.add(start)
            text = text[:start] + "".join(c if c == "\n" else " " for c in text[start:end]) + text[end:]
        if not text.lstrip().startswith("tfm"):
            break
        module, faults = parse(Source(source.name, text))
        if module is not None:
            return module
    return ast.Module(version=1, items=(), span=lost)


def _line(source: Source, span: Span) -> tuple[int, int]:
    """The lines that a fault touches."""
    end = source.text.find("\n", span.end)
    return source.starts[span.line - 1], len(source.text) if end < 0 else end


def _segment(scanned: Scan, offset: int) -> tuple[int, int]:
    """The item around a place, as far as the layout tells."""
    starts = [s for s in scanned.starts if s <= offset]
    after = [s for s in scanned.starts if s > offset]
    return (starts[-1] if starts else 0), (after[0] if after else len(scanned.source.text))
