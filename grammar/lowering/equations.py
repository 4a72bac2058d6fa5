"""An index equation -> an operation: a product with weights or rows of a table where it is one, else Index."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from tfc.diagnostics import Note
from tfc.formula.expr import Apply, Expr, Kind, Load, Read, Reduce, Var, rewrite, walk
from tfc.grammar import ast
from tfc.grammar.lowering.algebra import formula_of, merge_fields
from tfc.grammar.lowering.evaluate import evaluate, is_ellipsis, operand
from tfc.grammar.lowering.factors import affine
from tfc.grammar.lowering.ranges import bind_range
from tfc.grammar.lowering.segments import names_read
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Tensor
from tfc.ir.ops import Index, Take
from tfc.ir.types import Dim, Size
from tfc.source import Span

__all__ = ["index_equation"]

Sizes = dict[str, Size]


def index_equation(node: ast.Equation, frame: Frame) -> Tensor:
    """`y[b, t, o] = sum[c](x[b, t, c] * w[c, o])` as a tensor with one axis for each index."""
    assert node.indices is not None
    indices = _indices(node, frame)
    heads = (n.name for n in _nodes(node.value) if isinstance(n, ast.Index))
    taken = {*indices, *names_read(node.value), *heads}
    variables = {n: Var(_plain(n, taken), Kind.INT) for n in indices}
    names = tuple(v.name for v in variables.values())
    inner = replace(
        frame, indices=variables, formula=True, role=None, allowed=frozenset(), bound={}, ranges=dict.fromkeys(names)
    )  # fmt: skip
    for index in node.indices:
        bind_range(index, index.name, variables, evaluate, inner)
    formula = formula_of(operand(node.value, inner), node.value.span, inner)
    used = tuple(dict.fromkeys(n.slot for n in walk(formula.expr) if isinstance(n, Read | Load)))
    local = {slot: i for i, slot in enumerate(used)}
    operands = tuple(frame.session.captures[slot] for slot in used)
    expr = rewrite(formula.expr, lambda n: Read(local[n.slot], n.indices, n.kind) if isinstance(n, Read) else None)
    sizes = _sizes(expr, operands, node, names, inner)
    fields = merge_fields(_leading(expr, operands, names), _first_two(expr, operands, names), node.value.span, frame)
    if (linear := _linear(expr, operands, names)) is not None:
        return affine(linear[0], linear[1], linear[2:], node.value.span, node.target, fields, frame)
    if (rows := _rows(expr, operands, names)) is not None:
        return frame.emit(Take(), rows, node.value.span, node.target, fields)[0]
    reduced = tuple(dict.fromkeys(n for r in walk(expr) if isinstance(r, Reduce) for n in r.indices))
    read = dict.fromkeys(n.name for n in walk(expr) if isinstance(n, Var) and n.name not in sizes)
    op = Index(
        axes=tuple((n, sizes[n]) for n in names), reduced=tuple((n, sizes[n]) for n in reduced),
        lengths=tuple((n, frame.session.lengths[n]) for n in read), expr=expr,
    )  # fmt: skip
    return frame.emit(op, operands, node.value.span, node.target, fields)[0]


def _indices(node: ast.Equation, frame: Frame) -> tuple[str, ...]:
    """The names of the result's axes; `..` becomes as many as the operands that are read by it have."""
    assert node.indices is not None
    out: list[str] = []
    for index in node.indices:
        if index.name in out:
            fail("E309", f"`{index.name}` is an index of `{node.target}` twice", frame.at(index.span))
        axes = range(_leading_axes(node, frame)) if index.name == ".." else ()
        out.extend([f"..{i}" for i in axes] if index.name == ".." else [index.name])
    return tuple(out)


def _plain(name: str, taken: set[str]) -> str:
    """A name for an axis of `..` that no other index has."""
    if not name.startswith(".."):
        return name
    free = [c for c in "ijlmnuvw" if c not in taken]
    n = int(name[2:])
    return free[n] if n < len(free) else f"axis_{n}"


def _leading_axes(node: ast.Equation, frame: Frame) -> int:
    """How many axes `..` stands for: what is left of the tensors read by it."""
    found: dict[int, Tensor] = {}
    for at in _nodes(node.value):
        match at:
            case ast.Subscript(value=ast.Name(id=name), indices=given) if any(map(is_ellipsis, given)):
                tensor = frame.scope.find(name)
                if isinstance(tensor, Tensor):
                    found[tensor.type.rank - len(given) + 1] = tensor
    if len(found) != 1 or min(found) < 0:
        ranks = " and ".join(str(t.type) for t in found.values()) or "no tensor"
        fail("E309", f"`..` must be the same leading axes everywhere; it is read of {ranks}", frame.at(node.span))
    return next(iter(found))


def _nodes(node: ast.Node) -> Iterator[ast.Node]:
    """It and every node below."""
    stack: list[object] = [node]
    while stack:
        at = stack.pop()
        if isinstance(at, ast.Node):
            yield at
            stack.extend([getattr(at, f) for f in at.__dataclass_fields__ if f != "span"])
        elif isinstance(at, tuple):
            stack.extend(at)


# ---- sizes


def _sizes(expr: Expr, operands: tuple[Tensor, ...], node: ast.Equation, names: tuple[str, ...], frame: Frame) -> Sizes:
    """Every index ranges over what is written, or the axis that it reads plainly; else `t` over the length `T`."""
    given = {name: range for name, range in (frame.ranges or {}).items() if range is not None}
    found: dict[str, tuple[Size, Span, Tensor | None]] = {n: (size, span, None) for n, (size, span) in given.items()}
    for part in walk(expr):
        if not isinstance(part, Read):
            continue
        for axis, index in enumerate(part.indices):
            if not isinstance(index, Var) or index.name in frame.session.lengths:
                continue
            tensor = operands[part.slot]
            size = tensor.type.shape[axis]
            other, at, of = found.setdefault(index.name, (size, tensor.span, tensor))
            if other != size:
                read = [(n, t) for n, t in ((other, of), (size, tensor)) if t is not None]
                fail("E403", f"the index `{index.name}` ranges over {other} and over {size}",
                     frame.at(node.value.span) if of else at,
                     help="" if of else
                     "an index that reads an axis alone takes all of it: drop the size, or read by an expression",
                     notes=tuple(Note(f"{n} is a size of {t.type}, from here", t.span) for n, t in read))  # fmt: skip
    sizes: Sizes = {name: size for name, (size, _, _) in found.items()}
    reduced = [n for r in walk(expr) if isinstance(r, Reduce) for n in r.indices]
    for name in (*names, *reduced):
        if name not in sizes:
            length = frame.scope.find(name.upper()) if name.isidentifier() else None
            if not isinstance(length, int | Dim) or isinstance(length, bool):
                fail(
                    "E406", f"nothing tells how far the index `{name}` goes", frame.at(node.value.span),
                    help=f"write it, `{name}: 8`; or read a tensor by `{name}` alone; or name the length "
                    f"`{name.upper()}` in the model's inputs",
                )  # fmt: skip
            sizes[name] = length
    return sizes


# ---- recognised forms


def _vars(read: Expr) -> tuple[str, ...] | None:
    """The indices of a read that are plain names, all of them."""
    if not isinstance(read, Read):
        return None
    names = tuple(i.name for i in read.indices if isinstance(i, Var))
    return names if len(names) == len(read.indices) else None


def _linear(expr: Expr, operands: tuple[Tensor, ...], names: tuple[str, ...]) -> tuple[Tensor, ...] | None:
    """`sum[c](x[.., c] * w[c, o])`, perhaps plus `b[o]`, for a result [.., o]: its operands x, w, b."""
    bias: Expr | None = None
    if isinstance(expr, Apply) and expr.fn == "add" and isinstance(expr.args[0], Reduce):
        expr, bias = expr.args
    match expr:
        case Reduce("sum", (c,), Apply("mul", (Read() as x, Read() as w))) if names:
            pass
        case _:
            return None
    lead, o = names[:-1], names[-1]
    if _vars(w) != (c, o):
        x, w = w, x
    if _vars(w) != (c, o) or _vars(x) != (*lead, c) or (bias is not None and _vars(bias) != (o,)):
        return None
    reads = [r for r in (x, w, bias) if isinstance(r, Read)]
    chosen = tuple(operands[r.slot] for r in reads)
    same = all(t.type.dtype is chosen[0].type.dtype and t.type.dtype.floating for t in chosen)
    if not same or chosen[0].type.last != chosen[1].type.shape[0]:
        return None
    if any(_vars(r) and chosen[2].type.shape != (chosen[1].type.last,) for r in reads[2:]):
        return None
    return chosen


def _rows(expr: Expr, operands: tuple[Tensor, ...], names: tuple[str, ...]) -> tuple[Tensor, Tensor] | None:
    """`table[ids[..], c]` for a result [.., c]: table and ids."""
    match expr:
        case Read(slot, (Read() as ids, *rest)) if _vars(ids) is not None:
            tail = tuple(i.name for i in rest if isinstance(i, Var))
            if len(tail) == len(rest) and (*(_vars(ids) or ()), *tail) == names:
                return operands[slot], operands[ids.slot]
    return None


# ---- fields


def _reads(expr: Expr) -> Mapping[int, list[tuple[Expr, ...]]]:
    out: dict[int, list[tuple[Expr, ...]]] = {}
    for part in walk(expr):
        if isinstance(part, Read):
            out.setdefault(part.slot, []).append(part.indices)
    return out


def _leading(expr: Expr, operands: tuple[Tensor, ...], names: tuple[str, ...]) -> list[Tensor]:
    """Operands that are read by the first two indices of the result: its tokens are theirs, fields and all."""
    first = tuple(Var(n, Kind.INT) for n in names[:2])
    return [
        operands[slot] for slot, reads in _reads(expr).items() if len(first) == 2 and all(r[:2] == first for r in reads)
    ]


def _first_two(expr: Expr, operands: tuple[Tensor, ...], names: tuple[str, ...]) -> tuple[Size, ...]:
    for tensor in _leading(expr, operands, names):
        return tensor.type.shape[:2]
    return ()
