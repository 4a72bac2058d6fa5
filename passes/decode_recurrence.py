"""A causal recurrence over all tokens -> the same over new ones, from the state that those before them left."""

from tfc.ir.ops import Recurrence
from tfc.ir.program import Eqn
from tfc.passes.decode_body import Body

__all__ = ["recurrence"]


def recurrence(eqn: Eqn, op: Recurrence, body: Body) -> None:
    body.refuse("a recurrence")
