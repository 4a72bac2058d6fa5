"""Each invariant, by a program that breaks it: the message, and the equations around the fault."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given

from tfc.formula.expr import Apply, Expr, Field, Kind, Load, Var
from tfc.ir.formats import Fit, Format
from tfc.ir.ops import OPS, Attention, Calibrated, Constant, Dropout, Elementwise, Op, Repeat, Rounded, Score
from tfc.ir.program import Eqn, Init, Param, Program, Value
from tfc.ir.text import parse
from tfc.ir.types import DType, IRError
from tfc.ir.verify import ARITY, verify
from tfc.testing.programs import LENGTHS, programs

INPUTS = "%x: f32[B, 4], %n: int[B], %w: f32[4, 4], %q: f32[B, T, 2, 4], %s: f32[B, 2, T, T], %r: bool[B, T]"
INPUTS += ", %tokens: f32[B, T, 4], %c: int[B, T, 2], %d: f32[B, T, 2]"
PASS = "program layer(%i: int[], %x: f32[B, 4]) { return %x }"


def program(*lines: str, inputs: str = INPUTS, result: str = "%x") -> Program:
    return parse("\n".join([f"program p({inputs}) {{", *lines, f"return {result}", "}"]))


def loop(body: str = PASS, attributes: str = "count=2, label=layer, carries=1", args: str = "%x") -> str:
    return f"%y: f32[B, 4] = repeat({attributes}) {args} {body}"


COPY = "program experts(%i: int[], %x: f32[B, T, 4]) { return %x }"


def route(body: str = COPY, attributes: str = "count=2, label=experts", args: str = "%tokens, %c, %d") -> str:
    return f"%y: f32[B, T, 4] = route({attributes}) {args} {body}"


def starting(line: str) -> str:
    """The body with an equation or parameter more."""
    return PASS.replace("{", "{ " + line)


WRITTEN: dict[str, tuple[str, ...]] = {
    # names
    "%y is bound twice in p": ("%y: f32[B, 4] = abs %x", "%y: f32[B, 4] = abs %x"),
    "%x is bound twice in p": ("%x: f32[B, 4] = abs %x",),
    "%x is bound twice in layer": (loop(starting("%x: f32[B, 4] = abs %x")),),
    # types
    "linear does not take 1 operands": ("%y: f32[B, 4] = linear %x",),
    "mul does not take 1 operands": ("%y: f32[B, 4] = mul %x",),
    "abs gives f32[B, 4], bound as f32[B, 5]": ("%y: f32[B, 5] = abs %x",),
    "weigh gives f32[B, 2, T, T], f32[B, 2, T], bound as f32[B, 2, T, T]": ("%y: f32[B, 2, T, T] = weigh %s",),
    "linear: f32[B, 4] by int[B]": ("%y: f32[B, 4] = linear %x, %n",),
    "neg of bool[B, T]: `neg` takes numbers": ("%y: bool[B, T] = neg %r",),
    "mix of f32[B, 4], f32[B, T, 2, 4]": ("%y: f32[B, 4] = mix %x, %q",),
    "%y: f32[B, -1] has a negative size": ("%y: f32[B, -1] = index(axes=[b: B, c: -1], expr=$0[b, c]) %x",),
    "slice 0..-1 of f32[B, 4]": ("%y: f32[B, -1] = slice(start=0, size=-1) %x",),
    "slice: f32[B, 4] has no axis 2": ("%y: f32[B, 4] = slice(start=0, size=4, axis=2) %x",),
    "top 5 of f32[B, 4]": ("%y: int[B, 5] = top(count=5) %x",),
    "calibrated: int[B] is not real": ("%y: int[B] = calibrated(path=a) %n",),
    "calibrated a: the path is taken": (
        "%y: f32[B, 4] = calibrated(path=a) %x",
        "%z: f32[B, 4] = calibrated(path=a) %x",
    ),
    "calibrated b: the path is taken": ("%u: f32[4] = param b ones", "%y: f32[B, 4] = calibrated(path=b) %x"),
    "rounded: f32[B, 4] to low_rank": ("%y: f32[B, 4] = rounded(format=low_rank(rank=2)) %x",),
    "function: apportion with the settings ['heads'], not ['total']": (
        "%u: f32[4] = param a.w ones",
        "%y: int[4] = function(fn=apportion, settings=[heads=8]) %u",
    ),
    "function: apportion: total = 0.5 is no int": (
        "%u: f32[4] = param a.w ones",
        "%y: int[4] = function(fn=apportion, settings=[total=0.5]) %u",
    ),
    "`guess` is no registered function": ("%y: int[4] = function(fn=guess) %x",),
    "norm: 2 operands, x and scale and bias expected": (
        "%y: f32[B, 4] = norm(centered=no, eps=0.1, scaled=yes, biased=yes) %x, %x",
    ),
    "norm of f32[B, 4] in bf16, as f32": ("%y: f32[B, 4] = norm(centered=no, eps=0.1, reduce=bf16) %x",),
    "norm of f32[B, 4] in f32, as int": ("%y: int[B, 4] = norm(centered=no, eps=0.1, dtype=int) %x",),
    "norm of int[B]": ("%y: f32[B] = norm(centered=no, eps=0.1) %n",),
    "norm: without a residual x is the sum": (
        "%y: f32[B, 4], %z: f32[B, 4] = norm(centered=no, eps=0.1, keeps=yes) %x",
    ),
    "norm: residual f32[4, 4] does not fit x": ("%y: f32[B, 4] = norm(centered=no, eps=0.1, residual=yes) %x, %w",),
    "norm: scale f32[B, 4] does not fit x": ("%y: f32[B, 4] = norm(centered=no, eps=0.1, scaled=yes) %x, %x",),
    "recurrence: decay soft": ("%y: f32[B, T, 2, 4], %z: f32[B, 2, 4, 4] = recurrence(decay=soft) %q, %q, %q",),
    "recurrence: a decay f32[B, 4] per token": (
        "%y: f32[B, T, 2, 4], %z: f32[B, 2, 4, 4] = recurrence(decay=token) %q, %q, %q, %x",
    ),
    "%y: f32[M, 4] uses the length ['M'], which no input's shape has": (
        "%y: f32[M, 4] = index(axes=[m: M, c: 4], expr=$0[m, c]) %x",
    ),
    "constant: 0.5 is no int": ("%y: int[] = constant(value=0.5, dtype=int)",),
    "constant: True is no f32": ("%y: f32[] = constant(value=yes, dtype=f32)",),
    "constant: 1 is no bool": ("%y: bool[] = constant(value=1, dtype=bool)",),
    # formulas
    "masked: q - k is integer, a boolean is asked for": ("%y: f32[B, 2, T, T] = masked(formula=q - k) %s",),
    "score: k <= q is boolean, a number is asked for": ("%y: f32[B, 2, T, T] = score(formula=k <= q) %s",),
    "score: `and` takes booleans; `q` is integer": ("%y: f32[B, 2, T, T] = score(formula=q and k) %s",),
    "score: $0.k reads int[B], the tokens are": ("%y: f32[B, 2, T, T] = score(formula=s * $0.k) %s, %n",),
    "score: $0[h] reads bool[B, T]": ("%y: f32[B, 2, T, T] = score(formula=if($0[h], s, 0.0)) %s, %r",),
    "score: nothing tells how far the index `d` goes": ("%y: f32[B, 2, T, T] = score(formula=sum[d](s)) %s",),
    "score: `median` is no reduction": ("%y: f32[B, 2, T, T] = score(formula=median[d]($0.q[h, d])) %s, %q",),
    "score: `inf` is no name for an index": ("%y: f32[B, 2, T, T] = score(formula=sum[inf]($0.q[h, 0])) %s, %q",),
    "ffn: sum[d](u) where nothing is reduced": (
        "%y: f32[B, 4] = ffn(activation=sum[d](u), gated=no, biased=no) %x, %w, %w",
    ),
    "ffn: q stands for a token, and there is none": (
        "%y: f32[B, 4] = ffn(activation=u * q, gated=no, biased=no) %x, %w, %w",
    ),
    "ffn: `g` means nothing in g": ("%y: f32[B, 4] = ffn(activation=g, gated=no, biased=no) %x, %w, %w",),
    "index: `median` is no reduction": (
        "%y: f32[B] = index(axes=[b: B], reduced=[c: 4], expr=median[c]($0[b, c])) %x",
    ),
    "index: ['c'] is reduced within its own reduction": (
        "%y: f32[B] = index(axes=[b: B], reduced=[c: 4], expr=sum[c]($0[b, c] * sum[c]($0[b, c]))) %x",
    ),
    "index: the expression reduces [], the equation ['c']": (
        "%y: f32[B] = index(axes=[b: B], reduced=[c: 4], expr=$0[b, 0]) %x",
    ),
    "index: ['c'] is used outside its reduction": (
        "%y: f32[B] = index(axes=[b: B], reduced=[c: 4], expr=$0[b, c] + sum[c]($0[b, c])) %x",
    ),
    "index: ['b', 'b'] has an index twice": ("%y: f32[B, B] = index(axes=[b: B, b: B], expr=$0[b, 0]) %x",),
    "index: `yes` is no name for an index": ("%y: f32[B] = index(axes=[yes: B], expr=$0[0, 0]) %x",),
    # parameters
    "parameter a.w occurs 2 times": ("%u: f32[4] = param a.w ones", loop(starting("%u: f32[4] = param a.w ones"))),
    "parameter a.w.b lies inside parameter a.w": ("%u: f32[4] = param a.w ones", "%v: f32[4] = param a.w.b ones"),
    "parameter a.w: f32[B] is not a shape of numbers": ("%u: f32[B] = param a.w ones",),
    "parameter a.w: `cauchy` is no way to start": ("%u: f32[4] = param a.w cauchy",),
    "parameter a.w: uniform from 1.0 to 0.0": ("%u: f32[4] = param a.w uniform(1.0)",),
    "parameter a.w: f32[4] has no rows": ("%u: f32[4] = param a.w orthogonal(1.0)",),
    "parameter a.w: f32[4] does not begin with its turns [3]": ("%u: f32[4] = param a.w ones each [layer: 3]",),
    "parameter a.w: kept as lora, which is made of several parameters": (
        "%u: f32[4, 4] = param a.w ones as lora(rank=2)",
    ),
    "parameter a.w: int[4] kept as int8": ("%u: int[4] = param a.w ones frozen as int8",),
    "parameter a.w: mx with group = 0": ("%u: f32[4] = param a.w ones as mx(group=0)",),
    "parameter a.w: fp8 has no variant `e1m6`, only e4m3, e5m2": ("%u: f32[4] = param a.w ones as fp8(variant=e1m6)",),
    "parameter a.w: int8 has no per `head`": ("%u: f32[4] = param a.w ones as int8(per=head)",),
    "parameter a.w: nm(n=3, m=2) keeps more than there are": ("%u: f32[4] = param a.w ones as nm(n=3, m=2)",),
    "parameter a.w: int8: group = True is no int": ("%u: f32[4] = param a.w ones as int8(group=yes)",),
    "parameter a.w: kmeans: rounds = 0.5 is no int": ("%u: f32[4] = param a.w ones fit kmeans(rounds=0.5)",),
    # reports
    "a.b is reported twice in p": ("report a.b = %x", "report a.b = %n"),
    "parameter a.w: int[4] cannot be trained": ("%u: int[4] = param a.w ones",),
    "parameter a.w: a table of 2 numbers for f32[2, 2]": ("%u: f32[2, 2] = param a.w table([0.5, 1.0])",),
    # repeats
    "repeat: the body takes ['f32[B, 4]'], not ['bool[B, T]']": (loop(args="%r"),),
    "repeat: the index is f32[]": (loop(PASS.replace("int[]", "f32[]")),),
    "repeat: carries ['f32[B, 4]'] change type": (
        loop(starting("%y: bf16[B, 4] = cast(dtype=bf16) %x").replace("return %x", "return %y")),
    ),
    "repeat: -1 turns": (loop(attributes="count=-1, label=layer, carries=1"),),
    "repeat: a body of 2 inputs for 2 carries": (loop(attributes="count=2, label=layer, carries=2"),),
    "repeat: 1 results of the body for 0 carries": (loop(attributes="count=2, label=layer, carries=0"),),
    "repeat: an input of the body has a default": (
        loop(PASS.replace("f32[B, 4])", "f32[B, 4], %l: int[B] = T)"), args="%x, %n"),
    ),
    "repeat gives f32[B, 4], f32[2, B, 4], bound as f32[B, 4]": (loop(starting("report layer.x = %x")),),
    # routes
    "route: 0 copies": (route(attributes="count=0, label=experts"),),
    "route: choices f32[B, T, 2] do not fit the tokens": (route(args="%tokens, %d, %d"),),
    "route: weights int[B, T, 2] do not fit the choices": (route(args="%tokens, %c, %c"),),
    "route: the body takes ['f32[B, T, 4]'], not ['f32[B, T, 4]', 'int[B]']": (route(args="%tokens, %c, %d, %n"),),
    "route: the body gives ['f32[T, B, 4]'] for the tokens": (
        route(COPY.replace("{", "{ %y: f32[T, B, 4] = reshape(shape=[T, B, 4]) %x").replace("return %x", "return %y")),
    ),
    "route: a report within": (route(COPY.replace("{", "{ report experts.x = %x")),),
    "route: an input of the body has a default": (route(COPY.replace("f32[B, T, 4])", "int[B, T, 4] = T)")),),
    "%x is bound twice in experts": (route(COPY.replace("{", "{ %x: f32[B, T, 4] = abs %x")),),
    "parameter b.w occurs 2 times": (
        "%u: f32[4] = param b.w ones",
        route(COPY.replace("{", "{ %u: f32[4] = param b.w ones")),
    ),
}
"""What breaks an invariant and can be written down as text."""


def value(name: str) -> Value:
    return next(i.value for i in program().inputs if i.value.name == name)


def bound(op: Op, *args: Value, name: str = "y") -> Program:
    """The inputs, and one equation that binds a value of its first operand's type."""
    return replace(program(), eqns=(Eqn((replace(args[0], name=name),), op, args),))


def scored(formula: Expr) -> Program:
    return bound(Score(formula=formula), value("s"), value("r"))


def without_params() -> Program:
    """A body that reads a value of the program around it."""
    made = program(loop(starting("%w: f32[4] = param m.w ones").replace("return", "%y: f32[B, 4] = mul %x, %w return")))
    (eqn,) = made.eqns
    assert isinstance(eqn.op, Repeat)
    return replace(made, eqns=(replace(eqn, op=replace(eqn.op, body=replace(eqn.op.body, params=()))),))


class Other(Op):
    name = "other"


MADE: dict[str, Callable[[], Program]] = {
    "`a..b` is no name for a value": lambda: bound(Elementwise(fn="abs"), value("x"), name="a..b"),
    "`a b` is no name for a program": lambda: replace(program(), name="a b"),
    "%z is used before it is bound": lambda: bound(Elementwise(fn="abs"), replace(value("x"), name="z")),
    "%w is used before it is bound": without_params,
    "%x is used as bool[B, T] and bound as f32[B, 4]": lambda: bound(
        Elementwise(fn="not"), replace(value("r"), name="x")
    ),
    "result of p: %z is used before it is bound": lambda: replace(program(), results=(replace(value("x"), name="z"),)),
    "report a: %z is used before it is bound": lambda: replace(
        program(), reports=(("a", replace(value("x"), name="z")),)
    ),
    "`a b` is no path for a report": lambda: replace(program(), reports=(("a b", value("x")),)),
    "calibrated: `a b` is no path": lambda: bound(Calibrated(path="a b"), value("x")),
    "dropout: `a b` is no path": lambda: bound(Dropout(rate=0.1, path="a b"), value("x")),
    "dropout of 1.0 of f32[B, 4]; 0 or more, and below 1": lambda: bound(Dropout(rate=1.0, path="a"), value("x")),
    "dropout: a seed bool[B, T], not int[2]": lambda: bound(Dropout(rate=0.1, path="a"), value("x"), value("r")),
    "attention: dropout of 0.1 with the path ``": lambda: bound(Attention(scale=1.0, dropout=0.1), value("x")),
    "attention: dropout of 0.0 with the path `a`": lambda: bound(Attention(scale=1.0, site="a"), value("x")),
    "rounded: `int3` is no format": lambda: bound(Rounded(format=Format("int3")), value("x")),
    "rounded: int8 with the settings [], not ['group'": lambda: bound(Rounded(format=Format("int8")), value("x")),
    "p has no results": lambda: replace(program(), results=()),
    "Other is no operation of the IR": lambda: bound(Other(), value("x")),
    "`gelu` is no primitive": lambda: bound(Elementwise(fn="gelu"), value("x")),
    "score: `gelu` is no primitive": lambda: scored(Apply("gelu", ())),
    "a constant that is not a number": lambda: replace(
        program(), eqns=(Eqn((Value("y", value("x").type),), Constant(value=float("nan"), dtype=DType.F32), ()),)
    ),
    "score: q.segment is a field": lambda: scored(Field("q", "segment")),
    "parameter a.w: `int3` is no format": lambda: replace(
        program(), params=(Param("a.w", Value("u", value("w").type), Init("ones"), format=Format("int3")),)
    ),
    "parameter a.w: `guess` fits nothing": lambda: replace(
        program(), params=(Param("a.w", Value("u", value("w").type), Init("ones"), fit=Fit("guess")),)
    ),
    "score: `t` means nothing in t": lambda: scored(Var("t", Kind.REAL)),
    "score: `s` is real, not integer": lambda: scored(Var("s", Kind.INT)),
    "score: slot $1 of 1 operands": lambda: scored(Load(1, "k", Kind.REAL)),
    "score: $0.k is real, its operand bool[B, T]": lambda: scored(Load(0, "k", Kind.REAL)),
    "input %m: a default is a length, the input is f32[B]": lambda: program(inputs="%m: f32[B] = B, %x: f32[B]"),
    "%m: int[M] uses the length ['M']": lambda: program(inputs="%m: int[B] = M, %x: f32[B]"),
}
"""What breaks an invariant and cannot be read from a text, or needs other inputs."""


@pytest.mark.parametrize("message", [*WRITTEN, *MADE])
def test_each_invariant_has_its_message(message: str):
    broken = MADE[message]() if message in MADE else program(*WRITTEN[message])
    with pytest.raises(IRError) as e:
        verify(broken)
    assert message in str(e.value)


def test_the_inputs_alone_are_a_program():
    """So each fault above is the fault."""
    verify(program())
    verify(program(loop()))
    verify(program(route()))


def test_the_equations_around_are_shown():
    lines = [f"%y{n}: f32[B, 4] = abs %{'x' if n == 0 else f'y{n - 1}'}" for n in range(9)]
    lines[5] = lines[5].replace("abs", "mul")
    with pytest.raises(IRError) as e:
        verify(program(*lines), after="some-pass")
    assert str(e.value) == (
        "after some-pass: mul does not take 1 operands\n"
        "in p:\n"
        "  %y2: f32[B, 4] = abs %y1\n"
        "  %y3: f32[B, 4] = abs %y2\n"
        "  %y4: f32[B, 4] = abs %y3\n"
        "> %y5: f32[B, 4] = mul %y4\n"
        "  %y6: f32[B, 4] = abs %y5\n"
        "  %y7: f32[B, 4] = abs %y6\n"
        "  %y8: f32[B, 4] = abs %y7"
    )


def test_a_fault_in_a_body_is_shown_with_the_loop():
    with pytest.raises(IRError) as e:
        verify(program(loop(starting("%y: f32[B, 5] = abs %x"))))
    assert "in layer:\n> %y: f32[B, 5] = abs %x\nin p:\n> %y: f32[B, 4] = repeat(" in str(e.value)


def test_every_operation_has_an_arity():
    assert ARITY.keys() | {"elementwise"} == OPS.keys()


@given(program=programs())
def test_drawn_programs_are_programs(program: Program):
    """With named lengths, and with numbers for them."""
    verify(program)
    verify(program.bind(LENGTHS))
