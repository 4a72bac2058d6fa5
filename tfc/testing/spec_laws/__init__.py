"""Laws that hold of every spec and all that is made of it: a spec turned into verdicts, law by law."""

from tfc.testing.spec_laws.judging import LAWS, SpecLaw, SpecReport, Verdict, judge_spec
from tfc.testing.spec_laws.subject import Claims, Inapplicable, Refused, Subject
from tfc.testing.spec_laws.verifying import verify

__all__ = [
    "LAWS",
    "Claims",
    "Inapplicable",
    "Refused",
    "SpecLaw",
    "SpecReport",
    "Subject",
    "Verdict",
    "judge_spec",
    "verify",
]
