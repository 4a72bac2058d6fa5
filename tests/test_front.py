"""The front half leaves Python's collector as it was."""

import gc
from collections.abc import Iterator

import pytest

from tfc.diagnostics import TfcError
from tfc.front import front

TEXT = "tfm 1\nmodel m(x: real[B, T, 8]) { return linear@a(x, 8) }\n"


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing frozen, and what the test session froze is frozen again."""
    gc.unfreeze()
    yield
    gc.enable()
    gc.freeze()


@pytest.mark.usefixtures("thawed")
@pytest.mark.parametrize("on", [True, False])
def test_the_collector_stays_on_or_off(on: bool) -> None:
    """After a program, and after a complaint."""
    (gc.enable if on else gc.disable)()
    front(TEXT)
    assert gc.isenabled() is on and gc.get_freeze_count() == 0
    with pytest.raises(TfcError, match="linaer"):
        front(TEXT.replace("linear", "linaer"))
    assert gc.isenabled() is on and gc.get_freeze_count() == 0


@pytest.mark.usefixtures("thawed")
def test_what_somebody_froze_stays_frozen() -> None:
    gc.freeze()
    front(TEXT)
    assert gc.get_freeze_count() > 1000
