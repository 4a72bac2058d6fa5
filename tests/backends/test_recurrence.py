"""The recurrence: chunks against the definition's single steps, values and gradients; what each attribute means."""

from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tfc.backends.kernel import DTYPES, Target
from tfc.backends.reference.program import define
from tfc.backends.table import named
from tfc.backends.xla.recurrence import BLOCK, CHUNK
from tfc.ir.ops import Recurrence
from tfc.ir.program import Eqn, Value
from tfc.ir.recurrence import DECAYS
from tfc.ir.types import DType, IRError, TensorType

CPU = Target(name="cpu", platform="cpu")
HEADS, GROUPS, KEYS, VALUES = 4, 2, 3, 2
LENGTHS = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5]


def typed(x: Any) -> TensorType:
    (dtype,) = (d for d, j in DTYPES.items() if j == x.dtype)
    return TensorType(tuple(x.shape), dtype)


def chunked(op: Recurrence, *operands: Any) -> tuple[jax.Array, ...]:
    types = [typed(x) for x in operands]
    outs = tuple(Value(f"o{i}", t) for i, t in enumerate(op.infer(*types)))
    eqn = Eqn(outs, op, tuple(Value(f"a{i}", t) for i, t in enumerate(types)))
    kernel = named(Recurrence, "xla")
    assert kernel is not None and kernel.refuse(eqn, CPU) is None
    results = kernel.build(eqn, CPU)(*operands)
    assert all(typed(x) == v.type for x, v in zip(results, outs, strict=True))
    return results


def stepped(op: Recurrence, *operands: Any) -> tuple[jax.Array, ...]:
    real = jnp.float64 if operands[0].dtype == jnp.float64 else jnp.float32
    return define(op, real, *operands)


def drawn(
    op: Recurrence, n: int, m: int | None = None, *, seed: int = 0, batch: int = 2, low: float = -1.0
) -> list[Any]:
    """Operands: log decays uniform in [low, 0], segments of two tokens on average."""
    rng = np.random.default_rng(seed)
    out: list[Any] = [
        rng.uniform(0.1, 1.0, (batch, n, HEADS, KEYS)),
        rng.uniform(0.1, 1.0, (batch, m or n, GROUPS, KEYS)),
        rng.standard_normal((batch, m or n, GROUPS, VALUES)),
    ]
    shape = {"head": (HEADS,), "token": (batch, n, HEADS), "channel": (batch, n, HEADS, KEYS)}.get(op.decay)
    if shape:
        out.append(rng.uniform(low, 0.0, shape))
    if op.segmented:
        out.append(np.cumsum(rng.integers(0, 2, (batch, n)), axis=1).astype(np.int32) % 3)
    return [jnp.asarray(x) for x in out]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Recurrence, Any]:
    direction = draw(st.sampled_from(["causal", "causal", "reverse", "both"]))
    decay = "none" if direction == "both" else draw(st.sampled_from(sorted(DECAYS)))
    normalized = draw(st.booleans())
    op = Recurrence(
        scale=draw(st.sampled_from([1.0, 0.25])),
        decay=decay,
        segmented=draw(st.booleans()),
        normalized=normalized,
        eps=draw(st.sampled_from([0.0, 0.5])) if normalized else 0.0,
        direction=direction,
    )
    n = draw(st.sampled_from(LENGTHS))
    m = draw(st.sampled_from([n, n + 3])) if direction == "both" and not op.segmented else None
    low = draw(st.sampled_from([0.0, -0.1, -1.0, -20.0, np.log(1e-6)]))
    event(f"{direction}, decay {decay}")
    seed = draw(st.integers(0, 9))
    return op, lambda: drawn(op, n, m, seed=seed, low=low)


@given(case=cases())
@settings(max_examples=settings().max_examples // 6)  # each compiles both forms and their gradients
def test_chunks_are_steps(case: tuple[Recurrence, Any]):
    """Values, and gradients for drawn cotangents of both results, in float64; segment ids have none."""
    op, make = case
    with jax.enable_x64(True):
        operands = make()
        real = [x for x in operands if jnp.issubdtype(x.dtype, jnp.floating)]
        rest = operands[len(real) :]
        want, pull = jax.vjp(lambda *x: stepped(op, *x, *rest), *real)
        got, push = jax.vjp(lambda *x: chunked(op, *x, *rest), *real)
        rng = np.random.default_rng(1)
        pulled = tuple(jnp.asarray(rng.standard_normal(x.shape)) for x in want)
        for ours, true in zip((*got, *push(pulled)), (*want, *pull(pulled)), strict=True):
            assert true.dtype == jnp.float64 and np.all(np.isfinite(true))
            np.testing.assert_allclose(ours, true, rtol=1e-9, atol=1e-9 * (1 + np.abs(true).max()))


@pytest.mark.parametrize("decay", ["none", "token", "channel"])
def test_the_chunked_form_in_float32_and_bfloat16(decay: str):
    """Sums are float32's, whatever the operands are."""
    op = Recurrence(decay=decay, scale=0.5)
    wide = [x.astype(jnp.float32) for x in drawn(op, CHUNK + 9)]
    for ours, true in zip(chunked(op, *wide), stepped(op, *wide), strict=True):
        np.testing.assert_allclose(ours, true, rtol=1e-4, atol=1e-4)
    short = [x.astype(jnp.bfloat16) if i < 3 else x for i, x in enumerate(wide)]
    out, state = chunked(op, *short)
    true, last = stepped(op, *short)
    assert (out.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(out.astype(jnp.float32), true, rtol=2**-7, atol=1e-3)
    np.testing.assert_allclose(state, last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decay", ["token", "channel"])
def test_strong_decays_over_many_tokens(decay: str):
    """Log decays down to -20, and one of -inf that erases all before it: what a quotient of exponentials loses."""
    op = Recurrence(decay=decay)
    operands = [x.astype(jnp.float32) for x in drawn(op, 1000, batch=1, low=-20.0)]
    operands[3] = operands[3].at[:, 100].set(-inf)
    (out, state), pull = jax.vjp(lambda *x: chunked(op, *x), *operands)
    (true, last), _ = jax.vjp(lambda *x: stepped(op, *x), *operands)
    np.testing.assert_allclose(out, true, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state, last, rtol=1e-4, atol=1e-5)
    assert all(np.all(np.isfinite(x)) for x in pull((out, state)))
    (alone, _) = stepped(op, *(x[:, 100:] for x in operands))
    np.testing.assert_allclose(out[:, 100:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["causal", "reverse", "both"])
@pytest.mark.parametrize("form", [chunked, stepped])
def test_segments_are_separate_runs(x64: None, form: Any, direction: str):
    """Packing two sequences equals running each by itself; an id that comes again is a run of its own."""
    decay = "none" if direction == "both" else "channel"
    op = Recurrence(decay=decay, segmented=True, direction=direction, normalized=True)
    *operands, _ = drawn(op, CHUNK + 20)
    cuts = [0, 5, CHUNK - 3, CHUNK + 2, CHUNK + 20]
    ids = np.repeat([3, 1, 3, 7], np.diff(cuts))
    segment = jnp.broadcast_to(jnp.asarray(ids, jnp.int32), operands[0].shape[:2])
    out, state = form(op, *operands, segment)
    alone = replace(op, segmented=False)
    states = []
    for a, b in pairwise(cuts):
        part, last = form(alone, *(x[:, a:b] for x in operands))
        np.testing.assert_allclose(out[:, a:b], part, rtol=1e-9, atol=1e-9)
        states.append(last)
    np.testing.assert_allclose(state, states[0 if direction == "reverse" else -1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", [chunked, stepped])
@pytest.mark.parametrize("decay", sorted(DECAYS))
def test_later_tokens_change_nothing_before_them(x64: None, form: Any, decay: str):
    op = Recurrence(decay=decay, normalized=True)
    operands = drawn(op, CHUNK + 5)
    out, _ = form(op, *operands)
    changed = [x.at[:, BLOCK + 3 :].set(x[:, BLOCK + 3 :] * 0.7) if x.ndim > 1 else x for x in operands]
    other, _ = form(op, *changed)
    np.testing.assert_array_equal(out[:, : BLOCK + 3], other[:, : BLOCK + 3])
    assert np.any(out[:, BLOCK + 3 :] != other[:, BLOCK + 3 :])


@pytest.mark.parametrize("decay", sorted(DECAYS))
@pytest.mark.parametrize("form", [chunked, stepped])
def test_reverse_is_causal_backwards(x64: None, form: Any, decay: str):
    op = Recurrence(decay=decay)
    operands = drawn(op, BLOCK + 5)
    out, state = form(replace(op, direction="reverse"), *operands)
    turned, last = form(op, *(x[:, ::-1] if x.ndim > 1 else x for x in operands))
    np.testing.assert_allclose(out, turned[:, ::-1], rtol=1e-12)
    np.testing.assert_allclose(state, last, rtol=1e-12)


@pytest.mark.parametrize("form", [chunked, stepped])
def test_both_directions_do_not_mind_the_order(x64: None, form: Any):
    op = Recurrence(direction="both", normalized=True)
    q, k, v = drawn(op, 9, 11)
    order = np.random.default_rng(3).permutation(11)
    np.testing.assert_allclose(form(op, q, k, v)[0], form(op, q, k[:, order], v[:, order])[0], atol=1e-14)


@pytest.mark.parametrize("form", [chunked, stepped])
@pytest.mark.parametrize("op", [
    Recurrence(normalized=True),
    Recurrence(normalized=True, decay="token", scale=0.3),
    Recurrence(normalized=True, decay="channel", segmented=True, direction="reverse"),
    Recurrence(normalized=True, segmented=True, direction="both"),
])  # fmt: skip
def test_normalized_sums_are_means(x64: None, form: Any, op: Recurrence):
    """Of one value, whatever the weights: that value."""
    operands = drawn(op, CHUNK + 3)
    operands[2] = jnp.full_like(operands[2], 1.5)
    np.testing.assert_allclose(form(op, *operands)[0], 1.5, rtol=1e-9)


@pytest.mark.parametrize("form", [chunked, stepped])
def test_query_heads_share_keys_and_values(x64: None, form: Any):
    """Query head i reads kv head i // (H / G): the same with each kv head written out for each of its query heads."""
    op = Recurrence(decay="token")
    q, k, v, g = drawn(op, 20)
    wide = [jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v)]
    for ours, true in zip(form(op, q, k, v, g), form(op, q, *wide, g), strict=True):
        np.testing.assert_array_equal(ours, true)


@pytest.mark.parametrize("form", [chunked, stepped])
def test_a_worked_case(x64: None, form: Any):
    """One head, one channel, decay 1/2 a step: 1, 1/2 + 2, 1/4 + 1 + 4."""
    one = jnp.ones((1, 3, 1, 1))
    v = jnp.asarray([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    half = jnp.log(jnp.asarray([0.5]))
    out, state = form(Recurrence(decay="head", scale=2.0), one, one, v, half)
    np.testing.assert_allclose(out.ravel(), [2.0, 5.0, 10.5])
    np.testing.assert_allclose(state.ravel(), [5.25])


def test_without_decay_it_is_a_running_sum(x64: None):
    op = Recurrence()
    q, k, v = drawn(op, 7)
    k, v = (jnp.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
    sums = jnp.cumsum(k[..., :, None] * v[..., None, :], axis=1)
    np.testing.assert_allclose(stepped(op, q, k, v)[0], jnp.einsum("bnhk,bnhkv->bnhv", q, sums), rtol=1e-12)
    zero = jnp.zeros((HEADS,))
    np.testing.assert_allclose(
        chunked(replace(op, decay="head"), q, k, v, zero)[0], chunked(op, q, k, v)[0], rtol=1e-12
    )
    assert DType.F64 is typed(q).dtype


@st.composite
def continued(draw: st.DrawFn) -> tuple[Recurrence, int, int, int]:
    op = Recurrence(
        scale=draw(st.sampled_from([1.0, 0.25])),
        decay=draw(st.sampled_from(sorted(DECAYS))),
        segmented=draw(st.booleans()),
        normalized=draw(st.booleans()),
        initial=True,
    )
    first = draw(st.sampled_from([1, 2, BLOCK, CHUNK + 1]))
    return op, first, draw(st.sampled_from([1, 2, BLOCK + 1, CHUNK])), draw(st.integers(0, 9))


def parts(op: Recurrence, operands: list[Any], start: int, stop: int) -> list[Any]:
    """The operands of some of the tokens; a decay of the heads has none."""
    return [x if x.ndim == 1 else x[:, start:stop] for x in operands]


@pytest.mark.parametrize("form", [chunked, stepped])
@given(case=continued())
@settings(max_examples=settings().max_examples // 8)
def test_what_one_call_leaves_the_next_goes_on_from(form: Any, case: tuple[Recurrence, int, int, int]):
    """Two calls, the second with the first one's state, are one call, in outputs and state, to float64's rounding."""
    op, first, more, seed = case
    with jax.enable_x64(True):
        operands = drawn(op, first + more, seed=seed)
        nothing = [jnp.zeros((2, HEADS, KEYS, VALUES)), jnp.zeros((2, HEADS, KEYS))][: 1 + op.normalized]
        last = [operands[-1][:, 0]] if op.segmented else []
        want = form(op, *operands, *nothing, *last)
        plain = form(replace(op, initial=False), *operands)
        out, *left = form(op, *parts(op, operands, 0, first), *nothing, *last)
        last = [operands[-1][:, first - 1]] if op.segmented else []
        then, *left = form(op, *parts(op, operands, first, first + more), *left, *last)
        got = (jnp.concatenate([out, then], axis=1), *left)
        for ours, true in zip((*got, *got), (*want, *plain), strict=False):
            np.testing.assert_allclose(ours, true, rtol=1e-9, atol=1e-9)
        assert len(left) == 1 + op.normalized


def test_an_initial_state_is_of_the_causal_form_and_fits():
    q, state = TensorType((2, 5, 4, 3), DType.F32), TensorType((2, 4, 3, 3), DType.F32)
    assert Recurrence(initial=True).infer(q, q, q, state) == (q, state)
    for op, operands in (
        (Recurrence(initial=True), (q, q, q)),
        (Recurrence(initial=True), (q, q, q, q)),
        (Recurrence(initial=True, direction="reverse"), (q, q, q, state)),
        (Recurrence(initial=True, normalized=True), (q, q, q, state)),
    ):
        with pytest.raises(IRError, match="recurrence"):
            op.infer(*operands)
