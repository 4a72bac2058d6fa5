"""Cases of several processes: all prepared before the first is measured, and one process measures at a time."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tfc.bench.side_by_side import Failed, Turn, side_by_side


def noted(log: Path, what: str) -> None:
    with log.open("a") as file:
        file.write(f"{what}\n")


def suite(log: Path, cases: Sequence[int], turn: Turn) -> Iterator[tuple[int, int]]:
    """Writes down what happens when; -1 raises while it prepares, -2 ends the process, -3 raises while it measures."""
    for case in cases:
        noted(log, f"prepare {case}")
        if case == -1:
            raise ValueError("cannot prepare")
        if case == -2:
            os._exit(3)
    turn()
    for case in cases:
        noted(log, f"begin {case}")
        if case == -3:
            raise ValueError("cannot measure")
        time.sleep(0.02)
        noted(log, f"end {case}")
        yield case, os.getpid()


def test_all_are_prepared_before_the_first_is_measured(tmp_path: Path) -> None:
    log, counts = tmp_path / "log", list[int]()
    found = list(side_by_side(partial(suite, log), range(5), 3, counts.append))
    assert sorted(case for case, _ in found) == [0, 1, 2, 3, 4] and len({pid for _, pid in found}) == 3
    assert os.getpid() not in {pid for _, pid in found}
    assert counts == [2, 2, 1]
    lines = log.read_text().split("\n")[:-1]
    assert all(line.startswith("prepare") for line in lines[:5])
    order = [line.split() for line in lines[5:]]
    assert [word for word, _ in order] == ["begin", "end"] * 5, "one at a time"
    assert all(a[1] == b[1] for a, b in zip(order[::2], order[1::2], strict=True))


@pytest.mark.parametrize(("bad", "says"), [(-1, "cannot prepare"), (-2, "ended early"), (-3, "cannot measure")])
def test_a_process_that_fails_keeps_no_other_from_its_turn(tmp_path: Path, bad: int, says: str) -> None:
    found = list[tuple[int, int]]()
    with pytest.raises(Failed, match=says):
        for one in side_by_side(partial(suite, tmp_path / "log"), [1, bad, 3], 3):
            found.append(one)
    assert [case for case, _ in found] == [1, 3]
