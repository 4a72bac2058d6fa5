"""Each law on implementations with one fault each: it finds the fault that it is about, and none in a right one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Token, apply, rewrite, substitute, walk
from tfc.ir.ops import Attention, S
from tfc.ir.program import Eqn
from tfc.ir.types import DType
from tfc.testing import float64
from tfc.testing.cases import FORMULAS, Array, Case, Sizes, attention_eqn, named_op
from tfc.testing.judging import DEFINITION, GRADIENTS, Report, judge
from tfc.testing.laws import LAWS, additive

Results = tuple[Array, Array]
SIZES = (Sizes(2, 12, 12, 2, 1, 32), Sizes(2, 7, 13, 4, 2, 32), Sizes(1, 13, 6, 2, 2, 32))


def plain(op: Attention, *operands: Array) -> Results:
    """Attention in numpy at the operands' own precision."""
    (dtype,) = (t for t, d in float64.DTYPES.items() if d == operands[0].dtype)
    found = float64.attention(op, *operands, at=float64.Precision.of(dtype))
    return found.out.astype(operands[0].dtype), found.lse


@dataclass(frozen=True)
class Numpy:
    """A candidate for every formula: `f(op, q, k, v, *captured)`, and what is done to the gradient of k."""

    f: Callable[..., Results] = plain
    tilt: float = 0.0
    any_op: bool = True

    def run(self, eqn: Eqn, operands: Sequence[Array]) -> tuple[Array, Array | None]:
        assert isinstance(eqn.op, Attention)
        return self.f(eqn.op, *operands)

    def gradient(self, eqn: Eqn, operands: Sequence[Array], dout: Array) -> dict[int, Array] | None:
        assert isinstance(eqn.op, Attention)
        (dtype,) = (t for t, d in float64.DTYPES.items() if d == operands[0].dtype)
        found = float64.gradients(eqn.op, operands, dout, at=float64.Precision.of(dtype))
        return {i: g.value + (self.tilt if i == 1 else 0) for i, g in found.items()}


def cases(*names: str, flavours: Sequence[str] = ("normal", "documents", "blind"), dtype: str = "f32") -> list[Case]:
    found = []
    for name in names:
        for i, sizes in enumerate(SIZES):
            sizes = replace(sizes, dtype=DType(dtype))
            eqn = attention_eqn(named_op(name, sizes), sizes)
            found.append(Case(name, eqn, i, flavours[i % len(flavours)]))
    return found


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_a_right_implementation_keeps_every_law(dtype: str):
    """And every law is checked, on formulas of every kind."""
    report = judge(Numpy(), cases=cases(*FORMULAS, dtype=dtype))
    assert report.ok, report
    assert set(report.checked) == {law.name for law in LAWS} | {DEFINITION, GRADIENTS}
    assert report.worst < 0.75


def mapped(op: Attention, rule: Callable[[Expr], Expr | None]) -> Attention:
    return replace(op, score=rewrite(op.score, rule), mask=rewrite(op.mask, rule))


def top_left(op: Attention, q: Array, k: Array, *rest: Array) -> Results:
    """Positions counted from the start on both sides, where tfc counts from the end."""
    late = k.shape[1] - q.shape[1]
    return plain(mapped(op, lambda e: apply("sub", e, Const(late)) if e == Token("q") else None), q, k, *rest)


def no_maximum(op: Attention, *operands: Array) -> Results:
    out, lse = plain(op, *operands)
    over = (lse > 88).transpose(0, 2, 1)[..., None]
    return np.where(over, np.float32(np.nan), out), np.where(lse > 88, np.float32(np.inf), lse)


def no_scale(op: Attention, *operands: Array) -> Results:
    return plain(replace(op, scale=1.0), *operands)


def heads_in_turn(op: Attention, q: Array, k: Array, v: Array, *captured: Array) -> Results:
    times = q.shape[2] // k.shape[2]
    return plain(op, q, np.tile(k, (1, 1, times, 1)), np.tile(v, (1, 1, times, 1)), *captured)


def blind_means(op: Attention, q: Array, k: Array, v: Array, *captured: Array) -> Results:
    out, lse = plain(op, q, k, v, *captured)
    mean = np.repeat(v.mean(1, keepdims=True), q.shape[2] // k.shape[2], 2)
    return np.where(np.isneginf(lse).transpose(0, 2, 1)[..., None], mean, out), lse


def heavy(op: Attention, *operands: Array) -> Results:
    out, lse = plain(op, *operands)
    return out * np.float32(1.02), lse


def beyond(op: Attention, q: Array, k: Array, v: Array, *captured: Array) -> Results:
    """Weights that sum to one, and are not all positive."""
    out, lse = plain(op, q, k, v, *captured)
    flat, _ = plain(replace(op, scale=0.0), q, k, v, *captured)
    return 3 * out - 2 * flat, lse


def clipped(op: Attention, *operands: Array) -> Results:
    return plain(replace(op, score=apply("min", S, Const(0.5)) if op.score == S else op.score), *operands)


def leaking(op: Attention, q: Array, k: Array, v: Array, *captured: Array) -> Results:
    """The last bit depends on the mean of all values, seen or not: within rounding, but it is the future."""
    out, lse = plain(op, q, k, v, *captured)
    mean = np.repeat(v.mean(1, keepdims=True), q.shape[2] // k.shape[2], 2)
    return np.where(mean > 0, np.nextafter(out, 2 * out), out), lse


def mixing_batches(op: Attention, q: Array, *rest: Array) -> Results:
    out, lse = plain(op, q, *rest)
    return out + 0 * q.mean(0), lse


def tidy(op: Attention, *operands: Array) -> Results:
    return plain(op, *(np.nan_to_num(x) if x.dtype.kind == "f" else x for x in operands))


def by_place(op: Attention, q: Array, k: Array, v: Array, *captured: Array) -> Results:
    """Later keys count more."""
    return plain(replace(op, score=apply("add", op.score, apply("mul", Const(0.01), Token("k")))), q, k, v, *captured)


def by_row(op: Attention, *operands: Array) -> Results:
    """Later rows have larger results."""
    out, lse = plain(op, *operands)
    return out * (1 + 0.01 * np.arange(out.shape[1], dtype=np.float32))[:, None, None], lse


def base_two(op: Attention, *operands: Array) -> Results:
    out, lse = plain(op, *operands)
    return out, lse / np.float32(np.log(2))


def squares(op: Attention, q: Array, k: Array, v: Array, *captured: Array) -> Results:
    return plain(op, q, k, v + np.float32(0.01) * v * v, *captured)


def earlier_documents(op: Attention, *operands: Array) -> Results:
    """A token sees the documents before its own."""

    def rule(e: Expr) -> Expr | None:
        match e:
            case Apply("eq", (Load(a, "q", Kind.INT), Load(b, "k", Kind.INT))):
                return apply("ge", Load(a, "q", Kind.INT), Load(b, "k", Kind.INT))
        return None

    return plain(mapped(op, rule), *operands)


def own_positions(op: Attention, *operands: Array) -> Results:
    """Positions of keys that are given are taken to be one less."""
    found = {n for n in walk(op.mask) if isinstance(n, Load) and n.kind is Kind.INT and n.side == "k"}
    return plain(replace(op, mask=substitute(op.mask, {n: apply("sub", n, Const(1)) for n in found})), *operands)


def short_windows(op: Attention, *operands: Array) -> Results:
    """Windows are taken to be a quarter as wide."""

    def rule(e: Expr) -> Expr | None:
        match e:
            case Apply("lt", (Apply("sub", (Token("q"), Token("k"))) as distance, Const(int(width)))):
                return apply("lt", distance, Const(width // 4))
        return None

    return plain(mapped(op, rule), *operands)


LAW = {law.check.__name__: law.name for law in LAWS}
FAULTS: list[tuple[Callable[..., Results], Sequence[str], str]] = [
    # the fault, the formulas it is judged on, the check that names it
    (top_left, ["causal"], "unseen_keys"),
    (no_maximum, ["full"], "rows_sum_to_one"),
    (no_scale, ["full"], "definition"),
    (heads_in_turn, ["full"], "grouped_heads"),
    (blind_means, ["padding"], "blind_rows"),
    (heavy, ["full"], "rows_sum_to_one"),
    (beyond, ["full"], "convex_hull"),
    (clipped, ["full"], "row_constant"),
    (leaking, ["causal"], "unseen_keys"),
    (mixing_batches, ["full"], "other_batch_rows"),
    (tidy, ["full"], "nan_arrives"),
    (by_place, ["full"], "key_order"),
    (by_place, ["temperature"], "definition"),
    (by_row, ["full"], "query_order"),
    (base_two, ["full"], "split_and_merge"),
    (base_two, ["full"], "duplicated_keys"),
    (squares, ["full"], "linear_in_values"),
    (earlier_documents, ["documents"], "documents_apart"),
    (own_positions, ["causal"], "positions_given"),
    (short_windows, ["causal"], "neutral_terms"),
]


def found(fault: Callable[..., Results], names: Sequence[str]) -> Report:
    flavours = ("large", "normal", "documents") if fault is no_maximum else ("normal", "documents", "blind")
    return judge(Numpy(fault), cases=cases(*names, flavours=flavours), gradients=False)


@pytest.mark.parametrize(("fault", "names", "law"), FAULTS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_fault_is_found_by_its_law(fault: Callable[..., Results], names: Sequence[str], law: str):
    report = found(fault, names)
    assert LAW.get(law, DEFINITION) in report.laws, report


def test_every_law_has_a_fault_of_its_own():
    assert {law for _, _, law in FAULTS} | {"gradients_cancel"} == set(LAW) | {"definition"}


def test_gradients_that_do_not_cancel_are_found():
    report = judge(Numpy(tilt=0.001), cases=cases("causal"))
    assert set(report.laws) == {LAW["gradients_cancel"], GRADIENTS}


@pytest.mark.parametrize("fault", [leaking, mixing_batches, tidy], ids=lambda f: f.__name__)
def test_laws_find_what_comparing_values_cannot(fault: Callable[..., Results]):
    """Faults far below what rounding allows."""
    report = judge(Numpy(fault), cases=cases("causal", dtype="f32"), gradients=False)
    assert report.laws and DEFINITION not in report.laws


def test_scores_that_shift_with_s():
    bias: Any = Token("k")
    assert additive(S) and additive(apply("sub", apply("add", bias, S), bias))
    assert not additive(apply("sub", bias, S)) and not additive(apply("tanh", S)) and not additive(apply("add", S, S))
