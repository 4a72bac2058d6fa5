"""Nested parameters <-> a flat mapping from dotted paths to arrays; complaints where they are not what is stored."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from tfc.diagnostics import Diagnostic, TfcError, closest
from tfc.ir.program import Stored
from tfc.ir.types import DType

__all__ = ["check", "flatten", "nest"]

DTYPES: Mapping[DType, str] = {
    DType.BOOL: "bool",
    DType.I32: "int32",
    DType.BF16: "bfloat16",
    DType.F16: "float16",
    DType.F32: "float32",
    DType.F64: "float64",
}
"""Element type -> its name in JAX and numpy."""


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{"layer": {"q": x}}` -> `{"layer.q": x}`, in the tree's order; keys may be dotted paths already.

    Raises TfcError E604 where one path is given twice or lies inside another.
    """
    flat: dict[str, Any] = {}
    faults: list[Diagnostic] = []
    for path, leaf in _leaves(tree, ""):
        if path in flat:
            faults.append(_clash(path, "is given twice"))
        flat[path] = leaf
    above: set[str] = set()
    for place in {path.rpartition(".")[0] for path in flat}:
        while place and place not in above:  # those above it are there, too
            above.add(place)
            place = place.rpartition(".")[0]
    if not above.isdisjoint(flat):
        faults += [_clash(path, "lies inside another") for path in flat if any(up in flat for up in _above(path))]
    if faults:
        raise TfcError(*faults)
    return flat


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _above(path: str) -> Iterator[str]:
    """The paths that `path` lies inside of: of `a.b.c`, `a.b` and `a`."""
    while path := path.rpartition(".")[0]:
        yield path


def _clash(path: str, fault: str) -> Diagnostic:
    return Diagnostic("E604", f"the parameter `{path}` {fault}", help="give each array under one path of its own")


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"layer.q": x}` -> `{"layer": {"q": x}}`. Raises TfcError E604 where a path lies inside another."""
    tree: dict[str, Any] = {}
    for path, leaf in flatten(flat).items():
        *above, last = path.split(".")
        place = tree
        for key in above:
            place = place.setdefault(key, {})
        place[last] = leaf
    return tree


def check(tree: Mapping[str, Any], stored: Iterable[Stored]) -> None:
    """Compares a flat tree with what a program stores: names, shapes, element types. Leaves have `shape` and `dtype`.

    Raises TfcError with every fault: E601 missing, E602 unknown, E603 shape, E605 element type.
    """
    wanted = {p.path: p for p in stored}
    missing = [path for path in wanted if path not in tree]
    unknown = [path for path in tree if path not in wanted]
    faults = [_missing(path, wanted[path], unknown) for path in missing]
    faults += [_unknown(path, missing or wanted) for path in unknown]
    faults += [f for path, leaf in tree.items() if path in wanted for f in _unlike(wanted[path], leaf)]
    if faults:
        raise TfcError(*faults)


def _missing(path: str, param: Stored, unknown: list[str]) -> Diagnostic:
    near = closest(path, unknown)
    hint = f"there is `{near}`, which the model does not have" if near else f"give an array of {param.type}"
    return Diagnostic("E601", f"the parameter `{path}`, {param.type}, is missing", help=hint)


def _unknown(path: str, wanted: Iterable[str]) -> Diagnostic:
    near = closest(path, wanted)
    hint = f"did you mean `{near}`?" if near else "leave it out"
    return Diagnostic("E602", f"the model has no parameter `{path}`", help=hint)


def _unlike(param: Stored, leaf: Any) -> Iterator[Diagnostic]:
    shape, dtype = tuple(leaf.shape), _name(leaf.dtype)
    if shape != param.type.ints:
        turned = shape[:-2] + shape[:-3:-1]
        hint = "swap its last two axes" if len(shape) > 1 and turned == param.type.ints else _stacking(param)
        yield Diagnostic(
            "E603", f"the parameter `{param.path}` has the shape {list(shape)}, not {list(param.type.ints)}", help=hint
        )
    if dtype != DTYPES[param.type.dtype]:
        yield Diagnostic(
            "E605",
            f"the parameter `{param.path}` is {dtype}, not {DTYPES[param.type.dtype]}",
            help=f"convert it: `.astype('{DTYPES[param.type.dtype]}')`",
        )


@cache
def _name(dtype: Any) -> str:
    return str(dtype)


def _stacking(param: Stored) -> str:
    """What the leading axes are, where there are any: the likeliest thing to be wrong."""
    axes = ", ".join(f"{count} turns of `{label}`" for label, count in param.repeats)
    return f"its leading axes are {axes}" if axes else f"give an array of {param.type}"
