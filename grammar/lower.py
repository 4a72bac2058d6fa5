"""The tree of a file -> its program in the IR, its checkpoint names and `let`s: the entered model, written out."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from tfc.diagnostics import Diagnostic, Edit, TfcError, closest
from tfc.grammar import ast
from tfc.grammar.lowering import calls
from tfc.grammar.lowering.again import Calls
from tfc.grammar.lowering.assemble import Builder
from tfc.grammar.lowering.changes import check_reached
from tfc.grammar.lowering.check import check_names
from tfc.grammar.lowering.choices import alternatives, check_chosen
from tfc.grammar.lowering.components import component_of
from tfc.grammar.lowering.evaluate import argument, derive, evaluate
from tfc.grammar.lowering.inputs import type_of
from tfc.grammar.lowering.library import Library, core_scope, imported
from tfc.grammar.lowering.names import names_map
from tfc.grammar.lowering.params import make_param
from tfc.grammar.lowering.scope import FileScope, Scope, name_span
from tfc.grammar.lowering.seen import Seen
from tfc.grammar.lowering.session import LIMITS, Frame, Session, fail, is_library, refuse
from tfc.grammar.lowering.statements import run_body
from tfc.grammar.lowering.values import (
    POISON,
    Builtin,
    Component,
    Enough,
    Failed,
    Meaning,
    Nothing,
    Place,
    Poisoned,
    RoleRef,
    Tensor,
    describe,
)
from tfc.grammar.parser import parse
from tfc.ir.names import NamesMap
from tfc.ir.program import Program
from tfc.ir.types import Dim, DType, Size, TensorType
from tfc.source import Source, Span

__all__ = ["Lowered", "lower"]


@dataclass(frozen=True, slots=True)
class Lowered:
    """What a file means: the entered model's program, checkpoint names, `let`s after overriding, warnings.

    choices: what the `let`s of this file that are a `choice` offer, the default first.
    """

    program: Program
    names: Mapping[str, NamesMap] = field(default_factory=dict)
    lets: Mapping[str, object] = field(default_factory=dict)
    doc: str = ""
    warnings: tuple[Diagnostic, ...] = ()
    choices: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


def lower(
    module: ast.Module,
    sets: Mapping[str, object] | None = None,
    model: str | None = None,
    folder: Path | None = None,
    seen: Seen | None = None,
) -> Lowered:
    """Lower the entered model: the one named, else the last of the file.

    sets: other values for `let`s of this file, as values or as text (`"2"`, `"bf16"`). folder: where imports are
    looked up. seen: filled with what lowering comes across, for editors. Raises TfcError with every complaint found.
    """
    session = Session(sets=sets or {}, inline=calls.inline, apply=calls.apply, calls=Calls(), seen=seen)
    with _deep_enough():
        try:
            work = _Lowering(session, module, folder)
            lowered = work.run(model)
            if seen is None:
                work.close()
        except Failed as failed:
            session.report(failed.diagnostic)
            lowered = None
        except (Poisoned, Enough):
            lowered = None
        except RecursionError:
            session.report(Diagnostic("E504", "nested too deeply to be understood", module.span))
            lowered = None
    if session.diagnostics or lowered is None:
        from tfc.grammar.lowering.mend import mended  # most specs need none, and it takes long to load

        raise TfcError(*mended(sorted(session.diagnostics, key=_in_text_order), module))
    return replace(lowered, warnings=tuple(session.warnings))


def _in_text_order(found: Diagnostic) -> tuple[str, int]:
    return (found.span.source.name, found.span.start) if found.span else ("", 0)


@contextmanager
def _deep_enough() -> Iterator[None]:
    """Room for expressions within blocks within blocks, all limited: about 12 frames a level, 100 levels a body."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 20_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class _Lowering:
    """One file on its way: its scope, the root of its parameters, the frame of its top."""

    def __init__(self, session: Session, module: ast.Module, folder: Path | None) -> None:
        self.session, self.module = session, module
        self.opened: dict[Path, FileScope] = {}
        self.chain: list[Path] = []
        self.builder = Builder()
        self.root = session.root = Place("", self.builder)
        self.library = Library(session, self.define, core_scope())
        self.scope = FileScope(session, self.define, self.library, folder, 0)
        self.scope.add(module)
        self.overridden: set[str] = set()

    def frame(self, scope: Scope) -> Frame:
        return Frame(session=self.session, scope=scope, place=self.root, builder=self.builder)

    def close(self) -> None:
        """Drops what was written and is a program now: a deep model's equations and places would wait for Python's
        collector, as a builder and the tensors of its parameters hold each other, and scopes and calls the session."""
        for builder in (self.builder, *self.session.builders):
            builder.eqns.clear()
            builder.params.clear()
            builder.constants.clear()
        self.root.below.clear()
        self.session.calls.known.clear()
        self.session.calls.components.clear()

    # ---- items

    def define(self, scope: FileScope, item: ast.Item, name: str) -> Meaning:
        """The value of an item of a file, when its name is first met."""
        frame = self.frame(scope)
        match item:
            case ast.Let(bindings=bindings):
                binding = next(b for b in bindings if b.name == name)
                offered = alternatives(binding.value, frame)
                value = evaluate(binding.value, frame) if offered is None else offered[0]
                if offered is not None:
                    scope.choices[name] = offered
                if scope is self.scope and name in self.session.sets:
                    value = self._override(name, value, binding, frame)
                    if offered is not None:
                        check_chosen(name, value, offered, binding.span)
                return value
            case ast.Block():
                return Component(item, scope, name)
            case ast.Declaration():
                return component_of(item, frame)
            case ast.Role():
                return RoleRef(item, scope)
            case ast.ParamDecl():
                return make_param(item, frame)
            case ast.Import():
                return imported(item, name, scope, self.opened, self.chain)
        raise AssertionError(f"{type(item).__name__} declares no name")

    def _override(self, name: str, value: Meaning, binding: ast.Binding, frame: Frame) -> Meaning:
        """A value given from outside, of the kind that the file gives."""
        given = self.session.sets[name]
        self.overridden.add(name)
        new = _from_text(given, frame, name) if isinstance(given, str) and not isinstance(value, str) else given
        if isinstance(new, list):
            new = tuple(new)
        if isinstance(value, float) and isinstance(new, int) and not isinstance(new, bool):
            return float(new)
        callables = (Nothing, Component, Builtin)
        if type(new) is not type(value) and not (isinstance(new, callables) and isinstance(value, callables)):
            wanted = describe(value)
            span = binding.span
            fail("E308", f"`{name}` is {wanted} here; {describe(new)} was given from outside", span,
                 help=f"give a value of the same kind, for example {name}={binding.value.span.text}")  # fmt: skip
        return new

    # ---- the whole

    def run(self, name: str | None) -> Lowered:
        self._check_sets()
        self._precision()
        self._defaults()
        check_names(self.module, self.scope, self.session)
        for item in self.module.items:
            self._touch(item)
        entered, component = self._model(name)
        block = component.block
        frame = self._enter(component, entered)
        if self.session.seen is not None:
            self.session.seen.enter(block, self.root, frame.scope)
        result = run_body(block.body, frame, block)
        check_reached(frame, component.name)
        program = self.builder.finish(
            component.name, _results(result, entered), self.session.precision, _doc(entered, block)
        )  # fmt: skip
        _check_total(program, entered)
        self._warn()
        named, stored = [i for i in self.module.items if isinstance(i, ast.Names)], program.stored()
        maps = {i.name: names_map(i, stored, self.frame(self.scope)) for i in named}
        lets = {n: self.scope.own(n) for n in self.scope.lets()}
        return Lowered(program, maps, lets, program.doc, choices=dict(self.scope.choices))

    def _touch(self, item: ast.Item) -> None:
        """Evaluate an item of the file though nothing may use it, for its complaints."""
        names: list[str] = []
        match item:
            case ast.Let(bindings=bindings):
                names = [b.name for b in bindings]
            case ast.Declaration(name=name):
                names = [name]
            case ast.Import(alias=alias, names=inner):
                names = [*([alias] if alias else []), *inner]
            case ast.Role(inputs=()):
                self._check_role(item)
        for name in names:
            self.scope.own(name)

    def _check_role(self, item: ast.Role) -> None:
        """The kind of a formula without inputs."""
        try:
            call = ast.Name(id=item.name, span=item.formula.span)
            argument(item.role, call, self.frame(self.scope))
        except Failed as failed:
            self.session.report(failed.diagnostic)
        except Poisoned:
            pass

    def _check_sets(self) -> None:
        lets = list(self.scope.lets())
        for name in self.session.sets:
            if name not in lets:
                near = closest(name, lets)
                have = ", ".join(lets) or "none"
                help = f"did you mean `{near}`?" if near else f"its lets: {have}"
                self.session.report(Diagnostic("E211", f"this file has no `let {name}` to override", None, help=help))

    def _precision(self) -> None:
        """`default precision { params = f32   compute = bf16   reduce = f32 }`."""
        for item in self.module.items:
            if not (isinstance(item, ast.Default) and item.kind == "precision"):
                continue
            for setting in item.changes:
                key = ".".join(setting.path)
                known = ("params", "compute", "reduce")
                try:
                    if key not in known:
                        near = closest(key, known)
                        span = Span(setting.span.source, setting.span.start, setting.span.start + len(key))
                        fail("E204", f"precision has no `{key}`", span, help=f"it has {', '.join(known)}",
                             edits=(Edit(span, near),) if near else ())  # fmt: skip
                    value = evaluate(setting.value, self.frame(self.scope))
                    if not isinstance(value, DType) or not value.floating:
                        fail("E305", f"`{key}` is bf16, f16, f32 or f64, not {describe(value)}", setting.value.span)
                    self.session.precision = replace(self.session.precision, **{key: value})
                except Failed as failed:
                    self.session.report(failed.diagnostic)
                except Poisoned:
                    pass

    def _defaults(self) -> None:
        """`default linear { biased = yes }`: for every use of the kind."""
        for item in self.module.items:
            if not isinstance(item, ast.Default) or item.kind == "precision":
                continue
            try:
                kind = self.scope.find(item.kind)
                if not isinstance(kind, Component):
                    near = closest(item.kind, [*self.scope.known(), "precision"])
                    fail("E205", f"the kind `{item.kind}` is not known", item.span,
                         help=f"did you mean `{near}`?" if near else "")  # fmt: skip
                derived = derive(
                    Component(kind.block, kind.scope, kind.name), item.changes, item.span, self.frame(self.scope)
                )
                self.session.defaults.append((kind.block, derived.changes))
            except Failed as failed:
                self.session.report(failed.diagnostic)
            except Poisoned:
                pass

    # ---- the model

    def _model(self, name: str | None) -> tuple[ast.Block | ast.Declaration, Component]:
        models = [i for i in self.module.items if isinstance(i, ast.Block | ast.Declaration) and i.kind == "model"]
        if not models:
            fail("E210", "this file has no model to enter", _first_line(self.module.span),
                 help="`model name(tokens: int[B, T]) { .. }`")  # fmt: skip
        found = [i for i in models if name is None or i.name == name]
        if not found:
            near = closest(str(name), [i.name for i in models])
            have = ", ".join(i.name for i in models)
            raise Failed(Diagnostic("E210", f"this file has no model `{name}`", None,
                                    help=f"did you mean `{near}`?" if near else f"it has {have}"))  # fmt: skip
        value = self.scope.find(found[-1].name)
        if not isinstance(value, Component):
            raise Poisoned  # declared twice, which has been said
        return found[-1], value

    def _enter(self, component: Component, entered: ast.Block | ast.Declaration) -> Frame:
        """The frame of the model's body, its typed inputs declared and the others bound."""
        block = component.block
        changes = {c.path: c for c in component.changes}
        scope = Scope(calls.with_lets(component, changes))
        frame = replace(self.frame(scope), active=(block,), inside=calls.inside(block, changes))
        for wanted in block.inputs:
            try:
                if wanted.type is not None:
                    scope.bind(wanted.name, self._input(wanted, frame), wanted.span)
                elif (wanted.name,) in changes or wanted.default is not None:
                    calls.bind_input(wanted, {}, ({}, changes), component, frame, entered.span)
                else:
                    at = name_span(entered) if is_library(wanted.span.source) else wanted.span
                    fail("E206", f"the input `{wanted.name}` of a model needs a type, or a default", at,
                         help=f"`{wanted.name}: int[B, T]`, `{wanted.name}: real[B, T, 64]`")  # fmt: skip
            except Failed as failed:
                self.session.report(failed.diagnostic)
                scope.bind(wanted.name, POISON, wanted.span)
        return frame

    def _input(self, wanted: ast.Parameter, frame: Frame) -> Tensor:
        written = type_of(wanted, frame)
        sizes: list[Size] = []
        for size in written.sizes:
            if isinstance(size, str):
                frame.scope.bind(size, Dim.named(size), wanted.span)
                sizes.append(Dim.named(size))
            else:
                sizes.append(size)
        default: Size | None = None
        if wanted.default is not None:
            value = evaluate(wanted.default, frame)
            if written.dtype is not DType.I32:
                axes = wanted.type.span.text.removeprefix("bool") if wanted.type else ""
                number = f"`{wanted.name}: int{axes} = 1`, and where it is read, `{wanted.name} == 1`"
                refuse(f"a default of an input of type {written.dtype}", wanted.default.span,
                       number if written.dtype is DType.BOOL else "")  # fmt: skip
            if not isinstance(value, int | Dim) or isinstance(value, bool):
                fail(
                    "E305", f"the default of a model's input is a number or a length, not {describe(value)}",
                    wanted.default.span, help="for example `lengths: int[B] = T`",
                )  # fmt: skip
            if isinstance(value, int) and not 0 <= value < 2**31:
                fail("E402", f"the default of `{wanted.name}` is {value}", wanted.default.span,
                     help="it is a whole number from 0 to 2 ^ 31 - 1, or a length")  # fmt: skip
            default = value
        return self.builder.input(TensorType(tuple(sizes), written.dtype), wanted.name, wanted.span, default)

    def _warn(self) -> None:
        """Unlabelled second uses that own weights: their paths are numbers that an edit may shift."""
        for use in self.session.numbered:
            if next(use.place.owned(), None) is None:
                continue
            segment = use.place.path.rsplit(".", 1)[-1]
            label = f"{use.written}@{segment}"
            message = f"this use of `{use.written}` has no label; its weights are called `{use.place.path}`"
            help = f"a label keeps the name when uses are added: `{label}`"
            edits = (Edit(use.span, label),)
            self.session.report(Diagnostic("W901", message, use.span, help=help, severity="warning", edits=edits))


def _results(result: Meaning, entered: ast.Block | ast.Declaration) -> tuple[Tensor, ...]:
    """What the model gives: one tensor, or several in a list."""
    parts = result if isinstance(result, tuple) else (result,)
    for part in parts:
        if not isinstance(part, Tensor):
            among = "a list with " if isinstance(result, tuple) else ""
            fail(
                "E305", f"the model `{entered.name}` returns {among}{describe(part)}, not a tensor", name_span(entered)
            )
    if not parts:
        fail("E305", f"the model `{entered.name}` returns an empty list", name_span(entered))
    return tuple(part for part in parts if isinstance(part, Tensor))


def _check_total(program: Program, entered: ast.Block | ast.Declaration) -> None:
    """All parameters together, every turn of a loop with its own."""
    counts = {s.path: prod(n for n in s.type.shape if isinstance(n, int)) for s in program.stored()}
    if (total := sum(counts.values())) > LIMITS["elements"]:
        most = max(counts, key=lambda path: counts[path])
        fail("E502", f"the parameters of `{entered.name}` have {total:_} elements; {LIMITS['elements']:_} are allowed",
             name_span(entered), help=f"`{most}` has {counts[most]:_} of them")  # fmt: skip


def _first_line(span: Span) -> Span:
    """Where a complaint about a whole file points."""
    return Span(span.source, 0, max(1, len(span.source.line(1))))


def _doc(entered: ast.Block | ast.Declaration, block: ast.Block) -> str:
    return entered.doc or block.doc or ""


def _from_text(given: str, frame: Frame, name: str) -> Meaning:
    """A value from outside as text, read as the language reads it."""
    module, _ = parse(Source(f"--set {name}", f"tfm 1 let given = {given}\n"))
    items = module.items if module else ()
    if len(items) != 1 or not isinstance(items[0], ast.Let) or len(items[0].bindings) != 1:
        raise Failed(Diagnostic("E308", f"`{given}` is no value for `{name}`", None))
    return evaluate(items[0].bindings[0].value, frame)
