"""Typed inputs: `tokens: int[B, T]` as an element type and sizes, against the tensor that is given."""

from dataclasses import dataclass

from tfc.diagnostics import Note
from tfc.grammar import ast
from tfc.grammar.lowering.evaluate import evaluate
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Meaning, Tensor, describe
from tfc.ir.types import DType, Size
from tfc.source import Span

__all__ = ["Written", "bind_type", "type_of"]


@dataclass(frozen=True, slots=True)
class Written:
    """A type as written: a size is known, or the name of a length not met before."""

    dtype: DType
    sizes: tuple[Size | str, ...]


def type_of(wanted: ast.Parameter, frame: Frame) -> Written:
    """The type of an input; names of lengths begin with a capital letter."""
    assert wanted.type is not None
    node: ast.Expr = wanted.type
    indices: tuple[ast.Expr, ...] = ()
    if isinstance(node, ast.Subscript):
        indices = node.indices
        node = node.value
    dtype: Meaning | None = None
    if isinstance(node, ast.Name):
        dtype = frame.session.precision.params if node.id == "real" else frame.scope.find(node.id)
    if not isinstance(dtype, DType):
        fail("E305", f"`{node.span.text}` is no element type", node.span,
             help="int, bool, real, bf16, f16, f32 or f64, then the sizes: `tokens: int[B, T]`")  # fmt: skip
    sizes: list[Size | str] = []
    for index in indices:
        if isinstance(index, ast.Name) and index.id[0].isupper() and frame.scope.find(index.id) is None:
            sizes.append(index.id)
        else:
            size = whole(evaluate(index, frame), f"`{index.span.text}`", index.span)
            if isinstance(size, int) and not 0 <= size < 2**31:
                fail("E402", f"the size `{index.span.text}` is {size}", index.span, help="sizes are below 2 ^ 31")
            sizes.append(size)
    return Written(dtype, tuple(sizes))


def bind_type(wanted: ast.Parameter, value: Meaning, span: Span, frame: Frame) -> None:
    """Check a typed input: a name not known yet takes the size it meets, a known one must agree."""
    written = type_of(wanted, frame)
    if not isinstance(value, Tensor):
        fail("E305", f"`{wanted.name}` is a tensor; {describe(value)} is given", frame.at(span),
             notes=(Note("it is declared here", wanted.span),))  # fmt: skip
    fits = len(written.sizes) == value.type.rank and written.dtype is value.type.dtype
    for size, has in zip(written.sizes, value.type.shape, strict=False):
        if isinstance(size, str) and size not in frame.scope.names:
            frame.scope.bind(size, has, wanted.span)
        known = frame.scope.names[size] if isinstance(size, str) else size
        fits = fits and known == has
    if not fits:
        assert wanted.type is not None
        fail("E401", f"`{wanted.name}` is declared {wanted.type.span.text}; {value.type} is given", frame.at(span),
             notes=(Note("it is declared here", wanted.span), Note("it is made here", value.span)))  # fmt: skip
