"""Options, profiles, marks and fixtures of every test. Imports no JAX: the front half's tests need none."""

import difflib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"

MARKS = {
    "device": "runs on an accelerator: set JAX_PLATFORMS to one, cuda say (make test DEVICE=cuda)",
    "aot": "runs the compilers of devices that are not there: set TFC_AOT=1 (make aot)",
    "peers": "compares with what independent implementations wrote: set TFC_PEERS to its folder (.ci/run peers)",
    "slow": "takes minutes: give --slow, or the profile deep",
    "timing": "measures time: `make test` runs these after the others, one at a time",
}

SLOW_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=40, database=None, suppress_health_check=SLOW_CHECKS
)
settings.register_profile("deep", deadline=None, max_examples=2000, suppress_health_check=SLOW_CHECKS)
# --hypothesis-profile, where given, is loaded after this
settings.load_profile(os.environ.get("TFC_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tfc")
    group.addoption("--update-golden", action="store_true", help="write golden files instead of comparing with them")
    group.addoption("--slow", action="store_true", help="run tests marked `slow`")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    os.environ["TFC_TUNED"] = os.devnull  # no user's block sizes
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is first asked for a device
    # each of several processes would take three quarters of a GPU's memory, and the second would find none
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if os.environ["JAX_PLATFORMS"] == "cpu" and os.environ.get("TFC_AOT") != "1" and profile(config) != "deep":
        # most of the time goes into compiling programs that run once, on a few numbers: without LLVM's optimizations
        # a third less; XLA's own passes stay
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def profile(config: pytest.Config) -> str:
    """The name of the hypothesis profile, by either way of choosing it."""
    return config.getoption("--hypothesis-profile", default=None) or os.environ.get("TFC_PROFILE", "ci")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {
        "device": os.environ["JAX_PLATFORMS"] != "cpu",
        "aot": os.environ.get("TFC_AOT") == "1",
        "peers": "TFC_PEERS" in os.environ,
        "slow": config.getoption("--slow") or profile(config) == "deep",
    }
    skips = {name: pytest.mark.skip(reason=MARKS[name]) for name, given in wanted.items() if not given}
    for item in items:
        for name in skips.keys() & {m.name for m in item.iter_markers()}:
            item.add_marker(skips[name])


def pytest_collection_finish() -> None:
    """Tests and programs are many objects that stay: the collector need not look through them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def compiled_anew() -> Iterator[None]:
    """What a module's tests compiled goes with it: a process may map 65,530 pieces of memory, and a program is some."""
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str | Path, str], None]:
    """Compares a text with the file of that name under tests/golden; --update-golden writes the file."""
    update = bool(request.config.getoption("--update-golden"))

    def check(path: str | Path, text: str) -> None:
        file = GOLDEN / path
        text = text.rstrip("\n") + "\n"
        if update:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        if not file.is_file():
            pytest.fail(f"there is no tests/golden/{path}: run pytest with --update-golden, and read what it writes")
        kept = file.read_text(encoding="utf-8")
        if kept != text:
            lines = difflib.unified_diff(
                kept.splitlines(), text.splitlines(), f"golden/{path}", "now", lineterm="", n=2
            )
            pytest.fail("differs from its golden file (--update-golden accepts it)\n" + "\n".join(lines))

    return check


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 in JAX, for this test alone."""
    import jax

    with jax.enable_x64(True):
        yield
