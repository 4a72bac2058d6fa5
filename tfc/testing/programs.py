"""Strategies that draw whole IR programs: the shapes that passes look for, their near misses, and what lies between.

Every drawn program verifies. Sizes are small, values stay moderate (bounded activations, no division but by the root
of a variance), so two exact forms of one program agree to rounding in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var
from tfc.ir.formats import FORMATS, Fit, Format
from tfc.ir.ops import (
    ArrayFunction,
    Attention,
    Calibrated,
    Cast,
    Concat,
    Constant,
    Elementwise,
    FeedForward,
    Index,
    Linear,
    Masked,
    Mix,
    Op,
    P,
    Recurrence,
    Reduction,
    Repeat,
    Reshape,
    Rotate,
    Rounded,
    Route,
    S,
    Score,
    Scores,
    Slice,
    Take,
    Top,
    Weigh,
)
from tfc.ir.program import Eqn, Init, Input, Param, Precision, Program, Value
from tfc.ir.types import Dim, DType, Size, TensorType

__all__ = ["LENGTHS", "programs"]

LENGTHS = {"B": 2, "T": 3}
"""The named lengths of every drawn program, and numbers for them."""

B, T = Dim.named("B"), Dim.named("T")
F32, I32, BOOL = DType.F32, DType.I32, DType.BOOL
C, HEADS = 4, 2
Q, K, H = Token("q"), Token("k"), Var("h", Kind.INT)
CAUSAL = Apply("le", (K, Q))
WIDE = (B, T, C)
COPIES = 3
ROWS = 5  # of tables; token ids are below


def _format(name: str, **given: bool | int | float | str) -> Format:
    """The format with its defaults filled in."""
    settings = {k: given.get(k, v) for k, v in FORMATS[name].settings.items()}
    return Format(name, tuple((k, v) for k, v in settings.items() if not isinstance(v, type)))


_WEIGHTS = (_format("int8"), _format("int4", group=2), _format("nm", n=1, m=2), _format("binary"))
_VALUES = (_format("fp8"), _format("mx", variant="e4m3", group=2), _format("ternary", per="row"))


class _Builder:
    """A program in the making. `values` are those of type f32[B, T, C], which steps read and add to."""

    def __init__(self, draw: st.DrawFn, prefix: str, inputs: Sequence[Value]) -> None:
        self.draw, self.prefix = draw, prefix
        self.inputs = inputs
        self.params: list[Param] = []
        self.eqns: list[Eqn] = []
        self.reports: list[tuple[str, Value]] = []
        self.taken = {v.name for v in inputs}
        self.values = [v for v in inputs if v.type.shape == WIDE]

    def name(self, hint: str) -> str:
        n = 1
        while (name := hint if n == 1 else f"{hint}_{n}") in self.taken:
            n += 1
        self.taken.add(name)
        return name

    def put(self, op: Op, *args: Value, hint: str = "v") -> Value:
        """An equation; its first result."""
        outs = tuple(Value(self.name(hint), t) for t in op.infer(*(a.type for a in args)))
        self.eqns.append(Eqn(outs, op, args))
        return outs[0]

    def fn(self, fn: str, *args: Value) -> Value:
        return self.put(Elementwise(fn=fn), *args, hint=fn)

    def number(self, value: float) -> Value:
        return self.put(Constant(value=value, dtype=F32), hint="c")

    def often(self) -> bool:
        return self.draw(st.integers(0, 3)) > 0

    def seldom(self) -> bool:
        return self.draw(st.integers(0, 9)) == 9

    def pick(self) -> Value:
        """One of the values, the newest the likeliest."""
        return self.values[-1 - min(self.draw(st.integers(0, 3)), len(self.values) - 1)]

    def input(self, dtype: DType) -> Value:
        """The input of that element type with a shape that starts with B, T (every program and body has them)."""
        return next(v for v in self.inputs if v.type.dtype is dtype and v.type.shape == (B, T))

    def param(self, path: str, *shape: Size, init: str = "ones") -> Value:
        """A parameter; seldom one that is there already, seldom a frozen one."""
        alike = [p for p in self.params if p.value.type.shape == shape]
        if alike and self.seldom():
            return self.draw(st.sampled_from(alike)).value
        whole = f"{self.prefix}{self.name(path.replace('.', '_'))}.{path.rpartition('.')[2]}"
        return self.parameter(whole, *shape, init=init)

    def parameter(self, path: str, *shape: Size, init: str = "ones") -> Value:
        value = Value(self.name(path.replace(".", "_")), TensorType(shape, F32))
        started = Init("normal", 0.5) if init == "normal" else Init(init)
        format = self.draw(st.sampled_from(_WEIGHTS)) if init == "normal" and self.seldom() else None
        fit = Fit("kmeans", (("rounds", 5),)) if self.seldom() else None
        self.params.append(Param(path, value, started, not self.seldom(), format, fit))
        return value

    def linear(self, x: Value, out: int = C, bias: bool = False, path: str = "") -> Value:
        k = x.type.last
        if path and not self.seldom():
            weight = self.parameter(f"{path}.weight", k, out, init="normal")
            args = [x, weight, *([self.parameter(f"{path}.bias", out)] if bias else [])]
        else:
            weight = self.param("map.weight", k, out, init="normal")
            args = [x, weight, *([self.param("map.bias", out)] if bias else [])]
        return self.put(Linear(), *args, hint="y")

    def ends(self) -> tuple[Value, ...]:
        """Values that nothing reads, but for some."""
        read = {a for e in self.eqns for a in e.args}
        return tuple(v for v in dict.fromkeys(self.values) if v not in read and not self.seldom())

    def report(self, value: Value) -> None:
        """Now and then a value is a side output."""
        if self.seldom():
            self.reports.append((f"{self.prefix}{self.name('told')}", value))

    def program(self, name: str, results: tuple[Value, ...]) -> Program:
        return Program(
            name, tuple(map(Input, self.inputs)), tuple(self.params), tuple(self.eqns), results,
            reports=tuple(self.reports),
        )  # fmt: skip

    def leak(self, *values: Value) -> None:
        """Seldom, an inner value is read elsewhere too."""
        if self.seldom():
            self.values += [v for v in values if v.type.shape == WIDE]


def _projections(b: _Builder) -> None:
    """Maps of one value under one component, now and then a bias on some only."""
    x, place, bias = b.pick(), b.name("look"), b.often()
    for part in b.draw(st.sampled_from(["qkv", "kv", "qk"])):
        b.values.append(b.linear(x, bias=bias != b.seldom(), path=f"{b.prefix}{place}.{part}"))
    if b.seldom():  # a weight is read twice
        b.values.append(b.put(Linear(), b.pick(), b.eqns[-1].args[1], hint="y"))


def _norm(b: _Builder) -> None:
    """Layer norm or RMS norm, of a sum too, then maps of it, now and then another reader, of a statistic too."""
    x = b.fn("add", b.pick(), b.pick()) if b.often() else b.pick()
    d = b.fn("sub", x, b.put(Reduction(fn="mean"), x, hint="mean")) if b.often() else x
    var = b.put(Reduction(fn="mean"), b.fn("mul", d, d), hint="var")
    n = b.fn("mul", d, b.fn("rsqrt", b.fn("add", var, b.number(0.1))))
    scale = b.param("norm.scale", C)
    y = b.fn("mul", *((n, scale) if b.often() else (scale, n)))
    if b.often():
        y = b.fn("add", y, b.param("norm.bias", C))
    place = b.name("after")
    outs = [b.linear(y, bias=b.often(), path=f"{b.prefix}{place}.{part}") for part in "ab"[: 1 + b.seldom()]]
    b.values += outs
    if b.seldom():
        b.values.append(y)
    if not b.often():
        b.values.append(b.fn("add", x, var))


_ACTIVATIONS: dict[str, Callable[[_Builder, Value], Value]] = {
    "tanh": lambda b, u: b.fn("tanh", u),
    "silu": lambda b, u: b.fn("mul", u, b.fn("sigmoid", u)),
    "gelu": lambda b, u: b.fn("mul", u, b.fn("add", b.fn("erf", b.fn("mul", u, b.number(0.7))), b.number(1.0))),
    "none": lambda b, u: u,
}


def _ffn(b: _Builder) -> None:
    x, hidden, bias = b.pick(), b.draw(st.sampled_from([C, 8])), b.often()
    act = _ACTIVATIONS[b.draw(st.sampled_from(sorted(_ACTIVATIONS)))]
    place = b.name("feed")
    u = b.linear(x, hidden, bias, path=f"{b.prefix}{place}.up")
    h = act(b, u)
    if b.often():
        g = b.linear(b.pick() if b.seldom() else x, hidden, bias, path=f"{b.prefix}{place}.gate")
        h = b.fn("mul", h, g) if b.often() else b.fn("max", g, h)
    if b.seldom():
        h = b.fn("mul", h, b.param("gain.scale", hidden))
    b.leak(u, h)
    b.values.append(b.linear(h, C, bias != b.seldom(), path=f"{b.prefix}{place}.down"))


def _heads(b: _Builder, x: Value) -> Value:
    return b.put(Reshape(shape=(B, T, HEADS, C // HEADS)), x, hint="heads")


def _attention(b: _Builder) -> None:
    """Scores to mix, equation by equation, or fused already; formulas with and without slots."""
    q, k, v = (_heads(b, b.pick()) for _ in range(3))
    if b.often():
        angle = Apply("div", (Var("pos", Kind.INT), Apply("add", (Var("c", Kind.INT), Const(1)))))
        q, k = (b.put(Rotate(angle=angle, dims=C // HEADS), x, hint="turned") for x in (q, k))
    slope, real = b.param("slope.weight", HEADS), b.input(BOOL)
    score: tuple[Expr, list[Value]] = (S, [])
    if b.often():
        away = Apply("abs", (Apply("sub", (Q, K)),))
        tilted = (Apply("sub", (S, Apply("mul", (Read(0, (H,), Kind.REAL), away)))), [slope])
        score = tilted if b.often() else (Apply("tanh", (S,)), [])  # tanh would undo a mask before it
    masks: list[tuple[Expr, list[Value]]] = [
        (Const(True), []),
        (CAUSAL, []),
        (Apply("and", (Load(1, "k", Kind.BOOL), Apply("gt", (Read(0, (H,), Kind.REAL), Const(0.0))))), [slope, real]),
        (Apply("or", (Load(0, "k", Kind.BOOL), Apply("eq", (Q, K)))), [real]),
    ]
    mask = b.draw(st.sampled_from(masks))
    weigh = (P, []) if b.often() else (Apply("mul", (P, Read(0, (H,), Kind.REAL))), [slope])
    if b.seldom():
        b.values.append(b.put(Reshape(shape=WIDE), b.put(Attention(scale=0.5, mask=CAUSAL), q, k, v, hint="o")))
        return
    s = b.put(Scores(scale=0.5), q, k, hint="s")
    steps: list[Op] = []
    if score[0] != S:
        steps.append(Score(formula=score[0]))
    if mask[0] != Const(True):
        steps.append(Masked(formula=mask[0]))
    for step in reversed(steps) if b.seldom() else steps:
        s = b.put(step, s, *(score[1] if isinstance(step, Score) else mask[1]), hint="s")
    w = b.put(Weigh(formula=weigh[0]), s, *weigh[1], hint="w")
    lse, early = b.eqns[-1].outs[1], b.seldom()
    if early:
        b.values.append(_spread(b, lse))
    o = b.put(Mix(), w, v, hint="o")
    if early or b.seldom():
        b.values.append(_spread(b, lse))
    if b.seldom():  # the weights are read twice
        o = b.fn("add", o, b.put(Mix(), w, q, hint="o"))
    b.values.append(b.put(Reshape(shape=WIDE), o))


def _spread(b: _Builder, lse: Value) -> Value:
    """tanh of a log-sum-exp [B, H, T], as f32[B, T, 4]; -inf, where a row sees nothing, gives -1."""
    i, j, c = (Var(n, Kind.INT) for n in "btc")
    read = Read(0, (i, Apply("mod", (c, Const(HEADS))), j), Kind.REAL)
    return b.put(Index(axes=(("b", B), ("t", T), ("c", C)), expr=Apply("tanh", (read,))), lse)


def _simple(b: _Builder) -> None:
    """One equation, or two, of the other operations."""
    x, y = b.pick(), b.pick()
    half = Slice(start=b.draw(st.integers(0, C // 2)), size=C // 2)
    i, j, c, d = (Var(n, Kind.INT) for n in "btcd")
    past = Reduce("sum", ("d",), Apply("mul", (Read(0, (i, d, c), Kind.REAL), Const(0.5))))
    ops: list[Callable[[], Value]] = [
        lambda: b.fn("add", x, y),
        lambda: b.fn("mul", x, b.fn("sigmoid", y)),
        lambda: b.fn("mul", x, b.number(0.5)),
        lambda: b.fn("where", b.put(Reshape(shape=(B, T, 1)), b.input(BOOL)), x, y),
        lambda: b.fn("mul", x, b.param("gain.scale", C)),
        lambda: b.put(Concat(), b.put(half, x), b.put(half, y)),
        lambda: b.put(Take(), b.param("table.weight", ROWS, C, init="normal"), b.input(I32)),
        lambda: b.put(Index(axes=(("b", B), ("t", T), ("c", C)), reduced=(("d", T),), expr=past), x),
        lambda: b.put(Index(axes=(("b", B), ("t", T), ("c", C)), expr=Read(0, (i, j, c), Kind.REAL)), x),
        lambda: _fused_ffn(b, x),
        lambda: b.put(
            Concat(axis=1), b.put(Slice(start=1, size=T - 1, axis=1), x), b.put(Slice(start=0, size=1, axis=1), y)
        ),
        lambda: b.put(Rounded(format=b.draw(st.sampled_from(_VALUES))), b.fn("tanh", x)),
        lambda: b.fn("add", x, b.put(Reshape(shape=(B, 1, C)), _calibrated(b, y))),
        lambda: b.fn("mul", x, b.put(Cast(dtype=F32), _shares(b))),
    ]
    b.values.append(b.draw(st.sampled_from(ops))())
    b.report(b.values[-1])


def _calibrated(b: _Builder, x: Value) -> Value:
    """The largest of each channel over the tokens: a statistic."""
    i, c = Var("b", Kind.INT), Var("c", Kind.INT)
    most = Reduce("max", ("t",), Read(0, (i, Var("t", Kind.INT), c), Kind.REAL))
    found = b.put(Index(axes=(("b", B), ("c", C)), reduced=(("t", T),), expr=most), x)
    return b.put(Calibrated(path=f"{b.prefix}{b.name('statistic')}.calibrated"), b.fn("tanh", found))


def _shares(b: _Builder) -> Value:
    """Numbers that nothing but a parameter decides."""
    norms = b.fn("abs", b.param("norms.weight", C))
    return b.put(ArrayFunction(fn="apportion", settings=(("total", 7),)), norms)


def _recurrence(b: _Builder) -> None:
    """Keys, values and queries of any values; decays of their bounded functions; sums divided by their weights."""
    q, k, v = (_heads(b, b.fn("sigmoid", b.pick())) for _ in range(3))
    direction = b.draw(st.sampled_from(["causal", "causal", "reverse", "both"]))
    decay = "none" if direction == "both" else b.draw(st.sampled_from(["none", "head", "token", "channel"]))
    op = Recurrence(scale=0.5, decay=decay, segmented=b.seldom(), normalized=b.often(), eps=0.1, direction=direction)
    captured: list[Value] = []
    if decay == "head":
        captured.append(b.fn("neg", b.fn("abs", b.param("rate.weight", HEADS))))
    elif decay != "none":
        wide = _heads(b, b.fn("neg", b.fn("sigmoid", b.pick())))
        one = wide if decay == "channel" else b.put(Reduction(fn="mean"), wide)
        captured.append(one if decay == "channel" else b.put(Reshape(shape=(B, T, HEADS)), one))
    captured += [b.input(I32)] if op.segmented else []
    b.values.append(b.put(Reshape(shape=WIDE), b.put(op, q, k, v, *captured, hint="o")))


def _route(b: _Builder) -> None:
    """The tokens of a value through the two of its copies that its first channels say."""
    x = b.pick()
    copy, scores = b.name("experts"), b.put(Slice(start=0, size=COPIES), b.fn("sigmoid", b.pick()))
    chosen = b.put(Top(count=2), scores, hint="chosen")
    weight = b.put(Slice(start=0, size=2), scores)
    rest = [b.input(BOOL), b.input(I32)]
    given = [Value("i", TensorType((), I32)), *(Value(f"x{n}", v.type) for n, v in enumerate([x, *rest]))]
    inner = _Builder(b.draw, f"{b.prefix}{copy}.", given)
    for _ in range(b.draw(st.integers(1, 3))):
        b.draw(st.sampled_from((_norm, _ffn, _projections)))(inner)
    body = inner.program(copy, (inner.pick(),))
    b.values.append(b.put(Route(count=COPIES, label=copy, body=body), x, chosen, weight, *rest))


def _fused_ffn(b: _Builder, x: Value) -> Value:
    up, down = b.param("up.weight", C, 8, init="normal"), b.param("down.weight", 8, C, init="normal")
    return b.put(FeedForward(activation=Apply("tanh", (Var("u", Kind.REAL),)), gated=False, biased=False), x, up, down)


def _repeat(b: _Builder, depth: int) -> None:
    """A loop of one or two carries; one of them may be of no use."""
    carries = [b.pick() for _ in range(b.draw(st.integers(1, 2)))]
    invariants = [b.input(BOOL), b.input(I32), *([b.pick()] if b.often() else [])]
    label = b.name("layer")
    given = [Value("i", TensorType((), I32)), *(Value(f"x{n}", v.type) for n, v in enumerate([*carries, *invariants]))]
    inner = _Builder(b.draw, f"{b.prefix}{label}.", given)
    _steps(inner, depth - 1)
    ends = inner.ends()
    results = tuple(ends[n] if n < len(ends) else inner.pick() for n in range(len(carries)))
    body = inner.program(label, results)
    op = Repeat(count=b.draw(st.integers(1, 2)), label=label, carries=len(carries), body=body)
    b.put(op, *carries, *invariants, hint="x")
    outs = b.eqns[-1].outs
    b.values += outs[: len(carries)] if b.often() else outs[:1]
    stacked = zip(body.reports, outs[len(carries) :], strict=True)
    b.reports += [(path, out) for (path, _), out in stacked if b.often()]


_STEPS = (_projections, _norm, _ffn, _attention, _simple, _recurrence)


def _steps(b: _Builder, depth: int) -> None:
    for _ in range(b.draw(st.integers(1, 5))):
        if depth and b.draw(st.booleans()):
            _route(b) if b.draw(st.integers(0, 3)) == 3 else _repeat(b, depth)
        else:
            b.draw(st.sampled_from(_STEPS))(b)


@st.composite
def programs(draw: st.DrawFn, *, depth: int = 2, precision: Precision = Precision()) -> Program:  # noqa: B008
    """A program of f32[B, T, 4] and bool[B, T] inputs and token ids below 5, with loops nested to `depth`.

    precision: what it asks for, bodies too; its parameters are f32.
    """
    given = [
        Value("x", TensorType(WIDE, F32)),
        Value("real", TensorType((B, T), BOOL)),
        Value("ids", TensorType((B, T), I32)),
    ]
    b = _Builder(draw, "", given)
    _steps(b, depth)
    results = b.ends() or (b.values[-1],)
    return _asking(b.program("drawn", results), precision)


def _asking(program: Program, precision: Precision) -> Program:
    eqns = tuple(
        replace(e, op=replace(e.op, body=_asking(e.op.body, precision))) if isinstance(e.op, Repeat | Route) else e
        for e in program.eqns
    )
    return replace(program, eqns=eqns, precision=precision)
