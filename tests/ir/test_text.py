"""Programs and formulas as text and back: every operation, every node, drawn programs, all golden files."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfc.formula.expr import PRIMITIVES, Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var, text
from tfc.ir.formats import FITTERS, FORMATS, Fit, Format
from tfc.ir.ops import OPS
from tfc.ir.program import Init, Input, Param, Precision, Program, Value
from tfc.ir.scan import Cursor
from tfc.ir.text import line, parse, show
from tfc.ir.types import Dim, DType, IRError, Size, TensorType
from tfc.ir.verify import verify
from tfc.passes.pipeline import run
from tfc.testing.programs import programs

GOLDEN = Path(__file__).parents[1] / "golden"
B, T = Dim.named("B"), Dim.named("T")

NAMES = {"s": Kind.REAL, "h": Kind.INT, "pos": Kind.INT, "row.mean": Kind.REAL}
LEAVES = st.one_of(
    st.builds(Const, st.one_of(st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False))),
    st.sampled_from([Var(n, k) for n, k in NAMES.items()]),
    st.builds(Token, st.sampled_from(["q", "k"])),
    st.builds(Load, st.integers(0, 12), st.sampled_from(["q", "k"]), st.just(Kind.REAL)),
    st.just(Var("row.mean", Kind.REAL)),
)


def _nodes(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    """Every node over others, whether its kinds make sense or not."""
    applied = st.sampled_from(sorted(PRIMITIVES)).flatmap(
        lambda fn: st.builds(Apply, st.just(fn), st.tuples(*[inner] * PRIMITIVES[fn].arity))
    )
    many = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        applied,
        applied,
        st.builds(Read, st.integers(0, 12), many, st.just(Kind.REAL)),
        st.builds(Load, st.integers(0, 12), st.sampled_from(["q", "k"]), st.just(Kind.REAL), many),
        st.builds(Reduce, st.sampled_from(["sum", "max"]), st.sampled_from([("i",), ("i", "j")]), inner),
    )


@given(expr=st.recursive(LEAVES, _nodes, max_leaves=12))
def test_formulas_come_back(expr: Expr):
    """So different formulas have different texts: brackets, signs of literals and of negations, `^` to the right."""
    at = Cursor(text(expr))
    assert at.formula(NAMES) == expr
    assert at.now.kind == "end"


@given(program=programs(precision=Precision(DType.F32, DType.BF16, DType.F32)))
def test_drawn_programs_come_back(program: Program):
    """Before the passes and after them."""
    assert parse(show(program)) == program
    after = run(program).program
    assert parse(show(after)) == after


SIZES: st.SearchStrategy[Size] = st.recursive(
    st.one_of(st.integers(0, 9), st.sampled_from([B, T, Dim.named("M")])),
    lambda s: st.builds(lambda a, b, minus: a - b if minus else a * b, s, s, st.booleans()),
    max_leaves=5,
)


@given(size=SIZES)
def test_sizes_come_back(size: Size):
    at = Cursor(str(size))
    assert at.size() == size
    assert at.now.kind == "end"


def test_every_part_of_a_program_comes_back():
    """What the drawn programs lack: a doc, defaults of inputs, all ways to start, frozen parameters, odd numbers."""
    x = Value("x.1", TensorType((B, 2 * T + 1), DType.F64))
    lengths = Value("lengths", TensorType((B,), DType.I32))
    inits = [Init("zeros"), Init("normal", 0.02), Init("constant", -float("inf")), Init("table", table=(1e-300, -2.0))]
    inits += [
        Init("uniform", -0.5, high=2.0),
        Init("uniform", 0.0, high=1.0),
        Init("uniform", -1.0),
        Init("orthogonal", 1.0),
    ]
    params = tuple(
        Param(f"p{n}.weight", Value(f"p{n}", TensorType((2, 2), DType.F16)), init, trained=bool(n % 2))
        for n, init in enumerate([*inits, Init("glorot"), Init("packed")])
    )
    every = [Format(f.name, _chosen(f.settings)) for f in FORMATS.values() if f.rounds]
    fits = [Fit(f.name, _chosen(f.settings)) for f in FITTERS.values()]
    params += tuple(
        replace(params[-1], path=f"q{n}", value=Value(f"q{n}", params[-1].value.type), format=format, fit=fit)
        for n, (format, fit) in enumerate(
            [(f, None) for f in every] + [(None, f) for f in fits] + [(every[0], fits[3])]
        )
    )
    params += (
        replace(params[-1], path="layer.experts.w", value=Value("w", params[-1].value.type), repeats=(("layer", 2),)),
    )
    program = Program(
        "all", (Input(x), Input(lengths, T)), params, (), (x, lengths), doc='a "doc"\nwith é and # and \\',
        reports=(("layer.balance", x), ("n", lengths)),
    )  # fmt: skip
    assert parse(show(program)) == program


def _chosen(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A value for every setting, every other one at its default."""
    other = {bool: False, int: 3, float: 0.25, str: "row"}
    kinds = {k: v if isinstance(v, type) else type(v) for k, v in settings.items()}
    return tuple(
        (k, other[kinds[k]] if n % 2 or isinstance(v, type) else v) for n, (k, v) in enumerate(settings.items())
    )


SHOWN = {
    "constant": "%y: f32[] = constant(value=0.5, dtype=f32)",
    "elementwise": "%y: f32[B, 4] = mul %x, %x",
    "reduction": "%y: f32[B, 1] = reduction(fn=mean) %x",
    "index": (
        "%y: f32[B, 4] = "
        "index(axes=[b: B, c: 4], reduced=[d: 4], lengths=[n: 2 * T], expr=sum[d]($0[b, d] * $1[c] / n)) %x, %u"
    ),
    "take": "%y: f32[B, 4] = take %x, %n",
    "linear": "%y: f32[B, 6] = linear %x, %w",
    "reshape": "%y: f32[2 * B, 2] = reshape(shape=[2 * B, 2]) %x",
    "slice": "%y: f32[B, T - 1, 2, 4] = slice(start=1, size=T - 1, axis=1) %q",
    "concat": "%y: f32[B, 2 * T, 2, 4] = concat(axis=1) %q, %q",
    "cast": "%y: bf16[B, 4] = cast(dtype=bf16) %x",
    "rotate": "%y: f32[B, T, 2, 4] = rotate(angle=pos * 2 ^ (-c / 2), dims=4, pairing=interleaved, offset=B - T) %q",
    "scores": "%y: f32[B, 2, T, T] = scores(scale=0.5) %q, %q",
    "score": "%y: f32[B, 2, T, T] = score(formula=s - row.mean + sum[d]($1.q[h, d] * $1.k[h, d]) * $0[h]) %s, %u, %q",
    "masked": "%y: f32[B, 2, T, T] = masked(formula=k <= q and $0.k) %s, %r",
    "weigh": "%y: f32[B, 2, T, T], %z: f32[B, 2, T] = weigh(formula=p * row.lse) %s",
    "mix": "%y: f32[B, T, 2, 4] = mix %s, %q",
    "attention": (
        "%y: f32[B, T, 2, 4], %z: f32[B, 2, T] = "
        "attention(scale=0.5, score=s * $0[h], mask=$1.q, weigh=p * p) %q, %q, %q, %u, %r"
    ),
    "ffn": "%y: f32[B, 4] = ffn(activation=u * sigmoid(u), gated=no, biased=no) %x, %w, %v",
    "repeat": "%y: f32[B, 4] = repeat(count=2, label=layer, carries=1, remat=dots) %x",
    "recurrence": (
        "%y: f32[B, T, 2, 4], %z: f32[B, 2, 4, 4] = "
        "recurrence(scale=0.5, decay=channel, segmented=yes, normalized=yes, "
        "eps=1e-06, direction=reverse) %q, %q, %q, %q, %g"
    ),
    "top": "%y: int[B, T, 2, T - 1] = top(count=T - 1) %t",
    "route": "%y: f32[B, T, 2, 4] = route(count=3, label=experts) %q, %c, %m",
    "calibrated": "%y: f32[B, 4] = calibrated(path=layer.0.calibrated) %x",
    "rounded": "%y: f32[B, 4] = rounded(format=int8(group=64, symmetric=no, outliers=6.0)) %x",
    "cache_read": "%y: f32[B, 9, T, T] = cache_read %k, %j",
    "cache_write": "%y: f32[3, B, 9, T, T] = cache_write %k, %s, %j, %n, %n",
    "function": "%y: int[4] = function(fn=apportion, settings=[total=8]) %u",
    "norm": (
        "%y: bf16[B, 4], %z: f32[B, 4] = norm(centered=yes, eps=1e-05, residual=yes, scaled=yes, biased=yes, "
        "keeps=yes, reduce=f64, dtype=bf16) %x, %x, %u, %u"
    ),
    "dropout": "%y: f32[B, 4] = dropout(rate=0.1, path=layer.dropout) %x, %e, %j",
}
ALSO = {
    "attention": (
        "%y: f32[B, T, 2, 4], %z: f32[B, 2, T] = "
        "attention(scale=0.5, score=s * $0[h], dropout=0.1, site=look.dropout, turns=1) %q, %q, %q, %u, %e, %j"
    ),
    "recurrence": (
        "%y: f32[B, T, 2, 4], %z: f32[B, 2, 4, 4] = recurrence(initial=yes) %q, %q, %q, %o"  # from the first token on
    ),
}
HEAD = (
    "program p(%x: f32[B, 4], %n: int[B], %u: f32[4], %w: f32[4, 6], %v: f32[6, 4], "
    "%q: f32[B, T, 2, 4], %s: f32[B, 2, T, T], %r: bool[B, T], %g: int[B, T], %t: f32[B, T, 2, T], %c: int[B, T, 2], "
    "%m: f32[B, T, 2], %j: int[], %k: f32[3, B, 9, T, T], %o: f32[B, 2, 4, 4], %e: int[2]) {\n"
)
BODY = """
    program layer(%i: int[], %x: f32[B, 4]) {
      return %x
    }"""
COPY = BODY.replace("layer", "experts").replace("f32[B, 4]", "f32[B, T, 2, 4]")


@pytest.mark.parametrize(("name", "shown"), [*sorted(SHOWN.items()), *ALSO.items()])
def test_each_operation_reads_as_it_is_written(name: str, shown: str):
    body = {"repeat": BODY, "route": COPY}.get(name, "")
    source = f"{HEAD}  {shown}{body}\n  return %y\n}}\n"
    program = parse(source)
    verify(program)
    (eqn,) = program.eqns
    assert eqn.op.name == name
    assert line(eqn) == shown
    assert show(program) == source


def test_every_attribute_is_shown():
    """Each attribute of each operation occurs in a line above, so none is lost in the text."""
    for name, cls in OPS.items():
        for attribute in fields(cls):
            if name != "elementwise" and attribute.name != "body":
                assert f"{attribute.name}=" in SHOWN[name] + ALSO.get(name, "")


def test_comments_and_layout_mean_nothing():
    a = parse("program p(%x: f32[B]) { return %x }")
    b = parse("# one\nprogram p(\n  %x: f32[B]  # two\n) {\n\n return\n%x }\n# three")
    assert a == b


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("passes/**/*.txt")), ids=lambda f: f.stem)
def test_golden_files_come_back(file: Path):
    program = parse(file.read_text(encoding="utf-8"))
    verify(program)
    assert parse(show(program)) == program


FAULTS = {
    "line 1: `program` expected, not `module`": "module p",
    "line 2: %y is not bound above": "program p(%x: f32[B]) {\n  return %y\n}",
    "line 2: `frobnicate` is no operation": "program p(%x: f32[B]) {\n  %y: f32[B] = frobnicate %x\n  return %y\n}",
    "line 2: cast has no attribute `to`": "program p(%x: f32[B]) {\n  %y: f32[B] = cast(to=bf16) %x\n  return %y\n}",
    "line 2: `f8` is no element type": "program p(%x: f32[B]) {\n  %y: f8[B] = abs %x\n  return %y\n}",
    "line 1: '~~' is no part": "~~",
    "line 2: slice:": "program p(%x: f32[4]) {\n  %y: f32[2] = slice(start=1) %x\n  return %y\n}",
    "line 2: a whole number expected, not `0.5`": (
        "program p(%x: f32[4]) {\n  %y: f32[2] = slice(start=0.5, size=1) %x\n  return %y\n}"
    ),
    "line 2: `int3` is no format": "program p() {\n  %w: f32[4] = param w ones as int3\n  return %w\n}",
    "line 2: int4 has no setting `bits`": "program p() {\n  %w: f32[4] = param w ones as int4(bits=3)\n  return %w\n}",
    "line 2: nm needs its setting `m`": "program p() {\n  %w: f32[4] = param w ones as nm(n=2)\n  return %w\n}",
    "line 2: `guess` is no fitting procedure": "program p() {\n  %w: f32[4] = param w ones fit guess\n  return %w\n}",
    "line 2: uniform of 3 numbers": "program p() {\n  %w: f32[4] = param w uniform(1, 2, 3)\n  return %w\n}",
    "line 3: %y is not bound above": "program p(%x: f32[4]) {\n\n  report a.b = %y\n  return %x\n}",
    "line 2: `j` means nothing in this formula": (
        "program p(%x: f32[4]) {\n  %y: f32[4] = index(axes=[i: 4], expr=$0[j]) %x\n  return %y\n}"
    ),
    "line 2: slot $1 of 1 operands": (
        "program p(%x: f32[4]) {\n  %y: f32[4] = index(axes=[i: 4], expr=$1[i]) %x\n  return %y\n}"
    ),
    "line 2: `gelu` is no primitive": (
        "program p(%x: f32[4]) {\n  %y: f32[4] = index(axes=[i: 4], expr=gelu($0[i])) %x\n  return %y\n}"
    ),
    "line 3: the end expected, not `program`": "program p(%x: f32[B]) {\n  return %x }\nprogram",
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_is_no_program_is_refused_with_its_line(message: str):
    with pytest.raises(IRError) as e:
        parse(FAULTS[message])
    assert message in str(e.value)
