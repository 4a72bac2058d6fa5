"""A formula with reductions and the shapes of what it reads -> how far each reduced index goes."""

from collections.abc import Mapping, Sequence

from tfc.formula.expr import Expr, FormulaError, Load, Read, Reduce, Var, walk

__all__ = ["ranges"]


def ranges[S](expr: Expr, shapes: Mapping[int, Sequence[S]] | Sequence[Sequence[S]]) -> dict[str, S]:
    """The size of each index that a `Reduce` of the formula runs over: of the axis that it reads alone.

    shapes: of the operands, by slot; an indexed `Load` reads the last axes of its operand. Sizes may be symbolic.
    Raises FormulaError where two such axes differ, where an index reads none, or where two reductions share one.
    """
    reduced = [name for node in walk(expr) if isinstance(node, Reduce) for name in node.indices]
    if len(set(reduced)) < len(reduced):
        twice = next(name for name in reduced if reduced.count(name) > 1)
        raise FormulaError(f"two reductions run over the index `{twice}`")
    found: dict[str, tuple[S, Expr]] = {}
    for node in walk(expr):
        if not isinstance(node, Load | Read):
            continue
        shape = shapes[node.slot]
        own = shape[len(shape) - len(node.indices) :]
        for size, index in zip(own, node.indices, strict=True):
            if not (isinstance(index, Var) and index.name in reduced):
                continue
            known = found.setdefault(index.name, (size, node))
            if known[0] != size:
                raise FormulaError(
                    f"the index `{index.name}` ranges over {known[0]} in `{known[1]}` and over {size} in `{node}`"
                )
    for name in reduced:
        if name not in found:
            raise FormulaError(f"nothing tells how far the index `{name}` goes: it reads no axis alone")
    return {name: found[name][0] for name in reduced}
