"""A checkpoint's names for our parameters, as data: `names hf { "their.{layer}.weight" = layer.look.q.weight }`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from tfc.formula.expr import Apply, Const, Expr, Var, text
from tfc.ir.program import Stored
from tfc.ir.types import IRError

__all__ = ["Ignored", "Joined", "NameEntry", "NamesMap", "Ours", "Path", "Row", "Transposed", "paths"]


@dataclass(frozen=True, slots=True)
class Ours:
    """What a checkpoint's array is, in terms of our parameters."""


@dataclass(frozen=True, slots=True)
class Path(Ours):
    """The parameter of that path, as one turn of the loops around it sees it."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Transposed(Ours):
    """Theirs is ours with the last two axes exchanged: a `Linear` of PyTorch keeps [out, in]."""

    of: Ours

    def __str__(self) -> str:
        return f"transpose({self.of})"


@dataclass(frozen=True, slots=True)
class Joined(Ours):
    """Theirs is ours side by side along the last axis: a fused projection."""

    parts: tuple[Ours, ...]

    def __str__(self) -> str:
        return f"concat({', '.join(map(str, self.parts))})"


@dataclass(frozen=True, slots=True)
class Ignored(Ours):
    """The checkpoint has it, the model does not need it."""

    def __str__(self) -> str:
        return "none"


@dataclass(frozen=True, slots=True)
class NameEntry:
    """One line of a map. theirs: text and index expressions over loop names, in turn: `"h.{2 * pair}.w"` has three."""

    theirs: tuple[str | Expr, ...]
    ours: Ours

    def __str__(self) -> str:
        theirs = "".join(p if isinstance(p, str) else f"{{{text(p)}}}" for p in self.theirs)
        return f'"{theirs}" = {self.ours}'


@dataclass(frozen=True, slots=True)
class Row:
    """One array of a checkpoint: its name, and what it is of ours.

    turns: for every path of `ours` that is stacked, the position on its leading axes, outermost first (the same for
    all paths of a row; () where nothing is stacked).
    """

    theirs: str
    ours: Ours
    turns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NamesMap:
    """A checkpoint's naming, whole."""

    name: str
    entries: tuple[NameEntry, ...]

    def rows(self, stored: tuple[Stored, ...]) -> tuple[Row, ...]:
        """Every name of a checkpoint of this model (`program.stored()`), loops written out.

        Raises IRError where an entry does not fit the parameters; lowering has checked the entries of a spec.
        """
        return tuple(self.each(stored))

    def each(self, stored: tuple[Stored, ...]) -> Iterator[Row]:
        """The same one by one, for who may not want them all."""
        known = {s.path: s for s in stored}
        for entry in self.entries:
            yield from _rows(entry, known)


def paths(ours: Ours) -> Iterator[str]:
    """Every path that an expression reads."""
    match ours:
        case Path(path):
            yield path
        case Transposed(of):
            yield from paths(of)
        case Joined(parts):
            for part in parts:
                yield from paths(part)


def _rows(entry: NameEntry, known: Mapping[str, Stored]) -> Iterator[Row]:
    read = tuple(paths(entry.ours))
    if all(p in known for p in read):
        loops = {known[p].repeats for p in read} or {()}
        if len(loops) != 1:
            raise IRError(f"{entry}: its parameters stand in different loops")
        (repeats,) = loops
        for turns in product(*(range(count) for _, count in repeats)):
            values = {label: turn for (label, _), turn in zip(repeats, turns, strict=True)}
            yield Row(_fill(entry, values), entry.ours, turns)
        return
    yield from _unrolled(entry, read, known)


def _unrolled(entry: NameEntry, read: tuple[str, ...], known: Mapping[str, Stored]) -> Iterator[Row]:
    """A loop over unlike things keeps one path a turn: `layer.3.look.q.weight` for `layer.look.q.weight`."""
    labels = sorted({v for piece in entry.theirs if isinstance(piece, Expr) for v in _labels(piece)})
    if len(labels) != 1:
        missing = next(p for p in read if p not in known)
        raise IRError(f"{entry}: there is no parameter {missing}")
    label = labels[0]
    pattern = re.compile(rf"(?:^|\.){re.escape(label)}\.([0-9]+)\.")
    turns = sorted({int(m.group(1)) for path in known if (m := pattern.search(path))})
    found = False
    for turn in turns:
        ours = _at_turn(entry.ours, label, turn)
        if all(p in known and not known[p].repeats for p in paths(ours)):
            found = True
            yield Row(_fill(entry, {label: turn}), ours)
    if not found:
        raise IRError(f"{entry}: there is no parameter {read[0]}")


def _at_turn(ours: Ours, label: str, turn: int) -> Ours:
    match ours:
        case Path(path):
            return Path(re.sub(rf"(^|\.){re.escape(label)}\.", rf"\g<1>{label}.{turn}.", path, count=1))
        case Transposed(of):
            return Transposed(_at_turn(of, label, turn))
        case Joined(parts):
            return Joined(tuple(_at_turn(p, label, turn) for p in parts))
    return ours


def _fill(entry: NameEntry, values: Mapping[str, int]) -> str:
    return "".join(p if isinstance(p, str) else str(_index(p, values, entry)) for p in entry.theirs)


def _labels(expr: Expr) -> Iterator[str]:
    match expr:
        case Var(name, _):
            yield name
        case Apply(_, args):
            for a in args:
                yield from _labels(a)


def _index(expr: Expr, values: Mapping[str, int], entry: NameEntry) -> int:
    match expr:
        case Const(int() as value):
            return value
        case Var(name, _) if name in values:
            return values[name]
        case Apply("neg", (a,)):
            return -_index(a, values, entry)
        case Apply(fn, (a, b)) if fn in ("add", "sub", "mul", "floordiv", "mod"):
            x, y = _index(a, values, entry), _index(b, values, entry)
            match fn:
                case "add":
                    return x + y
                case "sub":
                    return x - y
                case "mul":
                    return x * y
                case "floordiv" if y:
                    return x // y
                case "mod" if y:
                    return x % y
    raise IRError(f"{entry}: `{text(expr)}` is no number of a turn")
