"""A name in a document and another for it -> the edits of the file, tried out, or the reason why there are none.

With the name go attributes that it is called by, segments of the paths in `names` that it gives, and turns in braces.
What comes out is analysed before it is offered: a rename that brings a new complaint is refused with the complaint.
"""

import re
from collections import Counter
from collections.abc import Iterator

from lsprotocol import types

from tfc.diagnostics import Edit
from tfc.grammar import ast
from tfc.grammar.lowering.scope import RESERVED as IMPLICIT_NAMES
from tfc.grammar.syntax.words import FOREIGN, RESERVED
from tfc.lsp.analysis import Analysis
from tfc.lsp.library import core_words, entry
from tfc.lsp.lookup import Inside, descend, inside, keyword_owner, param_item, path_segments, paths_in, segment_name
from tfc.lsp.symbols import Keyword, Scope, Symbol
from tfc.lsp.text import Text
from tfc.source import Span

__all__ = ["Refused", "prepare", "rename"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Refused(Exception):
    """Why a name cannot be changed, in words for its author."""


def prepare(document: Analysis, offset: int) -> types.PrepareRenamePlaceholder:
    """The name that would be changed. Raises Refused."""
    span, symbol = _chosen(document, offset)
    return types.PrepareRenamePlaceholder(range=document.text.range(span), placeholder=symbol.name)


def rename(document: Analysis, offset: int, new: str) -> list[types.TextEdit]:
    """The edits that give the name at a place another. Raises Refused."""
    _, symbol = _chosen(document, offset)
    _check_word(symbol, new)
    if new == symbol.name:
        return []
    _check_clashes(document, symbol, new)
    edits = [Edit(span, new) for span in symbol.uses]
    edits += [Edit(k.span, new) for k in _keywords(document, symbol)]
    edits += _path_edits(document, symbol, new)
    edits = sorted({(e.span.start, e.span.end): e for e in edits}.values(), key=lambda e: e.span.start)
    _try_out(document, edits)
    return [types.TextEdit(document.text.range(e.span), e.text) for e in edits]


# ---- what is to be renamed


def _chosen(document: Analysis, offset: int) -> tuple[Span, Symbol]:
    """The name at a place and its symbol. Raises Refused where it cannot be renamed here."""
    if not document.whole:
        first = document.diagnostics[0]
        line = f" in line {first.span.line}" if first.span else ""
        raise Refused(f"names are changed in a file that can be read; {first.message}{line}")
    span, symbol, name = _symbol(document, offset)
    if span is None:
        raise Refused("there is no name here")
    if symbol is None:
        raise Refused(_foreign(document, offset, name))
    if isinstance(symbol.item, ast.Import) and symbol.kind == "import":
        raise Refused(f'`{name}` is declared in "{symbol.item.path}": rename it there')
    if symbol.kind == "length":
        raise Refused(f"`{name}` is a length; other files and `--shape` may call it by name, so it stays")
    return span, symbol


def _symbol(document: Analysis, offset: int) -> tuple[Span | None, Symbol | None, str]:
    for segment in path_segments(document):
        if segment.span.start <= offset <= segment.span.end:
            node: ast.Node | None = segment.opened.node if segment.opened is not None else None
            if segment.param is not None:
                node = param_item(segment.param, document)
            return segment.span, naming_symbol(node, document) if node is not None else None, segment.name
    occurrence = document.table.at(offset)
    if occurrence is not None:
        return occurrence.span, occurrence.symbol, occurrence.name
    keyword = document.table.keyword(offset)
    if keyword is not None:
        found = _named(keyword, document)
        return keyword.span, naming_symbol(found.node, document) if found is not None else None, keyword.name
    member = document.table.member(offset)
    if member is not None:
        for value in document.meanings(member[1]).values():
            item = param_item(value, document) if hasattr(value, "home") else None  # type: ignore[arg-type]
            if item is not None:
                return member[0], naming_symbol(item, document), member[1].name
        return member[0], None, member[1].name
    return None, None, ""


def _foreign(document: Analysis, offset: int, name: str) -> str:
    """Why a name that no symbol of the file gives cannot be changed."""
    occurrence = document.table.at(offset)
    if occurrence is not None and occurrence.role is not None:
        return f"`{name}` is a word of formulas: in a {occurrence.role} it has a meaning of its own"
    if occurrence is not None and entry(name) is not None:
        return f"`{name}` is declared in the prelude, which is not this file's to change"
    if occurrence is not None and name in core_words():
        return f"`{name}` is built in"
    if occurrence is None and document.table.keyword(offset) is not None:
        return f"`{name}` is an attribute that this file does not declare"
    if document.table.member(offset) is not None:
        return f"`{name}` is not declared in this file as a name; a field is set with `tag(x, {name} = ..)`"
    return f"`{name}` is not declared in this file"


def naming_symbol(node: ast.Node, document: Analysis) -> Symbol | None:
    """The symbol of this file that gives a path segment, an input or a parameter its name."""
    if node.span.source.name != document.source.name:
        return None
    for symbol in document.table.symbols:
        if symbol.item is node and not (isinstance(node, ast.Parameter) and symbol.kind == "length"):
            return symbol
    named = segment_name(node) if isinstance(node, ast.Call) else None
    if named is not None and isinstance(named[1], ast.Name):
        found = document.table.at(named[1].span.start)
        return found.symbol if found is not None else None
    return None


# ---- whether it may be


def _check_word(symbol: Symbol, new: str) -> None:
    if not _NAME.match(new):
        raise Refused(f"`{new}` is no name: letters a to z, A to Z, digits and `_`, not beginning with a digit")
    if new in RESERVED or new in FOREIGN:
        raise Refused(f"`{new}` is a word of the language")
    if new in IMPLICIT_NAMES and symbol.kind in ("let", "param"):
        raise Refused(f"`{new}` is a word of formulas; a {symbol.kind} of that name could not be read there")


def _check_clashes(document: Analysis, symbol: Symbol, new: str) -> None:
    """Whether the new name means something already where the old one is used, or would hide something."""
    if symbol.kind in ("label", "report", "names"):
        return  # not visible to expressions; two of one name in a body are found by trying
    other = symbol.scope.names.get(new)
    if other is not None:
        raise Refused(f"`{new}` is declared already, in line {other.span.line}")
    for use in symbol.uses:
        at: Scope | None = document.table.scope(use.start)
        while at is not None and at is not symbol.scope:
            if new in at.names:
                line = at.names[new].span.line
                raise Refused(f"`{new}` of line {line} would hide it in line {use.line}")
            at = at.parent
    inner = symbol.scope.span
    for occurrence in document.table.occurrences:
        if occurrence.name != new or not inner.start <= occurrence.span.start < inner.end:
            continue
        owner = occurrence.symbol.scope if occurrence.symbol is not None else None
        if occurrence.symbol is not None and occurrence.symbol.kind in ("label", "report", "names"):
            continue
        if owner is None or _around(owner, symbol.scope):
            raise Refused(f"`{new}` in line {occurrence.span.line} means something else, and would be hidden")


def _around(outer: Scope, inner: Scope) -> bool:
    at: Scope | None = inner
    while at is not None and at is not outer:
        at = at.parent
    return at is outer


def _try_out(document: Analysis, edits: list[Edit]) -> None:
    """Raises Refused where the edited text has a complaint that the text has not."""
    text = document.source.text
    for edit in reversed(edits):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    after = Analysis(Text(document.source.name, text, document.text.encoding), document.path, document.opened)
    had = Counter(d.code for d in document.diagnostics)
    for found in after.diagnostics:
        had[found.code] -= 1
        if had[found.code] < 0 and found.severity == "error":
            line = f" (line {found.span.line})" if found.span else ""
            raise Refused(f"the file would not mean the same: {found.message}{line}")


# ---- attributes, paths, turns


def _named(keyword: Keyword, document: Analysis) -> Inside | None:
    owner = keyword_owner(keyword, document)
    for segment in keyword.path[: keyword.number]:
        owner = descend(owner, segment, document) if owner is not None else None
    return inside(owner, keyword.name) if owner is not None else None


def _keywords(document: Analysis, symbol: Symbol) -> Iterator[Keyword]:
    """Arguments and settings that are called by the symbol's name. Raises Refused where that cannot be told."""
    for keyword in document.table.keywords:
        if keyword.name != symbol.name or isinstance(keyword.owner, ast.ParamDecl):
            continue
        found = _named(keyword, document)
        if found is not None:
            if naming_symbol(found.node, document) is symbol:
                yield keyword
        elif symbol.kind in ("input", "label", "component", "loop") and not _known_owner(keyword, document):
            raise Refused(
                f"`{keyword.name}` in line {keyword.span.line} may be the same, but what it is given to is not known; "
                "rename by hand"
            )


def _known_owner(keyword: Keyword, document: Analysis) -> bool:
    """Whether it is certain what the keyword is given to: something of the library, or built in."""
    owner = keyword_owner(keyword, document)
    for segment in keyword.path[: keyword.number]:
        owner = descend(owner, segment, document) if owner is not None else None
    if owner is not None:
        return True
    call = keyword.owner
    callee = call.callee if isinstance(call, ast.Call) else None
    callee = callee.value if isinstance(callee, ast.Label | ast.Subscript) else callee
    if isinstance(callee, ast.Name):
        return keyword.scope.find(callee.id) is None and callee.id in core_words()
    return isinstance(keyword.owner, ast.Default)


def _path_edits(document: Analysis, symbol: Symbol, new: str) -> Iterator[Edit]:
    """Segments of paths in `names` that the symbol gives, and `{layer}` in a checkpoint's names."""
    numbered = re.compile(rf"{re.escape(symbol.name)}(_[0-9]+)?\Z")
    through: list[Span] = []
    for segment in path_segments(document):
        node: ast.Node | None = segment.opened.node if segment.opened is not None else None
        if segment.param is not None:
            node = param_item(segment.param, document)
        match = numbered.match(segment.name)
        if node is None or match is None or naming_symbol(node, document) is not symbol:
            continue
        yield Edit(segment.span, new + (match.group(1) or ""))
        through.append(segment.span)
    if symbol.kind == "loop":
        yield from _turns(document, symbol.name, new, through)


def _turns(document: Analysis, old: str, new: str, through: list[Span]) -> Iterator[Edit]:
    """`"h.{2 * layer}.w"` of the entries whose path goes through the loop."""
    for _, pair in document.table.entries:
        paths = list(paths_in(pair.ours))
        if not any(p.span.start <= s.start < p.span.end for p in paths for s in through):
            continue
        token = next((t for t in document.tokens.all if t.kind == "string" and t.start >= pair.span.start), None)
        if token is None or token.start >= pair.span.end:
            continue
        for brace in re.finditer(r"\{([^{}]*)\}", token.text):
            for word in re.finditer(rf"\b{re.escape(old)}\b", brace.group(1)):
                start = token.start + brace.start(1) + word.start()
                yield Edit(Span(document.source, start, start + len(old)), new)
