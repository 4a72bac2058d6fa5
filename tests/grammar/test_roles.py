"""Formulas of every role: fields with axes, sums over them, statistics of rows, features, decays, the halves of
attention. What they lower to, what they are answered with, and that programs made of them compute what a loop does."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.diagnostics import TfcError
from tfc.grammar.lower import lower
from tfc.grammar.parser import parse
from tfc.ir.ops import Attention, Mix, Op, Recurrence
from tfc.ir.program import Program
from tfc.ir.text import parse as read_back
from tfc.ir.text import show, word
from tfc.ir.verify import verify
from tfc.source import Source

HEAD = """tfm 1
{items}
model m(q: f32[B, N, 4, 8], k: f32[B, M, 2, 8], v: f32[B, M, 2, 8], lag: f32[B, N, 4, 6], a: f32[B, N, 4, 5],
        e: f32[B, M, 2, 5], r: f32[N, 6], t: f32[B, M, 6], kept: bool[B, N, 5], y: int[B, N], z: int[M]) {{
  near = tag(q, lag = lag, a = a, r = r, kept = kept, y = y)
  far = tag(k, a = e, r = t, y = z)
  {body}
}}
"""
LINEAR = """tfm 1
{items}
model m(q: f32[B, T, 4, 8], k: f32[B, T, 4, 8], v: f32[B, T, 2, 8], g: bf16[B, T, 4, 8], one: f32[B, T, 4],
        time: f32[T], place: int[T], four: f32[4], five: f32[B, T, 4, 5]) {{
  near = tag(q, gate = g, one = one, time = time, five = five)
  {body}
}}
"""


def lowered(text: str) -> Program:
    module, found = parse(Source("t", text))
    assert module is not None, "\n".join(map(str, found))
    program = lower(module).program
    verify(program)
    assert read_back(show(program)) == program
    return program


def steps(program: Program) -> list[str]:
    """The operations that hold formulas, as they print."""
    held = ("score", "masked", "weigh", "mix", "rotate", "index", "recurrence")
    lines = [line.strip().split(" = ", 1) for line in show(program).splitlines() if " = " in line]
    return [right for _, right in lines if right.split("(")[0].split(" ")[0] in held]


def attention(body: str, items: str = "") -> list[str]:
    return steps(lowered(HEAD.format(items=items, body=body)))


def linear(body: str, items: str = "") -> list[str]:
    return steps(lowered(LINEAR.format(items=items, body=body)))


LOWERED: Mapping[str, tuple[str, str, list[str]]] = {
    "a relative vector": (
        "", "attend(near, far, v, mask = k <= q, score = s + q.lag[h, q - k])",
        ["score(formula=s + $0.q[h, q - k]) %scores, %lag", "masked(formula=k <= q) %scored"],
    ),
    "a dot product of heads, and of tokens": (
        "", "attend(near, far, v, score = s + dot(q.a, k.a) * dot(q.r, k.r))",
        ["score(formula=s + sum[d]($0.q[h, d] * $1.k[h // 2, d]) * sum[d_2]($2.q[d_2] * $3.k[d_2])) "
         "%scores, %a, %e, %r, %t"],
    ),
    "a sum as written": (
        "", "attend(near, far, v, score = s + sum[d](q.a[.., d] * k.r[d + 1]))",
        ["score(formula=s + sum[d]($0.q[h, d] * $1.k[d + 1])) %scores, %a, %t"],
    ),
    "a boolean of the query, by the key's block": (
        "", "attend(near, far, v, mask = q.kept[k // 4] or any[i](q.kept[i]))",
        ["masked(formula=$0.q[k // 4] or any[i]($0.q[i])) %scores, %kept"],
    ),
    "a row's rank: the mask first": (
        "score hard(n) = if(row.rank < n, s, -inf)", "attend(near, far, v, mask = k <= q, score = hard(4))",
        ["masked(formula=k <= q) %scores", "score(formula=if(row.rank < 4, s, -inf)) %masked"],
    ),
    "a row's sum, in weights": (
        "weigh sink(logit) = p * sigmoid(row.lse - logit)", "attend(near, far, v, weigh = sink(q.r[0]), mask = k <= q)",
        ["masked(formula=k <= q) %scores", "weigh(formula=p * sigmoid(row.lse - $0.q[0])) %masked, %r"],
    ),
    "a place": (
        "position place(base = 100) = if(c < pairs // 2, pos.y, pos) * base ^ (-c / pairs)",
        "attend(near, far, v, position = place)",
        ["rotate(angle=if(c < 4 // 2, $0.q, pos) * 100 ^ (-c / 4), dims=8, offset=M - N) %q, %y",
         "rotate(angle=if(c < 4 // 2, $0.q, pos) * 100 ^ (-c / 4), dims=8) %k, %z"],
    ),
    "a place where positions are given": (
        "", "attend(tag(near, pos = y), far, v, position = pos * 2 + pos.y * c)",
        ["rotate(angle=($0.q * 2 + $0.q * c) * 1.0, dims=8) %q, %y",
         "rotate(angle=(pos * 2 + $0.q * c) * 1.0, dims=8) %k, %z"],
    ),
    "straight": (
        "weigh binary(step) = straight(if(p > step / 2, step, 0), step * min(max(p / step, 0), 1))",
        "attend(near, far, v, weigh = binary(0.25))",
        ["weigh(formula=straight(if(p > 0.125, 0.25, 0), 0.25 * min(max(p / 0.25, 0), 1))) %scores"],
    ),
    "half by half": (
        "", "mix(weights(near, far, mask = k <= q) * 2, v)",
        ["masked(formula=k <= q) %scores", "weigh %masked"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
def test_what_formulas_become(name: str):
    items, call, wanted = LOWERED[name]
    made = attention(f"return {call}", items)
    for line in wanted:
        assert line in made, made
    at = [made.index(line) for line in wanted]
    assert at == sorted(at)


RECURRENCES: Mapping[str, tuple[str, str, list[str], str]] = {
    "an elementwise feature": (
        "feature elu1 = if(u > 0, u + 1, exp(u))", "feature = elu1",
        ["index(axes=[b: B, t: T, h: 4, c: 8], "
         "expr=if($0[b, t, h, c] > 0, $0[b, t, h, c] + 1, exp($0[b, t, h, c]))) %q"],
        "recurrence",
    ),
    "a feature for each row of a table": (
        "feature favor(w) = exp(sum[d](w[c, d] * u[d]) - sum[d](u[d] ^ 2) / 2)", "feature = favor(w)",
        ["index(axes=[b: B, t: T, h: 4, c: 16], reduced=[d: 8, d_2: 8], "
         "expr=exp(sum[d]($0[c, d] * $1[b, t, h, d]) - sum[d_2]($1[b, t, h, d_2] ^ 2) / 2)) %w, %q"],
        "recurrence",
    ),
    "products of neighbours": (
        "", "feature = u * u[c + 1]",
        ["index(axes=[b: B, t: T, h: 4, c: 8], expr=$0[b, t, h, c] * $0[b, t, h, c + 1]) %q"], "recurrence",
    ),
    "a decay of heads": (
        "decay retention = log(1 - 2 ^ (-5 - h))", "decay = retention",
        ["index(axes=[h: 4], expr=log(1 - 2 ^ (-5 - h)))"], "recurrence(decay=head)",
    ),
    "a number": ("", "decay = -0.5", ["index(axes=[h: 4], expr=-0.5)"], "recurrence(decay=head)"),
    "a decay of tokens": (
        "", "decay = -exp(q.one[h])",
        ["index(axes=[b: B, t: T, h: 4], expr=-exp($0[b, t, h])) %one"], "recurrence(decay=token)",
    ),
    "of tokens that all rows share": (
        "", "decay = -exp(q.time) / (1 + q)",
        ["index(axes=[b: B, t: T, h: 4], expr=-exp($0[t]) / (1 + t)) %time"], "recurrence(decay=token)",
    ),
    "a decay of channels, in float32": (
        "", "decay = -exp(q.gate[h, c])",
        ["index(axes=[b: B, t: T, h: 4, c: 8], expr=-exp($0[b, t, h, c])) %decay"], "recurrence(decay=channel)",
    ),
    "a tensor": ("", "decay = four", [], "recurrence(decay=head)"),
    "a tensor of tokens": ("", "decay = one", [], "recurrence(decay=token)"),
    "none": ("", "decay = none, feature = none", [], "recurrence"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENCES)
def test_what_features_and_decays_become(name: str):
    items, options, wanted, last = RECURRENCES[name]
    made = linear(f"param w[16, 8] = normal(1)\n  return recur(near, k, k, {options})", items)
    for line in wanted:
        assert line in made, made
    assert made[-1].startswith(f"{last} %"), made
    assert len(made) == 1 + len(wanted) + ("feature" in options and "none" not in options), made


def test_positions_that_are_given_reach_a_decay():
    made = linear("return recur(tag(q, pos = place), k, k, decay = -log(1 + q))")
    assert made[0] == "index(axes=[b: B, t: T, h: 4], expr=-log(1 + $0[t])) %place"


FAULTS: Mapping[str, tuple[str, str, str]] = {
    "too few indices": ("attend(near, far, v, score = s + q.lag[h])", "E304", r"`lag` is \[4, 6\]: 2 indices, not 1"),
    "none at all": ("attend(near, far, v, score = s + q.lag)", "E304", r"`lag` is \[4, 6\]: 2 indices, not 0"),
    "of a number": ("attend(near, far, v, score = s + q.y[1])", "E304", "`y` is one number, read without brackets"),
    "a real index": ("attend(near, far, v, score = s + q.lag[h, k.r[0]])", "E301", r"`k.r\[0\]` is real; an index is"),
    "two ranges": ("attend(near, far, v, score = sum[d](q.r[d] * k.a[0, d]))", "E403", "`d` ranges over 6"),
    "no range": ("attend(near, far, v, score = sum[d](q.r[d + 1]))", "E406", "how far the index `d` goes"),
    "an index that means something": ("attend(near, far, v, score = sum[h](q.r[h]))", "E309", "a name of its own"),
    "any of numbers": ("attend(near, far, v, mask = any[d](q.r[d]))", "E301", r"`any` takes booleans; `q.r"),
    "lse of a score": ("attend(near, far, v, score = s - row.lse)", "E306", "`row` of a score has no `lse`"),
    "a misspelt statistic": ("attend(near, far, v, score = s - row.means)", "E306", "has no `means`"),
    "a row itself": ("attend(near, far, v, score = s - row)", "E305", "`row` is no number"),
    "a row in a mask": ("attend(near, far, v, mask = row.rank < 3)", "E302", "a mask has no `row`"),
    "dot of a number": ("attend(near, far, v, score = dot(q.r, 3))", "E305", "not the number 3"),
    "dot of three": ("attend(near, far, v, score = dot(q.r, q.r, k.r))", "E207", "two vectors, not 3"),
    "dot of tensors": ("attend(near, far, dot(q, k))", "E309", "`dot` stands in formulas"),
    "other heads": ("attend(tag(q, a = take(three, y)), far, v, score = dot(q.a, k.a))", "E404", "3 heads, the"),
    "no such field": ("attend(near, far, v, position = pos + pos.x)", "E306", "the tokens carry no field `x`"),
    "a boolean place": ("attend(near, far, v, position = pos.kept[c])", "E303", "`position` is a number"),
    "a table of other heads": ("attend(near, far, v, score = s * r[0, h])", "E403", "`h` ranges over 4 and over 6"),
    "key heads": ("attend(near, far, v, score = s + k.a[h, 0])", "E403", "`h` ranges over 4 and over 2"),
    "weights of three axes": ("mix(lag, v)", "E401", "weights f32.* do not fit v|batch and keys must agree"),
    "weights that are none": ("mix(y, v)", "E401", "`mix` takes weights as"),
    "heads of weights": ("mix(weights(near, far), take(three, z))", "E404|E401", "3|do not"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_faulty_formulas_are_answered(name: str):
    call, code, message = FAULTS[name]
    with pytest.raises(TfcError) as raised:
        attention(f"param three[9, 3, 5] = normal(1)\n  return {call}")
    (found,) = raised.value.diagnostics
    assert re.fullmatch(code, found.code) and re.search(message, found.message), str(found)
    assert found.span is not None and "return" not in found.span.text


WRONG: Mapping[str, tuple[str, str, str]] = {
    "a factor": ("decay = 0.9", "E303", "at most 0; `0.9` is 0.9"),
    "a factor of heads": ("decay = 1 - 2 ^ (-5 - h)", "E303", "is 0.969 to 0.996"),
    "a tensor of another shape": ("decay = time", "E401", r"\[4\], \[B, T, 4\], \[B, T, 4, 8\] of reals; `time`"),
    "other channels": ("decay = -exp(q.five[h, c])", "E403", "the key channel `c` ranges over 8 and over 5"),
    "other heads": ("decay = -exp(six[h])", "E403", "the head `h` ranges over 4 and over 6"),
    "no vector": ("decay = u", "E302", "a decay has no `u`"),
    "a boolean": ("feature = u > 0", "E303", "`feature` is a number"),
    "two indices": ("feature = u[1, 2]", "E304", "`u` is a vector: one index, not 2"),
    "elements of a number": ("feature = h[1]", "E305", "`h` is a number; it has no elements"),
    "two numbers of features": ("feature = six[c] * u", "E403", "`c` ranges over 6 and over 8"),
    "another head's table": ("feature = six[h] * u", "E403", "the head `h` ranges over 4 and over 6"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_faulty_features_and_decays_are_answered(name: str):
    options, code, message = WRONG[name]
    with pytest.raises(TfcError) as raised:
        linear(f"param six[6] = normal(1)\n  return recur(near, k, k, {options})")
    (found,) = raised.value.diagnostics
    assert found.code == code and re.search(message, found.message), str(found)


# ---- the formulas of the systems, run


def softmax(s: np.ndarray) -> np.ndarray:
    top = s.max()
    if top == -np.inf:
        return np.zeros_like(s)
    e = np.exp(s - top)
    return e / e.sum()


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def bucket(x: int, count: int, reach: int) -> int:
    """T5's, both directions: half of the buckets are for keys after the query."""
    half = count // 2
    exact = half // 2
    n = abs(x)
    far = exact + int(math.log(max(n, 1) / exact) / math.log(reach / exact) * (half - exact))
    return (half if x > 0 else 0) + (n if n < exact else min(far, half - 1))


TABLE = np.random.default_rng(11).standard_normal((8, 4)).astype(np.float32)
Row = Callable[[int, int, np.ndarray, np.ndarray], np.ndarray]

T5 = """score t5(table, count, reach) = s + table[if(k > q, count // 2, 0) + if(abs(k - q) < count // 4, abs(k - q),
  min(count // 4 + floor(log(max(abs(k - q), 1) / (count // 4)) / log(reach / (count // 4)) * (count // 4)),
  count // 2 - 1)), h]"""

SYSTEMS: Mapping[str, tuple[str, str, Row]] = {
    "hstu": (
        "weigh hstu(length) = s * sigmoid(s) / length", "weigh = hstu(7)",
        lambda h, i, s, rest: np.where(np.isinf(s), 0, s) * sigmoid(s) / 7,
    ),
    "clipped": (
        "weigh clipped(low) = min(max((1 - low) * p + low, 0), 1)", "weigh = clipped(-0.1)",
        lambda h, i, s, rest: np.clip(1.1 * softmax(s) - 0.1, 0, 1),
    ),
    "binary": (
        "weigh binary(step) = straight(if(p > step / 2, step, 0), step * min(max(p / step, 0), 1))",
        "weigh = binary(0.25)", lambda h, i, s, rest: np.where(softmax(s) > 0.125, 0.25, 0),
    ),
    "spark": (
        "weigh spark = p * log1p(exp(dot(q.r, k.r) / sqrt(128)))", "weigh = spark",
        lambda h, i, s, rest: softmax(s) * np.log1p(np.exp(rest[i] / math.sqrt(128))),
    ),
    "hard": (
        "score hard(n) = if(row.rank < n, s, -inf)", "score = hard(2)",
        lambda h, i, s, rest: softmax(np.where(s >= np.sort(s)[-2], s, -np.inf)),
    ),
    "t5": (
        T5, "score = t5(table, 8, 6)",
        lambda h, i, s, rest: softmax(s + [TABLE[bucket(j - i, 8, 6), h] for j in range(len(s))]),
    ),
    "sink": (
        "weigh sink(logit) = p * sigmoid(row.lse - logit[h])", "weigh = sink(first)",
        lambda h, i, s, rest: softmax(np.append(s, TABLE[0, h]))[:-1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_formulas_of_the_systems_compute_what_a_loop_does(name: str, implementation: str):
    """From text to numbers, fused into attention, against one query at a time."""
    items, options, row = SYSTEMS[name]
    text = f"""tfm 1
{items}
model m(q: f32[B, N, 4, 8], k: f32[B, N, 4, 8], v: f32[B, N, 4, 8], table: f32[8, 4], first: f32[4], r: f32[B, N, 6]) {{
  return attend(tag(q, r = r), tag(k, r = r), v, scale = 0.5, mask = {MASK[name]}, {options})
}}
"""
    model = tfc.compile(text, target="cpu", implementation=implementation)
    assert [type(e.op) for e in model.program.eqns] == [Attention]
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((1, 7, 4, 8)).astype(np.float32) for _ in range(3))
    r = rng.standard_normal((1, 7, 6)).astype(np.float32)
    inputs = {"q": q, "k": k, "v": v, "table": TABLE, "first": TABLE[0], "r": r}
    out = np.asarray(model({}, **inputs))
    rest = r[0] @ r[0].T
    s = 0.5 * np.einsum("nhd,mhd->hnm", q[0].astype(float), k[0])
    want = np.zeros((7, 4, 8))
    for h in range(4):
        for i in range(7):
            seen = np.ones(7, bool) if MASK[name] == "yes" else np.arange(7) <= i
            if name == "hard" and seen.sum() < 2:
                w = softmax(np.where(seen, s[h, i], -np.inf))
            else:
                w = row(h, i, np.where(seen, s[h, i], -np.inf), rest)
            want[i, h] = np.where(seen, w, 0) @ v[0, :, h]
    np.testing.assert_allclose(out[0], want, rtol=2e-5, atol=2e-6)


MASK = {**dict.fromkeys(SYSTEMS, "k <= q"), "hstu": "yes", "t5": "yes"}


def ops(program: Program) -> set[type[Op]]:
    return {type(e.op) for e in program.eqns}


def test_the_weights_themselves():
    """How much each key was seen; the two halves stay apart, as something else reads what is between them."""
    text = HEAD.format(
        items="", body="p = weights(near, far, mask = k <= q)\n  seen[b, j] = sum[h, i](p[b, h, i, j])\n  return seen"
    )
    model = tfc.compile(text, target="cpu")
    rng = np.random.default_rng(0)
    shapes = {"q": (1, 3, 4, 8), "k": (1, 3, 2, 8), "v": (1, 3, 2, 8), "lag": (1, 3, 4, 6), "a": (1, 3, 4, 5),
              "e": (1, 3, 2, 5), "r": (3, 6), "t": (1, 3, 6)}  # fmt: skip
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    whole = {"kept": np.ones((1, 3, 5), bool), "y": np.zeros((1, 3), np.int32), "z": np.zeros(3, np.int32)}
    seen = np.asarray(model({}, **inputs, **whole))
    assert seen.shape == (1, 3) and seen.sum() == pytest.approx(12, rel=1e-5) and seen[0, 0] > seen[0, 2] > 0
    assert ops(model.program) & {Attention, Mix} == set()


def test_features_and_decays_run():
    """Linear attention with features against its quadratic form, decays from 1 to 1 / 8 by the head."""
    text = LINEAR.format(
        items="feature elu1 = if(u > 0, u + 1, exp(u))\ndecay by_head = -h * log(2)",
        body="return recur(near, k, k, feature = elu1, decay = by_head)",
    )
    model = tfc.compile(text, target="cpu")
    assert Recurrence in ops(model.program) and word(model.program.eqns[-1].op) == "recurrence"
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((1, 5, 4, 8)).astype(np.float32) for _ in range(2))
    rest = {
        "v": np.zeros((1, 5, 2, 8), np.float32), "g": jnp.zeros((1, 5, 4, 8), jnp.bfloat16),
        "one": np.zeros((1, 5, 4), np.float32), "time": np.zeros(5, np.float32), "place": np.zeros(5, np.int32),
        "four": np.zeros(4, np.float32), "five": np.zeros((1, 5, 4, 5), np.float32),
    }  # fmt: skip
    out = np.asarray(model({}, q=q, k=k, **rest))
    elu = [np.where(x > 0, x + 1, np.exp(x)) for x in (q[0], k[0])]
    want = np.zeros((5, 4, 8))
    for h in range(4):
        for i in range(5):
            for j in range(i + 1):
                want[i, h] += 2.0 ** (-h * (i - j)) * (elu[0][i, h] @ elu[1][j, h]) * k[0, j, h]
    np.testing.assert_allclose(out[0], want, rtol=1e-5, atol=1e-5)
