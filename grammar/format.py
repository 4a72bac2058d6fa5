"""A syntax tree -> its canonical text, such that parse(format(tree)) == tree and formatting twice changes nothing.

Canonical: two blanks of indentation, lines of at most 100 characters where tokens allow it, a blank line around every
item that takes several lines, three blanks between attributes or statements on one line, digits in groups of three
from 1_000 on, no parentheses but needed ones. What fits goes on one line: the attributes of a component; a single
statement of a block; two of a `repeat`. Else short attributes share lines and the others stand under each other, their
`=` aligned. Comments stay where they are: on their own lines before what they preceded, or at the end of its line.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tfc.grammar import ast
from tfc.grammar.layout import Doc, Group, Line, Nest, commas, fill, render, width
from tfc.source import Span

__all__ = ["WIDTH", "format_expr", "format_module", "format_number"]

WIDTH = 100
_COMMENTS = r"(?:\s|\#[^\n]*(?:\n|$))*"
_HEADER = re.compile(rf"{_COMMENTS}(?P<word>tfm){_COMMENTS}1")
_STRINGS = re.compile(rf'(?:"(?:[^"\\\n]|\\[^\n])*"{_COMMENTS})*')
DENSE = 80
"""Columns that two statements on one line may fill."""
GAP = "   "
"""Between attributes or statements on one line."""

# how tightly an expression binds; an operand that binds more loosely than its place asks stands in parentheses
_OR, _AND, _NOT, _COMPARE, _SUM, _TERM, _SIGN, _POWER, _ATOM = range(9)
_LEVEL = {"or": _OR, "and": _AND, "+": _SUM, "-": _SUM, "*": _TERM, "/": _TERM, "//": _TERM, "%": _TERM, "^": _POWER}


# ---- expressions


def format_number(value: int | float) -> str:
    """`512`, `4_096`, `0.5`, `1e-12`, `500_000.0`: the shortest digits that give the value, in groups of three."""
    text = repr(value)
    if "e" in text:  # 1e-05, 1e+16
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}"
    whole, point, fraction = text.partition(".")
    return (f"{int(whole):_}" if len(whole) > 3 else whole) + point + fraction


def format_expr(node: ast.Expr) -> str:
    """On one line."""
    return render(_expr(node), 1 << 30)


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _level(node: ast.Expr) -> int:
    match node:
        case ast.Binary(op=op):
            return _LEVEL[op]
        case ast.Compare():
            return _COMPARE
        case ast.Unary(op=op):
            return _NOT if op == "not" else _SIGN
        case _:
            return _ATOM


def _operand(node: ast.Expr, level: int) -> Doc:
    """In parentheses if it binds more loosely than `level`."""
    return ("(", _expr(node), ")") if _level(node) < level else _expr(node)


def _callee(node: ast.Expr) -> Doc:
    """What a bracket, a point or an `@` may follow: numbers, strings and lists only in parentheses."""
    loose = isinstance(node, (ast.Number, ast.Text, ast.List))
    return ("(", _expr(node), ")") if loose else _operand(node, _ATOM)


def _expr(node: ast.Expr) -> Doc:
    match node:
        case ast.Number(value=value):
            return format_number(value)
        case ast.Text(value=value):
            return _text(value)
        case ast.Name(id=id):
            return id
        case ast.List(items=items):
            return commas("[", [_expr(i) for i in items], "]")
        case ast.Unary(op=op, operand=operand):
            return ("not ", _operand(operand, _NOT)) if op == "not" else ("-", _operand(operand, _SIGN))
        case ast.Binary():
            return _binary(node)
        case ast.Compare(first=first, rest=rest):
            parts = [_operand(first, _SUM)]
            for op, operand in rest:
                parts[-1] = (parts[-1], " ", op)
                parts.append(_operand(operand, _SUM))
            return Group(Nest(fill(*parts), 4))
        case ast.Attribute(value=value, name=name):
            return (_callee(value), ".", name)
        case ast.Label(value=value, label=label):
            return (_callee(value), "@", label)
        case ast.Subscript(value=value, indices=indices):
            return (_callee(value), commas("[", [_expr(i) for i in indices], "]"))
        case ast.Index(name=name, size=size):
            return (f"{name}: ", _expr(size)) if size is not None else name
        case ast.Call(callee=callee, arguments=arguments):
            return (_callee(callee), commas("(", [_argument(a) for a in arguments], ")"))
        case ast.Derived(base=base, changes=changes):
            if not changes:
                return (_expr(base), " {}")
            settings = [(_setting_name(c), " = ", _expr(c.value)) for c in changes]
            spaced = [(Line(GAP), s) for s in settings[1:]]
            return (_expr(base), Group((" {", Nest((Line(), settings[0], *spaced)), Line(), "}")))
        case _:
            raise TypeError(f"no expression: {node!r}")


def _argument(node: ast.Argument) -> Doc:
    return (f"{node.name} = ", _expr(node.value)) if node.name is not None else _expr(node.value)


def _binary(node: ast.Binary) -> Doc:
    """A chain of operators of one level, broken after operators; `^` binds to the right."""
    level = _level(node)
    if node.op == "^":
        # the exponent may carry signs: 2 ^ -3; the base may not be a power itself: (a ^ b) ^ c
        return (_operand(node.left, _ATOM), " ^ ", _operand(node.right, _SIGN))
    parts: list[Doc] = []
    operators: list[str] = []
    chain: ast.Expr = node
    while isinstance(chain, ast.Binary) and _level(chain) == level:
        parts.append(_operand(chain.right, level + 1))
        operators.append(chain.op)
        chain = chain.left
    parts.append(_operand(chain, level))
    parts.reverse()
    operators.reverse()
    broken = [(part, " ", op) for part, op in zip(parts, operators, strict=False)]
    return Group(Nest(fill(*broken, parts[-1]), 4))


def _setting_name(node: ast.Setting) -> str:
    return ".".join(node.path)


# ---- lines


@dataclass(slots=True)
class _Comments:
    """Comments not yet printed, in order; taken as the nodes around them are."""

    source: str
    left: list[tuple[int, str]]
    out: list[str] = field(default_factory=list)

    def before(self, offset: int) -> list[tuple[int, str]]:
        n = next((i for i, (at, _) in enumerate(self.left) if at >= offset), len(self.left))
        taken, self.left = self.left[:n], self.left[n:]
        return taken

    def within(self, span: Span) -> bool:
        return any(span.start <= at < span.end for at, _ in self.left)

    def trailing(self, end: int) -> str:
        """The comment that ends the line on which a node ends, if nothing but it follows there."""
        if not self.left:
            return ""
        at, text = self.left[0]
        gap = self.source[end:at] if at >= end else "\n"
        if gap.strip(" \t,") or "\n" in gap:
            return ""
        del self.left[0]
        return "  " + text

    def blank_before(self, offset: int) -> bool:
        """Whether the line before the one that holds `offset` is empty."""
        return re.search(r"\n[ \t]*\n[ \t]*$", self.source[max(0, offset - 400) : offset]) is not None


def format_module(module: ast.Module) -> str:
    """The canonical text of a file, with its comments."""
    source = module.span.source.text
    comments = _Comments(source, [(at, text.rstrip()) for at, text in module.comments])
    lines: list[str] = []
    header = _HEADER.match(source)
    if header:
        _remarks(comments.before(header.end()), comments, "", lines, header.start("word"))
    lines.append(f"tfm {module.version}{comments.trailing(header.end()) if header else ''}")
    _sequence(module.items, comments, 0, len(source) + 1, lines, top=True)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _sequence(
    items: Sequence[ast.Item], comments: _Comments, indent: int, end: int, lines: list[str], *, top: bool
) -> None:
    """Items or statements one below the other, with the comments up to `end`."""
    pad = " " * indent
    before_big = top  # a blank line after the header
    source = comments.source
    for number, item in enumerate(items):
        remarks = comments.before(item.span.start)
        body: list[str] = []
        word = _STRINGS.match(source, item.span.start) if item.doc is not None else None
        # remarks that have no place within the item stand before it
        inner = comments.before(item.span.end if not _holds(item) else word.end() if word else item.span.start)
        _item(item, comments, indent, body)
        body[-1] += comments.trailing(item.span.end)
        big = len(body) > 1 or item.doc is not None
        start = remarks[0][0] if remarks else item.span.start
        asked = comments.blank_before(start) and bool(comments.source)
        if (top and (big or before_big)) or (asked and (top or number > 0)):
            lines.append("")
        _remarks(remarks, comments, pad, lines, item.span.start)
        lines.extend(pad + text for _, text in inner)
        lines.extend(body)
        before_big = big
    rest = comments.before(end)
    if rest and (comments.blank_before(rest[0][0]) or (top and before_big)):
        lines.append("")
    _remarks(rest, comments, pad, lines, None)


def _remarks(
    remarks: list[tuple[int, str]], comments: _Comments, pad: str, lines: list[str], before: int | None
) -> None:
    """Comments on lines of their own, the empty lines between them kept."""
    for i, (at, text) in enumerate(remarks):
        if i and comments.blank_before(at):
            lines.append("")
        lines.append(pad + text)
    if remarks and before is not None and comments.blank_before(before):
        lines.append("")


def _holds(item: ast.Item) -> bool:
    """Whether it has braces of its own, so that comments find a place within."""
    match item:
        case ast.Block() | ast.Repeat() | ast.Names():
            return True
        case ast.Declaration(changes=changes) | ast.Default(changes=changes) | ast.ParamDecl(settings=changes):
            return bool(changes)
        case _:
            return False


def _item(item: ast.Item, comments: _Comments, indent: int, lines: list[str]) -> None:
    pad = " " * indent
    if item.doc is not None:
        lines.extend(pad + _text(line) for line in item.doc.split("\n"))
    match item:
        case ast.Block(inputs=inputs, body=body):
            head = (f"{item.kind} {item.name}", commas("(", [_input(i) for i in inputs], ")"))
            _braces(head, body, 1, item.span, comments, indent, lines)
        case ast.Repeat(over=over, name=name, settings=settings, body=body):
            values: list[Doc] = [(" ", _setting_name(s), " = ", _expr(s.value)) for s in settings]
            _braces(("repeat ", _expr(over), f" as {name}", *values), body, 2, item.span, comments, indent, lines)
        case ast.Declaration(kind=kind, name=name, base=base, changes=changes):
            derived: Doc = (f"{kind} {name} = ", _expr(base)) if base is not None else f"{kind} {name}"
            _settings(derived, changes, base is None, item.span, comments, indent, lines)
        case ast.Default(kind=kind, changes=changes):
            _settings(f"default {kind}", changes, True, item.span, comments, indent, lines)
        case ast.ParamDecl(name=name, dims=dims, init=init, settings=settings):
            shown = [(f"{index}: " if index else "", _expr(size)) for index, size in dims]
            value: Doc = (" = ", _expr(init)) if init is not None else ""
            sizes = commas("[", list[Doc](shown), "]") if dims else ""
            _settings((f"param {name}", sizes, value), settings, False, item.span, comments, indent, lines)
        case ast.Names(name=name, entries=entries):
            _names(name, entries, item.span, comments, indent, lines)
        case _:
            lines.extend(_lines(_plain(item), indent))


def _lines(doc: Doc, indent: int) -> list[str]:
    return (" " * indent + render(doc, WIDTH, start=indent, indent=indent)).split("\n")


def _plain(item: ast.Item) -> Doc:
    """Items without braces of their own."""
    match item:
        case ast.Let(bindings=bindings):
            values = [(f"{b.name} = ", _expr(b.value)) for b in bindings]
            return Group(("let ", Nest(fill(*((v, ",") for v in values[:-1]), values[-1]), 4)))
        case ast.Import(path=path, alias=alias, names=names):
            renamed = f" as {alias}" if alias is not None else ""
            return (f"import {_text(path)}{renamed}", (" ", commas("(", list[Doc](names), ")")) if names else "")
        case ast.Role(role=role, name=name, inputs=inputs, formula=formula):
            given = commas("(", [_input(i) for i in inputs], ")") if inputs else ""
            return (f"{role} {name}", given, " = ", _expr(formula))
        case ast.Equation(target=target, indices=indices, value=value):
            head: Doc = (target, commas("[", [_expr(i) for i in indices], "]")) if indices is not None else target
            return (head, " = ", _expr(value))
        case ast.Return(value=value):
            return ("return ", _expr(value))
        case ast.Report(name=name, value=value):
            return (f"report {name} = ", _expr(value))
        case _:
            raise TypeError(f"no item: {item!r}")


def _input(node: ast.Parameter) -> Doc:
    typed = (": ", _expr(node.type)) if node.type is not None else ""
    return (node.name, typed, (" = ", _expr(node.default)) if node.default is not None else "")


# ---- braces


def _braces(
    head: Doc, body: Sequence[ast.Item], most: int, span: Span, comments: _Comments, indent: int, lines: list[str]
) -> None:
    """A body: on one line if it has at most `most` plain statements and they fit, else one statement a line."""
    if not body and not comments.within(span):
        lines.extend(_lines((head, " {}"), indent))
        return
    if 0 < len(body) <= most and not comments.within(span) and all(_is_plain(s) for s in body):
        parts = [_one_line(s) for s in body]
        doc = (head, " { ", *(p for part in parts[:-1] for p in (part, GAP)), parts[-1], " }")
        if indent + width(doc) <= (WIDTH if len(body) == 1 else DENSE):
            lines.append(" " * indent + render(doc, 1 << 30))
            return
    lines.extend(_lines((head, " {"), indent))
    first_line = comments.source.find("{", span.start)  # a remark behind the brace
    if body and comments.left and first_line >= 0:
        gap = comments.source[span.start : comments.left[0][0]]
        if comments.left[0][0] < body[0].span.start and gap.rstrip(" \t").endswith("{"):
            lines[-1] += comments.trailing(span.start + len(gap.rstrip(" \t")))
    _sequence(body, comments, indent + 2, span.end - 1, lines, top=False)
    lines.append(" " * indent + "}")


def _is_plain(item: ast.Item) -> bool:
    return item.doc is None and not isinstance(item, (ast.Block, ast.Repeat, ast.Let, ast.Names))


def _one_line(item: ast.Item) -> Doc:
    match item:
        case ast.Declaration(kind=kind, name=name, base=base, changes=changes):
            head: Doc = (f"{kind} {name} = ", _expr(base)) if base is not None else f"{kind} {name}"
            return (head, _one_line_settings(changes, base is None))
        case ast.ParamDecl(name=name, dims=dims, init=init, settings=settings):
            shown = [(f"{index}: " if index else "", _expr(size)) for index, size in dims]
            value: Doc = (" = ", _expr(init)) if init is not None else ""
            sizes = commas("[", list[Doc](shown), "]") if dims else ""
            return (f"param {name}", sizes, value, _one_line_settings(settings, False))
        case _:
            return _plain(item)


def _one_line_settings(settings: Sequence[ast.Setting], always: bool) -> Doc:
    if not settings:
        return " {}" if always else ""
    shown = [(_setting_name(s), " = ", _expr(s.value)) for s in settings]
    return (" { ", *(p for s in shown[:-1] for p in (s, GAP)), shown[-1], " }")


def _settings(
    head: Doc,
    settings: Sequence[ast.Setting],
    always: bool,
    span: Span,
    comments: _Comments,
    indent: int,
    lines: list[str],
) -> None:
    """Attributes: all on one line if they fit, else the short ones together and the others one a line, aligned."""
    one = (head, _one_line_settings(settings, always))
    if not settings or (not comments.within(span) and indent + width(one) <= WIDTH):
        lines.extend(_lines(one, indent))
        return
    lines.extend(_lines((head, " {"), indent))
    inner = indent + 2
    rows: list[tuple[list[ast.Setting], list[str], str]] = []  # attributes of a line, remarks before and behind it
    for setting in settings:
        remarks = [text for _, text in comments.before(setting.span.start)]
        remarks += [text for _, text in comments.before(setting.span.end)]
        behind = comments.trailing(setting.span.end)
        last = rows[-1] if rows else None
        if last and not remarks and not last[2] and all(_is_short(s) for s in (setting, *last[0])):
            together = inner + width(_one_line_settings((*last[0], setting), False)) + len(behind) - 4
            if together <= WIDTH:
                rows[-1] = ([*last[0], setting], last[1], behind)
                continue
        rows.append(([setting], remarks, behind))
    for row, column in zip(rows, _columns(rows), strict=True):
        lines.extend(" " * inner + text for text in row[1])
        doc: list[Doc] = []
        for s in row[0]:
            doc += [GAP if doc else "", _setting_name(s).ljust(column), " = ", _expr(s.value)]
        lines.extend(_lines(tuple(doc), inner))
        lines[-1] += row[2]
    lines.extend(" " * inner + text for _, text in comments.before(span.end - 1))
    lines.append(" " * indent + "}")


def _is_short(setting: ast.Setting) -> bool:
    return (
        isinstance(setting.value, (ast.Number, ast.Name, ast.Text, ast.Attribute)) and width(_expr(setting.value)) < 24
    )


def _columns(rows: list[tuple[list[ast.Setting], list[str], str]]) -> list[int]:
    """How wide the name of each line's first attribute is made: equal in a run of lines that hold one each."""
    columns = [0] * len(rows)
    start = 0
    for i in range(len(rows) + 1):
        if i == len(rows) or len(rows[i][0]) > 1:
            longest = max((len(_setting_name(row[0][0])) for row in rows[start:i]), default=0)
            columns[start:i] = [longest] * (i - start)
            start = i + 1
    return columns


def _names(
    name: str, entries: Sequence[ast.NamePair], span: Span, comments: _Comments, indent: int, lines: list[str]
) -> None:
    """One pair on one line; more are one a line, aligned."""
    pad = " " * (indent + 2)
    if not comments.within(span) and len(entries) <= 1:
        pair: Doc = (f" {_text(entries[0].theirs)} = ", _expr(entries[0].ours), " }") if entries else "}"
        doc = (f"names {name} {{", pair)
        if indent + width(doc) <= WIDTH:
            lines.extend(_lines(doc, indent))
            return
    lines.append(" " * indent + f"names {name} {{")
    longest = max((len(_text(e.theirs)) for e in entries), default=0)
    for entry in entries:
        remarks = [*comments.before(entry.span.start), *comments.before(entry.span.end)]
        _remarks(remarks, comments, pad, lines, None)
        lines.extend(_lines((_text(entry.theirs).ljust(longest), " = ", _expr(entry.ours)), indent + 2))
        lines[-1] += comments.trailing(entry.span.end)
    lines.extend(pad + text for _, text in comments.before(span.end - 1))
    lines.append(" " * indent + "}")
