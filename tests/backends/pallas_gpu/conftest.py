"""One worker process for all interpreted cases: an interpreted kernel that hangs is ended, the suite goes on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tfc.testing.worker import Worker


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """Cases are named `interpreted:...`, after the module beside this file."""
    place = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)}
    with Worker(place, preload=("interpreted",)) as process:
        yield process
