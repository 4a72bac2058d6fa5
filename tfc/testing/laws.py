"""A callable and a case turned into violations of the algebraic laws of attention.

A law is checked without the definition: it relates results of the candidate to each other, or to what must hold
whatever the formula. What may differ by rounding is compared within the two runs' allowed errors added up
(`tolerance`); what may not (causality, other batch rows) is compared bit by bit. The laws are those of softmax
attention: row sums and shifts (arXiv:1706.03762), grouping (arXiv:2305.13245), merging (arXiv:1805.02867).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Token, apply, conjuncts, substitute, walk
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn
from tfc.testing import float64
from tfc.testing.cases import Array, shaped, slot_sides
from tfc.testing.tolerance import Expected, compare, expected, expected_gradients

__all__ = ["LAWS", "Candidate", "Law", "Refused", "Setting", "Violation"]


class Refused(Exception):
    """The candidate does not serve the equation that a law asks about; the message says why."""


@runtime_checkable
class Candidate(Protocol):
    """What is judged: an implementation of attention.

    any_op: whether it can be asked for other formulas than the case's own.
    """

    @property
    def any_op(self) -> bool: ...

    def run(self, eqn: Eqn, operands: Sequence[Array]) -> tuple[Array, Array | None]:
        """(out, lse), or (out, None) of one that gives no log-sum-exp. Raises Refused."""
        ...

    def gradient(self, eqn: Eqn, operands: Sequence[Array], dout: Array) -> dict[int, Array] | None:
        """The gradient of sum(out * dout) by operand number, or None of one that has none. Raises Refused."""
        ...


@dataclass(frozen=True, slots=True)
class Violation:
    """A law that does not hold, or a result that is not the definition's, and the case it was seen on."""

    law: str
    message: str
    case: str = ""

    def __str__(self) -> str:
        return f"{self.law}: {self.message}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate's results and what rounding may do to each. Shapes: out [B, N, H, Dv], lse [B, H, N]."""

    out: Array
    lse: Array | None
    right: tuple[Expected, Expected]

    def moved(self, out: Callable[[Array], Array], lse: Callable[[Array], Array]) -> "Outcome":
        """The same with rows or heads elsewhere."""
        a, b = (
            Expected(e.what, move(e.definition), move(e.plain), move(e.unit))
            for e, move in zip(self.right, (out, lse), strict=True)
        )
        return Outcome(out(self.out), None if self.lse is None else lse(self.lse), (a, b))


@dataclass(frozen=True, slots=True)
class Setting:
    """A case to check laws on."""

    candidate: Candidate
    eqn: Eqn
    operands: tuple[Array, ...]
    seed: int = 0

    @property
    def op(self) -> Attention:
        assert isinstance(self.eqn.op, Attention)
        return self.eqn.op

    def run(self, operands: Sequence[Array], op: Attention | None = None) -> Outcome:
        """The candidate on other arrays, whatever their lengths, and for another operation where it can be asked."""
        eqn = replace(self.eqn, op=op) if op else self.eqn
        eqn = shaped(eqn, operands)
        assert isinstance(eqn.op, Attention)
        out, lse = self.candidate.run(eqn, operands)
        return Outcome(out, lse, expected(eqn.op, operands))

    def seen(self) -> Array:
        return float64.seen_by(self.op, self.operands[0], self.operands[1], self.operands[3:])

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 1])

    def taken(self, batch: Any = slice(None), queries: Any = slice(None), keys: Any = slice(None)) -> tuple[Array, ...]:
        """The operands at some batch rows, queries and keys."""
        q, k, v, *captured = self.operands
        out = [q[batch][:, queries], k[batch][:, keys], v[batch][:, keys]]
        sides = slot_sides(self.op)
        for slot, x in enumerate(captured):
            if slot in sides:
                tokens = queries if "q" in sides[slot] else keys
                x = x[batch][:, tokens] if x.ndim == 2 else x[tokens]
            out.append(x)
        return tuple(out)

    def with_values(self, v: Array) -> tuple[Array, ...]:
        return (*self.operands[:2], v.astype(self.operands[2].dtype), *self.operands[3:])


@dataclass(frozen=True, slots=True)
class Law:
    """A law by its name; when it can be checked; and the check, which says what is wrong, or gives None."""

    name: str
    applies: Callable[[Setting], bool]
    check: Callable[[Setting], str | None]


def differ(a: Outcome, b: Outcome, shift: Any = 0.0) -> str | None:
    """How the first outcome differs from the second, whose lse is `shift` less, by more than both may be off."""
    for i, (x, y) in enumerate(((a.out, b.out), (a.lse, b.lse))):
        if x is not None and y is not None and (message := _differ(x, y + shift if i else y, a.right[i], b.right[i])):
            return message
    return None


def _lost(right: Expected) -> Array:
    """The plain computation's error; 0 where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.abs(right.plain - right.definition), posinf=0)


def _differ(x: Array, y: Array, right_x: Expected, right_y: Expected) -> str | None:
    y = y.astype(np.float64)
    spread = _lost(right_x) + _lost(right_y)
    found = compare(right_x.what, x, y, y + spread, right_x.unit + right_y.unit)
    return found.reason.replace("the definition says", "not") or None


def _tokens(op: Attention) -> bool:
    return any(isinstance(n, Token) for e in (op.score, op.mask, op.weigh) for n in walk(e))


def _softmax(op: Attention) -> bool:
    return bool(op.weigh == P)


def additive(score: Expr) -> bool:
    """Whether the formula is `s` plus or minus what does not depend on `s`."""
    match score:
        case Apply("add", (a, b)):
            return (additive(a) and S not in walk(b)) or (additive(b) and S not in walk(a))
        case Apply("sub", (a, b)):
            return additive(a) and S not in walk(b)
    return score == S


def _grid(x: Any) -> Array:
    """Multiples of 1/8 up to 2 in size: sums of two are exact in every type."""
    return np.asarray(np.clip(np.round(x.astype(np.float32) * 8) / 8, -2, 2))


def rows_sum_to_one(s: Setting) -> str | None:
    """With v = 1 every row that sees a key gives 1."""
    operands = s.with_values(np.ones(s.operands[2].shape))
    got = s.run(operands)
    right = got.right[0]
    ones = np.broadcast_to(s.seen().any(3).transpose(0, 2, 1)[..., None], got.out.shape).astype(np.float64)
    found = compare("out", got.out, ones, right.plain, right.unit)
    return found.reason.replace("the definition says", "not") or None


def convex_hull(s: Setting) -> str | None:
    """Every element of a result lies between the least and the largest that its row sees."""
    got, seen = s.run(s.operands), s.seen()
    right = got.right[0]
    v = np.repeat(s.operands[2].astype(np.float64), seen.shape[1] // s.operands[2].shape[2], 2).transpose(0, 2, 1, 3)
    for b, h, i in np.argwhere(seen.any(3)):
        mine = v[b, h, seen[b, h, i]]
        row = got.out[b, i, h].astype(np.float64)
        inside = np.clip(row, mine.min(0), mine.max(0))
        plain, definition, unit = (x[b, i, h] for x in (right.plain, right.definition, right.unit))
        found = compare(f"out[{b}, {i}, {h}]", row, inside, inside + (plain - definition), unit)
        if not found.ok:
            return found.reason.replace("the definition says", "the nearest mean of values seen is")
    return None


def row_constant(s: Setting) -> str | None:
    """A vector added to all keys adds a constant to each row of scores: out stays, lse moves by it."""
    q, k, v, *captured = s.operands
    step = _grid(s.rng().standard_normal(k.shape[3]))
    k = _grid(k)
    before = s.run((q, k.astype(q.dtype), v, *captured))
    after = s.run((q, (k + step).astype(q.dtype), v, *captured))
    shift = s.op.scale * (q.astype(np.float64) @ step).transpose(0, 2, 1)
    return differ(after, before, shift)


def key_order(s: Setting) -> str | None:
    """Without positions, the order of keys does not matter."""
    order = s.rng().permutation(s.operands[1].shape[1])
    return differ(s.run(s.taken(keys=order)), s.run(s.operands))


def query_order(s: Setting) -> str | None:
    """Without positions, queries in another order give rows in that order."""
    order = s.rng().permutation(s.operands[0].shape[1])
    before = s.run(s.operands).moved(lambda out: out[:, order], lambda lse: lse[:, :, order])
    return differ(s.run(s.taken(queries=order)), before)


def unseen_keys(s: Setting) -> str | None:
    """Keys that a row may not see do not change a bit of it: causality, for a causal mask."""
    q, k, v, *captured = s.operands
    rng, seen = s.rng(), s.seen()
    m = k.shape[1]
    before = s.run(s.operands)
    for changed in (np.arange(m) >= m // 2, rng.random(m) < 0.3):
        blind = ~seen[..., changed].any(3)
        if not blind.any() or not changed.any():
            continue
        k2, v2 = (x.copy() for x in (k, v))
        for x in (k2, v2):
            x[:, changed] = (3 * rng.standard_normal((x.shape[0], int(changed.sum()), *x.shape[2:]))).astype(x.dtype)
        after = s.run((q, k2, v2, *captured))
        if message := _bits(before, after, blind):
            return f"{message} when keys that the row does not see change"
    return None


def _bits(a: Outcome, b: Outcome, rows: Array) -> str | None:
    """Where the outcomes differ in a bit on the given rows, [B, H, N]."""
    wide = np.broadcast_to(rows.transpose(0, 2, 1)[..., None], a.out.shape)
    for what, x, y, at in (("out", a.out, b.out, wide), ("lse", a.lse, b.lse, rows)):
        if x is None or y is None:
            continue
        moved = np.argwhere((x != y) & ~(np.isnan(x) & np.isnan(y)) & at)
        if len(moved):
            place = tuple(int(i) for i in moved[0])
            return f"{what}{list(place)} goes from {float(x[place]):.9g} to {float(y[place]):.9g}"
    return None


def other_batch_rows(s: Setting) -> str | None:
    """A NaN in one batch row does not change a bit of another."""
    row = int(s.rng().integers(s.operands[0].shape[0]))
    changed = [x.copy() for x in s.operands[:3]]
    for x in changed:
        x[row] = np.nan
    rows = np.ones(s.seen().shape[:3], bool)
    rows[row] = False
    message = _bits(s.run(s.operands), s.run((*changed, *s.operands[3:])), rows)
    return f"{message} when batch row {row} becomes NaN" if message else None


def nan_arrives(s: Setting) -> str | None:
    """A NaN in a key reaches every row that sees the key."""
    q, k, v, *captured = s.operands
    k = k.copy()
    b, _, _, j = (int(i) for i in s.rng().permutation(np.argwhere(s.seen()))[0])
    k[b, j] = np.nan
    operands = (q, k, v, *captured)
    right = float64.attention(s.op, *operands)
    reached = right.seen[..., j] & np.isnan(right.z[..., j])
    out = np.asarray(s.candidate.run(s.eqn, operands)[0])
    tidy = np.argwhere(reached[b] & ~np.isnan(out[b].astype(np.float64)).all(2).T)
    if len(tidy):
        h, i = tidy[0]
        return f"out[{b}, {i}, {h}] is not NaN though the row sees key {j}, which is"
    return None


def grouped_heads(s: Setting) -> str | None:
    """Query head i reads key/value head i // (H // G): the same with keys and values repeated."""
    q, k, v, *captured = s.operands
    times = q.shape[2] // k.shape[2]
    repeated = (q, np.repeat(k, times, 2), np.repeat(v, times, 2), *captured)
    return differ(s.run(s.operands), s.run(repeated))


def blind_rows(s: Setting) -> str | None:
    """A row that may see no key gives zeros, and an lse of -inf."""
    blind = ~s.seen().any(3)
    got = s.run(s.operands)
    for b, h, i in np.argwhere(blind):
        row = got.out[b, i, h].astype(np.float64)
        if not (row == 0).all():
            return f"out[{b}, {i}, {h}] sees nothing and begins {row[0]:g}, not 0"
        if got.lse is not None and got.lse[b, h, i] != -np.inf:
            return f"lse[{b}, {h}, {i}] sees nothing and is {float(got.lse[b, h, i]):g}, not -inf"
    return None


def split_and_merge(s: Setting) -> str | None:
    """Attention over two parts of the keys, merged by their lse, is attention over all."""
    s = with_positions(s) if _tokens(s.op) else s
    m = s.operands[1].shape[1]
    cut = (m + 1) // 2
    whole = s.run(s.operands)
    parts = [s.run(s.taken(keys=keys)) for keys in (slice(0, cut), slice(cut, m))]
    if parts[0].lse is None or parts[1].lse is None:
        return None
    lse = np.logaddexp(parts[0].lse.astype(np.float64), parts[1].lse.astype(np.float64))
    with np.errstate(invalid="ignore"):
        shares = [np.where(np.isneginf(lse), 0, np.exp(p.lse - lse)) for p in parts if p.lse is not None]
    rows = [x.transpose(0, 2, 1)[..., None] for x in shares]

    def merged(pick: Callable[[Outcome], Array]) -> Array:
        return np.asarray(sum(share * pick(p) for share, p in zip(rows, parts, strict=True)))

    out = merged(lambda p: p.out.astype(np.float64))
    # the merged lse is off by at most as much as the worse of the two
    lost, unit = (np.max([x(p.right[1]) for p in parts], axis=0) for x in (_lost, lambda e: e.unit))
    right = (
        Expected("out", out, out + merged(lambda p: _lost(p.right[0])), merged(lambda p: p.right[0].unit)),
        Expected("lse", lse, lse + lost, unit),
    )
    return differ(whole, Outcome(out, lse, right))


def with_positions(s: Setting) -> Setting:
    """The case with positions given as fields, equal to those that queries and keys have by themselves."""
    n, m = s.operands[0].shape[1], s.operands[1].shape[1]
    free = len(s.operands) - 3
    given: dict[Expr, Expr] = {Token("q"): Load(free, "q", Kind.INT), Token("k"): Load(free + 1, "k", Kind.INT)}
    score, mask, weigh = (substitute(e, given) for e in (s.op.score, s.op.mask, s.op.weigh))
    batch = s.operands[0].shape[0]
    fields = [np.broadcast_to(np.arange(t) + d, (batch, t)).astype(np.int32) for t, d in ((n, m - n), (m, 0))]
    eqn = replace(s.eqn, op=replace(s.op, score=score, mask=mask, weigh=weigh))
    extra = tuple(replace(eqn.args[0], name=f"c{free + i}") for i in range(2))
    operands = (*s.operands, *fields)
    return replace(s, eqn=shaped(replace(eqn, args=(*eqn.args, *extra)), operands), operands=operands)


def positions_given(s: Setting) -> str | None:
    """Positions 0..M-1 for keys and M-N.. for queries are the same written out as fields."""
    given = with_positions(s)
    return differ(given.run(given.operands), s.run(s.operands))


def duplicated_keys(s: Setting) -> str | None:
    """Without positions, keys that all occur twice give the same result, and log 2 more in lse."""
    m = np.arange(s.operands[1].shape[1])
    return differ(s.run(s.taken(keys=np.concatenate([m, m]))), s.run(s.operands), np.log(2))


def linear_in_values(s: Setting) -> str | None:
    """The result for a sum of values is the sum of the results."""
    v = _grid(s.operands[2])
    w = _grid(s.rng().standard_normal(v.shape))
    parts = [s.run(s.with_values(x)) for x in (v, w)]
    whole = s.run(s.with_values(v + w))
    total = parts[0].out.astype(np.float64) + parts[1].out.astype(np.float64)
    lost = _lost(parts[0].right[0]) + _lost(parts[1].right[0])
    right = Expected("out", total, total + lost, parts[0].right[0].unit + parts[1].right[0].unit)
    return differ(whole, Outcome(total, None, (right, whole.right[1])))


def documents_apart(s: Setting) -> str | None:
    """Documents packed in one row give what each gives alone."""
    slots = _document_slots(s.op)
    assert slots is not None
    field = s.operands[3 + slots[0]]
    whole = s.run(s.operands)
    for b in range(s.operands[0].shape[0]):
        runs = field[b] if field.ndim == 2 else field
        for document in np.unique(runs)[:2]:
            at = np.flatnonzero(runs == document)
            alone = s.run(s.taken(batch=slice(b, b + 1), queries=at, keys=at))
            if message := differ(alone, _rows(whole, b, at)):
                return f"batch row {b}, document {document} alone: {message}"
    return None


def _rows(outcome: Outcome, b: int, at: Array) -> Outcome:
    return outcome.moved(lambda out: out[b : b + 1, at], lambda lse: lse[b : b + 1, :, at])


def _document_slots(op: Attention) -> tuple[int, int] | None:
    """The slots of `q.field == k.field` among the mask's conjuncts."""
    for part in conjuncts(op.mask):
        match part:
            case Apply("eq", (Load(a, "q", Kind.INT), Load(b, "k", Kind.INT))):
                return a, b
            case Apply("eq", (Load(b, "k", Kind.INT), Load(a, "q", Kind.INT))):
                return a, b
    return None


def _documents(s: Setting) -> bool:
    slots = _document_slots(s.op)
    if slots is None or s.operands[0].shape[1] != s.operands[1].shape[1]:
        return False
    a, b = (s.operands[3 + slot] for slot in slots)
    moved: dict[Expr, Expr] = {Token(side): apply("add", Token(side), Const(1009)) for side in ("q", "k")}
    op = replace(s.op, score=substitute(s.op.score, moved), mask=substitute(s.op.mask, moved))
    here, there = (float64.attention(x, *s.operands) for x in (s.op, op))
    runs = a if a.ndim == 2 else a[None]
    together = all(bool((np.diff(np.flatnonzero(r == d)) == 1).all()) for r in runs for d in np.unique(r))
    same = all(np.array_equal(x, y) for x, y in ((a, b), (here.seen, there.seen), (here.z, there.z)))
    return together and same


def neutral_terms(s: Setting) -> str | None:
    """A window wider than everything, and a slope of zero, change nothing."""
    n, m = s.operands[0].shape[1], s.operands[1].shape[1]
    distance = apply("sub", Token("q"), Token("k"))
    mask = apply("and", s.op.mask, apply("lt", distance, Const(n + m)))
    score = apply("add", s.op.score, apply("mul", Const(0.0), distance))
    return differ(s.run(s.operands, replace(s.op, mask=mask, score=score)), s.run(s.operands))


def gradients_cancel(s: Setting) -> str | None:
    """A constant added to a row of scores is neutral, so the gradients of all keys add up to zero."""
    dout = s.rng().standard_normal(s.operands[0].shape[:3] + s.operands[2].shape[3:]).astype(s.operands[2].dtype)
    got = s.candidate.gradient(s.eqn, s.operands, dout)
    if got is None:
        return None
    right = expected_gradients(s.op, s.operands, dout)[1]
    total = got[1].astype(np.float64).sum(1)
    # each key's gradient is rounded by itself
    lost = (right.plain - right.definition).sum(1)
    found = compare("sum of dk", total, np.zeros_like(total), lost, right.unit.sum(1))
    return found.reason.replace("the definition says", "not") or None


def _no_positions(s: Setting) -> bool:
    return not _tokens(s.op) and all(len(sides) == 1 for sides in slot_sides(s.op).values())


def _many_keys(s: Setting) -> bool:
    return bool(s.operands[1].shape[1] > 1)


def _splits(s: Setting) -> bool:
    shared = any(len(sides) == 2 for sides in slot_sides(s.op).values())
    return _softmax(s.op) and _many_keys(s) and not shared and (s.candidate.any_op or not _tokens(s.op))


def _shifts(s: Setting) -> bool:
    return _softmax(s.op) and additive(s.op.score)


LAWS: tuple[Law, ...] = (
    Law("rows that see nothing give zeros", lambda s: not s.seen().any(3).all(), blind_rows),
    Law("rows of weights sum to one", lambda s: _softmax(s.op), rows_sum_to_one),
    Law("results lie in the convex hull of the values", lambda s: _softmax(s.op), convex_hull),
    Law("a constant added to a row of scores is neutral", _shifts, row_constant),
    Law("keys that a row does not see do not matter", lambda s: not s.seen().all(), unseen_keys),
    Law("batch rows are independent", lambda s: s.operands[0].shape[0] > 1, other_batch_rows),
    Law("a NaN reaches the rows that see it", lambda s: bool(s.seen().any()), nan_arrives),
    Law("grouped heads are repeated heads", lambda s: s.operands[0].shape[2] > s.operands[1].shape[2], grouped_heads),
    Law("the order of keys does not matter", lambda s: _no_positions(s) and _many_keys(s), key_order),
    Law("queries in another order give their rows", _no_positions, query_order),
    Law("two parts of the keys merge by lse", _splits, split_and_merge),
    Law("keys that occur twice add log 2", lambda s: _softmax(s.op) and _no_positions(s), duplicated_keys),
    Law("results are linear in the values", lambda _: True, linear_in_values),
    Law("documents packed are documents apart", _documents, documents_apart),
    Law("positions may be given as fields", lambda s: s.candidate.any_op and _tokens(s.op), positions_given),
    Law("neutral terms change nothing", lambda s: s.candidate.any_op, neutral_terms),
    Law("gradients of keys cancel", _shifts, gradients_cancel),
)
"""Every law that is checked, in the order of what it costs to understand a failure."""
