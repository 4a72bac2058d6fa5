"""An attention to M keys -> one to fewer, each a learned sum over all tokens, as Linformer has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var, walk
from tfc.formula.expr import rewrite as rewrite_formula
from tfc.ir.ops import Index, Masked, Mix, Score, Scores, Weigh
from tfc.ir.param_map import Call, ParamMap, Source
from tfc.ir.param_map import Expr as ParamExpr
from tfc.ir.program import Eqn, Init, Param, Program, Value
from tfc.ir.types import TensorType
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.observe import attention_weight
from tfc.passes.rewrite import Scope, beside, rewrite

__all__ = ["CompressKeys"]


@dataclass(frozen=True)
class CompressKeys:
    """mix(weigh(masked(scores(q, k))), v)  ->  mix(weigh(scores(q, E^T k)), F^T v)

    Approximate: `key_rows` E and `value_rows` F [M, rows] sum keys and values over the tokens, in all heads alike
    (Linformer, arXiv:2006.04768). They start as means of rows of neighbouring tokens and are there to be trained on; at
    rows = M they are the identity, and without a mask the function is the same to rounding. A mask that only reads keys
    is taken up by E and F's operands: a key that it hides counts as zero.

    rows: how many are left. names: patterns of the attentions' places (`layer.look`), see `attention_place`.

    Holds back where the mask or the score reads queries and keys together, a causal mask above all, since every sum
    holds every token; where the number of keys is known only when the model is called; where something else reads the
    scores, the weights or their log-sum-exp; and where no linear map of the same body makes the keys, beside whose
    weight E and F would be kept.
    """

    name: ClassVar[str] = "compress-keys"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    rows: int = 256
    names: tuple[str, ...] = ("*",)

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        if self.rows < 1:
            raise ValueError(f"{self.rows} rows: at least one is left")
        notes: list[Note] = []
        forward: dict[str, ParamExpr] = {}
        taken = {p.path for p in program.stored()}

        def rule(eqn: Eqn, scope: Scope) -> Sequence[Eqn] | None:
            if not isinstance(eqn.op, Mix):
                return None
            chain = _chain(eqn, scope)
            if isinstance(chain, str) or not any(fnmatchcase(chain.place, pattern) for pattern in self.names):
                return None
            site = f"{self.name}:{chain.place}"
            if why := "asked to" if site in hold else self._refusal(chain, scope, taken):
                notes.append(Note(site, why, span=eqn.span))
                return None
            return self._compressed(chain, scope, forward)

        return Rewritten(rewrite(program, rule), ParamMap(forward), notes)

    def _refusal(self, chain: "_Chain", scope: Scope, taken: set[str]) -> str:
        """Why the attention stays as it is, or an empty string."""
        keys = chain.scores.args[1].type.shape[1]
        if not isinstance(keys, int):
            return f"it has {keys} keys, a number known only when the model is called"
        if self.rows > keys:
            return f"it has {keys} keys, fewer than {self.rows}"
        if any(scope.reads.get(v, 0) != 1 for v in chain.inner) or scope.reads.get(chain.weigh.outs[1], 0):
            return "something else reads its scores, its weights or their log-sum-exp"
        for eqn in chain.formulas:
            assert isinstance(eqn.op, Score | Masked | Weigh)
            formula = eqn.op.formula
            if isinstance(eqn.op, Masked):
                if _reads(formula, "q") or any(isinstance(n, Var) or _other(n) for n in walk(formula)):
                    return f"its mask, {formula}, is no property of keys alone, and every sum of keys holds every token"
            elif _reads(formula, "k"):
                return f"its {eqn.op.name} formula, {formula}, speaks of single keys"
        if sum(isinstance(eqn.op, Masked) for eqn in chain.formulas) > 1:
            return "it has two masks"
        if chain.weight is None:
            return "no linear map of the same body makes its keys"
        clash = next((p for p in _paths(chain) if p in taken), None)
        return f"there is a parameter {clash} already" if clash else ""

    def _compressed(self, chain: "_Chain", scope: Scope, forward: dict[str, ParamExpr]) -> list[Eqn]:
        assert chain.weight is not None
        (q, k), v = chain.scores.args, chain.mix.args[1]
        keys = k.type.shape[1]
        assert isinstance(keys, int)
        eqns: list[Eqn] = []
        short = []
        masked = next((e for e in chain.formulas if isinstance(e.op, Masked)), None)
        for n, (path, x) in enumerate(zip(_paths(chain), (k, v), strict=True)):
            made = Param(
                path, scope.fresh(beside(chain.weight, path), TensorType((keys, self.rows), x.type.dtype)),
                Init("packed"), chain.weight.trained,
            )  # fmt: skip
            scope.replace_params([], made)
            forward[path] = Call("pooling", (Source(chain.weight.path),), (("length", keys), ("rows", self.rows)), n)
            eqn = _shortened(x, made.value, masked, self.rows, scope)
            eqns.append(eqn)
            short.append(eqn.out)
        scores = chain.scores.outs[0].type.with_last(self.rows)
        last = scope.fresh(chain.scores.outs[0].name, scores)
        eqns.append(Eqn((last,), chain.scores.op, (q, short[0]), chain.scores.span))
        for eqn in chain.formulas:
            if isinstance(eqn.op, Masked):
                continue
            outs = (scope.fresh(eqn.outs[0].name, scores), *(scope.fresh(o.name, o.type) for o in eqn.outs[1:]))
            eqns.append(Eqn(outs, eqn.op, (last, *eqn.args[1:]), eqn.span))
            last = outs[0]
        return [*eqns, Eqn(chain.mix.outs, chain.mix.op, (last, short[1]), chain.mix.span)]


@dataclass(frozen=True)
class _Chain:
    """The equations of one attention. formulas: between scores and mix, in order, the softmax last."""

    place: str
    weight: Param | None
    scores: Eqn
    formulas: tuple[Eqn, ...]
    mix: Eqn

    @property
    def weigh(self) -> Eqn:
        return self.formulas[-1]

    @property
    def inner(self) -> tuple[Value, ...]:
        return tuple(e.outs[0] for e in (self.scores, *self.formulas))


def _chain(mix: Eqn, scope: Scope) -> _Chain | str:
    """The attention that ends in `mix`, or why there is none."""
    formulas: list[Eqn] = []
    eqn = scope.maker(mix.args[0])
    while eqn is not None and isinstance(eqn.op, Score | Masked | Weigh):
        formulas.insert(0, eqn)
        eqn = scope.maker(eqn.args[0])
    if eqn is None or not isinstance(eqn.op, Scores) or not formulas or not isinstance(formulas[-1].op, Weigh):
        return f"{mix.args[0]} is no softmax of scores"
    place, weight = attention_weight(eqn, scope)
    return _Chain(place, weight, eqn, tuple(formulas), mix)


def _paths(chain: _Chain) -> tuple[str, str]:
    return f"{chain.place}.key_rows", f"{chain.place}.value_rows"


def _reads(formula: Expr, side: str) -> bool:
    return any(isinstance(n, Token | Load) and n.side == side for n in walk(formula))


def _other(node: Expr) -> bool:
    return isinstance(node, Read | Token)


def _shortened(x: Value, rows: Value, masked: Eqn | None, count: int, scope: Scope) -> Eqn:
    """x [B, M, G, D] -> [B, rows, G, D], the sums over the tokens that the mask leaves."""
    b, t, n, h, d = (Var(name, Kind.INT) for name in "btnhd")
    kept: Expr = Read(1, (b, t, h, d), Kind.REAL)
    operands = [rows, x]
    if masked is not None:
        assert isinstance(masked.op, Masked)
        captured = masked.args[1:]

        def read(node: Expr) -> Expr | None:
            if not isinstance(node, Load):
                return None
            operand = captured[node.slot]
            if operand not in operands:
                operands.append(operand)
            tokens = (b, t) if operand.type.rank - len(node.indices) == 2 else (t,)
            return Read(operands.index(operand), (*tokens, *node.indices), node.kind)

        kept = Apply("where", (rewrite_formula(masked.op.formula, read), kept, Const(0.0)))
    batch, tokens, heads, width = x.type.shape
    op = Index(
        axes=(("b", batch), ("n", count), ("h", heads), ("d", width)),
        reduced=(("t", tokens),),
        expr=Reduce("sum", ("t",), Apply("mul", (Read(0, (t, n), Kind.REAL), kept))),
    )
    return Eqn((scope.fresh("sums", TensorType((batch, count, heads, width), x.type.dtype)),), op, tuple(operands))
