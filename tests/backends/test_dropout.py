"""Dropout: its integers against Python's and against JAX's Threefry, its statistics, and attention that drops."""

from dataclasses import replace
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from tfc.backends.kernel import Target
from tfc.backends.table import choose, named
from tfc.diagnostics import TfcError
from tfc.formula.expr import Apply, Kind, Load, Token
from tfc.ir.dropout import GOLDEN, MURMUR, PARITY, ROTATIONS, site, threshold
from tfc.ir.ops import Attention, Dropout, Masked, Mix, Op, P, S, Score, Scores, Weigh
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.targets import resolve

CPU = Target(name="cpu", platform="cpu")
FORMS = ["xla", "reference"]
KINDS = {"float32": DType.F32, "int32": DType.I32, "bfloat16": DType.BF16, "bool": DType.BOOL}
WORD = 2**32


def equation(op: Op, *operands: Any) -> Eqn:
    types = [TensorType(x.shape, KINDS[x.dtype.name]) for x in operands]
    outs = tuple(Value(f"o{i}", t) for i, t in enumerate(op.infer(*types)))
    return Eqn(outs, op, tuple(Value(f"a{i}", t) for i, t in enumerate(types)))


def run(op: Op, form: str, *operands: Any) -> tuple[jax.Array, ...]:
    arrays = [jnp.asarray(x) for x in operands]
    kernel = named(type(op), form)
    assert kernel is not None
    return tuple(kernel.build(equation(op, *arrays), CPU)(*arrays))


def ints(*numbers: int) -> jax.Array:
    return jnp.asarray(np.array(numbers, np.uint32).astype(np.int32))


def turn(n: int) -> jax.Array:
    return jnp.asarray(n, jnp.int32)


# --- the definition, in Python's integers


def mix(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    keys = (*key, key[0] ^ key[1] ^ PARITY)
    x, y = (counter[0] + keys[0]) % WORD, (counter[1] + keys[1]) % WORD
    for n in range(20):
        bits = ROTATIONS[n % 8]
        x = (x + y) % WORD
        y = ((y << bits | y >> (32 - bits)) % WORD) ^ x
        if n % 4 == 3:
            group = n // 4 + 1
            x, y = (x + keys[group % 3]) % WORD, (y + keys[(group + 1) % 3] + group) % WORD
    return x, y


def final(h: int) -> int:
    a, f, b, g, c = MURMUR
    h = (h ^ h >> a) * f % WORD
    h = (h ^ h >> b) * g % WORD
    return h ^ h >> c


def kept(rate: float, path: str, shape: tuple[int, ...], seed: tuple[int, int], turns: tuple[int, ...]) -> Any:
    key = mix(seed, site(path))
    for t in turns:
        key = mix(key, (t, 1))
    out = np.zeros((prod(shape[:-1]), shape[-1]), bool)
    for row in range(out.shape[0]):
        a, b = mix(key, (row, 0))
        for place in range(out.shape[1]):
            out[row, place] = final(final((a + place * GOLDEN) % WORD) ^ b) >= threshold(rate)
    return out.reshape(shape)


def test_threefry_is_the_published_one():
    """The known answers that come with Random123 (threefry2x32, 20 rounds)."""
    assert mix((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)
    assert mix((WORD - 1, WORD - 1), (WORD - 1, WORD - 1)) == (0x1CB996FC, 0xBB002BE7)
    assert mix((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)) == (0xC4923A9C, 0x483DF7A0)


@settings(max_examples=12)
@given(st.tuples(*[st.integers(0, WORD - 1)] * 4))
def test_threefry_is_that_of_jax(words: tuple[int, ...]):
    out = threefry_2x32(np.array(words[:2], np.uint32), np.array(words[2:], np.uint32))
    assert tuple(map(int, out)) == mix((words[0], words[1]), (words[2], words[3]))


def test_murmur_is_the_published_one():
    """fmix32 is one to one and keeps 0; 1 goes to 0x514E28B7, what MurmurHash3 makes of an empty key of seed 1."""
    assert (final(0), final(1)) == (0, 0x514E28B7)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12)  # each shape is compiled
@given(
    shape=st.sampled_from([(5,), (2, 3), (2, 1, 3, 4)]),
    seed=st.tuples(st.integers(0, WORD - 1), st.integers(0, WORD - 1)),
    turns=st.sampled_from([(), (7,), (40, 0)]),
    rate=st.sampled_from([0.1, 0.5, 0.9, 1e-9]),
    path=st.sampled_from(["a", "layer.look.dropout"]),
)
def test_both_forms_keep_what_the_definition_keeps(
    form: str, shape: tuple[int, ...], seed: tuple[int, int], turns: tuple[int, ...], rate: float, path: str
):
    op = Dropout(rate=rate, path=path)
    (out,) = run(op, form, jnp.ones(shape), ints(*seed), *map(turn, turns))
    np.testing.assert_array_equal(np.asarray(out) != 0, kept(rate, path, shape, seed, turns))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_kept_is_divided(form: str):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 40)), jnp.float32).at[0].set(jnp.nan)
    op = Dropout(rate=0.75, path="a")
    (out,) = run(op, form, x, ints(3, 4))
    keep = kept(0.75, "a", x.shape, (3, 4), ())
    assert keep.any() and not keep.all()
    np.testing.assert_array_equal(out, np.where(keep, 4 * np.asarray(x), 0))  # a NaN that is dropped is gone
    slope = jax.grad(lambda x: jnp.sum(run(op, form, x, ints(3, 4))[0]))(x)
    np.testing.assert_array_equal(slope, np.where(keep, 4.0, 0.0))


@pytest.mark.parametrize("form", FORMS)
def test_without_a_seed_nothing_happens(form: str):
    x = jnp.asarray([[1.0, jnp.nan]], jnp.bfloat16)
    (out,) = run(Dropout(rate=0.5, path="a"), form, x)
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out.astype(jnp.float32), x.astype(jnp.float32))


def test_bfloat16_is_rounded_once():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64)), jnp.bfloat16)
    made = [run(Dropout(rate=0.1, path="a"), form, x, ints(3, 4))[0] for form in FORMS]
    assert all(y.dtype == x.dtype for y in made)
    np.testing.assert_allclose(*(np.asarray(y, np.float32) for y in made), rtol=2**-8, atol=0)


# --- statistics

SHAPE = (2, 3, 100, 200)
COUNT = prod(SHAPE)


def drawn(rate: float = 0.3, path: str = "a", seed: tuple[int, int] = (1, 2), turns: tuple[int, ...] = ()) -> Any:
    (out,) = run(Dropout(rate=rate, path=path), "xla", jnp.ones(SHAPE), ints(*seed), *map(turn, turns))
    return np.asarray(out) != 0


def deviations(share: float, expected: float, count: int) -> float:
    """How many standard deviations a share of `count` draws is away."""
    return abs(share - expected) / sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_what_is_asked_for(rate: float):
    keep = drawn(rate)
    assert deviations(keep.mean(), 1 - rate, COUNT) < 4
    for axis in range(4):  # and in each batch row, head, query and key
        shares = keep.mean(axis=tuple(a for a in range(4) if a != axis))
        assert max(deviations(s, 1 - rate, COUNT // SHAPE[axis]) for s in shares) < 5


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("by", [1, 2])
def test_neighbours_are_independent(axis: int, by: int):
    """Two elements `by` apart along each axis are both kept as often as independent ones."""
    keep = drawn()
    if by >= SHAPE[axis]:
        keep = np.concatenate([keep, drawn(seed=(1, 3))], axis)
    first, second = np.split(keep, [by], axis)[1], np.split(keep, [keep.shape[axis] - by], axis)[0]
    both = first & second
    assert deviations(both.mean(), 0.49, both.size) < 4


OTHERS: dict[str, dict[str, Any]] = {
    "site": {"path": "b"},
    "seed": {"seed": (2, 2)},
    "second word": {"seed": (1, 3)},
    "first turn": {"turns": (0,)},
    "turn": {"turns": (1,)},
    "turns": {"turns": (1, 0)},
    "turns exchanged": {"turns": (0, 1)},
}


def test_sites_seeds_and_turns_are_independent():
    masks = {"itself": drawn(), **{name: drawn(**other) for name, other in OTHERS.items()}}
    names = list(masks)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert deviations((masks[a] & masks[b]).mean(), 0.49, COUNT) < 4.5, (a, b)


def test_patterns_of_eight_are_evenly_distributed():
    """Chi-square of the 256 patterns that eight neighbours along the last axis make at rate 1/2: 255 +- 22.6."""
    bits = drawn(0.5).reshape(-1, 8)
    counts = np.bincount(bits @ (1 << np.arange(8)), minlength=256)
    expected = len(bits) / 256
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 4 * 22.6


# --- attention


def operands(dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((2, 5, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8)))
    return q, k, v, jnp.asarray(rng.integers(0, 2, (2, 7)) > 0), ints(5, 6), turn(3)


CAUSAL = Apply("le", (Token("k"), Token("q")))
REAL = Load(0, "k", Kind.BOOL)
PLAIN = Attention(scale=0.5, mask=Apply("and", (CAUSAL, REAL)), dropout=0.4, site="look.dropout", turns=1)
FORMULAS = {
    "softmax": PLAIN,
    "weighed": replace(PLAIN, weigh=Apply("mul", (P, P))),
    "scored": replace(PLAIN, score=Apply("tanh", (S,))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_attention_drops_as_its_steps_do(name: str):
    """Attention in both forms, values and gradients, against the steps with a dropout between weights and mix."""
    op = FORMULAS[name]
    q, k, v, real, *seeds = operands()

    def steps(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        (s,) = run(Scores(scale=op.scale), "reference", q, k)
        (s,) = run(Score(formula=op.score), "reference", s)
        (s,) = run(Masked(formula=op.mask), "reference", s, real)
        w, _ = run(Weigh(formula=op.weigh), "reference", s)
        (w,) = run(Dropout(rate=op.dropout, path=op.site), "reference", w, *seeds)
        return run(Mix(), "reference", w, v)[0]

    def loss(f: Any) -> Any:
        return jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(f(*x))), argnums=(0, 1, 2))

    expected, slopes = steps(q, k, v), loss(steps)(q, k, v)[1]
    assert float(jnp.abs(expected).max()) > 0.5
    for form in FORMS:

        def attention(q: jax.Array, k: jax.Array, v: jax.Array, form: str = form) -> jax.Array:
            return run(op, form, q, k, v, real, *seeds)[0]

        np.testing.assert_allclose(attention(q, k, v), expected, rtol=0, atol=1e-5)
        for got, want in zip(loss(attention)(q, k, v)[1], slopes, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_lse_does_not_know_of_dropout():
    q, k, v, real, *seeds = operands()
    for form in FORMS:
        dropped = run(PLAIN, form, q, k, v, real, *seeds)[1]
        plain = run(replace(PLAIN, dropout=0.0, site="", turns=0), form, q, k, v, real)[1]
        np.testing.assert_array_equal(dropped, plain)


def test_kernels_refuse_in_words():
    """On a GPU attention that drops is the xla form's; whoever asks for a kernel is told why not."""
    h200 = resolve("h200")
    q, k, v = (jnp.zeros((2, 128, 4, 64), jnp.bfloat16) for _ in range(3))
    op = Attention(scale=0.5, mask=CAUSAL, dropout=0.1, site="look.dropout")
    eqn = equation(op, q, k, v, ints(1, 2))
    assert choose(equation(replace(op, dropout=0.0, site=""), q, k, v), h200).kernel.name == "pallas_gpu"
    choice = choose(eqn, h200)
    assert choice.kernel.name == "xla"
    assert choice.refusals == (
        ("pallas_gpu", "drops no attention weights, and this call has a key and `dropout = 0.1`"),
        ("cudnn", "drops no weights by the seed and the place of each"),
    )
    with pytest.raises(TfcError, match="drops no attention weights, and this call has a key"):
        choose(eqn, h200, "pallas_gpu")
