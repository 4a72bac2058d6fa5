"""`recur(q, k, v, feature = .., decay = ..)` -> features, the logarithms of decays, and one Recurrence."""

from tfc.diagnostics import Note
from tfc.grammar.lowering.arguments import Call
from tfc.grammar.lowering.attend import carried
from tfc.grammar.lowering.features import apply_decay, apply_feature
from tfc.grammar.lowering.fields import batched, fits
from tfc.grammar.lowering.session import fail
from tfc.grammar.lowering.values import NOTHING, Meaning, Tensor, describe
from tfc.ir.ops import Recurrence
from tfc.ir.types import DType

__all__ = ["recur"]

DIRECTIONS = ("causal", "reverse", "both")


def recur(c: Call) -> Meaning:
    """q [B, N, H, K], k [B, M, G, K], v [B, M, G, V] -> [B, N, H, V]."""
    q, k, v = c.tensor("q"), c.tensor("k"), c.tensor("v")
    _check_shapes(c)
    direction = c.word("direction", DIRECTIONS) if "direction" in c.given else "causal"
    decay = c.given.get("decay")
    if decay is not None and decay.value is NOTHING:
        decay = None
    if direction == "both" and decay is not None:
        fail("E305", "a recurrence over all tokens, both before and after, has no decay", c.at("decay"),
             help='leave the decay out, or run two: "causal" and "reverse"')  # fmt: skip
    queries, keys = q.type.shape[1], k.type.shape[1]
    if direction != "both" and queries != keys:
        fail("E401", f'{queries} queries over {keys} keys: only `direction = "both"` lets them differ',
             c.frame.at(c.span), notes=c.made("q", "k"))  # fmt: skip
    same = q.same(k)
    q = apply_feature(c.given.get("feature"), q, c.node, c.frame)
    k = q if same else apply_feature(c.given.get("feature"), k, c.node, c.frame)
    kind, factor = apply_decay(decay, q, k, c.node, c.frame)
    segment = _segment(c, q)
    op = Recurrence(
        scale=float(c.number("scale", 1)), decay=kind, segmented=segment is not None, normalized=c.flag("normalized"),
        eps=float(c.number("eps", 0)), direction=direction,
    )  # fmt: skip
    operands = (q, k, v, *([factor] if factor is not None else []), *([segment] if segment is not None else []))
    out, state = c.frame.emit(op, operands, c.span, "mixed", carried(q))
    c.frame.builder.hints[state.value.name] = "state"
    return out


def _check_shapes(c: Call) -> None:
    q, k, v = (c.tensor(n) for n in "qkv")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.type.rank != 4 or not x.type.dtype.floating:
            fail(
                "E401", f"`recur` takes {name} as [batch, time, heads, head_dim]; it is {x.type}", c.frame.at(c.span),
                help="`split(x, heads)` makes heads of channels", notes=(Note("it is made here", x.span),),
            )  # fmt: skip
    if (q.type.shape[0], q.type.shape[3]) != (k.type.shape[0], k.type.shape[3]):
        fail("E401", f"q {q.type} does not fit k {k.type}: batch and head_dim must agree", c.frame.at(c.span),
             notes=c.made("q", "k"))  # fmt: skip
    if k.type.shape[:3] != v.type.shape[:3]:
        fail("E401", f"k {k.type} does not fit v {v.type}: all but the last size must agree", c.frame.at(c.span),
             notes=c.made("k", "v"))  # fmt: skip
    heads, groups = q.type.shape[2], k.type.shape[2]
    if not (isinstance(heads, int) and isinstance(groups, int)):
        fail("E406", f"{heads} heads over {groups}: both must be known while compiling", c.frame.at(c.span))
    if groups < 1 or heads % groups:
        fail("E404", f"{heads} heads do not divide into {groups} kv_heads", k.chosen or k.span,
             notes=(Note(f"the {heads} heads come from here", q.chosen or q.span),))  # fmt: skip


def _segment(c: Call, q: Tensor) -> Tensor | None:
    """The segments as [B, N]; None where there are none."""
    given = c.given.get("segment")
    if given is None or given.value is NOTHING:
        return None
    segment = given.value
    if not isinstance(segment, Tensor):
        fail(
            "E305", f"`segment` is one whole number for each token, or `none`, not {describe(segment)}", c.at("segment")
        )
    rank = segment.type.rank
    if segment.type.dtype is not DType.I32 or rank > 2 or not fits(segment, q):
        tokens = ", ".join(map(str, q.type.shape[:2]))
        fail("E401", f"`segment` is int[{tokens}]; `{c.shown('segment')}` is {segment.type}", c.at("segment"),
             notes=c.made("segment", "q"))  # fmt: skip
    return batched(segment, q, c.span, c.frame)
