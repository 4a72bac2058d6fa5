"""Why a kernel cannot serve an equation, in words, and what is to be edited so that it can, as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tfc.formula.expr import Load, Side, walk
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn, Value
from tfc.ir.types import TensorType

if TYPE_CHECKING:
    from tfc.backends.kernel import Target

__all__ = ["Change", "Reason", "first", "resized"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """An edit after which the reason that it belongs to no longer holds.

    words: the edit, as `help:` says it. types: by number, the types of operands that are others then, and of new ones
    behind them. op: the operation's static fields that are others. target: the target's facts that are others.
    """

    words: str
    types: Mapping[int, TensorType] = field(default_factory=dict)
    op: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, eqn: Eqn, target: "Target") -> tuple[Eqn, "Target"]:
        """The equation and the target as they are after the edit, results typed anew."""
        op = replace(eqn.op, **self.op)
        count = max([len(eqn.args), *(number + 1 for number in self.types)])
        args = [*eqn.args, *(Value(f"added{n}", self.types[n]) for n in range(len(eqn.args), count))]
        args = [Value(a.name, self.types.get(n, a.type)) for n, a in enumerate(args)]
        outs = (Value(o.name, t) for o, t in zip(eqn.outs, op.infer(*(a.type for a in args)), strict=True))
        return replace(eqn, op=op, args=tuple(args), outs=tuple(outs)), replace(target, **self.target)


@dataclass(frozen=True, slots=True)
class Reason:
    """name: which of the kernel's limits. text: what the kernel cannot do, and what was asked of it.

    change: what would do; None where no edit leaves the operation what it is.
    """

    name: str
    text: str
    change: Change | None = None


def first(reasons: Iterable[Reason]) -> str | None:
    """The first one's text: what `Kernel.refuse` answers."""
    return next((reason.text for reason in reasons), None)


def resized(eqn: Eqn, side: Side, length: int) -> dict[int, TensorType]:
    """The types of an attention's operands where queries, or keys, are as many as `length`: those and their fields."""
    op = eqn.op
    assert isinstance(op, Attention)
    found = {
        n: TensorType((a.type.shape[0], length, *a.type.shape[2:]), a.type.dtype)
        for n, a in enumerate(eqn.args[:3])
        if (n == 0) == (side == "q")
    }
    for node in (node for formula in (op.score, op.mask, op.weigh) for node in walk(formula)):
        if isinstance(node, Load) and node.side == side:
            at, shape = node.slot + 3, eqn.args[node.slot + 3].type.shape
            axis = len(shape) - 1 - len(node.indices)
            found[at] = TensorType((*shape[:axis], length, *shape[axis + 1 :]), eqn.args[at].type.dtype)
    return found
