"""A trained model's parameters -> those of another spec: copied where the paths are the same, else fitted.

What another spec keeps as a thin product is fitted to the matrix of that path; other kinds of fits are entries of
`FITTING`. What neither has a place for is refused in words: nothing is dropped, and nothing starts at random, but for
the thin product that `lora` puts beside a matrix, at the start zero.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax

from tfc.attended import hash_functions
from tfc.calibration import Batch, Gram, Reducer, statistics
from tfc.diagnostics import Diagnostic, TfcError, closest
from tfc.ir.param_map import Call, Source
from tfc.ir.program import Stored
from tfc.model import Model, Packed
from tfc.params import tree
from tfc.params.apply import Made, evaluate
from tfc.params.files import few
from tfc.params.initial import initial
from tfc.passes.observe import Which, linear_inputs

__all__ = ["FITS", "FITTING", "Fitting", "Trained", "convert"]

Array = jax.Array
FITS = ("svd", "activation_svd")
"""What finds a thin product where the spec names nothing."""
DAMP = 0.01


@dataclass(frozen=True)
class Trained:
    """What there is: a model, its parameters by path, and the calibration data, read again for each kind of statistic.

    real: as in `tfc.calibration.statistics`.
    """

    model: Model
    params: Mapping[str, Array]
    batches: Sequence[Batch] = ()
    real: Callable[[Mapping[str, Any]], Any] | None = None
    key: Array | None = None
    progress: bool = True

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        return {s.path: s for s in self.model.lowered.stored()}

    def statistics(self, which: Which, reduce: Reducer[Any, Any]) -> dict[str, Any]:
        """Of its values, as `tfc.calibration` gives them. Raises TfcError E631 where there is no calibration data."""
        if not self.batches:
            fact = "the fit needs to see what the model does on data, and there is none"
            raise TfcError(Diagnostic("E631", fact, help="--calibrate TEXTS|NPY, or batches="))
        options: dict[str, Any] = {"real": self.real, "key": self.key, "progress": self.progress}
        return statistics(self.model, self.params, self.batches, which, reduce, **options)


class Fitting(Protocol):
    """The parameters of `wanted` (those of one place that name this procedure), and which old ones they come from."""

    def __call__(self, trained: Trained, to: Model, wanted: Sequence[Stored], /) -> tuple[dict[str, Array], set[str]]:
        """(arrays by path, all of them; paths of the trained model that are used up). Raises TfcError E632 where the
        trained model has nothing at that place to fit to."""
        ...


FITTING: dict[str, Fitting] = {"ksh": hash_functions}
"""Procedures of parameters that are no thin product, by the name that `fit = ..` gives in the language."""


def convert(
    model: Model,
    params: Mapping[str, Any] | Packed,
    to: Model,
    *,
    fit: str = "svd",
    batches: Iterable[Batch] = (),
    real: Callable[[Mapping[str, Any]], Any] | None = None,
    key: Array | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Parameters for `to`, nested.

    fit: svd or activation_svd, for thin products whose format names none (`low_rank(8, fit = svd)` does). batches:
    inputs of `model` for activation_svd and others that need data. key: for what is drawn, key(0) by default.
    Raises TfcError: E601 to E605 for parameters that are not those of `model`, E631 for a fit without data, E632 with
    every parameter that the other spec has no place for, or has and the first has not.
    """
    if fit not in FITS:
        raise ValueError(f"`{fit}` fits no thin product; {' and '.join(FITS)} do")
    flat = tree.flatten(model.unpack(params) if isinstance(params, Packed) else params)
    tree.check(flat, model.lowered.stored())
    found = _Conversion(Trained(model, flat, tuple(batches), real, key, progress), to, fit)
    return tree.nest(found.run())


@dataclass(frozen=True)
class _Thin:
    """A matrix of the first spec, and the parameters that stand for it in the second."""

    path: str
    left: Stored
    right: Stored
    base: Stored | None


class _Conversion:
    def __init__(self, trained: Trained, to: Model, fit: str) -> None:
        self.trained, self.to, self.fit = trained, to, fit
        self.wanted = {s.path: s for s in to.lowered.stored()}
        self.faults: list[Diagnostic] = []
        self.used: set[str] = set()
        self.made: dict[str, Array] = {}

    def run(self) -> dict[str, Array]:
        for path, stored in self.wanted.items():
            if path in self.trained.stored:
                self._copy(path, path, stored)
        thin = [t for t in map(self._thin, self.wanted) if t is not None]
        self._check(thin)
        self._complain(thin)
        self._fit(thin)
        self._fitted()
        return {path: self.made[path] for path in self.wanted}

    def _copy(self, old: str, new: str, stored: Stored) -> None:
        self.used.add(old)
        was = self.trained.stored[old]
        if was.type != stored.type:
            name = f"`{old}`" if old == new else f"`{old}` as `{new}`"
            fact = f"{name} is {was.type} in {self._names[0]}, {stored.type} in {self._names[1]}"
            self.faults.append(Diagnostic("E632", fact, help="sizes and precision of what is copied are the same"))
            return
        self.made[new] = self.trained.params[old]

    @property
    def _names(self) -> tuple[str, str]:
        return self.trained.model.lowered.name, self.to.lowered.name

    def _thin(self, path: str) -> _Thin | None:
        """The thin product of which `path` is the left side, if the trained model has its matrix."""
        matrix = path.removesuffix(".left")
        right = self.wanted.get(f"{matrix}.right")
        if matrix == path or right is None or path in self.made or matrix not in self.trained.stored:
            return None
        return _Thin(matrix, self.wanted[path], right, self.wanted.get(f"{matrix}.base"))

    def _check(self, thin: Sequence[_Thin]) -> None:
        """Sizes, before anything is computed; matrices that stay whole beside the product are copied."""
        for t in thin:
            self.used.add(t.path)
            if t.base is not None:
                self._copy(t.path, t.base.path, t.base)
                continue
            was, shape = self.trained.stored[t.path].type, t.left.type.shape[:-1] + t.right.type.shape[-1:]
            if (was.shape, was.dtype) != (shape, t.left.type.dtype):
                fact = f"`{t.path}` is {was} in {self._names[0]}; {self._names[1]} keeps [{', '.join(map(str, shape))}]"
                self.faults.append(Diagnostic("E632", f"{fact} as a thin product", help="the sizes must be the same"))

    def _complain(self, thin: Sequence[_Thin]) -> None:
        """Raises TfcError for what has no place on one side, as far as it is known before anything is fitted."""
        settled = {*self.made, *self.trained.stored, *(s.path for t in thin for s in (t.left, t.right))}
        rest = [s for path, s in self.wanted.items() if path not in settled]
        later = [s for s in rest if s.fit is not None and s.fit.name in FITTING]
        unused = self._unused()
        for path in (s.path for s in rest if s not in later):
            near = closest(path, unused)
            hint = f"{self._names[0]} has `{near}`, which is not used" if near else "paths must be the same"
            fact = f"{self._names[1]} has `{path}`, and nothing in {self._names[0]} to make it of"
            self.faults.append(Diagnostic("E632", fact, help=hint))
        if not later:
            self.faults += map(self._dropped, unused)
        if self.faults:
            raise TfcError(*few(self.faults))

    def _unused(self) -> list[str]:
        return [path for path in self.trained.stored if path not in self.used]

    def _dropped(self, path: str) -> Diagnostic:
        fact = f"`{path}` of {self._names[0]} has no place in {self._names[1]}"
        return Diagnostic("E632", fact, help="a conversion drops nothing")

    def _fit(self, thin: Sequence[_Thin]) -> None:
        """The factors: nearest to the matrix, or starting beside it."""
        procedures = {t.path: self._procedure(t) for t in thin if t.base is None}
        data: dict[str, Any] = {}
        if asked := {path for path, name in procedures.items() if name == "activation_svd"}:
            data = self.trained.statistics(linear_inputs(asked.__contains__), Gram())
        key = jax.random.key(0) if self.trained.key is None else self.trained.key
        for t in thin:
            if t.base is not None:
                self.made |= initial([t.left, t.right], key)
                continue
            name = procedures[t.path]
            settings: dict[str, Any] = {"rank": t.left.type.ints[-1]}
            settings |= {"damp": DAMP} if name == "activation_svd" else {}
            call = Call(name, (Source(t.path),), tuple(settings.items()), data=t.path if name != "svd" else "")
            made: Made = {}
            evaluate(call, self.trained.params, data, made)
            self.made[t.left.path], self.made[t.right.path] = made[call]

    def _procedure(self, t: _Thin) -> str:
        """The format's own fit, else the one asked for."""
        named = t.left.fit
        if named is not None and named.name not in FITS:
            fact = f"`{t.path}` of {self._names[1]} is fitted by `{named}`, which makes no thin product"
            raise TfcError(Diagnostic("E632", fact, help=f"{' and '.join(FITS)} do"))
        return self.fit if named is None else named.name

    def _fitted(self) -> None:
        """What procedures of `FITTING` find, place by place; then every old parameter must be used up."""
        groups: dict[tuple[str, str], list[Stored]] = {}
        for path, stored in self.wanted.items():
            if path not in self.made and stored.fit is not None:
                groups.setdefault((stored.fit.name, path.rpartition(".")[0]), []).append(stored)
        for (name, _), wanted in groups.items():
            found, used = FITTING[name](self.trained, self.to, wanted)
            self.made |= found
            self.used |= used
        if unused := self._unused():
            raise TfcError(*few(map(self._dropped, unused)))
