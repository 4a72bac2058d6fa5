"""The page of all diagnostics, made from the golden files: every code, an example, what is said; and the JSON form."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tfc import cli
from tfc.diagnostics import CODES
from tfc.grammar.syntax.scan import MAX_BYTES

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
PAGE = ROOT / "grammar" / "DIAGNOSTICS.md"
MODEL = "model m(tokens: int[B, T]) {\n  embed word = embed { vocab = 16   width = 8 }\n  return word(tokens)\n}\n"

FILES: Mapping[str, tuple[str, dict[str, bytes], tuple[str, ...]]] = {
    "missing": ("E001", {}, ("check", "missing.tfm")),
    "binary": ("E002", {"binary.tfm": b"tfm 1\n\xff\x00"}, ("check", "binary.tfm")),
    "large": ("E003", {"large.tfm": b"#" * (MAX_BYTES + 1)}, ("check", "large.tfm")),
    "no_such_let": (
        "E211",
        {"model.tfm": f"tfm 1\n\nlet layers = 2\n\n{MODEL}".encode()},
        ("check", "model.tfm", "--set", "layer=3"),
    ),
    "import_above": (
        "E220",
        {"model.tfm": f'tfm 1\n\nimport "../parts.tfm" as parts\n\n{MODEL}'.encode()},
        ("check", "model.tfm"),
    ),
    "import_in_circle": (
        "E220",
        {
            "model.tfm": f'tfm 1\n\nimport "a.tfm" as a\n\n{MODEL}'.encode(),
            "a.tfm": b'tfm 1\n\nimport "b.tfm" as b\n',
            "b.tfm": b'tfm 1\n\nimport "a.tfm" as a\n',
        },
        ("check", "model.tfm"),
    ),
    "let_of_another_kind": (
        "E308",
        {"model.tfm": f"tfm 1\n\nlet layers = 2\n\n{MODEL}".encode()},
        ("check", "model.tfm", "--set", "layers=yes"),
    ),
    "no_such_pass": ("E810", {"model.tfm": f"tfm 1\n\n{MODEL}".encode()}, ("show", "model.tfm", "--after", "fuse")),
}
"""Errors that are no text's: code, files, the command line."""


def written(text: str) -> str:
    """What a command printed, without its count at the end."""
    return re.sub(r"\n*\d+ files?: .*\n?$", "", text).rstrip() + "\n"


@pytest.mark.parametrize("name", FILES)
def test_errors_of_files_and_commands(
    name: str,
    golden: Callable[[str | Path, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, files, words = FILES[name]
    monkeypatch.chdir(tmp_path)
    for path, data in files.items():
        Path(path).write_bytes(data)
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    said = written(captured.out + captured.err).replace(f"{tmp_path}/", "")
    assert f"error[{code}]" in said
    golden(f"errors/files/{name}.txt", f"$ tfc {' '.join(words)}\n{said}")


# ---- the page


@dataclass(frozen=True)
class Shown:
    """A golden file: where it is, the example, what is said of it (a command line has no example), the codes in it."""

    path: Path
    example: str
    said: str

    @property
    def codes(self) -> list[str]:
        return re.findall(r"(?:error|warning)\[([EW]\d+)\]", self.said)


def examples() -> Iterator[Shown]:
    for path in sorted([*(GOLDEN / "errors").rglob("*.txt"), *(GOLDEN / "mistakes").glob("*.txt")]):
        spec = path.with_suffix(".tfm")
        example = spec.read_text(encoding="utf-8") if spec.is_file() else ""
        said = path.read_text(encoding="utf-8")
        # where the library declares something is its own affair: line numbers there come and go
        said = re.sub(r"note: [^\n]*\(tfc:prelude/[^\n]*\n[^\n]*\n[^\n]*\n", "", said)
        yield Shown(path, example, said)


def of_code(code: str, shown: list[Shown]) -> Shown | None:
    """The shortest example whose only complaint is this one; else one that begins with it, or has it."""
    having = [s for s in shown if code in s.codes]
    alone = [s for s in having if s.codes == [code]] or [s for s in having if s.codes[0] == code] or having
    return min(alone, key=lambda s: (len(s.example) + len(s.said), s.path), default=None)


HALVES = {
    "E0": "The file itself",
    "E1": "Syntax",
    "E2": "Names",
    "E3": "Types and formulas",
    "E4": "Shapes and sizes",
    "E5": "Limits",
    "E6": "Parameters and weights",
    "E7": "Inputs of a call",
    "E8": "Targets and kernels",
    "W9": "Warnings",
}

INTRODUCTION = """# Diagnostics

Every complaint of tfc has a code that does not change, the place with its line, column and length, the values at
odds, and, where one is known, an edit that would mend it. Several independent errors come in one run: up to ten of
syntax, up to fifty of meaning. `tfc check` exits with 0 where there is no error (a warning is none), with 1 where there
is one, with 2 where the command line is wrong.

This page is made from the golden files of `tests/golden/errors` and `tests/golden/mistakes`
(`pytest tests/grammar/test_index.py --update-golden` writes it). Codes without an example are raised by others than
`tfc check`: by what reads parameters, by calls, by targets.

## As JSON

`tfc check --format json` prints a list of objects, in the order of the text output, `[]` where nothing is wrong:

| key | |
|---|---|
| `file` | the path as it was given, or that of an imported file; null where no text is to blame |
| `line`, `column` | where the place begins, counted from 1, columns in characters; null with `file` |
| `end_line`, `end_column` | where it ends: the first place after it |
| `code` | `E204`, stable |
| `severity` | `error` or `warning` |
| `message` | one line |
| `help` | what to do, or an empty string |
"""


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def page() -> str:
    shown = list(examples())
    parts = [INTRODUCTION]
    for prefix, title in HALVES.items():
        parts.append(f"## {title}\n")
        rest = []
        for code in (c for c in CODES if c.startswith(prefix)):
            found = of_code(code, shown)
            if found is None:
                rest.append(f"| {code} | {CODES[code]} |")
                continue
            parts.append(f"### {code}: {CODES[code]}\n")
            if found.example and len(found.example) < 1_500:
                example = "".join(c if c.isprintable() or c == "\n" else f"<U+{ord(c):04X}>" for c in found.example)
                parts.append(fenced("tfm", example))
            parts.append(fenced("text", found.said))
        if rest:
            parts.append("\n".join(["| code | |", "|---|---|", *rest]) + "\n")
    return "\n".join(parts)


def test_the_page_is_what_the_golden_files_say(golden: Callable[[str | Path, str], None]) -> None:
    golden(PAGE, page())


def raised() -> set[str]:
    """The codes that stand in the sources of what `tfc check` runs."""
    folders = [ROOT / "grammar", ROOT / "tfc" / "ir", ROOT / "tfc" / "formula"]
    files = [
        *(p for folder in folders for p in folder.rglob("*.py")),
        ROOT / "tfc/front.py",
        ROOT / "passes/pipeline.py",
    ]
    texts = [p.read_text(encoding="utf-8") for p in files]
    return {code for text in texts for code in re.findall(r'"([EW]\d{3})"', text)}


def test_every_code_of_the_front_half_has_an_example() -> None:
    shown = {code for s in examples() for code in s.codes}
    assert len(raised()) > 60
    assert raised() <= shown
    assert shown <= CODES.keys()
    assert {c for c in CODES if c[:2] in ("E1", "E2", "E3", "E4", "E5", "W9")} <= raised()


def test_sections_hold_every_code() -> None:
    assert {c[:2] for c in CODES} == HALVES.keys()
    text = page()
    assert all(f"### {code}: " in text or f"| {code} | " in text for code in CODES)


# ---- JSON


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The documented keys and no others; places count from 1, their ends are exclusive; warnings are there, too."""
    keys = re.findall(r"^\| (`.*?) \|", INTRODUCTION, re.M)
    documented = [k for cell in keys for k in re.findall(r"`(\w+)`", cell)]
    spec = tmp_path / "model.tfm"
    spec.write_text(
        f"tfm 1\n\nlet a = 4 ^ zz\n\n{MODEL}".replace("return", "x = rms(rms(word(tokens)))\n  return rms("), "utf-8"
    )
    spec.write_text(spec.read_text("utf-8").replace("rms( word(tokens)", "rms(x)"), "utf-8")
    assert cli.main(["check", "--format", "json", str(spec), str(tmp_path / "gone.tfm")]) == 1
    first, *_, last = found = json.loads(capsys.readouterr().out)
    assert all(list(one) == documented for one in found)
    assert (first["file"], first["line"], first["column"], first["end_line"], first["end_column"]) == (
        str(spec), 3, 13, 3, 15,
    )  # fmt: skip
    assert (first["code"], first["severity"]) == ("E201", "error")
    assert first["message"] == "`zz` is not known here" and isinstance(first["help"], str)
    assert last["code"] == "E001" and last["file"] is None and last["line"] is None and last["end_column"] is None

    spec.write_text(spec.read_text("utf-8").replace("zz", "2"), "utf-8")
    assert cli.main(["check", "--format", "json", str(spec)]) == 0
    assert {one["severity"] for one in json.loads(capsys.readouterr().out)} == {"warning"}

    spec.write_text(f"tfm 1\n\n{MODEL}", "utf-8")
    assert cli.main(["check", "--format", "json", str(spec)]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_json_of_a_place_over_several_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "model.tfm"
    spec.write_text(f"tfm 1\n\nlet a = [1, 2] + sqrt(\n  [3]\n)\n\n{MODEL}", "utf-8")
    assert cli.main(["check", "--format", "json", str(spec)]) == 1
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["line"], one["end_line"]) in ((3, 5), (4, 4))
    assert "\n" not in one["message"]
