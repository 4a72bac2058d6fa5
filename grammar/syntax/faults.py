"""A syntax error, as the parser met it -> a diagnostic that says what to change.

Each rule below knows one way of going wrong. A rule that proposes an edit is believed only if the edit, tried out,
moves the parser past the fault, so what a diagnostic proposes works; a rule without an edit looks closely first.
"""

from collections.abc import Callable, Iterator

from tfc.diagnostics import Diagnostic, Edit, Note
from tfc.grammar.syntax.habits import HABITS
from tfc.grammar.syntax.scan import IN_BODIES, Scan, Token
from tfc.grammar.syntax.site import CLOSERS, Fault, Retry, Site
from tfc.grammar.syntax.words import BODIED, RESERVED, ROLES, WORDS, meant, short
from tfc.source import Span

__all__ = ["explain"]

_OPERATORS = frozenset("+ - * / // % ^ == != < <= > >= and or not =".split())
_AT_TOP = ("import", "names", "default")
_ELSEWHERE = {  # words of other languages, and what stands in their place
    "def": "`block name(x) { ... return y }` defines",
    "fn": "`block name(x) { ... return y }` defines",
    "func": "`block name(x) { ... return y }` defines",
    "function": "`block name(x) { ... return y }` defines",
    "class": "`block name(x) { ... return y }` defines",
    "lambda": "a formula has no argument list: `score tilt = s - abs(q - k)`; a block has a name",
    "for": "`repeat 12 as layer { ... }` repeats; an index equation, `y[i] = ...`, computes element by element",
    "while": "`repeat 12 as layer { ... }` repeats",
    "if": "`if(condition, then, otherwise)` is a function",
    "elif": "`if(condition, then, otherwise)` is a function",
    "else": "`if(condition, then, otherwise)` is a function",
    "is": "`==` compares",
    "in": "`or` joins the cases: `q.kind == 1 or q.kind == 2`",
    "const": "`let name = value` names a value",
    "var": "`let name = value` names a value",
    "from": '`import "file.tfm" (name)` imports',
    "end": "braces close with `}`",
}


_Rule = Callable[[Site], Iterator[Diagnostic]]
"""Yields guesses, the best first."""


def explain(scanned: Scan, fault: Fault, start: int, end: int, retry: Retry) -> Diagnostic:
    """What is wrong at `fault`, within the item text[start:end]."""
    site = Site(scanned, fault, start, end, retry)
    for rule in _RULES:
        for found in rule(site):
            if not found.edits or site.mends(found.edits):
                return found
    return _unexpected(site)


# ---- the rules, the most telling first


def _missing_operand(site: Site) -> Iterator[Diagnostic]:
    """`x = a +` at the end of a line: the parser notices one line late, or at a closing bracket."""
    candidates = [site.here] if site.here == len(site.tokens) or site.text() in (")", "]", "}", ",") else []
    if site.tokens and site.tokens[site.line_start].first:
        candidates.append(site.line_start)
    for i in candidates:
        if i < 1 or site.tokens[i - 1].text not in _OPERATORS:
            continue
        operator = site.tokens[i - 1]
        if operator.text == "=" and i < len(site.tokens) and site.here - i > 2:
            continue  # the value stands on the next line, and something else is wrong with it
        what = "the value after `=`" if operator.text == "=" else f"the right side of `{operator.text}`"
        drop = "" if operator.text in ("=", "not") else f", or drop the `{operator.text}`"
        help = f"write it{drop}"
        yield Diagnostic(code="E111", message=f"{what} is missing", span=site.after(operator), help=help)


def _missing_size(site: Site) -> Iterator[Diagnostic]:
    """`y[t:] = ..`, `param w[h:]`, `f(x:)`."""
    if site.text(-1) == ":" and site.text() in ("]", ")", ",", "=") and site.inside in ("[", "("):
        what, such = ("size", "`t: 4`") if site.inside == "[" else ("type", "`x: int[B, T]`")
        message, help = f"the {what} after `:` is missing", f"write it, {such} for one, or drop the `:`"
        yield Diagnostic(code="E111", message=message, span=site.after(site.token(-1)), help=help)


def _range(site: Site) -> Iterator[Diagnostic]:
    """`x[1:3]`, `x[:3]`, `x[i: 3]`: what other languages call a slice."""
    colon = site.here if site.text() == ":" and site.inside == "[" else -1
    if site.fault.expected == {"`(`"} and site.text(-1) == "]" and site.text() != "(":  # a reducer's head, and no call
        depth = 0
        for i in range(site.here - 1, -1, -1):
            depth += (site.tokens[i].text in CLOSERS.values()) - (site.tokens[i].text in CLOSERS)
            if depth == 0:
                break
            if depth == 1 and site.tokens[i].text == ":":
                colon = i
    if colon < 0 or site.fault.expected in (_FIRST_INDEX, _NEXT_INDEX, _AFTER_INDEX):
        return
    help = "`x[t]` reads one element; `part(x, 2, 4)` is four tokens from the third on, `y[t: 4] = x[t + 2]` the same"
    if any(t.text == ":" for t in site.tokens[site.brackets[-1] if site.brackets else 0 : colon]):
        help = "steps stand where a tensor is read: `y[t: T // 2] = x[2 * t]`"
    yield Diagnostic(code="E110", message="a range in a subscript", span=site.span(site.tokens[colon]), help=help)


_FIRST_INDEX, _NEXT_INDEX = frozenset(("a name", "`..`")), frozenset(("a name", "`]`"))
_AFTER_INDEX = frozenset(("`,`", "`]`", "`:`"))


def _result_index(site: Site) -> Iterator[Diagnostic]:
    """`y[b, 3] = ..`, `y[b, t + 1] = ..`, `y[:, t] = ..`, `y[t, ..] = ..`."""
    if site.inside != "[" or site.here == len(site.tokens) or site.token().kind == "name":
        return
    text, span = site.text(), site.place
    message, help = "an index of a result is a name, perhaps with its size", "write `y[b, t]` or `y[b, t: 4]`"
    edits: tuple[Edit, ...] = ()
    if site.fault.expected == _AFTER_INDEX:
        if text == "=":
            message, help, edits = "`=` in a subscript", "a size stands after `:`", (Edit(span, ":"),)
        elif text in _OPERATORS:
            help = "shift what is read instead: `y[t] = x[t - 1]`"
    elif site.fault.expected not in (_FIRST_INDEX, _NEXT_INDEX) or text == "]" or text == ",":
        return
    elif text == ":":
        help = "every index has a name: `y[b, t] = x[b, t]`; `..`, standing first, is all the axes before the others"
    elif text.isdigit() and text.strip("0"):
        help = f"an axis of {text} elements is `i: {text}`"
    if text == "..":
        message, help = "`..` stands first", "it is all the axes before the others: `y[.., c] = x[.., c]`"
    yield Diagnostic(code="E110", message=message, span=span, help=help, edits=edits)


def _slashes(site: Site) -> Iterator[Diagnostic]:
    """`// a comment`, on the line of the fault or the one before."""
    for token in reversed(site.tokens[max(0, site.line_start - 40) : site.here + 1]):
        if token.text == "//":
            line = site.scanned.source.position(token.start)[0]
            if site.scanned.source.position(min(site.fault.at, site.end))[0] - line > 1:
                return
            edits = (Edit(site.span(token), "#"),)
            help = "a comment runs from `#` to the end of its line; `//` is division rounded down"
            message = "`//` begins no comment"
            yield Diagnostic(code="E104", message=message, span=site.span(token), help=help, edits=edits)


def _misspelt(site: Site) -> Iterator[Diagnostic]:
    """`retrun x`, `modle m(..)`, `reapeat 3 as l`: a word near the fault that is almost one of the language."""
    near = list(range(site.here, max(-1, site.here - 5), -1))
    line = [i for i in range(site.line_start, min(site.here, site.line_start + 3))]
    opening = [b - n for b in site.brackets for n in (2, 4) if b >= n]
    for i in dict.fromkeys((*near, *line, *reversed(opening))):
        if i >= len(site.tokens) or site.tokens[i].kind != "name":
            continue
        token = site.tokens[i]
        if token.text in WORDS or len(token.text) < 2:
            continue
        expected = [word for word in WORDS if f"`{word}`" in site.fault.expected] if i == site.here else []
        for words in (expected, WORDS):
            if word := meant(token.text, words):
                span = site.span(token)
                message = f"`{token.text}` is no word of the language"
                help = f"did you mean `{word}`?"
                yield Diagnostic(code="E115", message=message, span=span, help=help, edits=(Edit(span, word),))


def _of_other_languages(site: Site) -> Iterator[Diagnostic]:
    for i in range(max(site.line_start, site.here - 12), min(site.here + 1, len(site.tokens))):
        token = site.tokens[i]
        if token.kind != "name" or token.text not in _ELSEWHERE:
            continue
        called = i + 1 < len(site.tokens) and site.tokens[i + 1].start == token.end and site.tokens[i + 1].text == "("
        named = i + 1 < len(site.tokens) and site.tokens[i + 1].text == "="
        if called or named:
            continue
        span = site.span(token)
        edits = (Edit(span, "=="),) if token.text == "is" else ()
        message = f"`{token.text}` is no word of the language"
        yield Diagnostic(code="E109", message=message, span=span, help=_ELSEWHERE[token.text], edits=edits)


def _equals(site: Site) -> Iterator[Diagnostic]:
    """`=` for `==`, `==` or `:` for `=`."""
    if not site.tokens or site.here >= len(site.tokens):
        return
    span = site.span(site.token())
    if site.text() == "=":
        help = "`==` compares, `=` gives a name its value"
        yield Diagnostic(code="E112", message="`=` within a formula", span=span, help=help, edits=(Edit(span, "=="),))
    if site.text() in ("==", ":") and site.here > 0:
        help = f"write `{short(site.text(-1))} = ...`" if site.text(-1) not in CLOSERS.values() else "write `=`"
        message = f"`{site.text()}` gives no name its value"
        yield Diagnostic(code="E112", message=message, span=span, help=help, edits=(Edit(span, "="),))
    if site.text() == ":" and site.inside == "{" and site.is_name(-1):
        help = "inputs of a block carry types, equations do not"
        yield Diagnostic(code="E110", message=f"a type for `{site.text(-1)}`", span=span, help=help)


def _comma(site: Site) -> Iterator[Diagnostic]:
    """Commas between attributes or statements, after the last value of a `let`, missing between arguments."""
    if site.text() == "," and site.inside == "{":
        edits = tuple(Edit(site.span(t), "") for t in _same_level(site, ","))
        message, help = "a comma between attributes or statements", "nothing stands between them"
        yield Diagnostic(code="E113", message=message, span=site.place, help=help, edits=edits)
    for i in range(site.here, max(-1, site.here - 5), -1):
        if i >= len(site.tokens) or site.tokens[i].text != ",":
            continue
        span = site.span(site.tokens[i])
        before = site.tokens[:i]
        in_let = any(t.text == "let" for t in before[max(0, site.line_start - 60) :]) and site.inside in ("", "{")
        if i == site.here:
            message, help = "a comma between attributes or statements", "nothing stands between them"
            if site.inside in ("(", "["):
                message, help = "a comma without a value before it", "write the value, or drop the comma"
        elif in_let:
            message, help = "a comma after the last value of a `let`", "commas stand between the values only"
        else:
            message, help = "a comma too many", "drop it"
        yield Diagnostic(code="E113", message=message, span=span, help=help, edits=(Edit(span, ""),))
    if site.inside in ("(", "[") and 0 < site.here < len(site.tokens):
        after = site.after(site.token(-1))
        message = f"a comma is missing before `{short(site.text())}`"
        help = "values in brackets stand between commas"
        yield Diagnostic(code="E113", message=message, span=site.place, help=help, edits=(Edit(after, ","),))


def _same_level(site: Site, text: str) -> Iterator[Token]:
    """The tokens `text` from the fault on that stand directly in the brackets of the fault."""
    depth = 0
    for token in site.tokens[site.here :]:
        depth += (token.text in CLOSERS) - (token.text in CLOSERS.values())
        if depth < 0:
            return
        if depth == 0 and token.text == text:
            yield token


def _loose_bracket(site: Site) -> Iterator[Diagnostic]:
    """`f (x)`, and statements that begin with a bracket."""
    if site.here >= len(site.tokens) or site.text() not in ("(", "[") or site.here == 0:
        return
    before, bracket = site.token(-1), site.token()
    if before.text == "}":
        help = "name the changed component first: `f = base { ... }`, then `f(x)`"
        message = "braces end a value"
        yield Diagnostic(code="E114", message=message, span=site.place, help=help)
        return
    if not bracket.first and (before.kind == "name" or before.text in (")", "]")) and before.end < bracket.start:
        gap = Span(site.scanned.source, before.end, bracket.start)
        what = "call" if bracket.text == "(" else "subscript"
        message = f"the bracket of a {what} touches what it follows"
        help = f"write `{before.text}{bracket.text}`"
        yield Diagnostic(code="E114", message=message, span=site.place, help=help, edits=(Edit(gap, ""),))
    if bracket.first:
        message = f"no statement begins with `{bracket.text}`"
        help = "a statement names what it computes: `x = ...`; lines do not end statements"
        yield Diagnostic(code="E114", message=message, span=site.place, help=help)


def _misplaced(site: Site) -> Iterator[Diagnostic]:
    """Statements at the top of a file, items of a file inside a block, attributes where equations stand."""
    text = site.text()
    if text in IN_BODIES and not site.brackets and site.text(1) != "=" and site.text(-1) not in _OPERATORS:
        message = f"`{text}` outside a block"
        help = "it stands in the body of a `block`, `model` or `repeat`"
        yield Diagnostic(code="E116", message=message, span=site.place, help=help)
    if site.here < len(site.tokens) and text in (*IN_BODIES, "let", "param") and site.inside == "{":
        opener = site.brackets[-1]
        name = site.tokens[opener - 1] if opener > 1 else None
        if name and name.kind == "name" and site.tokens[opener - 2].text in BODIED:
            after = site.after(name)
            help = f"write `{site.tokens[opener - 2].text} {short(name.text)}() {{`"
            message = f"the inputs of `{short(name.text)}` are missing"
            yield Diagnostic(code="E119", message=message, span=site.span(name), help=help, edits=(Edit(after, "()"),))
    if text in _AT_TOP and site.brackets and not (site.text(-1) in _OPERATORS or site.text(1) == "="):
        help = "it stands at the top of a file, outside all braces"
        opener_token = site.tokens[site.brackets[-1]]
        note = Note(f"this `{opener_token.text}` is open here", site.span(opener_token))
        message = f"`{text}` inside brackets"
        yield Diagnostic(code="E116", message=message, span=site.place, help=help, notes=(note,))
    if not site.brackets and site.is_name(-1) and text in ("=", "["):
        name = site.token(-1)
        if text == "[" and site.token().start > name.end:
            return
        message = "an equation outside a block"
        before = Span(site.scanned.source, name.start, name.start)
        if text == "=":
            help = f"a value of the file is `let {short(name.text)} = ...`"
            yield Diagnostic(
                code="E116", message=message, span=site.span(name), help=help, edits=(Edit(before, "let "),)
            )
        help = "equations stand in the body of a `block` or `model`"
        if name.first:
            yield Diagnostic(code="E116", message=message, span=site.span(name), help=help)


def _repeat_without_name(site: Site) -> Iterator[Diagnostic]:
    if site.text() != "{":
        return
    for i in range(site.here - 1, max(-1, site.here - 40), -1):
        if site.tokens[i].text == "as":
            return
        if site.tokens[i].text == "repeat":
            after = site.after(site.token(-1))
            help = "the name is index and path of the turns: `repeat 12 as layer { ... }`"
            message = "`repeat` without a name"
            edits = (Edit(after, " as layer"),)
            yield Diagnostic(code="E117", message=message, span=site.span(site.tokens[i]), help=help, edits=edits)
            return


def _loose_braces(site: Site) -> Iterator[Diagnostic]:
    """`return base { .. }`, `base { .. } + 1`."""
    if site.text() == "{" and (site.is_name(-1) or site.text(-1) in (")", "]")):
        message = "braces in the middle of an expression"
        help = "they follow a whole value: right of `=`, in arguments, in lists; name the changed component first"
        yield Diagnostic(code="E114", message=message, span=site.place, help=help)


def _reserved(site: Site) -> Iterator[Diagnostic]:
    """A keyword where a name is wanted: `x = a + repeat`; `param = 3`, where the next token shows it."""
    for offset in (0, -1):
        if site.text(offset) in RESERVED:
            token = site.token(offset)
            span = site.span(token)
            message = f"`{token.text}` is a word of the language: it names nothing"
            help = f"choose another name, `{token.text}_` for one"
            yield Diagnostic(code="E108", message=message, span=span, help=help, edits=(Edit(span, f"{token.text}_"),))


def _reserved_within(site: Site) -> Iterator[Diagnostic]:
    """The same, where no statement or item could begin and the keyword can have no other sense."""
    if "`let`" not in site.fault.expected:
        yield from _reserved(site)


def _import_path(site: Site) -> Iterator[Diagnostic]:
    """`import llama`."""
    if site.is_name(0) and site.text(-1) == "import":
        span, last = site.place, site.here
        tokens = site.tokens
        while last + 2 < len(tokens) and tokens[last + 1].text in (".", "/") and not tokens[last + 2].first:
            last += 2
        path = site.scanned.source.text[span.start : site.tokens[last].end]
        span = Span(site.scanned.source, span.start, site.tokens[last].end)
        new = f'"{path}"' if path.endswith(".tfm") else f'"{path}.tfm"'
        message, help = "the file to import is a string", f"write `import {new}`"
        yield Diagnostic(code="E110", message=message, span=span, help=help, edits=(Edit(span, new),))


def _documentation(site: Site) -> Iterator[Diagnostic]:
    """A string with nothing after it, or after what it describes."""
    offset = -1 if site.here == len(site.tokens) or site.text() == "}" else 0
    i = site.here + offset
    if 0 <= i < len(site.tokens) and site.tokens[i].kind == "string" and (offset or site.inside in ("", "{")):
        first = i
        while first > 0 and site.tokens[first - 1].kind == "string":
            first -= 1
        edits = tuple(
            Edit(site.span(t), f"# {t.text[1:-1]}" + ("" if _ends_line(site, t) else "\n"))
            for t in site.tokens[first : i + 1]
        )
        help = "it stands before what it describes; a remark is a comment, `# ...`"
        message = "a documentation that describes nothing"
        yield Diagnostic(code="E118", message=message, span=site.span(site.tokens[i]), help=help, edits=edits)


def _ends_line(site: Site, token: Token) -> bool:
    text = site.scanned.source.text
    end = text.find("\n", token.end)
    rest = text[token.end : end if end >= 0 else len(text)]
    return not rest.strip() or rest.lstrip().startswith("#")


def _block_shape(site: Site) -> Iterator[Diagnostic]:
    """`block f(x) = ...`, `block f(x): ...`, `block f x {`."""
    if site.here == len(site.tokens) and site.here >= 2 and site.is_name(-1) and not site.inside:
        kind, name = site.token(-2), site.token(-1)
        if kind.kind == "name" and kind.text not in RESERVED:
            forms = f"`{kind.text} {short(name.text)} {{ ... }}` or `{kind.text} {short(name.text)} = base`"
            if kind.text in ROLES:
                forms = f"`{kind.text} {short(name.text)} = ...`"
            elif kind.text in BODIED:
                forms = f"`{kind.text} {short(name.text)}(x) {{ ... return y }}`"
            message = f"nothing is said of `{short(name.text)}`"
            yield Diagnostic(code="E119", message=message, span=site.span(name), help=f"write {forms}")


def _unexpected(site: Site) -> Diagnostic:
    """What is left: what stands there, and what could."""
    expected = _describe(site.fault.expected)
    help = f"expected {expected}" if expected else ""
    if site.here == len(site.tokens):
        message, span = "the text ends too early", site.place
    else:
        message, span = f"unexpected `{short(site.text())}`", site.place
    return Diagnostic(code="E110", message=message, span=span, help=help)


_VALUE = frozenset(("a name", "a number", "`[`", "`(`", "`-`"))
_INFIX = frozenset(f"`{op}`" for op in _OPERATORS - {"not", "="})
_STATEMENT = frozenset(("`let`", "`param`", "a name", "a string", "`repeat`", "`return`", "`report`"))
_ITEM = frozenset(("`let`", "`param`", "a name", "a string", "`import`", "`names`", "`default`"))


def _describe(expected: frozenset[str]) -> str:
    """A short list of what could follow, groups by their names."""
    left, parts = set(expected), []
    for group, name in ((_STATEMENT, "a statement"), (_ITEM, "an item"), (_VALUE, "a value"), (_INFIX, "an operator")):
        if group <= left:
            left -= group | ({"`not`", "a string"} if group is _VALUE else set())
            if group is _INFIX:
                left -= {"`@`", "`.`"}
            parts.append(name)
    parts = sorted(left) + parts
    if len(parts) > 6:
        return ""
    return " or ".join((", ".join(parts[:-1]), parts[-1]) if len(parts) > 1 else parts)


_RULES: tuple[_Rule, ...] = (
    _missing_size,
    _range,
    _result_index,
    *HABITS,
    _missing_operand,
    _slashes,
    _import_path,
    _reserved_within,
    _misplaced,
    _reserved,
    _loose_bracket,
    _misspelt,
    _of_other_languages,
    _repeat_without_name,
    _equals,
    _comma,
    _loose_braces,
    _documentation,
    _block_shape,
)
