"""What the Hopper attention kernel serves, in which blocks; what it refuses is in `test_refusals.py`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu.attention import KERNEL, build, config_for
from tfc.backends.pallas_gpu.weighing import LSE
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

H200 = Target(name="h200", platform="gpu", capability=9.0, sms=132)
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
    outs = op.infer(q, k, v, *captured)
    args = tuple(Value(f"x{i}", t) for i, t in enumerate((q, k, v, *captured)))
    return Eqn((Value("out", outs[0]), Value("lse", outs[1])), op, args)


@pytest.mark.parametrize("d", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_served(d: int, dtype: DType) -> None:
    slope, real = TensorType((4,), DType.F32), TensorType((2, 32), DType.BOOL)
    score = apply("sub", S, apply("mul", Read(0, (H,), Kind.REAL), apply("abs", apply("sub", Q, K))))
    mask = apply("and", apply("le", K, Q), Load(1, "k", Kind.BOOL))
    eqn = attention(d=d, dtype=dtype, score=score, mask=mask, captured=(slope, real))
    assert KERNEL.refuse(eqn, H200) is None
    assert KERNEL.notes is not None
    config = config_for(d, 32, fields=1)
    said = {"block_q": config.block_q, "block_k": config.block_k, "stages": config.stages}
    assert KERNEL.notes(eqn, H200) == said


@pytest.mark.parametrize("head_dim", range(16, 257, 16))
@pytest.mark.parametrize("n", [1, 128, 4096])
@pytest.mark.parametrize("fields", [0, 1, 2])
def test_blocks_fit_into_shared_memory(head_dim: int, n: int, fields: int) -> None:
    """Q, the rings of K and V, the log-sum-exps, of blocks that stay the output: 227 KiB is what a Hopper block may
    have; and two stages overlap."""
    for values in range(16, 257, 16):
        config = config_for(head_dim, n, fields, values)
        rows = config.block_q * (max(head_dim, values) * 2 + 4 + (values * 2 if config.persistent else 0))
        assert rows + config.stages * config.block_k * (head_dim + values) * 2 <= 227 * 1024 - 1024
        assert config.stages >= 2
        assert config.persistent or max(head_dim, values) > 128


def test_what_does_not_fit_is_refused_in_words() -> None:
    """An option that asks for more memory than a block has: rings of four tiles at head size 256."""
    eqn = attention(d=256)
    config = replace(config_for(256, 32), stages=4)
    q = jax.ShapeDtypeStruct((2, 32, 4, 256), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"takes \d+ bytes of shared memory, a block has 232448"):
        jax.eval_shape(build(eqn, H200, config), q, q, q)


def test_two_passes_are_noted() -> None:
    """Weights that need the log-sum-exp before any of them is known take a launch more, and reports say so."""
    assert KERNEL.notes is not None
    assert "passes" in KERNEL.notes(attention(weigh=apply("max", P, Const(0.5))), H200)
    assert "passes" not in KERNEL.notes(attention(weigh=apply("mul", P, apply("sigmoid", LSE))), H200)
