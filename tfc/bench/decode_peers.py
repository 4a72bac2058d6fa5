"""What others call by hand for a few queries against a long cache: each peer serves a case or says why it does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from tfc.bench.peers import Operands, PeerRefusal, tokamax_here
from tfc.bench.timing import JaxRunner, Runner, TorchGraphRunner

if TYPE_CHECKING:
    from tfc.bench.decode import DecodeCase

__all__ = ["PEERS", "DecodePeer"]

Prepared = tuple[Runner, Callable[[], jax.Array]]


@dataclass(frozen=True)
class DecodePeer:
    """`prepare(case, sets)` gives a runner and a function that returns the result [B, N, H, D] of the first set; or
    raises PeerRefusal."""

    name: str
    serve: Callable[["DecodeCase", Sequence[Operands]], Prepared]
    packages: tuple[str, ...]

    def prepare(self, case: "DecodeCase", sets: Sequence[Operands]) -> Prepared:
        if case.page:
            raise PeerRefusal("no argument says pages")
        if case.kept:
            raise PeerRefusal(f"takes keys of the queries' type, not {case.kept} with scales")
        return self.serve(case, sets)

    def versions(self) -> dict[str, str]:
        return {p: metadata.version(p) for p in self.packages}


def _in_jax(function: Callable[..., jax.Array], case: "DecodeCase", sets: Sequence[Operands]) -> Prepared:
    """A JAX function of q, k, v and, for several queries, a mask [1, 1, N, M]: causal is not aligned at the end."""
    seen = jnp.arange(case.length)[None, :] <= jnp.arange(case.length - case.queries, case.length)[:, None]
    more = (seen[None, None],) if case.queries > 1 else ()
    taken = [(*operands[:3], *more) for operands in sets]
    return JaxRunner(function, taken), lambda: jax.jit(function)(*taken[0])


def _cudnn(case: "DecodeCase", sets: Sequence[Operands]) -> Prepared:
    def call(q: Any, k: Any, v: Any, mask: Any = None) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")

    return _in_jax(call, case, sets)


def _tokamax(case: "DecodeCase", sets: Sequence[Operands]) -> Prepared:
    tokamax = tokamax_here()

    def call(q: Any, k: Any, v: Any, mask: Any = None) -> jax.Array:
        out: jax.Array = tokamax.dot_product_attention(q, k, v, mask=mask, implementation="mosaic")
        return out

    return _in_jax(call, case, sets)


def _sdpa(backend: str, case: "DecodeCase", sets: Sequence[Operands]) -> Prepared:
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.attention.bias import causal_lower_right
    except ImportError as error:
        raise PeerRefusal(f"torch does not import: {error}") from error
    taken = [tuple(torch.from_dlpack(x).transpose(1, 2) for x in operands[:3]) for operands in sets]
    n, m, mask = case.queries, case.length, None
    if n > 1 and backend == "FLASH_ATTENTION":  # which takes no mask, but knows causal ones by their class
        mask = causal_lower_right(n, m)
    elif n > 1:
        mask = torch.ones((n, m), dtype=torch.bool, device=taken[0][0].device).tril(m - n)

    def call(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    def result() -> jax.Array:
        out: jax.Array = jax.dlpack.from_dlpack(call(*taken[0]).transpose(1, 2).contiguous())
        return out

    return TorchGraphRunner(call, taken), result


PEERS: dict[str, DecodePeer] = {
    "cudnn": DecodePeer("cudnn", _cudnn, ("jax", "jaxlib")),
    "tokamax": DecodePeer("tokamax", _tokamax, ("tokamax",)),
    "sdpa_cudnn": DecodePeer("sdpa_cudnn", partial(_sdpa, "CUDNN_ATTENTION"), ("torch",)),
    "sdpa_flash": DecodePeer("sdpa_flash", partial(_sdpa, "FLASH_ATTENTION"), ("torch",)),
}
"""Names that `--against` takes for the suite `decode`."""
