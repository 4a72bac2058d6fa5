"""Formula trees: the language of masks, scores, weights, positions, features, decays and index equations.

A formula is a small expression tree. Five readers give it meaning: `scalar.py` (plain Python, the referee),
the reference on dense arrays, a kernel on a tile, `interval.py` on intervals, and `derive.py` symbolically.
A formula in an operation is static; arrays enter through numbered slots, bound to the equation's operands
in order: `Load` reads a slot's value of one token, `Read` reads a table by integer indices.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import ClassVar, Literal

from tfc.record import record

__all__ = [
    "INFIX",
    "PRIMITIVES",
    "Apply",
    "Const",
    "Expr",
    "Field",
    "FormulaError",
    "Kind",
    "Load",
    "Primitive",
    "Read",
    "Reduce",
    "Side",
    "Token",
    "Var",
    "apply",
    "conjuncts",
    "kind_of",
    "rewrite",
    "sides",
    "slots",
    "substitute",
    "text",
    "walk",
]

Side = Literal["q", "k"]


class FormulaError(Exception):
    """A formula that has no meaning; the front half turns it into a diagnostic before a user sees it."""


class Kind(Enum):
    """What a formula's value is."""

    BOOL = "boolean"
    INT = "integer"
    REAL = "real"

    def __str__(self) -> str:
        return self.value


@record(frozen=True, slots=True)
class Expr:
    """A node. Equality is structural; nodes hold no spans."""

    def __str__(self) -> str:
        return text(self)


@record(frozen=True, slots=True)
class Const(Expr):
    """A literal; its Python type is its kind (bool, int, float; `inf` and `-inf` are floats)."""

    value: bool | int | float

    # bool is an int and 1 == 1.0 in Python, but they are different formulas
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Const) and type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((Const, type(self.value), self.value))

    def __str__(self) -> str:
        return text(self)


@record(frozen=True, slots=True)
class Var(Expr):
    """An implicit variable: `s` the score so far, `p` the softmax weight, `h` the query head, `row.count` and the
    other statistics of a row, `u` an activation's argument, `pos` and `c` of a position formula, or an index of an
    index equation or of a `Reduce`."""

    name: str
    kind: Kind


@record(frozen=True, slots=True)
class Token(Expr):
    """The query or key token as a number: its position. By default query i of N has position
    i + (M - N) and key j of M has position j; an attention whose sequences carry a `pos` field has
    `Load`s here instead."""

    side: Side


@record(frozen=True, slots=True)
class Field(Expr):
    """`q.name` or `k.name` as written, `q.name[h, d]` with axes of its own. Lowering replaces every Field by a
    Load; no IR holds one."""

    side: Side
    name: str
    indices: tuple["Expr", ...] = ()


@record(frozen=True, slots=True)
class Load(Expr):
    """The value that slot `slot` holds for the token of `side`.

    The slot's operand is [B, N, ...] or [N, ...] for `q`, [B, M, ...] or [M, ...] for `k`; booleans, integers or
    reals. `indices`: one for each axis after the tokens' (`q.lag[h, q - k]`), clamped to its bounds.
    """

    slot: int
    side: Side
    kind: Kind
    indices: tuple["Expr", ...] = ()


@record(frozen=True, slots=True)
class Read(Expr):
    """One element of the array in slot `slot`, by one integer index per axis: `slope[h]`, `table[f(k - q), h]`."""

    slot: int
    indices: tuple[Expr, ...]
    kind: Kind


@record(frozen=True, slots=True)
class Reduce(Expr):
    """`fn[indices](body)`: sum, mean, max, min, any, all over whole axes.

    An index equation says how far each index goes; in other formulas it is the size of the axis that the index reads
    alone (`ranges.py`).
    """

    fn: str
    indices: tuple[str, ...]
    body: Expr


@record(frozen=True, slots=True)
class Apply(Expr):
    """A primitive of the closed table applied to as many arguments as it takes."""

    fn: str
    args: tuple[Expr, ...]


@record(frozen=True, slots=True)
class Primitive:
    """A row of the closed table: name, number of arguments, what kinds it takes and gives.

    takes: "bool", "int" or "number" for every argument (`where` alone differs in its first).
    gives: a fixed kind, or None for the wider of the arguments' kinds.
    """

    name: str
    arity: int
    takes: str
    gives: Kind | None
    meaning: str


def _table(*rows: Primitive) -> dict[str, Primitive]:
    return {row.name: row for row in rows}


_B, _I, _R = Kind.BOOL, Kind.INT, Kind.REAL
PRIMITIVES: Mapping[str, Primitive] = _table(
    Primitive("add", 2, "number", None, "x + y"),
    Primitive("sub", 2, "number", None, "x - y"),
    Primitive("mul", 2, "number", None, "x * y"),
    Primitive("div", 2, "number", _R, "x / y, real also for integers"),
    Primitive("floordiv", 2, "int", _I, "x // y, rounded towards minus infinity as in Python; x // 0 is 0"),
    Primitive("mod", 2, "int", _I, "x % y with the sign of y as in Python; x % 0 is 0"),
    Primitive("pow", 2, "number", None, "x ^ y; an integer to a constant integer >= 0 stays an integer, else real"),
    Primitive("neg", 1, "number", None, "-x"),
    Primitive("eq", 2, "any", _B, "x == y"),
    Primitive("ne", 2, "any", _B, "x != y"),
    Primitive("lt", 2, "number", _B, "x < y"),
    Primitive("le", 2, "number", _B, "x <= y"),
    Primitive("gt", 2, "number", _B, "x > y"),
    Primitive("ge", 2, "number", _B, "x >= y"),
    Primitive("and", 2, "bool", _B, "both"),
    Primitive("or", 2, "bool", _B, "either"),
    Primitive("not", 1, "bool", _B, "negation"),
    Primitive("where", 3, "where", None, "if(condition, x, y)"),
    Primitive("min", 2, "number", None, "the smaller"),
    Primitive("max", 2, "number", None, "the larger"),
    Primitive("abs", 1, "number", None, "|x|"),
    Primitive("sign", 1, "number", None, "-1 or +1; sign(0) = +1"),
    Primitive("round", 1, "number", _R, "to the nearest whole number, half to even"),
    Primitive("floor", 1, "number", _I, "the largest whole number not above x"),
    Primitive("sqrt", 1, "number", _R, "square root"),
    Primitive("rsqrt", 1, "number", _R, "1 / sqrt(x)"),
    Primitive("exp", 1, "number", _R, "e ^ x"),
    Primitive("exp2", 1, "number", _R, "2 ^ x"),
    Primitive("log", 1, "number", _R, "natural logarithm"),
    Primitive("log1p", 1, "number", _R, "log(1 + x)"),
    Primitive("tanh", 1, "number", _R, "hyperbolic tangent"),
    Primitive("approximate_tanh", 1, "number", _R, "tanh(x) to 2^-11 of itself, where that is faster"),
    Primitive("sigmoid", 1, "number", _R, "1 / (1 + e ^ -x)"),
    Primitive("erf", 1, "number", _R, "error function"),
    Primitive("sin", 1, "number", _R, "sine"),
    Primitive("cos", 1, "number", _R, "cosine"),
    Primitive(
        "normal_quantile", 1, "number", _R, "the x below which a standard normal variable falls with probability y"
    ),
    Primitive("straight", 2, "number", None, "the value of x, with the gradient of y"),
    Primitive("stop", 1, "number", None, "x, through which no gradient flows"),
)
"""The closed table of primitives. Everything else (softcap, gelu, silu, clip, buckets) is written with them."""

INFIX: Mapping[str, tuple[str, int]] = {
    # primitive: (symbol, binding strength); comparison chains and `not` as in Python
    "or": ("or", 1), "and": ("and", 2), "not": ("not", 3),
    "eq": ("==", 4), "ne": ("!=", 4), "lt": ("<", 4), "le": ("<=", 4), "gt": (">", 4), "ge": (">=", 4),
    "add": ("+", 5), "sub": ("-", 5),
    "mul": ("*", 6), "div": ("/", 6), "floordiv": ("//", 6), "mod": ("%", 6),
    "neg": ("-", 7), "pow": ("^", 8),
}  # fmt: skip


def kind_of(expr: Expr) -> Kind:
    """The kind of a formula's value. Raises FormulaError where an argument has the wrong kind."""
    match expr:
        case Const(value):
            return Kind.BOOL if isinstance(value, bool) else Kind.INT if isinstance(value, int) else Kind.REAL
        case Var(_, kind) | Load(_, _, kind, _) | Read(_, _, kind):
            return kind
        case Token():
            return Kind.INT
        case Reduce(fn, _, body):
            kind = kind_of(body)
            if fn in ("any", "all"):
                return Kind.BOOL
            return Kind.REAL if fn == "mean" else Kind.INT if kind is Kind.BOOL else kind
        case Apply(fn, args):
            return _applied(PRIMITIVES[fn], args)
    raise FormulaError(f"{expr!r} has no kind before its fields are bound")


def _applied(row: Primitive, args: tuple[Expr, ...]) -> Kind:
    if len(args) != row.arity:
        raise FormulaError(f"`{row.name}` takes {row.arity} arguments, not {len(args)}")
    kinds = [kind_of(a) for a in args]
    numbers = kinds
    if row.takes == "where":
        if kinds[0] is not Kind.BOOL:
            raise FormulaError(f"`if` asks a boolean first, not {kinds[0]}")
        numbers = kinds[1:]
        if (numbers[0] is Kind.BOOL) != (numbers[1] is Kind.BOOL):
            raise FormulaError(f"`if` gives {numbers[0]} on one side and {numbers[1]} on the other")
        if numbers[0] is Kind.BOOL:
            return Kind.BOOL
    for arg, kind in zip(args, kinds, strict=True):
        if row.takes == "bool" and kind is not Kind.BOOL:
            raise FormulaError(f"`{row.name}` takes booleans; `{text(arg)}` is {kind}")
        if row.takes == "int" and kind is not Kind.INT:
            raise FormulaError(f"`{row.name}` takes integers; `{text(arg)}` is {kind}")
        if row.takes == "number" and kind is Kind.BOOL:
            raise FormulaError(f"`{row.name}` takes numbers; `{text(arg)}` is boolean")
    if row.takes == "any" and (kinds[0] is Kind.BOOL) != (kinds[1] is Kind.BOOL):
        raise FormulaError(f"`{row.name}` compares {kinds[0]} with {kinds[1]}")
    if row.name == "pow":
        exponent = args[1]
        whole = isinstance(exponent, Const) and isinstance(exponent.value, int) and exponent.value >= 0
        return Kind.INT if kinds[0] is Kind.INT and whole else Kind.REAL
    if row.gives is not None:
        return row.gives
    return Kind.REAL if Kind.REAL in numbers else Kind.INT


def apply(fn: str, *args: Expr) -> Apply:
    """`Apply` with its kinds checked: the way to build trees by hand."""
    node = Apply(fn, args)
    kind_of(node)
    return node


def children(expr: Expr) -> tuple[Expr, ...]:
    match expr:
        case Apply(_, args):
            return args
        case Read(_, indices, _) | Load(_, _, _, indices) | Field(_, _, indices):
            return indices
        case Reduce(_, _, body):
            return (body,)
    return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """Every node, parents first. Iterative: deep trees do not exhaust the stack."""
    stack = [expr]
    while stack:
        node = stack.pop()
        yield node
        if below := children(node):
            stack.extend(below[::-1])


def rewrite(expr: Expr, rule: Callable[[Expr], Expr | None]) -> Expr:
    """The tree with `rule` applied to every node, children first; None keeps the node."""
    match expr:
        case Apply(fn, args):
            expr = Apply(fn, tuple(rewrite(a, rule) for a in args))
        case Read(slot, indices, kind):
            expr = Read(slot, tuple(rewrite(i, rule) for i in indices), kind)
        case Load(slot, side, kind, (_, *_) as indices):
            expr = Load(slot, side, kind, tuple(rewrite(i, rule) for i in indices))
        case Field(side, name, (_, *_) as indices):
            expr = Field(side, name, tuple(rewrite(i, rule) for i in indices))
        case Reduce(fn, names, body):
            expr = Reduce(fn, names, rewrite(body, rule))
    found = rule(expr)
    return expr if found is None else found


def substitute(expr: Expr, values: Mapping[Expr, Expr]) -> Expr:
    """Every node equal to a key replaced by its value (`Var`s by arguments, `Field`s by `Load`s)."""
    return rewrite(expr, values.get)


def slots(*exprs: Expr) -> tuple[int, ...]:
    """The slot numbers that formulas read, sorted, each once."""
    return tuple(sorted({n.slot for e in exprs for n in walk(e) if isinstance(n, Load | Read)}))


def sides(expr: Expr) -> frozenset[Side]:
    """Which tokens a formula looks at."""
    return frozenset(n.side for n in walk(expr) if isinstance(n, Token | Field | Load))


def conjuncts(expr: Expr) -> tuple[Expr, ...]:
    """The operands of the outermost `and`s, left to right."""
    if isinstance(expr, Apply) and expr.fn == "and":
        return conjuncts(expr.args[0]) + conjuncts(expr.args[1])
    return (expr,)


class _Text:
    """Canonical text: as the language writes it, with the fewest brackets; slots print as `$3.q`, `$0[h]`.

    Different trees have different texts (kinds aside), so a text can be read back: `tfc/ir/text.py`."""

    FUNCTIONS: ClassVar[Mapping[str, str]] = {"where": "if"}

    def show(self, expr: Expr, outer: int = 0) -> str:
        match expr:
            case Const(value):
                if isinstance(value, bool):
                    return "yes" if value else "no"
                body = repr(value)
                return f"({body})" if body.startswith("-") and outer > 5 else body
            case Var(name):
                return name
            case Token(side):
                return side
            case Field(side, name, indices):
                return f"{side}.{name}{self.brackets(indices)}"
            case Load(slot, side, _, indices):
                return f"${slot}.{side}{self.brackets(indices)}"
            case Read(slot, indices, _):
                return f"${slot}[{', '.join(map(self.show, indices))}]"
            case Reduce(fn, names, body):
                return f"{fn}[{', '.join(names)}]({self.show(body)})"
            case Apply(fn, args) if fn in INFIX:
                symbol, strength = INFIX[fn]
                if len(args) == 1:
                    gap = " " if symbol == "not" else ""
                    numeral = isinstance(args[0], Const) and fn == "neg"  # `-(1)` negates, `-1` is a literal
                    shown = self.show(args[0], 0 if numeral else strength)
                    inner = f"{symbol}{gap}({shown})" if numeral else f"{symbol}{gap}{shown}"
                elif fn == "pow":  # right associative; a unary exponent needs no brackets
                    right = args[1]
                    bare = isinstance(right, Const)
                    shown = self.show(right, 0 if bare else strength)
                    inner = f"{self.show(args[0], strength + 1)} ^ {shown}"
                else:
                    left = self.show(args[0], strength + (1 if strength == 4 else 0))
                    inner = f"{left} {symbol} {self.show(args[1], strength + 1)}"
                return f"({inner})" if strength < outer else inner
            case Apply(fn, args):
                return f"{self.FUNCTIONS.get(fn, fn)}({', '.join(map(self.show, args))})"
        raise FormulaError(f"no text for {type(expr).__name__}")

    def brackets(self, indices: tuple[Expr, ...]) -> str:
        return f"[{', '.join(map(self.show, indices))}]" if indices else ""


def text(expr: Expr) -> str:
    """The formula in the language's own notation."""
    return _Text().show(expr)
