"""A kernel that holds one tile of scores at a time -> the same kernel, refusing formulas that ask for more."""

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from tfc.backends.kernel import Kernel, Target
from tfc.backends.refusal import Change, Reason, first
from tfc.formula.expr import Const, Expr, Load, Reduce, Var, rewrite, walk
from tfc.ir.ops import ROW, Attention
from tfc.ir.program import Eqn
from tfc.ir.types import TensorType

__all__ = ["beyond", "tilewise"]


def beyond(*formulas: Expr, known: Container[str] = ()) -> Iterator[tuple[Expr, Reason]]:
    """The parts of the formulas that a tile of scores and one number a token do not give, and why.

    known: the statistics of a row that the kernel has, nevertheless.
    """
    for node in (node for formula in formulas for node in walk(formula)):
        match node:
            case Var(name, _) if name in ROW and name not in known:
                text = f"holds one tile of a row at a time, and `{node}` is a statistic of the whole row"
                yield node, Reason("statistic", text)
            case Load(_, _, _, (_, *_)):
                yield node, Reason("element", f"reads one number per token, and `{node}` is one of several")
            case Reduce():
                yield node, Reason("sum", f"holds no vectors of the tokens, and `{node}` is a sum over them")


def limits(eqn: Eqn) -> Iterator[Reason]:
    """What stands against the equation's formulas; with what would do, where one of several numbers is always meant."""
    op = eqn.op
    assert isinstance(op, Attention)
    # of a weigh formula a kernel that does not refuse it knows the softmax, so also its log-sum-exp
    for node, reason in chain(beyond(op.score, op.mask), beyond(op.weigh, known=("row.lse",))):
        alone = isinstance(node, Load) and all(isinstance(i, Const) for i in node.indices)
        yield replace(reason, change=apart(eqn, node)) if alone else reason


def apart(eqn: Eqn, node: Expr) -> Change:
    """The element as a field of its own."""
    op = eqn.op
    assert isinstance(op, Attention) and isinstance(node, Load)
    x = eqn.args[node.slot + 3].type
    new = Load(len(eqn.args) - 3, node.side, node.kind)
    formulas = {
        name: rewrite(getattr(op, name), lambda n: new if n == node else None) for name in ("score", "mask", "weigh")
    }
    kept = TensorType(x.shape[: len(x.shape) - len(node.indices)], x.dtype)
    words = f"a field of its own for `{node}`, one number a token"
    return Change(words=words, types={len(eqn.args): kept}, op=formulas)


@dataclass(frozen=True)
class Refusal:
    """What the kernel says, else its own limits; of a class, so that kernels can go to another process."""

    kernel: Kernel

    def __call__(self, eqn: Eqn, target: Target) -> str | None:
        return self.kernel.refuse(eqn, target) or first(limits(eqn))


@dataclass(frozen=True)
class Reasons:
    """All that the kernel says, and its own limits."""

    kernel: Kernel

    def __call__(self, eqn: Eqn, target: Target) -> Iterator[Reason]:
        yield from self.kernel.against(eqn, target)
        yield from limits(eqn)


def tilewise(kernel: Kernel) -> Kernel:
    """The kernel, asked about its own limits first."""
    return replace(kernel, refuse=Refusal(kernel), reasons=Reasons(kernel))
