"""A spec turned into a report: each law passed, refused in words, not applicable, or violated and on what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from tfc.diagnostics import TfcError
from tfc.testing.spec_laws import decoding, kernels, passes, sequences, texts, transformations
from tfc.testing.spec_laws.subject import Inapplicable, Refused, Subject

__all__ = ["DEEP", "LAWS", "SpecLaw", "SpecReport", "Verdict", "judge_spec"]


@dataclass(frozen=True, slots=True)
class SpecLaw:
    """A law by its name, and its check, which says what is wrong, or gives None.

    deep: it takes longer than the others, and is left out where speed is asked for.
    """

    name: str
    check: Callable[[Subject], str | None]
    deep: bool = False


LAWS: tuple[SpecLaw, ...] = (
    SpecLaw("the canonical text means the same", texts.canonical),
    SpecLaw("programs are read back from their text", texts.read_back),
    SpecLaw("each exact pass keeps the values", passes.alone),
    SpecLaw("all passes keep the values", passes.together),
    SpecLaw("all passes keep the gradients", passes.gradients),
    SpecLaw("parameters come back from the passes", passes.leads_back),
    SpecLaw("kernels give the definition's values", kernels.values),
    SpecLaw("kernels give the definition's gradients", kernels.gradients),
    SpecLaw("values in the precision declared", kernels.declared),
    SpecLaw("gradients in the precision declared", kernels.declared_gradients),
    SpecLaw("decoding in parts is one call", decoding.decoded),
    SpecLaw("decoding by kernels is one call", decoding.kernels),
    SpecLaw("no later token matters", sequences.no_later_token),
    SpecLaw("rows of a batch are independent", sequences.other_rows),
    SpecLaw("padding does not matter", sequences.padding),
    SpecLaw("texts packed are texts apart", sequences.documents_apart),
    SpecLaw("a mapped model is a loop", transformations.mapped),
    SpecLaw("jit changes nothing, gradients are finite", transformations.jitted, deep=True),
)
"""Every law that is checked of any spec, the cheapest first."""

DEEP = 4
"""Seeds that are tried of a spec where thoroughness is asked for."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One law. status: passed, refused, `-` where it says nothing, violated. detail: the reason, or what is wrong;
    case: what a violation was seen on."""

    law: str
    status: str
    detail: str = ""
    case: str = ""


@dataclass(frozen=True, slots=True)
class SpecReport:
    """What came of a spec. `case` is what it was seen on; a violation's is the smallest found."""

    name: str
    verdicts: tuple[Verdict, ...]
    case: str = ""

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def violations(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if v.status == "violated")

    @property
    def refusals(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if v.status == "refused")

    def __str__(self) -> str:
        wide = max(len(v.law) for v in self.verdicts)
        lines = [f"{self.case}: {'ok' if self.ok else f'{len(self.violations)} violated'}"]
        for v in self.verdicts:
            first, *more = v.detail.splitlines() or [""]
            lines.append(f"  {v.law:{wide}}  {v.status:8}  {first}".rstrip())
            if v.status == "violated":
                lines += [f"      {line}" for line in more[:20]]
                lines += [f"    smallest: {v.case}"] if v.case else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        verdicts = [{"law": v.law, "status": v.status, "detail": v.detail, "case": v.case} for v in self.verdicts]
        return {"name": self.name, "case": self.case, "ok": self.ok, "laws": verdicts}


def verdict(law: SpecLaw, subject: Subject) -> Verdict:
    """One law on one spec. Whatever else its check raises is a violation: a spec that checks can be run."""
    try:
        with jax.enable_x64(True):
            said = law.check(subject)
    except Inapplicable as why:
        return Verdict(law.name, "-", str(why))
    except Refused as why:
        return Verdict(law.name, "refused", str(why))
    except TfcError as error:
        return Verdict(law.name, "violated", f"refused outside of its turn: {error.diagnostics[0].message}")
    except Exception as error:  # a crash is a verdict
        return Verdict(law.name, "violated", f"{type(error).__name__}: {error}")
    return Verdict(law.name, "violated" if said else "passed", said or "")


def judge_spec(
    subject: Subject,
    laws: Sequence[SpecLaw] = LAWS,
    tell: Callable[[str], None] = lambda law: None,
) -> SpecReport:
    """Every law on the spec. tell: is given each law's name before its turn."""
    verdicts: list[Verdict] = []
    for law in laws:
        tell(law.name)
        verdicts.append(verdict(law, subject))
    return SpecReport(subject.source.name, tuple(verdicts), str(subject))
