"""Which gradient an attention equation gets on Hopper, in words; and that of a whole call, interpreted."""

from dataclasses import replace
from typing import Any

import pytest

from tfc.backends.gradients import gradient_note
from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu.backward import KERNEL
from tfc.backends.table import choose
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.targets import resolve
from tfc.testing import Case, Sizes, attention_eqn, judge, standard_cases
from tfc.testing.cases import FORMULAS, named_op
from tfc.testing.worker import Worker

H200 = Target(name="h200", platform="gpu", capability=9.0)
CAUSAL = apply("le", Token("k"), Token("q"))
SLOPE = apply("add", S, Read(0, (Var("h", Kind.INT),), Kind.REAL))
FIELD = apply("add", S, Load(0, "k", Kind.REAL))


def attention(d: int = 64, dv: int | None = None, score: Expr = S, weigh: Expr = P, t: int = 512) -> Eqn:
    leaves: dict[Expr, TensorType] = {SLOPE: TensorType((4,), DType.F32), FIELD: TensorType((2, t), DType.F32)}
    captured = (leaves[score],) if score in leaves else ()
    types = (*(TensorType((2, t, 4, n), DType.BF16) for n in (d, d, dv or d)), *captured)
    op = Attention(scale=0.1, score=score, mask=CAUSAL, weigh=weigh)
    outs = tuple(map(Value, ("out", "lse"), op.infer(*types)))
    return Eqn(outs, op, tuple(Value(f"x{i}", t) for i, t in enumerate(types)))


NOTES: dict[str, tuple[dict[str, Any], str]] = {
    "head size 64": ({}, "its own: dq by 128 x 128, dk dv by 128 x 128"),
    "head size 128": (dict(d=128), "its own: dq by 128 x 64, dk dv by 128 x 64"),
    "trained table": (dict(score=SLOPE), "its own: dq by 128 x 64, dk dv by 128 x 64"),
    "trained field": (dict(score=FIELD, d=128), "its own: dq by 128 x 64, dk by 128 x 64, dv by 128 x 64"),
    "few queries": (dict(t=40), "its own: dq by 128 x 64, dk dv by 128 x 64"),
    "head size": (dict(d=48), "from the xla form: head sizes 48 and 48 are not both 32, 64, 128 or 256"),
    "value size": (dict(dv=32), "from the xla form: head sizes 64 and 32 are not both 32, 64, 128 or 256"),
    "weigh": (
        dict(weigh=apply("mul", P, Const(2.0))),
        "from the xla form: weighs by the softmax alone, not by `p * 2.0`",
    ),
    "primitive": (dict(score=apply("erf", S)), "from the xla form: `erf` has no form in Mosaic GPU"),
}


@pytest.mark.parametrize("name", NOTES)
def test_reports_say_which_gradient_is_used(name: str) -> None:
    fields, said = NOTES[name]
    assert gradient_note(KERNEL, attention(**fields), H200) == said


def test_the_table_asks_for_the_kernel_with_gradients() -> None:
    eqn = attention()
    kernel = choose(eqn, H200).kernel
    assert kernel.name == "pallas_gpu" and kernel.gradient is KERNEL.gradient and not kernel.differentiable


def test_a_call_and_its_gradient(worker: Worker) -> None:
    """Forward kernel, gradient kernels, and what JAX makes of both, judged as anybody's."""
    sizes = Sizes(1, 70, 90, 2, 1, 32, DType.BF16)
    cases = [Case("alibi", attention_eqn(named_op("alibi", sizes), sizes), 1, "normal")]
    report = judge(KERNEL, cases=cases, target=replace(H200, interpret=True), laws=(), worker=worker)
    assert report.ok, report
    assert report.checked["gradients are the definition's"] == 1


@pytest.mark.device
@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_agree_with_float64(name: str) -> None:
    target = resolve("auto")
    if target.capability != 9.0:
        pytest.skip(f"needs a Hopper GPU; here is {target.name}")
    long = [Sizes(2, 1000, 1000, 4, 2, 128, DType.BF16), Sizes(1, 77, 2049, 4, 1, 64, DType.F16)]
    cases = [*standard_cases([name], [DType.BF16, DType.F16])]
    cases += [Case(name, attention_eqn(named_op(name, sizes), sizes), i) for i, sizes in enumerate(long)]
    report = judge(KERNEL, cases=cases, target=target, laws=(), gradients=True)
    print(f"{name}: {report.served} served, worst error {report.worst:.2f} of what is allowed")
    assert report.ok, report
    assert report.checked["gradients are the definition's"] == len(cases)
