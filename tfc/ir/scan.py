"""IR text -> tokens, and from tokens the small things that a program is written with: sizes, types, formulas."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tfc.formula.expr import INFIX, PRIMITIVES, Apply, Const, Expr, Kind, Load, Read, Reduce, Token, Var
from tfc.ir.types import Dim, DType, IRError, Size, TensorType

__all__ = ["NAME", "PATH", "WORDS", "Cursor"]

NAME = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)
"""What a length, an index, a label or a program may be called."""
PATH = re.compile(r"[A-Za-z_]\w*(\.\w+)*\Z", re.ASCII)
"""What a parameter's path or a value's name may be."""
WORDS = frozenset(["and", "or", "not", "if", "yes", "no", "inf"])
"""Names that an index cannot have: they mean something else in a formula."""

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<value>%[A-Za-z_]\w*(?:\.\w+)*)
      | (?P<slot>\$\d+(?:\.[qk]\b)?)
      | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | (?P<word>[A-Za-z_]\w*(?:\.\w+)*)
      | (?P<sign>//|==|!=|<=|>=|[-+*/%^<>=()\[\]{},:])""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class _Piece:
    kind: str
    text: str
    line: int


def _pieces(text: str) -> list[_Piece]:
    out, at, line = [], 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise IRError(f"line {line}: {text[at : at + 10]!r} is no part of a program's text")
        kind, piece = str(found.lastgroup), found.group()
        if kind != "space":
            out.append(_Piece(kind, piece, line))
        line += piece.count("\n")
        at = found.end()
    return [*out, _Piece("end", "the end", line)]


class Cursor:
    """A place in the tokens of a text; its methods read one thing each and raise IRError with the line."""

    BINARY: ClassVar[Mapping[str, str]] = {
        symbol: name for name, (symbol, _) in INFIX.items() if name not in ("neg", "not", "pow")
    }

    def __init__(self, text: str) -> None:
        self.pieces = _pieces(text)
        self.at = 0

    @property
    def now(self) -> _Piece:
        return self.pieces[self.at]

    @property
    def after(self) -> _Piece:
        """The token after the next."""
        return self.pieces[min(self.at + 1, len(self.pieces) - 1)]

    @property
    def line(self) -> int:
        """The line of the token read last."""
        return self.pieces[max(self.at - 1, 0)].line

    def fail(self, wanted: str) -> IRError:
        return IRError(f"line {self.now.line}: {wanted} expected, not `{self.now.text}`")

    def next(self, kind: str) -> str:
        """The text of the next token, which must be of that kind."""
        if self.now.kind != kind:
            raise self.fail(f"a {kind}")
        self.at += 1
        return self.pieces[self.at - 1].text

    def sees(self, *texts: str) -> bool:
        return self.now.kind in ("sign", "word") and self.now.text in texts

    def take(self, text: str) -> bool:
        """Whether the next token is `text`; if so it is read."""
        found = self.sees(text)
        self.at += found
        return found

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise self.fail(f"`{text}`")

    # numbers, sizes, types

    def integer(self) -> int:
        sign = -1 if self.take("-") else 1
        text = self.next("number")
        if not text.isdigit():
            raise IRError(f"line {self.line}: a whole number expected, not `{text}`")
        return sign * int(text)

    def number(self) -> bool | int | float:
        """A literal; its Python type is what it looks like."""
        if self.sees("yes", "no"):
            return self.next("word") == "yes"
        sign = -1 if self.take("-") else 1
        if self.take("inf"):
            return sign * float("inf")
        text = self.next("number")
        return sign * (int(text) if text.isdigit() else float(text))

    def size(self) -> Size:
        """`384`, `T`, `2 * B * T - 1`, `(T + 1) // 2`, `T % 4`: bound as in the language."""
        total = self._term()
        while self.sees("+", "-"):
            plus = self.next("sign") == "+"
            term = self._term()
            total = total + term if plus else total - term
        return total

    def _term(self) -> Size:
        term = self._factor()
        while self.sees("*", "//", "%"):
            sign = self.next("sign")
            if sign == "*":
                term = term * self._factor()
                continue
            divisor = self.integer()
            if divisor == 0:
                raise IRError(f"line {self.line}: a size is divided by zero")
            term = term // divisor if sign == "//" else term % divisor
        return term

    def _factor(self) -> Size:
        if self.take("-"):
            return -self._factor()
        if self.take("("):
            inner = self.size()
            self.expect(")")
            return inner
        return Dim.named(self.next("word")) if self.now.kind == "word" else self.integer()

    def shape(self) -> tuple[Size, ...]:
        out: list[Size] = []
        self.expect("[")
        while not self.take("]"):
            out.append(self.size())
            if not self.sees("]"):
                self.expect(",")
        return tuple(out)

    def dtype(self) -> DType:
        word = self.next("word")
        try:
            return DType(word)
        except ValueError:
            raise IRError(f"line {self.line}: `{word}` is no element type") from None

    def type(self) -> TensorType:
        dtype = self.dtype()
        return TensorType(self.shape(), dtype)

    # formulas: the levels of INFIX, weakest first

    def formula(self, variables: Mapping[str, Kind], level: int = 1) -> Expr:
        """A formula. Slots come out as reals: what they hold is known from the operands, see `text.py`."""
        if level == 3 and self.take("not"):
            return Apply("not", (self.formula(variables, 3),))
        if level == 7 and self.take("-"):
            return self._negative(variables)
        if level == 8:
            return self._power(variables)
        left = self.formula(variables, level + 1)
        while (name := self.BINARY.get(self.now.text)) and INFIX[name][1] == level:
            self.at += 1
            left = Apply(name, (left, self.formula(variables, level + 1)))
        return left

    def _negative(self, variables: Mapping[str, Kind]) -> Expr:
        """What follows a `-`: a literal, or a formula that is negated (`-2 ^ x` is -(2 ^ x))."""
        literal = self.now.kind == "number" or self.sees("inf")
        if literal and self.after.text != "^":
            number = self.number()
            return Const(-number)
        return Apply("neg", (self.formula(variables, 7),))

    def _power(self, variables: Mapping[str, Kind]) -> Expr:
        left = self._atom(variables)
        if not self.take("^"):
            return left
        if self.take("-"):
            return Apply("pow", (left, self._negative(variables)))
        return Apply("pow", (left, self._power(variables)))

    def _atom(self, variables: Mapping[str, Kind]) -> Expr:
        if self.take("("):
            inner = self.formula(variables)
            self.expect(")")
            return inner
        if self.now.kind == "slot":
            slot, _, side = self.next("slot")[1:].partition(".")
            if side:
                indices = self._arguments("[", "]", variables) if self.sees("[") else ()
                return Load(int(slot), "q" if side == "q" else "k", Kind.REAL, indices)
            return Read(int(slot), self._arguments("[", "]", variables), Kind.REAL)
        if self.now.kind == "number" or self.sees("yes", "no", "inf"):
            return Const(self.number())
        line, word = self.now.line, self.next("word")
        if self.sees("["):
            names = self._names()
            (body,) = self._arguments("(", ")", {**variables, **dict.fromkeys(names, Kind.INT)})
            return Reduce(word, names, body)
        if self.sees("("):
            name = "where" if word == "if" else word
            if name not in PRIMITIVES:
                raise IRError(f"line {line}: `{word}` is no primitive")
            return Apply(name, self._arguments("(", ")", variables))
        if word in variables:
            return Var(word, variables[word])
        if word == "q":
            return Token("q")
        if word == "k":
            return Token("k")
        raise IRError(f"line {line}: `{word}` means nothing in this formula")

    def _arguments(self, opening: str, closing: str, variables: Mapping[str, Kind]) -> tuple[Expr, ...]:
        out: list[Expr] = []
        self.expect(opening)
        while not self.take(closing):
            out.append(self.formula(variables))
            if not self.sees(closing):
                self.expect(",")
        return tuple(out)

    def _names(self) -> tuple[str, ...]:
        out: list[str] = []
        self.expect("[")
        while not self.take("]"):
            out.append(self.next("word"))
            if not self.sees("]"):
                self.expect(",")
        return tuple(out)
