"""The words of the language, and which of them a misspelt one is meant to be."""

from collections.abc import Iterable

__all__ = ["BODIED", "FOREIGN", "RESERVED", "ROLES", "WORDS", "meant", "short"]

ROLES = ("mask", "score", "weigh", "position", "feature", "decay")
"""Kinds whose declarations are formulas."""
BODIED = ("block", "model")
"""Kinds whose declarations may have a body."""
RESERVED = frozenset(
    ("and", "as", "default", "import", "let", "names", "not", "or", "param", "repeat", "report", "return", "tfm")
)
"""The words that name nothing. All others, the kinds among them, are free: `score = ...` is an attribute."""
WORDS = (*sorted(RESERVED), *BODIED, *ROLES)
FOREIGN = {"True": "yes", "False": "no", "true": "yes", "false": "no", "None": "none", "null": "none", "nil": "none"}
"""Constants of other languages -> ours."""


def meant(text: str, words: Iterable[str] = WORDS) -> str:
    """The word that `text` is a slip of, or an empty string: one slip in a short word, two from five letters on."""
    lower = text.lower()
    ranked = sorted((_slips(lower, word), word) for word in words if abs(len(word) - len(lower)) <= 2)
    if not ranked or ranked[0][1] == text:
        return ""
    slips, word = ranked[0]
    return word if slips <= (1 if min(len(word), len(lower)) < 5 else 2) else ""


def _slips(a: str, b: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours that make `b` of `a` (optimal string alignment)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def short(text: str) -> str:
    """A word for a message: cut where it is absurdly long."""
    return text if len(text) <= 40 else text[:37] + "..."
