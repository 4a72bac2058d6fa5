"""A kernel that holds one tile of scores at a time -> the same kernel, refusing formulas that ask for more."""

from collections.abc import Container
from dataclasses import dataclass, replace

from tfc.backends.kernel import Kernel, Target
from tfc.formula.expr import Expr, Load, Reduce, Var, walk
from tfc.ir.ops import ROW, Attention
from tfc.ir.program import Eqn

__all__ = ["beyond", "tilewise"]


def beyond(*formulas: Expr, known: Container[str] = ()) -> str | None:
    """The first part of the formulas that a tile of scores and one number a token do not give, in words.

    known: the statistics of a row that the kernel has, nevertheless.
    """
    for node in (node for formula in formulas for node in walk(formula)):
        match node:
            case Var(name, _) if name in ROW and name not in known:
                return f"holds one tile of a row at a time, and `{node}` is a statistic of the whole row"
            case Load(_, _, _, (_, *_)):
                return f"reads one number per token, and `{node}` is one of several"
            case Reduce():
                return f"holds no vectors of the tokens, and `{node}` is a sum over them"
    return None


@dataclass(frozen=True)
class Refusal:
    """What the kernel says, else its own limits; of a class, so that kernels can go to another process."""

    kernel: Kernel

    def __call__(self, eqn: Eqn, target: Target) -> str | None:
        assert isinstance(eqn.op, Attention)
        refused = self.kernel.refuse(eqn, target) or beyond(eqn.op.score, eqn.op.mask)
        # of a weigh formula a kernel that does not refuse it knows the softmax, so also its log-sum-exp
        return refused or beyond(eqn.op.weigh, known=("row.lse",))


def tilewise(kernel: Kernel) -> Kernel:
    """The kernel, asked about its own limits first."""
    return replace(kernel, refuse=Refusal(kernel))
