"""A ParamMap and a tree of parameters -> the tree that the passes' program takes, and the way back.

Trees are flat: dotted path -> array, stacked where the parameter belongs to a `repeat`. Everything is plain `jnp`, so
gradients run through; every axis of a map counts from the end, so a stack is treated like its parts. Procedures
that fit (`Call`) are computed once for all their results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tfc.diagnostics import Diagnostic, TfcError
from tfc.ir.param_map import (
    Add,
    Call,
    Concat,
    Expr,
    MatVec,
    NonZero,
    ParamMap,
    Part,
    ScaleRows,
    Source,
    Stack,
    Sub,
    Turn,
    UnscaleRows,
    sources,
)
from tfc.params.fit import fitted

__all__ = ["Made", "evaluate", "failing_guards", "pack", "unpack"]

TOGETHER = 8
"""Parts that are stacked at once in a compiled function."""

Array = jax.Array
Tree = Mapping[str, Array]
Data = Mapping[str, Any]
"""Calibration statistics by key, for the procedures that ask for them."""


def pack(map: ParamMap, tree: Tree, data: Data | None = None) -> dict[str, Array]:
    """The parameters after the passes. Raises TfcError: E601 where one is missing, E631 where a procedure asks for
    calibration statistics that `data` lacks."""
    _need(map.forward, map.removed, tree, "the parameters before the passes")
    gone = map.removed | map.forward.keys()
    made: Made = {}
    new = {p: evaluate(e, tree, data, made) for p, e in map.forward.items()}
    return {p: x for p, x in tree.items() if p not in gone} | new


def unpack(map: ParamMap, tree: Tree) -> dict[str, Array]:
    """The parameters before the passes, from those after: bit for bit where a pass only moved them, to rounding where
    it scaled them. Raises TfcError E601 where one is missing."""
    _need(map.backward, frozenset(map.forward), tree, "the parameters after the passes (from `pack`)")
    gone = map.forward.keys() | map.backward.keys()
    made: Made = {}
    old = {p: evaluate(e, tree, None, made) for p, e in map.backward.items()}
    return {p: x for p, x in tree.items() if p not in gone} | old


def failing_guards(map: ParamMap, tree: Tree) -> tuple[NonZero, ...]:
    """The conditions that do not hold of these parameters (before the passes). Their values must be known: not under a
    trace."""
    arrays = [tree[g.path] for g in map.guards]
    if _on_host(arrays):
        holds = [np.count_nonzero(np.asarray(x)) == x.size for x in arrays]
    else:  # what devices find out is asked for once, when they all have been told to
        holds = jax.device_get([jnp.all(x != 0) for x in arrays])
    return tuple([g for g, held in zip(map.guards, holds, strict=True) if not held])


def _need(made: Mapping[str, Expr], taken: frozenset[str], tree: Tree, what: str) -> None:
    needed = frozenset().union(taken, *map(sources, made.values()))
    missing = sorted(needed - tree.keys())
    if missing:
        hint = f"give {what}"
        raise TfcError(*(Diagnostic("E601", f"the parameter `{path}` is missing", help=hint) for path in missing))


Made = dict[Expr, tuple[Array, ...]]
"""What is computed once: the results of calls, by the call with its result number 0, and scales."""


def evaluate(expr: Expr, tree: Tree, data: Data | None = None, made: Made | None = None) -> Array:
    """An expression over parameters. Leading axes beyond those that an operation speaks of are stacks.

    made: what is known so far; it grows.
    """
    made = {} if made is None else made

    def value(expr: Expr) -> Array:
        return evaluate(expr, tree, data, made)

    def once(scale: Expr) -> Array:
        if scale not in made:  # several weights have it
            made[scale] = (value(scale),)
        return made[scale][0]

    match expr:
        case Source(path):
            return tree[path]
        case Concat(parts, axis):
            return jnp.concatenate([value(p) for p in parts], axis)
        case Stack(parts, axis):
            return _stacked([tree[p.path] if isinstance(p, Source) else value(p) for p in parts], axis)
        case Turn(of, index, axis):
            return jax.lax.index_in_dim(value(of), index, axis, keepdims=False)
        case Part(of, start, size, axis):
            return jax.lax.slice_in_dim(value(of), start, start + size, axis=axis)
        case ScaleRows(weight, scale):
            w = value(weight)
            return w * once(scale).astype(w.dtype)[..., None]
        case UnscaleRows(weight, scale):
            w = value(weight)
            return w / once(scale).astype(w.dtype)[..., None]
        case MatVec(vector, weight):
            v, w = value(vector), value(weight)
            wide = jnp.promote_types(jnp.float32, w.dtype)
            out = jnp.einsum("...k,...ko->...o", v.astype(wide), w.astype(wide), precision="highest")
            return out.astype(w.dtype)
        case Add(left, right):
            return value(left) + value(right)
        case Sub(left, right):
            return value(left) - value(right)
        case Call(result=result):
            call = replace(expr, result=0)
            if call not in made:
                made[call] = fitted(call, [value(p) for p in expr.of], data)
            return made[call][result]
    raise TypeError(f"{type(expr).__name__} is no expression over parameters")


def _stacked(parts: Sequence[Array], axis: int) -> Array:
    """Parts one upon another. XLA compiles an array put together of many, and its gradient, for long (on a CPU 2 and
    7 ms for each part), so those that lie in the host's memory are put together there; and elsewhere a few at a time,
    which it must not put into one again: a fifth of that, for one more copy."""
    if _on_host(parts):
        return jnp.asarray(np.stack(parts, axis))
    if len(parts) <= TOGETHER:
        return jnp.stack(parts, axis)
    few = [jnp.stack(parts[n : n + TOGETHER], axis) for n in range(0, len(parts), TOGETHER)]
    return jnp.concatenate([jax.lax.optimization_barrier(x) for x in few], axis)


def _on_host(arrays: Sequence[Array]) -> bool:
    """Whether they all lie in the host's memory: numpy's, and those of one CPU device."""
    kinds = set(map(type, arrays))
    if not all(issubclass(kind, np.ndarray | jax.Array) and not issubclass(kind, Tracer) for kind in kinds):
        return False
    shardings: set[Any] = {x.sharding for x in arrays if not isinstance(x, np.ndarray)}
    return all(s.num_devices == 1 and next(iter(s.device_set)).platform == "cpu" for s in shardings)
