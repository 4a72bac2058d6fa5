"""An attention equation and a target turned into the reasons that Hopper kernels of all kinds have against them."""

from collections.abc import Iterable, Iterator

from tfc.backends.formula import formless
from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu.streaming import H
from tfc.backends.refusal import Change, Reason
from tfc.formula.expr import Apply, Expr, Load, Read, Token, apply, rewrite, walk
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn
from tfc.ir.types import DType

__all__ = ["in_bf16", "of_device", "of_dropout", "of_formulas", "of_types"]


def of_device(target: Target) -> Iterator[Reason]:
    change = Change(words='target="h200", or another Hopper GPU', target=dict(platform="gpu", capability=9.0))
    if target.platform != "gpu":
        yield Reason("platform", f"needs a GPU, the target is {target.platform}", change)
    elif target.capability != 9.0:
        text = f"needs compute capability 9.0 (Hopper), the target has {target.capability}"
        yield Reason("capability", text, change)


def of_types(eqn: Eqn) -> Iterator[Reason]:
    dtype = eqn.args[0].type.dtype
    if dtype not in (DType.BF16, DType.F16):
        yield Reason("dtype", f"computes in bf16 or f16, the operands are {dtype}", in_bf16(eqn))


def in_bf16(eqn: Eqn) -> Change:
    types = {n: a.type.with_dtype(DType.BF16) for n, a in enumerate(eqn.args[:3])}
    return Change(words="default precision { compute = bf16 }", types=types)


def of_dropout(op: Attention) -> Iterator[Reason]:
    if op.dropout:
        text = f"drops no attention weights, and this call has a key and `dropout = {op.dropout:g}`"
        yield Reason("dropout", text, Change(words="a call without a key, or `dropout = 0`", op=dict(dropout=0.0)))


def of_formulas(eqn: Eqn, *names: str) -> Iterator[Reason]:
    """What the formulas of these fields (`score`, `mask`, `weigh`) ask for and a tile of scores does not give."""
    op = eqn.op
    assert isinstance(op, Attention)
    nodes = dict.fromkeys(node for name in names for node in walk(getattr(op, name)))
    for node in nodes:
        if missing := formless(node):
            yield Reason("function", f"`{missing}` has no form in Mosaic GPU", opened(op, names, node))
    for node in nodes:
        if isinstance(node, Read) and node.indices != (H,):
            text = f"reads tables per head or per token, and `{node}` is neither"
            yield Reason("table", text, as_field(eqn, names, node))
        if isinstance(node, Load | Read) and (x := eqn.args[node.slot + 3].type).dtype is DType.F64:
            change = Change(words=f"`{node}` in f32", types={node.slot + 3: x.with_dtype(DType.F32)})
            yield Reason("f64", f"reads f32 at most, and `{node}` is f64", change)


def opened(op: Attention, names: Iterable[str], node: Expr) -> Change | None:
    """A power written with functions that have a form; other functions have no other form."""
    match node:
        case Apply("pow", (x, y)):
            form = apply("exp", apply("mul", y, apply("log", x)))
            return Change(words=f"`{form}`, the same where `{x}` is positive", op=rewritten(op, names, node, form))
    return None


def rewritten(op: Attention, names: Iterable[str], old: Expr, new: Expr) -> dict[str, Expr]:
    """The formulas with one node replaced, by field."""
    return {name: rewrite(getattr(op, name), lambda node: new if node == old else None) for name in names}


def as_field(eqn: Eqn, names: Iterable[str], node: Read) -> Change | None:
    """A table read by the positions of all tokens of one side is a field of theirs; no other is."""
    op, tokens = eqn.op, {"q": eqn.args[0].type.shape[1], "k": eqn.args[1].type.shape[1]}
    assert isinstance(op, Attention)
    if not (len(node.indices) == 1 and isinstance(at := node.indices[0], Token)):
        return None
    if eqn.args[node.slot + 3].type.shape != (tokens[at.side],) or (at.side == "q" and tokens["q"] != tokens["k"]):
        return None
    field = Load(node.slot, at.side, node.kind)
    return Change(words=f"a field `{at.side}.name` of the tokens", op=rewritten(op, names, node, field))
