"""An attention equation turned into a call of the Hopper kernel: what it refuses, its block sizes, its operands."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tfc.backends.formula import unlowerable
from tfc.backends.kernel import Kernel, Target
from tfc.backends.pallas_gpu.streaming import Config, Plan, launch
from tfc.formula.expr import Expr, Kind, Load, Read, Side, Var, walk
from tfc.ir.ops import Attention, P
from tfc.ir.program import Eqn
from tfc.ir.types import DType

__all__ = ["KERNEL", "build", "config_for", "refuse"]

Array = jax.Array

DTYPES: Mapping[DType, Any] = {DType.BF16: jnp.bfloat16, DType.F16: jnp.float16}
HEAD_DIMS = (32, 64, 128)
H = Var("h", Kind.INT)


def config_for(head_dim: int) -> Config:
    """Block sizes by head size: what was fastest on an H200, see benchmarks/."""
    return Config(consumers=2, block_k=128, stages=2)


def refuse(eqn: Eqn, target: Target) -> str | None:
    """Why this kernel cannot serve `eqn` on `target`, or None when it can."""
    op = eqn.op
    assert isinstance(op, Attention)
    q, _, v, *captured = (a.type for a in eqn.args)
    if target.platform != "gpu":
        return f"needs a GPU, the target is {target.platform}"
    if target.capability != 9.0:
        return f"needs compute capability 9.0 (Hopper), the target has {target.capability}"
    if q.dtype not in DTYPES:
        return f"computes in bf16 or f16, the operands are {q.dtype}"
    if q.last not in HEAD_DIMS:
        return f"head size {q.last} is not 32, 64 or 128"
    if v.last != q.last:
        return f"values of size {v.last} differ from the head size {q.last}"
    if op.weigh != P:
        return f"weighs by the softmax alone, not by `{op.weigh}`"
    if missing := unlowerable(op.score, op.mask):
        return f"`{missing}` has no form in Mosaic GPU"
    for node in (n for expr in (op.score, op.mask) for n in walk(expr)):
        if isinstance(node, Read) and node.indices != (H,):
            return f"reads tables per head or per token, and `{node}` is neither"
        if isinstance(node, Load | Read) and captured[node.slot].dtype is DType.F64:
            return f"reads f32 at most, and `{node}` is f64"
    return None


def padded(x: Array, axis: int, size: int) -> Array:
    """x with zeros up to `size` along `axis`; x itself where it is as long."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return x if size == x.shape[axis] else jnp.pad(x, widths)


def up(n: int, multiple: int) -> int:
    """n rounded up to a multiple."""
    return -(-n // multiple) * multiple


def operands(captured: tuple[Array, ...], exprs: tuple[Expr, ...], ends: Mapping[Side, int]) -> tuple[Array, ...]:
    """Captured arrays as the kernel reads them: int32 or float32, fields as long as the last tile reaches.

    A slot that both sides read reaches as far as the longer of the two; one that none reads stays as it is.
    """
    reach = {s: 0 for s in range(len(captured))}
    for node in (n for expr in exprs for n in walk(expr)):
        if isinstance(node, Load):
            reach[node.slot] = max(reach[node.slot], ends[node.side])
    out = []
    for slot, x in enumerate(captured):
        x = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)
        out.append(padded(x, -1, reach[slot]) if reach[slot] else x)
    return tuple(out)


def call(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    """The plan as a function of (q, k, v, counts, triples, *captured), lengths and types as the equation has them."""
    n, m, config = plan.n, plan.m, plan.config
    ends: dict[Side, int] = {"q": up(n, config.block_q), "k": up(m, config.block_k)}
    kernel = launch(plan)

    def attention(q: Array, k: Array, v: Array, counts: Array, triples: Array, *captured: Array) -> tuple[Array, Array]:
        q, k, v = padded(q, 1, up(n, 8)), padded(k, 1, up(m, 8)), padded(v, 1, up(m, 8))
        out, lse = kernel(q, k, v, counts, triples, *operands(captured, (plan.score, plan.mask), ends))
        return out[:, :n], lse[:, :, :n]

    return attention


def build(eqn: Eqn, target: Target) -> Callable[..., tuple[Array, Array]]:
    """The equation as a function of q, k, v and the captured arrays that gives (out, lse)."""
    op, (q, k, _, *_) = eqn.op, (a.type for a in eqn.args)
    assert isinstance(op, Attention)
    (batch, n, heads, head_dim), (_, m, kv_heads, _) = q.ints, k.ints
    if batch * n * m == 0:  # nothing to see, or nobody to see it
        return lambda q, *_: (jnp.zeros_like(q), jnp.full((batch, heads, n), -jnp.inf, jnp.float32))
    plan = Plan(
        config=config_for(head_dim),
        batch=batch,
        n=n,
        m=m,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=DTYPES[q.dtype],
        scale=op.scale,
        score=op.score,
        mask=op.mask,
        interpret=target.interpret,
    )
    kernel = call(plan)

    def attention(q: Array, k: Array, v: Array, *captured: Array) -> tuple[Array, Array]:
        return kernel(q, k, v, *ranges(plan, captured), *captured)

    return attention


KERNEL = Kernel(name="pallas_gpu", op=Attention, refuse=refuse, build=build, differentiable=False)
