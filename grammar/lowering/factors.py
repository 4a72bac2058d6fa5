"""A matrix kept as a thin product -> its parameters, and a product with it as two thin products."""

from collections.abc import Mapping
from dataclasses import replace

from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Factors, Tensor
from tfc.ir.formats import Format
from tfc.ir.ops import Elementwise, Linear
from tfc.ir.program import Init, Param, Value
from tfc.ir.types import TensorType
from tfc.source import Span

__all__ = ["affine", "declare_factors"]


def declare_factors(param: Param, format: Format, hint: str, span: Span, frame: Frame) -> Tensor:
    """`weight [K, O]` kept as `low_rank(r)`: `weight.left [K, r]`, `weight.right [r, O]` and their product; as
    `lora(r, alpha)` a frozen `weight.base [K, O]` plus alpha / r times that product.

    What reads it as the matrix of a linear map gets the factors (`affine`); anything else reads the product itself.
    """
    if param.value.type.rank != 2:
        axes = f"{param.value.type.rank} axes"
        fail("E305", f"`{format.name}` is a product of two matrices; `{param.path}` has {axes}", span)
    deep, wide = param.value.type.ints
    rank = format["rank"]
    assert isinstance(rank, int)
    if rank > min(deep, wide):
        fail(
            "E305", f"`{format}` of `{param.path}`, a matrix [{deep}, {wide}]", span,
            help=f"its rank is at most {min(deep, wide)}; another format, or `weights = none`, for this one",
        )  # fmt: skip
    tuned = format.name == "lora"
    starts = (Init("normal", 0.02), Init("zeros")) if tuned else _starts(param, rank, span)
    builder = frame.place.builder

    def part(name: str, shape: tuple[int, int], init: Init, trained: bool) -> Tensor:
        type = TensorType(shape, param.value.type.dtype)
        path = f"{param.path}.{name}"
        own = replace(param, path=path, value=Value(name, type), init=init, trained=trained, format=None)
        return builder.declare(own, f"{hint}.{name}", span)

    base = part("base", (deep, wide), param.init, False) if tuned else None
    left = part("left", (deep, rank), starts[0], param.trained)
    right = part("right", (rank, wide), starts[1], param.trained)
    alpha = format["alpha"] if tuned else rank
    assert isinstance(alpha, int | float)
    factors = Factors(left, right, base, alpha / rank)
    before = len(builder.eqns)
    (whole,) = builder.emit(Linear(), (left, right), span, hint)
    if base is not None:
        scale = builder.constant(factors.scale, param.value.type.dtype, span)
        (whole,) = builder.emit(Elementwise(fn="mul"), (whole, scale), span, hint)
        (whole,) = builder.emit(Elementwise(fn="add"), (base, whole), span, hint)
    builder.products.update(out for eqn in builder.eqns[before:] for out in eqn.outs)
    return replace(whole, factors=factors)


def _starts(param: Param, rank: int, span: Span) -> tuple[Init, Init]:
    """How the factors start where nothing is fitted: so that the product has the spread that was asked for; `glorot`
    is that of each factor, as for any linear map (Greenformers' `random`)."""
    match param.init:
        case Init("normal", std):
            # a sum of `rank` products of two independent normals of deviation s has the deviation sqrt(rank) s^2
            each = Init("normal", (std / rank**0.5) ** 0.5)
            return each, each
        case Init("glorot"):
            return param.init, param.init
        case Init("zeros"):
            return Init("normal", 0.02), param.init
    fail("E305", f"`{param.path}` starts as {param.init}, which is no start of a thin product", span,
         help="normal(std), glorot or zeros")  # fmt: skip


def affine(
    x: Tensor, weight: Tensor, bias: tuple[Tensor, ...], span: Span, hint: str, fields: Mapping[str, Tensor],
    frame: Frame,
) -> Tensor:  # fmt: skip
    """x weight + bias: one linear map, or for a thin product the two maps through its rank."""
    parts = weight.factors
    if parts is None:
        return frame.emit(Linear(), (x, weight, *bias), span, hint, fields)[0]
    (thin,) = frame.emit(Linear(), (x, parts.left), span, "thin", fields)
    if parts.base is None:
        return frame.emit(Linear(), (thin, parts.right, *bias), span, hint, fields)[0]
    (update,) = frame.emit(Linear(), (thin, parts.right), span, "update", fields)
    scale = frame.builder.constant(parts.scale, update.type.dtype, span)
    (scaled,) = frame.emit(Elementwise(fn="mul"), (update, scale), span, "update", fields)
    (frozen,) = frame.emit(Linear(), (x, parts.base, *bias), span, hint, fields)
    return frame.emit(Elementwise(fn="add"), (frozen, scaled), span, hint, fields)[0]
