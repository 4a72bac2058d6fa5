"""The Hopper attention kernel, interpreted with races looked for, beside the definition in float64."""

from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tfc.testing.worker import Worker

FORMULAS = (
    "full", "causal", "window", "prefix", "dilated", "documents", "padding", "nothing", "softcap",
    "approximate softcap", "alibi", "own",
)  # fmt: skip

WEIGHED = ("sink", "fading", "hstu", "relu2", "clipped")

SIZES: dict[str, dict[str, Any]] = {
    "divide no tile": dict(n=100, m=100),
    "fewer queries": dict(n=50, m=190),
    "more queries": dict(n=190, m=100),
    "one pair": dict(n=1, m=1),
    "one query": dict(n=1, m=77),
    "one key": dict(n=77, m=1),
    "whole tiles": dict(n=128, m=256),
}

CASES: dict[str, dict[str, Any]] = {
    "head size 32": dict(d=32),
    "head size 128": dict(d=128, h=1),
    "head size 80": dict(d=80, h=1),
    "head size 256": dict(d=256, h=1),
    "narrow values": dict(d=48, dv=16, h=1),
    "wide values": dict(d=16, dv=112, h=1),
    "float16": dict(dtype="float16"),
    "grouped heads": dict(h=4, g=2),
    "heads of their own": dict(h=2, g=2),
    "one kv head": dict(h=3, g=1),
    "three consumers": dict(consumers=3, n=200, m=200),
    "three stages": dict(stages=3, n=130, m=330, h=1),
    "tiles of 128 keys": dict(block_k=128, n=140, m=260, h=1),
    "large logits": dict(large=8.0),
    "negative scale": dict(scale=-0.5),
    "no scale": dict(scale=0.0),
}


def test_every_formula_is_listed(worker: Worker) -> None:
    assert worker.call("interpreted:weighed") == list(WEIGHED)
    assert worker.call("interpreted:formulas") == [*WEIGHED, *FORMULAS]


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas(worker: Worker, formula: str) -> None:
    """Lengths that divide no tile, batch rows that differ, heads that share keys."""
    found = worker.call("interpreted:judge", dict(formula=formula, b=2, n=100, m=190, seed=3))
    assert not found["wrong"], found
    assert found["tiles"] > 4
    assert found["blind"] >= (200 if formula == "nothing" else 0)  # a batch row of padding only


@pytest.mark.parametrize("formula", WEIGHED)
def test_weights_other_than_the_softmaxs(worker: Worker, formula: str) -> None:
    """Factors of rows, of pairs, weights without a softmax, and weights that need the softmax's sum beforehand."""
    found = worker.call("interpreted:judge", dict(formula=formula, n=100, m=190, seed=3))
    assert not found["wrong"], found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_that_are_bounded(worker: Worker, dtype: str) -> None:
    """In bf16 a softcap's bound stands for the running maximum; f16 has no weights so small."""
    found = worker.call("interpreted:judge", dict(formula="softcap", n=70, m=150, h=1, large=8.0, dtype=dtype))
    assert not found["wrong"], found


PERSISTENT: dict[str, dict[str, Any]] = {
    "tiles of one head": dict(formula="causal", h=1, n=300, m=300, blocks=2),
    "one block": dict(formula="causal", h=2, n=140, m=140, d=32, blocks=1),
    "rows that see nothing": dict(formula="nothing", b=2, h=1, n=60, m=70, blocks=1),
    "a batch row each": dict(formula="documents", b=2, h=2, g=2, n=150, m=150, blocks=3),
    "weights without a softmax": dict(formula="relu2", h=2, n=150, m=150, blocks=2),
    "bounded scores": dict(formula="softcap", h=2, n=150, m=200, blocks=2),
    "three consumers": dict(formula="causal", h=2, n=200, m=200, consumers=3, stages=3, blocks=2),
    "values of another size": dict(formula="causal", h=2, n=140, m=140, d=32, dv=64, blocks=2),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if i > 2 else ()) for i, c in enumerate(PERSISTENT.values())],
    ids=PERSISTENT,
)
def test_blocks_that_take_tiles_off_lists(worker: Worker, case: dict[str, Any]) -> None:
    """The rings and barriers go on from tile to tile; the next queries are fetched while outputs are stored."""
    found = worker.call("interpreted:judge", case)
    assert not found["wrong"], found


@pytest.mark.parametrize("traced", [False, True], ids=["known", "traced"])
def test_lists_are_for_ranges_that_are_known(worker: Worker, traced: bool) -> None:
    """Documents that are traced are visited by a block a tile."""
    case = dict(formula="documents", h=4, g=2, n=200, m=200, d=32, blocks=2)
    found = worker.call("interpreted:judge_built", case, traced)
    assert not found["wrong"], found


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_lengths(worker: Worker, sizes: dict[str, Any]) -> None:
    """Causal is aligned at the end; with more queries than keys, the first queries see nothing."""
    found = worker.call("interpreted:judge", dict(formula="causal", h=2, **sizes))
    assert not found["wrong"], found
    assert found["blind"] == 2 * max(0, sizes["n"] - sizes["m"])


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_variants(worker: Worker, change: dict[str, Any]) -> None:
    found = worker.call("interpreted:judge", {**dict(formula="causal", n=100, m=140), **change})
    assert not found["wrong"], found


@given(
    formula=st.sampled_from([*FORMULAS, *WEIGHED]),
    n=st.integers(1, 200),
    m=st.integers(1, 200),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2)]),
    d=st.sampled_from([16, 32, 64, 80]),
    dv=st.sampled_from([0, 32, 48]),
    blocks=st.sampled_from([0, 0, 1, 2]),
    dtype=st.sampled_from(["bfloat16", "float16"]),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=5)
def test_drawn_cases(
    worker: Worker, formula: str, n: int, m: int, heads: tuple[int, int], d: int, dv: int, blocks: int, dtype: str,
    seed: int,
) -> None:  # fmt: skip
    h, g = heads
    dtype = "bfloat16" if formula in ("hstu", "relu2") else dtype  # f16 is refused for weights that nothing bounds
    case = dict(formula=formula, n=n, m=m, h=h, g=g, d=d, dv=dv, blocks=blocks, dtype=dtype, seed=seed)
    found = worker.call("interpreted:judge", case)
    event("sees nothing" if found["blind"] else "sees something")
    assert not found["wrong"], found


@pytest.mark.parametrize("traced", [False, True], ids=["fields known", "fields traced"])
@pytest.mark.parametrize("formula", ["causal", "documents", "own"])
def test_as_registered(worker: Worker, formula: str, traced: bool) -> None:
    """Through `KERNEL`: the ranges come from the analysis of the formula, on the host or on the device."""
    found = worker.call("interpreted:judge_built", dict(formula=formula, b=2, n=200, m=300, d=32), traced)
    assert not found["wrong"], found


@pytest.mark.parametrize(
    ("row", "m", "blocks"),
    [(0, 136, 0), (2, 136, 0), (1, 133, 0), (2, 136, 3)],
    ids=["first", "last", "not a multiple of 8", "blocks that stay"],
)
def test_keys_and_values_in_a_row_of_a_cache(worker: Worker, row: int, m: int, blocks: int) -> None:
    """They are read where they lie, of that row alone; where the copy engine cannot, of a copy."""
    case = dict(formula="causal", b=2, h=4, g=2, n=72, m=m, d=32, blocks=blocks)
    found = worker.call("interpreted:judge_built", case, True, row)
    assert not found["wrong"], found


@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0)])
def test_no_tokens(worker: Worker, n: int, m: int) -> None:
    found = worker.call("interpreted:judge_built", dict(formula="causal", n=n, m=m), False)
    assert found["blind"] == 2 * n
    assert not found["wrong"], found
