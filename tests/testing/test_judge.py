"""`judge` as a stranger uses it: JAX's own attention passes, wrong ones fail by name, and a hang is ended."""

import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc.testing
from tfc.backends.kernel import Kernel, Target
from tfc.backends.table import KERNELS
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn
from tfc.testing import judge, served
from tfc.testing.cases import FORMULAS, STANDARD, Case, Sizes, attention_eqn, named_op, sizes_of, standard_cases
from tfc.testing.judging import DEFINITION, ENDS, GRADIENTS, RUNS
from tfc.testing.worker import Worker

CPU = Target(name="cpu", platform="cpu")
KERNEL = {k.name: k for k in KERNELS[Attention]}
LAWS = {law.check.__name__: law.name for law in tfc.testing.LAWS}


@jax.jit
def sdpa(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v)


@jax.jit
def causal(q: Any, k: Any, v: Any) -> Any:
    n, m = q.shape[1], k.shape[1]
    seen = jnp.arange(m) <= jnp.arange(n)[:, None] + (m - n)
    out = jax.nn.dot_product_attention(q, k, v, mask=seen[None, None])
    return jnp.where(seen.any(1)[None, :, None, None], out, 0)  # JAX averages where a row sees nothing


@jax.jit
def top_left(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


@jax.jit
def no_scale(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, scale=1.0)


@jax.jit
def heads_in_turn(q: Any, k: Any, v: Any) -> Any:
    """Head h reads h % G, not h // (H // G)."""
    times = q.shape[2] // k.shape[2]
    return jax.nn.dot_product_attention(q, jnp.tile(k, (1, 1, times, 1)), jnp.tile(v, (1, 1, times, 1)))


@jax.jit
def no_maximum(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    times = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x.astype(jnp.float32), times, 2) for x in (k, v))
    e = jnp.exp(jnp.einsum("bnhd,bmhd->bhnm", q.astype(jnp.float32), k) * q.shape[3] ** -0.5)
    total = e.sum(-1)
    out = jnp.einsum("bhnm,bmhd->bnhd", e / total[..., None], v)
    return out.astype(q.dtype), jnp.log(total)


def small(*names: str, which: Iterable[int] = (1, 2, 4)) -> list[Case]:
    """Some of the standard cases, for tests that need no more."""
    by_size = list(standard_cases(names, [tfc.testing.judging.DType("f32")]))
    return [c for i, c in enumerate(by_size) if i % len(STANDARD) in which]


def test_an_implementation_of_jax_passes():
    report = judge(sdpa, laws=())
    assert report.ok, report
    assert report.served == len(STANDARD) and report.refusal is None and 0.2 < report.worst < 0.75
    assert str(report).startswith("sdpa: ok; 8 cases served, 0 refused; largest error 0.")


def test_an_implementation_of_jax_keeps_the_laws_and_has_the_gradients():
    report = judge(sdpa, cases=small("full", which=(0, 1, 5)), gradients=True)
    assert report.ok, report
    assert report.checked[DEFINITION] == report.checked[GRADIENTS] == report.checked[LAWS["linear_in_values"]] == 3
    no_masks = {
        LAWS[name] for name in ("blind_rows", "unseen_keys", "documents_apart", "positions_given", "neutral_terms")
    }
    assert set(report.checked) == {DEFINITION, GRADIENTS, *LAWS.values()} - no_masks


def test_a_causal_implementation_passes_and_the_usual_mistake_does_not():
    assert judge(causal, formulas=["causal"], laws=tfc.testing.LAWS[:5]).ok
    report = judge(top_left, formulas=["causal"], laws=tfc.testing.LAWS[:5])
    assert {DEFINITION, LAWS["blind_rows"], LAWS["unseen_keys"]} <= set(report.laws)
    # where N = M the two are the same
    assert {sizes_of(v.case.eqn).n - sizes_of(v.case.eqn).m for v in report.verdicts if v.violations} == {-48, -129, 30}


@pytest.mark.parametrize(
    ("wrong", "law"),
    [(no_scale, "definition"), (heads_in_turn, "grouped_heads"), (no_maximum, "rows_sum_to_one")],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_what_is_wrong_is_named(wrong: Any, law: str):
    report = judge(wrong, cases=small("full", which=(1, 2, 5)))
    assert not report.ok
    assert {DEFINITION, LAWS.get(law, DEFINITION)} <= set(report.laws), report
    if wrong is heads_in_turn:
        assert set(report.laws) == {DEFINITION, LAWS[law]}


def test_the_report_names_the_smallest_case():
    report = judge(no_maximum, cases=small("full", which=(1, 2, 3)), laws=tfc.testing.LAWS[:3])
    smallest = min((v for v in report.verdicts if v.violations), key=lambda v: sizes_of(v.case.eqn).elements)
    lines = str(report).splitlines()
    assert lines[0].startswith(f"no_maximum: {len(report.laws)} laws violated; 3 cases served")
    assert f"    smallest: {smallest.case}" in lines
    assert str(smallest.case) == "full, B=2 N=8 M=8 H=2 G=2 D=32 f32, seed 1 (large)"
    assert any("is nan, the definition says" in line for line in lines)


def test_reports_are_the_same_each_time():
    assert str(judge(no_scale, cases=small("full"))) == str(judge(no_scale, cases=small("full")))


@pytest.mark.slow
def test_a_callable_that_is_told_the_formula_is_asked_for_all():
    kernel = KERNEL["reference"]

    def any_formula(*operands: Any, op: Attention) -> Any:
        (b, n, h, _), (_, m, g, d) = (x.shape for x in operands[:2])
        sizes = Sizes(b, n, m, h, g, d)
        return kernel.build(attention_eqn(op, sizes), CPU)(*operands)

    report = judge(any_formula, cases=small("documents", which=(1,)))
    assert report.ok and LAWS["neutral_terms"] in report.checked


def test_a_kernel_is_judged_on_every_formula_and_its_refusals_are_counted():
    def refuse(eqn: Eqn, target: Target) -> str | None:
        return "serves no more than ten keys" if eqn.args[1].type.ints[1] > 10 else KERNEL["xla"].refuse(eqn, target)

    kernel = Kernel(name="few", op=Attention, refuse=refuse, build=KERNEL["xla"].build)
    report = judge(kernel, laws=(), gradients=False, dtypes=["f32"])
    assert report.ok, report
    assert len(report.verdicts) == len(FORMULAS) * len(STANDARD)
    assert report.refusals == {"serves no more than ten keys": len(FORMULAS) * (len(STANDARD) - 2)}
    assert f"refused {len(FORMULAS) * 6}: serves no more than ten keys" in str(report)
    assert served(kernel, [v.case for v in report.verdicts], CPU) == report.served == 2 * len(FORMULAS)


def test_one_equation_that_is_refused():
    sizes = Sizes(1, 4, 4, 2, 1, 32)
    report = judge(KERNEL["pallas_gpu"], eqn=attention_eqn(named_op("causal", sizes), sizes), target=CPU)
    assert report.ok and report.refusal == "needs a GPU, the target is cpu" and report.served == 0


def test_what_is_raised_is_a_violation():
    def broken(q: Any, k: Any, v: Any) -> Any:
        raise ZeroDivisionError("by nothing")

    report = judge(broken, cases=small("full", which=(0,)))
    assert report.laws == (RUNS,) and "ZeroDivisionError: by nothing" in report.violations[0].message


def test_a_result_of_another_shape_is_a_violation():
    report = judge(lambda q, k, v: sdpa(q, k, v)[0], cases=small("full", which=(1,)), laws=())
    assert report.violations[0].message == "out has shape [8, 2, 32], not [2, 8, 2, 32]"


def test_a_kernel_whose_types_are_not_the_equations_is_a_violation():
    def build(eqn: Eqn, target: Target) -> Any:
        return lambda *operands: tuple(x.astype(jnp.float16) for x in KERNEL["xla"].build(eqn, target)(*operands))

    kernel = Kernel(name="half", op=Attention, refuse=lambda eqn, target: None, build=build)
    report = judge(kernel, cases=small("full", which=(1,)))
    assert report.laws == (RUNS,) and "%out is float16[2, 8, 2, 32], the equation says f32" in str(report)


def test_a_wrong_gradient_is_found_where_values_are_right():
    @jax.custom_vjp
    def f(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, k, v)

    def backward(pull: Any, g: Any) -> Any:
        dq, dk, dv = pull(g)
        return dq, dk, dv * 1.01

    f.defvjp(lambda *operands: jax.vjp(sdpa, *operands), backward)
    assert judge(f, cases=small("full", which=(1, 2))).ok
    report = judge(f, cases=small("full", which=(1, 2)), gradients=True)
    assert report.laws == (GRADIENTS,) and "dv[" in report.violations[0].message


@pytest.fixture
def planted(tmp_path: Path) -> str:
    """A module that worker processes can import: one candidate that hangs at length 8, one that ends its process."""
    (tmp_path / "planted.py").write_text(
        textwrap.dedent("""
            import os, time, jax

            def hangs(q, k, v):
                while q.shape[1] == 8:
                    time.sleep(0.01)
                return jax.nn.dot_product_attention(q, k, v)

            def dies(q, k, v):
                os._exit(7)
        """)
    )
    return str(tmp_path)


def test_a_hang_is_ended_and_the_next_case_goes_on(planted: str):
    root = str(Path(__file__).parents[2])
    with Worker(environment={"PYTHONPATH": f"{root}:{planted}", "JAX_PLATFORMS": "cpu"}) as worker:
        ask = partial(judge, laws=(), worker=worker)
        report = ask("planted:hangs", cases=small("full", which=(1, 2)), isolate=15.0)
        assert [tuple(x.law for x in v.violations) for v in report.verdicts] == [(ENDS,), ()]
        assert "its process was ended" in str(report)
        report = ask("planted:dies", cases=small("full", which=(0,)), isolate=15.0)
        assert report.laws == (RUNS,) and "the process ended with code 7" in str(report)


def test_unknown_names():
    with pytest.raises(ValueError, match="there is no family `mixer`"):
        judge(sdpa, "mixer")
    with pytest.raises(ValueError, match="there is no formula `casual`; there are full, causal"):
        judge(sdpa, formulas=["casual"])
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tfc.testing.nothing


def test_every_public_name_is_there():
    for name in tfc.testing.__all__:
        assert getattr(tfc.testing, name) is not None


def test_operands_are_the_same_for_the_same_seed():
    for case in small("documents", "padding", "own"):
        for x, y in zip(case.operands(), case.operands(), strict=True):
            np.testing.assert_array_equal(x, y)
