"""Scores, their formula, mask, softmax and mix, each an equation -> one streaming attention."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tfc.formula.expr import Const, Expr, Load, Read
from tfc.formula.expr import rewrite as rewrite_formula
from tfc.ir.ops import Attention, Dropout, Masked, Mix, Op, P, S, Score, Scores, Weigh, reads_row
from tfc.ir.program import Eqn, Program, Value
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.rewrite import Scope, rewrite

__all__ = ["FuseAttention"]


@dataclass(frozen=True)
class FuseAttention:
    """mix(weigh(masked(score(scores(q, k)))), v)  ->  attention(q, k, v)

    Weights that are dropped on their way to mix are dropped within: their seed and turns become the last operands.
    Exact; parameters stay as they are. The [B, H, N, M] arrays leave the program (arXiv:2205.14135), unless something
    else reads them: then the fused operation would only repeat their work, and the pass holds back. The log-sum-exp
    may be read, since attention gives it too. A mask stands before a score formula that reads its row's statistics,
    as in attention itself, else on either side. The formulas' slots are numbered anew: what the score captured, then
    the mask, then the weight; a value captured twice gets one slot.
    """

    name: ClassVar[str] = "fuse-attention"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        notes: list[Note] = []

        def fuse(eqn: Eqn, scope: Scope) -> list[Eqn] | None:
            mix = eqn
            while isinstance(mix.op, Weigh | Dropout) and scope.once(mix.outs[0]):
                mix = next(iter(scope.readers(mix.outs[0])), eqn)  # gone if the one that mixes by it takes it up
                if mix is eqn:
                    break
            if not isinstance(mix.op, Mix):
                return None
            site = f"{self.name}:{mix.out.name}"
            found = "asked to" if site in hold else _match(mix, scope)
            if isinstance(found, str):
                if mix is eqn:
                    notes.append(Note(site, found, span=eqn.span))
                return None
            return [found.fused(mix)] if mix is eqn else []

        return Rewritten(rewrite(program, fuse), notes=notes)


@dataclass(frozen=True)
class _Chain:
    """The equations of one attention; score and masked may be missing."""

    scores: Eqn
    score: Eqn | None
    masked: Eqn | None
    weigh: Eqn
    dropped: Eqn | None

    def fused(self, mix: Eqn) -> Eqn:
        captured: dict[Value, int] = {}

        def formula(eqn: Eqn | None, default: Expr) -> Expr:
            if eqn is None:
                return default
            assert isinstance(eqn.op, Score | Masked | Weigh)
            return _renumbered(eqn.op.formula, eqn.args[1:], captured)

        assert isinstance(self.scores.op, Scores)
        op = Attention(
            scale=self.scores.op.scale,
            score=formula(self.score, S),
            mask=formula(self.masked, Const(True)),
            weigh=formula(self.weigh, P),
        )
        lse = self.weigh.outs[1]
        args = (*self.scores.args, mix.args[1], *captured)
        if self.dropped is not None:
            assert isinstance(self.dropped.op, Dropout)
            seeds = self.dropped.args[1:]
            op = replace(op, dropout=self.dropped.op.rate, site=self.dropped.op.path, turns=len(seeds) - 1)
            args = (*args, *seeds)
        return Eqn((mix.out, lse), op, args, mix.span)


def _renumbered(formula: Expr, captured: tuple[Value, ...], slots: dict[Value, int]) -> Expr:
    """The formula with slots into `slots`, which grows by what the formula reads of its `captured` operands."""

    def slot(node: Expr) -> Expr | None:
        match node:
            case Load(old, side, kind, indices):
                return Load(slots.setdefault(captured[old], len(slots)), side, kind, indices)
            case Read(old, indices, kind):
                return Read(slots.setdefault(captured[old], len(slots)), indices, kind)
        return None

    return rewrite_formula(formula, slot)


def _match(mix: Eqn, scope: Scope) -> _Chain | str:
    """The chain that ends in `mix`, or why it cannot be one operation."""
    weights, v = mix.args
    weigh = scope.maker(weights)
    dropped = weigh if weigh is not None and isinstance(weigh.op, Dropout) and weigh.args[1:] else None
    if dropped is not None:
        if not scope.once(weights):
            return f"{weights} (dropout, {weights.type}) is also read elsewhere"
        weights = dropped.args[0]
        weigh = scope.maker(weights)
    if weigh is None or not isinstance(weigh.op, Weigh) or weigh.outs[0] != weights:
        return f"{weights} is no softmax of scores"
    found: dict[type[Op], Eqn] = {}
    below, value = weigh, weigh.args[0]
    eqn = scope.maker(value)
    while eqn is not None and isinstance(eqn.op, Masked | Score) and type(eqn.op) not in found:
        found[type(eqn.op)] = below = eqn
        value = eqn.args[0]
        eqn = scope.maker(value)
    scores = scope.maker(value)
    if scores is None or not isinstance(scores.op, Scores):
        what = "an operand" if scores is None else f"made by {scores.op.name}"
        return (
            f"{value}, read by {below.op.name}, is {what}; scores, a score formula and a mask are taken in this order"
        )
    chain = _Chain(scores, found.get(Score), found.get(Masked), weigh, dropped)
    if (why := _misplaced(found)) is not None:
        return why
    for eqn in (scores, chain.score, chain.masked, weigh):
        if eqn is not None and not scope.once(eqn.outs[0]):
            return f"{eqn.outs[0]} ({eqn.op.name}, {eqn.outs[0].type}) is also read elsewhere"
    if any(scope.order[reader.outs[0]] < scope.order[mix.out] for reader in scope.readers(weigh.outs[1])):
        return f"{weigh.outs[1]}, the log-sum-exp, is read before {mix.out} is made"
    return chain if (why := _unfit(scores.args[1], v)) is None else why


def _misplaced(chain: Mapping[type[Op], Eqn]) -> str | None:
    """Why the mask does not stand where attention applies it: after the score formula, before one that reads rows.

    A score formula keeps what the mask left out, so one that reads no row may stand on either side.
    """
    score = chain.get(Score)
    if score is None or Masked not in chain or next(iter(chain)) is Score:
        return None
    assert isinstance(score.op, Score)
    if not reads_row(score.op.formula):
        return None
    return f"{score.out} reads statistics of its row before {chain[Masked].out} masks it; attention masks first"


def _unfit(k: Value, v: Value) -> str | None:
    if k.type.shape[:3] != v.type.shape[:3]:
        return f"keys {k.type} and values {v.type} differ in their heads"
    if k.type.dtype is not v.type.dtype:
        return f"keys are {k.type.dtype} and values {v.type.dtype}"
    return None
