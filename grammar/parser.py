"""A `.tfm` text -> its syntax tree, or diagnostics. The one file that knows Lark.

The parser's tables are computed from `tfm.lark` once and cached in a folder that only the user can write, since the
cache is a pickle; where there is no such folder they are computed anew, which costs about 0.2 s.
"""

import errno
import hashlib
import os
import stat
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import lark
from lark.lexer import PatternStr
from lark.parse_tree_builder import ExpandSingleChild

from tfc.diagnostics import Diagnostic, Edit
from tfc.grammar import ast
from tfc.grammar.syntax.build import MAX_NESTING, Builder, too_deep
from tfc.grammar.syntax.drive import Driver, Reduction, Row
from tfc.grammar.syntax.scan import MAX_BYTES, MAX_FAULTS, Scan, check_characters, scan
from tfc.grammar.syntax.site import Fault, Retry, checked
from tfc.source import Source, Span

__all__ = ["parse", "read_source"]

_GRAMMAR = Path(__file__).with_name("tfm.lark")
_LOCK = threading.Lock()  # one parser with one builder, shared
_BUILDER = Builder()
_START = attrgetter("start")
_MOST_TRIED = 50_000
"""Characters parsed, in all, to try edits out: about a third of a second."""
_STARTS = ("module", "items")
_parser: lark.Lark | None = None
_driver: Driver | None = None


def read_source(path: str | Path) -> tuple[Source | None, list[Diagnostic]]:
    """The text of a file, its line ends made `\\n`; or why it cannot be read. Reads no more than the limit."""
    name = str(path)

    def refused(code: str, message: str, help: str = "") -> tuple[None, list[Diagnostic]]:
        return None, [Diagnostic(code=code, message=message, help=help)]

    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return refused("E001", f"{name} is a folder", "name a .tfm file in it")
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode):
            return refused("E001", f"{name} is no file")
        data = _read_pipe(path) if stat.S_ISFIFO(mode) else _read_file(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return refused("E001", f"{name} cannot be read: {reason}")
    if len(data) > MAX_BYTES:
        return refused("E003", f"{name} is larger than {MAX_BYTES:_} bytes, the limit", "split it and import the parts")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        help = "save it as UTF-8" if b"\0" not in data else "this looks like a binary file, not a .tfm text"
        return refused("E002", f"{name} is not UTF-8 text: byte 0x{data[error.start]:02x} in line {line}", help)
    return Source(name, _one_line_end(text)), []


def _read_file(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def _read_pipe(path: str | Path) -> bytes:
    """What a pipe holds, `tfc check <(command)`. Raises OSError where nobody writes to it, instead of waiting."""
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for _ in range(20):
            try:
                first = os.read(pipe, MAX_BYTES + 1)
            except BlockingIOError:  # there is a writer, who has not written yet
                first = b""
                break
            if first:
                break
            time.sleep(0.01)  # nobody has it open for writing, yet
        else:
            raise OSError(errno.EPIPE, "a pipe that nobody writes to")
        os.set_blocking(pipe, True)
        with open(pipe, "rb", closefd=False) as file:
            return first + file.read(MAX_BYTES + 1 - len(first))
    finally:
        os.close(pipe)


def _one_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def parse(source: Source) -> tuple[ast.Module | None, list[Diagnostic]]:
    """The tree with its comments, or None and at least one error, up to ten independent ones in the order of the text.

    Places refer to the text with its line ends made `\\n`. Raises nothing.
    """
    text = _one_line_end(source.text.removeprefix("\ufeff"))
    if text is not source.text:
        source = Source(source.name, text)
    if found := check_characters(source):
        return None, found
    scanned = scan(source)
    if scanned.too_deep:
        return None, list(scanned.faults)
    if not scanned.faults and len(scanned.tokens) > 1 and scanned.tokens[0].text == "tfm":
        module, found, error = _run(scanned, 0, len(text), "module")
        if error is None:
            return _finish(scanned, module, found)
        if error.at > scanned.tokens[1].start:
            return None, _recover(scanned, (found, error))
    return None, _recover(scanned, None)


def _finish(scanned: Scan, module: Any, found: list[Diagnostic]) -> tuple[ast.Module | None, list[Diagnostic]]:
    if not found and (span := too_deep(module)):
        help = "name the inner parts with `let` or equations"
        found = [Diagnostic(code="E005", message=f"nested more than {MAX_NESTING} deep", span=span, help=help)]
    if found:
        return None, _in_order(found)
    whole = Span(scanned.source, 0, len(scanned.source.text))
    return ast.Module(version=module.version, items=module.items, comments=scanned.comments, span=whole), []


def _in_order(found: list[Diagnostic]) -> list[Diagnostic]:
    """The first of them, each once: the beginning of an item may have been parsed twice."""
    ordered = sorted(dict.fromkeys(found), key=lambda d: d.span.start if d.span else 0)
    return ordered[:MAX_FAULTS]


# ---- several errors in one run


def _recover(scanned: Scan, first: tuple[list[Diagnostic], Fault] | None) -> list[Diagnostic]:
    """All errors: items that a scanned fault touches are skipped, the rest is parsed, resuming at the next item.

    `first`: what parsing the whole text has come to, if that was tried.
    """
    text = scanned.source.text
    found = list(scanned.faults)
    retry = _limited(_MOST_TRIED)
    start, header = _header(scanned)
    # segments between item starts; what stands before the first is the header's, or one of its own
    bounds = sorted({start, *(s for s in scanned.starts if s > start), len(text)})
    faulty = {bisect_right(bounds, f.span.start) - 1 for f in scanned.faults if f.span}
    found = [*header, *(checked(scanned, f, bounds, retry) for f in found)]
    segment = 0
    while segment < len(bounds) - 1 and len(found) < MAX_FAULTS:
        if segment in faulty:
            segment += 1
            continue
        stop = segment + 1
        while stop < len(bounds) - 1 and stop not in faulty:
            stop += 1
        if first is None:
            _, wrong, error = _run(scanned, bounds[segment], bounds[stop], "items")
        else:
            (wrong, error), first = first, None
        found += wrong
        if error is None:
            segment = stop
            continue
        failed = max(segment, min(stop - 1, bisect_right(bounds, error.at) - 1))
        # a value missing at the end of an item, or a comma too many, shows at the beginning of the next one
        early = sum(bounds[failed] <= t.start < error.at for t in scanned.tokens) < 4 and failed > segment
        from tfc.grammar.syntax.faults import explain  # most texts have no fault, and it takes long to load

        fault = explain(scanned, error, bounds[failed - early], bounds[failed + 1], retry)
        found.append(fault)
        segment = failed if early and fault.span and fault.span.start < bounds[failed] else failed + 1
    return _in_order(found)


def _header(scanned: Scan) -> tuple[int, list[Diagnostic]]:
    """Where the items begin, and what is wrong with `tfm 1`."""
    tokens, source = scanned.tokens, scanned.source
    help = "a file begins with the version of the language: `tfm 1`"

    def wrong(code: str, message: str, span: Span, edit: Edit) -> list[Diagnostic]:
        return [Diagnostic(code=code, message=message, span=span, help=help, edits=(edit,))]

    first = tokens[0] if tokens else None
    second = tokens[1] if len(tokens) > 1 else None
    if first and first.text == "tfm":
        if second and second.kind == "bad_number":
            return second.end, []
        if second and second.kind == "number":
            if second.text == "1":
                return second.end, []
            span = scanned.span(second)
            message = f"the file asks for version {second.text[:20]} of the language; this tfc reads version 1"
            return second.end, wrong("E102", message, span, Edit(span, "1"))
        after = Span(source, first.end, first.end)
        return first.end, wrong("E101", "`tfm` without its version", scanned.span(first), Edit(after, " 1"))
    if first and second and second.text == "1" and first.kind == "name":  # `tfc 1`, `Tfm 1`
        span = scanned.span(first)
        return second.end, wrong("E101", "`tfm 1` is missing", span, Edit(span, "tfm"))
    at = first.start if first else 0
    edit = Edit(Span(source, at, at), "tfm 1\n\n")
    return 0, wrong("E101", "`tfm 1` is missing", scanned.span(first) if first else Span(source, 0, 0), edit)


def _limited(most: int) -> Retry:
    """Tries edits out until `most` characters have been parsed for it; from there on none is believed to mend."""
    left = most

    def retry(source: Source, text: str) -> int | None:
        nonlocal left
        left -= len(text) + 100
        return _retry(source, text) if left >= 0 else 0

    return retry


def _retry(source: Source, text: str) -> int | None:
    """Parse items alone: None if that works, else the offset of the first error. For trying an edit out."""
    trial = scan(Source(source.name, text))
    if trial.faults:
        return trial.faults[0].span.start if trial.faults[0].span else 0
    _, wrong, error = _run(trial, 0, len(text), "items")
    if error is not None:
        return error.at
    return min((w.span.start for w in wrong if w.span), default=None)


# ---- Lark


def _run(scanned: Scan, start: int, end: int, rule: str) -> tuple[Any, list[Diagnostic], Fault | None]:
    """Parse text[start:end]: by its tokens, or where they do not fit, by Lark, for what it has to say. To Lark places
    stay those of the whole text, because what precedes is blanked, not cut."""
    source = scanned.source
    with _LOCK:
        parser, driver = _load()
        _BUILDER.begin(source)
        tokens = scanned.tokens
        if (start, end) != (0, len(source.text)):
            tokens = tokens[bisect_left(tokens, start, key=_START) : bisect_left(tokens, end, key=_START)]
        if (made := driver.run(tokens, rule)) is not None:
            return made, _BUILDER.faults, None
        text = source.text if (start, end) == (0, len(source.text)) else " " * start + source.text[start:end]
        _BUILDER.begin(source)
        try:
            tree: Any = parser.parse(text, start=rule)
            return tree, _BUILDER.faults, None
        except lark.UnexpectedToken as error:
            at = end if error.token.type == "$END" else int(error.token.start_pos or 0)
            expected = error.accepts or error.expected or set()
        except lark.UnexpectedCharacters as error:  # none that `scan` lets pass; were there one, it is no traceback
            at, expected = int(error.pos_in_stream or 0), error.allowed or set()
        return None, _BUILDER.faults, Fault(at=at, expected=frozenset(_as_written(parser, t) for t in expected))


_DESCRIBED = {
    "NAME": "a name", "NUMBER": "a number", "STRING": "a string", "$END": "the end", "CALL": "`(`", "SUB": "`[`",
}  # fmt: skip


def _as_written(parser: lark.Lark, terminal: str) -> str:
    return _DESCRIBED.get(terminal) or f"`{parser.get_terminal(terminal).pattern.value}`"


def _load() -> tuple[lark.Lark, Driver]:
    """The parser, and what is quicker where there is no fault."""
    global _parser, _driver
    if _parser is None or _driver is None:
        grammar = _GRAMMAR.read_text(encoding="utf-8")
        _parser = lark.Lark(
            grammar,
            parser="lalr",
            lexer="basic",
            start=[*_STARTS],
            keep_all_tokens=True,
            maybe_placeholders=False,
            propagate_positions=False,
            transformer=_BUILDER,
            cache=_cache_file(grammar) or False,
        )
        _driver = _driven(_parser)
    return _parser, _driver


class _Rows(dict[int, Row]):
    """The tables' rows for the driver, each made when it is first asked for."""

    def __init__(self, states: Mapping[int, Mapping[str, tuple[Any, Any]]], callbacks: Mapping[Any, Any]) -> None:
        self.states, self.callbacks = states, callbacks

    def __missing__(self, state: int) -> Row:
        def entry(arg: Any) -> int | Reduction:
            if isinstance(arg, int):
                return arg
            size, make = len(arg.expansion), self.callbacks[arg]
            alone = size == 1 and isinstance(make, ExpandSingleChild)
            return Reduction(size, arg.origin.name, None if alone else make)

        row = self[state] = {name: entry(arg) for name, (_, arg) in self.states[state].items()}
        return row


def _driven(parser: lark.Lark) -> Driver:
    """The driver of the parser's tables."""
    confs = {rule: parser.parse_interactive("", start=rule).parser_state.parse_conf for rule in _STARTS}
    rows = _Rows(confs[_STARTS[0]].states, confs[_STARTS[0]].callbacks)
    terminals = {t.pattern.value: t.name for t in parser.terminals if isinstance(t.pattern, PatternStr)}
    return Driver(rows, {rule: (conf.start_state, conf.end_state) for rule, conf in confs.items()}, terminals)


def _cache_file(grammar: str) -> str | None:
    """A path in a folder that nobody else can write, or None. The file's first line (Lark's) names what it is for."""
    try:
        from platformdirs import user_cache_dir

        folder = Path(user_cache_dir("tfc"), "grammar")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name == "posix":
            for place in (folder, folder.parent):
                facts = place.lstat()
                if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
                    return None
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
    except (OSError, RuntimeError, ImportError):
        return None
    key = hashlib.sha256(f"{grammar}{lark.__version__}{sys.version_info[:2]}".encode()).hexdigest()[:16]
    return str(folder / f"{key}.lalr")
