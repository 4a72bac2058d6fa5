"""What a run of lowering knows and counts: complaints, captured tensors, limits, defaults; the frame of a body."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from tfc.diagnostics import Diagnostic, Edit, Note
from tfc.formula.expr import Expr, FormulaError
from tfc.grammar import ast
from tfc.grammar.lowering.assemble import Builder
from tfc.grammar.lowering.values import Change, Enough, Failed, Meaning, Place, Tensor
from tfc.ir.ops import Op
from tfc.ir.program import Init, Precision
from tfc.ir.types import Dim, IRError, Size
from tfc.source import Source, Span

if TYPE_CHECKING:
    from tfc.grammar.lowering.again import Calls
    from tfc.grammar.lowering.scope import Scope
    from tfc.grammar.lowering.seen import Seen

__all__ = ["LIBRARY", "LIMITS", "Frame", "Session", "Use", "counted", "fail", "is_library", "refuse"]

LIMITS: Mapping[str, int] = {
    "operations": 10_000,  # equations of the whole program, repeat bodies once
    "calls": 3_000,  # block calls inlined
    "depth": 64,  # calls within calls
    "formula nodes": 2_000,
    "formula depth": 100,
    "turns": 100_000,  # of one `repeat` that stays a loop
    "turns written out": 20_000,  # of all others
    "list": 10_000,
    "size": 256,  # named lengths in a symbolic size
    "table": 100_000,  # elements of a parameter computed from its formula
    "elements": 2**48,  # of one parameter
    "names": 100_000,  # of a checkpoint, loops written out
    "complaints": 50,  # that are kept, as many warnings besides
}
"""What a spec may ask of the compiler; each has its diagnostic."""


LIBRARY = "tfc:prelude/"
"""How the names of the library's own sources begin."""


def is_library(source: Source) -> bool:
    """Whether a text is the library's: complaints about it are shown at the user's call."""
    return source.name.startswith(LIBRARY)


def fail(
    code: str, message: str, span: Span, *, help: str = "", notes: tuple[Note, ...] = (), edits: tuple[Edit, ...] = ()
) -> NoReturn:
    """Raise a complaint, to be collected by the statement it stands in."""
    raise Failed(Diagnostic(code, message, span, help=help, notes=notes, edits=edits))


def counted(count: int, what: str) -> str:
    """`1 input`, `3 inputs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def refuse(what: str, span: Span, help: str = "") -> NoReturn:
    """Something the language has and this compiler has not."""
    fail("E503", f"{what} is not built yet", span, help=help)


@dataclass(slots=True)
class Use:
    """A segment taken by a call or a declaration in one body: where, and whether the author chose the name."""

    span: Span
    place: Place
    written: str = ""  # the callee, where the segment was numbered by us


@dataclass(slots=True)
class Session:
    """State that every part of lowering shares. `inline` calls a block as an expression says, `apply` with arguments
    that are known already; `calls` repeats what others made. lower.py, which knows all parts, sets them."""

    precision: Precision = field(default_factory=Precision)
    sets: Mapping[str, object] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)
    captures: list[Tensor] = field(default_factory=list)
    _slots: dict[int, list[int]] = field(default_factory=dict)
    lengths: dict[str, Dim] = field(default_factory=dict)  # what index equations read as numbers, by name
    spans: dict[int, tuple[Expr, Span]] = field(default_factory=dict)  # id of a formula node -> the node, its place
    defaults: list[tuple[ast.Block, tuple[Change, ...]]] = field(default_factory=list)
    numbered: list[Use] = field(default_factory=list)
    root: Place | None = None
    counts: dict[str, int] = field(default_factory=dict)
    paths: dict[str, int] = field(default_factory=dict)  # how often `numbered_path` gave a path
    tables: dict[object, Init] = field(default_factory=dict)  # initial values that several layers have
    loops: dict[int, str] = field(default_factory=dict)  # id of a loop's builder -> the loop's path
    builders: list[Builder] = field(default_factory=list)  # kept alive, so that ids stay their own
    seen: "Seen | None" = None  # what editors ask for
    inline: Callable[..., Meaning] = field(default=None)  # type: ignore[assignment]  # set before anything runs
    apply: Callable[..., Meaning] = field(default=None)  # type: ignore[assignment]  # as `inline`
    calls: "Calls" = field(default=None)  # type: ignore[assignment]  # as `inline`; what calls made so far

    def report(self, diagnostic: Diagnostic) -> None:
        """Keep a complaint; the same one at the same place only once, however often its block is called."""
        kept = self.diagnostics if diagnostic.severity == "error" else self.warnings
        if any((d.code, d.span, d.message) == (diagnostic.code, diagnostic.span, diagnostic.message) for d in kept):
            return
        if len(kept) < LIMITS["complaints"]:
            kept.append(diagnostic)
        elif kept is self.diagnostics:
            raise Enough

    def count(self, what: str, span: Span) -> None:
        """One more of something that is limited."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] > LIMITS[what]:
            help = "is a block called far too often?"
            self.report(Diagnostic("E502", f"more than {LIMITS[what]} {what}", span, help=help))
            raise Enough

    def slot(self, tensor: Tensor) -> int:
        """The number under which formulas read a tensor until an operation binds it."""
        alike = self._slots.setdefault(id(tensor.value), [])  # a captured tensor keeps its value, and so its id, alive
        for i in alike:
            known = self.captures[i]
            if known.same(tensor) and known.carries(tensor.fields):
                return i
        self.captures.append(tensor)
        alike.append(len(self.captures) - 1)
        return alike[-1]

    def numbered_path(self, path: str) -> str:
        """A path of its own: the path itself, or numbered from 2 where it is taken."""
        n = self.paths[path] = self.paths.get(path, 0) + 1
        return path if n == 1 else f"{path}_{n}"

    def length(self, size: Dim, taken: Container[str]) -> str:
        """The name under which index equations read a length as a number; `taken` are names of indices."""
        for name, known in self.lengths.items():
            if known == size and name not in taken:
                return name
        plain = str(size) if len(size.terms) == 1 and str(size).isidentifier() else ""
        name = plain if plain and plain not in taken and plain not in self.lengths else f"size_{len(self.lengths) + 1}"
        self.lengths[name] = size
        return name

    def place_of(self, node: Expr, span: Span) -> None:
        """Remember where a formula node was written; the node is kept alive, so its id stays its own."""
        self.spans[id(node)] = (node, span)


@dataclass(slots=True)
class Frame:
    """Where evaluation stands: the names in scope, who owns new parameters, which program takes new operations.

    formula: operators build formulas, not operations.   allowed: implicit variables that may be read here.
    bound: implicit variables bound by name (`softcap(30, s = logits)`).   indices: those of an index equation.
    ranges: how far each of them goes, None where that is not written; reducers add theirs.
    site: the call in the user's own text, while the text of the library runs.
    """

    session: Session
    scope: "Scope"
    place: Place
    builder: Builder
    uses: dict[str, Use] = field(default_factory=dict)
    role: str | None = None
    formula: bool = False
    allowed: frozenset[str] = frozenset()
    bound: Mapping[str, Meaning] = field(default_factory=dict)
    indices: Mapping[str, Expr] = field(default_factory=dict)
    ranges: dict[str, tuple[Size, Span] | None] | None = None
    site: Span | None = None
    inside: tuple[Change, ...] = ()  # changes to segments within this body
    seen_inside: set[str] = field(default_factory=set)
    later: frozenset[str] = frozenset()  # names that the loops around may read after this body, or in the next turn
    active: tuple[ast.Role | ast.Block, ...] = ()
    reported: dict[str, Span] = field(default_factory=dict)  # side outputs of this body, and where

    def at(self, span: Span) -> Span:
        """The place to blame: the span itself, or the user's call where it is the library's text."""
        return self.site if self.site and is_library(span.source) else span

    def open(self, segment: str, callee: ast.Expr, label: str | None, written: str) -> Place:
        """A new place for a use of a recipe, named by its label or segment, numbered where the segment is taken.

        written: the callee without a label, for the edit that gives one.
        """
        taken = self.uses.get(segment)
        if taken is not None and label:
            fail("E208", f"the label `{label}` is used twice in this body", callee.span,
                 help="a label names one use", notes=(Note("it is used here already", taken.span),))  # fmt: skip
        name, n = segment, 1
        while name in self.uses:
            n += 1
            name = f"{segment}_{n}"
        place = self.place.under(name)
        self.uses[name] = Use(callee.span, place, written if n > 1 else "")
        if n > 1 and not is_library(callee.span.source):
            self.session.numbered.append(self.uses[name])
        return place

    def enter(self, decl: ast.Role | ast.Block, span: Span) -> tuple[ast.Role | ast.Block, ...]:
        """The calls that are open, one more among them; too many are a call of itself without an end."""
        if len(self.active) >= LIMITS["depth"]:
            names = list(dict.fromkeys(d.name for d in self.active[-4:]))
            help = f"does `{names[0]}` call itself?" if len(names) == 1 else f"{' -> '.join(names)} -> .."
            fail("E504", f"calls within calls, more than {LIMITS['depth']} levels deep", self.at(span), help=help)
        return (*self.active, decl)

    def blame(self, node: ast.Expr) -> Span:
        """The place where a value was chosen: for a name, where it was given; else the expression itself."""
        origin = self.scope.origin(node.id) if isinstance(node, ast.Name) else None
        return self.at(node.span) if origin is None or is_library(origin.source) else origin

    def emit(
        self, op: Op, args: tuple[Tensor, ...], span: Span, hint: str, fields: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """One operation. A misfit is reported with every operand's type and origin."""
        self.session.count("operations", self.at(span))
        for arg in args:
            if not self.builder.holds(arg):
                fail(
                    "E213",
                    f"a tensor {arg.type} made inside a `repeat` is read outside it",
                    self.at(span),
                    notes=(Note("it is made here", arg.span),),
                )
        try:
            return self.builder.emit(op, args, self.at(span), hint, fields)
        except (IRError, FormulaError) as error:
            notes = tuple(Note(f"{a.type} comes from here", a.span) for a in args)
            fail("E401", str(error), self.at(span), notes=notes)
