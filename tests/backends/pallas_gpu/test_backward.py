"""The gradient kernels, interpreted with races looked for, beside float64 gradients under the table of tolerances."""

from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tfc.testing.worker import Worker

BASE: dict[str, Any] = dict(n=70, m=100, d=32)

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal, grouped heads, ragged": (dict(formula="causal", h=4, g=2), {}),
    "trained slopes": (dict(formula="alibi", b=2), {}),
    "trained fields": (dict(formula="bias", n=80, m=80), {}),
    "fields known when it runs": (dict(formula="documents", b=2, h=1), dict(traced=True, twice=True)),
    "ahead, many tiles": (
        dict(formula="window", n=200, m=260, h=2, g=1),
        dict(configs={"q": dict(stages=2, ahead=True), "kv": dict(stages=2, ahead=True)}),
    ),
    "rows that see nothing, lse alone": (dict(formula="causal", n=100, m=60, h=1), dict(only="lse")),
}

MORE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"formula {f}": (dict(formula=f, b=2, n=100, m=190, d=64), {}) for f in (
        "full", "window", "prefix", "dilated", "padding", "nothing", "softcap", "own", "hidden", "documents",
    )},
    "one pair": (dict(formula="causal", n=1, m=1), {}),
    "one query": (dict(formula="causal", n=1, m=130), {}),
    "one key": (dict(formula="own", n=130, m=1), {}),
    "more queries": (dict(formula="own", n=190, m=100), dict(traced=True)),
    "many tiles": (dict(formula="causal", n=330, m=330, h=1), {}),
    "many tiles, ring of one": (
        dict(formula="window", n=200, m=330, h=1), dict(configs={"q": dict(stages=1), "kv": dict(stages=1)})
    ),
    "tiles of 128": (
        dict(formula="bias", n=200, m=200, h=1),
        dict(configs={"q": dict(columns=128, ahead=True), "kv": dict(columns=128)}),
    ),
    "a kernel for each sum": (
        dict(formula="bias", n=100, m=100), dict(configs={"q": {}, "k": {}, "v": dict(stages=1)})
    ),
    "ahead, nobody meets anybody": (
        dict(formula="nothing", n=100, m=100), dict(configs={"q": dict(ahead=True), "kv": dict(ahead=True)})
    ),
    "ahead, fewer tiles than the ring": (
        dict(formula="bias", n=100, m=100, h=1), dict(configs={"q": {}, "kv": dict(stages=4, ahead=True)})
    ),
    "a shorter ring of what is left early": (
        dict(formula="causal", h=1, n=200, m=330),
        dict(configs={"q": dict(passing=1), "k": dict(stages=3, passing=2), "v": {}}),
    ),
    "a shorter ring, ahead": (
        dict(formula="causal", h=1, n=330, m=200),
        dict(configs={"q": dict(stages=3, passing=1, ahead=True), "kv": dict(stages=3, passing=1, ahead=True)}),
    ),
    "dk ahead, by itself": (
        dict(formula="causal", n=200, m=100), dict(configs={"q": {}, "k": dict(stages=3, ahead=True), "v": {}})
    ),
    "not ahead": (dict(formula="alibi", n=150, m=150), dict(configs={"q": dict(ahead=False), "kv": {}})),
    "head size 64": (dict(formula="causal", d=64), dict(twice=True)),
    "head size 128": (dict(formula="causal", d=128), {}),
    "head size 256": (dict(formula="softcap", d=256, n=100, m=150, h=1), {}),
    "head size 256, fields": (dict(formula="bias", d=256, n=70, m=70, h=1), {}),
    "head size 128, fields": (dict(formula="bias", d=128, n=100, m=100, h=1), {}),
    "one kv head": (dict(formula="alibi", h=3, g=1), {}),
    "heads of their own": (dict(formula="causal", h=2, g=2), {}),
    "float16": (dict(formula="softcap", dtype="float16"), {}),
    "large logits": (dict(formula="causal", large=8.0), {}),
    "negative scale": (dict(formula="causal", scale=-0.5), {}),
    "no scale": (dict(formula="causal", scale=0.0), {}),
    "out alone": (dict(formula="alibi"), dict(only="out")),
}  # fmt: skip


def verdict(worker: Worker, fields: dict[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = worker.call("gradients:judge", {**BASE, **fields}, **how)
    return found


@pytest.mark.parametrize("name", CASES)
def test_gradients(worker: Worker, name: str) -> None:
    found = verdict(worker, *CASES[name])
    assert not found["wrong"], found
    assert found["blind"] == (40 if "nothing" in name else found["blind"])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_gradients(worker: Worker, name: str) -> None:
    found = verdict(worker, *MORE[name])
    assert not found["wrong"], found


@pytest.mark.slow
@given(
    formula=st.sampled_from(["full", "causal", "window", "documents", "nothing", "softcap", "alibi", "own", "hidden"]),
    n=st.integers(1, 200),
    m=st.integers(1, 200),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2)]),
    d=st.sampled_from([32, 64]),
    dtype=st.sampled_from(["bfloat16", "float16"]),
    traced=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=5)
def test_drawn_cases(
    worker: Worker, formula: str, n: int, m: int, heads: tuple[int, int], d: int, dtype: str, traced: bool, seed: int
) -> None:
    h, g = heads
    case = dict(formula=formula, n=n, m=m, h=h, g=g, d=d, dtype=dtype, seed=seed)
    found = verdict(worker, case, dict(traced=traced))
    event("sees nothing" if found["blind"] else "sees something")
    assert not found["wrong"], found
