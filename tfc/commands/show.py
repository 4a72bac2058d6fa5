"""`tfc show`: a spec -> its syntax tree, or its program after lowering or after a pass, as text."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import click

from tfc.diagnostics import TfcError
from tfc.source import Span

__all__ = ["show", "tree"]


def show(file: str, sets: Mapping[str, str], after: str | None) -> int:
    """Prints and returns the exit code."""
    if after == "parse":
        from tfc.grammar.parser import parse, read_source

        source, faults = read_source(file)
        module = None
        if source is not None:
            module, faults = parse(source)
        if module is None or any(d.severity == "error" for d in faults):
            raise TfcError(*faults)
        click.echo("\n".join(tree(module)))
        return 0
    from tfc.front import front
    from tfc.ir.text import show as text

    result = front(file, sets).result
    click.echo(text(result.program if after is None else result.after(after)), nl=False)
    return 0


def tree(node: Any, label: str = "", indent: int = 0) -> Iterator[str]:
    """A syntax tree as lines: a node's class, its plain fields beside it, its children below, places left out."""
    pad, head = "  " * indent, f"{label}: " if label else ""
    if is_dataclass(node) and not isinstance(node, type | Span):
        plain: list[tuple[str, Any]] = []
        deep: list[tuple[str, Any]] = []
        for f in fields(node):
            value = getattr(node, f.name)
            if isinstance(value, Span) or value is None or value == () or value == "" or not f.compare:
                continue
            (deep if is_dataclass(value) or isinstance(value, tuple) else plain).append((f.name, value))
        yield pad + head + " ".join([type(node).__name__, *(f"{n}={v!r}" for n, v in plain)])
        for name, value in deep:
            yield from tree(value, name, indent + 1)
    elif isinstance(node, tuple):
        yield pad + f"{label}:"
        for item in node:
            yield from tree(item, "", indent + 1)
    else:
        yield pad + head + repr(node)
