"""Pieces of a text with the places where a line may break -> lines of at most a width (Wadler's pretty printer).

A document is a string, a `Line` (a blank, or a line break where its group does not fit), a `Group` (broken or not as
one), a `Nest` (indents the breaks within), or a tuple of documents.
"""

from dataclasses import dataclass

__all__ = ["Doc", "Group", "Line", "Nest", "commas", "fill", "render", "width"]


@dataclass(frozen=True, slots=True)
class Line:
    """`flat` where the group is on one line, a line break where it is not."""

    flat: str = " "


@dataclass(frozen=True, slots=True)
class Group:
    """All lines directly within break, or none does."""

    inner: "Doc"


@dataclass(frozen=True, slots=True)
class Nest:
    inner: "Doc"
    indent: int = 2


Doc = str | Line | Group | Nest | tuple["Doc", ...]


def fill(first: Doc, *rest: Doc) -> Doc:
    """As many on a line as fit."""
    return (first, *(Group((Line(), item)) for item in rest))


def commas(opening: str, items: list[Doc], closing: str) -> Doc:
    """`f(a, b)`, as many items on a line as fit."""
    if not items:
        return opening + closing
    separated = [(item, ",") for item in items[:-1]] + [items[-1]]
    return Group((opening, Nest((Group((Line(""), separated[0])), fill("", *separated[1:])), 4), closing))


def width(doc: Doc) -> int:
    """Characters on one line."""
    total, stack = 0, [doc]
    while stack:
        match stack.pop():
            case str() as text:
                total += len(text)
            case Line(flat):
                total += len(flat)
            case Group(inner) | Nest(inner):
                stack.append(inner)
            case parts:
                stack.extend(parts)
    return total


def render(doc: Doc, limit: int, start: int = 0, indent: int = 0) -> str:
    """The text, its first line beginning in column `start`; broken lines begin at `indent`. No line ends in blanks."""
    out: list[str] = []
    column = start
    stack: list[tuple[Doc, int, bool]] = [(doc, indent, False)]
    while stack:
        part, margin, flat = stack.pop()
        match part:
            case str():
                out.append(part)
                column += len(part)
            case Line(text):
                if flat:
                    out.append(text)
                    column += len(text)
                else:
                    out.append("\n" + " " * margin)
                    column = margin
            case Group(inner):
                stack.append((inner, margin, flat or _fits(inner, limit - column, stack)))
            case Nest(inner, by):
                stack.append((inner, margin + by, flat))
            case parts:
                stack.extend((p, margin, flat) for p in reversed(parts))
    return "\n".join(line.rstrip() for line in "".join(out).split("\n"))


def _fits(doc: Doc, room: int, after: list[tuple[Doc, int, bool]]) -> bool:
    """Whether `doc`, on one line, and what follows it up to the next possible break, take no more than `room`."""
    stack: list[tuple[Doc, bool]] = [(doc, True)]
    rest = len(after)
    while room >= 0:
        if not stack:
            if rest == 0:
                return True
            rest -= 1
            stack.append((after[rest][0], after[rest][2]))
            continue
        part, flat = stack.pop()
        match part:
            case str():
                room -= len(part)
            case Line(text):
                if not flat:
                    return True
                room -= len(text)
            case Group(inner) | Nest(inner):
                stack.append((inner, flat))
            case parts:
                stack.extend((p, flat) for p in reversed(parts))
    return False
