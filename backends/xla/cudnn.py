"""Attention handed to cuDNN's fused kernel through `jax.nn`, where the formulas are ones that it knows.

Served: bf16 and f16 on an NVIDIA GPU of this process, no score or weigh formula, and the masks "everything",
causal, and causal with a window to the left. cuDNN aligns a causal mask at the start, tfc at the end: the two
meet where there are as many queries as keys. Gradients are cuDNN's own.
"""

from collections.abc import Callable
from math import inf

import jax

from tfc.backends.kernel import Kernel, Target
from tfc.backends.xla.attention import log_sum_exp
from tfc.formula.expr import Apply, Const, Expr, Token, conjuncts
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn
from tfc.ir.types import DType

__all__ = ["KERNEL", "band"]

Array = jax.Array


def band(mask: Expr) -> tuple[float, float] | None:
    """(low, high) where the mask is exactly low <= q - k <= high, infinite where unbounded; None for other masks."""
    low, high = -inf, inf
    for part in conjuncts(mask):
        bounds = _bounds(part)
        if bounds is None:
            return None
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return low, high


def _bounds(expr: Expr) -> tuple[float, float] | None:
    """What one comparison says of q - k."""
    if expr == Const(True):
        return -inf, inf
    if not isinstance(expr, Apply) or expr.fn not in ("lt", "le", "gt", "ge"):
        return None
    left, right = expr.args if expr.fn in ("lt", "le") else (expr.args[1], expr.args[0])
    slack = 1 if expr.fn in ("lt", "gt") else 0  # the comparison is left + slack <= right
    if isinstance(left, Apply) and left.fn == "abs":
        inner, reach = _terms(left.args[0]), _terms(right)
        if inner is None or reach is None or inner[:2] not in ((1, -1), (-1, 1)) or reach[:2] != (0, 0):
            return None
        middle = -inner[2] * inner[0]
        return middle - (reach[2] - slack), middle + (reach[2] - slack)
    below, above = _terms(left), _terms(right)
    if below is None or above is None:
        return None
    of_q, of_k, rest = below[0] - above[0], below[1] - above[1], above[2] - below[2] - slack
    return {(1, -1): (-inf, rest), (-1, 1): (-rest, inf)}.get((of_q, of_k))  # of_q * q + of_k * k <= rest


def _terms(expr: Expr) -> tuple[int, int, int] | None:
    """(coefficient of q, of k, constant) of a sum of tokens and whole numbers."""
    match expr:
        case Token("q"):
            return 1, 0, 0
        case Token("k"):
            return 0, 1, 0
        case Const(bool()):
            return None
        case Const(int(value)):
            return 0, 0, value
        case Apply("neg", (x,)):
            inner = _terms(x)
            return None if inner is None else (-inner[0], -inner[1], -inner[2])
        case Apply(("add" | "sub") as fn, (x, y)):
            a, b = _terms(x), _terms(y)
            if a is None or b is None:
                return None
            sign = 1 if fn == "add" else -1
            return a[0] + sign * b[0], a[1] + sign * b[1], a[2] + sign * b[2]
    return None


def _refuse(eqn: Eqn, target: Target) -> str | None:
    op = eqn.op
    assert isinstance(op, Attention)
    (b, n, h, d), (_, m, g, dv) = eqn.args[0].type.ints, eqn.args[2].type.ints
    limit = 256 if target.capability >= 9 else 128
    if target.platform != "gpu":
        return f"needs an NVIDIA GPU, the target is {target.name}"
    if target.interpret:
        return "a library call cannot be interpreted"
    if eqn.args[0].type.dtype not in (DType.BF16, DType.F16):
        return f"takes bf16 or f16, not {eqn.args[0].type.dtype}"
    if target.capability < 8:
        return f"needs compute capability 8.0, {target.name} has {target.capability}"
    if d != dv or d % 8 or d > limit:
        return f"head sizes {d} and {dv} are not one multiple of 8 up to {limit}"
    if 0 in (b, n, m, h, g):
        return "an axis is empty"
    if op.dropout:
        return "drops no weights by the seed and the place of each"
    if op.score != S:
        return f"the score `{op.score}` has no form in cuDNN as tfc calls it"
    if op.weigh != P:
        return f"the weights `{op.weigh}` have no form in cuDNN"
    return _mask_reason(op.mask, n, m) or (
        None if jax.default_backend() == "gpu" else "needs cuDNN's library, which JAX finds on a machine with a GPU"
    )


def _mask_reason(mask: Expr, n: int, m: int) -> str | None:
    found = band(mask)
    if found is None or found[0] not in (-inf, 0) or (found[0] == -inf and found[1] != inf) or found[1] < 0:
        return f"the mask `{mask}` is neither everything, causal, nor causal with a window"
    if found[0] == 0 and n != m:
        return f"aligns a causal mask at the start, and {n} queries over {m} keys are aligned at the end"
    return None


def _build(eqn: Eqn, target: Target) -> Callable[..., tuple[Array, ...]]:
    """`lse` is computed by plain jnp, in float32 (cuDNN's is rounded to bf16 by JAX); unread, it costs nothing."""
    op = eqn.op
    assert isinstance(op, Attention)
    found = band(op.mask)
    assert found is not None
    low, high = found

    def call(q: Array, k: Array, v: Array, *captured: Array) -> tuple[Array, ...]:
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=op.scale,
            is_causal=low == 0,
            local_window_size=(int(high), 0) if high != inf else None,
            implementation="cudnn",
        )
        return out, log_sum_exp(op, jax.numpy.float32, q, k, *captured)

    return call


KERNEL = Kernel(name="cudnn", op=Attention, refuse=_refuse, build=_build)
