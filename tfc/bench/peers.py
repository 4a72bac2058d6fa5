"""What others call by hand for the same attention: each peer serves a case or says why it does not."""

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from tfc.bench.cases import CAUSAL, AttentionCase
from tfc.bench.timing import JaxRunner, Runner, TorchRunner
from tfc.formula.expr import Apply, Const, Load, Read, conjuncts
from tfc.ir.ops import S

__all__ = ["PEERS", "Form", "Peer", "PeerRefusal"]

Operands = tuple[jax.Array, ...]
Prepared = tuple[Runner, Callable[[], jax.Array]]


class PeerRefusal(Exception):
    """Why a peer cannot take part in a case: it is not installed, or has no such form."""


@dataclass(frozen=True)
class Form:
    """A case in the words of the libraries: what their arguments can say."""

    causal: bool
    window: int | None
    segments: int | None
    softcap: float | None
    slopes: int | None

    @staticmethod
    def of(case: AttentionCase) -> "Form":
        """Raises PeerRefusal where the formulas are not of these forms."""
        causal, reach, segments, cap, slopes = False, None, None, None, None
        for part in conjuncts(case.mask):
            match part:
                case Const(True):
                    pass
                case Apply() if part == CAUSAL:
                    causal = True
                case Apply("lt", (Apply("abs", _), Const(size))):
                    reach = int(size)
                case Apply("eq", (Load(slot, "q", _), Load(_, "k", _))):
                    segments = slot  # self-attention: both sides hold the same field
                case _:
                    raise PeerRefusal(f"no argument says `{part}`")
        match case.score:
            case score if score == S:
                pass
            case Apply("mul", (Const(c), Apply("tanh", _))):
                cap = float(c)
            case Apply("sub", (_, Apply("mul", (Read(slot, _, _), _)))):
                slopes = slot
            case _:
                raise PeerRefusal(f"no argument says `{case.score}`")
        return Form(causal, reach, segments, cap, slopes)


@dataclass(frozen=True)
class Peer:
    """`prepare(case, sets)` gives a runner and a function that returns [B, N, H, D] for the check, or raises
    PeerRefusal."""

    name: str
    prepare: Callable[[AttentionCase, Sequence[Operands]], Prepared]
    packages: tuple[str, ...]

    def versions(self) -> dict[str, str]:
        return {p: metadata.version(p) for p in self.packages}


def _jax_peer(function: Callable[..., jax.Array], sets: Sequence[Operands]) -> Prepared:
    return JaxRunner(function, sets), lambda: jax.jit(function)(*sets[0])


def _with_arrays(case: AttentionCase, form: Form, sets: Sequence[Operands]) -> tuple[list[Operands], int, int]:
    """Operand sets (q, k, v, then a mask [B, 1, N, M] of documents and a bias [1, H, N, M] of ALiBi where the case
    has them), and how many of each there are."""
    extra: list[jax.Array] = []
    if form.segments is not None:
        segments = sets[0][3 + form.segments]
        extra.append(segments[:, None, :, None] == segments[:, None, None, :])
    if form.slopes is not None:
        at = jnp.arange(case.length)
        distance = jnp.abs(at[:, None] - at[None, :])
        extra.append((-sets[0][3 + form.slopes][None, :, None, None] * distance).astype(jnp.bfloat16))
    return [(*s[:3], *extra) for s in sets], int(form.segments is not None), int(form.slopes is not None)


def _reach(form: Form) -> tuple[int, int] | None:
    """The window as (keys before, keys after)."""
    return None if form.window is None else (form.window - 1, 0 if form.causal else form.window - 1)


def _cudnn(case: AttentionCase, sets: Sequence[Operands]) -> Prepared:
    form = Form.of(case)
    if form.softcap is not None:
        raise PeerRefusal("jax.nn.dot_product_attention has no softcap")
    sets, masks, biases = _with_arrays(case, form, sets)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, *extra: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, mask=extra[0] if masks else None, bias=extra[-1] if biases else None, scale=case.scale,
            is_causal=form.causal, local_window_size=_reach(form), implementation="cudnn",
        )  # fmt: skip

    return _jax_peer(call, sets)


def _tokamax(case: AttentionCase, sets: Sequence[Operands]) -> Prepared:
    for name in ("xprof", "xprof.cli", "xprof.cli.tools"):  # only its own timing needs the profiler's package
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
    sys.modules["xprof.cli.tools"].__dict__.setdefault("get_kernel_stats_tool", None)
    try:
        import tokamax
    except ImportError as error:
        raise PeerRefusal(f"tokamax does not import: {error}") from error
    form = Form.of(case)
    sets, masks, biases = _with_arrays(case, form, sets)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, *extra: jax.Array) -> jax.Array:
        out: jax.Array = tokamax.dot_product_attention(
            q, k, v, mask=extra[0] if masks else None, bias=extra[-1] if biases else None, scale=case.scale,
            is_causal=form.causal, local_window_size=_reach(form), logits_soft_cap=form.softcap,
            implementation="mosaic",
        )  # fmt: skip
        return out

    return _jax_peer(call, sets)


def _flex(case: AttentionCase, sets: Sequence[Operands]) -> Prepared:
    try:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        raise PeerRefusal(f"torch does not import: {error}") from error
    form = Form.of(case)
    torch._dynamo.config.recompile_limit = 256  # past its default FlexAttention falls back, unfused, in silence
    torch._dynamo.reset()
    own = [tuple(torch.from_dlpack(x) for x in operands) for operands in sets]
    heads_first = [tuple(x.transpose(1, 2).contiguous() for x in operands[:3]) for operands in own]
    rest = own[0][3:]

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = q >= 0
        if form.causal:
            seen = seen & (k <= q)
        if form.window is not None:
            seen = seen & ((q - k).abs() < form.window)
        if form.segments is not None:
            seen = seen & (rest[form.segments][b, q] == rest[form.segments][b, k])
        return seen

    def scored(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        if form.softcap is not None:
            return form.softcap * torch.tanh(s / form.softcap)
        if form.slopes is not None:
            return s - rest[form.slopes][h] * (q - k).abs()
        return s

    n = case.length
    plain = case.mask == Const(True)
    per_batch = case.batch if form.segments is not None else None
    block = None if plain else create_block_mask(visible, per_batch, None, n, n, device="cuda", _compile=True)
    fused = torch.compile(flex_attention, dynamic=False)
    modified = scored if case.score != S else None

    def call(q: Any, k: Any, v: Any) -> Any:
        return fused(q, k, v, score_mod=modified, block_mask=block, scale=case.scale)

    def result() -> jax.Array:
        out: jax.Array = jax.dlpack.from_dlpack(call(*heads_first[0]).transpose(1, 2).contiguous())
        return out

    return TorchRunner(call, heads_first), result


PEERS: dict[str, Peer] = {
    "cudnn": Peer("cudnn", _cudnn, ("jax", "jaxlib")),
    "tokamax": Peer("tokamax", _tokamax, ("tokamax",)),
    "flex": Peer("flex", _flex, ("torch",)),
}
"""Names that `--against` takes."""
