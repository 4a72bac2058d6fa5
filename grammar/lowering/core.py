"""The core functions, those that the language cannot define in itself: calls with known arguments -> operations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from tfc.diagnostics import Edit, Note, closest
from tfc.grammar import ast
from tfc.grammar.lowering.algebra import merge_fields, tensor_of
from tfc.grammar.lowering.attend import attend
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.session import Frame, fail
from tfc.grammar.lowering.values import Given, Meaning, Tensor, describe
from tfc.ir.ops import Concat, Op, Reduction, Reshape, Take
from tfc.ir.program import Init
from tfc.ir.types import DType
from tfc.source import Span

__all__ = ["FUNCTIONS", "NOT_BUILT", "Function", "call"]

Arguments = Mapping[str, Meaning]


@dataclass(frozen=True, slots=True)
class Function:
    """A core function: its name, inputs (a name ending in `?` may be left out), meaning.

    many: takes any number of positional arguments.   open: takes names of the author's choice (`tag`).
    """

    name: str
    inputs: tuple[str, ...]
    run: Callable[["Call"], Meaning]
    doc: str
    many: bool = False
    open: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call with its arguments evaluated: by name, and those beyond the named inputs."""

    function: Function
    given: Mapping[str, Given]
    rest: tuple[Given, ...]
    extra: Mapping[str, Given]
    node: ast.Call
    frame: Frame

    @property
    def span(self) -> Span:
        return self.node.span

    def tensor(self, name: str) -> Tensor:
        """The argument as a tensor."""
        given = self.given[name]
        if isinstance(given.value, Tensor):
            return given.value
        fail(
            "E305", f"`{self.function.name}` takes a tensor; `{given.span.text}` is {describe(given.value)}",
            self.frame.at(given.span),
        )  # fmt: skip

    def emit(self, op: Op, args: tuple[Tensor, ...], fields: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.frame.emit(op, args, self.span, self.function.name, fields)[0]


def call(
    function: Function, positional: Sequence[Given], named: Mapping[str, Given], node: ast.Call, frame: Frame
) -> Meaning:
    """Bind the arguments and run."""
    inputs = [n.rstrip("?") for n in function.inputs]
    if len(positional) > len(inputs) and not function.many:
        fail(
            "E207", f"`{function.name}` takes {len(inputs)} arguments, not {len(positional)}", frame.at(node.span),
            help=f"{function.name}({', '.join(inputs)})",
        )  # fmt: skip
    given = dict(zip(inputs, positional, strict=False))
    extra: dict[str, Given] = {}
    for name, value in named.items():
        if name in given:
            fail("E214", f"`{name}` is given twice", frame.at(value.span))
        if name in inputs:
            given[name] = value
        elif function.open:
            extra[name] = value
        else:
            _unknown_input(name, value, function, inputs, frame)
    for wanted in function.inputs:
        if not wanted.endswith("?") and wanted not in given:
            fail("E206", f"`{function.name}` needs `{wanted}`", frame.at(node.span),
                 help=f"{function.name}({', '.join(inputs)})")  # fmt: skip
    return function.run(Call(function, MappingProxyType(given), tuple(positional[len(inputs) :]), extra, node, frame))


def _unknown_input(name: str, value: Given, function: Function, inputs: Sequence[str], frame: Frame) -> None:
    near = closest(name, inputs)
    argument = value.argument
    edits: tuple[Edit, ...] = ()
    if near and argument:
        edits = (Edit(Span(argument.span.source, argument.span.start, argument.span.start + len(name)), near),)
    fail("E204", f"`{function.name}` has no input `{name}`", frame.at(argument.span if argument else value.span),
         help=f"did you mean `{near}`?" if near else f"it has {', '.join(inputs)}", edits=edits)  # fmt: skip


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
    return c.emit(Reduction(fn=c.function.name), (x,), x.fields)


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
        fits = [n for n in range(1, width + 1) if width % n == 0][:40]
        near = min(fits, key=lambda n: (abs(n - heads), n))
        edits = (Edit(why, str(near)),) if why.text.replace("_", "") == str(heads) else ()
        fail("E402", f"{width} channels do not divide into {heads} heads", why,
             help=f"heads may be {', '.join(map(str, fits))}", edits=edits,
             notes=(Note(f"the {width} channels come from here", x.span),))  # fmt: skip
    shape = (*x.type.shape[:-1], heads, width // heads)
    made = c.emit(Reshape(shape=shape), (x,), x.fields)
    return replace(made, span=x.span, chosen=why)


def _join(c: Call) -> Meaning:
    x = c.tensor("x")
    if x.type.rank < 2:
        fail("E401", f"`join` merges the last two axes; `{c.given['x'].span.text}` is {x.type}", c.frame.at(c.span))
    return c.emit(Reshape(shape=(*x.type.shape[:-2], x.type.shape[-2] * x.type.shape[-1])), (x,), x.fields)


def _take(c: Call) -> Meaning:
    table, ids = c.tensor("table"), c.tensor("ids")
    return c.emit(Take(), (table, ids), ids.fields)


def _concat(c: Call) -> Meaning:
    parts = []
    for given in c.rest:
        if not isinstance(given.value, Tensor):
            fail(
                "E305",
                f"`concat` takes tensors; `{given.span.text}` is {describe(given.value)}",
                c.frame.at(given.span),
            )
        parts.append(given.value)
    if not parts:
        fail("E206", "`concat` needs at least one tensor", c.frame.at(c.span))
    head = parts[0].type
    for part, given in zip(parts, c.rest, strict=True):
        if part.type.shape[:-1] != head.shape[:-1] or part.type.dtype is not head.dtype:
            notes = (Note(f"`{c.rest[0].span.text}` is {head}, from here", parts[0].span),
                     Note(f"`{given.span.text}` is {part.type}, from here", part.span))  # fmt: skip
            fail("E401", f"`concat` puts {head} beside {part.type}: they differ in more than the last axis",
                 c.frame.at(given.span), notes=notes)  # fmt: skip
    fields = merge_fields(parts, head.shape, c.span, c.frame) if head.rank > 1 else {}
    return c.emit(Concat(), tuple(parts), fields)


def _tag(c: Call) -> Meaning:
    """The same tensor with more fields; no operation."""
    x, fields = c.tensor("x"), dict(c.tensor("x").fields)
    for name, given in c.extra.items():
        f = tensor_of(given.value, given.span, c.frame)
        tokens = ", ".join(map(str, x.type.shape[:2]))
        if x.type.rank < 2 or f.type.shape not in (x.type.shape[:2], x.type.shape[1:2]):
            fail(
                "E401", f"a field has one value for each token: `{name}` is {f.type}, the tokens are [{tokens}]",
                c.frame.at(given.span),
                notes=(Note(f"`{c.given['x'].span.text}` is {x.type}, from here", x.span),),
            )  # fmt: skip
        fields[name] = f
    return Tensor(x.value, x.home, x.span, fields)


def _normal(c: Call) -> Meaning:
    std = c.given["std"].value
    if not isinstance(std, int | float) or isinstance(std, bool) or std < 0:
        fail("E305", f"`normal` takes a standard deviation, not {describe(std)}", c.frame.at(c.given["std"].span))
    return Init("normal", float(std))


def _attend(c: Call) -> Meaning:
    options = {n: g for n, g in c.given.items() if n not in ("q", "k", "v")}
    return attend(c.tensor("q"), c.tensor("k"), c.tensor("v"), options, c.node, c.frame)


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
        Function("take", ("table", "ids"), _take, "rows of a table"),
        Function("concat", (), _concat, "side by side along the last axis", many=True),
        Function("tag", ("x",), _tag, "the same tensor, its tokens carrying fields", open=True),
        Function("normal", ("std",), _normal, "an initializer: normally distributed, mean 0"),
        Function(
            "attend", ("q", "k", "v", "scale?", "score?", "mask?", "weigh?", "position?", "rotated?", "pairing?"),
            _attend, "attention: scores of q and k, the formulas, and the weighted sum of v",
        ),
    )
}  # fmt: skip
"""Every core function, by name."""

NOT_BUILT = frozenset((
    "route", "recur", "merge", "top", "stop", "straight", "calibrated", "choice", "dot", "rand", "sort",
))  # fmt: skip
"""Core functions of the language that this compiler refuses in words."""
