"""A kernel, or anybody's callable f(q, k, v, ...), turned into a report: the definition and every law, case by case.

    from tfc.testing import judge
    print(judge(my_attention))                          # softmax attention, scale D ** -0.5, no mask
    print(judge(my_attention, formulas=["causal"]))     # the same, causal
    print(judge(KERNEL, target=resolve("h200")))        # every named formula; refusals are counted

A case that hangs is a violation where the candidate runs in a worker process: `isolate=60.0` seconds a call.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tfc.backends.kernel import Kernel, Target
from tfc.ir.program import Eqn
from tfc.ir.types import DType
from tfc.testing.candidates import Isolated, candidate_of
from tfc.testing.cases import FORMULAS, Case, sizes_of, standard_cases
from tfc.testing.laws import LAWS, Candidate, Law, Refused, Setting, Violation
from tfc.testing.tolerance import expected, expected_gradients
from tfc.testing.worker import CaseHangs, Worker

__all__ = ["DEFINITION", "ENDS", "GRADIENTS", "RUNS", "Report", "Verdict", "judge", "served"]

DEFINITION = "results are the definition's"
GRADIENTS = "gradients are the definition's"
RUNS = "a case that is not refused is computed"
ENDS = "a case ends"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One case: why it was refused, or what is wrong with it, and its largest error to what rounding allows."""

    case: Case
    refusal: str | None = None
    violations: tuple[Violation, ...] = ()
    worst: float = 0.0
    checked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What came of all cases. Printed, it names each law violated with its smallest case."""

    name: str
    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """No violation among the cases served; look at `served` as well."""
        return not self.violations

    @property
    def served(self) -> int:
        return sum(v.refusal is None for v in self.verdicts)

    @property
    def refusals(self) -> Counter[str]:
        """Each reason for which cases were refused, and how many."""
        return Counter(v.refusal for v in self.verdicts if v.refusal is not None)

    @property
    def refusal(self) -> str | None:
        """Why nothing was served, or None where something was."""
        return None if self.served or not self.verdicts else self.refusals.most_common(1)[0][0]

    @property
    def violations(self) -> tuple[Violation, ...]:
        """All of them, those of the smallest cases first."""
        verdicts = sorted(self.verdicts, key=lambda v: sizes_of(v.case.eqn).elements)
        return tuple(violation for verdict in verdicts for violation in verdict.violations)

    @property
    def laws(self) -> tuple[str, ...]:
        """The laws violated, each once."""
        return tuple(dict.fromkeys(v.law for v in self.violations))

    @property
    def worst(self) -> float:
        """The largest error of a result, to what its precision allows: above 1 is a violation."""
        return max((v.worst for v in self.verdicts), default=0.0)

    @property
    def checked(self) -> Counter[str]:
        """How many cases each law was checked on."""
        return Counter(law for v in self.verdicts for law in v.checked)

    def __str__(self) -> str:
        counts = f"{self.served} cases served, {len(self.verdicts) - self.served} refused"
        head = "ok" if self.ok else f"{len(self.laws)} laws violated"
        lines = [f"{self.name}: {head}; {counts}; largest error {self.worst:.2g} of what rounding allows"]
        lines += [f"  refused {n}: {reason}" for reason, n in self.refusals.most_common()]
        for law in self.laws:
            found = [v for v in self.violations if v.law == law]
            lines += [f"  violated in {len(found)} cases: {law}", f"    smallest: {found[0].case}"]
            lines += [f"    {found[0].message}"]
        return "\n".join(lines)


def judge(
    candidate: Kernel | Candidate | Callable[..., Any] | str,
    family: str = "attention",
    *,
    eqn: Eqn | None = None,
    seed: int = 0,
    flavour: str | None = None,
    formulas: Sequence[str] | None = None,
    dtypes: Sequence[DType | str] = ("f32", "bf16"),
    cases: Iterable[Case] | None = None,
    target: Target | None = None,
    laws: Sequence[Law] = LAWS,
    gradients: bool | None = None,
    isolate: float | None = None,
    worker: Worker | None = None,
) -> Report:
    """Judges a kernel, a callable f(q, k, v, *captured) -> out or (out, lse), or a callable's "module:name".

    What computes without JAX is judged as a `laws.Candidate` of its own.

    eqn, seed, flavour: one case; or cases: these; or else the standard cases of `formulas` (names of
    `cases.FORMULAS`; all for a kernel and for a callable with a parameter `op`, else "full") in `dtypes`.
    target: where a kernel runs. laws: those of `laws.LAWS` to check beside the definition; () for none.
    gradients: whether to compare gradients too; by default those of kernels and candidates that have them.
    isolate: seconds that a call may take, in a process of its own, or in the `worker` given.
    Raises ValueError for an unknown family or formula.
    """
    if family != "attention":
        raise ValueError(f"there is no family `{family}`; attention is one")
    asked = candidate_of(candidate, target, bool(gradients))
    if cases is None:
        cases = [Case("given", eqn, seed, flavour)] if eqn else _standard(asked, formulas, dtypes, seed)
    wanted = asked is candidate or isinstance(candidate, Kernel) if gradients is None else gradients
    name = candidate.name if isinstance(candidate, Kernel) else getattr(candidate, "__name__", str(candidate))
    with _worker(isolate, worker) as process:
        ours = Isolated(asked, process, isolate or 60.0) if process else asked
        return Report(name, tuple(_verdict(ours, case, laws, wanted) for case in cases))


def _standard(
    asked: Candidate, formulas: Sequence[str] | None, dtypes: Sequence[DType | str], seed: int
) -> Iterator[Case]:
    names = formulas if formulas is not None else tuple(FORMULAS) if asked.any_op else ("full",)
    if unknown := [n for n in names if n not in FORMULAS]:
        raise ValueError(f"there is no formula `{unknown[0]}`; there are {', '.join(FORMULAS)}")
    return standard_cases(names, [DType(d) for d in dtypes], seed)


@contextmanager
def _worker(isolate: float | None, worker: Worker | None) -> Iterator[Worker | None]:
    with Worker() if isolate and worker is None else nullcontext(worker) as process:
        yield process


def _verdict(candidate: Candidate, case: Case, laws: Sequence[Law], gradients: bool) -> Verdict:
    setting = Setting(candidate, case.eqn, case.operands(), case.seed)
    violations: list[Violation] = []
    checked: list[str] = []
    worst = 0.0

    def note(law: str, message: str | None) -> None:
        if message:
            violations.append(Violation(law, message, str(case)))

    try:
        worst, message = _compare(setting)
        checked.append(DEFINITION)
        note(DEFINITION, message)
        if gradients:
            found = _compare_gradients(setting)
            if found is not None:
                checked.append(GRADIENTS)
                worst = max(worst, found[0])
                note(GRADIENTS, found[1])
    except Refused as refused:
        return Verdict(case, str(refused))
    except CaseHangs as hangs:
        note(ENDS, str(hangs))
    except Exception as error:  # whatever a candidate raises is a verdict on it
        note(RUNS, f"{type(error).__name__}: {error}")
    if any(v.law in (ENDS, RUNS) for v in violations):
        return Verdict(case, None, tuple(violations), worst, tuple(checked))
    for law in laws:
        _check(law, setting, note, checked)
    return Verdict(case, None, tuple(violations), worst, tuple(checked))


def _check(law: Law, setting: Setting, note: Callable[[str, str | None], None], checked: list[str]) -> None:
    if not law.applies(setting):
        return
    try:
        note(law.name, law.check(setting))
        checked.append(law.name)
    except Refused:
        pass  # the law asks about another equation, and that one may be refused; `checked` counts what was asked
    except CaseHangs as hangs:
        note(ENDS, f"{law.name}: {hangs}")
    except Exception as error:  # as above
        note(RUNS, f"{law.name}: {type(error).__name__}: {error}")


def _compare(s: Setting) -> tuple[float, str | None]:
    """The largest ratio of out and lse to what is allowed, and what is wrong."""
    found = s.candidate.run(s.eqn, s.operands)
    measured = [right.compare(x) for right, x in zip(expected(s.op, s.operands), found, strict=True) if x is not None]
    return max(m.ratio for m in measured), next((m.reason for m in measured if not m.ok), None)


def _compare_gradients(s: Setting) -> tuple[float, str | None] | None:
    """The same of the gradients; None where the candidate has none."""
    dout = s.rng().standard_normal((*s.operands[0].shape[:3], s.operands[2].shape[3])).astype(s.operands[2].dtype)
    found = s.candidate.gradient(s.eqn, s.operands, dout)
    if found is None:
        return None
    measured = [right.compare(found[i]) for i, right in expected_gradients(s.op, s.operands, dout).items()]
    return max(m.ratio for m in measured), next((m.reason for m in measured if not m.ok), None)


def served(kernel: Kernel, cases: Iterable[Case], target: Target) -> int:
    """How many of the cases the kernel does not refuse on the target. Nothing is computed."""
    return sum(kernel.refuse(case.eqn, target) is None for case in cases)
