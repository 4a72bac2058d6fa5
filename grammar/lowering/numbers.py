"""Arithmetic while compiling, of numbers, sizes, booleans and lists; bounded, so that `2 ^ 10 ^ 9` is refused."""

import math
from collections.abc import Callable, Mapping
from typing import cast

from tfc.formula.expr import INFIX
from tfc.grammar.lowering.session import LIMITS, fail
from tfc.grammar.lowering.values import Meaning, Nothing, describe, is_number, is_static
from tfc.ir.types import Dim, DType, Size
from tfc.source import Span

__all__ = ["LARGEST", "fold", "foldable", "whole"]

LARGEST = 2**63 - 1
"""The largest whole number: what an int of the language holds while compiling."""

Number = int | float


def _normal_quantile(x: float) -> float:
    from statistics import NormalDist  # takes long to import

    return math.copysign(math.inf, x - 0.5) if x in (0, 1) else NormalDist().inv_cdf(x)


_REAL: Mapping[str, Callable[[float], float]] = {
    "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "log1p": math.log1p, "tanh": math.tanh,
    "approximate_tanh": math.tanh,
    "erf": math.erf, "sin": math.sin, "cos": math.cos,
    "rsqrt": lambda x: 1 / math.sqrt(x),
    "exp2": lambda x: 2.0**x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)),
    "round": lambda x: float(round(x)),
    "normal_quantile": _normal_quantile,
}  # fmt: skip
_COMPARE: Mapping[str, Callable[[Number, Number], bool]] = {
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


def foldable(args: list[Meaning]) -> bool:
    """Whether all arguments are known while compiling."""
    return all(is_static(a) for a in args)


def fold(fn: str, args: list[Meaning], span: Span) -> Meaning:
    """The primitive on values known while compiling."""
    if fn == "where":
        if not isinstance(args[0], bool):
            fail("E301", f"`if` asks a boolean first, not {describe(args[0])}", span)
        return args[1] if args[0] else args[2]
    if fn in ("and", "or", "not"):
        for a in args:
            if not isinstance(a, bool):
                fail("E301", f"`{fn}` takes booleans, not {describe(a)}", span)
        return (args[0] and args[1]) if fn == "and" else (args[0] or args[1]) if fn == "or" else not args[0]
    if fn in ("eq", "ne"):
        return _equal(args[0], args[1], span) == (fn == "eq")
    if any(isinstance(a, tuple) for a in args):
        return _list(fn, args, span)
    for a in args:
        if not (is_number(a) or isinstance(a, Dim)):
            fail("E305", f"`{_symbol(fn)}` takes numbers, not {describe(a)}", span)
    if any(isinstance(a, Dim) for a in args):
        return _bounded(_size(fn, cast(list[Number | Dim], args), span), span)
    return _number(fn, cast(list[Number], args), span)


def _symbol(fn: str) -> str:
    return INFIX[fn][0] if fn in INFIX else fn


def _equal(a: Meaning, b: Meaning, span: Span) -> bool:
    if isinstance(a, Dim) or isinstance(b, Dim):
        if a == b:
            return True
        fail("E406", f"whether {a} equals {b} is known only when the model is called", span)
    if is_number(a) and is_number(b):
        return a == b
    if type(a) is not type(b) and not any(isinstance(v, Nothing) for v in (a, b)):
        return False
    return a == b


def _list(fn: str, args: list[Meaning], span: Span) -> tuple[Meaning, ...]:
    parts, times = (), 0
    match fn, args:
        case "add", [tuple() as a, tuple() as b]:
            parts, times = (*a, *b), 1
        case "mul", [tuple() as a, int() as n]:
            parts, times = a, n
        case "mul", [int() as n, tuple() as a]:
            parts, times = a, n
        case _:
            fail("E305", f"`{_symbol(fn)}` does not take {' and '.join(map(describe, args))}", span)
    length = len(parts) * max(times, 0)
    if length > LIMITS["list"]:
        fail("E502", f"a list of {length} elements; at most {LIMITS['list']} are allowed", span)
    return parts * times


def _bounded(size: Size, span: Span) -> Size:
    """The size, unless it is absurdly large or long."""
    if isinstance(size, Dim) and size.weight > LIMITS["size"]:
        fail("E502", f"a size made of {size.weight} lengths; at most {LIMITS['size']} are allowed", span)
    largest = max(abs(n) for _, n in size.terms) if isinstance(size, Dim) else abs(size)
    if largest > LARGEST:
        fail("E501", f"a number of {largest.bit_length()} bits; whole numbers go up to {LARGEST}", span)
    return size


def _size(fn: str, args: list[Number | Dim], span: Span) -> Size:
    """Arithmetic with a symbolic length."""
    if all(isinstance(a, int | Dim) for a in args):
        sizes = cast(list[Size], args)
        match fn, sizes:
            case "add", [a, b]:
                return a + b
            case "sub", [a, b]:
                return a - b
            case "mul", [a, b]:
                return a * b
            case "neg", [a]:
                return -a
            case (("div" | "floordiv" | "mod"), [Dim() as a, 0]):
                fail("E402", f"{a} is divided by zero", span)
            case "div", [Dim() as a, int() as n] if a % n == 0:
                return a // n
            case "floordiv", [Dim() as a, int() as n]:
                return a // n
            case "mod", [Dim() as a, int() as n]:
                return a % n
            case (("floor" | "ceil"), [a]):
                return a
    shown = f" {_symbol(fn)} ".join(map(str, args)) if len(args) > 1 else f"{_symbol(fn)}({args[0]})"
    help = "lengths may be added, subtracted, multiplied, and divided by whole numbers; or give a number"
    if fn == "div" and isinstance(args[1], int):
        help = "`//` rounds down: `x // 2`; rounded up it is `-(-x // 2)`"
    fail("E406", f"`{shown}` is known only when the model is called", span, help=help)


def _number(fn: str, args: list[Number], span: Span) -> Meaning:
    for a in args:
        if isinstance(a, int) and abs(a) > LARGEST:
            fail("E501", f"a number of {a.bit_length()} bits; whole numbers go up to {LARGEST}", span)
    try:
        made = _compute(fn, args, span)
    except (OverflowError, ValueError):
        shown = ", ".join(map(str, args))
        fail("E501", f"`{_symbol(fn)}` of {shown} is no number that can be held", span)
    if isinstance(made, complex):
        fail("E501", f"`{_symbol(fn)}` of {', '.join(map(str, args))} is no real number", span)
    if isinstance(made, int) and not isinstance(made, bool) and abs(made) > LARGEST:
        fail("E501", f"the result has {made.bit_length()} bits; whole numbers go up to {LARGEST}", span)
    return made


def _compute(fn: str, args: list[Number], span: Span) -> Meaning:
    match fn, args:
        case "add", [a, b]:
            return a + b
        case "sub", [a, b]:
            return a - b
        case "mul", [a, b]:
            return a * b
        case "div", [a, b]:
            if b == 0:
                fail("E402", f"{a} is divided by zero", span)
            exact = isinstance(a, int) and isinstance(b, int) and a % b == 0
            return a // b if exact else a / b
        case (("floordiv" | "mod"), [a, b]):
            if not (isinstance(a, int) and isinstance(b, int)):
                fail("E301", f"`{_symbol(fn)}` takes whole numbers, not {a} and {b}", span)
            if b == 0:
                return 0  # as the primitive says
            return a // b if fn == "floordiv" else a % b
        case "pow", [a, b]:
            if isinstance(a, int) and isinstance(b, int) and b >= 0 and a.bit_length() * b > 4096:
                fail("E501", f"{a} ^ {b} has about {a.bit_length() * b} bits; whole numbers go up to {LARGEST}", span)
            if a == 0 and b < 0:
                fail("E402", f"0 ^ {b} is a division by zero", span)
            return a**b
        case "neg", [a]:
            return -a
        case "min", [a, b]:
            return min(a, b)
        case "max", [a, b]:
            return max(a, b)
        case "abs", [a]:
            return abs(a)
        case ("straight", [a, _]) | ("stop", [a]):
            return a
        case "sign", [a]:
            return -1 if a < 0 else 1
        case "floor", [a]:
            return math.floor(a)
        case _, [a, b] if fn in _COMPARE:
            return _COMPARE[fn](a, b)
    return _REAL[fn](float(args[0]))


def whole(value: Meaning, what: str, span: Span) -> Size:
    """A size: a whole number or a symbolic length. Complains about anything else."""
    if isinstance(value, Dim) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float):
        near = round(value) if abs(value) < LARGEST else 0
        if near and abs(value - near) <= 1e-9 * abs(near):
            return near  # heads * (width / heads), where the division left a remainder
        fail("E402", f"{what} is {value}, not a whole number", span)
    if isinstance(value, DType):
        fail("E402", f"{what} is the type {value}, not a size", span)
    fail("E402", f"{what} is {describe(value)}, not a size", span)
