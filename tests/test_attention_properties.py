"""Every kernel of attention: what it does not refuse, it computes as the float64 definition does, and by the laws.

Kernels of the GPU are interpreted, races looked for, in a process that is ended where a case hangs.
"""

import importlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import Phase, event, given, settings

from tfc.backends.kernel import Kernel
from tfc.backends.table import KERNELS
from tfc.ir.ops import Attention
from tfc.ir.types import DType
from tfc.targets import resolve
from tfc.testing import LAWS, Case, Report, Sizes, attention_eqn, judge, served
from tfc.testing.cases import FORMULAS, named_op
from tfc.testing.judging import ENDS
from tfc.testing.strategies import attention_cases, sizes
from tfc.testing.worker import Worker

ROOT = Path(__file__).resolve().parents[1]
CPU, H200 = resolve("cpu"), resolve("h200", interpret=True)
KERNEL = {k.name: k for k in KERNELS[Attention]}
ON_CPU = [k for k in KERNELS[Attention] if k.name in ("reference", "xla")]
NAMED = ("causal", "window", "documents", "dilated", "prefix", "softcap", "alibi", "own")

LIMIT = 60.0
"""Seconds that one interpreted call may take; it takes one or two where nothing else runs."""

INTERPRETED = sizes(
    dtypes=(DType.BF16, DType.F16), head_dims=(32, 64, 128), most=270, max_batch=2, max_tiles=4, tile=(128, 128)
)
"""One to four tiles of 128 queries by 128 keys: all that the kernel serves, small enough to interpret."""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(environment={"JAX_PLATFORMS": "cpu"}) as process:
        yield process


def interpreted(case: Case, worker: Worker, laws: bool = False) -> Report:
    chosen = LAWS if laws else ()
    return judge(KERNEL["pallas_gpu"], cases=[case], target=H200, laws=chosen, isolate=LIMIT, worker=worker)


def test_every_kernel_of_attention_is_tested_here():
    """cuDNN runs on NVIDIA's devices alone, and no interpreter knows it: tests marked `device` cover it."""
    assert set(KERNEL) == {k.name for k in ON_CPU} | {"pallas_gpu", "cudnn"}


@pytest.mark.parametrize("kernel", ON_CPU, ids=lambda k: k.name)
def test_agrees_with_the_definition(kernel: Kernel):
    """What a kernel does not refuse, it computes as the float64 definition does, gradients too."""
    counted: list[bool] = []

    @settings(max_examples=20)
    @given(case=attention_cases())
    def check(case: Case) -> None:
        report = judge(kernel, cases=[case], target=CPU, laws=())
        event(report.refusal or "served")
        counted.append(report.refusal is None)
        assert report.ok, report

    check()
    assert sum(counted) >= 20


@pytest.mark.parametrize("kernel", ON_CPU, ids=lambda k: k.name)
@pytest.mark.parametrize(
    ("formula", "of", "flavour"),
    [
        ("documents", Sizes(2, 20, 20, 4, 2, 32, DType.F32), "documents"),
        ("padding", Sizes(2, 9, 21, 2, 1, 32, DType.BF16), "blind"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_keeps_the_laws(kernel: Kernel, formula: str, of: Sizes, flavour: str):
    report = judge(kernel, cases=[Case(formula, attention_eqn(named_op(formula, of), of), 3, flavour)], target=CPU)
    assert report.ok and report.served, report
    assert len(report.checked) > 8


def test_the_gpu_kernel_agrees_with_the_definition(worker: Worker):
    """Drawn formulas, types and sizes; refusals are counted and not filtered away."""
    refused: list[str | None] = []

    @settings(max_examples=25, phases=[Phase.explicit, Phase.generate])
    @given(case=attention_cases(of=sizes(most=200, max_tiles=3, tile=(128, 128), head_dims=(32, 64, 48))))
    def check(case: Case) -> None:
        report = interpreted(case, worker)
        event(report.refusal or "served")
        refused.append(report.refusal)
        assert report.ok, report

    check()
    assert 5 <= sum(r is None for r in refused) <= len(refused) - 2, "some are served, and some are not"


# interpreting a formula's kernel takes a minute: this by default, all with --slow
QUICK = ("own",)


@pytest.mark.parametrize("formula", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMED])
def test_the_property_is_not_vacuous(formula: str, worker: Worker):
    """Each named formula is served, not refused, in at least twenty drawn cases, and is right in each.

    Ten equations, each on arrays of two seeds, as compiling an interpreted kernel takes most of the time.
    """
    counted: list[bool] = []

    @settings(max_examples=10, phases=[Phase.explicit, Phase.generate])
    @given(case=attention_cases([formula], of=INTERPRETED))
    def check(case: Case) -> None:
        for seed in (case.seed, case.seed + 1):
            report = interpreted(Case(case.name, case.eqn, seed), worker)
            counted.append(report.served == 1)
            assert report.ok, report

    check()
    assert sum(counted) >= 20


@pytest.mark.parametrize(
    ("formula", "of", "flavour"),
    [
        ("causal", Sizes(2, 70, 150, 1, 1, 32, DType.BF16), "normal"),
        ("documents", Sizes(1, 160, 160, 1, 1, 32, DType.F16), "documents"),
        ("temperature", Sizes(2, 20, 140, 1, 1, 64, DType.BF16), "normal"),
        ("padding", Sizes(2, 20, 100, 2, 1, 32, DType.F16), "blind"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_the_gpu_kernel_keeps_the_laws(formula: str, of: Sizes, flavour: str, worker: Worker):
    report = interpreted(Case(formula, attention_eqn(named_op(formula, of), of), 5, flavour), worker, laws=True)
    assert report.ok and report.served, report
    assert len(report.checked) > 8


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_named_formula_is_refused(formula: str):
    """By the kernel's own answer, on the device itself: nothing is computed."""
    every = product((1, 500), (500, 4096), (32, 64, 128), (DType.BF16, DType.F16))
    of = [Sizes(2, n, m, 4, 2, d, t) for n, m, d, t in every]
    cases = [Case(formula, attention_eqn(named_op(formula, s), s), 0) for s in of]
    assert served(KERNEL["pallas_gpu"], cases, resolve("h200")) == len(cases)
    assert served(KERNEL["pallas_gpu"], cases, CPU) == 0


PLANTED = """
import threading
from tfc.backends.kernel import Kernel
from tfc.backends.table import KERNELS
from tfc.ir.ops import Attention

xla = next(k for k in KERNELS[Attention] if k.name == "xla")

def build(eqn, target):
    if eqn.args[0].type.ints[1] == 5:
        return lambda *operands: threading.Event().wait()  # for an arrival that nobody makes
    return xla.build(eqn, target)

KERNEL = Kernel(name="planted", op=Attention, refuse=xla.refuse, build=build)
"""


def test_a_hanging_kernel_is_ended_and_the_suite_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The planted hang is reported as one; the cases around it are judged."""
    (tmp_path / "planted_kernel.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    kernel = importlib.import_module("planted_kernel").KERNEL
    cases = [Case("causal", attention_eqn(named_op("causal", s), s), 0) for s in (Sizes(n=4), Sizes(n=5), Sizes(n=6))]
    with Worker(environment={"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{tmp_path}"}) as worker:
        report = judge(kernel, cases=cases, target=CPU, laws=(), isolate=10.0, worker=worker, gradients=False)
    assert [tuple(v.law for v in verdict.violations) for verdict in report.verdicts] == [(), (ENDS,), ()]
    assert str(report).splitlines()[0].startswith("planted: 1 laws violated; 3 cases served")
