"""What the LALR parser reduces -> nodes of `ast.py`, bottom-up while it parses, so that depth costs no recursion.

A method per rule of `tfm.lark`, given the rule's tokens and nodes in order (all tokens are kept). Faults that the
grammar lets pass (`True`, an ill-shaped declaration) are collected in `faults`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Protocol, cast

from tfc.diagnostics import Diagnostic, Edit
from tfc.grammar import ast
from tfc.grammar.syntax.words import BODIED, FOREIGN, ROLES, meant, short
from tfc.source import Source, Span

__all__ = ["MAX_NESTING", "Builder", "too_deep"]

NUMBER_DIGITS = 60
MAX_NESTING = 100
"""Nodes within nodes: whoever walks a tree by recursion, a few frames a node, stays below Python's limit of 1000."""


class _Token(Protocol):
    """What of lark's Token is used here; it is a str as well."""

    type: str
    start_pos: int
    end_pos: int

    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Part:
    """The contents of brackets, or of a rule that is no node of its own."""

    items: tuple[Any, ...]
    span: Span


class Builder:
    """Holds the source of the parse at hand, and the faults found in it."""

    def __init__(self) -> None:
        self.begin(Source("<none>", ""))

    def begin(self, source: Source) -> None:
        self.source = source
        self.faults: list[Diagnostic] = []

    # ---- places and words

    def _span(self, children: list[Any]) -> Span:
        first, last = children[0], children[-1]
        start = first.start_pos if hasattr(first, "start_pos") else first.span.start
        end = last.end_pos if hasattr(last, "end_pos") else last.span.end
        return Span(self.source, start, end)

    def _at(self, token: _Token) -> Span:
        return Span(self.source, token.start_pos, token.end_pos)

    def _fault(self, code: str, message: str, span: Span, help: str, *edits: Edit) -> None:
        self.faults.append(Diagnostic(code=code, message=message, span=span, help=help, edits=edits))

    def _word(self, token: _Token) -> str:
        """The text of a NAME; a fault if it is a constant of another language."""
        text = str(token)
        if text in FOREIGN:
            span, ours = self._at(token), FOREIGN[text]
            self._fault("E109", f"`{text}` is written `{ours}` here", span, f"write `{ours}`", Edit(span, ours))
        return text

    def _words(self, children: Iterable[Any]) -> tuple[str, ...]:
        return tuple(self._word(c) for c in children if getattr(c, "type", None) == "NAME")

    def _string(self, token: _Token) -> str:
        raw = str(token)[1:-1]
        if "\\" not in raw:
            return raw
        out, i = [], 0
        while i < len(raw):
            char = raw[i]
            if char == "\\":
                i += 1
                char = {"\\": "\\", '"': '"', "n": "\n", "t": "\t"}.get(raw[i], "")
                if not char:
                    span = Span(self.source, token.start_pos + i, token.start_pos + i + 2)
                    help = 'escapes are \\\\, \\", \\n and \\t; a backslash itself is \\\\'
                    self._fault("E106", f"`\\{raw[i]}` is no escape", span, help, Edit(span, f"\\\\{raw[i]}"))
            out.append(char)
            i += 1
        return "".join(out)

    # ---- the file

    def module(self, children: list[Any]) -> ast.Module:
        version = children[1]
        text = str(version)
        if text != "1":
            span = self._at(version)
            help = "write `tfm 1`; a newer tfc may read it"
            message = f"the file asks for version {text[:20]} of the language; this tfc reads version 1"
            self._fault("E102", message, span, help, Edit(span, "1"))
        return ast.Module(version=1, items=tuple(children[2:]), span=self._span(children))

    def items(self, children: list[Any]) -> _Part:
        span = self._span(children) if children else Span(self.source, 0, 0)
        return _Part(tuple(children), span)

    def documented_item(self, children: list[Any]) -> ast.Item:
        *strings, item = children
        doc = "\n".join(self._string(s) for s in strings)
        return cast(ast.Item, replace(item, doc=doc, span=self._span(children)))

    documented_statement = documented_item

    # ---- items

    def import_from(self, children: list[Any]) -> ast.Import:
        alias = next((self._word(b) for a, b in pairwise(children) if a == "as"), None)
        opened = next((i for i, c in enumerate(children) if str(c) == "("), len(children))
        return ast.Import(
            path=self._string(children[1]), alias=alias, names=self._words(children[opened:]), span=self._span(children)
        )

    def names(self, children: list[Any]) -> ast.Names:
        return ast.Names(name=self._word(children[1]), entries=tuple(children[3:-1]), span=self._span(children))

    def name_pair(self, children: list[Any]) -> ast.NamePair:
        return ast.NamePair(theirs=self._string(children[0]), ours=children[2], span=self._span(children))

    def default(self, children: list[Any]) -> ast.Default:
        return ast.Default(kind=self._word(children[1]), changes=children[2].items, span=self._span(children))

    def let(self, children: list[Any]) -> ast.Let:
        return ast.Let(bindings=tuple(children[1::2]), span=self._span(children))

    def binding(self, children: list[Any]) -> ast.Binding:
        return ast.Binding(name=self._word(children[0]), value=children[2], span=self._span(children))

    def param(self, children: list[Any]) -> ast.ParamDecl:
        dims = next((c.items for c in children if isinstance(c, _Part) and c.span.text[0] == "["), ())
        init: ast.Expr | None = None
        settings: tuple[ast.Setting, ...] = ()
        last = children[-1]
        if isinstance(last, ast.Derived):
            init, settings = last.base, last.changes
        elif isinstance(last, ast.Expr):
            init = last
        elif isinstance(last, _Part) and last.span.text[0] == "{":
            settings = last.items
        return ast.ParamDecl(
            name=self._word(children[1]), dims=dims, init=init, settings=settings, span=self._span(children)
        )

    def dims(self, children: list[Any]) -> _Part:
        return _Part(tuple(c for c in children if isinstance(c, tuple)), self._span(children))

    def dim(self, children: list[Any]) -> tuple[str | None, ast.Expr]:
        return (self._word(children[0]) if len(children) == 3 else None, children[-1])

    # ---- declarations: the kind decides what shape is right

    def _wrong_kind(self, kind: _Token, right: Iterable[str], message: str, help: str, *edits: Edit) -> None:
        """A fault: the shape is that of a kind in `right`, and perhaps one of them was meant."""
        word, span = str(kind), self._at(kind)
        slip = "" if word in ROLES or word in BODIED else meant(word, right)
        if slip:
            self._fault(
                "E115", f"`{short(word)}` is no word of the language", span, f"did you mean `{slip}`?", Edit(span, slip)
            )
        else:
            self._fault("E119", message, span, help, *edits)

    def component(self, children: list[Any]) -> ast.Declaration:
        kind, name, settings = children
        word = str(kind)
        after = Span(self.source, name.end_pos, name.end_pos)
        if word in ROLES:
            help = f"write `{word} {short(str(name))} = ...`"
            self._fault("E119", f"{_a(word)} is a formula, not a component with attributes", self._at(kind), help)
        elif word in BODIED:
            shown = f"{word} {short(str(name))}"
            help = f"write `{shown}() {{ ... }}`, or derive it: `{shown} = base {{ ... }}`"
            self._fault("E119", f"{_a(word)} has inputs", self._at(name), help, Edit(after, "()"))
        return ast.Declaration(
            kind=self._word(kind), name=self._word(name), base=None, changes=settings.items, span=self._span(children)
        )

    def derivation(self, children: list[Any]) -> ast.Item:
        kind, name, _, value = children
        word, span = self._word(kind), self._span(children)
        if word in ROLES:
            return ast.Role(role=word, name=self._word(name), inputs=(), formula=value, span=span)
        base, changes = (value.base, value.changes) if isinstance(value, ast.Derived) else (value, ())
        if isinstance(base, (ast.Number, ast.Text, ast.List, ast.Unary, ast.Binary, ast.Compare)):
            help = f"a value is declared by `let {short(str(name))} = ...`"
            message = f"`{short(word)} {short(str(name))} = ...` declares a component, and this value is none"
            self._wrong_kind(kind, ("let", "param", "report", *ROLES), message, help)
        return ast.Declaration(kind=word, name=self._word(name), base=base, changes=changes, span=span)

    def role(self, children: list[Any]) -> ast.Role:
        kind, name, inputs, equals, value = children
        word = self._word(kind)
        if word not in ROLES:
            help = "with inputs: a `block`, or a formula: " + ", ".join(f"`{role}`" for role in ROLES)
            edits: tuple[Edit, ...] = ()
            if word in BODIED:
                help = f"the body of {_a(word)} stands between braces and ends in `return`"
                if not isinstance(value, ast.Derived):
                    end = Span(self.source, value.span.end, value.span.end)
                    edits = (Edit(self._at(equals), "{ return"), Edit(end, " }"))
            self._wrong_kind(kind, ROLES, f"{_a(word)} is no formula with inputs", help, *edits)
        return ast.Role(role=word, name=self._word(name), inputs=inputs.items, formula=value, span=self._span(children))

    def block(self, children: list[Any]) -> ast.Block:
        kind, name, inputs, body = children
        word = self._word(kind)
        if word not in BODIED:
            help = "equations stand in a `block` or a `model`"
            edits: tuple[Edit, ...] = ()
            if word in ROLES:
                help = f"{_a(word)} is a formula: `{word} {short(str(name))}(...) = ...`"
            else:  # `def f(x) { .. }`, `layer f(x) { .. }`: with typed inputs it is what one enters by
                new = "model" if inputs.items and all(i.type is not None for i in inputs.items) else "block"
                help = f"{help}: write `{new} {short(str(name))}(...)`"
                edits = (Edit(self._at(kind), new),)
            message = f"{_a(word)} has no body" if word in ROLES else f"`{short(word)}` opens no body"
            self._wrong_kind(kind, BODIED, message, help, *edits)
        return ast.Block(
            kind=word, name=self._word(name), inputs=inputs.items, body=body.items, span=self._span(children)
        )

    def inputs(self, children: list[Any]) -> _Part:
        return _Part(tuple(c for c in children if isinstance(c, ast.Parameter)), self._span(children))

    def parameter(self, children: list[Any]) -> ast.Parameter:
        given = {str(sign): value for sign, value in zip(children[1::2], children[2::2], strict=True)}
        return ast.Parameter(
            name=self._word(children[0]), type=given.get(":"), default=given.get("="), span=self._span(children)
        )

    # ---- statements

    def body(self, children: list[Any]) -> _Part:
        return _Part(tuple(children[1:-1]), self._span(children))

    def equation(self, children: list[Any]) -> ast.Equation:
        return ast.Equation(target=self._word(children[0]), indices=None, value=children[2], span=self._span(children))

    def index_equation(self, children: list[Any]) -> ast.Equation:
        indices = tuple(self._index(c) for c in children[2:-1] if isinstance(c, ast.Expr))
        return ast.Equation(
            target=self._word(children[0]), indices=indices, value=children[-1], span=self._span(children)
        )

    @staticmethod
    def _index(node: ast.Expr) -> ast.Index:
        return node if isinstance(node, ast.Index) else ast.Index(name="..", size=None, span=node.span)

    def index(self, children: list[Any]) -> ast.Index:
        size = children[2] if len(children) == 3 else None
        return ast.Index(name=self._word(children[0]), size=size, span=self._span(children))

    range = index

    def repeat(self, children: list[Any]) -> ast.Repeat:
        _, over, _, name, *settings, body = children
        return ast.Repeat(
            over=over, name=self._word(name), settings=tuple(settings), body=body.items, span=self._span(children)
        )

    def return_value(self, children: list[Any]) -> ast.Return:
        return ast.Return(value=children[1], span=self._span(children))

    def report(self, children: list[Any]) -> ast.Report:
        return ast.Report(name=self._word(children[1]), value=children[3], span=self._span(children))

    # ---- values

    def derived(self, children: list[Any]) -> ast.Derived:
        return ast.Derived(base=children[0], changes=children[1].items, span=self._span(children))

    def settings(self, children: list[Any]) -> _Part:
        return _Part(tuple(children[1:-1]), self._span(children))

    def setting(self, children: list[Any]) -> ast.Setting:
        return ast.Setting(path=self._words(children[:-2]), value=children[-1], span=self._span(children))

    # ---- expressions

    def _fold(self, children: list[Any]) -> ast.Expr:
        """a op b op c, from the left."""
        left = children[0]
        for op, right in zip(children[1::2], children[2::2], strict=True):
            left = ast.Binary(op=str(op), left=left, right=right, span=left.span.to(right.span))
        return cast(ast.Expr, left)

    disjunction = conjunction = sum = term = _fold

    def comparison(self, children: list[Any]) -> ast.Compare:
        rest = tuple((str(op), e) for op, e in zip(children[1::2], children[2::2], strict=True))
        return ast.Compare(first=children[0], rest=rest, span=self._span(children))

    def _signs(self, children: list[Any]) -> ast.Expr:
        *signs, operand = children
        for sign in reversed(signs):
            operand = ast.Unary(op=str(sign), operand=operand, span=Span(self.source, sign.start_pos, operand.span.end))
        return cast(ast.Expr, operand)

    negation = sign = _signs

    def exponent(self, children: list[Any]) -> _Part:
        return _Part(tuple(children), self._span(children))

    def power(self, children: list[Any]) -> ast.Expr:
        """From the right; the minus signs before an exponent apply to the power that begins there."""
        base, *exponents = children[::2]
        value: ast.Expr | None = None
        for exponent in reversed((base, *exponents)):
            *signs, operand = exponent.items if isinstance(exponent, _Part) else (exponent,)
            if value is not None:
                operand = ast.Binary(op="^", left=operand, right=value, span=operand.span.to(value.span))
            value = self._signs([*signs, operand])
        return cast(ast.Expr, value)

    def number(self, children: list[Any]) -> ast.Number:
        token = children[0]
        span = self._at(token)
        text = str(token).replace("_", "")
        value: int | float = 0
        if len(text) > NUMBER_DIGITS:
            self._fault("E006", f"a number of {len(text):_} characters", span, f"{NUMBER_DIGITS} are allowed")
        elif text.isdigit():
            value = int(text)
        else:
            value = float(text)
            vanished = value == 0 and any(c in "123456789" for c in text.lower().split("e")[0])
            if vanished or value == float("inf"):
                help = "numbers reach from 1e-308 to 1e308; infinity is `inf`"
                self._fault("E006", f"{text} is outside the range of a double", span, help)
                value = 0
        return ast.Number(value=value, span=span)

    def text(self, children: list[Any]) -> ast.Text:
        return ast.Text(value=self._string(children[0]), span=self._at(children[0]))

    def name(self, children: list[Any]) -> ast.Name:
        return ast.Name(id=self._word(children[0]), span=self._at(children[0]))

    def leading(self, children: list[Any]) -> ast.Name:
        return ast.Name(id="..", span=self._at(children[0]))

    def group(self, children: list[Any]) -> ast.Expr:
        inner = children[1]
        object.__setattr__(inner, "span", self._span(children))  # parentheses leave no node, only a wider place
        return cast(ast.Expr, inner)

    def attribute(self, children: list[Any]) -> ast.Attribute:
        return ast.Attribute(value=children[0], name=self._word(children[2]), span=self._span(children))

    def label(self, children: list[Any]) -> ast.Label:
        return ast.Label(value=children[0], label=self._word(children[2]), span=self._span(children))

    def subscript(self, children: list[Any]) -> ast.Subscript:
        indices = tuple(c for c in children[2:] if isinstance(c, ast.Expr))
        return ast.Subscript(value=children[0], indices=indices, span=self._span(children))

    reducer = subscript

    def call(self, children: list[Any]) -> ast.Call:
        arguments = tuple(c for c in children[2:] if isinstance(c, ast.Argument))
        return ast.Call(callee=children[0], arguments=arguments, span=self._span(children))

    def argument(self, children: list[Any]) -> ast.Argument:
        name = self._word(children[0]) if len(children) == 3 else None
        return ast.Argument(name=name, value=children[-1], span=self._span(children))

    def list(self, children: list[Any]) -> ast.List:
        items = tuple(c for c in children if isinstance(c, ast.Expr))
        return ast.List(items=items, span=self._span(children))


def _a(word: str) -> str:
    return f"a `{short(word)}`"


def too_deep(module: ast.Module) -> Span | None:
    """A node more than MAX_NESTING deep, if there is one. Itself without recursion."""
    names: dict[type[ast.Node], tuple[str, ...]] = {}
    stack: list[tuple[Any, int]] = [(module.items, 0)]
    while stack:
        node, depth = stack.pop()
        if isinstance(node, tuple):
            stack.extend((child, depth) for child in node)
        elif isinstance(node, ast.Node):
            if depth > MAX_NESTING:
                return node.span
            if depth + 2 * (node.span.end - node.span.start) <= MAX_NESTING:
                continue  # two levels take a character at least
            kind = type(node)
            if kind not in names:
                names[kind] = tuple(f.name for f in fields(kind) if f.name not in ("span", "doc"))
            stack.extend((getattr(node, name), depth + 1) for name in names[kind])
    return None
