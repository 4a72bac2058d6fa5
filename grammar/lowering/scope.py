"""Names -> values: bodies within bodies, files, the library, the core; items are made on first use."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tfc.diagnostics import Diagnostic, Edit, Note, closest
from tfc.grammar import ast
from tfc.grammar.lowering.session import Session, fail
from tfc.grammar.lowering.values import POISON, Failed, Meaning, Poisoned
from tfc.source import Span

__all__ = [
    "IMPLICIT",
    "RESERVED",
    "ROLES",
    "Define",
    "FileScope",
    "Scope",
    "check_inputs",
    "name_span",
    "reserved",
    "unknown",
]

IMPLICIT: dict[str, frozenset[str]] = {
    "mask": frozenset(["q", "k", "h"]),
    "score": frozenset(["q", "k", "h", "s", "row"]),
    "weigh": frozenset(["q", "k", "h", "s", "p", "row"]),
    "position": frozenset(["pos", "c", "pairs"]),
    "feature": frozenset(["u", "c", "h"]),
    "decay": frozenset(["q", "h", "c"]),
}
"""The implicit variables of each role: q, k the tokens, h the query head, s the score, p its softmax, row statistics
of the row; pos a position, c a pair of channels, pairs how many there are; u a vector, c one of its features, or in a
decay one of the key's channels."""
ROLES = frozenset(IMPLICIT)
RESERVED = frozenset().union(*IMPLICIT.values())
"""Words that no `let` and no `param` may take: a formula could not read them."""


class Scope:
    """The names of a body (or of one turn of a loop), and the scope around it."""

    def __init__(self, parent: "Scope | None" = None) -> None:
        self.parent = parent
        self.names: dict[str, Meaning] = {}
        self.origins: dict[str, Span] = {}
        self.deferred: dict[str, Callable[[], Meaning]] = {}
        self.lost: dict[str, ast.Repeat] = {}  # names that only the turns of a loop know

    def find(self, name: str) -> Meaning | None:
        """What the name means here, or None. Raises Poisoned where it was complained about before."""
        at: Scope | None = self
        while at is not None:
            found = at.own(name)
            if found is POISON:
                raise Poisoned
            if found is not None:
                return found
            at = at.parent
        return None

    def own(self, name: str) -> Meaning | None:
        if name in self.deferred:
            self.names[name] = self.deferred.pop(name)()
        return self.names.get(name)

    def origin(self, name: str) -> Span | None:
        """Where the name got its value."""
        at: Scope | None = self
        while at is not None:
            if name in at.origins:
                return at.origins[name]
            at = at.parent
        return None

    def loop_of(self, name: str) -> ast.Repeat | None:
        """The loop whose turns alone know the name."""
        at: Scope | None = self
        while at is not None and name not in at.lost:
            at = at.parent
        return at.lost[name] if at is not None else None

    def bind(self, name: str, value: Meaning, span: Span) -> None:
        self.names[name] = value
        self.origins[name] = span

    def defer(self, name: str, make: Callable[[], Meaning], span: Span) -> None:
        """Bind a name to what `make` gives when it is first read: a parameter exists where it is used."""
        self.names.pop(name, None)
        self.deferred[name] = make
        self.origins[name] = span

    def known(self) -> Iterator[str]:
        """Every name that could have been meant."""
        at: Scope | None = self
        while at is not None:
            yield from at.listed()
            at = at.parent

    def listed(self) -> Iterator[str]:
        yield from self.names
        yield from self.deferred


Define = Callable[["FileScope", ast.Item, str], Meaning]


class FileScope(Scope):
    """The top of a file: each item is evaluated when its name is first asked for.

    folder: where its imports are looked up, None for a text without a file.
    """

    def __init__(self, session: Session, define: Define, parent: Scope | None, folder: Path | None, depth: int) -> None:
        super().__init__(parent)
        self.session, self.define, self.folder, self.depth = session, define, folder, depth
        self.items: dict[str, ast.Item] = {}
        self.choices: dict[str, tuple[Meaning, ...]] = {}  # what a `choice` offers, once evaluated
        self.making: list[str] = []

    def add(self, module: ast.Module) -> None:
        """The items of a parsed file; complains about names declared twice or reserved."""
        for item in module.items:
            for name, span in _declares(item):
                if name in self.items:
                    note = Note(f"`{name}` is declared first here", dict(_declares(self.items[name]))[name])
                    self.session.report(Diagnostic("E202", f"`{name}` is declared twice", span, notes=(note,)))
                    continue
                if name in RESERVED and isinstance(item, ast.Let | ast.ParamDecl):
                    self.session.report(reserved(name, span))
                if isinstance(item, ast.Role):
                    for fault in check_inputs(item):
                        self.session.report(fault)
                self.items[name] = item
                self.origins[name] = span

    def own(self, name: str) -> Meaning | None:
        if name in self.names:
            return self.names[name]
        item = self.items.get(name)
        if item is None:
            return None
        if name in self.making:
            cycle = " -> ".join([*self.making[self.making.index(name) :], name])
            fail("E209", f"`{name}` is defined by itself: {cycle}", self.origins[name])
        self.making.append(name)
        try:
            self.names[name] = self.define(self, item, name)
        except Failed as failed:
            self.session.report(failed.diagnostic)
            self.names[name] = POISON
        except Poisoned:
            self.names[name] = POISON
        finally:
            self.making.pop()
        return self.names[name]

    def override(self, lets: dict[str, tuple[Meaning, Span]]) -> "FileScope":
        """The same file with other values for some of its `let`s; nothing evaluated yet."""
        copy = FileScope(self.session, self.define, self.parent, self.folder, self.depth)
        copy.items = self.items
        copy.origins = dict(self.origins)
        for name, (value, span) in lets.items():
            copy.bind(name, value, span)
        return copy

    def lets(self) -> Iterator[str]:
        for name, item in self.items.items():
            if isinstance(item, ast.Let):
                yield name

    def listed(self) -> Iterator[str]:
        yield from self.items


def _declares(item: ast.Item) -> Iterator[tuple[str, Span]]:
    """The names an item declares, with their places."""
    match item:
        case ast.Let(bindings=bindings):
            yield from ((b.name, b.span) for b in bindings)
        case ast.Import(alias=alias, names=names):
            yield from ((n, item.span) for n in ([alias] if alias else []))
            yield from ((n, item.span) for n in names)
        case ast.Declaration() | ast.ParamDecl() | ast.Role() | ast.Block():
            yield item.name, name_span(item)
    return


def name_span(item: ast.Declaration | ast.ParamDecl | ast.Role | ast.Block) -> Span:
    """Where an item's own name stands: its first occurrence after the word that opens the item."""
    text = item.span.text
    match item:
        case ast.ParamDecl():
            opener = "param"
        case ast.Role(role=opener) | ast.Declaration(kind=opener) | ast.Block(kind=opener):
            pass
    start = text.find(opener) + len(opener)
    at = text.find(item.name, max(start, 0))
    if at < 0:
        return item.span
    return Span(item.span.source, item.span.start + at, item.span.start + at + len(item.name))


def check_inputs(item: ast.Role) -> Iterator[Diagnostic]:
    """Inputs of a formula that would hide its implicit variables."""
    for given in item.inputs:
        if given.name in IMPLICIT[item.role]:
            yield reserved(given.name, given.span)


def reserved(name: str, span: Span) -> Diagnostic:
    return Diagnostic(
        "E203", f"`{name}` is reserved: in formulas it has a meaning of its own", span, help="choose another name"
    )


def unknown(node: ast.Name, scope: Scope, extra: frozenset[str] = frozenset()) -> Diagnostic:
    """A name that means nothing, with the nearest that does."""
    if node.id in RESERVED:
        roles = [role for role, names in IMPLICIT.items() if node.id in names]
        return Diagnostic(
            "E302", f"`{node.id}` means something only in formulas ({', '.join(roles)})", node.span,
            help="an input or attribute called like a role takes a formula: `score = ..`",
        )  # fmt: skip
    near = closest(node.id, {*scope.known(), *extra}) if len(node.id) > 1 else ""  # `x` is near to nothing
    if not near:
        return Diagnostic("E201", f"`{node.id}` is not known here", node.span)
    return Diagnostic(
        "E201", f"`{node.id}` is not known here", node.span,
        help=f"did you mean `{near}`?", edits=(Edit(node.span, near),),
    )  # fmt: skip
