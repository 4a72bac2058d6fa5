"""Values, components, places and items -> the Markdown that hovers and completions show."""

from collections.abc import Iterable

from tfc.grammar import ast
from tfc.grammar.lowering.values import Component, Formula, Meaning, Place, RoleRef, Tensor, describe, is_number
from tfc.ir.types import Dim, DType
from tfc.lsp.library import CoreWord
from tfc.lsp.lookup import weights
from tfc.source import Span

__all__ = ["code", "core_markdown", "item_markdown", "place_markdown", "shown", "signature", "source_text"]

LINES = 14
"""Lines of a declaration that are shown."""
WEIGHTS = 12
"""Parameters of a component that are listed."""


def code(*lines: str) -> str:
    """A fenced piece of the language."""
    text = "\n".join(lines)
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}tfm\n{text}\n{fence}"


def shown(value: Meaning) -> str:
    """A value in a few words: a type with its sizes and fields, a number, what a component is."""
    match value:
        case Tensor():
            fields = "".join(f", {n}: {t.type}" for n, t in sorted(value.fields.items()))
            return f"{value.type}{f' with the fields {fields[2:]}' if fields else ''}"
        case bool():
            return "yes" if value else "no"
        case str():
            return f'"{value}"'
        case DType():
            return str(value)
        case Dim():
            return f"{value}, known when the model is called"
        case tuple():
            inner = ", ".join(_brief(v) for v in value[:8])
            return f"[{inner}{', ..' if len(value) > 8 else ''}], {len(value)} in all"
        case Formula(kind=kind):
            return f"a formula: {value.expr}" + (f" ({kind})" if kind else "")
        case _ if is_number(value):
            return f"{value:_}" if isinstance(value, int) else str(value)
    return describe(value).replace("`", "")


def _brief(value: Meaning) -> str:
    match value:
        case Component(name=name):
            return name
        case RoleRef(decl):
            return decl.name
        case Tensor():
            return str(value.type)
    return shown(value) if is_number(value) or isinstance(value, bool | str) else describe(value).replace("`", "")


def signature(item: ast.Block | ast.Role, name: str = "") -> str:
    """`attention(x, memory = x, heads, kv_heads = heads, ..)` with its kind."""
    inputs = ", ".join(" ".join(i.span.text.split()) for i in item.inputs)
    kind = item.role if isinstance(item, ast.Role) else item.kind
    brackets = f"({inputs})" if inputs or isinstance(item, ast.Block) else ""
    return f"{kind} {name or item.name}{brackets}"


def source_text(span: Span, doc: str | None = None) -> str:
    """The text of a declaration, without the documentation that it begins with, cut where it is long."""
    text = span.text
    if doc is not None:
        while text.startswith('"'):
            end = 1
            while end < len(text) and text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            text = text[end + 1 :].lstrip()
    lines = text.split("\n")
    column = span.source.position(span.start)[1] - 1
    lines = [lines[0], *(line[column:] if not line[:column].strip() else line for line in lines[1:])]
    if len(lines) > LINES:
        lines = [*lines[:LINES], "  .."]
    return "\n".join(lines)


def item_markdown(item: ast.Item, where: str) -> str:
    """A declaration with its documentation and the file it stands in."""
    parts = [code(source_text(item.span, item.doc))]
    if item.doc:
        parts.append(item.doc)
    if where:
        parts.append(f"*{where}*")
    return "\n\n".join(parts)


def core_markdown(word: CoreWord) -> str:
    parts = [code(word.written)]
    if word.doc and word.doc != word.written:
        parts.append(word.doc)
    parts.append(f"*{'built in' if word.kind != 'format' else 'a format of weights, activations or caches'}*")
    return "\n\n".join(parts)


def place_markdown(places: Iterable[Place]) -> str:
    """Where in the tree of parameters, and what is there."""
    parts = []
    for place in places:
        listed = list(weights(place))
        lines = [f"- `{path}` {tensor.type}" for path, tensor in listed[:WEIGHTS]]
        if len(listed) > WEIGHTS:
            lines.append(f"- and {len(listed) - WEIGHTS} more")
        said = "its weights:" if listed else "it has no weights"
        parts.append("\n".join([f"in the tree of parameters `{place.path}`; {said}", "", *lines]).rstrip())
    return "\n\n".join(parts)
