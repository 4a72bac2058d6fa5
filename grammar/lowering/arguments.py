"""The call of a core function, its arguments evaluated -> the same, bound to the function's inputs and checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tfc.diagnostics import Edit, Note, closest
from tfc.grammar import ast
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.session import Frame, counted, fail
from tfc.grammar.lowering.values import Given, Meaning, Tensor, describe, is_number
from tfc.ir.ops import Op
from tfc.ir.types import Size
from tfc.source import Span

__all__ = ["Call", "Function", "call"]


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

    def at(self, name: str) -> Span:
        """Where the argument is written, or the call where the library wrote it or it was left out."""
        return self.frame.at(self.given[name].span if name in self.given else self.span)

    def blame(self, name: str) -> Span:
        """Where the value of the argument was chosen."""
        return self.frame.blame(self.given[name].node) if name in self.given else self.at(name)

    def tensor(self, name: str) -> Tensor:
        """The argument as a tensor."""
        return self.as_tensor(self.given[name])

    def as_tensor(self, given: Given) -> Tensor:
        if isinstance(given.value, Tensor):
            return given.value
        fail(
            "E305", f"`{self.function.name}` takes a tensor; `{given.span.text}` is {describe(given.value)}",
            self.frame.at(given.span),
        )  # fmt: skip

    def tokens(self, name: str) -> Tensor:
        """The argument as a tensor of tokens, [batch, time, ..]."""
        x = self.tensor(name)
        if x.type.rank < 2:
            fail(
                "E401", f"`{self.function.name}` takes tokens, [batch, time, ..]; `{self.shown(name)}` is {x.type}",
                self.at(name), notes=self.made(name),
            )  # fmt: skip
        return x

    def shown(self, name: str) -> str:
        return self.given[name].span.text

    def made(self, *names: str) -> tuple[Note, ...]:
        """Where the tensors that were given come from, with their types."""
        found = ((n, self.given[n].value) for n in names)
        return tuple(
            Note(f"`{self.shown(n)}` is {v.type}, from here", v.span) for n, v in found if isinstance(v, Tensor)
        )

    def size(self, name: str, what: str) -> Size:
        """The argument as a whole number or a length."""
        return whole(self.given[name].value, what, self.blame(name))

    def number(self, name: str, default: float) -> int | float:
        """The argument as a number known while compiling."""
        if name not in self.given:
            return default
        value = self.given[name].value
        if isinstance(value, int | float) and is_number(value):
            return value
        fail("E305", f"`{name}` is a number known while compiling, not {describe(value)}", self.at(name))

    def flag(self, name: str) -> bool:
        """The argument as `yes` or `no`; `no` where it was left out."""
        value = self.given[name].value if name in self.given else False
        if isinstance(value, bool):
            return value
        fail("E305", f"`{name}` is `yes` or `no`, not {describe(value)}", self.at(name))

    def word(self, name: str, words: Sequence[str]) -> str:
        """The argument as one of these texts; the first where it was left out."""
        value = self.given[name].value if name in self.given else words[0]
        if isinstance(value, str) and value in words:
            return value
        near = closest(value, words) if isinstance(value, str) else ""
        allowed = " or ".join(f'"{w}"' for w in words)
        edits = (Edit(self.at(name), f'"{near}"'),) if near and self.at(name) is self.given[name].span else ()
        fail("E305", f"`{name}` is {allowed}, not {describe(value)}", self.at(name), edits=edits,
             help=f'did you mean "{near}"?' if near else "")  # fmt: skip

    def emit(
        self, op: Op, args: tuple[Tensor, ...], fields: Mapping[str, Tensor] | None = None, hint: str = ""
    ) -> Tensor:
        """One operation's first result."""
        return self.frame.emit(op, args, self.span, hint or self.function.name, fields)[0]


def call(
    function: Function, positional: Sequence[Given], named: Mapping[str, Given], node: ast.Call, frame: Frame
) -> Meaning:
    """Bind the arguments and run."""
    inputs = [n.rstrip("?") for n in function.inputs]
    if len(positional) > len(inputs) and not function.many:
        fail(
            "E207", f"`{function.name}` takes {counted(len(inputs), 'argument')}, not {len(positional)}",
            frame.at(node.span), help=f"{function.name}({', '.join(inputs)})",
        )  # fmt: skip
    given = dict(zip(inputs, positional, strict=False))
    extra: dict[str, Given] = {}
    for name, value in named.items():
        if function.open and (name in given or name not in inputs):
            extra[name] = value  # `tag(x, x = column)`: a field may be called like the input
        elif name in given:
            fail("E214", f"`{name}` is given twice", frame.at(value.span))
        elif name in inputs:
            given[name] = value
        else:
            _unknown_input(name, value, function, inputs, frame)
    for wanted in function.inputs:
        if not wanted.endswith("?") and wanted not in given:
            fail("E206", f"`{function.name}` needs `{wanted}`", frame.at(node.span),
                 help=f"{function.name}({', '.join(inputs)})")  # fmt: skip
    return function.run(Call(function, MappingProxyType(given), tuple(positional[len(inputs) :]), extra, node, frame))


def _unknown_input(name: str, value: Given, function: Function, inputs: Sequence[str], frame: Frame) -> None:
    near = closest(name, inputs)
    written = value.argument.span
    edits = (Edit(Span(written.source, written.start, written.start + len(name)), near),) if near else ()
    fail("E204", f"`{function.name}` has no input `{name}`", frame.at(written),
         help=f"did you mean `{near}`?" if near else f"it has {', '.join(inputs)}", edits=edits)  # fmt: skip
