"""A formula and the arrays it names turned into the dense array of its values, as the definition reads.

Shares no code with the readers that kernels use. Booleans are bool, integers int32, reals of one float type.
Every leaf is an array that broadcasts to the whole; nothing here saves work.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri

from tfc.formula.expr import Apply, Const, Expr, FormulaError, Kind, Load, Read, Reduce, Token, Var, kind_of

__all__ = ["Dense", "of_tokens", "primitive"]

Array = jax.Array


def _floordiv(x: Array, y: Array) -> Array:
    return jnp.where(y == 0, 0, jnp.floor_divide(x, jnp.where(y == 0, 1, y)))


def _mod(x: Array, y: Array) -> Array:
    return jnp.where(y == 0, 0, jnp.mod(x, jnp.where(y == 0, 1, y)))


def _sign(x: Array) -> Array:
    """-1 or +1, sign(0) = +1; a NaN stays one."""
    return jnp.where(x < 0, -jnp.ones_like(x), jnp.where(x >= 0, jnp.ones_like(x), x))


def _straight(x: Array, y: Array) -> Array:
    """x, with y's gradient; integers have none."""
    real = jnp.issubdtype(x.dtype, jnp.floating)
    return _straight_reals(x, y) if real else jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, y.shape))


@jax.custom_jvp
def _straight_reals(x: Array, y: Array) -> Array:
    return jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, y.shape))


@_straight_reals.defjvp
def _straight_slope(at: tuple[Array, Array], along: tuple[Array, Array]) -> tuple[Array, Array]:
    value = _straight_reals(*at)
    return value, jnp.broadcast_to(along[1], value.shape)


@jax.custom_jvp
def _normal_quantile(y: Array) -> Array:
    return ndtri(y)


@_normal_quantile.defjvp
def _normal_quantile_slope(at: tuple[Array], along: tuple[Array]) -> tuple[Array, Array]:
    x = _normal_quantile(*at)
    return x, along[0] * (math.sqrt(2 * math.pi) * jnp.exp(x * x / 2))


_MEANING: Mapping[str, Callable[..., Array]] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "floordiv": _floordiv,
    "mod": _mod,
    "pow": jnp.power,
    "neg": jnp.negative,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "and": jnp.logical_and,
    "or": jnp.logical_or,
    "not": jnp.logical_not,
    "where": jnp.where,
    "min": jnp.minimum,
    "max": jnp.maximum,
    "abs": jnp.abs,
    "sign": _sign,
    "round": jnp.round,
    "floor": lambda x: jnp.floor(x).astype(jnp.int32),
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "tanh": jnp.tanh,
    "approximate_tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "erf": lax.erf,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "normal_quantile": _normal_quantile,
    "straight": _straight,
    "stop": lambda x: lax.stop_gradient(x),
}


def primitive(fn: str, args: Sequence[Array | int], real: Any) -> Array:
    """A primitive of the closed table, element by element.

    args: bool, int32 or real arrays that broadcast. Integers turn real where another argument or the
    result is real. A power is by squaring where the exponent is an integer known beforehand.
    """
    kinds = [_kind(a) for a in args]
    # whether an integer power is an integer depends on the exponent's sign
    gives = kind_of(Apply(fn, tuple(Const(a) if isinstance(a, int) else Var("x", _kind(a)) for a in args)))
    takes_reals = gives is Kind.REAL or Kind.REAL in kinds or fn == "floor"

    def known_as(x: Any, kind: Kind) -> Any:
        return x if kind is Kind.BOOL or not takes_reals or isinstance(x, int) else x.astype(real)

    return _MEANING[fn](*map(known_as, args, kinds))


def _kind(x: Any) -> Kind:
    if isinstance(x, int):
        return Kind.INT
    return Kind.BOOL if x.dtype == jnp.bool_ else Kind.INT if jnp.issubdtype(x.dtype, jnp.integer) else Kind.REAL


@dataclass(frozen=True, slots=True)
class Dense:
    """What the leaves of a formula stand for, as arrays of one rank that broadcast against each other.

    real: the float type of real values. operands: what slots number. tokens: position of the query and of the key
    token. load: the elements of a slot's array for the token of a side, by the values of its indices.
    vars: implicit variables and indices by name. axes: the axis of each index of an index equation or a reduction,
    counted from the front, and `sizes` its length.
    """

    real: Any
    operands: Sequence[Array] = ()
    tokens: Mapping[str, Array] = field(default_factory=dict)
    load: Callable[[Array, str, Sequence[Array]], Array] | None = None
    vars: Mapping[str, Array] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, expr: Expr) -> Array:
        """The values of the formula. Raises FormulaError for a leaf that means nothing here."""
        match expr:
            case Const(bool(value)):
                return jnp.asarray(value)
            case Const(int(value)):
                return jnp.asarray(value, jnp.int32)
            case Const(value):
                return jnp.asarray(value, self.real)
            case Var(name, _) if name in self.vars:
                return self.vars[name]
            case Token(side) if side in self.tokens:
                return self.tokens[side]
            case Load(slot, side, _, indices) if self.load is not None:
                return self.load(self.operands[slot], side, [self(i) for i in indices])
            case Read(slot, indices, _):
                return self._read(self.operands[slot], [self(i) for i in indices])
            case Reduce(fn, names, body):
                return self._reduce(fn, names, body)
            case Apply("pow", (base, Const(int(n)))):
                return primitive("pow", (self(base), n), self.real)
            case Apply(fn, args):
                return primitive(fn, self._arguments(args), self.real)
        raise FormulaError(f"`{expr}` has no value here")

    def _arguments(self, args: Sequence[Expr]) -> list[Array]:
        """Arguments; an integer literal beside reals is that number, however large."""
        reals = any(kind_of(a) is Kind.REAL for a in args)
        return [
            jnp.asarray(a.value, self.real) if reals and isinstance(a, Const) and kind_of(a) is Kind.INT else self(a)
            for a in args
        ]

    def _read(self, table: Array, indices: Sequence[Array]) -> Array:
        """Elements of a table; an index beyond an end reads the element at that end."""
        return table[tuple(jnp.clip(i, 0, n - 1) for i, n in zip(indices, table.shape, strict=True))]

    def _reduce(self, fn: str, names: Sequence[str], body: Expr) -> Array:
        """`fn` over whole axes, which stay with size 1, also where the body does not vary along them."""
        values = self(body)
        axes = tuple(self.axes[n] for n in names)
        shape = list(values.shape) if values.ndim else [1] * (1 + max(self.axes.values()))
        for name, axis in zip(names, axes, strict=True):
            shape[axis] = self.sizes[name]
        values = jnp.broadcast_to(values, shape)
        if fn == "mean":
            values = values.astype(self.real)
        elif values.dtype == jnp.bool_ and fn not in ("any", "all"):
            values = values.astype(jnp.int32)
        how: Any = {"sum": jnp.sum, "mean": jnp.mean, "max": jnp.max, "min": jnp.min, "any": jnp.any, "all": jnp.all}
        out: Array = how[fn](values, axis=axes, keepdims=True)
        return out.astype(jnp.int32) if jnp.issubdtype(out.dtype, jnp.integer) else out


def of_tokens(x: Array, axis: int, indices: Sequence[Array], rank: int) -> Array:
    """A field's element for each token, along axis 0 of the result the batch and along `axis` the tokens.

    x: [B, T, A...] or [T, A...], an axis A for each of the indices, which have `rank` axes; an index beyond an end
    reads the element at that end.
    """
    if x.ndim == 1 + len(indices):
        x = x[None]
    batch = jnp.arange(x.shape[0]).reshape([-1] + [1] * (rank - 1))
    tokens = jnp.arange(x.shape[1]).reshape([-1 if i == axis else 1 for i in range(rank)])
    return x[(batch, tokens, *(jnp.clip(i, 0, n - 1) for i, n in zip(indices, x.shape[2:], strict=True)))]
