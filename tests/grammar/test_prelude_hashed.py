"""The library's hashed attention in float64, by the operations' definitions, against the quadratic form in numpy."""

import numpy as np
import pytest

from tfc.testing.stage import REAL, Array, B, T, X, close, value

pytestmark = pytest.mark.usefixtures("x64")

BITS, ANCHORS = 6, 5
SEEN = np.ones((B, T))


def quadratic(p: dict[str, Array], seen: Array, frozen: bool, variant: str, causal: bool, qk: tuple[str, str]) -> Array:
    u, w, v = ((X @ p[f"{n}.weight"]).reshape(B, T, 2, 4) for n in (*qk, "v"))
    u, w = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (u, w))
    away, far = (((x[:, :, :, None] - p["anchor"]) ** 2).sum(-1) for x in (u, w))
    own = (far.mean(-1) * seen[:, :, None]).sum(1) / seen.sum(1)[:, None]
    spread = p["spread"] if frozen else own[:, None]

    def code(x: Array) -> Array:
        g = np.einsum("hra,btha->bthr", p["vote"], np.exp(-x / (2 * spread[..., None])) - p["center"])
        assert np.abs(g).min() > 1e-9
        return np.where(g >= 0, 1.0, -1.0)

    there = seen[:, None, None] * (np.tri(T) if causal else 1)
    products = np.einsum("bihr,bjhr->bhij", code(away), code(far)) * there
    whole = products + (BITS + 1) * there
    weights = whole if variant == "paired" else products + (BITS + 1) * np.eye(T)
    y = np.einsum("bhij,bjhd->bihd", weights / np.maximum(whole.sum(-1, keepdims=True), 1), v)
    return y.reshape(B, T, 8) @ p["out.weight"]


@pytest.mark.parametrize("variant", ["paired", "self"])
@pytest.mark.parametrize(
    ("written", "frozen", "causal", "padded", "qk"),
    [
        ("", False, False, False, ("qk", "qk")),
        (", real = x.real, shared = no", False, False, True, ("q", "k")),
        (', direction = "causal"', True, True, False, ("qk", "qk")),
        (", real = x.real, shared = no, frozen = yes", True, False, True, ("q", "k")),
    ],
    ids=["shared", "padded", "causal", "frozen"],
)
def test_hashed_attention(
    written: str, frozen: bool, causal: bool, padded: bool, qk: tuple[str, str], variant: str
) -> None:
    call = f'hashed_attention(x, heads = 2, bits = {BITS}, anchors = {ANCHORS}, variant = "{variant}"{written})'
    y, p = value(call)
    close(y, quadratic(p, REAL * 1.0 if padded else SEEN, frozen, variant, causal, qk))
