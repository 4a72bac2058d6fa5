"""A checkpoint's names for our parameters, as data: `names hf { "their.{layer}.weight" = layer.look.q.weight }`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from tfc.formula.expr import Apply, Const, Expr, Var, text
from tfc.ir.program import Stored
from tfc.ir.types import IRError

__all__ = [
    "Either", "Ignored", "Joined", "NameEntry", "NamesMap", "Ours", "Path", "Reordered", "Reshaped", "Rolled", "Row",
    "Transposed", "paths", "shape_of",
]  # fmt: skip


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
class Reordered(Ours):
    """Theirs has our axes in another order: axis i of theirs is axis `order[i]` of ours. A convolution keeps its
    channels before its pixels."""

    of: Ours
    order: tuple[int, ...]

    def __str__(self) -> str:
        return f"transpose({self.of}, [{', '.join(map(str, self.order))}])"


@dataclass(frozen=True, slots=True)
class Reshaped(Ours):
    """Theirs has the same elements in the same order under other axes."""

    of: Ours
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"reshape({self.of}, [{', '.join(map(str, self.shape))}])"


@dataclass(frozen=True, slots=True)
class Rolled(Ours):
    """Theirs is ours moved `by` places along the last axis, the last `by` of ours first: parts that stand the other way
    round, as the rotated channels of a head."""

    of: Ours
    by: int

    def __str__(self) -> str:
        return f"roll({self.of}, {self.by})"


@dataclass(frozen=True, slots=True)
class Ignored(Ours):
    """The checkpoint has it, the model does not need it."""

    def __str__(self) -> str:
        return "none"


@dataclass(frozen=True, slots=True)
class Either:
    """One of several texts within a name: checkpoints of one model differ in it, as in a prefix that some of them have.
    The first is the one that is written."""

    texts: tuple[str, ...]

    def __str__(self) -> str:
        return f"[{'|'.join(self.texts)}]"


@dataclass(frozen=True, slots=True)
class NameEntry:
    """One line of a map. theirs: texts and index expressions over loop names, in turn: `"h.{2 * pair}.w"` has three."""

    theirs: tuple[str | Expr | Either, ...]
    ours: Ours

    @property
    def pattern(self) -> str:
        """Their side as it is written."""
        return "".join(f"{{{text(p)}}}" if isinstance(p, Expr) else str(p) for p in self.theirs)

    def __str__(self) -> str:
        return f'"{self.pattern}" = {self.ours}'


@dataclass(frozen=True, slots=True)
class Row:
    """One array of a checkpoint: its name, and what it is of ours.

    others: names that it may have instead.
    turns: for every path of `ours` that is stacked, the position on its leading axes, outermost first (the same for
    all paths of a row; () where nothing is stacked).
    """

    theirs: str
    ours: Ours
    turns: tuple[int, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.theirs, *self.others)

    @property
    def places(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Path and turns of each parameter that it is made of."""
        return frozenset((path, self.turns) for path in paths(self.ours))


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
        case Transposed(of) | Reordered(of) | Reshaped(of) | Rolled(of):
            yield from paths(of)
        case Joined(parts):
            for part in parts:
                yield from paths(part)


def shape_of(ours: Ours, known: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of their array. known: that of every parameter, as one turn sees it.

    Raises IRError, in words, where an expression does not fit its parameters.
    """
    match ours:
        case Path(path):
            return known[path]
        case Transposed(of):
            shape = shape_of(of, known)
            if len(shape) < 2:
                raise IRError(f"`{of}` has {len(shape)} axes; `transpose` takes two")
            return (*shape[:-2], shape[-1], shape[-2])
        case Reordered(of, order):
            shape = shape_of(of, known)
            if sorted(order) != list(range(len(shape))):
                raise IRError(f"`{of}` has {len(shape)} axes, which {list(order)} does not put in order")
            return tuple(shape[i] for i in order)
        case Reshaped(of, shape):
            old = shape_of(of, known)
            if prod(old) != prod(shape) or min(shape, default=1) < 1:
                raise IRError(f"`{of}` has the shape {list(old)}, which is not {list(shape)} in another form")
            return shape
        case Rolled(of):
            shape = shape_of(of, known)
            if not shape:
                raise IRError(f"`{of}` has no axis to move along")
            return shape
        case Joined(parts):
            first, *rest = (shape_of(p, known) for p in parts)
            if not first or any(s[:-1] != first[:-1] for s in rest):
                raise IRError(f"`{ours}` joins the shapes {', '.join(str(list(s)) for s in (first, *rest))}")
            return (*first[:-1], sum(s[-1] for s in (first, *rest)))
    raise IRError(f"`{ours}` names no parameter")


def _rows(entry: NameEntry, known: Mapping[str, Stored]) -> Iterator[Row]:
    read = tuple(paths(entry.ours))
    if not read:
        yield from _ignored(entry, known)
    elif all(p in known for p in read):
        loops = {known[p].repeats for p in read} or {()}
        if len(loops) != 1:
            raise IRError(f"{entry}: its parameters stand in different loops")
        (repeats,) = loops
        for turns in product(*(range(count) for _, count in repeats)):
            values = {label: turn for (label, _), turn in zip(repeats, turns, strict=True)}
            yield _row(entry, entry.ours, values, turns)
    else:
        yield from _unrolled(entry, read, known)


def _ignored(entry: NameEntry, known: Mapping[str, Stored]) -> Iterator[Row]:
    """What is not needed is there in every turn of the loops that its name speaks of."""
    labels = _loops(entry)
    turns = [_turns(label, known) for label in labels]
    for label, found in zip(labels, turns, strict=True):
        if not found:
            raise IRError(f"{entry}: no parameter is in a loop `{label}`")
    for at in product(*turns):
        yield _row(entry, entry.ours, dict(zip(labels, at, strict=True)), ())


def _loops(entry: NameEntry) -> list[str]:
    """The loops that a name speaks of."""
    return sorted({v for piece in entry.theirs if isinstance(piece, Expr) for v in _labels(piece)})


def _turns(label: str, known: Mapping[str, Stored]) -> list[int]:
    """The turns of a loop, whether it is stacked or keeps one path a turn."""
    pattern = re.compile(rf"(?:^|\.){re.escape(label)}\.([0-9]+)\.")
    apart = {int(m.group(1)) for path in known if (m := pattern.search(path))}
    counts = [count for s in known.values() for name, count in s.repeats if name == label]
    return sorted(apart | set(range(max(counts, default=0))))


def _unrolled(entry: NameEntry, read: tuple[str, ...], known: Mapping[str, Stored]) -> Iterator[Row]:
    """A loop over unlike things keeps one path a turn: `layer.3.look.q.weight` for `layer.look.q.weight`."""
    labels = _loops(entry)
    if len(labels) != 1:
        missing = next(p for p in read if p not in known)
        raise IRError(f"{entry}: there is no parameter {missing}")
    label = labels[0]
    found = False
    for turn in _turns(label, known):
        ours = _at_turn(entry.ours, label, turn)
        if all(p in known and not known[p].repeats for p in paths(ours)):
            found = True
            yield _row(entry, ours, {label: turn}, ())
    if not found:
        raise IRError(f"{entry}: there is no parameter {read[0]}")


def _at_turn(ours: Ours, label: str, turn: int) -> Ours:
    match ours:
        case Path(path):
            return Path(re.sub(rf"(^|\.){re.escape(label)}\.", rf"\g<1>{label}.{turn}.", path, count=1))
        case Transposed(of) | Reordered(of) | Reshaped(of) | Rolled(of):
            return replace(ours, of=_at_turn(of, label, turn))
        case Joined(parts):
            return Joined(tuple(_at_turn(p, label, turn) for p in parts))
    return ours


def _row(entry: NameEntry, ours: Ours, values: Mapping[str, int], turns: tuple[int, ...]) -> Row:
    pieces = [_texts(piece, values, entry) for piece in entry.theirs]
    first, *others = ("".join(texts) for texts in product(*pieces))
    return Row(first, ours, turns, tuple(others))


def _texts(piece: str | Expr | Either, values: Mapping[str, int], entry: NameEntry) -> tuple[str, ...]:
    match piece:
        case Either(texts):
            return texts
        case Expr():
            return (str(_index(piece, values, entry)),)
    return (piece,)


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
