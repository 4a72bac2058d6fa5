"""Each attention's mask -> a note on what is known of the tiles it visits; the program stays as it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from tfc.formula.derive import depends_on_difference_only
from tfc.formula.expr import Const, Expr, slots
from tfc.formula.tiles import Tiles, visited
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn, Program
from tfc.passes.base import Contract, Note, Rewritten

__all__ = ["AnalyseTiles"]


@dataclass(frozen=True)
class AnalyseTiles:
    """attention(mask)  ->  the same, noted: which tiles of scores are visited, and when that is known

    Exact: nothing changes. A mask without captured values is known when the program is compiled, and the note counts
    the tiles of `tile` x `tile` that a sequence of `length` tokens visits; one that reads values computed at run time
    is bounded tile by tile from their minima and maxima.
    """

    name: ClassVar[str] = "analyse-tiles"
    contract: ClassVar[Contract] = Contract.EXACT

    length: int = 2048
    tile: int = 128

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        notes = [
            Note(f"{self.name}:{eqn.outs[0].name}", self.finding(eqn), held=False, span=eqn.span)
            for eqn in _attentions(program)
        ]
        return Rewritten(program, notes=notes)

    def finding(self, eqn: Eqn) -> str:
        """What is known of the mask of one attention."""
        assert isinstance(eqn.op, Attention)
        mask = eqn.op.mask
        if mask == Const(True):
            return "no mask: every tile is visited"
        if read := [eqn.args[3 + slot] for slot in slots(mask)]:
            said = f"tiles follow at run time from {' and '.join(map(str, read))}, by minimum and maximum a tile"
        else:
            heads = eqn.args[0].type.shape[2]
            assert isinstance(heads, int)  # as check_qk asks
            size, length = self.tile, self.length
            tiles = _visited(mask, length, size, heads)
            shape = "one shape for all query tiles, " if depends_on_difference_only(mask) else ""
            said = f"{shape}known when compiled; of {length} tokens it {tiles.summary()}"
        return f"mask `{mask}`: {said}"


@lru_cache(maxsize=64)  # the layers of a model have few masks between them
def _visited(mask: Expr, length: int, size: int, heads: int) -> Tiles:
    return visited(mask, n=length, m=length, block_q=size, block_k=size, heads=heads)


def _attentions(program: Program) -> Iterator[Eqn]:
    """Every attention of a program and its bodies, in text order."""
    for eqn in program.eqns:
        if isinstance(eqn.op, Attention):
            yield eqn
        elif isinstance(body := getattr(eqn.op, "body", None), Program):
            yield from _attentions(body)
