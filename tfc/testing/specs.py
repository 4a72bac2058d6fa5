"""The head of a spec file turned into what it says of itself: settings that make it small, kernels that it expects."""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Head", "lines_of_code", "read_head"]


@dataclass(frozen=True, slots=True)
class Head:
    """`# small: width=32; T=16` as overrides of `let`s and lengths of the inputs; kernels: of each `# kernel: ..` what
    follows, `pallas_gpu` or `xla: the reason why pallas_gpu refuses`."""

    sets: dict[str, str]
    lengths: dict[str, int]
    kernels: tuple[str, ...] = ()


def read_head(path: Path) -> Head:
    """The comments before the first line of code. Raises ValueError where one is missing or cannot be read."""
    text = path.read_text(encoding="utf-8")
    head = text[: text.find("tfm 1")]
    small = re.search(r"^# small: ([^;\n]*)(?:;([^\n]*))?$", head, re.M)
    if small is None:
        raise ValueError(f"{path}: begins with `# small: ..`")
    lengths = {name: int(n) for name, n in _pairs(small[2] or "").items()}
    return Head(_pairs(small[1]), lengths, tuple(re.findall(r"^# kernel: (.*)$", head, re.M)))


def _pairs(text: str) -> dict[str, str]:
    """`a=1, b=2`; a comma within brackets separates nothing."""
    depth, parts = 0, [""]
    for char in text:
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    parts = [p.strip() for p in parts if p.strip()]
    if not all("=" in p for p in parts):
        raise ValueError(f"`{text.strip()}`: `name=value`, separated by commas")
    return {k.strip(): v.strip() for k, v in (p.split("=", 1) for p in parts)}


def lines_of_code(text: str) -> int:
    """Lines that are neither blank nor comments."""
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))
