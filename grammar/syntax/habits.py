"""A syntax error that comes of writing as in Python -> a diagnostic with the edit that writes it our way.

Rules like those of faults.py, for whole phrases: they look at all tokens of an item and replace several places at once.
"""

from collections.abc import Iterator, Sequence

from tfc.diagnostics import Diagnostic, Edit
from tfc.grammar.syntax.scan import Token
from tfc.grammar.syntax.site import CLOSERS, Site
from tfc.grammar.syntax.words import BODIED, RESERVED, ROLES, short
from tfc.source import Span

__all__ = ["HABITS"]


def _partner(tokens: Sequence[Token], opener: int) -> int | None:
    """The number of the token that closes bracket number `opener`."""
    depth = 0
    for i in range(opener, len(tokens)):
        if tokens[i].kind == "bracket":
            depth += 1 if tokens[i].text in CLOSERS else -1
            if depth == 0:
                return i
    return None


def _kind(site: Site) -> str:
    """The first word of the item; its documentation, which may stand before, is skipped."""
    return next((t.text for t in site.tokens if t.kind != "string"), "")


def _bare_value(site: Site) -> Iterator[Diagnostic]:
    """`f(x)` alone, at the end of a body: Rust's or Julia's way to return."""
    if site.text() != "(" or site.inside != "{" or not site.is_name(-1):
        return
    start = site.here - 1
    while start > 0 and site.tokens[start - 1].text in ("@", "."):
        start -= 2
    if not site.tokens[start].first:
        return
    end = _partner(site.tokens, site.here)
    message = "a value that nothing takes"
    if end is not None and end + 1 < len(site.tokens) and site.tokens[end + 1].text == "}":
        before = Span(site.scanned.source, site.tokens[start].start, site.tokens[start].start)
        edits = (Edit(before, "return "),)
        help = "a body ends in `return`"
        yield Diagnostic(code="E212", message=message, span=site.span(site.tokens[start]), help=help, edits=edits)
    help = "give it a name, `y = ...`, or `return` it"
    yield Diagnostic(code="E110", message=message, span=site.span(site.tokens[start]), help=help)


def _body_by_layout(site: Site) -> Iterator[Diagnostic]:
    """`block f(x):` with its statements indented, `block f(x) return y`: a body without its braces."""
    if _kind(site) not in BODIED or site.inside or site.text(-1) != ")":
        return
    if site.text() not in (":", "return"):
        return
    last = site.after(site.tokens[-1])
    if site.text() == ":":
        edits = (Edit(site.place, " {"), Edit(last, "\n}"))
    else:
        edits = (Edit(Span(site.scanned.source, site.place.start, site.place.start), "{ "), Edit(last, " }"))
    help = "write `{` before it and `}` after it; indentation means nothing"
    message = "a body stands between braces"
    yield Diagnostic(code="E114", message=message, span=site.place, help=help, edits=edits)


def _body_as_value(site: Site) -> Iterator[Diagnostic]:
    """`block f(x) = { return y }`."""
    if _kind(site) in BODIED and not site.inside and site.text() == "{" and site.text(-1) == "=":
        equals = site.span(site.token(-1))
        help = "a body follows its inputs: `block f(x) { ... return y }`"
        message = "`=` before a body"
        yield Diagnostic(code="E114", message=message, span=equals, help=help, edits=(Edit(equals, ""),))


def _attributes_in_parentheses(site: Site) -> Iterator[Diagnostic]:
    """`attention look(heads = 4, mask = causal)` and `look = attention(heads = 4)` at the top of a file."""
    tokens, start = site.tokens, site.line_start
    opener = next((i for i in range(start, len(tokens)) if tokens[i].text == "("), None)
    end = _partner(tokens, opener) if opener is not None else None
    if opener is None or end is None or (end + 1 < len(tokens) and not tokens[end + 1].first):
        return
    head = [t.text for t in tokens[start:opener]]
    if (site.brackets and site.brackets[0] < start) or not head or head[0] in RESERVED:
        return
    source = site.scanned.source
    if len(head) == 2 and tokens[start + 1].kind == "name" and head[0] not in (*ROLES, *BODIED):
        named = Edit(Span(source, tokens[start + 1].end, tokens[opener].end), " { ")
    elif len(head) == 3 and head[1] == "=" and tokens[start + 2].kind == "name":
        named = Edit(Span(source, tokens[start].start, tokens[opener].end), f"{head[2]} {head[0]} {{ ")
    else:
        return
    commas, depth = [], 0
    for token in tokens[opener + 1 : end]:
        depth += (token.text in CLOSERS) - (token.text in CLOSERS.values())
        if depth == 0 and token.text == ",":
            commas.append(Edit(site.span(token), "  "))
    edits = (named, *commas, Edit(site.span(tokens[end]), " }"))
    shown = f"{head[2]} {head[0]}" if len(head) == 3 else f"{head[0]} {head[1]}"
    help = f"write `{short(shown)} {{ a = 1   b = 2 }}`"
    message = "attributes stand between braces, without commas"
    yield Diagnostic(code="E114", message=message, span=site.span(tokens[opener]), help=help, edits=edits)


def _python_loop(site: Site) -> Iterator[Diagnostic]:
    """`for i in range(12) {`, `for f in parts {`."""
    tokens = site.tokens
    at = next((i for i in range(min(site.here, len(tokens) - 1), -1, -1) if tokens[i].text == "for"), None)
    if at is None or at + 4 >= len(tokens) or tokens[at + 2].text != "in" or tokens[at + 1].kind != "name":
        return
    brace = next((i for i in range(at, len(tokens)) if tokens[i].text == "{"), None)
    if brace is None or tokens[brace].first:
        return
    source = site.scanned.source
    over = source.text[tokens[at + 3].start : tokens[brace - 1].end]
    if tokens[at + 3].text == "range" and tokens[at + 4].text == "(" and _partner(tokens, at + 4) == brace - 1:
        over = source.text[tokens[at + 5].start : tokens[brace - 2].end]
    span = Span(source, tokens[at].start, tokens[brace - 1].end)
    new = f"repeat {over} as {tokens[at + 1].text}"
    help = f"write `{short(new)} {{ ... }}`"
    message = "`for` is no word of the language"
    yield Diagnostic(code="E109", message=message, span=site.span(tokens[at]), help=help, edits=(Edit(span, new),))


def _times(site: Site) -> Iterator[Diagnostic]:
    """`repeat 12 times {`, `repeat 12 layers {`."""
    line = [t.text for t in site.tokens[site.line_start : site.here]]
    if site.is_name(0) and site.text(1) == "{" and "repeat" in line:
        word = site.text()
        new = "as layer" if word == "times" else f"as {word}"
        help = f"the turns have a name: `repeat 12 {new} {{ ... }}`"
        message = "`repeat` without `as`"
        yield Diagnostic(code="E117", message=message, span=site.place, help=help, edits=(Edit(site.place, new),))


def _conditional(site: Site) -> Iterator[Diagnostic]:
    """`a if c else b`, `c ? a : b`."""
    tokens = site.tokens
    middle = next((i for i in range(min(site.here, len(tokens) - 1), -1, -1) if tokens[i].text == "if"), None)
    if middle is None:
        return
    otherwise = next((i for i in range(middle, len(tokens)) if tokens[i].text == "else"), None)
    if otherwise is None or otherwise + 1 >= len(tokens) or middle < 1:
        return
    first, depth = middle, 0
    while first > 0 and not (depth == 0 and tokens[first - 1].text in ("=", "return", "(", "[", "{", ",")):
        first -= 1
        depth += (tokens[first].text in CLOSERS.values()) - (tokens[first].text in CLOSERS)
    last, depth = otherwise + 1, 0
    while last < len(tokens) and depth >= 0 and not (depth == 0 and (tokens[last].first or tokens[last].text == ",")):
        depth += (tokens[last].text in CLOSERS) - (tokens[last].text in CLOSERS.values())
        last += 1
    last -= depth < 0
    if first >= middle or last <= otherwise + 1:
        return
    source = site.scanned.source
    parts = [(first, middle), (middle + 1, otherwise), (otherwise + 1, last)]
    then, condition, other = (source.text[tokens[a].start : tokens[b - 1].end] for a, b in parts)
    span = Span(source, tokens[first].start, tokens[last - 1].end)
    help = "`if(condition, then, otherwise)` is a function"
    edits = (Edit(span, f"if({condition}, {then}, {other})"),)
    message = "`if` between values"
    yield Diagnostic(code="E109", message=message, span=site.span(tokens[middle]), help=help, edits=edits)


def _product(site: Site) -> Iterator[Diagnostic]:
    """`4 width`, `4(width)`: a product without its sign."""
    for i in range(site.here, max(0, site.here - 4), -1):
        if i >= len(site.tokens) or site.tokens[i - 1].kind != "number" or site.tokens[i].first:
            continue
        number, factor = site.tokens[i - 1], site.tokens[i]
        if (factor.kind == "name" and factor.text not in RESERVED) or factor.text == "(":
            between = Span(site.scanned.source, number.end, factor.start)
            help = f"write `{short(number.text)} * {short(factor.text)}`"
            message = "a product without its sign"
            edits = (Edit(between, " * "),)
            yield Diagnostic(code="E110", message=message, span=site.span(factor), help=help, edits=edits)


HABITS = (
    _bare_value,
    _body_by_layout,
    _body_as_value,
    _attributes_in_parentheses,
    _python_loop,
    _times,
    _conditional,
    _product,
)
