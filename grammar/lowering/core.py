"""The core functions, those that the language cannot define in itself: calls with known arguments -> operations."""

from collections.abc import Mapping
from dataclasses import replace

from tfc.diagnostics import Edit, Note
from tfc.grammar.lowering.algebra import merge_fields, operate
from tfc.grammar.lowering.arguments import Call, Function, call
from tfc.grammar.lowering.attend import attend, drop, mix, rotate, weights
from tfc.grammar.lowering.formats import rounded
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.recurrence import recur
from tfc.grammar.lowering.registered import REGISTERED
from tfc.grammar.lowering.routing import route
from tfc.grammar.lowering.session import fail
from tfc.grammar.lowering.tokens import append, cut, part, pick, tag, top
from tfc.grammar.lowering.values import Meaning, Tensor, describe, is_number
from tfc.ir.ops import Calibrated, Concat, Reduction, Reshape, Take
from tfc.ir.program import Init
from tfc.ir.types import DType

__all__ = ["FUNCTIONS", "Function", "call"]


# ---- one function each


def _reduce(c: Call) -> Meaning:
    x = c.tensor("x")
    if not x.type.shape:
        fail("E401", f"`{c.function.name}` of {x.type}, which has no axis", c.frame.at(c.span))
    if not x.type.dtype.floating:
        if c.function.name == "mean" or x.type.dtype is DType.BOOL:
            shown = c.given["x"].span.text
            fail(
                "E301", f"`{c.function.name}` takes reals; `{shown}` is {x.type}", c.frame.at(c.span),
                help="`x * 1.0` makes reals of whole numbers, `if(x, 1.0, 0.0)` of booleans",
            )  # fmt: skip
    return c.emit(Reduction(fn=c.function.name), (x,), x.fields if x.type.rank > 2 else {})


def _size(c: Call) -> Meaning:
    x = c.tensor("x")
    if not x.type.shape:
        fail("E401", f"`size` of {x.type}, which has no axis", c.frame.at(c.span))
    return x.type.last


def _split(c: Call) -> Meaning:
    x, given = c.tensor("x"), c.given["heads"]
    why = c.frame.blame(given.node)
    heads = whole(given.value, "the number of heads", why)
    width = x.type.last if x.type.shape else 1
    if not isinstance(heads, int) or not isinstance(width, int):
        fail("E406", f"{width} channels in {heads} heads: both must be known while compiling", c.frame.at(c.span))
    if heads < 1 or width % heads:
        fits = [n for n in range(1, min(width, 10_000) + 1) if width % n == 0][:40]
        near = min(fits, key=lambda n: (abs(n - heads), n), default=heads)
        edits = (Edit(why, str(near)),) if near != heads and why.text.replace("_", "") == str(heads) else ()
        fail("E402", f"{width} channels do not divide into {heads} heads", why,
             help=f"heads may be {', '.join(map(str, fits))}" if fits else "", edits=edits,
             notes=(Note(f"the {width} channels come from here", x.span),))  # fmt: skip
    shape = (*x.type.shape[:-1], heads, width // heads)
    made = c.emit(Reshape(shape=shape), (x,), x.fields)
    return replace(made, span=x.span, chosen=why)


def _join(c: Call) -> Meaning:
    x = c.tensor("x")
    if x.type.rank < 2:
        fail("E401", f"`join` merges the last two axes; `{c.given['x'].span.text}` is {x.type}", c.frame.at(c.span))
    return c.emit(Reshape(shape=(*x.type.shape[:-2], x.type.shape[-2] * x.type.shape[-1])), (x,), x.fields)


def _ceil(c: Call) -> Meaning:
    value, span = c.given["x"].value, c.given["x"].span
    for fn in ("neg", "floor", "neg"):
        value = operate(fn, [(value, span)], c.span, c.frame)
    return value


def _take(c: Call) -> Meaning:
    table, ids = c.tensor("table"), c.tensor("ids")
    return c.emit(Take(), (table, ids), ids.fields)


def _concat(c: Call) -> Meaning:
    parts = [c.as_tensor(given) for given in c.rest]
    if not parts:
        fail("E206", "`concat` needs at least one tensor", c.frame.at(c.span))
    head = parts[0].type
    for x, given in zip(parts, c.rest, strict=True):
        if x.type.shape[:-1] != head.shape[:-1] or x.type.dtype is not head.dtype:
            notes = (Note(f"`{c.rest[0].span.text}` is {head}, from here", parts[0].span),
                     Note(f"`{given.span.text}` is {x.type}, from here", x.span))  # fmt: skip
            fail("E401", f"`concat` puts {head} beside {x.type}: they differ in more than the last axis",
                 c.frame.at(given.span), notes=notes)  # fmt: skip
    fields = merge_fields(parts, head.shape, c.span, c.frame) if head.rank > 1 else {}
    return c.emit(Concat(), tuple(parts), fields)


def _length(c: Call) -> Meaning:
    return c.tokens("x").type.shape[1]


def _count(c: Call) -> Meaning:
    value = c.given["list"].value
    if isinstance(value, tuple):
        return len(value)
    help = "of a tensor, `size(x)` is the last axis and `length(x)` the tokens" if isinstance(value, Tensor) else ""
    fail("E305", f"`count` takes a list; `{c.shown('list')}` is {describe(value)}", c.at("list"), help=help)


def _calibrated(c: Call) -> Meaning:
    """A statistic that calibration freezes; its path is that of the body, numbered where there are several."""
    x = c.given["x"].value
    if is_number(x):
        return x
    x = c.tensor("x")
    if not x.type.dtype.floating:
        fail("E301", f"`calibrated` takes reals; `{c.shown('x')}` is {x.type}", c.at("x"), notes=c.made("x"))
    if not all(isinstance(n, int) for n in x.type.shape[1:]):
        fail("E406", f"`calibrated` keeps {x.type}, whose sizes are known only when the model is called", c.at("x"),
             help="reduce over the tokens first: `m[b] = mean[t](x[b, t])`", notes=c.made("x"))  # fmt: skip
    return c.emit(Calibrated(path=c.frame.session.numbered_path(c.frame.place.join("calibrated"))), (x,))


def _dropped(c: Call) -> Meaning:
    x = c.tensor("x")
    if not x.type.dtype.floating or not x.type.shape:
        fail("E301", f"dropout takes reals with an axis; `{c.shown('x')}` is {x.type}", c.at("x"), notes=c.made("x"))
    return drop(x, c.given["rate"], c.node, c.frame)


def _choice(c: Call) -> Meaning:
    fail("E305", "`choice` stands alone in a `let` of a file", c.frame.at(c.span),
         help=f"let name = {c.span.text}, and use `name` here")  # fmt: skip


# ---- initializers


def _normal(c: Call) -> Meaning:
    std = c.given["std"].value
    if not isinstance(std, int | float) or isinstance(std, bool) or std < 0:
        fail("E305", f"`normal` takes a standard deviation, not {describe(std)}", c.frame.at(c.given["std"].span))
    return Init("normal", float(std))


def _uniform(c: Call) -> Meaning:
    low, high = c.number("low", 0), c.number("high", 1)
    if low > high:
        fail("E305", f"`uniform` takes the least and the largest number, not {low} and {high}", c.blame("high"))
    return Init("uniform", float(low), high=float(high))


def _orthogonal(c: Call) -> Meaning:
    return Init("orthogonal", float(c.number("gain", 1)))


def _rotate(c: Call) -> Meaning:
    return rotate(c.tensor("x"), c.given, c.node, c.frame)


def _attend(c: Call) -> Meaning:
    options = {n: g for n, g in c.given.items() if n not in ("q", "k", "v")}
    return attend(c.tensor("q"), c.tensor("k"), c.tensor("v"), options, c.node, c.frame)


def _weights(c: Call) -> Meaning:
    options = {n: g for n, g in c.given.items() if n not in ("q", "k")}
    return weights(c.tensor("q"), c.tensor("k"), options, c.node, c.frame)


def _mix(c: Call) -> Meaning:
    return mix(c.tensor("w"), c.tensor("v"), c.node, c.frame)


_FORMULAS = ("scale?", "score?", "mask?", "weigh?", "position?", "rotated?", "pairing?")

FUNCTIONS: Mapping[str, Function] = {
    f.name: f
    for f in (
        Function("sum", ("x",), _reduce, "over the last axis, which stays with size 1"),
        Function("mean", ("x",), _reduce, "over the last axis, which stays with size 1"),
        Function("max", ("x",), _reduce, "over the last axis, which stays with size 1; of two values the larger"),
        Function("min", ("x",), _reduce, "over the last axis, which stays with size 1; of two values the smaller"),
        Function("size", ("x",), _size, "how many channels: the size of the last axis, known while compiling"),
        Function("split", ("x", "heads"), _split, "[.., C] -> [.., heads, C / heads]"),
        Function("join", ("x",), _join, "[.., H, D] -> [.., H * D]"),
        Function("ceil", ("x",), _ceil, "the smallest whole number not below x"),
        Function("take", ("table", "ids"), _take, "rows of a table"),
        Function("length", ("x",), _length, "how many tokens: the size of the second axis"),
        Function("concat", (), _concat, "side by side along the last axis", many=True),
        Function("cut", ("x", "start", "count"), cut, "some channels in a row"),
        Function(
            "tag", ("x",), tag, "the same tensor, its tokens carrying fields: all those of other tensors, and by name",
            many=True, open=True,
        ),
        Function("top", ("x", "n"), top, "where the n largest of the last axis are, largest first, ties to the first"),
        Function("pick", ("x", "ids"), pick, "the tokens at the places ids [B, n]; fields come along"),
        Function("append", (), append, "tokens after tokens; fields that all carry come along", many=True),
        Function("part", ("x", "start", "count"), part, "some tokens in a row; fields come along"),
        Function(
            "route", ("x", "f", "count", "chosen", "weight?"), route,
            "each token through the chosen of `count` copies of the weights of f, the results weighted and added",
        ),
        Function("rounded", ("x", "format"), rounded, "every number replaced by the nearest that the format has"),
        Function(
            "dropped", ("x", "rate"), _dropped,
            "where a call has a key, a share of the elements 0 and the others divided by 1 - rate; else x",
        ),
        Function("calibrated", ("x",), _calibrated, "the value, which calibration freezes"),
        Function("choice", (), _choice, "in a `let`: the first is the value, the others may be set", many=True),
        Function("count", ("list",), _count, "how many elements a list has"),
        Function("normal", ("std",), _normal, "an initializer: normally distributed, mean 0"),
        Function("uniform", ("low", "high"), _uniform, "an initializer: evenly distributed from low to high"),
        Function("orthogonal", ("gain?",), _orthogonal, "an initializer: rows of norm `gain`, orthogonal in blocks"),
        Function(
            "attend", ("q", "k", "v", *_FORMULAS, "dropout?"), _attend,
            "attention: scores of q and k, the formulas, and the weighted sum of v; a share of weights may be dropped",
        ),
        Function(
            "weights", ("q", "k", *_FORMULAS), _weights,
            "the first half of `attend`: what each query gives each key, [B, H, N, M]",
        ),
        Function("mix", ("w", "v"), _mix, "the second half of `attend`: the values weighed, [B, N, H, D]"),
        Function(
            "rotate", ("x", "position", "rotated?", "pairing?"), _rotate,
            "heads [B, T, H, D] turned by a position formula, as `attend` turns q and k; `none` turns nothing",
        ),
        Function(
            "recur",
            ("q", "k", "v", "feature?", "decay?", "scale?", "normalized?", "eps?", "direction?", "segment?"),
            recur, "the linear recurrence: a state that each token decays, adds k v to, and reads by q",
        ),
        *REGISTERED,
    )
}  # fmt: skip
"""Every core function, by name."""
