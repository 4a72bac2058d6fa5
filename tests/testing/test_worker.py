"""A worker runs cases, reports what they raise, ends those that hang, and goes on."""

import time

import pytest

from tfc.testing.worker import CaseFailed, CaseHangs, Worker


def test_one_process_serves_case_after_case() -> None:
    with Worker() as worker:
        first = worker.call("os:getpid")
        assert worker.call("math:hypot", 3.0, 4.0) == 5.0
        assert worker.call("os:getpid") == first


def test_what_a_case_raises_is_told() -> None:
    with Worker() as worker:
        with pytest.raises(CaseFailed, match=r"ValueError.*math domain error") as failed:
            worker.call("math:sqrt", -1.0)
        assert failed.value.kind == "ValueError"
        with pytest.raises(CaseFailed, match="AttributeError"):
            worker.call("math:no_such_function")
        with pytest.raises(CaseFailed, match="pickle"):  # a result that cannot travel
            worker.call("threading:Lock")
        assert worker.call("math:sqrt", 4.0) == 2.0


def test_a_hang_is_ended_and_the_next_case_runs() -> None:
    with Worker() as worker:
        before = worker.call("os:getpid")
        began = time.monotonic()
        with pytest.raises(CaseHangs, match=r"time:sleep hangs: no result after 0\.\d s; its process was ended"):
            worker.call("time:sleep", 60, limit=0.3)
        assert time.monotonic() - began < 10
        assert worker.call("os:getpid") != before


def test_a_process_that_dies_is_told() -> None:
    with Worker() as worker:
        with pytest.raises(CaseFailed, match="ended with code 3"):
            worker.call("os:_exit", 3)
        assert worker.call("math:sqrt", 4.0) == 2.0


def test_a_worker_that_cannot_start() -> None:
    with Worker(preload=("no_such_module",)) as worker, pytest.raises(CaseFailed, match="did not start"):
        worker.call("os:getpid")


def test_its_environment() -> None:
    with Worker({"TFC_WORKER_TEST": "yes"}) as worker:
        assert worker.call("os:getenv", "TFC_WORKER_TEST") == "yes"
