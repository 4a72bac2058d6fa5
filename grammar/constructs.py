"""A file's tree -> the constructs of the language that it uses: what the table of constructs against systems counts.

`python -m tfc.grammar.constructs FOLDER` writes the table of all specs under a folder into its README.md.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tfc.grammar import ast
from tfc.grammar.parser import parse
from tfc.source import Source

__all__ = ["CONSTRUCTS", "constructs", "kinds", "table"]

HEADING = "| construct | systems | which |\n"

ROLES = ("mask", "score", "weigh", "position", "feature", "decay")


def _role(name: str) -> Callable[[ast.Node], bool]:
    def matches(node: ast.Node) -> bool:
        match node:
            case ast.Role(role=role) | ast.Declaration(kind=role):
                return role == name
            case ast.Setting(path=(*_, last)):
                return last == name
            case ast.Argument(name=given):
                return given == name
        return False

    return matches


def _calls(name: str) -> Callable[[ast.Node], bool]:
    def matches(node: ast.Node) -> bool:
        match node:
            case ast.Call(callee=ast.Name(id=callee)) | ast.Call(callee=ast.Label(value=ast.Name(id=callee))):
                return callee == name
        return False

    return matches


def _sets(name: str) -> Callable[[ast.Node], bool]:
    """An attribute, an argument or an input's default of that name."""

    def matches(node: ast.Node) -> bool:
        match node:
            case ast.Setting(path=(*_, given)) | ast.Argument(name=given):
                return given == name
        return False

    return matches


CONSTRUCTS: Mapping[str, Callable[[ast.Node], bool]] = {
    "`let`": lambda n: isinstance(n, ast.Let),
    "`choice`": _calls("choice"),
    "component `KIND name { .. }`": lambda n: isinstance(n, ast.Declaration) and n.base is None,
    "derivation `KIND name = base`": lambda n: isinstance(n, ast.Declaration) and n.base is not None,
    "change in place `base { .. }`": lambda n: isinstance(n, ast.Derived),
    "change deep inside `a.b = ..`": lambda n: isinstance(n, ast.Setting) and len(n.path) > 1,
    "`block`": lambda n: isinstance(n, ast.Block) and n.kind != "model",
    "`model`": lambda n: getattr(n, "kind", "") == "model",
    "typed input": lambda n: isinstance(n, ast.Parameter) and n.type is not None,
    "label `f@name`": lambda n: isinstance(n, ast.Label),
    "`param`": lambda n: isinstance(n, ast.ParamDecl),
    "`param` with a named dimension": lambda n: isinstance(n, ast.ParamDecl) and any(d for d, _ in n.dims),
    "`trained = no`": _sets("trained"),
    "`fit`": _sets("fit"),
    "`repeat`": lambda n: isinstance(n, ast.Repeat),
    "`repeat` a list": lambda n: isinstance(n, ast.Repeat) and any(isinstance(m, ast.List) for m in walk(n.over)),
    "list": lambda n: isinstance(n, ast.List),
    **{f"`{role}`": _role(role) for role in ROLES},
    "field `x.f`": lambda n: isinstance(n, ast.Attribute),
    "`tag`": _calls("tag"),
    "index equation": lambda n: isinstance(n, ast.Equation) and n.indices is not None,
    "range of an index": lambda n: isinstance(n, ast.Index) and n.size is not None,
    "reducer": lambda n: isinstance(n, ast.Call) and isinstance(n.callee, ast.Subscript),
    "`if`": _calls("if"),
    "`attend`": _calls("attend"),
    "`weights`, `mix`": lambda n: _calls("weights")(n) or _calls("mix")(n),
    "`recur`": _calls("recur"),
    "`route`": _calls("route"),
    "`top`": _calls("top"),
    "`pick`": _calls("pick"),
    "`append`, `part`": lambda n: _calls("append")(n) or _calls("part")(n),
    "`cut`, `concat`": lambda n: _calls("cut")(n) or _calls("concat")(n),
    "`stop`": _calls("stop"),
    "`straight`": _calls("straight"),
    "`calibrated`": _calls("calibrated"),
    "`rounded`, `weights =`, `inputs =`": lambda n: _calls("rounded")(n) or _sets("weights")(n) or _sets("inputs")(n),
    "`default`": lambda n: isinstance(n, ast.Default),
    "`import`": lambda n: isinstance(n, ast.Import),
    "`names`": lambda n: isinstance(n, ast.Names),
    "`report`": lambda n: isinstance(n, ast.Report),
    "documentation": lambda n: isinstance(n, ast.Item) and n.doc is not None,
}
"""Each construct as the table shows it, and whether a node of the tree uses it."""


def walk(node: object) -> Iterator[ast.Node]:
    """Every node, in no order."""
    stack = [node]
    while stack:
        at = stack.pop()
        if isinstance(at, ast.Node):
            yield at
            stack.extend(getattr(at, f) for f in at.__dataclass_fields__ if f != "span")
        elif isinstance(at, tuple):
            stack.extend(at)


def constructs(module: ast.Module) -> frozenset[str]:
    """The constructs that a file uses itself; what the prelude does for it is not counted."""
    nodes = [_resolved(node, module) for node in walk(module)]
    return frozenset(name for name, uses in CONSTRUCTS.items() if any(map(uses, nodes)))


def _resolved(node: ast.Node, module: ast.Module) -> ast.Node:
    """A `repeat` over a name as one over the value that a `let` of the file gives the name."""
    if isinstance(node, ast.Repeat) and isinstance(node.over, ast.Name):
        lets = {b.name: b.value for i in module.items if isinstance(i, ast.Let) for b in i.bindings}
        return replace(node, over=lets.get(node.over.id, node.over))
    return node


def kinds(module: ast.Module) -> frozenset[str]:
    """The kinds that a file declares components of."""
    declared = (n for n in walk(module) if isinstance(n, ast.Declaration | ast.Block))
    return frozenset(f"kind `{n.kind}`" for n in declared)


def table(folder: Path) -> str:
    """The table of constructs and kinds against the specs under a folder, as Markdown."""
    used: dict[str, frozenset[str]] = {}
    for path in sorted(folder.rglob("*.tfm")):
        module, faults = parse(Source(str(path), path.read_text(encoding="utf-8")))
        if module is None or faults:
            raise ValueError(f"{path} cannot be parsed")
        used[path.stem] = constructs(module) | kinds(module)
    rows = []
    found_kinds = sorted({name for found in used.values() for name in found if name not in CONSTRUCTS})
    for name in (*CONSTRUCTS, *found_kinds):
        systems = [system for system, found in used.items() if name in found]
        shown = ", ".join(systems) if len(systems) <= 12 else f"{', '.join(systems[:12])}, .."
        rows.append(f"| {name} | {len(systems)} | {shown} |")
    return HEADING + "\n".join(["|---|---|---|", *rows]) + "\n"


def write(folder: Path) -> None:
    """Put the table into the folder's README.md, in place of the one that is there."""
    page = folder / "README.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(text[: text.index(HEADING)] + HEADING + table(folder).removeprefix(HEADING), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
