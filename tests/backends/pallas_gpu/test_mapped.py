"""`vmap` over the interpreted kernel is a loop over it: results and gradients, with captured arrays mapped, too."""

from typing import Any

import pytest

from tfc.testing.worker import Worker

DOCUMENTS: dict[str, Any] = dict(formula="documents", b=1, n=40, m=70, d=32, h=1, g=1)
BIAS: dict[str, Any] = dict(formula="bias", b=1, n=40, m=40, d=32, h=2, g=1)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "queries, keys and values": (DOCUMENTS, dict(mapped=[0, 1, 2])),
    "fields that masks read": (DOCUMENTS, dict(mapped=[3, 4], times=2)),
    "trained fields and a table": (BIAS, dict(mapped=[3, 4, 5], times=2)),
    "everything, along the last axis": (BIAS, dict(mapped=[0, 1, 2, 3, 4, 5], times=2, behind=True)),
    "queries alone": (BIAS, dict(mapped=[0])),
    "keys and one field": (BIAS, dict(mapped=[1, 4])),
    "an axis of one": (DOCUMENTS, dict(mapped=[0, 3], times=1)),
}
SLOW = (
    "queries, keys and values",
    "trained fields and a table",
    "queries alone",
    "keys and one field",
    "an axis of one",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
def test_a_mapped_call_is_a_loop(worker: Worker, name: str) -> None:
    case, how = CASES[name]
    found = worker.call("mapped:judge", case, limit=120.0, **how)
    assert not found["wrong"], found
    assert found["differ"], "calls that all give the same show nothing"
