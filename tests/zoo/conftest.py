"""The zoo in bf16; and which of its properties are asked by default: a sixth, as each compiles models of its own."""

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHOOSES = ("test_zoo.py", "test_decode.py", "test_kernels.py", "test_compiled.py")
"""Files that choose for themselves."""
DECLARED = "default precision { params = f32   compute = bf16   reduce = f32 }"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The specs as they are, but that they compute in bf16."""
    folder = tmp_path_factory.mktemp("bf16") / "zoo"
    shutil.copytree(HERE.parents[1] / "examples" / "zoo", folder)
    for file in folder.rglob("*.tfm"):
        text = file.read_text(encoding="utf-8")
        if "default precision" in text:
            text = text.replace("compute = f32", "compute = bf16")
        else:
            text = text.replace("tfm 1\n", f"tfm 1\n\n{DECLARED}\n", 1)
        file.write_text(text, encoding="utf-8")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every sixth test of a file stays; the others take --slow, as `.ci/run zoo` gives it."""
    seen: dict[Path, int] = {}
    for item in items:
        if item.path.parent == HERE and item.path.name not in CHOOSES:
            number = seen.setdefault(item.path, 0)
            seen[item.path] += 1
            if number % 6:
                item.add_marker(pytest.mark.slow)
