"""Faults planted mechanically in passes, in the xla forms and in decoding are caught by the laws of drawn specs.

Each is the first change of its kind in the text of a function (`tfc.testing.mutants`), put in its place while the laws
are checked on a fixed number of drawn specs. Nothing here knows what a function does.
"""

import types
from collections.abc import Sequence
from functools import cache
from importlib import import_module

import jax
import pytest

from tfc.testing.drawn import numbered
from tfc.testing.mutants import Mutant, mutants, planted
from tfc.testing.spec_laws import LAWS, Claims, SpecLaw, Subject
from tfc.testing.spec_laws.judging import verdict

EVERY, CAUSAL = tuple(range(10)), (1, 4, 8, 11, 15, 53)
"""Numbers of drawn specs in which a fault is looked for, one after another, until it is found; those of two causal
modes for faults of decoding."""

LOOKED: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "tfc.passes.decod": (CAUSAL, ("decoding by kernels is one call", "no later token matters")),
    "tfc.passes": (
        EVERY,
        ("all passes keep the values", "each exact pass keeps the values", "parameters come back from the passes"),
    ),
    "tfc.params": (EVERY, ("all passes keep the values", "parameters come back from the passes")),
    "tfc.backends.xla.caching": (CAUSAL, ("decoding by kernels is one call",)),
    "tfc.backends": (EVERY, ("kernels give the definition's values",)),
}
"""The specs and the laws that are asked where a module is spoiled, by the longest prefix of its name."""

FAULTS: tuple[tuple[str, str, str], ...] = (
    ("tfc.passes.fold_norms", "_Folding.rule", "condition dropped"),
    ("tfc.passes.decode", "_attention", "comparison"),
    ("tfc.backends.xla.attention", "exponentials", "factor or term dropped"),
    ("tfc.passes.decoding.causal", "_bounded", "comparison"),
    ("tfc.passes.merge_projections", "_merged", "number or axis"),
    ("tfc.backends.xla.attention", "exponentials", "comparison"),
    ("tfc.passes.fold_norms", "_Folding.rule", "negation dropped"),
    ("tfc.passes.fold_norms", "_Folding.rule", "guard turned round"),
    ("tfc.passes.fold_norms", "_Folding.rule", "comparison"),
    ("tfc.passes.merge_projections", "_group", "guard turned round"),
    ("tfc.passes.merge_projections", "_refusal", "guard turned round"),
    ("tfc.passes.merge_projections", "_refusal", "negation dropped"),
    ("tfc.passes.decode", "_attention", "negation dropped"),
    ("tfc.passes.decode", "_attention", "guard turned round"),
    ("tfc.passes.decode", "_rotate", "negation dropped"),
    ("tfc.passes.decode", "_rotate", "number or axis"),
    ("tfc.passes.decode", "_repeat", "factor or term dropped"),
    ("tfc.passes.decode", "_repeat", "sign"),
    ("tfc.passes.decoding.causal", "_bounded", "number or axis"),
    ("tfc.passes.decoding.causal", "_bounded", "sign"),
    ("tfc.passes.decoding.causal", "_bounded", "guard turned round"),
    ("tfc.passes.decoding.index", "index_equation", "guard turned round"),
    ("tfc.passes.decoding.index", "index_equation", "branches exchanged"),
    ("tfc.backends.xla.attention", "grouped_scores", "factor or term dropped"),
    ("tfc.backends.xla.attention", "exponentials", "function exchanged"),
    ("tfc.backends.xla.attention", "exponentials", "negation dropped"),
    ("tfc.backends.xla.attention", "exponentials", "number or axis"),
    ("tfc.backends.xla.attention", "exponentials", "branches exchanged"),
    ("tfc.backends.xla.attention", "exponentials", "sign"),
)
"""Module, function, kind of change; the first of each kind in the function's text. The first ones run by default."""

DEFAULT = 6


@cache
def subject(number: int) -> Subject:
    spec = numbered(number)
    mode = spec.mode
    claims = Claims(mode.causal, "document" if mode.packed else None, "place" if mode.placed else None)
    made = Subject(spec.text, lengths=spec.lengths, claims=claims)
    with jax.enable_x64(True):
        assert made.values  # computed before anything is spoiled
    return made


def function_of(module: str, name: str) -> types.FunctionType:
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert isinstance(found, types.FunctionType), f"{module}.{name} is no function"
    return found


def fault(module: str, name: str, kind: str) -> tuple[types.FunctionType, Mutant]:
    function = function_of(module, name)
    return function, next(m for m in mutants(function) if m.kind == kind)


def asked(module: str) -> tuple[tuple[int, ...], tuple[SpecLaw, ...]]:
    numbers, names = LOOKED[max((p for p in LOOKED if module.startswith(p)), key=len)]
    return numbers, tuple(next(law for law in LAWS if law.name == name) for name in names)


@cache
def before(number: int, law: SpecLaw) -> str:
    """What comes of the law while nothing is spoiled."""
    return verdict(law, subject(number)).status


def violated(number: int, laws: Sequence[SpecLaw]) -> str | None:
    """The first law that the spec violates now, or that is refused now and was not; or what a pass raises."""
    try:
        now = subject(number).passed_again()
    except Exception as error:  # whatever a spoiled pass raises is noticed
        return f"{type(error).__name__}: {error}"
    for law in laws:
        found = verdict(law, now)
        if found.status == "violated" or (found.status == "refused" and before(number, law) == "passed"):
            return f"{law.name}: {found.detail}"
    return None


def caught(module: str, name: str, kind: str) -> str | None:
    """By which law, and on which spec."""
    function, mutant = fault(module, name, kind)
    numbers, laws = asked(module)
    traced = ".backends." in module
    for number in numbers:
        for law in laws:
            before(number, law)
        if traced:
            jax.clear_caches()  # what JAX has traced is the function as it was
        try:
            with planted(function, mutant):
                if said := violated(number, laws):
                    return f"spec {number}: {said}"
        finally:
            if traced:
                jax.clear_caches()
    return None


def test_nothing_is_violated_by_what_is_right():
    """Every module's laws, on the first specs; the rest are judged by tests/testing/test_drawn_specs.py."""
    for module in LOOKED:
        numbers, laws = asked(module)
        assert violated(numbers[0], laws) is None


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [pytest.param(*f, marks=[] if i < DEFAULT else [pytest.mark.slow], id=" ".join(f)) for i, f in enumerate(FAULTS)],
)
def test_mechanical_faults_are_caught(module: str, name: str, kind: str):
    assert caught(module, name, kind), str(fault(module, name, kind)[1])


def test_there_are_twenty():
    assert len(FAULTS) >= 20 and len(set(FAULTS)) == len(FAULTS)
    assert {m.split(".")[1] for m, _, _ in FAULTS} >= {"passes", "backends"}
