"""Attentions of a trained model -> attentions of codes, whose hash functions are fitted to what they attended to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var, conjuncts, sides, walk
from tfc.formula.expr import rewrite as rewrite_formula
from tfc.ir.formats import FITTERS, Fit
from tfc.ir.op import Op
from tfc.ir.ops import Attention, Concat, Index, Linear, P, Recurrence, S
from tfc.ir.param_map import Call, ParamMap
from tfc.ir.program import Eqn, Init, Param, Program, Value
from tfc.ir.types import Size, TensorType
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.fuse_attention import FuseAttention
from tfc.passes.observe import attention_place
from tfc.passes.rewrite import Scope, rewrite

__all__ = ["ROLES", "HashAttention", "calls"]

ROLES = ("anchor", "vote", "center", "spread")
"""The parameters of one attention's hash functions, in the order in which `ksh` finds them."""

NOTHING = 1e-30
"""What is added to the sum of a row's weights, which is 1 or more, or 0 where the row sees no key: its result is 0."""

SHORTEST = 1e-12
"""What a vector is divided by at least, when it is made of length 1."""

CAUSAL = Apply("le", (Token("k"), Token("q")))


def calls(
    place: str,
    bits: int,
    anchors: int,
    *,
    fit: str = "ksh",
    seed: int = 0,
    frozen: bool = True,
    fitting: Mapping[str, bool | int | float | str] | None = None,
) -> dict[str, Call]:
    """The parameters of the hash functions at a place, as a fitting procedure finds them: role -> expression.

    fit: `ksh`, or `random_hash`. fitting: settings of `ksh`. The statistics that both ask for are
    `tfc.params.fit.ksh.Attended`, by the place.
    """
    chosen = {**FITTERS["ksh"].settings, **(fitting or {})}
    settings = {"anchors": anchors, "bits": bits, "frozen": frozen, "seed": seed, **chosen}
    known = tuple((name, x) for name, x in sorted(settings.items()) if not isinstance(x, type))
    return {role: Call(fit, (), known, n, place) for n, role in enumerate(ROLES)}


@dataclass(frozen=True)
class HashAttention:
    """attention(q, k, v)  ->  recurrence(codes of q, codes of k, v), codes being signs of fitted hash functions

    Approximate (EcoFormer, arXiv:2209.09004): a pair weighs t_q . t_k + bias, a whole number from 1 to 2 bits + 1, in
    place of exp(scale q . k), so that keys are summed once for all queries. Queries and keys are hashed by one set of
    functions for each key head; the scale no longer counts, nor do lengths of vectors. `paired` weighs every pair so
    and divides by the sum; `self` is what the authors' released code computes: the bias for a token with itself
    alone, divided by the sum for all. Known limits: where all codes agree, `paired` is the mean of the values; and
    with Y = t t' / bits (as fitting tries to reach) a pair weighs by how alike it is, up to 2 bits + 1 to 1.

    New parameters at the attention's place (`layer.look.anchor`, `.vote`, `.center`, `.spread`) are found by fitting
    to what the trained model attends to (`model.pack(params, data=...)`); the bandwidth is the mean over those texts
    and stays, so codes of a token do not depend on other tokens.

    places: which attentions, a pattern over their places (`layer.look`; `layer.*`). bits, anchors: of each function
    set. bias: bits + 1 where none is given. fit: `ksh`, or `random_hash`, whose votes are left as they are drawn.
    steps, pairs, unlike, rate: of `ksh`; by default the source's, for images of thousands of tokens.

    Masks may be causal, leave out keys whatever the query, or both. Holds back from others, from scores that are not
    s, from weights that are not p, where the log-sum-exp is read, and, for `self`, where queries and values are not
    known to come from the same tokens.
    """

    name: ClassVar[str] = "hash-attention"
    contract: ClassVar[Contract] = Contract.APPROXIMATE

    places: str = "*"
    bits: int = 16
    anchors: int = 25
    variant: str = "paired"
    bias: float | None = None
    fit: str = "ksh"
    seed: int = 0
    steps: int = 100
    pairs: int = 10
    unlike: int = 0
    rate: float = 5e-4

    def __post_init__(self) -> None:
        if self.variant not in ("paired", "self") or self.fit not in ("ksh", "random_hash"):
            raise ValueError(f"hash-attention: variant {self.variant}, fit {self.fit}")
        if self.bits < 1 or self.anchors < 1:
            raise ValueError(f"hash-attention: {self.bits} bits, {self.anchors} anchors")
        if self.bias is not None and self.bias <= self.bits:
            raise ValueError(f"hash-attention: a bias of {self.bias} lets weights of {self.bits} bits be 0 or less")

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        fused = FuseAttention()(program)
        work = _Work(self, hold, {p.path for p in program.stored()})
        new = rewrite(fused.program, work.rule)
        for note in fused.notes:  # places that attention's parts are at, not one attention
            work.notes.append(replace(note, site=f"{self.name}:{note.site.partition(':')[2]}"))
        if not work.hashed and not work.notes:
            work.notes.append(Note(f"{self.name}:{program.name}", f"no attention stands at a place like {self.places}"))
        if not work.hashed:
            new = program
        return Rewritten(new, ParamMap(forward=work.forward), work.notes)


@dataclass
class _Work:
    options: HashAttention
    hold: frozenset[str]
    taken: set[str]
    notes: list[Note] = field(default_factory=list)
    forward: dict[str, Call] = field(default_factory=dict)
    hashed: dict[str, tuple[Scope, tuple[Value, ...]]] = field(default_factory=dict)
    """place -> the body that it stands in, and its parameters there."""

    def rule(self, eqn: Eqn, scope: Scope) -> Sequence[Eqn] | None:
        if not isinstance(eqn.op, Attention):
            return None
        place = attention_place(eqn, scope)
        if not fnmatchcase(place, self.options.places):
            return None
        site = f"{HashAttention.name}:{place}"
        seen = _mask(eqn.op.mask)
        why = "asked to" if site in self.hold else seen if isinstance(seen, str) else self._refusal(eqn, scope, place)
        if why:
            self.notes.append(Note(site, why, span=eqn.span))
            return None
        assert not isinstance(seen, str)
        return _Codes(eqn, scope, self.options, self._params(eqn, scope, place), *seen).equations()

    def _refusal(self, eqn: Eqn, scope: Scope, place: str) -> str:
        """Why the attention stays as it is, or an empty string."""
        op = eqn.op
        assert isinstance(op, Attention)
        if op.score != S:
            return f"its scores are `{op.score}`; codes are compared as they are"
        if op.weigh != P:
            return f"its weights are `{op.weigh}`; there is no softmax to weigh by"
        if scope.reads.get(eqn.outs[1], 0):
            return f"{eqn.outs[1]}, the log-sum-exp, is read; weights of codes have none"
        if self.options.variant == "self" and not _same_tokens(eqn.args[0], eqn.args[2], scope):
            return "`self` weighs a token's own value, and queries and values are not known to be of the same tokens"
        if place in self.hashed and self.hashed[place][0] is not scope:
            return f"another body has parameters at {place}"
        clash = [f"{place}.{role}" for role in ROLES if f"{place}.{role}" in self.taken]
        return f"there is a parameter {clash[0]} already" if clash and place not in self.hashed else ""

    def _params(self, eqn: Eqn, scope: Scope, place: str) -> tuple[Value, ...]:
        """Those of the hash functions; the same for attentions at one place, whose projections are the same."""
        if place in self.hashed:
            return self.hashed[place][1]
        o, (heads, size) = self.options, _heads(eqn.args[1])
        shapes = {
            "anchor": (heads, o.anchors, size),
            "vote": (heads, o.bits, o.anchors),
            "center": (heads, o.anchors),
            "spread": (heads,),
        }
        fitting: dict[str, bool | int | float | str] = {
            "steps": o.steps,
            "pairs": o.pairs,
            "unlike": o.unlike,
            "rate": o.rate,
        }
        made = calls(place, o.bits, o.anchors, fit=o.fit, seed=o.seed, fitting=fitting)
        settings = tuple((name, fitting[name]) for name in FITTERS["ksh"].settings)
        last = place.rpartition(".")[2]
        values = []
        for role, shape in shapes.items():
            value = scope.fresh(f"{last}.{role}", TensorType(shape, eqn.args[1].type.dtype))
            kept = Param(f"{place}.{role}", value, Init("packed"), trained=False, fit=Fit("ksh", settings))
            scope.replace_params([], kept)
            self.forward[kept.path] = made[role]
            values.append(value)
        self.taken |= {f"{place}.{role}" for role in ROLES}
        self.hashed[place] = scope, tuple(values)
        return tuple(values)


def _heads(k: Value) -> tuple[int, int]:
    heads, size = k.type.shape[2:]
    assert isinstance(heads, int) and isinstance(size, int)  # what parameters are made of is known while compiling
    return heads, size


def _mask(mask: Expr) -> tuple[bool, Expr] | str:
    """Whether the mask is causal, and what else it asks of a key; or why it is neither."""
    causal, asked = False, []
    for part in conjuncts(mask):
        if part in (CAUSAL, Apply("ge", (Token("q"), Token("k")))):
            causal = True
        elif part != Const(True):
            asked.append(part)
    alone = {"h"}.isdisjoint(node.name for part in asked for node in walk(part) if isinstance(node, Var))
    for part in asked:
        if "q" in sides(part) or not alone:
            return f"its mask asks `{part}` of pairs; keys are summed once for all queries and heads"
    wanted: Expr = Const(True)
    for part in asked:
        wanted = part if wanted == Const(True) else Apply("and", (wanted, part))
    return causal, wanted


def _same_tokens(q: Value, v: Value, scope: Scope) -> bool:
    """Whether queries and values are linear maps of one value."""
    sources = []
    for value in (q, v):
        while (eqn := scope.maker(value)) is not None and eqn.args and not isinstance(eqn.op, Linear):
            value = eqn.args[0]
        sources.append(None if eqn is None or not eqn.args else eqn.args[0])
    return sources[0] is not None and sources[0] == sources[1]


def _var(name: str) -> Var:
    return Var(name, Kind.INT)


def _read(slot: int, *names: str | Expr) -> Read:
    return Read(slot, tuple(_var(n) if isinstance(n, str) else n for n in names), Kind.REAL)


@dataclass
class _Codes:
    """The equations that take one attention's place."""

    eqn: Eqn
    scope: Scope
    options: HashAttention
    params: tuple[Value, ...]
    causal: bool
    asked: Expr
    made: list[Eqn] = field(default_factory=list)

    def equations(self) -> list[Eqn]:
        q, k, v = self.eqn.args[:3]
        bits = self.options.bits
        bias = float(self.options.bits + 1 if self.options.bias is None else self.options.bias)
        groups = _heads(q)[0] // _heads(k)[0]
        t, s = self._code("query", q, groups), self._code("key", k, 1)
        even, other = self._beside(t, bias), self._seen(self._beside(s, 1.0))
        direction = "causal" if self.causal else "both"
        if self.options.variant == "paired":
            op = Recurrence(normalized=True, eps=NOTHING, direction=direction)
            self._bind((self.eqn.outs[0], self._state(op, even, other, v)), op, even, other, v)
            return self.made
        op = Recurrence(direction=direction)
        near = self._recur(op, "near", t, self._seen(s), v)
        whole = self._recur(op, "whole", even, other, self._column(v, "one", 1.0))
        h = self._group("h", groups)
        mine = Apply("mul", (_read(1, "b", "t", h, "d"), Const(bias)))
        sum = Apply("max", (_read(2, "b", "t", "h", Const(0)), Const(1.0)))  # 1 or more where a key is seen
        own = Apply("div", (Apply("add", (_read(0, "b", "t", "h", "d"), mine)), sum))
        axes = zip("bthd", self.eqn.outs[0].type.shape, strict=True)
        self._bind((self.eqn.outs[0],), Index(axes=tuple(axes), expr=own), near, v, whole)
        assert bits == s.type.last
        return self.made

    def _code(self, name: str, x: Value, groups: int) -> Value:
        """Signs of the hash functions.   x: [B, T, H, D] -> [B, T, H, bits]"""
        anchor, vote, center, spread = self.params
        batch, tokens, heads, size = x.type.shape
        h = self._group("h", groups)
        axes: tuple[tuple[str, Size], ...] = (("b", batch), ("t", tokens), ("h", heads))
        square = self._sum(("e",), Apply("pow", (_read(0, "b", "t", "h", "e"), Const(2))))
        length = Apply("max", (Apply("sqrt", (square,)), Const(SHORTEST)))
        unit = Apply("div", (_read(0, "b", "t", "h", "d"), length))
        u = self._index("unit", (*axes, ("d", size)), (("e", size),), unit, x)
        apart = Apply("sub", (_read(0, "b", "t", "h", "d"), _read(1, h, "a", "d")))
        square = self._sum(("d",), Apply("pow", (apart, Const(2))))
        count = ("a", anchor.type.shape[1])
        away = self._index("away", (*axes, count), (("d", size),), square, u, anchor)
        wide = Apply("mul", (Const(2), _read(1, h)))
        kept = Apply("exp", (Apply("div", (Apply("neg", (_read(0, "b", "t", "h", "a"),)), wide)),))
        near = Apply("sub", (kept, _read(2, h, "a")))
        near_ = self._index("near", (*axes, count), (), near, away, spread, center)
        product = Apply("mul", (_read(0, h, "r", "a"), _read(1, "b", "t", "h", "a")))
        g = self._index("g", (*axes, ("r", vote.type.shape[1])), (count,), self._sum(("a",), product), vote, near_)
        one = _read(0, "b", "t", "h", "r")
        clipped = Apply("min", (Apply("max", (one, Const(-1.0))), Const(1.0)))
        code = Apply("straight", (Apply("sign", (one,)), clipped))
        return self._index(f"{name}_code", (*axes, ("r", vote.type.shape[1])), (), code, g)

    def _beside(self, code: Value, number: float) -> Value:
        """The code and one element more."""
        column = self._column(code, "bias", number)
        both = self.scope.fresh("even", code.type.with_last(self.options.bits + 1))
        return self._bind((both,), Concat(), code, column)[0]

    def _column(self, x: Value, name: str, number: float) -> Value:
        """[B, T, H, C] -> [B, T, H, 1], one number all over."""
        axes = tuple(zip("bthc", (*x.type.shape[:3], 1), strict=True))
        nothing = Apply("mul", (Const(0.0), _read(0, "b", "t", "h", "c")))
        return self._index(name, axes, (), Apply("add", (nothing, Const(number))), x)

    def _seen(self, code: Value) -> Value:
        """The codes of keys, zero for those that no query may see."""
        if self.asked == Const(True):
            return code
        fields = self.eqn.args[3:]

        def of_key(node: Expr) -> Expr | None:
            match node:
                case Token("k"):
                    return _var("t")
                case Load(slot, "k", kind, indices):
                    tokens = ("b", "t")[2 - (fields[slot].type.rank - len(indices)) :]
                    return Read(slot + 1, (*map(_var, tokens), *indices), kind)
                case Read(slot, indices, kind):
                    return Read(slot + 1, indices, kind)
            return None

        kept = Apply("where", (rewrite_formula(self.asked, of_key), _read(0, "b", "t", "h", "r"), Const(0.0)))
        axes = tuple(zip("bthr", code.type.shape, strict=True))
        return self._index("seen", axes, (), kept, code, *fields)

    @staticmethod
    def _group(name: str, groups: int) -> Expr:
        """The head of keys that a head reads."""
        return _var(name) if groups == 1 else Apply("floordiv", (_var(name), Const(groups)))

    @staticmethod
    def _sum(over: tuple[str, ...], body: Expr) -> Expr:
        return Reduce("sum", over, body)

    def _recur(self, op: Recurrence, name: str, q: Value, k: Value, v: Value) -> Value:
        out = self.scope.fresh(name, TensorType((*q.type.shape[:3], v.type.last), v.type.dtype))
        return self._bind((out, self._state(op, q, k, v)), op, q, k, v)[0]

    def _state(self, op: Recurrence, q: Value, k: Value, v: Value) -> Value:
        return self.scope.fresh("state", op.infer(q.type, k.type, v.type)[1])

    def _index(
        self, name: str, axes: tuple[tuple[str, Size], ...], reduced: tuple[tuple[str, Size], ...], expr: Expr,
        *operands: Value,
    ) -> Value:  # fmt: skip
        op = Index(axes=axes, reduced=reduced, expr=expr)
        (type,) = op.infer(*(x.type for x in operands))
        return self._bind((self.scope.fresh(name, type),), op, *operands)[0]

    def _bind(self, outs: tuple[Value, ...], op: Op, *operands: Value) -> tuple[Value, ...]:
        self.made.append(Eqn(outs, op, operands, self.eqn.span))
        return outs
