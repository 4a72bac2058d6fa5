"""The tree of a file -> its symbols: what each name declares, every place that means it, and the scopes around.

Static: it knows no types, and so serves files that do not lower. Names that lead out of the file stay free.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tfc.grammar import ast
from tfc.grammar.lowering.scope import IMPLICIT, ROLES
from tfc.lsp.text import Tokens
from tfc.source import Span

__all__ = ["Keyword", "Occurrence", "Scope", "Symbol", "Table", "children", "table"]

BODY_KINDS = frozenset(["local", "input", "index", "loop", "length"])
"""Kinds of names that are bound in bodies by equations and headers: they may stand for tensors."""


@dataclass(eq=False, slots=True)
class Scope:
    """Names bound together: a file, a body, a turn of a loop, the indices of an equation, the inputs of a formula."""

    span: Span
    parent: "Scope | None" = None
    names: dict[str, "Symbol"] = field(default_factory=dict)
    role: str | None = None
    body: bool = False  # of a block, or of a loop within it
    block: bool = False  # of a block: assignments do not reach beyond

    def find(self, name: str) -> "Symbol | None":
        at: Scope | None = self
        while at is not None:
            if name in at.names:
                return at.names[name]
            at = at.parent
        return None


@dataclass(eq=False, slots=True)
class Symbol:
    """A name of the file. span: where the name is declared; item: what declares it; uses: all its places, in order."""

    name: str
    kind: str
    span: Span
    item: ast.Node
    scope: Scope
    doc: str | None = None
    uses: list[Span] = field(default_factory=list)
    callee: ast.Expr | None = None  # of a label: what it names the use of
    writes: list[ast.Item] = field(default_factory=list)  # of a local: every equation that assigns it

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A name where it stands. symbol None: it is not of this file; role: an implicit variable of such formulas."""

    span: Span
    name: str
    symbol: Symbol | None
    role: str | None = None
    node: ast.Node | None = None


@dataclass(frozen=True, slots=True)
class Keyword:
    """A name before `=` in a call or between braces: an input, or something inside, of what `owner` is.

    owner: the call, the base of the derivation, or the item whose kind is changed; number: which segment of `path` this
    is; holder: the argument or setting.
    """

    span: Span
    name: str
    owner: ast.Node
    path: tuple[str, ...]
    number: int
    holder: ast.Node
    scope: Scope


@dataclass(slots=True)
class Table:
    """All of a file, each list in the order of the text."""

    tokens: Tokens
    top: Scope
    symbols: list[Symbol] = field(default_factory=list)
    occurrences: list[Occurrence] = field(default_factory=list)
    keywords: list[Keyword] = field(default_factory=list)
    members: list[tuple[Span, ast.Attribute, Scope]] = field(default_factory=list)  # `x.f`: the place of `f`
    scopes: list[Scope] = field(default_factory=list)
    entries: list[tuple[ast.Names, ast.NamePair]] = field(default_factory=list)
    calls: dict[tuple[int, int], ast.Call] = field(default_factory=dict)  # by the place of the callee, label aside

    def finish(self) -> "Table":
        self.occurrences.sort(key=lambda o: o.span.start)
        self.keywords.sort(key=lambda k: k.span.start)
        for symbol in self.symbols:
            symbol.uses = sorted(set(symbol.uses), key=lambda s: s.start)
        return self

    def at(self, offset: int) -> Occurrence | None:
        """The name whose text touches a character place: on it, or right after it."""
        last = bisect_right(self.occurrences, offset, key=lambda o: o.span.start)
        for found in reversed(self.occurrences[max(0, last - 2) : last]):
            if found.span.start <= offset <= found.span.end:
                return found
        return None

    def keyword(self, offset: int) -> Keyword | None:
        return next((k for k in self.keywords if k.span.start <= offset <= k.span.end), None)

    def member(self, offset: int) -> tuple[Span, ast.Attribute, Scope] | None:
        return next((m for m in self.members if m[0].start <= offset <= m[0].end), None)

    def scope(self, offset: int) -> Scope:
        """The innermost scope around a place."""
        inner = self.top
        for scope in self.scopes:
            if scope.span.start <= offset <= scope.span.end and scope.span.start >= inner.span.start:
                inner = scope
        return inner

    def visible(self, offset: int) -> Iterator[Symbol]:
        """The symbols that an expression at a place may name, inner ones first, hidden ones not."""
        seen: set[str] = set()
        at: Scope | None = self.scope(offset)
        while at is not None:
            for symbol in reversed(at.names.values()):
                early = at is self.top or symbol.span.end < offset
                if early and symbol.name not in seen and symbol.kind != "names":
                    seen.add(symbol.name)
                    yield symbol
            at = at.parent


def children(node: object) -> Iterator[ast.Node]:
    """The nodes right below a node, in the order of its fields."""
    stack = [getattr(node, name) for name in reversed(getattr(node, "__dataclass_fields__", ())) if name != "span"]
    while stack:
        at = stack.pop()
        if isinstance(at, ast.Node):
            yield at
        elif isinstance(at, tuple):
            stack.extend(reversed(at))


def table(module: ast.Module, tokens: Tokens) -> Table:
    """Every name of a file."""
    return _Walk(module, tokens).run()


class _Walk:
    """One walk over a file, statement after statement, as lowering would read it."""

    def __init__(self, module: ast.Module, tokens: Tokens) -> None:
        self.module, self.tokens = module, tokens
        whole = Span(module.span.source, 0, len(module.span.source.text))
        self.out = Table(tokens, Scope(whole))
        self.out.scopes.append(self.out.top)

    def run(self) -> Table:
        for item in self.module.items:
            self._declare(item, self.out.top)
        for item in self.module.items:
            self._item(item, self.out.top)
        return self.out.finish()

    # ---- declaring

    def _new(self, kind: str, name: str, span: Span | None, item: ast.Node, scope: Scope) -> Symbol | None:
        """A symbol of a scope; the first of a name at the top of a file, the last in a body."""
        if span is None:
            return None
        doc = item.doc if isinstance(item, ast.Item) else None
        made = Symbol(name, kind, span, item, scope, doc)
        if not (scope is self.out.top and name in scope.names):
            scope.names[name] = made
        self.out.symbols.append(made)
        self._use(span, name, made, item)
        return made

    def _use(self, span: Span | None, name: str, symbol: Symbol | None, node: ast.Node | None = None) -> None:
        if span is not None:
            self.out.occurrences.append(Occurrence(span, name, symbol, None, node))
            if symbol is not None:
                symbol.uses.append(span)

    def _scope(self, span: Span, parent: Scope, **facts: bool | str | None) -> Scope:
        made = Scope(span, parent, **facts)  # type: ignore[arg-type]  # the three flags, by name
        self.out.scopes.append(made)
        return made

    def _declare(self, item: ast.Item, scope: Scope) -> None:
        """The names that an item binds in the scope it stands in."""
        name = self.tokens.name
        match item:
            case ast.Let(bindings=bindings):
                for b in bindings:
                    made = self._new("let", b.name, name(b.span), b, scope)
                    if made is not None:
                        made.doc = item.doc
            case ast.Import(alias=alias, names=names):
                if alias:
                    self._new("file", alias, self.tokens.after(item.span.start, "as"), item, scope)
                listed = [t for t in self.tokens.within(item.span) if t.kind == "name"]
                for token in listed[len(listed) - len(names) :]:
                    self._new("import", token.text, self.tokens.span(token), item, scope)
            case ast.Declaration():
                self._new("component", item.name, name(item.span, 1), item, scope)
            case ast.Role():
                self._new("formula", item.name, name(item.span, 1), item, scope)
            case ast.Block(kind=kind):
                self._new(kind, item.name, name(item.span, 1), item, scope)
            case ast.ParamDecl():
                self._new("param", item.name, name(item.span, 1), item, scope)
            case ast.Names():
                self._use(name(item.span, 1), item.name, Symbol(item.name, "names", item.span, item, scope))

    # ---- items

    def _item(self, item: ast.Item, scope: Scope) -> None:
        """What stands within an item whose own name is declared."""
        match item:
            case ast.Let(bindings=bindings):
                for b in bindings:
                    self._value(b.name, b.value, scope)
            case ast.Declaration(kind=kind, base=base, changes=changes):
                self._kind(kind, self.tokens.name(item.span), item, scope)
                if base is not None:
                    self._expr(base, scope)
                self._settings(changes, base if base is not None else item, scope)
            case ast.Default(kind=kind, changes=changes):
                self._kind(kind, self.tokens.name(item.span, 1), item, scope)
                self._settings(changes, item, scope)
            case ast.Role(role=role, inputs=inputs, formula=formula):
                self._kind(role, self.tokens.name(item.span), item, scope)
                inner = self._scope(item.span, scope, role=role)
                self._inputs(inputs, inner, role)
                self._expr(formula, inner, role)
            case ast.Block():
                self._kind(item.kind, self.tokens.name(item.span), item, scope)
                inner = self._scope(item.span, scope, body=True, block=True)
                self._inputs(item.inputs, inner, None)
                self._body(item.body, inner)
            case ast.ParamDecl():
                self._param(item, scope)
            case ast.Names(entries=entries):
                self.out.entries.extend((item, pair) for pair in entries)

    def _kind(self, kind: str, span: Span | None, item: ast.Item, scope: Scope) -> None:
        """The word that opens a declaration: a block of the file, else of the library, else a word of the language."""
        symbol = scope.find(kind)
        fits = symbol is not None and symbol.kind in ("block", "component", "import", "input")
        self._use(span, kind, symbol if fits else None, item)

    def _param(self, item: ast.ParamDecl, scope: Scope) -> None:
        inner = self._scope(item.span, scope)
        for name, size in item.dims:
            self._expr(size, scope)
            if name:
                before = self.tokens.before(size.span.start)
                at = before - 1 if before > 0 and self.tokens.all[before].text == ":" else before
                self._new("index", name, self.tokens.span(self.tokens.all[at]), item, inner)
        if item.init is not None:
            self._expr(item.init, inner)
        self._settings(item.settings, item, scope)

    def _inputs(self, inputs: tuple[ast.Parameter, ...], scope: Scope, role: str | None) -> None:
        for wanted in inputs:
            if wanted.type is not None:
                self._type(wanted.type, wanted, scope)
            if wanted.default is not None:
                self._value(wanted.name, wanted.default, scope, role)
            self._new("input", wanted.name, self.tokens.name(wanted.span), wanted, scope)

    def _type(self, node: ast.Expr, wanted: ast.Parameter, scope: Scope) -> None:
        """`int[B, T]`: a capital name that is not known is a length, declared here."""
        if not isinstance(node, ast.Subscript):
            self._expr(node, scope)
            return
        self._expr(node.value, scope)
        for index in node.indices:
            if isinstance(index, ast.Name) and index.id[:1].isupper() and scope.find(index.id) is None:
                self._new("length", index.id, self.tokens.name(index.span), wanted, scope)
            else:
                self._expr(index, scope)

    # ---- bodies

    def _body(self, body: tuple[ast.Item, ...], scope: Scope) -> None:
        for item in body:
            match item:
                case ast.Equation():
                    self._equation(item, scope)
                case ast.Repeat():
                    self._expr(item.over, scope)
                    inner = self._scope(item.span, scope, body=True)
                    self._new("loop", item.name, self.tokens.after(item.over.span.end, "as"), item, inner)
                    self._body(item.body, inner)
                case ast.Return(value=value):
                    self._expr(value, scope)
                case ast.Report(name=name, value=value):
                    self._expr(value, scope)
                    self._use(self.tokens.name(item.span, 1), name, Symbol(name, "report", item.span, item, scope))
                case ast.Let(bindings=bindings):
                    for b in bindings:  # a binding of a body sees those before it
                        self._value(b.name, b.value, scope)
                        self._declare(replace(item, bindings=(b,)), scope)
                case _:
                    self._item(item, scope)
                    self._declare(item, scope)

    def _equation(self, item: ast.Equation, scope: Scope) -> None:
        inner = scope
        if item.indices is not None:
            inner = self._scope(item.span, scope)
            self._indices(item.indices, inner)
        self._expr(item.value, inner)
        span = self.tokens.name(item.span)
        known = self._assigned(item.target, scope)
        if known is None:
            known = self._new("local", item.target, span, item, scope)
        else:
            self._use(span, item.target, known, item)
        if known is not None:
            known.writes.append(item)

    def _indices(self, indices: tuple[ast.Expr, ...], scope: Scope) -> None:
        """The names that the head of an index equation or of a reducer binds."""
        for index in indices:
            match index:
                case ast.Index(name=name, size=size):
                    if size is not None:
                        self._expr(size, scope)
                case ast.Name(id=name):
                    pass
                case _:
                    self._expr(index, scope)
                    continue
            if name != "..":
                self._new("index", name, self.tokens.name(index.span), index, scope)

    def _assigned(self, name: str, scope: Scope) -> Symbol | None:
        """The tensor of this body, or of one around a loop, that an equation assigns anew."""
        at: Scope | None = scope
        while at is not None and at.body:
            found = at.names.get(name)
            if found is not None:
                return found if found.kind in ("local", "input") else None
            if at.block:
                return None
            at = at.parent
        return None

    # ---- expressions

    def _value(self, name: str, node: ast.Expr, scope: Scope, role: str | None = None) -> None:
        """The value of an input or attribute: what is called like a role is a formula of that role."""
        self._expr(node, scope, name if name in ROLES else role)

    def _settings(self, changes: tuple[ast.Setting, ...], owner: ast.Node, scope: Scope) -> None:
        for setting in changes:
            names = [t for t in self.tokens.within(setting.span) if t.kind == "name"]
            for i, (segment, token) in enumerate(zip(setting.path, names, strict=False)):
                span = self.tokens.span(token)
                self.out.keywords.append(Keyword(span, segment, owner, setting.path, i, setting, scope))
            self._value(setting.path[-1], setting.value, scope)

    def _expr(self, node: ast.Expr, scope: Scope, role: str | None = None) -> None:
        match node:
            case ast.Name(id=name):
                self._name(node, name, scope, role)
            case ast.Attribute(value=value, name=name):
                self._expr(value, scope, role)
                span = self.tokens.last(node.span)
                if span is not None:
                    self.out.members.append((span, node, scope))
            case ast.Label(value=value):
                self._expr(value, scope, role)
            case ast.Call():
                self._call(node, scope, role)
            case ast.Derived(base=base, changes=changes):
                self._expr(base, scope, role)
                self._settings(changes, base, scope)
            case _:
                for inner in children(node):
                    if isinstance(inner, ast.Expr):
                        self._expr(inner, scope, role)

    def _name(self, node: ast.Name, name: str, scope: Scope, role: str | None, *, called: bool = False) -> None:
        span = self.tokens.name(node.span)
        if name == ".." or span is None:
            return
        symbol = scope.find(name)
        bound = symbol is not None and (symbol.kind == "index" or symbol.scope.role is not None)
        if role in IMPLICIT and name in IMPLICIT[role] and not called and not bound:
            self.out.occurrences.append(Occurrence(span, name, None, role, node))
            return
        if called:
            symbol = self._called(name, symbol, scope)
        self._use(span, name, symbol, node)

    def _called(self, name: str, symbol: Symbol | None, scope: Scope) -> Symbol | None:
        """A tensor or an index hides no block: `norm = norm(x)` calls the outer one."""
        at: Scope | None = scope
        while symbol is not None and symbol.kind in ("local", "index", "length"):
            while at is not None and at.names.get(name) is not symbol:
                at = at.parent
            at = at.parent if at is not None else None
            outer = at.find(name) if at is not None else None
            if outer is None and all(isinstance(w, ast.Equation) for w in symbol.writes) and symbol.kind == "local":
                made = [w.value for w in symbol.writes if isinstance(w, ast.Equation)]
                return symbol if any(isinstance(v, ast.Name | ast.Derived) for v in made) else None
            symbol = outer
        return symbol

    def _call(self, node: ast.Call, scope: Scope, role: str | None) -> None:
        callee, inner = node.callee, scope
        match callee:
            case ast.Label(value=value, label=label):
                span = self.tokens.last(callee.span)
                made = Symbol(label, "label", span or callee.span, node, scope, callee=value)
                self.out.symbols.append(made)
                self._use(span, label, made, node)
                callee = value
            case ast.Subscript(value=value, indices=indices):
                inner = self._scope(node.span, scope)
                self._indices(indices, inner)
                callee = value
        self.out.calls[callee.span.start, callee.span.end] = node
        if isinstance(callee, ast.Name):
            self._name(callee, callee.id, scope, role, called=True)
        else:
            self._expr(callee, scope, role)
        for arg in node.arguments:
            if arg.name is not None:
                span = self.tokens.name(arg.span)
                if span is not None:
                    self.out.keywords.append(Keyword(span, arg.name, node, (arg.name,), 0, arg, scope))
            self._value(arg.name or "", arg.value, inner, role)
