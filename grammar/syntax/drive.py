"""The parser's tables and the tokens of a scan -> the tree, for a text without a fault: Lark's loop, with fewer steps.

An expression of one name goes through ten rules, `expr` to `primary`, that only hand on what they are given. Which of
them are left out depends on the state below and the token ahead alone, so such a chain is followed once and known
from then on: a third of the time. What does not fit is left to Lark, which can say what would have.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tfc.grammar.syntax.scan import Token
from tfc.record import record

__all__ = ["END", "Driver", "Reduction", "Word", "words"]

END = "$END"
"""The terminal that stands after the last token."""

_NO_CALLEE = frozenset(["or", "and", "not", "return", "repeat"])
"""Keywords that may touch a bracket, which is a group or a list all the same."""
_CLOSED = frozenset([")", "]"])


class Word(str):
    """A token as the builder reads it: its text, the name of its terminal, and its place."""

    __slots__ = ("end_pos", "start_pos", "type")
    type: str
    start_pos: int
    end_pos: int


@record(frozen=True, slots=True, eq=False)
class Reduction:
    """The end of a rule: `make` makes a value of the nonterminal `name` of the last `size` ones. It is None where that
    would be the only one itself."""

    size: int
    name: str
    make: Callable[[list[Any]], Any] | None


Row = Mapping[str, int | Reduction]
"""What a state does with a terminal, and after a nonterminal: the next state, or the end of a rule."""


def words(tokens: Iterable[Token], terminals: Mapping[str, str]) -> Iterator[Word]:
    """Tokens as the grammar's lexer would give them. terminals: the names of those with a fixed text, by that text."""
    kinds = {"name": "NAME", "number": "NUMBER", "string": "STRING"}
    called = -1  # where a bracket that calls, or takes elements, would begin
    for token in tokens:
        text, kind, start = token.text, token.kind, token.start
        word = Word(text)
        word.start_pos = start
        word.end_pos = end = start + len(text)
        if start == called and kind == "bracket" and text in "([":
            word.type = "CALL" if text == "(" else "SUB"
        else:
            word.type = terminals.get(text) or kinds.get(kind, kind)
        callee = text not in _NO_CALLEE if kind == "name" else kind == "number" or text in _CLOSED
        called = end if callee else -1
        yield word


class Driver:
    """Runs the tables of one grammar.

    rows: by state. ends: where each rule that a text may be begins and ends. terminals: those with a fixed text, by it.
    """

    def __init__(
        self, rows: Mapping[int, Row], ends: Mapping[str, tuple[int, int]], terminals: Mapping[str, str]
    ) -> None:
        self.rows, self.ends, self.terminals = rows, ends, terminals
        self.known: dict[tuple[int, str, str], int] = {}

    def run(self, tokens: Iterable[Token], rule: str) -> Any | None:
        """What the tokens make by that rule; None where they do not fit."""
        rows, known = self.rows, self.known
        start, end = self.ends[rule]
        states, values = [start], list[Any]()
        for word in (*words(tokens, self.terminals), None):
            kind = END if word is None else word.type
            while True:
                action = rows[states[-1]].get(kind)
                if isinstance(action, int):
                    states.append(action)
                    values.append(word)
                    break
                if action is None:
                    return None
                size, make = action.size, action.make
                if make is not None:
                    taken = values[-size:] if size else []
                    del values[len(values) - size :]
                    values.append(make(taken))
                del states[len(states) - size :]
                step = states[-1], action.name, kind
                states.append(known[step] if step in known else self._after(*step))
                if kind is END and states[-1] == end:
                    return values[-1]
        return None

    def _after(self, state: int, name: str, ahead: str) -> int:
        """The state after that nonterminal, and after the rules that only hand it on."""
        step = state, name, ahead
        while True:
            after = self.rows[state][name]
            assert isinstance(after, int)
            action = self.rows[after].get(ahead)
            if not isinstance(action, Reduction) or action.make is not None:
                self.known[step] = after
                return after
            name = action.name
