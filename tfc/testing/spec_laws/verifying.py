"""A user's spec or compiled model turned into reports, seed after seed; what is violated is made small."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from tfc.diagnostics import TfcError
from tfc.grammar import ast
from tfc.model import Model
from tfc.targets import resolve
from tfc.testing.spec_laws.judging import DEEP, LAWS, SpecLaw, SpecReport, Verdict, judge_spec, verdict
from tfc.testing.spec_laws.subject import Claims, Subject

__all__ = ["TRIES", "smallest", "verify"]

TRIES = 40
"""Smaller cases that are tried of each violation."""


def verify(
    spec: "str | os.PathLike[str] | Model",
    *,
    target: str = "cpu",
    deep: bool = False,
    lengths: Mapping[str, int] | None = None,
    claims: Claims | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda law: None,
    lets: Mapping[str, object] | None = None,
) -> SpecReport:
    """Checks every law on a spec, with parameters and inputs drawn from their declared types.

    spec: a path, a text, or a model from `tfc.compile`, which is checked with its own `let`s and for its own target.
    deep: laws that take longer, and more seeds. lengths: of the inputs, `T=32`; by default small ones that fit.
    claims: what the laws cannot know by themselves. lets: other values for the spec's `let`s. tell: is given each
    law's name before its turn.
    Raises TfcError for a spec that is none, or too large (E725); ValueError for a model that was made of no spec.
    """
    device = None
    if isinstance(spec, Model):
        if spec.spec is None:
            raise ValueError(f"{spec!r} was not made by tfc.compile: give the spec itself")
        device, (text, own) = spec.target, spec.spec
        spec, lets = text, {**own, **(lets or {})}
    device = device or resolve(target)
    laws = [law for law in LAWS if deep or not law.deep]
    found: SpecReport | None = None
    for n in range(DEEP if deep else 1):
        subject = Subject(spec, lets, lengths, seed + n, device, claims)
        report = judge_spec(subject, laws, tell)
        found = report if found is None else _joined(found, report)
        if not found.ok:
            return replace(found, verdicts=tuple(_small(subject, laws, v) for v in found.verdicts))
    assert found is not None
    return found


def _joined(a: SpecReport, b: SpecReport) -> SpecReport:
    """Of two seeds: what is violated in the second, else what was found in the first."""
    pairs = zip(a.verdicts, b.verdicts, strict=True)
    return replace(a, verdicts=tuple(y if y.status == "violated" else x for x, y in pairs), case=b.case)


def _small(subject: Subject, laws: list[SpecLaw], found: Verdict) -> Verdict:
    if found.status != "violated":
        return found
    (law,) = (law for law in laws if law.name == found.law)
    least, said = smallest(subject, law)
    return replace(found, detail=(said or found.detail), case=str(least))


def smallest(subject: Subject, law: SpecLaw) -> tuple[Subject, str]:
    """The smallest case on which the law is still violated: lengths and whole `let`s reduced, one at a time."""
    best, said, tries = subject, "", TRIES
    progress = True
    while progress and tries:
        progress = False
        for smaller in _smaller(best):
            tries -= 1
            found = verdict(law, smaller)
            if found.status == "violated":
                best, said, progress = smaller, found.detail, True
                break
            if not tries:
                break
    return best, said


def _smaller(s: Subject) -> Iterator[Subject]:
    """The spec at lengths and whole `let`s below its own, the boldest first; those that fit nowhere are left out."""
    changes: list[tuple[dict[str, Any], dict[str, int]]] = []
    for name, n in s.lengths.items():
        changes += [({}, {name: less}) for less in dict.fromkeys((1, n // 2, n - 1)) if 1 <= less < n]
    for name, n in _lets(s).items():
        changes += [({name: less}, {}) for less in dict.fromkeys((1, n // 2)) if 1 <= less < n]
    for sets, lengths in changes:
        try:
            smaller = Subject(s.spec, {**s.sets, **sets}, {**s.lengths, **lengths}, s.seed, s.target, s.claims)
        except TfcError:
            continue
        if smaller.lengths == {**s.lengths, **lengths}:
            yield smaller


def _lets(s: Subject) -> dict[str, int]:
    """The file's `let`s that are whole numbers, as they stand or as they were set."""
    found: dict[str, int] = {}
    for item in s.module.items:
        for b in item.bindings if isinstance(item, ast.Let) else ():
            given = s.sets.get(b.name, b.value.value if isinstance(b.value, ast.Number) else None)
            if str(given).isdigit():
                found[b.name] = int(str(given))
    return found
