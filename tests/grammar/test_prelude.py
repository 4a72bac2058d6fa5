"""The library: every item found without parsing, documented, in canonical layout, at work in a model; its formulas
against plain Python."""

import math
import re
from collections.abc import Callable
from importlib.resources import files

import pytest

from tfc.formula.expr import Expr, kind_of
from tfc.formula.scalar import Env, evaluate, pair
from tfc.front import front
from tfc.grammar import ast
from tfc.grammar.format import format_module as canonical
from tfc.grammar.lower import lower
from tfc.grammar.lowering.library import core_scope, library_items
from tfc.grammar.parser import parse
from tfc.grammar.samples import CALLS, spec
from tfc.ir.ops import Index, Masked, Rotate, Score
from tfc.ir.program import Program
from tfc.source import Source

FILES = sorted(f.name for f in (files("tfc.grammar") / "prelude").iterdir() if f.name.endswith(".tfm"))
ELEMENTARY = frozenset(
    """
    linear embed identity unit relu softplus log_sigmoid softmax log_softmax logsumexp clip causal unpadded blocks
    interpolated yarn_ramp alibi_slope places1d places2d depthwise_conv1d conv1d conv2d avg_pool1d max_pool1d
    max_pool2d avg_pool max_pool upsample2d shift mean_pool mean_real grid stretch keep cumsum
""".split()
)
"""Entries for which no paper has to be named, or that are part of one that names it."""
SOURCE = re.compile(r"arXiv:[0-9]{4}\.[0-9]{4,5}|, [0-9]{4}\)")


def read(name: str) -> tuple[str, ast.Module]:
    text = (files("tfc.grammar") / "prelude" / name).read_text(encoding="utf-8")
    module, found = parse(Source(name, text))
    assert module is not None, found
    return text, module


@pytest.mark.parametrize("name", FILES)
def test_the_library_is_in_canonical_layout(name: str) -> None:
    text, module = read(name)
    assert canonical(module) == text


def test_every_item_is_found_without_parsing() -> None:
    declared = {
        item.name: name for name in FILES for item in read(name)[1].items if isinstance(item, ast.Block | ast.Role)
    }
    assert sum(len(read(name)[1].items) for name in FILES) == len(declared)
    assert {name: place[0] for name, place in library_items().items()} == declared


def test_every_item_has_a_documentation_that_names_its_source() -> None:
    for name in FILES:
        for item in read(name)[1].items:
            assert isinstance(item, ast.Block | ast.Role)
            assert item.doc, item.name
            assert bool(SOURCE.search(item.doc)) != (item.name in ELEMENTARY), item.name


@pytest.mark.parametrize("name", sorted(library_items()))
def test_names_of_the_library_mean_nothing_special(name: str) -> None:
    """A file may define each of them anew, and the library's own parts go on using the library's."""
    text = f"tfm 1\nblock {name}(x) {{ return x + 41 }}\nmodel m(x: real[B, T, 8]) {{\n  y = {name}(x)\n"
    module, _ = parse(Source("t", text + "  return layer_of(y)\n}\nblock layer_of(x) { return x }\n"))
    assert module is not None
    assert "41" in str([e.op for e in lower(module).program.eqns])


@pytest.mark.parametrize("name", sorted({*library_items(), *CALLS}))
def test_every_item_has_a_call_that_compiles(name: str) -> None:
    """The samples of the reference: each uses its item, and all passes take it."""
    assert name in library_items() and name in CALLS
    assert re.search(rf"\b{name}\b", CALLS[name])
    module, _ = parse(Source(name, spec(name)))
    assert module is not None and canonical(module) == spec(name)
    assert front(spec(name)).program.results


def test_no_item_hides_a_word_of_the_core() -> None:
    assert not set(library_items()) & set(core_scope().names)


# ---- formulas


def program(settings: str, items: str = "") -> Program:
    text = f"tfm 1\n{items}\nmodel m(x: real[B, T, 8], segment: int[B, T]) {{\n  x = tag(x, segment = segment)\n"
    module, found = parse(Source("t", f"{text}  return attention(x, heads = 2, {settings})\n}}\n"))
    assert module is not None, found
    return lower(module).program


def formula(settings: str, kind: type[Masked] | type[Score], items: str = "") -> Expr:
    (found,) = [e.op.formula for e in program(settings, items).eqns if isinstance(e.op, kind)]
    return found


SEGMENTS = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]
N = len(SEGMENTS)

MASKS: dict[str, Callable[[int, int], bool]] = {
    "causal": lambda q, k: k <= q,
    "window(3)": lambda q, k: -3 < q - k < 3,
    "documents": lambda q, k: SEGMENTS[q] == SEGMENTS[k],
    "prefix(4)": lambda q, k: k <= q or k < 4,
    "dilated(4)": lambda q, k: (q - k) % 4 == 0,
    "blocks(5)": lambda q, k: q // 5 == k // 5,
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str) -> None:
    expr = formula(f"mask = {mask}", Masked)
    for q in range(N):
        for k in range(N):
            assert evaluate(expr, pair(q, k, n=N, m=N, loads={0: SEGMENTS})) == MASKS[mask](q, k)


SCORES: dict[str, Callable[[float, int, int, int], float]] = {
    "softcap(30)": lambda s, h, q, k: 30 * math.tanh(s / 30),
    "approximate_softcap(30)": lambda s, h, q, k: 30 * math.tanh(s / 30),
    "alibi(8)": lambda s, h, q, k: s - 2.0 ** -(h + 1) * abs(q - k),
    "tilt(slope)": lambda s, h, q, k: s - [0.5, 0.25][h] * abs(q - k),
    "tilt(slope) + softcap(5)": lambda s, h, q, k: s - [0.5, 0.25][h] * abs(q - k) + 5 * math.tanh(s / 5),
}


@pytest.mark.parametrize("score", SCORES)
def test_scores(score: str) -> None:
    expr = formula(f"score = {score}", Score, "param slope[2]")
    for s, h, q, k in [(0.0, 0, 3, 3), (2.5, 1, 7, 2), (-40.0, 0, 1, 9), (100.0, 1, 0, 5)]:
        found = evaluate(expr, pair(q, k, n=N, m=N, reads={0: [0.5, 0.25]}, s=s, h=h))
        assert found == pytest.approx(SCORES[score](s, h, q, k), rel=1e-12)


def their_bucket(lag: int, both: bool, count: int, reach: int) -> int:
    """The definition in Raffel et al., appendix, as their code has it; lag is key minus query."""
    bucket, n = 0, -lag
    if both:
        count //= 2
        bucket += (n < 0) * count
        n = abs(n)
    else:
        n = max(n, 0)
    exact = count // 2
    if n < exact:
        return bucket + n
    far = exact + int(math.log(n / exact) / math.log(reach / exact) * (count - exact))
    return bucket + min(far, count - 1)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("count", "reach"), [(32, 128), (16, 40)])
def test_buckets(both: bool, count: int, reach: int) -> None:
    word = "yes" if both else "no"
    expr = formula(f"score = s + bucket(k - q, {count}, {reach}, {word})", Score)
    for lag in range(-200, 201):
        env = Env({"s": 0.0, "h": 0}, {"q": 200, "k": 200 + lag})
        assert evaluate(expr, env) == their_bucket(lag, both, count, reach), lag


def angle(position: str) -> Expr:
    (one, other) = [e.op for e in program(f"position = {position}, head_dim = 16").eqns if isinstance(e.op, Rotate)]
    assert one.angle == other.angle and one.dims == 16
    return one.angle


def test_rotary_angles() -> None:
    for pos in (0, 1, 77):
        for c in range(8):
            env = Env({"pos": pos, "c": c})
            assert evaluate(angle("rope"), env) == pytest.approx(pos * 10_000 ** (-2 * c / 16), rel=1e-12)
            assert evaluate(angle("rope(500_000)"), env) == pytest.approx(pos * 500_000 ** (-2 * c / 16), rel=1e-12)
            assert evaluate(angle("rope_stretched(4)"), env) == pytest.approx(pos / 4 * 1e4 ** (-c / 8), rel=1e-12)


# ---- functions of one number, in index equations


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "gelu(x[b])": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_tanh(x[b])": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu(x[b])": lambda x: x / (1 + math.exp(-x)),
    "relu(x[b])": lambda x: max(x, 0.0),
    "relu2(x[b])": lambda x: max(x, 0.0) ** 2,
    "softplus(x[b])": lambda x: math.log(1 + math.exp(x)),
    "clip(x[b], -1, 2)": lambda x: min(max(x, -1.0), 2.0),
}


@pytest.mark.parametrize("written", ACTIVATIONS)
def test_activations(written: str) -> None:
    module, _ = parse(Source("t", f"tfm 1\nmodel m(x: real[B]) {{\n  y[b] = {written}\n  return y\n}}\n"))
    assert module is not None
    (op,) = [e.op for e in lower(module).program.eqns]
    assert isinstance(op, Index)
    for x in (-5.0, -1.0, -0.1, 0.0, 0.3, 1.0, 4.0):
        found = evaluate(op.expr, Env({"b": 0}, reads=lambda slot, at, x=x: x))
        assert found == pytest.approx(ACTIVATIONS[written](x), rel=1e-9, abs=1e-12)


def test_kinds() -> None:
    assert all(str(kind_of(formula(f"mask = {m}", Masked))) == "boolean" for m in MASKS)


# ---- components: what they own


def owned(call: str) -> dict[str, tuple[object, ...]]:
    text = f"tfm 1\nmodel m(ids: int[B, T], x: real[B, T, 24], y: real[B, M, 24]) {{\n  return {call}\n}}\n"
    module, found = parse(Source("t", text))
    assert module is not None, found
    return {s.path.split(".", 1)[1]: s.type.shape for s in lower(module).program.stored()}


def test_what_components_own() -> None:
    assert owned("linear(x, 5)") == {"weight": (24, 5)}
    assert owned("linear(x, 5, biased = yes)") == {"weight": (24, 5), "bias": (5,)}
    assert owned("embed(ids, 7, 5)") == {"weight": (7, 5)}
    assert owned("rms(x)") == {"scale": (24,)}
    assert owned("layer_norm(x)") == {"scale": (24,), "bias": (24,)}
    assert owned("layer_norm(x, biased = no)") == {"scale": (24,)}
    grouped = owned("attention(x, y, heads = 6, kv_heads = 2)")
    assert grouped == {"q.weight": (24, 24), "k.weight": (24, 8), "v.weight": (24, 8), "out.weight": (24, 24)}
    assert len(owned("attention(x, heads = 2, biased = yes)")) == 8
    assert owned("ffn(x)") == {"up.weight": (24, 96), "down.weight": (96, 24)}
    assert owned("ffn(x, 9, gate = silu)") == {"up.weight": (24, 9), "gate.weight": (24, 9), "down.weight": (9, 24)}
    assert len(owned("ffn(x, 9, gate = silu, biased = yes)")) == 6


def test_alibrary_item_costs_only_itself() -> None:
    """Nothing is parsed that a spec does not use: what the speed of `tfc check` rests on."""
    from tfc.grammar.lowering import library

    library.library_item.cache_clear()
    assert owned("rms(x)")
    assert library.library_item.cache_info().misses == 1
