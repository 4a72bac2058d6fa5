"""What others call by hand for the same attention: each peer serves a case or says why it does not."""

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from tfc.bench.cases import CAUSAL, AttentionCase, Direction
from tfc.bench.timing import JaxRunner, Runner, TorchRunner
from tfc.formula.expr import Apply, Const, Load, Read, conjuncts
from tfc.ir.ops import P, S

__all__ = ["PEERS", "Form", "Peer", "PeerRefusal", "asked", "prepared", "tokamax_here"]

Operands = tuple[jax.Array, ...]
Prepared = tuple[Runner, Callable[[], tuple[jax.Array, ...]]]


class PeerRefusal(Exception):
    """Why a peer cannot take part in a case: it is not installed, or has no such form."""


@dataclass(frozen=True)
class Form:
    """A case in the words of the libraries: what their arguments can say."""

    causal: bool
    window: int | None
    segments: int | None
    prefixes: int | None
    softcap: float | None
    slopes: int | None

    @staticmethod
    def of(case: AttentionCase) -> "Form":
        """Raises PeerRefusal where the formulas are not of these forms."""
        causal, reach, segments, prefixes, cap, slopes = False, None, None, None, None, None
        if case.weigh != P:
            raise PeerRefusal(f"weighs by the softmax alone, not by `{case.weigh}`")
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
                case Apply("or", (first, Apply("lt", (_, Load(slot, "q", _))))) if first == CAUSAL:
                    prefixes = slot
                case _:
                    raise PeerRefusal(f"no argument says `{part}`")
        score = case.score
        match score:
            case Apply("sub", (inner, Apply("mul", (Read(slot, _, _), _)))):
                score, slopes = inner, slot
        match score:
            case Apply("mul", (Const(c), Apply("tanh" | "approximate_tanh", _))):  # each computes its own tanh
                cap = float(c)
            case _ if score != S:
                raise PeerRefusal(f"no argument says `{case.score}`")
        return Form(causal, reach, segments, prefixes, cap, slopes)

    def without(self, **said: str) -> "Form":
        """The form. Raises PeerRefusal, of the part's words, where it has a part that is named here."""
        for part, words in said.items():
            if getattr(self, part) is not None:
                raise PeerRefusal(words)
        return self


@dataclass(frozen=True)
class Peer:
    """`prepare(case, sets, direction)` gives a runner and a function that returns, for the check, the result
    [B, N, H, D] and, where the direction is `both`, the gradients of q, k and v; or raises PeerRefusal. Then each
    operand set ends in the cotangent of the result."""

    name: str
    prepare: Callable[[AttentionCase, Sequence[Operands], Direction], Prepared]
    packages: tuple[str, ...]

    def versions(self) -> dict[str, str]:
        return {p: metadata.version(p) for p in self.packages}


def asked(function: Callable[..., jax.Array], direction: Direction) -> Callable[..., tuple[jax.Array, ...]]:
    """A function of q, k, v and more as one that gives what the direction asks for: (result,), or, where a cotangent of
    it follows the operands, the result and the gradients of q, k and v."""

    def forward(*operands: jax.Array) -> tuple[jax.Array, ...]:
        return (function(*operands),)

    def both(*operands: jax.Array) -> tuple[jax.Array, ...]:
        q, k, v, *rest, cotangent = operands
        out, pull = jax.vjp(lambda q, k, v: function(q, k, v, *rest), q, k, v)
        return (out, *pull(cotangent))

    return both if direction == "both" else forward


def prepared(function: Callable[..., jax.Array], sets: Sequence[Operands], direction: Direction) -> Prepared:
    """A JAX function of q, k, v and more, as `Peer.prepare` gives it."""
    call = asked(function, direction)
    return JaxRunner(call, sets), lambda: jax.jit(call)(*sets[0])


def _with_arrays(
    case: AttentionCase, form: Form, sets: Sequence[Operands], direction: Direction
) -> tuple[list[Operands], int, int]:
    """Operand sets (q, k, v, then a mask [B, 1, N, M] of documents and a bias [1, H, N, M] of ALiBi where the case
    has them, then the cotangent where the direction asks for one), and how many of each there are."""
    extra: list[jax.Array] = []
    if form.segments is not None:
        segments = sets[0][3 + form.segments]
        extra.append(segments[:, None, :, None] == segments[:, None, None, :])
    if form.slopes is not None:
        at = jnp.arange(case.length)
        distance = jnp.abs(at[:, None] - at[None, :])
        extra.append((-sets[0][3 + form.slopes][None, :, None, None] * distance).astype(jnp.bfloat16))
    last = 1 if direction == "both" else 0
    sets = [(*s[:3], *extra, *s[len(s) - last :]) for s in sets]
    return list(sets), int(form.segments is not None), int(form.slopes is not None)


def _reach(form: Form) -> tuple[int, int] | None:
    """The window as (keys before, keys after)."""
    return None if form.window is None else (form.window - 1, 0 if form.causal else form.window - 1)


def _cudnn(case: AttentionCase, sets: Sequence[Operands], direction: Direction) -> Prepared:
    form = Form.of(case).without(
        softcap="jax.nn.dot_product_attention has no softcap", prefixes="no argument says prefixes of documents"
    )
    sets, masks, biases = _with_arrays(case, form, sets, direction)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, *extra: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, mask=extra[0] if masks else None, bias=extra[-1] if biases else None, scale=case.scale,
            is_causal=form.causal, local_window_size=_reach(form), implementation="cudnn",
        )  # fmt: skip

    return prepared(call, sets, direction)


def tokamax_here() -> Any:
    """The module. Raises PeerRefusal where it cannot be imported."""
    for name in ("xprof", "xprof.cli", "xprof.cli.tools"):  # only its own timing needs the profiler's package
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
    sys.modules["xprof.cli.tools"].__dict__.setdefault("get_kernel_stats_tool", None)
    try:
        import tokamax
    except ImportError as error:
        raise PeerRefusal(f"tokamax does not import: {error}") from error
    return tokamax


def _tokamax(case: AttentionCase, sets: Sequence[Operands], direction: Direction) -> Prepared:
    tokamax = tokamax_here()
    form = Form.of(case).without(prefixes="no argument says prefixes of documents")
    sets, masks, biases = _with_arrays(case, form, sets, direction)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, *extra: jax.Array) -> jax.Array:
        out: jax.Array = tokamax.dot_product_attention(
            q, k, v, mask=extra[0] if masks else None, bias=extra[-1] if biases else None, scale=case.scale,
            is_causal=form.causal, local_window_size=_reach(form), logits_soft_cap=form.softcap,
            implementation="mosaic",
        )  # fmt: skip
        return out

    return prepared(call, sets, direction)


def _flex(case: AttentionCase, sets: Sequence[Operands], direction: Direction) -> Prepared:
    try:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError as error:
        raise PeerRefusal(f"torch does not import: {error}") from error
    form = Form.of(case)
    torch._dynamo.config.recompile_limit = 256  # past its default FlexAttention falls back, unfused, in silence
    torch._dynamo.reset()
    rest = [torch.from_dlpack(x) for x in sets[0][3:]]

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = q >= 0
        if form.causal:
            seen = seen & (k <= q)
        if form.prefixes is not None:
            seen = seen & ((k <= q) | (k < rest[form.prefixes][b, q]))
        if form.window is not None:
            seen = seen & ((q - k).abs() < form.window)
        if form.segments is not None:
            seen = seen & (rest[form.segments][b, q] == rest[form.segments][b, k])
        return seen

    def scored(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        if form.softcap is not None:
            s = form.softcap * torch.tanh(s / form.softcap)
        if form.slopes is not None:
            s = s - rest[form.slopes][h] * (q - k).abs()
        return s

    n = case.length
    plain = case.mask == Const(True)
    per_batch = case.batch if form.segments is not None else None
    block = None if plain else create_block_mask(visible, per_batch, None, n, n, device="cuda", _compile=True)
    fused = torch.compile(flex_attention, dynamic=False)
    modified = scored if case.score != S else None

    return _prepared_torch(lambda q, k, v: fused(q, k, v, score_mod=modified, block_mask=block, scale=case.scale),
                           sets, direction)  # fmt: skip


def _prepared_torch(function: Callable[..., Any], sets: Sequence[Operands], direction: Direction) -> Prepared:
    """A torch function of q, k and v [B, H, N, D], as `Peer.prepare` gives it."""
    import torch

    both = direction == "both"
    taken = [[*operands[:3], *([operands[-1]] if both else [])] for operands in sets]
    heads_first = [tuple(torch.from_dlpack(x).transpose(1, 2).contiguous() for x in operands) for operands in taken]
    for operands in heads_first if both else ():
        for x in operands[:3]:
            x.requires_grad_(True)

    def call(q: Any, k: Any, v: Any, *cotangent: Any) -> tuple[Any, ...]:
        out = function(q, k, v)
        return (out, *(torch.autograd.grad(out, (q, k, v), *cotangent) if cotangent else ()))

    def result() -> tuple[jax.Array, ...]:
        made = (x.detach().transpose(1, 2).contiguous() for x in call(*heads_first[0]))
        return tuple(jax.dlpack.from_dlpack(x) for x in made)

    return TorchRunner(call, heads_first), result


def _flash2(case: AttentionCase, sets: Sequence[Operands], direction: Direction) -> Prepared:
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError as error:
        raise PeerRefusal(f"torch does not import: {error}") from error
    nothing = "torch's FlashAttention-2 has no"
    form = Form.of(case).without(
        window=f"{nothing} window", segments=f"{nothing} documents", prefixes=f"{nothing} prefixes",
        softcap=f"{nothing} softcap", slopes=f"{nothing} ALiBi",
    )  # fmt: skip

    def call(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=form.causal, scale=case.scale, enable_gqa=case.heads != case.kv_heads
            )

    return _prepared_torch(call, sets, direction)


PEERS: dict[str, Peer] = {
    "cudnn": Peer("cudnn", _cudnn, ("jax", "jaxlib")),
    "tokamax": Peer("tokamax", _tokamax, ("tokamax",)),
    "flex": Peer("flex", _flex, ("torch",)),
    "flash2": Peer("flash2", _flash2, ("torch",)),
}
"""Names that `--against` takes."""
