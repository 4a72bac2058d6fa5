"""What an expression of the language can be: numbers, sizes, tensors, formulas, components, with their origins."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tfc.diagnostics import Diagnostic
from tfc.formula.expr import Expr, Kind
from tfc.grammar import ast
from tfc.ir.formats import Fit, Format, FormatKind
from tfc.ir.program import Eqn, Init, Value
from tfc.ir.types import Dim, DType, TensorType
from tfc.record import record
from tfc.source import Span

if TYPE_CHECKING:
    from tfc.grammar.lowering.assemble import Builder
    from tfc.grammar.lowering.scope import Scope

__all__ = [
    "NOTHING",
    "POISON",
    "Builtin",
    "Change",
    "Component",
    "Enough",
    "Factors",
    "Failed",
    "Formula",
    "Given",
    "Kept",
    "Meaning",
    "Nothing",
    "Place",
    "Poison",
    "Poisoned",
    "RoleRef",
    "Tensor",
    "describe",
    "is_number",
    "is_static",
]


class Failed(Exception):
    """One complaint on its way to the statement that catches it."""

    def __init__(self, diagnostic: Diagnostic) -> None:
        super().__init__(diagnostic)
        self.diagnostic = diagnostic


class Enough(Exception):
    """A limit of the whole run is passed, and that has been said: nothing more is worth looking at."""


class Poisoned(Exception):
    """Something that was complained about already is used again: stop, but say nothing twice."""


@record(frozen=True, slots=True, eq=False)
class Tensor:
    """A value of the program being built, in the builder that owns it, with the fields its tokens carry.

    fields: arrays [B, T, ...] or [T, ...] for a tensor [B, T, ...].   span: where the user made it, for notes.
    chosen: where the number of heads was chosen, for a tensor split into heads.
    tokens: of a field that a body reads (`x.keep`), how many of its first axes are those of the tokens: with a tensor
    of these tokens it is aligned there, not at the last axis.
    factors: of a matrix that is kept as a thin product.
    """

    value: Value
    home: "Builder"
    span: Span
    fields: Mapping[str, "Tensor"] = field(default_factory=dict)
    chosen: Span | None = None
    tokens: int = 0
    factors: "Factors | None" = None

    @property
    def type(self) -> TensorType:
        return self.value.type

    def at(self, span: Span) -> "Tensor":
        """The same, made at another place."""
        return Tensor(self.value, self.home, span, self.fields, self.chosen, self.tokens, self.factors)

    def same(self, other: "Tensor") -> bool:
        return self.value is other.value and self.home is other.home

    def carries(self, fields: Mapping[str, "Tensor"]) -> bool:
        """Whether its tokens carry these fields and no others."""
        return self.fields.keys() == fields.keys() and all(f.same(fields[n]) for n, f in self.fields.items())


@dataclass(frozen=True, slots=True)
class Factors:
    """base + scale * left right; without a base, left right alone.   base: [K, O]   left: [K, r]   right: [r, O]"""

    left: Tensor
    right: Tensor
    base: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula on its way into an operation.

    Its slots are numbers of the session's table of captured tensors; kind is None until fields are bound.
    size counts nodes and depth levels, so that limits are kept without walking.
    """

    expr: Expr
    kind: Kind | None
    span: Span = field(compare=False)
    size: int = 1
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Change:
    """`heads = 4` of a derivation, its value already known. path has several segments for `q.biased = yes`."""

    path: tuple[str, ...]
    value: "Meaning"
    span: Span = field(compare=False)  # of the value
    setting: Span = field(compare=False)  # of the whole

    def key(self, segment: str) -> Span:
        """Where a segment of the path is written."""
        start = self.setting.start + max(0, self.setting.text.find(segment))
        return Span(self.setting.source, start, start + len(segment))


@dataclass(frozen=True, slots=True)
class Component:
    """A block with some of its inputs fixed. place is set where a body declared it: then its weights exist once."""

    block: ast.Block
    scope: "Scope"
    name: str = field(compare=False)
    changes: tuple[Change, ...] = ()
    place: "Place | None" = None

    def __repr__(self) -> str:
        return f"<{self.block.kind} {self.name}>"


@dataclass(frozen=True, slots=True)
class RoleRef:
    """A declared mask, score, weigh, position, feature or decay, and where its names are looked up."""

    decl: ast.Role
    scope: "Scope"


@dataclass(frozen=True, slots=True)
class Builtin:
    """A core function or a primitive."""

    name: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A format of the language: what numbers are kept in, and the procedure that finds them, where one is named."""

    format: Format
    fit: Fit | None = None

    def __str__(self) -> str:
        return f"{self.format} by {self.fit}" if self.fit else str(self.format)


@dataclass(frozen=True, slots=True)
class Given:
    """An argument of a call: its value, and how it was written."""

    value: "Meaning"
    argument: ast.Argument

    @property
    def node(self) -> ast.Expr:
        return self.argument.value

    @property
    def span(self) -> Span:
        return self.argument.value.span


class Nothing:
    """`none`."""


class Poison:
    """Stands for a value that could not be made; using it raises `Poisoned`."""


NOTHING: Final = Nothing()
POISON: Final = Poison()

type Meaning = (
    bool | int | float | str | Dim | DType | Init | tuple[Meaning, ...] | Tensor | Formula | Component | RoleRef
    | Builtin | Nothing | Poison | Scope | Kept | FormatKind | Fit
)  # fmt: skip
"""Every value; bool, int, float, str, sizes, dtypes, lists, formats and components are known while compiling.

A FormatKind is a format whose settings must be given first (`low_rank`)."""


@dataclass(slots=True, eq=False)
class Place:
    """A spot in the tree of parameters: what a body owns. Calls and declarations make the ones below it.

    builder: where its parameters are created.   home: of a `repeat` or a `route` that exists, the builder around its
    body.   made: the operation that has these copies for itself.   stacks: by path, where several operations read them.
    """

    path: str
    builder: "Builder"
    params: dict[str, Tensor] = field(default_factory=dict)
    below: dict[str, "Place"] = field(default_factory=dict)
    home: "Builder | None" = None
    made: Eqn | None = None
    stacks: dict[str, Tensor] = field(default_factory=dict)

    def join(self, segment: str) -> str:
        return f"{self.path}.{segment}" if self.path else segment

    def under(self, segment: str) -> "Place":
        """The place below, made where it is new."""
        found = self.below.get(segment)
        if found is None:
            found = self.below[segment] = Place(self.join(segment), self.builder)
        return found

    def owned(self) -> Iterator[Tensor]:
        """Every parameter here and below."""
        yield from self.params.values()
        for place in self.below.values():
            yield from place.owned()


def is_number(value: object) -> bool:
    """An int or a float; a boolean is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_STATIC = (bool, int, float, str, tuple, Dim, DType, Nothing, Builtin, Component, Init, Kept, FormatKind, Fit)


def is_static(value: object) -> bool:
    """Known while compiling, and comparable."""
    return isinstance(value, _STATIC)


def describe(value: object) -> str:
    """A value in the words of a message."""
    match value:
        case bool():
            return "`yes`" if value else "`no`"
        case int() | float():
            return f"the number {value}"
        case str():
            return f'the text "{value}"'
        case Dim():
            return f"the length {value}"
        case DType():
            return f"the type {value}"
        case Init():
            return f"the initializer {value}"
        case tuple():
            return f"a list of {len(value)}"
        case Tensor():
            return f"a tensor {value.type}"
        case Formula():
            return f"a formula ({value.kind})" if value.kind else "a formula"
        case Component():
            return f"the {value.block.kind} `{value.name}`"
        case RoleRef(decl):
            return f"the {decl.role} `{decl.name}`"
        case Builtin(name):
            return f"the function `{name}`"
        case Nothing():
            return "`none`"
        case Kept() | FormatKind():
            return f"the format {value.name if isinstance(value, FormatKind) else value}"
        case Fit():
            return f"the fitting procedure {value}"
    return "a file"
