"""A call of the library, in the samples' small model -> its value by the operations' definitions; formulas in numpy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tfc.backends.reference.program import evaluate
from tfc.front import front
from tfc.grammar.samples import STAGE
from tfc.ir.program import Program

__all__ = [
    "COLUMN", "FAST", "IDS", "IMAGE", "POS", "REAL", "ROW", "SEGMENT", "SIZE", "Array", "B", "C", "H", "T", "X",
    "close", "convolved", "heads", "join", "owned", "recurred", "rms", "rope", "run", "sigmoid", "silu", "softmax",
    "staged", "turned", "value",
]  # fmt: skip

Array = NDArray[Any]
B, T, C, H = 2, 16, 8, 2
"""Batch, tokens, channels, heads."""
_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(B, T, C))
IDS = _RNG.integers(0, 10, size=(B, T))
IMAGE = _RNG.normal(size=(B, 8, 8, 3))
SEGMENT, REAL, SIZE = IDS // 5, IDS > 0, IDS + 1
ROW, COLUMN = np.arange(T) // 4, np.arange(T) % 4
POS = np.arange(T)
"""What x carries on the stage."""

FAST = {"xla_backend_optimization_level": 0}
"""Compiled once as a whole: a tenth of the time that one operation after another takes."""


def staged(written: str, before: str = "") -> Program:
    """The program of an expression on the samples' stage, lengths bound."""
    text = STAGE.replace("  return CALL", f"{before}  return {written}")
    return front(text, passes=()).program.bind({"B": B, "T": T})


def owned(program: Program) -> dict[str, Array]:
    """A value for each parameter, the same for the same path."""
    out = {}
    for stored in program.stored():
        rng = np.random.default_rng(list(stored.path.encode()))
        out[stored.path] = rng.normal(size=stored.type.ints)
    return out


def run(program: Program, params: dict[str, Array] | None = None, real: Any = jnp.float64, **inputs: Array) -> Array:
    given = {"x": X, "ids": IDS, "image": IMAGE, **inputs}
    named = {i.value.name: jnp.asarray(given[i.value.name]) for i in program.inputs}
    arrays = {n: jnp.asarray(a) for n, a in (params if params is not None else owned(program)).items()}
    call = jax.jit(lambda arrays, named: evaluate(program, arrays, named, real)[0], compiler_options=FAST)
    return np.asarray(call(arrays, named))


def value(written: str, before: str = "", **inputs: Array) -> tuple[Array, dict[str, Array]]:
    """What the expression gives, and the parameters by the last parts of their paths."""
    program = staged(written, before)
    params = owned(program)
    return run(program, params, **inputs), {p.split(".", 1)[-1]: a for p, a in params.items()}


def close(found: Array, expected: Array, atol: float = 1e-11) -> None:
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-9, atol=atol)


# ---- formulas


def sigmoid(x: Array) -> Array:
    y: Array = 1 / (1 + np.exp(-x))
    return y


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    p: Array = e / e.sum(-1, keepdims=True)
    return p


def heads(x: Array, count: int = H) -> Array:
    return x.reshape(*x.shape[:-1], count, -1)


def join(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], -1)


def rms(x: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def turned(x: Array, angle: Array, pairing: str = "half") -> Array:
    """x [B, T, H, D] by angle [T, D / 2]."""
    pairs = x.shape[-1] // 2
    a, b = (x[..., :pairs], x[..., pairs:]) if pairing == "half" else (x[..., 0::2], x[..., 1::2])
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = a * cos - b * sin, b * cos + a * sin
    if pairing == "half":
        return np.concatenate([first, second], -1)
    return np.stack([first, second], -1).reshape(x.shape)


def rope(pairs: int, base: float = 1e4) -> Array:
    return POS[:, None] * base ** (-np.arange(pairs) / pairs)


def recurred(q: Array, k: Array, v: Array, decay: Array | None = None, segment: Array | None = None) -> Array:
    """q, k [B, T, H, K], v [B, T, H, V], decay the logarithm, of any shape that broadcasts to q's."""
    state = np.zeros((*q.shape[:1], q.shape[2], q.shape[3], v.shape[3]))
    g = np.zeros(q.shape) if decay is None else np.broadcast_to(decay, q.shape)
    out = []
    for t in range(q.shape[1]):
        if segment is not None and t:
            state = np.where((segment[:, t] == segment[:, t - 1])[:, None, None, None], state, 0)
        state = state * np.exp(g[:, t])[..., None] + k[:, t, :, :, None] * v[:, t, :, None]
        out.append(np.einsum("bhk,bhkv->bhv", q[:, t], state))
    return np.stack(out, 1)


def convolved(x: Array, weight: Array, segment: Array | None = None) -> Array:
    """Causal, a channel each; weight [kernel, C], its first row the token's own."""
    out = np.zeros_like(x)
    for t in range(x.shape[1]):
        for i in range(min(len(weight), t + 1)):
            same = 1.0 if segment is None else (segment[:, t] == segment[:, t - i])[:, None]
            out[:, t] += same * weight[i] * x[:, t - i]
    return out
