"""A spec turned into what laws ask about: its programs in two precisions, parameters and inputs drawn from their types.

The *wide* form is the same text with `precision` at float64 throughout: what rounding can hide in the declared
precision shows there.
"""

import os
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.emit import Emitted, emit
from tfc.backends.kernel import Target
from tfc.backends.reach import check_reach, indexed
from tfc.backends.reference.program import evaluate
from tfc.diagnostics import Diagnostic, TfcError
from tfc.front import source_of
from tfc.grammar import ast
from tfc.grammar.lower import Lowered, lower
from tfc.grammar.parser import parse
from tfc.ir.param_map import IDENTITY, ParamMap
from tfc.ir.program import Eqn, Precision, Program
from tfc.ir.types import Dim, DType, IRError
from tfc.ir.verify import verify
from tfc.params.apply import failing_guards, pack
from tfc.params.initial import initial
from tfc.passes import pipeline
from tfc.source import Source
from tfc.testing.interpreted import Draw, Traced, interpreted, mark

__all__ = ["MOST", "WIDE", "Array", "Claims", "Form", "Inapplicable", "Refused", "Subject", "Tree", "bits"]

Array = np.ndarray[Any, np.dtype[Any]]
Tree = Mapping[str, Any]

WIDE = Precision(DType.F64, DType.F64, DType.F64)
MOST = 20_000_000
"""Parameters that a model may have: each law holds several copies, of eight bytes an element."""

SIZES = (6, 8, 16, 12, 4, 32, 64, 3, 2, 1)
"""Lengths other than the batch's that are tried, until the program is one with them."""


class Inapplicable(Exception):
    """The law says nothing about this spec; the message says why."""


class Refused(Exception):
    """What the law is about refuses this spec in words; the message is what it says."""


@dataclass(frozen=True)
class Form:
    """A program before and after the passes."""

    lowered: Program
    result: pipeline.Result

    @property
    def program(self) -> Program:
        return self.result.program

    @property
    def map(self) -> ParamMap:
        return self.result.map


def bits(*words: str | int) -> list[int]:
    """A seed for numpy made of words: the same in every process."""
    return [b for w in words for b in str(w).encode()]


@dataclass(frozen=True, slots=True)
class Claims:
    """What an author says of a spec and the laws cannot know: no later token matters (`causal`); the input `documents`
    says which text a token of a packed row is of, `place` where in it."""

    causal: bool = False
    documents: str | None = None
    place: str | None = None


class Subject:
    """A spec to be judged.

    spec: a path or a text. sets: values of its `let`s. lengths: numbers for the inputs' lengths, where the default, 2
    rows of 6 tokens, will not do. target: whose kernels are judged. claims: what its author says of it.
    Raises TfcError for a spec that is none, for lengths that fit nowhere (E702), for a model of too many parameters.
    """

    def __init__(
        self,
        spec: str | os.PathLike[str],
        sets: Mapping[str, object] | None = None,
        lengths: Mapping[str, int] | None = None,
        seed: int = 0,
        target: Target | None = None,
        claims: Claims | None = None,
    ) -> None:
        self.claims = claims or Claims()
        self.spec, self.sets, self.seed = spec, dict(sets or {}), seed
        self.target = target or Target(name="cpu", platform="cpu")
        self.source, self.folder = source_of(spec)
        module, found = parse(self.source)
        if module is None or any(d.severity == "error" for d in found):
            raise TfcError(*found)
        self.module = module
        self.narrow = self._form(module)
        self.lengths = self._lengths(lengths or {})
        self.kept: dict[str, Any] = {}
        """What laws have measured and others ask for again."""
        count = sum(int(np.prod(s.type.ints)) for s in self.narrow.lowered.stored())
        if count > MOST:
            fact = f"{self.narrow.lowered.name} has {count:,} parameters; laws are checked on at most {MOST:,}"
            raise TfcError(Diagnostic("E725", fact, help="make it small: --set layers=2,width=64, by its own `let`s"))
        tree: Any = self.params
        self.held = frozenset(g.site for g in failing_guards(self.narrow.map, tree))
        """Sites where these parameters do not allow a pass."""
        if self.held:
            self.narrow = self._form(module, self.held)

    def __str__(self) -> str:
        sets = "".join(f" {k}={v}" for k, v in self.sets.items())
        return f"{self.source.name}{sets}, {' '.join(f'{k}={v}' for k, v in self.lengths.items())}"

    # --- programs

    def lower(self, module: ast.Module) -> Lowered:
        return lower(module, self.sets, None, self.folder)

    def _form(self, module: ast.Module, hold: frozenset[str] = frozenset()) -> Form:
        program = self.lower(module).program
        return Form(program, _passed(program, hold))

    @cached_property
    def wide(self) -> Form:
        """The spec in float64. Raises Inapplicable where the text does not leave the precision open."""
        text = "tfm 1\ndefault precision { params = f64   compute = f64   reduce = f64 }\n"
        (asked,) = parse(Source("<precision>", text))[0].items  # type: ignore[union-attr]  # the text is right
        rest = [i for i in self.module.items if not (isinstance(i, ast.Default) and i.kind == "precision")]
        first = sum(isinstance(i, ast.Import) for i in rest)
        form = self._form(replace(self.module, items=(*rest[:first], asked, *rest[first:])), self.held)
        if form.lowered.precision != WIDE:
            raise Inapplicable("an imported file fixes the precision")
        return form

    def passed_again(self) -> "Subject":
        """The same spec after the passes as they are now; what has been computed of the lowered program is kept.

        Raises whatever a pass raises.
        """
        again = copy(self)
        again.kept = dict(self.kept)
        again.narrow, again.wide = (Form(f.lowered, _passed(f.lowered, self.held)) for f in (self.narrow, self.wide))
        return again

    def _lengths(self, given: Mapping[str, int]) -> dict[str, int]:
        program = self.narrow.lowered
        sizes = [s for i in program.inputs for s in i.value.type.shape if isinstance(s, Dim)]
        names = list(dict.fromkeys(n for s in sizes for n in s.names))
        reasons: list[Exception] = []
        for size in SIZES:
            found = {n: given.get(n, 2 if n == "B" else size) for n in names}
            try:
                bound = self.narrow.program.bind(found)
                verify(bound)
                check_reach(bound)
            except (IRError, TfcError, ValueError) as error:
                reasons.append(error)
                continue
            if all(n >= 1 for i in bound.inputs for n in i.value.type.ints):
                return found
        fact = f"no lengths among {', '.join(map(str, SIZES))} fit {program.name}: {reasons[-1] if reasons else ''}"
        raise TfcError(Diagnostic("E702", fact, help=f"name them: --shape {','.join(f'{n}=8' for n in names)}"))

    # --- arrays

    @cached_property
    def params(self) -> dict[str, Array]:
        """By path: float32 numbers near those that the model starts with, no element 0 where the start is not."""
        stored = self.narrow.lowered.stored()
        found = initial(stored, jax.random.key(self.seed))
        out = {}
        for s in stored:
            rng = np.random.default_rng(bits(self.seed, s.path))
            own = s.type.ints[len(s.repeats) :]
            start: Array = np.asarray(found[s.path], np.float32)
            if s.trained:
                deep = own[-2] if len(own) > 1 else 1
                start = start * rng.uniform(0.7, 1.3, start.shape)
                start = start + min(0.3, deep**-0.5) * rng.standard_normal(start.shape)
            out[s.path] = start.astype(np.float32)
        return out

    @cached_property
    def inputs(self) -> dict[str, Array]:
        """By name: small whole numbers (below the rows of the table that they index), lengths, normal numbers."""
        rows = {use.input: use.rows for use in reversed(indexed(self.narrow.lowered))}
        bound = self.narrow.lowered.bind(self.lengths)
        out: dict[str, Array] = {}
        for i in bound.inputs:
            name, kind = i.value.name, i.value.type
            rng = np.random.default_rng(bits(self.seed, "input", name))
            if kind.dtype is DType.BOOL:
                out[name] = rng.integers(0, 2, kind.ints) > 0
            elif kind.dtype.floating:
                out[name] = rng.standard_normal(kind.ints).astype(np.float32)
            elif name in self.limits:
                assert isinstance(i.default, int), "lengths are bound"
                out[name] = rng.integers(1, i.default + 1, kind.ints).astype(np.int32)
            elif i.default is not None:  # a field: which text, which place
                out[name] = np.sort(rng.integers(0, min(3, rows.get(name, 3)), kind.ints), axis=-1).astype(np.int32)
            else:
                out[name] = rng.integers(0, min(64, rows.get(name, 5)), kind.ints).astype(np.int32)
        if self.claims.documents in out and self.claims.place in out:
            for row, place in zip(out[self.claims.documents], out[self.claims.place], strict=True):
                place[:] = np.arange(place.size) - np.searchsorted(row, row)  # they begin anew in each text
        return out

    @property
    def limits(self) -> dict[str, str]:
        """Inputs that say how many tokens of a row count, each with the length that it is when left out."""
        declared = self.narrow.lowered.inputs
        return {i.value.name: str(i.default) for i in declared if isinstance(i.default, Dim)}

    # --- values

    def arrays(self, form: Form, map: ParamMap | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters (through the map) and inputs as the form takes them."""
        wide = form.lowered.precision == WIDE
        kinds = {s.path: s.type.dtype for s in form.lowered.stored()}
        params = {p: jnp.asarray(x, np.float64 if wide else _numpy(kinds[p])) for p, x in self.params.items()}
        return (pack(map, params) if map else params), self.given(form, self.inputs)

    @staticmethod
    def given(form: Form, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs in the types that the form declares."""
        kinds = {i.value.name: i.value.type.dtype for i in form.lowered.inputs}
        return {name: jnp.asarray(x, _numpy(kinds[name])) for name, x in inputs.items()}

    def emitted(self, form: Form) -> Emitted:
        """The form for the target. Raises Refused where no backend runs it."""
        try:
            return emit(form.program, self.target)
        except TfcError as error:
            raise Refused(str(error.diagnostics[0].message)) from None

    def run(self, form: Form, inputs: Mapping[str, Any] | None = None, params: Tree | None = None) -> tuple[Array, ...]:
        """The results and reports of the form by the target's kernels, on a CPU traced, and evaluated by numpy."""
        own, given = self.arrays(form, form.map)
        taken = given if inputs is None else self.given(form, inputs)
        return tuple(np.asarray(x) for x in self.called(self.emitted(form), own if params is None else params, taken))

    def called(self, f: Any, *args: Any) -> Any:
        """A kernel's function: jitted on a device; on a CPU traced, once for arguments of one shape."""
        if self.target.platform != "cpu":
            return jax.jit(f)(*args)
        shapes = tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(args))
        key = f"{id(getattr(f, 'program', f))} {shapes}"
        if key not in self.kept:
            self.kept[key] = Traced(f, *args), f
        return self.kept[key][0](*args)

    def defined(self, program: Program, map: ParamMap = IDENTITY) -> tuple[Array, ...]:
        """The results and reports of a program by the definitions, in float64."""
        params, given = self.arrays(self.wide, map)
        bound = program.bind(self.lengths)
        found: Any = interpreted(lambda p, x: evaluate(bound, p, x, jnp.float64))(params, given)
        return tuple(found)

    @cached_property
    def _meaning(self) -> Traced:
        bound = self.wide.lowered.bind(self.lengths)
        return Traced(lambda p, x: evaluate(bound, p, x, jnp.float64, _marked), *self.arrays(self.wide))

    @cached_property
    def values(self) -> tuple[Array, ...]:
        """What the spec means: the lowered program by the definitions."""
        return tuple(self._meaning(*self.arrays(self.wide)))

    @cached_property
    def _slopes(self) -> Traced:
        bound = self.wide.lowered.bind(self.lengths)
        params, given = self.arrays(self.wide)
        return Traced(self.pulled(lambda p, x: evaluate(bound, p, x, jnp.float64, _marked)), params, given)

    @cached_property
    def gradients(self) -> dict[str, Array]:
        """In float64 by the definitions, of a random sum of the results: by path, and by real input."""
        return self._slopes(*self.arrays(self.wide))  # type: ignore[no-any-return]  # a dict, as it was traced

    def rounded(self, draw: Draw, gradients: bool = False) -> Any:
        """Values, or gradients, with what equations read rounded at random."""
        return (self._slopes if gradients else self._meaning)(*self.arrays(self.wide), draw=draw)

    @cached_property
    def cotangents(self) -> tuple[Array, ...]:
        rng = np.random.default_rng(bits(self.seed, "cotangents"))
        return tuple(np.asarray(rng.standard_normal(x.shape)) for x in self.values)

    def pulled(self, f: Any) -> Any:
        """(params, inputs) -> gradients of the random sum of f's results that are real, by path and `input name`."""

        cotangents = self.cotangents  # computed before anything is traced

        def pulled(p: Any, x: Any) -> dict[str, Any]:
            real = {n: v for n, v in x.items() if jnp.issubdtype(v.dtype, jnp.floating)}
            out, pull = jax.vjp(lambda p, r: f(p, {**x, **r}), p, real)
            by_params, by_inputs = pull(tuple(_cotangent(c, y) for c, y in zip(cotangents, out, strict=True)))
            return {**by_params, **{f"input {n}": g for n, g in by_inputs.items()}}

        return pulled

    def kernel_gradients(self, form: Form) -> dict[str, Array]:
        """Gradients through the target's kernels and the passes' map."""
        f, (params, given) = self.emitted(form), self.arrays(form)
        pulled = self.pulled(lambda p, x: f(pack(form.map, p), x))
        found = (Traced(pulled, params, given) if self.target.platform == "cpu" else jax.jit(pulled))(params, given)
        return {k: np.asarray(x) for k, x in found.items()}


def _marked(eqn: Eqn, operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Marks what an equation reads with the mantissa of its declared type."""
    pairs = zip(eqn.args, operands, strict=True)
    return tuple(mark(x, MANTISSA[a.type.dtype]) if a.type.dtype in MANTISSA else x for a, x in pairs)


MANTISSA: Mapping[DType, int] = {DType.F64: 52, DType.F32: 23, DType.F16: 10, DType.BF16: 8 - 1}


def _passed(program: Program, hold: frozenset[str]) -> pipeline.Result:
    return pipeline.run(program, (*pipeline.opening(program), *pipeline.DEFAULT), hold)


def _cotangent(c: Array, y: Any) -> Any:
    floating = jnp.issubdtype(y.dtype, jnp.floating)
    return jnp.asarray(c, y.dtype) if floating else np.zeros(y.shape, jax.dtypes.float0)


def _numpy(dtype: DType) -> Any:
    from tfc.backends.kernel import DTYPES

    return DTYPES[dtype]
