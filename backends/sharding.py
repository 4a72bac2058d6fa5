"""A traced function and arrays sharded in their types turned into a call that leaves the sharding within to XLA.

On a mesh with explicit axes (what `jax.make_mesh` gives) JAX asks each gather and product how its result is sharded.
A program says it for its results: a length that is sharded in an argument is sharded alike in every result.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

from tfc.ir.program import Program
from tfc.ir.types import Dim, TensorType

__all__ = ["explicit_mesh", "without_explicit"]

Call = Callable[[Any, Mapping[str, Any]], Any]


def explicit_mesh(*trees: Any) -> Any:
    """The abstract mesh with explicit axes that some array is sharded over by its type, or None."""
    for x in jax.tree.leaves(trees):
        mesh = jax.typeof(x).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def without_explicit(f: Call, mesh: Any, program: Program, params: Any, given: Mapping[str, Any]) -> Any:
    """f(params, given), a tuple of the program's results and reports, traced with every axis of the mesh automatic."""
    leaves, structure = jax.tree.flatten((params, dict(given)))
    axes = _lengths(program, given)
    values = (*program.results, *(v for _, v in program.reports))
    shardings = tuple(NamedSharding(mesh, _spec(v.type, axes)) for v in values)
    names = tuple(n for n, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind is AxisType.Explicit)

    def plain(*leaves: Any) -> Any:
        return f(*jax.tree.unflatten(structure, leaves))

    return auto_axes(plain, axes=names, out_sharding=shardings)(*leaves)


def _plain(size: Any) -> str:
    """The name of a length that is nothing more, `B`; empty for other sizes."""
    match size:
        case Dim((((str(name),), 1),)):
            return name
    return ""


def _lengths(program: Program, given: Mapping[str, Any]) -> dict[str, Any]:
    """The mesh axes that each named length is sharded over in the first argument where it is."""
    found: dict[str, Any] = {}
    for i in program.inputs:
        x = given.get(i.value.name)
        if x is None or x.ndim != i.value.type.rank:
            continue
        spec: Sequence[Any] = tuple(jax.typeof(x).sharding.spec)
        for size, axes in zip(i.value.type.shape, (*spec, *[None] * (x.ndim - len(spec))), strict=True):
            if axes is not None and _plain(size):
                found.setdefault(_plain(size), axes)
    return found


def _spec(type: TensorType, lengths: Mapping[str, Any]) -> PartitionSpec:
    """How a value is sharded; an axis of the mesh serves one axis of it."""
    spec, used = [], set[str]()
    for size in type.shape:
        axes = lengths.get(_plain(size))
        names = {axes} if isinstance(axes, str) else set(axes or ())
        spec.append(None if names & used else axes)
        used |= names
    return PartitionSpec(*spec)
