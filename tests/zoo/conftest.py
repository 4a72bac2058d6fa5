"""Which of the zoo's properties are asked by default: a sixth of them, as each compiles models of its own."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHOOSES = ("test_zoo.py", "test_decode.py", "test_kernels.py")
"""Files that choose for themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every sixth test of a file stays; the others take --slow, as `.ci/run zoo` gives it."""
    seen: dict[Path, int] = {}
    for item in items:
        if item.path.parent == HERE and item.path.name not in CHOOSES:
            number = seen.setdefault(item.path, 0)
            seen[item.path] += 1
            if number % 6:
                item.add_marker(pytest.mark.slow)
