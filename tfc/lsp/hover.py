"""A place in a document -> what stands there, in Markdown: types and shapes, paths and weights, sources, values."""

from collections.abc import Iterator
from pathlib import Path

from lsprotocol import types

from tfc.grammar import ast
from tfc.grammar.lowering.scope import IMPLICIT
from tfc.grammar.lowering.session import LIBRARY
from tfc.grammar.lowering.values import Component, Meaning, Place, Tensor, describe
from tfc.lsp.analysis import Analysis
from tfc.lsp.describing import code, core_markdown, item_markdown, place_markdown, shown, signature, source_text
from tfc.lsp.library import IMPLICIT_WORDS, KEYWORDS, core_words, entry
from tfc.lsp.lookup import (
    Declared,
    by_symbol,
    call_of,
    descend,
    inside,
    keyword_owner,
    member_of,
    openings,
    path_segments,
)
from tfc.lsp.symbols import Keyword, Occurrence, Symbol
from tfc.source import Span

__all__ = ["given", "hover", "symbol_markdown"]


def hover(document: Analysis, offset: int) -> types.Hover | None:
    """What is known of the name at a place, or nothing."""
    found = _at(document, offset)
    if found is None:
        return None
    text, span = found
    value = types.MarkupContent(types.MarkupKind.Markdown, text)
    return types.Hover(value, document.text.range(span))


def _at(document: Analysis, offset: int) -> tuple[str, Span] | None:
    for segment in path_segments(document):
        if segment.span.start <= offset <= segment.span.end:
            if segment.param is not None:
                return code(f"{segment.path}: {segment.param.type}"), segment.span
            if segment.opened is not None:
                return place_markdown([segment.opened.place]), segment.span
            return None
    occurrence = document.table.at(offset)
    if occurrence is not None:
        text = _occurrence(occurrence, document)
        return (text, occurrence.span) if text else None
    keyword = document.table.keyword(offset)
    if keyword is not None:
        text = _keyword(keyword, document)
        return (text, keyword.span) if text else None
    member = document.table.member(offset)
    if member is not None:
        span, node, scope = member
        text = _member(node, span, document)
        if not text:
            other = member_of(node, scope, document)
            text = _symbol(other[1], None, other[0]) if other is not None else ""
        return (text, span) if text else None
    return _word(document, offset)


def _word(document: Analysis, offset: int) -> tuple[str, Span] | None:
    """A word of the language."""
    number = document.tokens.before(offset + 1)
    if number < 0:
        return None
    token = document.tokens.all[number]
    if token.start <= offset <= token.end and token.text in KEYWORDS:
        return f"{code(token.text)}\n\n{KEYWORDS[token.text]}", document.tokens.span(token)
    return None


# ---- names


def _occurrence(found: Occurrence, document: Analysis) -> str:
    if found.role is not None:
        return f"{code(found.name)}\n\n{IMPLICIT_WORDS.get(found.name, '')}\n\n*in a {found.role} formula*"
    if found.symbol is not None:
        return _symbol(found.symbol, found.node, document)
    called = _called(found.node, document)
    known = entry(found.name)
    if known is not None:
        text = item_markdown(known.item, f"the prelude, {known.item.span.source.name.removeprefix(LIBRARY)}")
        return "\n\n".join([text, *([called] if called else [])])
    if found.name in core_words() and not isinstance(found.node, ast.Item):
        return core_markdown(core_words()[found.name])
    if found.name in KEYWORDS:
        return f"{code(found.name)}\n\n{KEYWORDS[found.name]}"
    if found.name in _OTHER:
        return f"{code(found.name)}\n\n{_OTHER[found.name]}"
    return _values(found.name, list(_meanings(found.node, document)))


def _meanings(node: ast.Node | None, document: Analysis) -> list[Meaning]:
    return list(document.meanings(node).values()) if isinstance(node, ast.Expr) else []


def _called(node: ast.Node | None, document: Analysis) -> str:
    """Where a call keeps its weights, for its callee."""
    call = call_of(node, document)
    if call is None:
        return ""
    places = _distinct([o.place for o in openings(call, document)])
    results = [shown(v) for v in document.meanings(call).values() if isinstance(v, Tensor)]
    parts = [f"here it gives {' or '.join(results)}"] if results else []
    if places:
        parts.append(place_markdown(places[:3]))
    return "\n\n".join(parts)


def _distinct(places: list[Place]) -> list[Place]:
    return list({id(p): p for p in places}.values())


def _values(name: str, values: list[Meaning]) -> str:
    """`x: f32[B, T, 384]`, a line for each value it has in different calls."""
    lines = list(
        dict.fromkeys(f"{name}: {shown(v)}" if isinstance(v, Tensor) else f"{name} = {shown(v)}" for v in values)
    )
    return code(*lines) if lines else ""


_OTHER = {
    "precision": "element types of the whole model: `params`, `compute`, `reduce`",
    "real": "the element type of the parameters: `default precision { params = f32 }`",
}
_KINDS = {
    "local": "an equation of this body",
    "input": "an input",
    "index": "an index",
    "length": "a length, known when the model is called",
    "loop": "the turn of a loop",
    "label": "the name of this use in the tree of parameters",
    "param": "a parameter",
    "file": "an imported file",
}


def symbol_markdown(symbol: Symbol, document: Analysis) -> str:
    """What is known of a name of the file, wherever it stands."""
    return _symbol(symbol, None, document)


def _symbol(symbol: Symbol, node: ast.Node | None, document: Analysis) -> str:
    """A name of the file: what it is here, and what declares it."""
    item = symbol.item
    parts: list[str] = []
    values = _meanings(node, document)
    match item:
        case ast.Binding(value=value):
            values = values or list(document.bound(_statement(symbol, document), symbol.name).values())
            values = values or list(document.meanings(value).values())
            parts.append(code(f"let {symbol.name} = {' '.join(value.span.text.split())}"))
            if not isinstance(value, ast.Number | ast.Text):
                parts.append(_values(symbol.name, values))
        case ast.Block() | ast.Role() | ast.Declaration():
            parts.append(code(source_text(item.span, item.doc)))
            if isinstance(item, ast.Declaration):
                parts += _derived_from(symbol, document)
        case ast.ParamDecl():
            parts.append(code(source_text(item.span, item.doc)))
            parts += _param(item, document)
        case ast.Parameter() if symbol.kind == "input":
            parts.append(_values(symbol.name, values or given(item, document)) or code(symbol.name))
            parts.append(f"{_KINDS['input']}, written `{' '.join(item.span.text.split())}`")
        case ast.Import():
            parts.append(code(source_text(item.span, item.doc)))
            found = by_symbol(symbol, document)
            if found is not None:
                parts.append(item_markdown(found.item, _where(found)))
        case ast.Call():
            parts.append(f"`@{symbol.name}`: {_KINDS['label']}")
            parts.append(place_markdown(_distinct([o.place for o in openings(item, document)])[:3]))
        case ast.Repeat(over=over):
            parts.append(code(f"repeat {' '.join(over.span.text.split())} as {symbol.name}"))
            parts += [_values(symbol.name, values), f"*{_KINDS['loop']}*"]
        case ast.Equation():
            values = values or _written(symbol, node, document)
            parts.append(_values(symbol.name, values) or code(symbol.name))
            parts.append(f"*{_KINDS[symbol.kind]}*")
        case _:
            parts.append(_values(symbol.name, [v for v in values if isinstance(v, Tensor)]) or code(symbol.name))
            parts.append(f"*{_KINDS.get(symbol.kind, symbol.kind)}*")
    if symbol.doc:
        parts.append(symbol.doc)
    called = _called(node, document)
    if called:
        parts.append(called)
    return "\n\n".join(p for p in parts if p)


def _statement(symbol: Symbol, document: Analysis) -> ast.Node:
    """The `let` that a binding of a body stands in: what lowering binds is kept by statement."""
    start = symbol.item.span.start
    before = document.tokens.before(start)
    while before >= 0 and document.tokens.all[before].text != "let":
        before -= 1
    at = document.tokens.all[before].start if before >= 0 else start
    return ast.Node(span=Span(document.source, at, symbol.item.span.end))


def _written(symbol: Symbol, node: ast.Node | None, document: Analysis) -> list[Meaning]:
    """What an equation assigns: the one at hand, else the first."""
    item = node if isinstance(node, ast.Equation) else symbol.item
    return list(document.bound(item, symbol.name).values())


def given(wanted: ast.Parameter, document: Analysis) -> list[Meaning]:
    """What an input was in the runs of its block."""
    block = next((b for b in _blocks(document.module.items) if wanted in b.inputs), None)
    if block is None:
        return []
    out: dict[str, Meaning] = {}
    for run in document.seen.entered.get((document.source.name, block.span.start), []):
        value = run.inputs.get(wanted.name)
        if value is not None:
            out.setdefault(describe(value), value)
    return list(out.values())[:4]


def _blocks(items: tuple[ast.Item, ...]) -> Iterator[ast.Block]:
    """Blocks, also those within blocks and loops."""
    for item in items:
        if isinstance(item, ast.Block):
            yield item
        yield from _blocks(getattr(item, "body", ()))


def _derived_from(symbol: Symbol, document: Analysis) -> list[str]:
    found = by_symbol(symbol, document)
    places = _distinct([o.place for o in openings(symbol.item, document)])
    parts = [place_markdown(places[:3])] if places else []
    if found is not None:
        parts.append(f"made of `{found.item.name}`, {_where(found)}")
        if found.item.doc:
            parts.append(found.item.doc)
    return parts


def _where(found: Declared) -> str:
    name = found.item.span.source.name
    return f"the prelude, {name.removeprefix(LIBRARY)}" if name.startswith(LIBRARY) else Path(name).name


def _param(item: ast.ParamDecl, document: Analysis) -> list[str]:
    """The paths and types that a declared parameter has come to."""
    places = [e.place for found in document.seen.entered.values() for e in found]
    places += [o.place for found in document.seen.opened.values() for o in found]
    lines = dict.fromkeys(
        f"{p.join(item.name)}: {p.params[item.name].type}"
        for p in places
        if item.name in p.params and p.params[item.name].span == item.span
    )
    return [code(*list(lines)[:6])] if lines else []


# ---- attributes and members


def _keyword(keyword: Keyword, document: Analysis) -> str:
    if isinstance(keyword.owner, ast.ParamDecl):
        return _PARAM.get(keyword.name, "")
    if isinstance(keyword.owner, ast.Default) and keyword.owner.kind == "precision":
        return _PRECISION.get(keyword.name, "")
    owner = keyword_owner(keyword, document)
    for segment in keyword.path[: keyword.number]:
        owner = descend(owner, segment, document) if owner is not None else None
    if owner is None:
        return _built_in(keyword, document)
    found = inside(owner, keyword.name)
    if found is None:
        if isinstance(owner.item, ast.Role) and keyword.name in IMPLICIT.get(owner.item.role, ()):
            return f"{code(keyword.name)}\n\n{IMPLICIT_WORDS.get(keyword.name, '')}"
        return ""
    what = signature(owner.item)
    if isinstance(found.node, ast.Parameter):
        default = found.node.default
        text = f"an input of `{owner.item.name}`"
        text += (
            f"; if not given, `{' '.join(default.span.text.split())}`" if default is not None else ", without a default"
        )
        lines = [code(" ".join(found.node.span.text.split())), text]
        value = getattr(keyword.holder, "value", None)
        if isinstance(value, ast.Expr) and not isinstance(value, ast.Number | ast.Text):
            here = _values(keyword.name, [v for v in _meanings(value, document) if not isinstance(v, Component)])
            lines += [here] if here else []
        return "\n\n".join(lines)
    if isinstance(found.node, ast.Binding):
        return f"{code(f'let {" ".join(found.node.span.text.split())}')}\n\na `let` of the file of `{owner.item.name}`"
    return f"{code(' '.join(found.node.span.text.split())[:200])}\n\ninside `{what}`"


def _built_in(keyword: Keyword, document: Analysis) -> str:
    """A name before `=` in a call of a core function: a field of `tag`, or an input."""
    call = keyword.owner
    callee = call.callee if isinstance(call, ast.Call) else None
    if not isinstance(callee, ast.Name) or callee.id not in core_words():
        return ""
    values = _meanings(getattr(keyword.holder, "value", None), document)
    if callee.id == "tag":
        return f"{_values(keyword.name, values) or code(keyword.name)}\n\na field that the tokens carry from here on"
    return f"{code(core_words()[callee.id].written)}\n\nan input of `{callee.id}`"


_PRECISION = {
    "params": f"{code('params = f32')}\n\nwhat parameters are kept in",
    "compute": f"{code('compute = bf16')}\n\nwhat operations compute in",
    "reduce": f"{code('reduce = f32')}\n\nwhat sums add up in",
}
_PARAM = {
    "trained": f"{code('trained = no')}\n\nwhether training changes it; `yes` where not given",
    "fit": f"{code('fit = gptq(damp = 0.01)')}\n\nhow it is fitted when a trained model is converted",
    "format": f"{code('format = int8')}\n\nwhat its numbers are kept in",
}


def _member(node: ast.Attribute, span: Span, document: Analysis) -> str:
    """`x.field`, `words.weight`, `base.layer`, `q.segment`."""
    values = _meanings(node, document)
    if isinstance(node.value, ast.Name):
        here = document.table.at(node.value.span.start)
        if here is not None and here.role is not None:
            what = "query" if here.name == "q" else "key"
            return (
                f"{code(f'{here.name}.{node.name}')}\n\nthe field `{node.name}` of the {what} token"
                if (here.name in ("q", "k"))
                else f"{code(f'{here.name}.{node.name}')}\n\n{IMPLICIT_WORDS.get(here.name, '')}"
            )
    tensors = [v for v in values if isinstance(v, Tensor)]
    if tensors:
        return _values(f"{' '.join(node.value.span.text.split())}.{node.name}", list(tensors))
    called = _called(node, document)
    return called if values == [] and called else ""
