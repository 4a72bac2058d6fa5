"""The decoding form against the whole program: any split of the tokens into calls gives what one call gives.

Both are evaluated by the definitions, in float64, so nothing but the rewriting is judged. Each call takes three tokens
a row, of which a drawn number counts, 0 to 3, differing from row to row: that is every split, and every ragged batch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfc.backends.kernel import DTYPES
from tfc.backends.reference.program import evaluate
from tfc.diagnostics import TfcError
from tfc.formula.expr import Apply, Const, Expr, Kind, Read, Token, Var, apply
from tfc.formula.scalar import Env
from tfc.formula.scalar import evaluate as scalar
from tfc.front import front
from tfc.ir.program import Program
from tfc.ir.text import parse, show
from tfc.ir.types import DType
from tfc.ir.verify import verify
from tfc.passes.decode import COUNT, LENGTH, Decode, kept
from tfc.passes.decoding.causal import behind, causal

B, T, NEW = 2, 7, 3

MODEL = """tfm 1
let heads = 4
{items}
model small(tokens: int[B, T]{inputs}) {{
  embed words = embed {{ vocab = 11   width = 8   init = normal(1) }}
  x = words(tokens)
  {statements}
  return linear@head(rms@last(x), 11)
}}
"""


def spec(statements: str, items: str = "", inputs: str = "") -> str:
    return MODEL.format(items=items, inputs=inputs, statements=statements)


def look(attributes: str, more: str = "") -> str:
    return spec(f"{more}repeat 2 as layer {{ x = x + look(rms@before(x)) }}", f"attention look {{ {attributes} }}")


SPECS: Mapping[str, str] = {
    "rope and groups": look("heads = heads   kv_heads = 2   position = rope(100)   mask = causal"),
    "window, capped": look(
        "heads = heads   mask = causal and window(3)   score = softcap(2)   position = rope(50)   head_dim = 4"
    ),
    "learned positions": look("heads = heads   mask = causal   biased = yes", "x = learned_positions@place(x, 9)\n  "),
    "sinusoids": look("heads = heads   mask = not (k > q)", "x = sinusoidal(x)\n  "),
    "slopes": spec(
        """repeat 2 as layer {
    param slope[h: heads] = 2 ^ (-8 * (h + 1) / heads)
    param near[heads, 3] = normal(1)
    x = x + look(rms@before(x), score = s - slope[h] * abs(q - k) + near[h, q - k])
  }""",
        "attention look { heads = heads   mask = causal }",
    ),
    "rows of statistics": look("heads = heads   mask = causal   weigh = if(row.rank < 2, p, 0) * row.count"),
    "texts packed": spec(
        """x = tag(x, segment = segment)
  y = causal_conv1d@conv(x, 3, segment = segment)
  repeat 2 as layer { x = x + look(rms@before(y + x)) }""",
        "attention look { heads = heads   mask = causal and documents }",
        ", segment: int[B, T]",
    ),
    "nested loops": spec(
        """repeat 2 as group {
    repeat 3 as layer { x = x + look(rms@before(x)) }
    x = x + causal_conv1d@conv(x, 2)
  }
  x = x + look@end(x)""",
        "attention look { heads = heads   mask = causal   position = rope() }",
    ),
    "a shift": spec("y[b, t, c] = x[b, max(t - 1, 0), c] + x[b, t - 3, c] * t\n  x = x + y"),
    "memory": spec(
        "x = x + look@own(x)\n  x = x + look@cross(x, memory, mask = yes)",
        "attention look { heads = heads   mask = causal }",
        ", memory: f32[B, M, 8]",
    ),
    "experts": spec(
        "repeat 2 as layer { x = x + look(x)\n x = x + experts(rms@f(x), 3, 2, expert) }",
        "attention look { heads = heads   mask = causal }\nffn expert { hidden = 6   gate = silu }",
    ),
    "retention": spec("repeat 2 as layer { x = x + retention_mixer(x, 2) }"),
    "gated": spec("repeat 2 as layer { x = x + gated_linear_attention(x, 2, rank = 3) }"),
    "normalized": spec('x = x + linear_attention(x, heads = 2, direction = "causal", segment = segment)', "",
                       ", segment: int[B, T]"),
    "mamba": spec("repeat 2 as layer { x = x + mamba2(x, head_dim = 4, state = 4) }"),
}  # fmt: skip
PLANS = st.lists(st.tuples(*[st.integers(0, NEW)] * B), min_size=1, max_size=6)


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def arrays(program: Program, seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {s.path: jnp.asarray(rng.standard_normal(s.type.ints)) for s in program.stored()}


def inputs(program: Program, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {"tokens": rng.integers(0, 11, (B, T)), "memory": rng.standard_normal((B, 2, 8))}
    made["segment"] = (np.arange(T) >= rng.integers(3, 6, (B, 1))).astype(int)
    return {i.value.name: made[i.value.name] for i in program.inputs}


def stepped(program: Program, params: Any, given: Mapping[str, Any], plan: list[tuple[int, ...]]) -> Any:
    """The first result of each row's tokens, call after call; the tokens that do not count are others."""
    form = Decode()(program).program
    verify(form, after="decode")
    assert parse(show(form)) == form
    bound = form.bind({"B": B, "T": NEW, "L": T, "M": 2})
    caches = {v.name: jnp.zeros(v.type.ints, DTYPES[v.type.dtype]) for v in kept(bound)}
    length, rows = np.zeros(B, int), [list[Any]() for _ in range(B)]
    for counts in plan:
        count = np.minimum(counts, T - length)
        new = dict(given)
        for name in ("tokens", "segment"):
            if name in given:
                at = length[:, None] + np.arange(NEW)
                real = np.arange(NEW) < count[:, None]
                new[name] = np.where(real, np.take_along_axis(given[name], np.minimum(at, T - 1), 1), 7)
        taken = {**new, LENGTH: jnp.asarray(length), COUNT: jnp.asarray(count), **caches}
        y, *after = evaluate(bound, params, {k: jnp.asarray(x) for k, x in taken.items()}, jnp.float64)
        for b in range(B):
            rows[b].extend(np.asarray(y)[b, : count[b]])
        length = length + count
        caches = dict(zip(caches, after, strict=True))
    return rows


def whole(program: Program, params: Any, given: Mapping[str, Any]) -> Any:
    bound = program.bind({"B": B, "T": T, "M": 2})
    return np.asarray(evaluate(bound, params, {k: jnp.asarray(x) for k, x in given.items()}, jnp.float64)[0])


@pytest.mark.parametrize("name", SPECS)
@given(plan=PLANS, seed=st.integers(0, 9))
@settings(max_examples=3)
def test_any_split_gives_what_one_call_gives(name: str, plan: list[tuple[int, ...]], seed: int):
    program = front(SPECS[name]).program
    params, given = arrays(program, seed), inputs(program, seed)
    want = whole(program, params, given)
    rows = stepped(program, params, given, [*plan, (1, 3), (3, 2), (3, 3), (1, 1)])
    for b in range(B):
        got = np.asarray(rows[b])
        np.testing.assert_allclose(got, want[b, : len(got)], rtol=1e-9, atol=1e-9)
        assert len(got) > 3


@pytest.mark.parametrize("name", SPECS)
def test_the_law_is_not_vacuous(name: str):
    """What comes later depends on the first token, so a form that kept nothing would fail."""
    program = front(SPECS[name]).program
    params, given = arrays(program, 0), inputs(program, 0)
    other = {**given, "tokens": given["tokens"].copy()}
    other["tokens"][:, 0] = (other["tokens"][:, 0] + 1) % 11
    changed = np.abs(whole(program, params, given) - whole(program, params, other)).max(axis=(0, 2))
    assert np.count_nonzero(changed > 1e-6) >= 3


def test_what_is_kept_has_a_name_and_a_row_a_turn():
    form = Decode()(front(SPECS["nested loops"]).program).program
    assert [f"{v.name}: {v.type}" for v in kept(form)] == [
        "cache.group.layer.y.k: f32[6, B, L, 4, 2]",
        "cache.group.layer.y.v: f32[6, B, L, 4, 2]",
        "cache.group.conv.x_2: f32[2, B, 1, 8]",
        "cache.y.k: f32[1, B, L, 4, 2]",
        "cache.y.v: f32[1, B, L, 4, 2]",
    ]
    narrow = Decode(DType.BF16)(front(SPECS["nested loops"]).program).program
    verify(narrow)
    assert [v.type.dtype for v in kept(narrow)] == [DType.BF16, DType.BF16, DType.F32, DType.BF16, DType.BF16]


def test_a_value_that_is_key_and_value_is_kept_once():
    text = spec("y = split(linear@l(x, 8), 2)\n  x = x + join(attend(y, y, y, mask = causal))")
    assert len(kept(Decode()(front(text).program).program)) == 1


REFUSED = {
    "nothing proves that its mask `yes`": look("heads = heads"),
    "nothing proves that its mask `k <= q or k < 2`": look("heads = heads   mask = causal or k < 2"),
    "`j` runs over the tokens": spec("y[b, t, c] = sum[j](if(j <= t, x[b, j, c], 0))\n  x = y"),
    "what it gives depends on several tokens": spec(
        "m[b, c] = x[b, 0, c]\n  y[b, t, c] = x[b, t, c] + m[b, c]\n  x = y"
    ),
    "may read tokens that come later": spec("y[b, t, c] = x[b, t + 1, c]\n  x = x + y"),
    "any number of those before": spec("y[b, t, c] = x[b, t - tokens[b, t], c]\n  x = x + y"),
    "tokens of other rows": spec("y[b, t, c] = x[0, t, c]\n  x = x + y"),
    "it reads how many tokens there are": spec("y[b, t: length(x), c] = x[b, t, c] / length(x)\n  x = y"),
    "has tokens elsewhere than in [B, T, ...]": spec("y[b, t: T // 2, c] = x[b, 2 * t, c]\n  x = y"),
    "does not run from the first token to the last": spec("x = x + linear_attention(x, heads = 2)"),
    "its input `real` says how many": spec("x = x", "", ", real: int[B] = T"),
    "has a scale that several tokens share": spec('x = rounded(x, fp8(per = "tensor"))'),
    "which channels are outliers": spec('x = rounded(x, int8(per = "row", outliers = 6.0))'),
    "it adds tokens to the sequence": spec("x = append(x, x)"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_decoded_is_refused_with_its_place(reason: str):
    program = front(REFUSED[reason]).program
    with pytest.raises(TfcError) as caught:
        Decode()(program)
    (found,) = caught.value.diagnostics
    assert found.code == "E816" and reason in found.message
    assert found.span is not None or "input" in reason


def test_reports_are_left_out_and_what_only_they_read():
    text = spec("report size = mean(x)\n  repeat 2 as layer { x = x + linear(x, 8)\n report part = mean(x) }")
    form = Decode()(front(text).program).program
    assert not form.reports and all(not body.reports for _, body in form.bodies())


# --- proofs

Q, K = Token("q"), Token("k")
HALVES = [apply("floordiv", Q, Const(2)), apply("floordiv", K, Const(2))]
TWICE = [apply("mul", Const(2), Q), apply("mul", Const(2), K)]
SIDES = st.sampled_from([Q, K, *HALVES, *TWICE, Const(1), Const(-1), Const(2)])
SUMS = st.recursive(
    SIDES, lambda s: st.builds(lambda fn, a, b: Apply(fn, (a, b)), st.sampled_from(["add", "sub"]), s, s), max_leaves=4
)
ATOMS = st.builds(lambda fn, a, b: Apply(fn, (a, b)), st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), SUMS, SUMS)
MASKS: st.SearchStrategy[Expr] = st.recursive(
    ATOMS,
    lambda m: st.one_of(
        st.builds(lambda a, b, fn: Apply(fn, (a, b)), m, m, st.sampled_from(["and", "or"])),
        st.builds(lambda a: Apply("not", (a,)), m),
    ),
    max_leaves=4,
)


@given(mask=MASKS)
@settings(max_examples=300)
def test_what_is_proved_holds(mask: Expr):
    """Every pair of the first tokens, by plain Python."""
    if causal(mask):
        for q in range(9):
            for k in range(q + 1, 12):
                assert not scalar(mask, Env(tokens={"q": q, "k": k}))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("causal", True), ("k < q + 1", True), ("not (q < k)", True), ("q - k >= 0", True), ("q == k", True),
        ("causal and (window(3) or k == 0)", True), ("k // 2 < q // 2 or causal", True), ("2 * k <= 2 * q + 1", True),
        ("window(3)", False), ("k < q + 2", False), ("k // 2 <= q // 2", False), ("causal or k == 0", False),
        ("2 * k <= 2 * q + 2", False), ("yes", False),
    ],
)  # fmt: skip
def test_masks_that_are_causal(text: str, holds: bool):
    program = front(look(f"heads = heads   mask = {text}")).program
    ((_, body),) = program.bodies()
    (mask,) = (e.op.mask for e in body.eqns if e.op.name == "attention")  # type: ignore[attr-defined]
    assert causal(mask) is holds


def test_how_far_back_an_index_lies():
    t, i = Var("t", Kind.INT), Var("i", Kind.INT)

    def of(fn: str, x: Expr, y: Expr) -> int | None:
        return behind(apply(fn, x, y), t, {"i": 4})

    assert behind(t, t, {}) == 0
    assert of("sub", t, i) == 3
    assert of("sub", t, apply("mul", Const(2), i)) == 6
    assert of("add", t, apply("sub", i, Const(3))) == 3
    assert of("add", t, i) is None and of("sub", t, t) is None and of("add", t, t) is None
    assert of("sub", t, Read(0, (i,), Kind.INT)) is None and of("sub", t, Const(1 << 20)) is None
