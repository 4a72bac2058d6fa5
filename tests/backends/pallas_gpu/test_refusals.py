"""What the Hopper attention kernel refuses, in words that name the reason."""

from dataclasses import replace
from typing import Any

import pytest

from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu.attention import KERNEL, config_for
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply
from tfc.ir.ops import YES, Attention, P, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

H200 = Target(name="h200", platform="gpu", capability=9.0)
H, Q, K = Var("h", Kind.INT), Token("q"), Token("k")


def attention(
    d: int = 64,
    dv: int | None = None,
    dtype: DType = DType.BF16,
    captured: tuple[TensorType, ...] = (),
    score: Expr = S,
    mask: Expr = Const(True),
    weigh: Expr = P,
) -> Eqn:
    q, k, v = (TensorType((2, 32, 4, n), dtype) for n in (d, d, dv or d))
    op = Attention(scale=1.0, score=score, mask=mask, weigh=weigh)
    outs = replace(op, mask=YES).infer(q, k, v, *captured)  # of a mask over scores the IR itself complains
    args = tuple(Value(f"x{i}", t) for i, t in enumerate((q, k, v, *captured)))
    return Eqn((Value("out", outs[0]), Value("lse", outs[1])), op, args)


TABLE = TensorType((9, 4), DType.F32)
ROW = TensorType((4,), DType.F64)

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "platform": ({}, dict(platform="tpu"), "needs a GPU, the target is tpu"),
    "capability": ({}, dict(capability=10.0), "needs compute capability 9.0 (Hopper), the target has 10.0"),
    "dtype": (dict(dtype=DType.F32), {}, "computes in bf16 or f16, the operands are f32"),
    "head size": (dict(d=80), {}, "head size 80 is not 32, 64 or 128"),
    "value size": (dict(dv=32), {}, "values of size 32 differ from the head size 64"),
    "primitive": (dict(score=apply("erf", S)), {}, "`erf` has no form in Mosaic GPU"),
    "weigh": (dict(weigh=apply("mul", P, Const(2.0))), {}, "weighs by the softmax alone, not by `p * 2.0`"),
    "scores in a mask": (dict(mask=apply("gt", S, Const(0.0))), {}, "masks by tokens and heads, and `s > 0.0`"),
    "table": (
        dict(score=apply("add", S, Read(0, (apply("sub", Q, K), H), Kind.REAL)), captured=(TABLE,)),
        {},
        "reads tables per head or per token, and `$0[q - k, h]` is neither",
    ),
    "f64": (
        dict(score=apply("add", S, Read(0, (H,), Kind.REAL)), captured=(ROW,)),
        {},
        "reads f32 at most, and `$0[h]` is f64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    eqn, facts, reason = REFUSED[name]
    said = KERNEL.refuse(attention(**eqn), replace(H200, **facts))
    assert said is not None
    assert reason in said


@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_served(d: int, dtype: DType) -> None:
    slope, real = TensorType((4,), DType.F32), TensorType((2, 32), DType.BOOL)
    score = apply("sub", S, apply("mul", Read(0, (H,), Kind.REAL), apply("abs", apply("sub", Q, K))))
    mask = apply("and", apply("le", K, Q), Load(1, "k", Kind.BOOL))
    eqn = attention(d=d, dtype=dtype, score=score, mask=mask, captured=(slope, real))
    assert KERNEL.refuse(eqn, H200) is None
    assert KERNEL.notes is not None
    config = config_for(d, 32, fields=True)
    said = {"block_q": config.block_q, "block_k": config.block_k, "stages": config.stages}
    assert KERNEL.notes(eqn, H200) == said


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("n", [1, 128, 4096])
@pytest.mark.parametrize("fields", [False, True])
def test_blocks_fit_into_shared_memory(head_dim: int, n: int, fields: bool) -> None:
    """Q, the rings of K and V, the log-sum-exps: 227 KiB is what a Hopper block may have."""
    config = config_for(head_dim, n, fields)
    tiles = config.block_q + 2 * config.stages * config.block_k
    assert tiles * head_dim * 2 + config.block_q * 4 <= 227 * 1024 - 1024
