"""What lowering comes across, kept for editors: what each expression of a user's text means, and what every call owns.

Off unless asked for: `tfc check` and the compiler keep nothing of this.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tfc.diagnostics import Diagnostic
from tfc.grammar import ast
from tfc.grammar.lowering.values import Component, Meaning, Place, Tensor, describe
from tfc.grammar.parser import read_source
from tfc.source import Source, Span

if TYPE_CHECKING:
    from tfc.grammar.lowering.scope import Scope

__all__ = ["Entered", "Opened", "Seen"]

MOST = 4
"""Different meanings of one expression that are kept: a block called with many shapes has as many."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A place in the tree of parameters, and the call, declaration or loop that opened it."""

    node: ast.Node
    place: Place
    component: Component | None = None  # None for a loop


@dataclass(frozen=True, slots=True)
class Entered:
    """One run of a block's body: its place, and its inputs and the lengths in their types, by name."""

    place: Place
    inputs: Mapping[str, Meaning]


@dataclass(slots=True)
class Seen:
    """The record of one run of lowering, or of several. Keys are places: (name of the source, start, end).

    read: how imported files are read; an editor gives the texts that it has not saved.
    """

    read: Callable[[Path], tuple[Source | None, list[Diagnostic]]] = read_source
    values: dict[tuple[str, int, int], dict[str, Meaning]] = field(default_factory=dict)
    bound: dict[tuple[str, int, str], dict[str, Meaning]] = field(default_factory=dict)
    opened: dict[str, list[Opened]] = field(default_factory=dict)
    entered: dict[tuple[str, int], list[Entered]] = field(default_factory=dict)

    def note(self, span: Span, value: Meaning) -> None:
        """What an expression means where it was just evaluated."""
        key = (span.source.name, span.start, span.end)
        _keep(self.values.setdefault(key, {}), value)

    def bind(self, item: ast.Item, name: str, value: Meaning | None) -> None:
        """What a statement has just bound to a name."""
        if value is not None:
            _keep(self.bound.setdefault((item.span.source.name, item.span.start, name), {}), value)

    def open(self, node: ast.Node, place: Place, component: Component | None) -> None:
        """A call, declaration or loop has this place."""
        known = self.opened.setdefault(place.path, [])
        if all(o.node is not node or o.component is not component for o in known) and len(known) < 100:
            known.append(Opened(node, place, component))

    def enter(self, block: ast.Block, place: Place, scope: "Scope") -> None:
        """A body is about to run, its inputs bound."""
        known = self.entered.setdefault((block.span.source.name, block.span.start), [])
        if len(known) < 100:
            known.append(Entered(place, dict(scope.names)))


def _keep(known: dict[str, Meaning], value: Meaning) -> None:
    if len(known) < MOST:
        said = describe(value)
        if isinstance(value, Tensor) and value.fields:
            said += f" {sorted(value.fields)}"
        known.setdefault(said, value)
