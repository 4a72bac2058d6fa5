"""A character that is not of the language -> what it is called, and which of ours it looks like or spells.

Only what a person may have typed or pasted without noticing is known: Cyrillic and Greek letters in the shape of Latin
ones, Greek letters that formulas are full of, accents, letters of another width.
"""

import unicodedata

__all__ = ["called", "plain"]

_SHAPES = dict(
    zip(
        "аеорсухіјѕһԁԛԝьАВЕЗІЈКМНОРСЅТУХԚԜ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧοѵνϳ" + "ıȷɑɡꜱʏ‐‑٠۰",
        "aeopcyxijshdqwbABE3IJKMHOPCSTYXQW" + "ABEZHIKMNOPTYXovvj" + "ijagsy--00",
        strict=True,
    )
)
_SPELLED = {"lamda": "lambda", "final sigma": "sigma"}


def called(char: str) -> str:
    """`U+0430 (cyrillic small letter a)`."""
    name = unicodedata.name(char, "").lower()
    return f"U+{ord(char):04X} ({name})" if name else f"U+{ord(char):04X}"


def plain(text: str) -> str:
    """The text in letters of the language, or an empty string where a character has no counterpart.

    A word that holds Latin letters is taken to be Latin throughout; a Greek letter on its own is spelled out. Raised
    digits at the end are a power: `x ^ 2`.
    """
    head = text.rstrip("⁰¹²³⁴⁵⁶⁷⁸⁹")
    power = unicodedata.normalize("NFKC", text[len(head) :])
    mixed = any(c.isascii() and c.isalpha() for c in head)
    out = "".join(_letter(c, mixed) for c in head)
    if not (out.isascii() and out.isidentifier()):
        return ""
    return f"{out} ^ {power}" if power else out


def _letter(char: str, mixed: bool) -> str:
    if char.isascii():
        return char
    name = unicodedata.name(char, "")
    if name.startswith("GREEK ") and " LETTER " in name and not (mixed and char in _SHAPES):
        spelled = name.split(" LETTER ")[1].split(" WITH ")[0].lower()
        return _SPELLED.get(spelled, spelled).replace(" ", "_")
    if char in _SHAPES:
        return _SHAPES[char]
    if unicodedata.decomposition(char).startswith(("<super>", "<sub>")):
        return "?"
    base = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
    return base if base.isascii() and base.replace("_", "a").isalnum() else "?"
