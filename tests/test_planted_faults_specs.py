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

SPECS = 21
"""Of which each fault is looked for in one after another, until it is found."""

LOOKED: dict[str, tuple[str, ...]] = {
    "tfc.passes.decode": ("decoding by kernels is one call", "no later token matters"),
    "tfc.passes.decoding": ("decoding by kernels is one call", "no later token matters"),
    "tfc.passes": ("all passes keep the values", "each exact pass keeps the values", "parameters come back from the passes"),
    "tfc.params": ("all passes keep the values", "parameters come back from the passes"),
    "tfc.backends": ("kernels give the definition's values", "decoding by kernels is one call"),
}  # fmt: skip
"""The laws that are asked where a module is spoiled, by the longest prefix of its name."""

FAULTS: tuple[tuple[str, str, str], ...] = (
)
"""Module, function, kind of change; the first of each kind in the function's text."""


@cache
def subject(number: int) -> Subject:
    spec = numbered(number)
    mode = spec.mode
    claims = Claims(mode.causal, "document" if mode.packed else None, "place" if mode.placed else None)
    made = Subject(spec.text, lengths=spec.lengths, claims=claims)
    with jax.enable_x64(True):
        made.wide, made.values  # noqa: B018  # computed before anything is spoiled
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


def asked(module: str) -> Sequence[SpecLaw]:
    prefix = max((p for p in LOOKED if module.startswith(p)), key=len)
    return [next(law for law in LAWS if law.name == name) for name in LOOKED[prefix]]


def violated(number: int, laws: Sequence[SpecLaw]) -> str | None:
    """The first law that the spec violates now; or what a pass raises."""
    try:
        now = subject(number).passed_again()
    except Exception as error:  # whatever a spoiled pass raises is noticed
        return f"{type(error).__name__}: {error}"
    for law in laws:
        found = verdict(law, now)
        if found.status == "violated":
            return f"{law.name}: {found.detail}"
    return None


def caught(module: str, name: str, kind: str) -> str | None:
    """By which law, and on which spec."""
    function, mutant = fault(module, name, kind)
    subjects = [subject(n) for n in range(SPECS)]
    jax.clear_caches()  # what JAX has traced is the function as it was
    try:
        with planted(function, mutant):
            for n in range(len(subjects)):
                if said := violated(n, asked(module)):
                    return f"spec {n}: {said}"
    finally:
        jax.clear_caches()
    return None


def test_nothing_is_violated_by_what_is_right():
    """Every module's laws, on the first specs; the rest are judged by tests/testing/test_drawn_specs.py."""
    for n in range(2):
        for module in LOOKED:
            assert violated(n, asked(module)) is None


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [pytest.param(*f, marks=[] if i % 4 == 0 else [pytest.mark.slow], id=" ".join(f)) for i, f in enumerate(FAULTS)],
)
def test_mechanical_faults_are_caught(module: str, name: str, kind: str):
    assert caught(module, name, kind), str(fault(module, name, kind)[1])


def test_there_are_twenty():
    assert len(FAULTS) >= 20 and len(set(FAULTS)) == len(FAULTS)
    assert {m.split(".")[1] for m, _, _ in FAULTS} >= {"passes", "backends"}
