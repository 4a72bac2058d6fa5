"""Laws of sequences: what a token's results do not depend on, tried by changing it."""

import itertools
from collections.abc import Mapping

import numpy as np

from tfc.ir.ops import Calibrated, Rounded
from tfc.ir.types import DType
from tfc.testing.spec_laws.decoding import form_of, time_of
from tfc.testing.spec_laws.rounding import FINEST, apart, noise, operations_of
from tfc.testing.spec_laws.subject import Array, Inapplicable, Refused, Subject, bits

__all__ = ["documents_apart", "no_later_token", "other_rows", "padding"]


def _timed(s: Subject) -> dict[str, DType]:
    """The inputs that have a value for each token, [B, T, ..]."""
    batch, time = time_of(s.wide.lowered)
    declared = [i.value for i in s.wide.lowered.inputs if i.value.type.rank >= 2]
    return {v.name: v.type.dtype for v in declared if tuple(map(str, v.type.shape[:2])) == (batch, time)}


def _changed(s: Subject, where: Array) -> dict[str, Array]:
    """Other values for the tokens at `where`, bool [B, T]: of another element in the same row, or other numbers."""
    out = dict(s.inputs)
    given = {i.value.name for i in s.wide.lowered.inputs if i.default is not None}
    for name, dtype in _timed(s).items():
        if name in (s.claims.documents, s.claims.place):  # they say what comes before what
            continue
        x = out[name]
        rng = np.random.default_rng(bits(s.seed, "changed", name))
        other: Array = x[:, rng.permutation(x.shape[1])]
        other = np.asarray(rng.standard_normal(x.shape)).astype(x.dtype) if dtype.floating else other
        if dtype is DType.I32 and name not in given:
            other = rng.integers(0, x.max() + 1, x.shape).astype(x.dtype)
        out[name] = np.where(where.reshape(*where.shape, *[1] * (x.ndim - 2)), other, x)
    return out


def _tokens(s: Subject) -> list[int]:
    """The results that have a value for each token."""
    batch, time = time_of(s.wide.lowered)
    kinds = [v.type.shape for v in s.wide.lowered.results]
    return [i for i, shape in enumerate(kinds) if tuple(map(str, shape[:2])) == (batch, time)]


def _same(s: Subject, changed: Mapping[str, Array], keep: Array, results: list[int]) -> str | None:
    """Results at `keep`, bool [B, T], are as before."""
    found, allowed = s.run(s.wide, changed), noise(s)
    for i in results:
        if said := apart(f"result {i}", found[i][keep], s.values[i][keep], allowed[i], FINEST):
            return said
    return None


def no_later_token(s: Subject) -> str | None:
    """Where a program can be decoded, or is claimed to be causal, later tokens do not matter."""
    if not s.claims.causal:
        try:
            form_of(s)
        except Refused as refused:
            raise Inapplicable(f"not known to be causal: {refused}") from None
    results = _tokens(s)
    if not results:
        raise Inapplicable("no result has a value for each token")
    batch, time = time_of(s.wide.lowered)
    rows, total = s.lengths[batch], s.lengths[time]
    for at in {total // 2, total - 1} - {0}:
        later = np.broadcast_to(np.arange(total) >= at, (rows, total))
        if said := _same(s, _changed(s, later), ~later, results):
            return f"tokens from {at} on matter before: {said}"
    return None


_WHOLE = "a format whose scale is shared by the whole tensor, or a frozen statistic"


def other_rows(s: Subject) -> str | None:
    """A row of the batch alone gives its own results."""
    batch, _ = time_of(s.wide.lowered)
    shapes = {i.value.name: i.value.type.shape for i in s.wide.lowered.inputs}
    if s.lengths.get(batch, 1) < 2 or not all(shape and str(shape[0]) == batch for shape in shapes.values()):
        raise Inapplicable("inputs without a row for each of the batch")
    if not all(v.type.rank and str(v.type.shape[0]) == batch for v in s.wide.lowered.results):
        raise Inapplicable("results without a row for each of the batch")
    if mixes(s):
        raise Inapplicable(_WHOLE)
    found, allowed = s.run(s.wide, {name: x[1:2] for name, x in s.inputs.items()}), noise(s)
    for i in range(len(s.wide.lowered.results)):
        if said := apart(f"result {i} of row 1 alone", found[i], s.values[i][1:2], allowed[i], FINEST):
            return said
    return None


def mixes(s: Subject) -> bool:
    """Whether an operation sees the whole tensor by its own definition."""
    return any(_whole(op) for op in operations_of(s.wide.lowered))


def _whole(op: object) -> bool:
    if isinstance(op, Rounded):
        return dict(op.format.settings).get("per") != "row"
    return isinstance(op, Calibrated)


def padding(s: Subject) -> str | None:
    """Tokens beyond a row's given length matter nowhere: not to the tokens within it, not to pooled results."""
    batch, time = time_of(s.wide.lowered)
    names = [name for name, most in s.limits.items() if most == time and s.inputs[name].shape == (s.lengths[batch],)]
    if not names:
        raise Inapplicable("no input says how many tokens of a row count")
    if mixes(s):
        raise Inapplicable(_WHOLE)
    total = s.lengths[time]
    within = np.arange(total) < s.inputs[names[0]][:, None]
    changed, allowed = s.run(s.wide, _changed(s, ~within)), noise(s)
    timed = _tokens(s)
    for i in range(len(s.wide.lowered.results)):
        keep = within if i in timed else np.ones(s.values[i].shape[:1], bool)
        if said := apart(f"result {i}", changed[i][keep], s.values[i][keep], allowed[i], FINEST):
            return f"tokens beyond `{names[0]}` matter: {said}"
    return None


def documents_apart(s: Subject) -> str | None:
    """Texts packed into one row give what they give alone, where an input is claimed to tell them apart."""
    document, place = s.claims.documents, s.claims.place
    if document is None:
        raise Inapplicable("no input is said to tell packed texts apart")
    for name in filter(None, (document, place)):
        if name not in s.inputs or s.inputs[name].ndim != 2:
            raise Inapplicable(f"there is no input `{name}` of [B, T]")
    if mixes(s):
        raise Inapplicable(_WHOLE)
    results = _tokens(s)
    inputs, spans = dict(s.inputs), []
    rows = inputs[document].shape[0]
    for b in range(rows):
        ends = np.flatnonzero(np.diff(inputs[document][b], prepend=-1, append=-1))
        spans += [(b, int(i), int(j)) for i, j in itertools.pairwise(ends)]
    inputs |= {name: np.full_like(inputs[name], inputs[document].shape[1]) for name in s.limits}
    packed, allowed, timed = s.run(s.wide, inputs), noise(s), _timed(s)
    for b, i, j in spans:
        part = {n: x[b : b + 1, i:j] if n in timed else x[b : b + 1] for n, x in inputs.items()}
        alone = s.run(s.wide, part | {name: np.full_like(part[name], j - i) for name in s.limits})
        for r in results:
            if said := apart(f"result {r}", alone[r], packed[r][b : b + 1, i:j], allowed[r], FINEST):
                return f"the text at {i} to {j} of row {b}, alone: {said}"
    return None
