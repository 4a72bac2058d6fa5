"""Every reason for which an attention kernel refuses: in words; and the edit that it suggests, applied, serves."""

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import tfc.backends
from tfc.backends import tilewise
from tfc.backends.kernel import Kernel, Target
from tfc.backends.pallas_gpu import attention, backward, decode
from tfc.backends.refusal import Reason
from tfc.backends.table import choose, named
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Reduce, Token, Var, apply, walk
from tfc.formula.scalar import Env, evaluate
from tfc.ir.ops import YES, Attention, P, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.testing import judge
from tfc.testing.worker import Worker

BACKENDS = Path(tfc.backends.__path__[0])
H200 = Target(name="h200", platform="gpu", capability=9.0, sms=132)
H, Q, K, D = Var("h", Kind.INT), Token("q"), Token("k"), Var("d", Kind.INT)
F32, F64 = DType.F32, DType.F64
B, HEADS = 1, 4


def equation(
    n: int = 40, m: int = 70, g: int = 2, d: int = 32, dv: int | None = None, dtype: DType = DType.BF16,
    score: Expr = S, mask: Expr = YES, weigh: Expr = P, dropout: float = 0.0, captured: tuple[TensorType, ...] = (),
) -> Eqn:  # fmt: skip
    types = [TensorType((B, t, h, x), dtype) for t, h, x in ((n, HEADS, d), (m, g, d), (m, g, dv or d))]
    if dropout:
        captured = (*captured, TensorType((2,), DType.I32))
    op = Attention(scale=0.2, score=score, mask=mask, weigh=weigh, dropout=dropout)
    args = tuple(Value(f"x{i}", t) for i, t in enumerate((*types, *captured)))
    return Eqn(tuple(map(Value, ("out", "lse"), op.infer(*(a.type for a in args)))), op, args)


def plus(x: Expr, *factor: Expr) -> Expr:
    return apply("add", S, apply("mul", x, *factor) if factor else x)


POWER = apply("pow", apply("add", apply("abs", S), Const(0.1)), Const(0.5))
PAIRS = Read(0, (apply("abs", apply("sub", Q, K)), H), Kind.REAL)
SUM = Reduce("sum", ("d",), Load(0, "k", Kind.REAL, (D,)))
ELEMENT = Load(0, "k", Kind.REAL, (Const(1),))


@dataclass(frozen=True)
class Case:
    """An equation that one reason of the module stands against, and a part of its text.

    without: why there is no edit, where there is none. cheap: whether the edited equation is interpreted, too.
    """

    module: str
    name: str
    text: str
    eqn: dict[str, Any] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    without: str = ""
    cheap: bool = False


NO_FORM = "the function has no other form"
WHOLE_ROW = "needs all scores of a row at once"
CASES = [
    Case("attention", "platform", "needs a GPU, the target is tpu", target=dict(platform="tpu")),
    Case("attention", "capability", "(Hopper), the target has 10.0", target=dict(capability=10.0)),
    Case("attention", "dtype", "computes in bf16 or f16, the operands are f32", dict(dtype=F32), cheap=True),
    Case("attention", "head size", "head size 24: takes multiples of 16 up to 256", dict(d=24), cheap=True),
    Case("attention", "head size", "head size 264: takes multiples of 16 up to 256", dict(d=264)),
    Case("attention", "value size", "values of size 40: takes multiples of 16", dict(dv=40)),
    Case("attention", "keys", "2097089 keys are more than 2097088", dict(m=64 * (2**15 - 1) + 1)),
    Case(
        "attention", "keys", "2097089 keys are more", dict(m=64 * (2**15 - 1) + 1, mask=Load(0, "k", Kind.BOOL),
        captured=(TensorType((B, 64 * (2**15 - 1) + 1), DType.BOOL),)),
    ),
    Case("attention", "dropout", "a key and `dropout = 0.1`", dict(dropout=0.1)),
    Case("attention", "function", "`^ with an exponent that is no whole number`", dict(score=POWER), cheap=True),
    Case("attention", "function", "`erf` has no form", dict(score=apply("erf", S)), without=NO_FORM),
    Case("attention", "function", "`erf` has no form", dict(weigh=apply("erf", P)), without=NO_FORM),
    Case(
        "attention", "weights in f16", "nothing bounds `max(s, 0.0)`",
        dict(dtype=DType.F16, weigh=apply("max", S, Const(0.0))),
    ),
    Case(
        "attention", "table", "per head or per token, and `$0[abs(q - k), h]`",
        dict(score=plus(PAIRS), captured=(TensorType((70, HEADS), F32),)), without="a number a pair of tokens",
    ),
    Case(
        "attention", "table", "per head or per token, and `$0[k]`",
        dict(score=plus(Read(0, (K,), Kind.REAL)), captured=(TensorType((70,), F32),)), cheap=True,
    ),
    Case(
        "attention", "table", "per head or per token, and `$0[q]`",
        dict(score=plus(Read(0, (Q,), Kind.REAL)), captured=(TensorType((70,), F32),)),
        without="the table goes on before the first query",
    ),
    Case(
        "attention", "f64", "reads f32 at most, and `$0[h]` is f64",
        dict(score=plus(Read(0, (H,), Kind.REAL)), captured=(TensorType((HEADS,), F64),)),
    ),
    Case(
        "attention", "f64", "reads f32 at most, and `$0.k` is f64",
        dict(score=plus(Load(0, "k", Kind.REAL)), captured=(TensorType((B, 70), F64),)),
    ),
    Case(
        "tilewise", "statistic", "`row.max` is a statistic",
        dict(score=plus(Var("row.max", Kind.REAL))), without=WHOLE_ROW,
    ),
    Case(
        "tilewise", "statistic", "`row.mean` is a statistic",
        dict(weigh=apply("mul", P, Var("row.mean", Kind.REAL))), without=WHOLE_ROW,
    ),
    Case(
        "tilewise", "element", "`$0.k[1]` is one of several",
        dict(score=plus(ELEMENT), captured=(TensorType((B, 70, 3), F32),)), cheap=True,
    ),
    Case(
        "tilewise", "element", "`$0.k[h]` is one of several",
        dict(score=plus(Load(0, "k", Kind.REAL, (H,))), captured=(TensorType((B, 70, HEADS), F32),)),
        without="another number for each head or pair",
    ),
    Case(
        "tilewise", "sum", "`sum[d]($0[d])` is a sum over them",
        dict(score=plus(Reduce("sum", ("d",), Read(0, (D,), Kind.REAL))), captured=(TensorType((3,), F32),)),
        without="a sum a pair of tokens",
    ),
    Case("backward", "head size", "head sizes 48 and 48 are not both", dict(d=48)),
    Case("backward", "head size", "head sizes 32 and 48 are not both", dict(dv=48)),
    Case("backward", "head size", "head sizes 32 and 512", dict(dv=512), without="nor does the forward kernel take it"),
    Case(
        "backward", "weigh", "weighs by the softmax alone, not by `2.0 * p`",
        dict(weigh=apply("mul", Const(2.0), P)), without="another function",
    ),
    Case("backward", "no real", "the score `q - k` is int", dict(score=apply("sub", Q, K)), cheap=True),
    Case(
        "backward", "no derivative", "a reduction has no derivative here",
        dict(score=plus(SUM), captured=(TensorType((B, 70, 3), F32),)),
        without="nor does the forward kernel take it",
    ),
    Case("backward", "function", "`erf` has no form", dict(score=apply("erf", S)), without=NO_FORM),
    Case("decode", "platform", "the target is cpu", dict(n=1), dict(platform="cpu")),
    Case("decode", "capability", "the target has 8.0", dict(n=1), dict(capability=8.0)),
    Case("decode", "rows", "packs 64 rows, and 40 queries of 2 heads", dict(n=40), cheap=True),
    Case(
        "decode", "rows", "40 queries of 2 heads",
        dict(n=40, mask=apply("le", K, Load(0, "q", Kind.INT)), captured=(TensorType((B, 40), DType.I32),)),
    ),
    Case("decode", "few keys", "8 queries over 8 keys have nothing to split", dict(n=8, m=8)),
    Case("decode", "dtype", "the operands are f32", dict(n=1, dtype=F32)),
    Case("decode", "head size", "head size 24 is no multiple of 16", dict(n=1, d=24)),
    Case("decode", "value size", "values of size 64 differ from the head size 32", dict(n=1, dv=64)),
    Case("decode", "dropout", "`dropout = 0.5`", dict(n=1, dropout=0.5)),
    Case("decode", "weigh", "not by `2.0 * p`", dict(n=1, weigh=apply("mul", Const(2.0), P)), without="see `either`"),
    Case("decode", "function", "exponent that is no whole number", dict(n=1, score=POWER)),
    Case(
        "decode", "table", "`$0[k]` is neither",
        dict(n=1, score=plus(Read(0, (K,), Kind.REAL)), captured=(TensorType((70,), F32),)),
    ),
    Case(
        "decode", "f64", "`$0.k` is f64",
        dict(n=1, score=plus(Load(0, "k", Kind.REAL)), captured=(TensorType((B, 70), F64),)),
    ),
]  # fmt: skip
EVERY = [pytest.param(c, id=f"{c.module}: {c.text}") for c in CASES]

SHARED = {"attention": ("refusals",), "decode": ("refusals",), "tilewise": (), "backward": ()}
"""Which modules the reasons of each come from, besides its own."""
SAID: dict[str, Callable[[Eqn, Target], Iterable[Reason]]] = {
    "attention": attention.reasons,
    "decode": decode.reasons,
    "backward": backward.reasons,
    "tilewise": lambda eqn, target: tilewise.limits(eqn),
}
FORCED = named(Attention, "pallas_gpu")
assert FORCED is not None
KERNELS: dict[str, Kernel] = {
    "attention": backward.KERNEL,
    "tilewise": FORCED,
    "backward": backward.KERNEL,
    "decode": decode.KERNEL,
}


def calls(file: Path) -> list[ast.Call]:
    """Where the file makes a `Reason`."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "Reason"]


def test_every_reason_of_the_code_has_a_case() -> None:
    found: dict[str, list[str]] = {}
    for file in (*BACKENDS.glob("*.py"), *(BACKENDS / "pallas_gpu").glob("*.py")):
        for call in calls(file):
            assert isinstance(call.args[0], ast.Constant), f"{file.name}:{call.lineno}: a name that can be looked up"
            found.setdefault(file.stem, []).append(str(call.args[0].value))
    assert found.pop("kernel") == ["refusal"]  # of kernels that give one reason
    assert set(found) == {*SHARED, "refusals"}
    for module, more in SHARED.items():
        names = [name for part in (module, *more) for name in found[part]]
        assert len(names) == len(set(names)), f"{module}: two reasons of one name"
        assert {c.name for c in CASES if c.module == module} == set(names), module


def test_kernels_refuse_by_reasons_alone() -> None:
    """No other way past the list above: each `refuse` of these kernels is the first of its reasons."""
    for module in (attention, decode, backward):
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        (body,) = (n.body for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "refuse")
        assert [ast.unparse(x) for x in body[1:]] == ["return first(reasons(eqn, target))"]


@pytest.mark.parametrize("case", EVERY)
def test_a_reason_is_in_words_and_its_edit_serves(case: Case) -> None:
    eqn, target = equation(**case.eqn), replace(H200, **case.target)
    (reason,) = SAID[case.module](eqn, target)
    assert reason.name == case.name and case.text in reason.text
    assert (reason.change is None) == bool(case.without)
    if reason.change is not None:
        assert reason.change.words
        eqn, target = reason.change.apply(eqn, target)
        assert not list(SAID[case.module](eqn, target))
        if case.module != "backward":
            assert choose(eqn, target, "pallas_gpu").kernel.name == "pallas_gpu"
    elif case.module in ("attention", "tilewise"):
        assert choose(eqn, target).kernel.name == "xla"


CHEAP = [c for c in CASES if c.cheap]


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{c.module}: {c.text}", marks=pytest.mark.slow if i % 2 else ()) for i, c in enumerate(CHEAP)],
)
def test_what_an_edit_makes_is_computed_right(case: Case, worker: Worker) -> None:
    """Interpreted, gradients too, beside the definition of the edited equation in float64."""
    (reason,) = SAID[case.module](equation(**case.eqn), H200)
    assert reason.change is not None
    eqn, target = reason.change.apply(equation(**case.eqn), replace(H200, interpret=True))
    report = judge(
        KERNELS[case.module], eqn=eqn, target=target, laws=(), worker=worker, gradients=case.module != "decode"
    )
    assert report.ok and report.served == 1, report


def test_edits_one_after_another_serve_where_several_reasons_hold() -> None:
    several: dict[str, Any] = dict(
        dtype=F32, d=24, dropout=0.1, score=apply("add", POWER, ELEMENT), captured=(TensorType((B, 70, 3), F32),)
    )
    eqn, target = equation(**several), replace(H200, platform="tpu", capability=0.0)
    assert FORCED is not None
    found = FORCED.against(eqn, target)
    assert [r.name for r in found] == ["platform", "dtype", "head size", "dropout", "function", "element"]
    for left in range(len(found), 0, -1):
        first, *rest = FORCED.against(eqn, target)
        assert len(rest) == left - 1 and first.change is not None
        eqn, target = first.change.apply(eqn, target)
    assert choose(eqn, target, "pallas_gpu").kernel.name == "pallas_gpu"


def test_a_reason_that_two_formulas_give_is_said_once() -> None:
    same = apply("erf", S)
    assert FORCED is not None
    found = FORCED.against(equation(score=plus(same, same), weigh=apply("mul", P, same)), H200)
    assert [r.text for r in found] == ["`erf` has no form in Mosaic GPU"]


@pytest.mark.parametrize("s", [-3.0, -0.1, 0.0, 0.7, 50.0])
def test_a_power_in_another_form_has_the_same_values(s: float) -> None:
    (reason,) = attention.reasons(equation(score=POWER), H200)
    assert reason.change is not None
    form = reason.change.op["score"]
    assert form != POWER and not any(getattr(node, "fn", "") == "pow" for node in walk(form))
    assert evaluate(form, Env({"s": s})) == pytest.approx(evaluate(POWER, Env({"s": s})), rel=1e-12)
