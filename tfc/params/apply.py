"""A ParamMap and a tree of parameters -> the tree that the passes' program takes, and the way back.

Trees are flat: dotted path -> array, stacked where the parameter belongs to a `repeat`. Everything is plain `jnp`, so
gradients run through; every axis of a map counts from the end, so a stack is treated like its parts.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tfc.diagnostics import Diagnostic, TfcError
from tfc.ir.param_map import (
    Add,
    Concat,
    Expr,
    MatVec,
    NonZero,
    ParamMap,
    Part,
    ScaleRows,
    Source,
    Sub,
    UnscaleRows,
    sources,
)

__all__ = ["evaluate", "failing_guards", "pack", "unpack"]

Array = jax.Array
Tree = Mapping[str, Array]


def pack(map: ParamMap, tree: Tree) -> dict[str, Array]:
    """The parameters after the passes. Raises TfcError E601 where one is missing."""
    _need(map.forward, map.removed, tree, "the parameters before the passes")
    gone = map.removed | map.forward.keys()
    return {p: x for p, x in tree.items() if p not in gone} | {p: evaluate(e, tree) for p, e in map.forward.items()}


def unpack(map: ParamMap, tree: Tree) -> dict[str, Array]:
    """The parameters before the passes, from those after: bit for bit where a pass only moved them, to rounding where
    it scaled them. Raises TfcError E601 where one is missing."""
    _need(map.backward, frozenset(map.forward), tree, "the parameters after the passes (from `pack`)")
    gone = map.forward.keys() | map.backward.keys()
    return {p: x for p, x in tree.items() if p not in gone} | {p: evaluate(e, tree) for p, e in map.backward.items()}


def failing_guards(map: ParamMap, tree: Tree) -> tuple[NonZero, ...]:
    """The conditions that do not hold of these parameters (before the passes). Their values must be known: not under a
    trace."""
    return tuple(g for g in map.guards if not bool(jnp.all(tree[g.path] != 0)))


def _need(made: Mapping[str, Expr], taken: frozenset[str], tree: Tree, what: str) -> None:
    needed = frozenset().union(taken, *map(sources, made.values()))
    missing = sorted(needed - tree.keys())
    if missing:
        hint = f"give {what}"
        raise TfcError(*(Diagnostic("E601", f"the parameter `{path}` is missing", help=hint) for path in missing))


def evaluate(expr: Expr, tree: Tree) -> Array:
    """An expression over parameters. Leading axes beyond those that an operation speaks of are stacks."""
    match expr:
        case Source(path):
            return tree[path]
        case Concat(parts, axis):
            return jnp.concatenate([evaluate(p, tree) for p in parts], axis)
        case Part(of, start, size, axis):
            return jax.lax.slice_in_dim(evaluate(of, tree), start, start + size, axis=axis)
        case ScaleRows(weight, scale):
            w = evaluate(weight, tree)
            return w * evaluate(scale, tree).astype(w.dtype)[..., None]
        case UnscaleRows(weight, scale):
            w = evaluate(weight, tree)
            return w / evaluate(scale, tree).astype(w.dtype)[..., None]
        case MatVec(vector, weight):
            v, w = evaluate(vector, tree), evaluate(weight, tree)
            wide = jnp.promote_types(jnp.float32, w.dtype)
            out = jnp.einsum("...k,...ko->...o", v.astype(wide), w.astype(wide), precision="highest")
            return out.astype(w.dtype)
        case Add(left, right):
            return evaluate(left, tree) + evaluate(right, tree)
        case Sub(left, right):
            return evaluate(left, tree) - evaluate(right, tree)
    raise TypeError(f"{type(expr).__name__} is no expression over parameters")
