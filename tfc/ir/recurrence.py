"""The linear recurrence: a state of keys by values that each token decays, adds to, and reads."""

from dataclasses import dataclass
from typing import ClassVar

from tfc.ir.op import Op
from tfc.ir.types import DType, IRError, TensorType

__all__ = ["Recurrence"]

DECAYS = {"none": 0, "head": 1, "token": 3, "channel": 4}
"""The kinds of decay, and how many axes its operand has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recurrence(Op):
    """S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t,   out_t = scale * q_t S_t, head by head, in float32 or wider.

    q: [B, N, H, K]   k: [B, M, G, K]   v: [B, M, G, V]   decay, unless "none": the logarithm g <= 0, [H] ("head"),
    [B, N, H] ("token") or [B, N, H, K] ("channel")   segment, if `segmented`: int [B, N]   if `initial`, what the
    tokens before left: state [B, H, K, V]; z [B, H, K] if `normalized`; the last one's segment int [B] if `segmented`
    results: out [B, N, H, V] in v's type; state [B, H, K, V] in float32 or wider, after the last token; if `initial`
    and `normalized`, z [B, H, K] after it

    Query head i reads key/value head i // (H // G). A token sees itself. Where the segment differs from the
    previous token's, the state starts from zero.
    normalized: out_t is divided by scale * q_t z_t + eps, with z_t = diag(exp(g_t)) z_{t-1} + k_t.
    direction: "causal"; "reverse" runs from the last token to the first; "both" sums over all tokens of the
    (segment and) sequence, without decay, and only there M may differ from N.
    initial: the first token continues from a state and z that are given, not from zero; causal only.
    Linear attention arXiv:2006.16236, retention 2307.08621, gated 2312.06635, Mamba-2 2405.21060.
    """

    name: ClassVar[str] = "recurrence"
    scale: float = 1.0
    decay: str = "none"
    segmented: bool = False
    normalized: bool = False
    eps: float = 0.0
    direction: str = "causal"
    initial: bool = False

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        if self.decay not in DECAYS or self.direction not in ("causal", "reverse", "both"):
            raise IRError(f"recurrence: decay {self.decay}, direction {self.direction}")
        given = self.initial * (1 + self.normalized + self.segmented)
        if len(operands) != 3 + (self.decay != "none") + self.segmented + given:
            raise IRError(f"recurrence: {len(operands)} operands")
        if self.initial and self.direction != "causal":
            raise IRError(f"recurrence: an initial state, and direction {self.direction}")
        q, k, v, *rest = operands
        if not (q.rank == k.rank == v.rank == 4):
            raise IRError(f"recurrence: q {q}, k {k}, v {v} are not [batch, time, heads, head_dim]")
        if (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]) or k.shape[:3] != v.shape[:3]:
            raise IRError(f"recurrence: q {q} does not fit k {k}, v {v}")
        h, g = q.shape[2], k.shape[2]
        if not (isinstance(h, int) and isinstance(g, int) and g > 0 and h % g == 0):
            raise IRError(f"recurrence: {h} heads over {g} kv_heads")
        if self.direction != "both" and q.shape[1] != k.shape[1]:
            raise IRError(f"recurrence: {q.shape[1]} queries over {k.shape[1]} keys")
        if self.direction == "both" and (self.decay != "none" or (self.segmented and q.shape[1] != k.shape[1])):
            raise IRError("recurrence: both directions have no decay")
        if self.decay != "none":
            decay = rest.pop(0)
            wanted = {"head": (h,), "token": q.shape[:3], "channel": q.shape}[self.decay]
            if decay.shape != wanted or not decay.dtype.floating:
                raise IRError(f"recurrence: a decay {decay} per {self.decay} for q {q}")
        if self.segmented and rest[0] != TensorType(q.shape[:2], DType.I32):
            raise IRError(f"recurrence: segments {rest[0]} for q {q}")
        wide = DType.F64 if DType.F64 in (q.dtype, v.dtype) else DType.F32
        state = TensorType((q.shape[0], h, q.shape[3], v.last), wide)
        out, total = TensorType((*q.shape[:3], v.last), v.dtype), TensorType(state.shape[:3], wide)
        if not self.initial:
            return out, state
        before = [state, *([total] if self.normalized else [])]
        last = [TensorType(q.shape[:1], DType.I32)] if self.segmented else []
        if list(rest[-given:]) != [*before, *last]:
            raise IRError(f"recurrence: an initial state of {', '.join(map(str, rest[-given:]))} for q {q}, v {v}")
        return (out, *before)
