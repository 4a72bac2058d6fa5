"""Where names come from besides the file at hand: the core words, the library's own text, imported files."""

import re
from functools import cache
from pathlib import Path

from tfc.diagnostics import Diagnostic, closest
from tfc.formula.expr import INFIX, PRIMITIVES
from tfc.grammar import ast
from tfc.grammar.lowering.core import FUNCTIONS
from tfc.grammar.lowering.formats import format_names
from tfc.grammar.lowering.scope import Define, FileScope, Scope
from tfc.grammar.lowering.session import LIBRARY, Session, fail
from tfc.grammar.lowering.values import NOTHING, Builtin, Failed, Meaning
from tfc.grammar.parser import parse, read_source
from tfc.ir.program import Init
from tfc.ir.types import DType
from tfc.source import Source

__all__ = ["MAX_IMPORTS", "Library", "core_scope", "imported", "library_blocks", "library_item", "library_items"]

MAX_IMPORTS = 16
"""How deep files may import files."""

_FOLDER = Path(__file__).parents[1] / "prelude"
_ITEM = re.compile(r"^(?:block|mask|score|weigh|position|feature|decay) ([a-z_][a-z0-9_]*)", re.MULTILINE)


def core_scope() -> Scope:
    """The words the compiler knows: types, constants, primitives, core functions, initializers, formats."""
    scope = Scope()
    scope.names.update({d.value: d for d in DType})
    scope.names.update({"yes": True, "no": False, "none": NOTHING, "inf": float("inf"), "pi": 3.141592653589793})
    scope.names.update({n: Init(n) for n in ("zeros", "ones", "glorot")})
    scope.names.update(format_names())
    for name in (*PRIMITIVES, *FUNCTIONS, "any", "all", "dot", "if"):
        if name not in INFIX:
            scope.names[name] = Builtin(name)
    return scope


# ---- the library


@cache
def library_items() -> dict[str, tuple[str, int, int]]:
    """Every name the library defines -> (file, start, end) of its item, its documentation included.

    Items are found by their first line, without parsing: a spec pays only for those it uses.
    """
    found: dict[str, tuple[str, int, int]] = {}
    for entry in sorted(_FOLDER.glob("*.tfm")):
        text = _library_text(entry.name)
        heads = list(_ITEM.finditer(text))
        starts = [_with_doc(text, m.start()) for m in heads]
        for match, start, end in zip(heads, starts, [*starts[1:], len(text)], strict=True):
            found[match.group(1)] = (entry.name, start, end)
    return found


@cache
def library_blocks() -> frozenset[str]:
    """The names of the library's blocks: its kinds."""
    texts = ((name, _library_text(file)[start:end]) for name, (file, start, end) in library_items().items())
    return frozenset(name for name, text in texts if re.search(rf"^block {name}\b", text, re.MULTILINE))


@cache
def _library_text(file: str) -> str:
    return (_FOLDER / file).read_text(encoding="utf-8")


def _with_doc(text: str, start: int) -> int:
    """Where the documentation before an item begins: lines that are strings, right above it."""
    while start > 0:
        above = text.rfind("\n", 0, start - 1) + 1
        if not text[above:start].startswith('"'):
            break
        start = above
    return start


@cache
def library_item(name: str) -> ast.Item:
    """One item, parsed alone; its places are those in its file. Raises RuntimeError where the library is broken."""
    file, start, end = library_items()[name]
    text = _library_text(file)
    blank = re.sub(r"[^\n]", " ", text[:start])
    version = "tfm 1"
    if len(blank) < len(version) or "\n" in blank[: len(version)]:
        raise RuntimeError(f"{file} does not begin with `{version}`")
    source = Source(LIBRARY + file, text)
    module, found = parse(Source(source.name, version + blank[len(version) :] + text[start:end]))
    if module is None:
        raise RuntimeError(f"the library's {name} does not parse: {found[0]}")
    (item,) = module.items
    return item


class Library(FileScope):
    """The library as a scope: an item is parsed when its name is first met."""

    def __init__(self, session: Session, define: Define, parent: Scope) -> None:
        super().__init__(session, define, parent, None, 0)

    def own(self, name: str) -> Meaning | None:
        if name not in self.names and name in library_items() and name not in self.items:
            item = library_item(name)
            self.items[name] = item
            self.origins[name] = item.span
        return super().own(name)

    def listed(self) -> list[str]:  # type: ignore[override]  # any iterable of names serves
        return list(library_items())


# ---- imports


def imported(
    item: ast.Import, name: str, scope: FileScope, opened: dict[Path, FileScope], chain: list[Path]
) -> Meaning:
    """What an import gives under a name: the file, or one item of it."""
    path = _resolve(item, scope)
    if path in chain:
        shown = " -> ".join(p.name for p in [*chain[chain.index(path) :], path])
        fail("E220", f"files import each other in a circle: {shown}", item.span)
    if len(chain) >= MAX_IMPORTS:
        fail("E220", f"imports within imports, more than {MAX_IMPORTS} levels deep", item.span)
    if path not in opened:
        seen = scope.session.seen
        source, found = read_source(path) if seen is None else seen.read(path)
        module = None
        if source is not None:
            module, found = parse(source)
        if module is None:
            for diagnostic in found:
                scope.session.report(diagnostic)
            raise Failed(Diagnostic("E220", f'"{item.path}" cannot be imported: {found[0].message}', item.span))
        opened[path] = FileScope(scope.session, scope.define, scope.parent, path.parent, scope.depth + 1)
        opened[path].add(module)
        chain.append(path)
        try:
            for inner in module.items:
                if isinstance(inner, ast.Import):
                    opened[path].own(inner.alias or inner.names[0])  # finds circles at once
        finally:
            chain.pop()
    file = opened[path]
    if name == item.alias:
        return file
    value = file.own(name)
    if value is None:
        near = closest(name, file.listed())
        fail("E201", f'"{item.path}" has no `{name}`', item.span, help=f"did you mean `{near}`?" if near else "")
    return value


def _resolve(item: ast.Import, scope: FileScope) -> Path:
    """The file an import names: in the folder of the file that imports it or below, nowhere else."""
    written = Path(item.path)
    if scope.folder is None:
        fail("E220", "a text without a file has no folder to import from", item.span, help="compile a path instead")
    if written.is_absolute() or ".." in written.parts or "\\" in item.path or ":" in item.path:
        fail("E220", f'"{item.path}" leaves the folder of this file', item.span,
             help="imports name a file beside this one, or below")  # fmt: skip
    folder = scope.folder.resolve()
    try:
        path = (folder / written).resolve()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name; links in a circle; a NUL byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "links in a circle"
        fail("E220", f'"{item.path}" cannot be read: {reason}', item.span)
    if not path.is_relative_to(folder):
        fail("E220", f'"{item.path}" is a link that leaves the folder of this file', item.span)
    if not there:
        near = closest(item.path, [p.name for p in folder.glob("*.tfm")][:1000])
        fail("E220", f'"{item.path}" does not exist beside this file', item.span,
             help=f'did you mean "{near}"?' if near else "")  # fmt: skip
    return path
