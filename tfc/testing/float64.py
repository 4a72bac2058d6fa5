"""An attention equation and its arrays turned into results and gradients in float64, by plain numpy.

A second definition beside `backends.reference`, sharing no code with it or with any kernel. The same text
computes at other precisions: `at=Precision(...)` gives what a plain implementation at a kernel's own precision
would lose. Beside each value stands its `unit`: how far rounding alone may be expected to move it (see
`tolerance`), by Higham's running error analysis (Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.3).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import erf
from statistics import NormalDist
from typing import Any

import numpy as np

from tfc.backends import kernel
from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, Load, Read, Token, Var, kind_of, walk
from tfc.ir.ops import Attention, P
from tfc.ir.types import DType

__all__ = [
    "DTYPES",
    "FLOAT64",
    "Attended",
    "Dense",
    "Precision",
    "attention",
    "attention_leaves",
    "evaluate",
    "gradients",
    "seen_by",
]

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: Mapping[DType, Any] = {t: np.dtype(d) for t, d in kernel.DTYPES.items()}
"""The element types of the IR as numpy names them."""

S, H = Var("s", Kind.REAL), Var("h", Kind.INT)
ROUNDOFF: Mapping[Any, float] = {
    DTYPES[DType.BF16]: 2.0**-8, DTYPES[DType.F16]: 2.0**-11, DTYPES[DType.F32]: 2.0**-24, DTYPES[DType.F64]: 2.0**-53
}  # fmt: skip
"""Unit roundoff of each floating type: half the distance from 1 to the next larger number."""

UNDERFLOW: Mapping[Any, float] = {
    DTYPES[DType.BF16]: 2.0**-126,
    DTYPES[DType.F16]: 2.0**-25,
    DTYPES[DType.F32]: 2.0**-126,
    DTYPES[DType.F64]: 2.0**-1022,
}
"""What storing a number in each type may lose however small it is: devices flush what lies below the smallest
normal number to zero, except in float16, where numbers below 6e-5 are spaced by 2^-24."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What sums and formulas are computed in (`real`), and what weights and results are rounded to (`store`)."""

    real: Any
    store: Any

    @staticmethod
    def of(dtype: DType) -> "Precision":
        """A kernel's own: operands and weights in their type, everything between in float32 or wider."""
        return Precision(DTYPES[DType.F64 if dtype is DType.F64 else DType.F32], DTYPES[dtype])

    def rounded(self, x: Array) -> Array:
        return np.asarray(x.astype(self.store).astype(self.real))


FLOAT64 = Precision.of(DType.F64)


@dataclass(frozen=True, slots=True)
class Dense:
    """A formula's value on whole arrays, its rounding error, and its derivatives.

    error: in units of the precision's roundoff, at most to first order, if every operation rounds once.
    slopes: the derivative with respect to each real leaf that occurs, and its rounding error in the same units.
    """

    value: Array
    error: Any = 0.0
    slopes: Mapping[Expr, tuple[Any, Any]] = field(default_factory=dict)

    def slope(self, leaf: Expr, like: Array) -> tuple[Array, Array]:
        """The derivative by `leaf` and its error, in the shape of `like`; zeros where it does not occur."""
        value, error = self.slopes.get(leaf, (0.0, 0.0))
        return value * np.ones_like(like), error * np.ones_like(like)


def _guarded(divide: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda x, y: np.where(y == 0, 0, divide(x, np.where(y == 0, 1, y)))


def _sign(x: Array) -> Array:
    return np.where(np.isnan(x), x, np.where(x < 0, -1, 1)).astype(x.dtype)


_ERF = np.vectorize(erf, otypes=[np.float64])
_QUANTILE = np.vectorize(
    lambda y: NormalDist().inv_cdf(y) if 0 < y < 1 else -np.inf if y == 0 else np.inf if y == 1 else np.nan,
    otypes=[np.float64],
)

VALUES: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "floordiv": _guarded(np.floor_divide), "mod": _guarded(np.mod), "pow": np.power, "neg": np.negative,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "where": np.where,
    "min": np.minimum, "max": np.maximum, "abs": np.abs, "sign": _sign,
    "round": np.rint, "floor": lambda x: np.floor(x).astype(np.int64),
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "exp": np.exp, "exp2": np.exp2,
    "log": np.log, "log1p": np.log1p, "tanh": np.tanh, "approximate_tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "erf": lambda x: _ERF(x).astype(x.dtype), "sin": np.sin, "cos": np.cos,
    "normal_quantile": lambda y: _QUANTILE(y).astype(y.dtype), "straight": lambda x, y: x + 0 * y, "stop": np.positive,
}  # fmt: skip
"""Each primitive of the closed table on arrays."""

Slopes = Callable[[Array, Sequence[Array]], Sequence[Any]]

SLOPES: Mapping[str, Slopes] = {
    # value and arguments -> the derivative by each argument; what is not here is constant almost everywhere
    "add": lambda _, a: (1.0, 1.0),
    "sub": lambda _, a: (1.0, -1.0),
    "mul": lambda _, a: (a[1], a[0]),
    "div": lambda y, a: (1 / a[1], -y / a[1]),
    "pow": lambda y, a: (a[1] * np.power(a[0], a[1] - 1.0), y * np.log(np.where(a[0] > 0, a[0], 1.0))),
    "neg": lambda _, a: (-1.0,),
    "where": lambda _, a: (0.0, np.where(a[0], 1.0, 0.0), np.where(a[0], 0.0, 1.0)),
    "min": lambda _, a: (np.where(a[0] < a[1], 1.0, 0.0), np.where(a[0] < a[1], 0.0, 1.0)),
    "max": lambda _, a: (np.where(a[0] > a[1], 1.0, 0.0), np.where(a[0] > a[1], 0.0, 1.0)),
    "abs": lambda _, a: (np.sign(a[0]),),
    "sqrt": lambda y, a: (0.5 / y,),
    "rsqrt": lambda y, a: (-0.5 * y / a[0],),
    "exp": lambda y, a: (y,),
    "exp2": lambda y, a: (y * np.log(2.0),),
    "log": lambda _, a: (1 / a[0],),
    "log1p": lambda _, a: (1 / (1 + a[0]),),
    "tanh": lambda y, a: (1 - y * y,),
    "approximate_tanh": lambda y, a: (1 - y * y,),
    "sigmoid": lambda y, a: (y * (1 - y),),
    "erf": lambda _, a: (2 / np.sqrt(np.pi) * np.exp(-a[0] * a[0]),),
    "normal_quantile": lambda x, _: (np.sqrt(2 * np.pi) * np.exp(x * x / 2),),
    "straight": lambda _, a: (0.0, 1.0),
    "sin": lambda _, a: (np.cos(a[0]),),
    "cos": lambda _, a: (-np.sin(a[0]),),
}

BOUNDED = frozenset({"tanh", "sigmoid", "erf", "sin", "cos"})
"""Functions that libraries compute to an error relative to their range, not to their value."""

LICENSED: Mapping[str, float] = {"approximate_tanh": 2.0**13}
"""Functions that may be off by more than float32 makes them: by how many of its roundoffs, 2^-24, of their value."""

CURVED = frozenset({"div", "pow", "sqrt", "rsqrt", "exp", "exp2", "log", "log1p"})
"""Functions whose derivative takes over their arguments' error."""


def _cast(x: Array, kind: Kind, real: Any) -> Array:
    return x if kind is Kind.BOOL else x.astype(np.int64 if kind is Kind.INT else real)


def evaluate(expr: Expr, leaves: Mapping[Expr, Dense], real: Any = FLOAT64.real) -> Dense:
    """The formula over the leaves' arrays, which broadcast. Raises FormulaError where a leaf has no value."""
    if expr in leaves:
        return leaves[expr]
    match expr:
        case Const(value):
            return Dense(_cast(np.asarray(value), kind_of(expr), real))
        case Apply(fn, args):
            values = [evaluate(a, leaves, real) for a in args]
            return _applied(fn, kind_of(expr), [kind_of(a) for a in args], values, real)
    raise FormulaError(f"`{expr}` has no value here")


def _applied(fn: str, kind: Kind, kinds: Sequence[Kind], args: Sequence[Dense], real: Any) -> Dense:
    numbers = [k for k in kinds if k is not Kind.BOOL]
    wide = Kind.REAL if Kind.REAL in (*numbers, kind) else Kind.INT
    values = [_cast(a.value, k if k is Kind.BOOL else wide, real) for a, k in zip(args, kinds, strict=True)]
    value = _cast(np.asarray(VALUES[fn](*values)), kind, real)
    if kind is not Kind.REAL or fn not in SLOPES:
        # whole numbers and truth values are exact; rounding to whole numbers is not a smooth function
        return Dense(value)
    factors = SLOPES[fn](value, values)
    own = np.maximum(np.abs(value), 1.0) if fn in BOUNDED else np.abs(value)
    error: Any = 0.0 if fn in ("neg", "abs", "where", "min", "max") else own * LICENSED.get(fn, 1.0)
    slopes: dict[Expr, tuple[Any, Any]] = {}
    for i, (factor, arg) in enumerate(zip(factors, args, strict=True)):
        if np.any(arg.error):
            error = error + np.abs(factor) * arg.error
        for leaf, (slope, lost) in arg.slopes.items():
            before = slopes.get(leaf, (0.0, 0.0))
            off = np.abs(factor) * lost + _factor_error(fn, factor, i, args) * np.abs(slope)
            slopes[leaf] = before[0] + factor * slope, before[1] + off
    return Dense(value, error, slopes)


def _factor_error(fn: str, factor: Any, i: int, args: Sequence[Dense]) -> Any:
    """What rounding does to the derivative of `fn` by its argument `i`: 1 - tanh^2, say, is good to one unit of 1."""
    if fn in BOUNDED:
        return 1 + args[0].error
    if fn in LICENSED:  # twice a value of at most 1, times what it is off
        return 1 + args[0].error + 2 * LICENSED[fn]
    if fn == "mul":
        return np.abs(factor) + args[1 - i].error
    steps = sum(a.error for a in args) if fn in CURVED else 0.0
    return np.abs(factor) * (1 + steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attended:
    """Attention's results, what gradients and units need of the way there, and the results' units.

    out: [B, N, H, Dv], lse: [B, H, N]; z, seen, p, weight: [B, H, N, M], the score, whether the mask leaves
    it, softmax weights and weights after the weigh formula; score, weigh: the formulas' values and slopes.
    out_unit, lse_unit: what rounding may be expected to add, see `tolerance`.
    """

    out: Array
    lse: Array
    seen: Array
    z: Array
    p: Array
    weight: Array
    score: Dense
    weigh: Dense
    weight_error: Array
    out_unit: Array
    lse_unit: Array


def _stored(x: Array, judged: Precision) -> Array:
    """The size that the rounding error of each element goes with when it is stored, underflow included."""
    return np.where(x == 0, 0.0, np.hypot(x, UNDERFLOW[judged.store] / ROUNDOFF[judged.store]))


def _heads(x: Array, heads: int, real: Any) -> Array:
    """[B, T, G, D] -> [B, H, T, D]: head i reads group i // (H // G)."""
    return np.repeat(x.astype(real), heads // x.shape[2], axis=2).transpose(0, 2, 1, 3)


def attention_leaves(shape: tuple[int, ...]) -> dict[Expr, Dense]:
    """Tokens and heads as arrays that broadcast to `shape`, [B, H, N, M]: query i stands at i + (M - N)."""
    _, heads, n, m = shape
    return {
        Token("q"): Dense(np.arange(n)[:, None] + (m - n)),
        Token("k"): Dense(np.arange(m)),
        H: Dense(np.arange(heads)[:, None, None]),
    }


def _leaves(op: Attention, shape: tuple[int, ...], captured: Sequence[Array], real: Any) -> dict[Expr, Dense]:
    """Tokens, heads and slots as arrays that broadcast to `shape`."""
    out = attention_leaves(shape)
    nodes = [node for e in (op.score, op.mask, op.weigh) for node in walk(e)]
    for node in nodes:
        if isinstance(node, Load):
            x = captured[node.slot]
            x = (x if x.ndim == 2 else x[None])[:, None]  # [B or 1, 1, T]
            value = x[..., :, None] if node.side == "q" else x[..., None, :]
            out[node] = Dense(_cast(value, node.kind, real), 0.0, {node: (1.0, 0.0)} if node.kind is Kind.REAL else {})
    for node in nodes:
        if isinstance(node, Read):
            value = captured[node.slot][_indices(node, captured[node.slot], out)]
            out[node] = Dense(_cast(value, node.kind, real), 0.0, {node: (1.0, 0.0)} if node.kind is Kind.REAL else {})
    return out


def _indices(node: Read, table: Array, leaves: Mapping[Expr, Dense]) -> tuple[Array, ...]:
    """Where the node reads its table; outside its bounds, at the nearest element."""
    at = (evaluate(i, leaves).value for i in node.indices)
    return tuple(np.clip(i, 0, size - 1) for i, size in zip(at, table.shape, strict=True))


def seen_by(op: Attention, q: Array, k: Array, captured: Sequence[Array]) -> Array:
    """Which keys each query may see: bool [B, H, N, M]."""
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    leaves = _leaves(op, shape, captured, FLOAT64.real)
    return np.broadcast_to(evaluate(op.mask, leaves).value, shape)


def attention(
    op: Attention,
    q: Array,
    k: Array,
    v: Array,
    *captured: Array,
    at: Precision = FLOAT64,
    judged: Precision | None = None,
) -> Attended:
    """The definition, head by head: mix(weigh(masked(score(scale * q k^T))), v).

    q: [B, N, H, D], k: [B, M, G, D], v: [B, M, G, Dv], captured: the formulas' slots. At a lower precision the
    weights are rounded to `at.store` before the second product, and so is the result. Units are those of the
    precision `judged`, by default `at`.
    """
    with np.errstate(all="ignore"):
        return _attention(op, q, k, v, captured, at, judged or at)


def _attention(
    op: Attention, q: Array, k: Array, v: Array, captured: Sequence[Array], at: Precision, judged: Precision
) -> Attended:
    real, heads = at.real, q.shape[2]
    qs, ks, vs = (_heads(x, heads, real) for x in (q, k, v))
    shape = (*qs.shape[:3], ks.shape[2])
    leaves = _leaves(op, shape, captured, real)
    s = real.type(op.scale) * (qs @ ks.swapaxes(2, 3))
    size = abs(op.scale) * np.linalg.norm(qs, axis=3)[..., :, None] * np.linalg.norm(ks, axis=3)[..., None, :]
    leaves[S] = Dense(s, size + np.abs(s), {S: (1.0, 0.0)})
    score = evaluate(op.score, leaves, real)
    seen = np.broadcast_to(evaluate(op.mask, leaves, real).value, shape)
    z = np.broadcast_to(score.value, shape)
    z_error = np.broadcast_to(np.asarray(score.error, real), shape)

    top = np.max(np.where(seen, z, -np.inf), axis=3, initial=-np.inf)
    base = np.where(np.isneginf(top), 0, top)
    e = np.where(seen, np.exp(z - base[..., None]), 0).astype(real)
    total = e.sum(3)
    lse = base + np.log(total)
    p = e / np.where(total == 0, 1, total)[..., None]
    # exp passes absolute errors on as relative ones, and the sum's error is shared by all weights of a row
    least = UNDERFLOW[judged.real] / ROUNDOFF[judged.real]
    p_error = np.where(p > 0, p * (z_error + np.abs(z - base[..., None]) + 2) + least, 0)
    p_error = p_error + p * p_error.sum(3)[..., None]
    weigh = evaluate(
        op.weigh, {**leaves, S: Dense(z, z_error, {S: (1.0, 0.0)}), P: Dense(p, p_error, {P: (1.0, 0.0)})}, real
    )
    weight = np.where(seen, weigh.value, 0).astype(real)
    weight_error = np.where(seen, weigh.error + np.zeros(shape), 0)

    out = (at.rounded(weight) @ vs).transpose(0, 2, 1, 3)
    kept = np.sqrt((_stored(weight, judged) ** 2 @ vs**2).transpose(0, 2, 1, 3) + _stored(out, judged) ** 2)
    lost = ((weight_error + weight) @ np.abs(vs)).transpose(0, 2, 1, 3)
    store, sums = ROUNDOFF[judged.store], ROUNDOFF[judged.real]
    lse_error = np.where(p > 0, p * (z_error + 2), 0).sum(3) + np.where(total == 0, 0, np.abs(lse)) + 1
    return Attended(
        out=out.astype(at.store).astype(real),
        lse=lse,
        seen=seen,
        z=z,
        p=p,
        weight=weight,
        score=score,
        weigh=weigh,
        weight_error=weight_error,
        out_unit=store * kept + sums * lost,
        lse_unit=sums * lse_error,
    )


@dataclass(frozen=True, slots=True)
class Gradient:
    """The derivative of sum(out * dout) + sum(lse * dlse) by one operand, in float64 or as rounded, and its unit."""

    value: Array
    unit: Array


def gradients(
    op: Attention,
    operands: Sequence[Array],
    dout: Array,
    dlse: Array | None = None,
    at: Precision = FLOAT64,
    judged: Precision | None = None,
) -> dict[int, Gradient]:
    """By operand number (0, 1, 2 for q, k, v, then the slots), for the operands of floating type.

    dout: [B, N, H, Dv], dlse: [B, H, N]. At a lower precision the weights and the scores' gradients are rounded
    to `at.store` before their products, as (arXiv:2205.14135) does, and the row sums use the rounded result; the
    weights' own gradients are rounded too, as they are where the rounding of the weights is differentiated.
    Units are those of the precision `judged`, by default `at`.
    """
    with np.errstate(all="ignore"):
        return _gradients(op, operands, dout, dlse, at, judged or at)


def _gradients(
    op: Attention, operands: Sequence[Array], dout: Array, dlse: Array | None, at: Precision, judged: Precision
) -> dict[int, Gradient]:
    q, k, v, *captured = operands
    f = _attention(op, q, k, v, captured, at, judged)
    real, heads, groups = at.real, q.shape[2], k.shape[2]
    store, sums = ROUNDOFF[judged.store], ROUNDOFF[judged.real]
    qs, ks, vs = (_heads(x, heads, real) for x in (q, k, v))
    do = dout.astype(real).transpose(0, 2, 1, 3)
    dw = at.rounded(do @ vs.swapaxes(2, 3))
    dw_size = np.abs(do) @ np.abs(vs).swapaxes(2, 3)
    by_p, by_p_error = f.weigh.slope(P, f.p)
    by_s, by_s_error = f.weigh.slope(S, f.p)
    dp = dw * by_p
    if op.weigh == P:  # the row sums of p dp are those of out dout
        delta = (do * f.out.transpose(0, 2, 1, 3)).sum(3)[..., None]
        jitter = store * np.sqrt((do**2 * f.out.transpose(0, 2, 1, 3) ** 2).sum(3))[..., None]
    else:
        delta = (f.p * dp).sum(3)[..., None]
        jitter = np.zeros_like(delta)
    direct = dw * by_s
    dz = f.p * (dp - delta) + direct
    if dlse is not None:
        dz = dz + f.p * dlse.astype(real)[..., None]
    dz = np.where(f.seen, dz, 0).astype(real)
    steps = f.score.error + np.abs(f.z - np.where(f.seen, f.lse[..., None], 0)) + 4
    dp_size = dw_size * (np.abs(by_p) + by_p_error)
    dz_error = np.abs(dz) * steps + f.p * (dp_size + (np.where(f.seen, f.p, 0) * dp_size).sum(3)[..., None])
    dz_error = dz_error + dw_size * (np.abs(by_s) + by_s_error)
    p = np.where(f.seen, f.p, 0)
    least = UNDERFLOW[judged.real] / ROUNDOFF[judged.real]
    dz_error = np.where(p > 0, dz_error + least * (1 + dp_size + (p * dp_size).sum(3)[..., None]), 0)

    # rounded twice: the weights' gradients, as a derivative of their rounding has it, and the scores'
    rounded = np.where(f.seen, np.hypot(_stored(dz, judged), p * dw), 0)
    slope, slope_error = f.score.slope(S, p)
    ds_error = np.where(p > 0, dz_error * np.abs(slope) + np.abs(dz) * slope_error, 0)
    scale = abs(op.scale)
    ds = at.rounded(dz * slope)
    out: dict[int, Gradient] = {}

    dq = op.scale * (ds @ ks)
    kept = np.sqrt(scale**2 * ((rounded * slope) ** 2 @ ks**2) + _stored(dq, judged) ** 2)
    unit = store * kept + scale * (jitter * np.abs((p * slope) @ ks) + sums * (ds_error @ np.abs(ks)))
    out[0] = Gradient(at.rounded(dq).transpose(0, 2, 1, 3), unit.transpose(0, 2, 1, 3))

    def joined(x: Array) -> Array:  # [B, H, M, D] -> [B, M, G, D], summed over the heads of a group
        b, _, m, d = x.shape
        return np.asarray(x.reshape(b, groups, heads // groups, m, d).sum(2).transpose(0, 2, 1, 3))

    dk = joined(op.scale * (ds.swapaxes(2, 3) @ qs))
    t_dz, t_p, t_error = (x.swapaxes(2, 3) for x in (rounded * slope, p * jitter * slope, ds_error))
    kept = np.sqrt(joined(scale**2 * (t_dz**2 @ qs**2 + t_p**2 @ qs**2 / store**2)) + _stored(dk, judged) ** 2)
    out[1] = Gradient(at.rounded(dk), store * kept + sums * scale * joined(t_error @ np.abs(qs)))

    weights = at.rounded(f.weight).swapaxes(2, 3)
    dv = joined(weights @ do)
    kept = np.sqrt(joined(_stored(weights, judged) ** 2 @ do**2) + _stored(dv, judged) ** 2)
    lost = joined((f.weight_error + f.weight).swapaxes(2, 3) @ np.abs(do))
    out[2] = Gradient(at.rounded(dv), store * kept + sums * lost)

    leaves = _leaves(op, f.p.shape, captured, real)
    seen_dw = np.where(f.seen, dw, 0)
    flows = (
        (f.score, dz, rounded, dz_error, p * jitter),
        (f.weigh, seen_dw, seen_dw, dw_size, np.zeros_like(p)),
    )
    for formula, flow, kept, error, shared in flows:
        for leaf in formula.slopes:
            if isinstance(leaf, Load | Read):
                g, g_error = formula.slope(leaf, p)
                share = _Share(leaf, captured[leaf.slot], p.shape, leaves)
                unit = share.unit(store * kept * g, sums * (error * np.abs(g) + np.abs(flow) * g_error), shared * g)
                nothing = np.zeros(captured[leaf.slot].shape)
                found = out.get(3 + leaf.slot, Gradient(nothing, nothing))
                out[3 + leaf.slot] = Gradient(found.value + share.sum(flow * g), found.unit + unit)
    for slot, x in enumerate(captured):
        if x.dtype in ROUNDOFF:
            out.setdefault(3 + slot, Gradient(np.zeros(x.shape), np.zeros(x.shape)))
    return out


@dataclass(frozen=True, slots=True)
class _Share:
    """How scores' gradients, [B, H, N, M], add up to that of an operand read by `leaf`."""

    leaf: Load | Read
    operand: Array
    shape: tuple[int, ...]
    leaves: Mapping[Expr, Dense]

    def sum(self, x: Array) -> Array:
        """x: [B, H, N, M], or [B, H, N, 1] where the leaf is the same for a whole row -> the operand's shape."""
        if isinstance(self.leaf, Load):
            x = x.sum((1, 3) if self.leaf.side == "q" else (1, 2))
            return np.asarray(x if self.operand.ndim == 2 else x.sum(0))
        total = np.zeros(self.operand.shape)
        at = _indices(self.leaf, self.operand, self.leaves)
        np.add.at(total, tuple(np.broadcast_to(i, x.shape) for i in at), x)
        return total

    def unit(self, rounded: Array, lost: Array, shared: Array) -> Array:
        """rounded: what storing each score's gradient costs, independently; lost: what sums in float32 do.

        shared: [B, H, N, M], the cost of a row sum's rounding, which all scores of a row have in common.
        """
        if isinstance(self.leaf, Load) and self.leaf.side == "k":
            common = np.sqrt(self.sum(shared**2))
        elif isinstance(self.leaf, Load) or all(np.shape(i)[-1:] in ((), (1,)) for i in self._at()):
            common = np.sqrt(self.sum(shared.sum(3, keepdims=True) ** 2))
        else:
            common = self.sum(np.abs(shared))
        return np.asarray(np.sqrt(self.sum(rounded**2)) + self.sum(lost) + common)

    def _at(self) -> tuple[Array, ...]:
        assert isinstance(self.leaf, Read)
        return tuple(evaluate(i, self.leaves).value for i in self.leaf.indices)
