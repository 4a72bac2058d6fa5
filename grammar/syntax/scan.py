"""A text -> its tokens and comments in one pass, and the faults that need no grammar: characters, numbers, brackets.

A text without a fault is parsed from these tokens; Lark's own lexer reads those with one again. This one never stops at
a fault, so that every one is found in a single run; it also tells the parser where items begin, which is where parsing
resumes after a syntax error.
"""

import re
from dataclasses import dataclass, field
from itertools import islice, pairwise

from tfc.diagnostics import Diagnostic, Edit, Note
from tfc.grammar.syntax.letters import called, plain
from tfc.grammar.syntax.words import short
from tfc.record import record
from tfc.source import Source, Span

__all__ = ["IN_BODIES", "MAX_BYTES", "MAX_DEPTH", "MAX_FAULTS", "Scan", "Token", "check_characters", "scan"]

MAX_BYTES = 256 * 1024
"""Sources above this are refused before parsing: a megabyte takes seconds."""
MAX_TOKENS = 40_000
"""Words and signs: what takes half a second to parse."""
MAX_DEPTH = 200
"""Brackets within brackets."""
MAX_FAULTS = 10
"""Diagnostics of one run: after these the rest is mostly noise."""

IN_BODIES = ("return", "repeat", "report")
"""Words that begin a statement and never an item."""

# Characters that show nothing or reorder what is shown; tab and line ends are the only controls a text needs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_NAMED_HIDDEN = {"\x00": "a NUL byte", "\ufeff": "a byte order mark"}

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+)
    | (?P<comment>\#[^\n]*)
    | (?P<string>"(?:[^"\\\n]|\\[^\n])*")
    | (?P<open_string>"[^\n]*)
    | (?P<name>[^\W\d]\w*)
    | (?P<number>[0-9]+(?:_[0-9]+)*(?:\.[0-9]+(?:_[0-9]+)*)?(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))
    | (?P<bad_number>(?:[0-9]|\.[0-9])(?:[eE][+-](?=[0-9])|[A-Za-z0-9_.])*)
    | (?P<foreign>\*\*|===|!==|<>|&&?|\|\|?|!(?!=)|[-+*/%^]=(?!=)|:=|->|=>|=<|/\*|\*/|\.\.\.+|'[^'\n]*'|;)
    | (?P<operator>//|\.\.|==|!=|<=|>=|[-+*/%^<>=,.:@])
    | (?P<bracket>[()\[\]{}])
    | (?P<stray>.)""",
    re.VERBOSE,
)


@record(frozen=True, slots=True)
class Token:
    """kind: a group name of the pattern above, without blanks and comments; first: whether it begins its line."""

    kind: str
    text: str
    start: int
    first: bool

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Scan:
    """tokens, comments as (offset, text), the faults found, and where items begin (offsets, in order).

    too_deep: not to be parsed, for its depth or its length.
    """

    source: Source
    tokens: tuple[Token, ...]
    comments: tuple[tuple[int, str], ...]
    faults: tuple[Diagnostic, ...]
    starts: tuple[int, ...]
    too_deep: bool = False

    def span(self, token: Token) -> Span:
        return Span(self.source, token.start, token.end)


def check_characters(source: Source) -> list[Diagnostic]:
    """What makes a text unreadable as a whole: its size, and hidden or reordering characters (the first of them)."""
    size = len(source.text) if source.text.isascii() else len(source.text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        return [
            Diagnostic(
                code="E003",
                message=f"the text has {size:_} bytes; {MAX_BYTES:_} is the limit",
                span=Span(source, 0, 0),
                help="split it into files and import them",
            )
        ]
    if source.text.isascii() and source.text.isprintable():
        return []
    if hidden := _HIDDEN.search(source.text):
        char = hidden.group()
        what = _NAMED_HIDDEN.get(char, f"the invisible character U+{ord(char):04X}")
        span = Span(source, hidden.start(), hidden.end())
        message = f"{what} in the text"
        return [Diagnostic(code="E004", message=message, span=span, help="remove it", edits=(Edit(span, ""),))]
    return []


def scan(source: Source) -> Scan:
    """Tokens, comments, faults and item starts of a text that `check_characters` let pass."""
    tokens: list[Token] = []
    comments: list[tuple[int, str]] = []
    first = True
    for match in _TOKEN.finditer(source.text):
        kind, text = match.lastgroup or "", match.group()
        if kind == "blank":
            first = first or "\n" in text
        elif kind == "comment":
            comments.append((match.start(), text))
        else:
            if kind == "name" and not text.isascii():
                kind = "stray"
            tokens.append(Token(kind, text, match.start(), first))
            first = False
    faulty = (token for token in tokens if token.kind in _FAULTY)
    faults = [_FAULTY[token.kind](source, token) for token in islice(faulty, MAX_FAULTS)]
    brackets = _match(source, tokens, by_layout=False)
    if len(tokens) > MAX_TOKENS and not brackets.too_deep:
        beyond = tokens[MAX_TOKENS]
        message = f"the text has {len(tokens):_} words and signs; {MAX_TOKENS:_} is the limit"
        help = "split it into files and import them"
        fault = Diagnostic(code="E003", message=message, span=Span(source, beyond.start, beyond.end), help=help)
        return Scan(source, (), (), (fault,), (), too_deep=True)
    if brackets.faults:  # the layout shows which of two brackets is the lonely one, where brackets alone do not
        by_layout = _match(source, tokens, by_layout=True)
        brackets = by_layout if by_layout.faults else brackets
    faults += brackets.faults[:MAX_FAULTS]
    faults.sort(key=lambda fault: fault.span.start if fault.span else 0)
    starts = tuple(
        token.start
        for (token, after), depth in zip(pairwise(tokens), brackets.depths, strict=False)
        if depth == 0 and token.first and _begins_item(token, after)
    )
    return Scan(source, tuple(tokens), tuple(comments), tuple(faults), starts, brackets.too_deep)


def _begins_item(token: Token, after: Token) -> bool:
    """Two words on one line, or a documentation before a word: what every item, and no line within one, begins with."""
    if token.text in IN_BODIES:
        return False
    if token.kind == "string":
        return after.kind in ("name", "string") and after.first
    return token.kind == "name" and after.kind in ("name", "string") and not after.first


# ---- faults of a single token


_REPLACEMENT = {
    "**": ("^", "`^` is the power"),
    "===": ("==", "equality is `==`"),
    "!==": ("!=", "inequality is `!=`"),
    "<>": ("!=", "inequality is `!=`"),
    "&": ("and", "`and` joins conditions; it binds more loosely than comparisons"),
    "&&": ("and", "`and` joins conditions"),
    "|": ("or", "`or` joins conditions; it binds more loosely than comparisons"),
    "||": ("or", "`or` joins conditions"),
    "!": ("not ", "`not` negates"),
    ":=": ("=", "`=` gives a name its value"),
    "=>": (">=", "at least is `>=`"),
    "=<": ("<=", "at most is `<=`"),
    ";": ("", "nothing stands between statements"),
}
_LOOKALIKE = {
    "×": "*", "·": "*", "∙": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "—": "-", "≤": "<=", "≥": ">=",
    "≠": "!=", "“": '"', "”": '"', "„": '"', "∧": "and", "∨": "or", "¬": "not ", "∞": "inf", "‘": '"', "’": '"',
    "（": "(", "）": ")", "，": ",", "：": ":", "\u00a0": " ",
}  # fmt: skip
_UNITS = {"k": 1024, "K": 1024, "m": 1024**2, "M": 1024**2, "g": 1024**3, "G": 1024**3}


def _replace(source: Source, token: Token, code: str, message: str, text: str, why: str) -> Diagnostic:
    span = Span(source, token.start, token.end)
    before, after = source.text[max(0, token.start - 1) : token.start], source.text[token.end : token.end + 1]
    if text[:1].isalpha() and (before.isalnum() or before in "_)]"):
        text = " " + text
    if text[-1:].isalpha() and (after.isalnum() or after in ("_", "(", "[")):
        text = text + " "
    return Diagnostic(code=code, message=message, span=span, help=why, edits=(Edit(span, text),))


def _foreign(source: Source, token: Token) -> Diagnostic:
    text, span = token.text, Span(source, token.start, token.end)
    if text in _REPLACEMENT:
        new, why = _REPLACEMENT[text]
        return _replace(source, token, "E104", f"`{text}` is not of this language", new, why)
    if text.startswith("'"):
        quoted = '"' + text[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'
        return _replace(source, token, "E104", "strings stand between double quotes", quoted, f"write {short(quoted)}")
    if text.endswith("=") and len(text) == 2:
        line = source.text[source.starts[source.position(token.start)[0] - 1] : token.start]
        name = re.search(r"([A-Za-z_][A-Za-z0-9_]*)[ \t]*$", line)
        if text == "+=" and name:  # the one of them whose right side needs no parentheses
            new, why = f"= {name[1]} +", f"write `{short(name[1])} = {short(name[1])} + ...`"
            return _replace(source, token, "E104", "`+=` is not of this language", new, why)
        why = f"write the equation out: `x = x {text[0]} (...)`"
        return Diagnostic(code="E104", message=f"`{text}` is not of this language", span=span, help=why)
    if text in ("/*", "*/"):
        line = source.line(source.position(token.start)[0]).strip()
        whole = line.count("/*") == 1 and line.endswith("*/") and line.count("*/") == 1
        edits = (Edit(span, "#" if text == "/*" else ""),) if whole else ()
        help = "a comment runs from `#` to the end of its line"
        return Diagnostic(code="E104", message=f"`{text}` is not of this language", span=span, help=help, edits=edits)
    if text.startswith("..."):
        why = "`..` stands for all the axes before: `y[.., o] = ...`"
        return _replace(source, token, "E104", f"`{short(text)}` is not of this language", "..", why)
    why = "the body of a block ends in `return`; inputs carry their types: `x: int[B, T]`"
    return Diagnostic(code="E104", message=f"`{text}` is not of this language", span=span, help=why)


def _bad_number(source: Source, token: Token) -> Diagnostic:
    text, span = token.text, Span(source, token.start, token.end)
    message = f"`{short(text)}` is not a number"
    unit = re.fullmatch(r"([0-9]+)([kKmMgG])[iI]?[bB]?", text)
    if unit and len(unit[1]) < 10:
        count, size = int(unit[1]), _UNITS[unit[2]]
        decimal = count * 1000 ** (size.bit_length() // 10)
        edits = (Edit(span, f"{count * size:_}"),)
        help = f"numbers have no units; write {count * size:_} ({count} * {size:_}) or {decimal:_}"
        return Diagnostic(code="E105", message=message, span=span, help=help, edits=edits)
    if re.fullmatch(r"[0-9]+\.", text) or re.fullmatch(r"\.[0-9]+", text):
        new = f"{text}0" if text.endswith(".") else f"0{text}"
        return _replace(
            source, token, "E105", message, new, f"write {short(new)}: digits stand on both sides of the point"
        )
    if re.fullmatch(r"0[xXbBoO][0-9a-fA-F]+", text) and len(text) < 20:
        try:
            value = f"{int(text, 0):_}"
        except ValueError:
            return Diagnostic(code="E105", message=message, span=span, help="numbers are decimal")
        return _replace(source, token, "E105", message, value, f"numbers are decimal: write {value}")
    if re.fullmatch(r"[0-9_]+", text):
        value = re.sub("_+", "_", text).strip("_")
        return _replace(source, token, "E105", message, value, f"one `_` stands between digits: {short(value)}")
    split = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z_][A-Za-z0-9_]*)", text)
    if split:
        why = f"a number does not touch a letter; a product is `{short(split[1])} * {short(split[2])}`"
        return _replace(source, token, "E105", message, f"{split[1]} * {split[2]}", why)
    return Diagnostic(code="E105", message=message, span=span, help="numbers are written 12, 4_096, 0.5, 1e-6")


def _open_string(source: Source, token: Token) -> Diagnostic:
    line = token.text.rstrip()
    end = token.start + len(line)
    edit = Edit(Span(source, end, end), '\\"' if line.endswith("\\") and not line.endswith("\\\\") else '"')
    help = 'a string ends on its line with `"`; several in a row are the lines of one documentation'
    span = Span(source, token.start, token.start + 1)
    return Diagnostic(code="E106", message="this string does not end", span=span, help=help, edits=(edit,))


def _stray(source: Source, token: Token) -> Diagnostic:
    if token.text in _LOOKALIKE:
        new = _LOOKALIKE[token.text]
        message = f"`{token.text}` (U+{ord(token.text):04X}) is no character of the language"
        return _replace(source, token, "E103", message, new, f"write `{new.strip()}`" if new.strip() else "use a space")
    span = Span(source, token.start, token.end)
    if len(token.text) > 1 or token.text.isidentifier():
        foreign = next(c for c in token.text if not c.isascii())
        message = f"`{short(token.text)}` is no name of the language: `{foreign}` is {called(foreign)}"
        if new := plain(token.text):
            return _replace(source, token, "E103", message, new, f"write `{short(new)}`")
        help = "names are made of a to z, A to Z, digits and `_`; other letters stand in strings and comments"
        return Diagnostic(code="E103", message=message, span=span, help=help)
    what = "" if token.text.isascii() else f", {called(token.text)},"
    message = f"`{token.text}`{what} is no character of the language"
    return Diagnostic(code="E103", message=message, span=span, help="other characters stand in strings and comments")


_FAULTY = {"foreign": _foreign, "bad_number": _bad_number, "open_string": _open_string, "stray": _stray}


# ---- brackets


_CLOSER = {"(": ")", "[": "]", "{": "}"}


@dataclass(slots=True)
class _Brackets:
    depths: list[int] = field(default_factory=list)  # before each token
    faults: list[Diagnostic] = field(default_factory=list)
    too_deep: bool = False


def _match(source: Source, tokens: list[Token], *, by_layout: bool) -> _Brackets:
    """Pair brackets. By layout: an item at the margin ends all before it, and a closing brace that begins a line
    belongs to the opening line with the same indentation."""
    found = _Brackets()
    stack: list[Token] = []

    def unclosed(down_to: int, before: int | None) -> None:
        while len(stack) > down_to:
            found.faults.append(_unclosed(source, tokens, stack.pop(), before))

    for number, token in enumerate(tokens):
        if by_layout and stack and token.first and number + 1 < len(tokens):
            margin = token.start == 0 or source.text[token.start - 1] == "\n"
            if margin and _begins_item(token, tokens[number + 1]):
                unclosed(0, number)
        found.depths.append(len(stack))
        if token.kind != "bracket":
            continue
        if token.text in _CLOSER:
            stack.append(token)
            if len(stack) > MAX_DEPTH and not found.too_deep:
                found.too_deep = True
                message = f"brackets nested more than {MAX_DEPTH} deep"
                span = Span(source, token.start, token.end)
                help = "name the inner parts with `let` or equations"
                found.faults = [Diagnostic(code="E005", message=message, span=span, help=help)]
                return found
            continue
        fits = [i for i, opener in enumerate(stack) if _CLOSER[opener.text] == token.text]
        if by_layout and token.first:
            indent = _indent(source, token)
            fits = [i for i in fits if _indent(source, stack[i]) == indent] or fits
        if len(found.faults) > MAX_FAULTS:
            continue  # a text of nothing but closers
        if not fits and stack and stack[-1].text in ("(", "["):
            opener, right = stack.pop(), Span(source, token.start, token.end)
            closer = _CLOSER[opener.text]
            opened = (Note("opened here", Span(source, opener.start, opener.end)),)
            message, help = f"`{token.text}` closes `{opener.text}`", f"write `{closer}`"
            edits = (Edit(right, closer),)
            found.faults.append(
                Diagnostic(code="E107", message=message, span=right, help=help, notes=opened, edits=edits)
            )
        elif fits:
            unclosed(fits[-1] + 1, number)
            stack.pop()
        else:
            span = Span(source, token.start, token.end)
            notes = (Note("the innermost open bracket", Span(source, stack[-1].start, stack[-1].end)),) if stack else ()
            message = f"`{token.text}` closes nothing"
            edits = (Edit(span, ""),)
            fault = Diagnostic(code="E107", message=message, span=span, help="remove it", notes=notes, edits=edits)
            found.faults.append(fault)
    unclosed(0, len(tokens))
    return found


def _indent(source: Source, token: Token) -> int:
    line = source.line(source.position(token.start)[0])
    return len(line) - len(line.lstrip())


def _unclosed(source: Source, tokens: list[Token], opener: Token, before: int | None) -> Diagnostic:
    """`before`: the number of the token that shows it to be unclosed. The edit closes it on its own line if that is a
    call's, subscript's or list's, else before that token."""
    closer = _CLOSER[opener.text]
    number = before if before is not None else len(tokens)
    line = source.position(opener.start)[0]
    while opener.text != "{" and number > 1 and source.position(tokens[number - 1].start)[0] > line:
        number -= 1
    last = tokens[number - 1]
    text = closer
    if opener.text == "{":
        one_line = source.position(last.end)[0] == line
        text = " " + closer if one_line else "\n" + " " * _indent(source, opener) + closer
    return Diagnostic(
        code="E107",
        message=f"`{opener.text}` is never closed",
        span=Span(source, opener.start, opener.end),
        help=f"close it with `{closer}`",
        edits=(Edit(Span(source, last.end, last.end), text),),
    )
