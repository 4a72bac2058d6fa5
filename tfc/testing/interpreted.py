"""A function of arrays, traced by JAX, evaluated by numpy: nothing is compiled, and a thousand small programs are run.

Compiling a program of a few dozen small operations takes a second, and running it none. Primitives without a rule here
are run by JAX. Sums are in another order than XLA's, so results agree to rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

__all__ = ["Draw", "Traced", "interpreted", "mark"]

Array = np.ndarray[Any, np.dtype[Any]]


class Traced:
    """A function traced for arguments of some shapes; called, it gives numpy arrays.

    A call with a generator and a roundoff changes what `mark` has marked by a random unit of it, forward and backward:
    a draw of what rounding there does. Without, marks do nothing.
    """

    def __init__(self, f: Callable[..., Any], *args: Any) -> None:
        self.closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        self.structure = jax.tree.structure(shape)

    def __call__(self, *args: Any, draw: "Draw | None" = None) -> Any:
        with np.errstate(all="ignore"):
            flat = _closed(self.closed, [np.asarray(x) for x in jax.tree.leaves(args)], draw)
        return jax.tree.unflatten(self.structure, flat)


def interpreted(f: Callable[..., Any]) -> Callable[..., Any]:
    """f, whose results are numpy arrays."""

    def call(*args: Any) -> Any:
        return Traced(f, *args)(*args)

    return call


@dataclass(frozen=True, slots=True)
class Draw:
    """Random rounding. unit: of a mark's number of mantissa bits, the relative size of an error there."""

    rng: np.random.Generator
    unit: Callable[[int], float]

    def __call__(self, x: Array, bits: int) -> Array:
        return x * (1 + self.unit(bits) * self.rng.uniform(-1, 1, x.shape))


EXPONENT = 10
"""No type has an exponent of ten bits, so no program rounds to it."""


def mark(x: Any, bits: int) -> Any:
    """x, marked as a place of rounding to a mantissa of so many bits; for `Traced` only."""
    return jax.lax.reduce_precision(x, EXPONENT, bits)


def _closed(closed: Any, args: Sequence[Array], draw: Draw | None) -> list[Array]:
    jaxpr = closed.jaxpr
    env: dict[Any, Array] = dict(zip(jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Array:
        return np.asarray(v.val, _kind(v)) if isinstance(v, Literal) else env[v]

    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name in CALLS:
            found = CALLS[name](eqn.params, values, draw)
        elif name == "reduce_precision" and eqn.params["exponent_bits"] == EXPONENT:
            found = [draw(values[0], eqn.params["mantissa_bits"]) if draw else values[0]]
        elif name in RULES:
            found = [RULES[name](*values, **_known(eqn.params))]
        else:
            given = eqn.primitive.bind(*values, **eqn.params)
            found = [np.asarray(x) for x in (given if eqn.primitive.multiple_results else [given])]
        for out, x in zip(eqn.outvars, found, strict=True):
            env[out] = x if x.dtype == _kind(out) else x.astype(_kind(out))
    return [read(v) for v in jaxpr.outvars]


def _kind(v: Any) -> Any:
    return v.aval.dtype


def _known(params: Mapping[str, Any]) -> dict[str, Any]:
    return {f"_{k}" if k in ("slice_sizes",) else k: v for k, v in params.items()}


# --- calls and loops: (params, operands, random rounding) -> results


def _scan(params: Mapping[str, Any], args: Sequence[Array], draw: Draw | None) -> list[Array]:
    body = params["jaxpr"]
    fixed, carried, rows = map(list, params["ft_in"].update(args).unpack())
    carries = len(carried)
    turns = range(params["length"])
    columns: list[list[Array]] = []
    for i in reversed(turns) if params["reverse"] else turns:
        found = _closed(body, [*fixed, *carried, *(x[i] for x in rows)], draw)
        carried = found[:carries]
        columns.append(found[carries:])
    if params["reverse"]:
        columns.reverse()
    kinds = [v.aval for v in body.outvars[carries:]]
    stacked = [
        np.stack([c[n] for c in columns]) if columns else np.zeros((0, *k.shape), k.dtype) for n, k in enumerate(kinds)
    ]
    return [*carried, *stacked]


def _while(params: Mapping[str, Any], args: Sequence[Array], draw: Draw | None) -> list[Array]:
    n, m = params["cond_nconsts"], params["body_nconsts"]
    asked, fixed, carried = args[:n], args[n : n + m], list(args[n + m :])
    while bool(_closed(params["cond_jaxpr"], [*asked, *carried], draw)[0]):
        carried = _closed(params["body_jaxpr"], [*fixed, *carried], draw)
    return carried


def _cond(params: Mapping[str, Any], args: Sequence[Array], draw: Draw | None) -> list[Array]:
    branches = params["branches"]
    return _closed(branches[int(np.clip(args[0], 0, len(branches) - 1))], args[1:], draw)


def _inner(params: Mapping[str, Any], args: Sequence[Array], draw: Draw | None) -> list[Array]:
    body = next(params[k] for k in ("call_jaxpr", "jaxpr", "fun_jaxpr") if k in params)
    return _closed(body, args, draw)


CALLS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Array], Draw | None], list[Array]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    **dict.fromkeys(
        ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"),
        _inner,
    ),
    "optimization_barrier": lambda params, args, draw: list(args),
    "split": lambda params, args, draw: np.split(args[0], np.cumsum(params["sizes"])[:-1], params["axis"]),
}

# --- single results: (operands, params by name) -> result


def _wide(x: Array) -> Array:
    """Narrow floats as float32, in which their sums are made."""
    return x.astype(np.float32) if x.dtype.kind not in "biufc" or x.dtype == np.float16 else x


def _dot(x: Array, y: Array, dimension_numbers: Any, preferred_element_type: Any = None, **_: Any) -> Array:
    ((xc, yc), (xb, yb)) = dimension_numbers
    xf = [d for d in range(x.ndim) if d not in (*xc, *xb)]
    yf = [d for d in range(y.ndim) if d not in (*yc, *yb)]
    batch = [x.shape[d] for d in xb]
    depth = math.prod(x.shape[d] for d in xc)
    left = np.transpose(_wide(x), (*xb, *xf, *xc)).reshape(*batch, -1, depth)
    right = np.transpose(_wide(y), (*yb, *yc, *yf)).reshape(*batch, depth, -1)
    out: Array = np.matmul(left, right).reshape(*batch, *(x.shape[d] for d in xf), *(y.shape[d] for d in yf))
    return out


def _broadcast(x: Array, shape: Any, broadcast_dimensions: Any, **_: Any) -> Array:
    wide = [1] * len(shape)
    for n, d in zip(x.shape, broadcast_dimensions, strict=True):
        wide[d] = n
    return np.broadcast_to(x.reshape(wide), shape)


def _divided(x: Array, y: Array) -> Array:
    if x.dtype.kind not in "iu":
        return x / y
    safe = np.where(y == 0, 1, y)
    return np.where(y == 0, -1, np.sign(x) * np.sign(safe) * (np.abs(x) // np.abs(safe)))


def _remainder(x: Array, y: Array) -> Array:
    if x.dtype.kind not in "iu":
        return np.fmod(x, y)
    return np.where(y == 0, x, np.fmod(x, np.where(y == 0, 1, y)))


def _converted(x: Array, new_dtype: Any, **_: Any) -> Array:
    if x.dtype.kind == "f" and np.dtype(new_dtype).kind in "iu":
        ends = np.iinfo(new_dtype)
        return np.clip(np.nan_to_num(np.trunc(x), nan=0.0), float(ends.min), float(ends.max)).astype(new_dtype)
    return x != 0 if np.dtype(new_dtype) == bool else x.astype(new_dtype)


def _rounded(x: Array, rounding_method: Any, **_: Any) -> Array:
    return np.rint(x) if int(rounding_method) == 1 else np.trunc(x + np.copysign(0.5, x))


def _selected(which: Array, *cases: Array) -> Array:
    return np.where(which, cases[1], cases[0]) if which.dtype == bool else np.choose(which, cases)


def _starts(at: Sequence[Array], shape: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    low = [min(max(int(i), 0), n - size) for i, n, size in zip(at, shape, sizes, strict=True)]
    return tuple(slice(i, i + size) for i, size in zip(low, sizes, strict=True))


def _updated(x: Array, update: Array, *at: Array, **_: Any) -> Array:
    out = np.array(x)
    out[_starts(at, x.shape, update.shape)] = update
    return out


def _places(
    shape: Sequence[int], at: Array, starts: Sequence[int], dropped: Sequence[int], batched: Sequence[int],
    batches: Sequence[int], sizes: Sequence[int], clip: bool,
) -> tuple[list[Array], Array, list[int]]:  # fmt: skip
    """Where the elements of slices are: an index array for each axis, [index batch.., window..]; which slices lie
    within; and the window's axes."""
    rows = at.shape[:-1]
    window = [d for d in range(len(shape)) if d not in (*dropped, *batched)]
    extent = [sizes[d] for d in window]
    first: dict[int, Array] = {d: at[..., k] for k, d in enumerate(starts)}
    for d, b in zip(batched, batches, strict=True):
        first[d] = np.arange(rows[b]).reshape([-1 if i == b else 1 for i in range(len(rows))])
    inside = np.ones(rows, bool)
    found = []
    for d, n in enumerate(shape):
        low = np.broadcast_to(first.get(d, np.zeros((), int)), rows)
        most = n - (1 if d in batched else sizes[d])
        inside &= (low >= 0) & (low <= most)
        low = np.clip(low, 0, most)
        step = np.zeros((1,) * len(window), int)
        if d in window:
            w = window.index(d)
            step = np.arange(sizes[d]).reshape([-1 if i == w else 1 for i in range(len(window))])
        found.append(np.broadcast_to(low.reshape(*rows, *[1] * len(window)) + step, (*rows, *extent)))
    return found, np.ones_like(inside) if clip else inside, window


def _gather(
    x: Array, at: Array, dimension_numbers: Any, _slice_sizes: Any, mode: Any, fill_value: Any, **_: Any
) -> Array:
    d = dimension_numbers
    index, inside, window = _places(
        x.shape, at, d.start_index_map, d.collapsed_slice_dims, d.operand_batching_dims,
        d.start_indices_batching_dims, _slice_sizes, "CLIP" in str(mode).upper(),
    )  # fmt: skip
    out = x[tuple(index)]
    if not inside.all() and "FILL" in str(mode).upper():
        kind = x.dtype.kind
        fill = fill_value if fill_value is not None else False if kind == "b" else np.nan
        if fill_value is None and kind in "iu":
            fill = np.iinfo(x.dtype).min if kind == "i" else np.iinfo(x.dtype).max
        out = np.where(inside.reshape(*inside.shape, *[1] * len(window)), out, np.asarray(fill).astype(x.dtype))
    rows = out.ndim - len(window)
    kept = [i for i in range(out.ndim) if i not in d.offset_dims]
    return np.moveaxis(out, range(out.ndim), [*kept, *d.offset_dims]) if rows else out


def _scatter(how: Any) -> Callable[..., Array]:
    def scatter(x: Array, at: Array, updates: Array, dimension_numbers: Any, mode: Any, **_: Any) -> Array:
        d = dimension_numbers
        gone = (*d.inserted_window_dims, *d.operand_batching_dims)
        sizes = [1] * x.ndim
        for a, w in zip([a for a in range(x.ndim) if a not in gone], d.update_window_dims, strict=True):
            sizes[a] = updates.shape[w]
        index, inside, window = _places(
            x.shape, at, d.scatter_dims_to_operand_dims, d.inserted_window_dims, d.operand_batching_dims,
            d.scatter_indices_batching_dims, sizes, "CLIP" in str(mode).upper(),
        )  # fmt: skip
        rows = [i for i in range(updates.ndim) if i not in d.update_window_dims]
        moved = np.transpose(updates, (*rows, *d.update_window_dims))
        out = np.array(x)
        seen = np.broadcast_to(inside.reshape(*inside.shape, *[1] * len(window)), moved.shape)
        where = tuple(i[seen] for i in index)
        if how is None:
            out[where] = moved[seen]
        else:
            how.at(out, where, moved[seen])
        return out

    return scatter


def _cumulated(how: Any) -> Callable[..., Array]:
    def rule(x: Array, axis: int, reverse: bool) -> Array:
        flipped = np.flip(x, axis) if reverse else x
        out: Array = how(flipped, axis=axis)
        return np.flip(out, axis) if reverse else out

    return rule


def _padded(x: Array, value: Array, padding_config: Any) -> Array:
    ends = zip(x.shape, padding_config, strict=True)
    shape = [low + n + max(n - 1, 0) * inner + high for n, (low, high, inner) in ends]
    out = np.full([max(n, 0) for n in shape], value, x.dtype)
    into, of = [], []
    for n, total, (low, _, inner) in zip(x.shape, shape, padding_config, strict=True):
        kept = [i for i in range(n) if 0 <= low + i * (inner + 1) < total]
        of.append(kept)
        into.append([low + i * (inner + 1) for i in kept])
    out[np.ix_(*into)] = x[np.ix_(*of)]
    return out


def _counted(dtype: Any, shape: Any, dimension: int, **_: Any) -> Array:
    along = [-1 if i == dimension else 1 for i in range(len(shape))]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(along), shape)


def _reduced(how: Any) -> Callable[..., Array]:
    return lambda x, axes, **_: np.asarray(how(_wide(x), axis=tuple(axes)))


def _plain(how: Any) -> Callable[..., Array]:
    return lambda *xs, **_: np.asarray(how(*xs))


def _chosen(how: Any) -> Callable[..., Array]:
    return lambda x, axes, index_dtype: np.asarray(how(x, axis=axes[0])).astype(index_dtype)


_ERF = np.vectorize(math.erf, otypes=[float])

PLAIN: Mapping[str, Any] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": _divided, "rem": _remainder,
    "max": np.maximum, "min": np.minimum, "neg": np.negative, "sign": np.sign, "abs": np.abs, "exp": np.exp,
    "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "sin": np.sin,
    "cos": np.cos, "sqrt": np.sqrt, "cbrt": np.cbrt, "pow": np.power, "floor": np.floor, "ceil": np.ceil,
    "square": np.square, "is_finite": np.isfinite, "eq": np.equal, "ne": np.not_equal, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "select_n": _selected,
    "rsqrt": lambda x: 1 / np.sqrt(x), "logistic": lambda x: 1 / (1 + np.exp(-x)), "erf": _ERF,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high), "copy": np.asarray, "copy_p": np.asarray,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "stop_gradient": np.asarray,
    "not": lambda x: np.logical_not(x) if x.dtype == bool else np.invert(x),
}  # fmt: skip

RULES: Mapping[str, Callable[..., Array]] = {
    **{name: _plain(how) for name, how in PLAIN.items()},
    "integer_pow": lambda x, y: x**y if y >= 0 else 1 / x**-y,
    "round": _rounded,
    "convert_element_type": _converted,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, dimensions: np.squeeze(x, tuple(dimensions)),
    "expand_dims": lambda x, dimensions: np.expand_dims(x, tuple(dimensions)),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "pad": _padded,
    "slice": lambda x, start_indices, limit_indices, strides: x[
        tuple(map(slice, start_indices, limit_indices, strides or [1] * x.ndim))
    ],
    "dynamic_slice": lambda x, *at, _slice_sizes: x[_starts(at, x.shape, _slice_sizes)],
    "dynamic_update_slice": _updated,
    "gather": _gather,
    "scatter-add": _scatter(np.add),
    "scatter": _scatter(None),
    "iota": _counted,
    "reduce_sum": _reduced(np.sum),
    "reduce_max": _reduced(np.max),
    "reduce_min": _reduced(np.min),
    "reduce_prod": _reduced(np.prod),
    "reduce_and": _reduced(np.all),
    "reduce_or": _reduced(np.any),
    "argmax": _chosen(np.argmax),
    "argmin": _chosen(np.argmin),
    "cumsum": _cumulated(np.cumsum),
    "cumprod": _cumulated(np.cumprod),
    "cummax": _cumulated(np.maximum.accumulate),
    "dot_general": _dot,
}
