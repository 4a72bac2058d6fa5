"""Every snippet of the language's page parses; what is marked as a whole file is one."""

import re
from pathlib import Path

import pytest

from tfc.front import front
from tfc.grammar import parser
from tfc.grammar.format import format_module
from tfc.grammar.syntax.words import RESERVED
from tfc.source import Source

README = Path(parser.__file__).with_name("README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```tfm( file)?\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 8
    assert README.count("```") == 2 * len(SNIPPETS)


@pytest.mark.parametrize(("whole", "text"), SNIPPETS)
def test_snippets_parse(whole: str, text: str) -> None:
    assert text.startswith("tfm 1") == bool(whole)
    module, diagnostics = parser.parse(Source("README.md", text if whole else "tfm 1\n" + text))
    assert module is not None, "\n".join(map(str, diagnostics))


@pytest.mark.parametrize("text", [text for whole, text in SNIPPETS if whole])
def test_whole_files_lower_and_are_canonical(text: str) -> None:
    assert front(text).program
    module, _ = parser.parse(Source("README.md", text))
    assert module is not None
    assert format_module(module) == text


def test_the_reserved_words_are_listed() -> None:
    listed = re.search(r"words name nothing: `([a-z ]+)`", README)
    assert listed is not None
    assert set(listed[1].split()) == RESERVED
    assert README[: listed.start()].endswith("Thirteen ") and len(RESERVED) == 13


def test_the_files_exist() -> None:
    folder = Path(parser.__file__).parent
    for name in re.findall(r"`([a-z_/]+\.(?:py|lark))`", README.split("## Files")[1]):
        assert (folder / name).is_file(), name
