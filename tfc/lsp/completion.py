"""A place in a document, perhaps in the middle of a word -> what may stand there, with documentation.

A placeholder is written at the place, in the forms that the grammar has (a value, an attribute, a statement, an item),
and brackets still open are closed, until the item reads; where the placeholder then stands in the tree is the context.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from lsprotocol import types

from tfc.grammar import ast
from tfc.grammar.lowering.library import library_items
from tfc.grammar.lowering.scope import IMPLICIT, ROLES
from tfc.grammar.lowering.values import Component, Meaning, Tensor
from tfc.grammar.parser import parse
from tfc.ir.types import DType
from tfc.lsp.analysis import Analysis
from tfc.lsp.describing import code, core_markdown, item_markdown, shown, signature
from tfc.lsp.hover import given, symbol_markdown
from tfc.lsp.library import IMPLICIT_WORDS, KEYWORDS, ROW_WORDS, core_words, entry
from tfc.lsp.lookup import Declared, descend, owner_of, plain, segment_nodes
from tfc.lsp.symbols import Symbol, children
from tfc.lsp.text import Text
from tfc.source import Source

__all__ = ["completion"]

HOLE = "completion_hole"
"""The placeholder's name; nobody's program has it."""

_Kind = types.CompletionItemKind
_FORMS = (HOLE, f"{HOLE} = none", f"{HOLE} completion_name {{}}", f"{HOLE} {{}}", f"{HOLE} = x")


def completion(document: Analysis, offset: int) -> list[types.CompletionItem]:
    """Everything that may stand at a place, the likely first."""
    text = document.source.text
    start = offset
    while start > 0 and (text[start - 1].isalnum() or text[start - 1] == "_"):
        start -= 1
    if _in_comment(document, offset):
        return []
    quoted = _in_string(document, offset)
    if quoted is not None:
        return _files(document, quoted)
    if not text[:start].strip():
        return [_item("tfm 1", _Kind.Keyword, "the version of the language", "0", "how every file begins")]
    filled = _filled(document, start, offset)
    if filled is None:
        return []
    after, chain = filled
    return list(_Context(after, start, chain).items())


def _in_comment(document: Analysis, offset: int) -> bool:
    return any(s < offset <= s + len(t) for s, t in document.scanned.comments)


def _in_string(document: Analysis, offset: int) -> str | None:
    """The word before the string that a place is in, or None outside of strings."""
    tokens = document.scanned.tokens
    for i, token in enumerate(tokens):
        inside = token.start < offset < token.end or (token.kind == "open_string" and token.start < offset <= token.end)
        if inside and token.kind in ("string", "open_string"):
            return tokens[i - 1].text if i else ""
    return None


def _files(document: Analysis, before: str) -> list[types.CompletionItem]:
    """The files that `import "` may name."""
    if before != "import" or document.path is None:
        return []
    folder = document.path.parent
    found = [p for pattern in ("*.tfm", "*/*.tfm") for p in sorted(folder.glob(pattern))[:200] if p != document.path]
    return [_item(p.relative_to(folder).as_posix(), _Kind.File, "", "0", "") for p in found]


# ---- the placeholder


def _filled(document: Analysis, start: int, end: int) -> tuple[Analysis, list[ast.Node]] | None:
    """The document with a placeholder instead of text[start:end], and the nodes around the placeholder."""
    text = document.source.text
    starts = [s for s in document.scanned.starts if s <= start]
    first = starts[-1] if starts else min(len("tfm 1"), start)
    after = [s for s in document.scanned.starts if s >= end and s > start]
    last = after[0] if after else len(text)
    for form in _FORMS:
        for closed in (False, True):
            tail = _closers(text[first:start]) if closed else text[end:last]
            item = text[first:start] + form + tail
            chain = _chain(item)
            if chain is None:
                continue
            rest = text[last:] if not closed else "\n" + text[last:]
            whole = text[:first] + item + rest
            made = Analysis(Text(document.source.name, whole, document.text.encoding), document.path, document.opened)
            found = _find(made.module)
            if found is not None:
                return made, found
    return None


def _closers(text: str) -> str:
    """The brackets that are open at the end of a text, closed."""
    open_: list[str] = []
    plain_text = re.sub(r'"([^"\\\n]|\\.)*"|#[^\n]*', " ", text)
    for char in plain_text:
        if char in "([{":
            open_.append({"(": ")", "[": "]", "{": "}"}[char])
        elif char in ")]}" and open_:
            open_.pop()
    return "".join(f" {c}" for c in reversed(open_))


def _chain(item: str) -> list[ast.Node] | None:
    """The nodes from the top to the placeholder of one item's text, None where it does not read."""
    module, _ = parse(Source("<completion>", f"tfm 1 {item.removeprefix('tfm 1')}"))
    return _find(module) if module is not None else None


def _find(module: ast.Module) -> list[ast.Node] | None:
    stack: list[tuple[ast.Node, list[ast.Node]]] = [(item, []) for item in module.items]
    while stack:
        node, above = stack.pop()
        here = [*above, node]
        if _holds(node):
            return here
        stack.extend((child, here) for child in children(node))
    return None


def _holds(node: ast.Node) -> bool:
    """Whether the placeholder is one of the node's own words."""
    for name in node.__dataclass_fields__:
        value = getattr(node, name) if name not in ("span", "doc") else None
        if value == HOLE or (isinstance(value, tuple) and HOLE in value):
            return True
    return False


# ---- what may stand there


def _item(label: str, kind: types.CompletionItemKind, detail: str, group: str, doc: str) -> types.CompletionItem:
    return types.CompletionItem(
        label=label,
        kind=kind,
        detail=detail or None,
        sort_text=f"{group}{label}",
        documentation=types.MarkupContent(types.MarkupKind.Markdown, doc) if doc else None,
    )


class _Context:
    """The placeholder in the tree of a document."""

    def __init__(self, document: Analysis, offset: int, chain: list[ast.Node]) -> None:
        self.document, self.offset, self.chain = document, offset, chain
        self.node = chain[-1]
        self.scope = document.table.scope(offset)

    def items(self) -> Iterator[types.CompletionItem]:
        within = len(self.chain) > 1
        match self.node:
            case ast.Name() if any(isinstance(n, ast.NamePair) for n in self.chain):
                yield from self._paths("")
            case ast.Attribute(value=value) if any(isinstance(n, ast.NamePair) for n in self.chain):
                yield from self._paths(".".join(re.findall(r"\w+", value.span.text)))
            case ast.Name():
                yield from self._value()
            case ast.Attribute():
                yield from self._members(self.node)
            case ast.Setting(path=path):
                yield from self._attributes(path)
            case ast.Equation() | ast.Declaration() | ast.Block() | ast.Role():
                yield from self._openers(within)
            case ast.Default(kind=kind) if kind == HOLE:
                yield _item("precision", _Kind.Keyword, "element types of the model", "0", "params, compute, reduce")
                yield from self._kinds()

    # ---- items and statements

    def _openers(self, in_body: bool) -> Iterator[types.CompletionItem]:
        words = [w for w in KEYWORDS if (w in _STATEMENTS) == in_body or w in _BOTH]
        for word in words:
            yield _item(word, _Kind.Keyword, "", "2", KEYWORDS[word])
        yield from self._kinds()
        if in_body:
            yield from self._symbols(lambda s: s.kind in ("local", "input"), "0")

    def _kinds(self) -> Iterator[types.CompletionItem]:
        """Blocks: each is a kind that components are declared of."""
        yield from self._symbols(lambda s: s.kind in ("block", "import"), "1")
        for name in library_items():
            found = entry(name)
            if found is not None and isinstance(found.item, ast.Block):
                yield _item(name, _Kind.Class, signature(found.item), "3", item_markdown(found.item, "the prelude"))

    # ---- values

    def _value(self) -> Iterator[types.CompletionItem]:
        role, name = self._role(), self._attribute_name()
        if self._is_type():
            yield from self._types()
            return
        if any(isinstance(n, ast.Repeat) and self._in_settings(n) for n in self.chain):
            for word in ("none", "full", "dots"):
                yield _item(word, _Kind.EnumMember, "what is kept for gradients", "0", "")
            return
        yield from self._inputs_of_call()
        if role is not None:
            for word in sorted(IMPLICIT[role]):
                yield _item(word, _Kind.Variable, f"of a {role} formula", "1", IMPLICIT_WORDS.get(word, ""))
        yield from self._symbols(lambda s: self._fits(s, role), "2")
        for word, row in core_words().items():
            if isinstance(row.kind, str) and row.kind in ("format", "fit"):
                likely = name in _FORMATTED if row.kind == "format" else name == "fit"
                yield _item(word, _Kind.EnumMember, row.written, "1" if likely else "7", core_markdown(row))
            else:
                kind = _Kind.Function if row.kind == "function" else _Kind.Constant
                yield _item(word, kind, row.written if row.kind == "function" else row.doc, "6", core_markdown(row))
        for known in library_items():
            found = entry(known)
            if found is None:
                continue
            own = found.item.role if isinstance(found.item, ast.Role) else None
            group = "3" if own is not None and own == role else "5" if (own is None) == (role is None) else "8"
            kind = _Kind.Class if own is None else _Kind.Function
            yield _item(known, kind, signature(found.item), group, item_markdown(found.item, "the prelude"))

    def _fits(self, symbol: Symbol, role: str | None) -> bool:
        return symbol.kind not in ("model", "label", "report", "names") and symbol.name != HOLE

    def _role(self) -> str | None:
        """The role of the formula that the placeholder stands in."""
        role: str | None = None
        for node in self.chain:
            match node:
                case ast.Role(role=found):
                    role = found
                case ast.Setting(path=path):
                    role = path[-1] if path[-1] in ROLES else None
                case ast.Argument(name=str() as found) if found in ROLES:
                    role = found
                case ast.Parameter(name=found) if found in ROLES:
                    role = found
        return role

    def _attribute_name(self) -> str:
        for node in reversed(self.chain):
            if isinstance(node, ast.Setting):
                return node.path[-1]
            if isinstance(node, ast.Argument) and node.name:
                return node.name
        return ""

    def _is_type(self) -> bool:
        """Right after the colon of an input."""
        for node in self.chain:
            if isinstance(node, ast.Parameter) and node.type is not None:
                return node.type is self.node or (isinstance(node.type, ast.Subscript) and node.type.value is self.node)
        return False

    def _types(self) -> Iterator[types.CompletionItem]:
        yield _item("real", _Kind.Struct, "the parameters' element type", "0", "")
        for dtype in DType:
            yield _item(dtype.value, _Kind.Struct, "an element type", "0", f"`x: {dtype.value}[B, T]`")

    def _in_settings(self, node: ast.Repeat) -> bool:
        return any(s in self.chain for s in node.settings)

    def _inputs_of_call(self) -> Iterator[types.CompletionItem]:
        """`memory = `: inputs of the callee that are not given yet, where the placeholder is a whole argument."""
        if len(self.chain) < 3:
            return
        argument, call = self.chain[-2], self.chain[-3]
        if not (isinstance(argument, ast.Argument) and isinstance(call, ast.Call) and argument.name is None):
            return
        owner = owner_of(call, self.scope, self.document)
        if owner is None:
            return
        given = {a.name for a in call.arguments}
        positional = sum(a.name is None for a in call.arguments) - 1
        taken = given | {i.name for i in owner.item.inputs[:positional]}
        yield from self._inputs(owner, taken, "0", in_call=True)

    def _inputs(
        self, owner: Declared, taken: set[str | None], group: str, *, in_call: bool = False
    ) -> Iterator[types.CompletionItem]:
        """Inputs with their defaults; the first, which calls give, last."""
        for i, wanted in enumerate(owner.item.inputs):
            if wanted.name in taken:
                continue
            default = " ".join(wanted.default.span.text.split()) if wanted.default is not None else ""
            told = f"= {default}" if default else "needed"
            at = 999 if i == 0 and wanted.default is None else i
            label = wanted.name + (" =" if in_call else "")  # beside a value of the same name
            made = _item(label, _Kind.Property, told, f"{group}{at:03}", _about(wanted, owner))
            made.insert_text, made.filter_text = f"{wanted.name} = ", wanted.name
            yield made

    # ---- attributes

    def _attributes(self, path: tuple[str, ...]) -> Iterator[types.CompletionItem]:
        holder = self.chain[-2]
        if isinstance(holder, ast.ParamDecl):
            for word in ("trained", "fit", "format"):
                yield _setting(word)
            return
        if isinstance(holder, ast.Default) and holder.kind == "precision":
            for word in ("params", "compute", "reduce"):
                yield _setting(word)
            return
        if isinstance(holder, ast.Repeat):
            yield _setting("remat")
            return
        base = holder.base if isinstance(holder, ast.Declaration | ast.Derived) else None
        owner = owner_of(base if base is not None else holder, self.scope, self.document)
        number = path.index(HOLE)
        for segment in path[:number]:
            owner = descend(owner, segment, self.document) if owner is not None else None
        if owner is None:
            return
        changes = getattr(holder, "changes", ())
        beside = [c.path for c in changes if c.path[:number] == path[:number]]
        taken: set[str | None] = {p[number] for p in beside if len(p) == number + 1}
        yield from self._inputs(owner, taken, "0")
        if isinstance(owner.item, ast.Block):
            inputs = {i.name for i in owner.item.inputs}
            for name in dict.fromkeys(n for _, n in segment_nodes(owner.item) if n not in inputs):
                if name not in core_words():
                    yield _item(name, _Kind.Field, f"inside `{owner.item.name}`", "1", "")

    # ---- after a point

    def _members(self, node: ast.Attribute) -> Iterator[types.CompletionItem]:
        value = node.value
        role = self._role()
        if isinstance(value, ast.Name) and role is not None and value.id in IMPLICIT[role]:
            yield from self._fields() if value.id in ("q", "k", "pos") else _rows() if value.id == "row" else ()
            return
        if isinstance(value, ast.Name):
            symbol = self.scope.find(value.id)
            if symbol is not None and isinstance(symbol.item, ast.Import) and symbol.kind == "file":
                other = self.document.imported(symbol.item)
                if other is not None:
                    yield from _listed(other, other.table.top.names.values(), "0", 0)
                return
        for found in self._meanings(value):
            match found:
                case Tensor(fields=fields):
                    for name, tensor in fields.items():
                        yield _item(name, _Kind.Field, str(tensor.type), "0", "a field that the tokens carry")
                case Component(place=place) if place is not None:
                    for name, tensor in place.params.items():
                        yield _item(name, _Kind.Field, str(tensor.type), "0", "a parameter")
                    for name in place.below:
                        yield _item(name, _Kind.Module, "", "1", "")

    def _meanings(self, node: ast.Expr) -> Iterable[Meaning]:
        return self.document.meanings(node).values()

    def _fields(self) -> Iterator[types.CompletionItem]:
        """Fields that the file sets with `tag`, and those that the prelude's formulas speak of."""
        names = dict.fromkeys(
            k.name
            for k in self.document.table.keywords
            if isinstance(k.owner, ast.Call) and isinstance(k.owner.callee, ast.Name) and k.owner.callee.id == "tag"
        )
        for name in names:
            yield _item(name, _Kind.Field, "a field set with `tag`", "0", "")
        for name in ("segment", "pos"):
            if name not in names:
                yield _item(name, _Kind.Field, "a field", "1", f"set it with `tag(x, {name} = ..)`")

    def _paths(self, prefix: str) -> Iterator[types.CompletionItem]:
        """What is below a path of parameters."""
        if not prefix:
            for word in ("transpose", "concat", "none"):
                yield _item(word, _Kind.Function, "", "1", "")
        seen: dict[str, str] = {}
        for path, found in self.document.seen.opened.items():
            own, place = plain(path), found[0].place
            if own == prefix:
                seen.update({n: str(t.type) for n, t in place.params.items()})
            head = own.removeprefix(f"{prefix}.") if prefix else own
            if (not prefix or own.startswith(f"{prefix}.")) and "." not in head:
                seen.setdefault(head, "")
        for name, detail in seen.items():
            yield _item(name, _Kind.Field if detail else _Kind.Module, detail, "0", "")

    # ---- symbols

    def _symbols(self, fits: Callable[[Symbol], bool], group: str) -> Iterator[types.CompletionItem]:
        visible = [s for s in self.document.table.visible(self.offset) if fits(s) and s.name != HOLE]
        yield from _listed(self.document, visible, group, self.offset)


_STATEMENTS = frozenset(["repeat", "return", "report"])
_BOTH = frozenset(["let", "param", "block", *ROLES])
_FORMATTED = frozenset(["weights", "inputs", "kv_cache", "format"])


def _setting(word: str) -> types.CompletionItem:
    made = _item(word, _Kind.Property, "", "0", "")
    made.insert_text = f"{word} = "
    return made


def _rows() -> Iterator[types.CompletionItem]:
    for name, doc in ROW_WORDS.items():
        yield _item(name, _Kind.Field, "of the query's row", "0", doc)


def _about(wanted: ast.Parameter, owner: Declared) -> str:
    return f"{code(' '.join(wanted.span.text.split()))}\n\nan input of `{signature(owner.item).split('(')[0]}`"


_KINDS = {
    "let": _Kind.Constant, "component": _Kind.Class, "block": _Kind.Class, "param": _Kind.Field,
    "formula": _Kind.Function, "input": _Kind.Variable, "local": _Kind.Variable, "loop": _Kind.Variable,
    "index": _Kind.Variable, "length": _Kind.TypeParameter, "file": _Kind.Module, "import": _Kind.Reference,
}  # fmt: skip


def _listed(document: Analysis, symbols: Iterable[Symbol], group: str, offset: int) -> Iterator[types.CompletionItem]:
    for symbol in symbols:
        kind = _KINDS.get(symbol.kind, _Kind.Variable)
        detail = _detail(symbol, document, offset)
        yield _item(symbol.name, kind, detail, group, symbol_markdown(symbol, document))


def _detail(symbol: Symbol, document: Analysis, offset: int) -> str:
    """One line: the type of a tensor as it is at a place, the value of a `let`, the kind of anything else."""
    written = [w for w in symbol.writes if w.span.end <= offset]
    for found in document.bound(written[-1], symbol.name).values() if written else ():
        return shown(found)
    match symbol.item:
        case ast.Binding(value=value):
            return f"= {' '.join(value.span.text.split())}"
        case ast.Parameter():
            for found in given(symbol.item, document):
                return shown(found)
        case ast.Declaration(kind=kind):
            return kind
        case ast.Block() | ast.Role():
            return signature(symbol.item)
    return symbol.kind
