"""The oracle as a product: strategies, laws, a derived tolerance, and `judge`, for tfc's kernels as for anybody's.

Names are resolved when they are asked for: a worker process needs none of them. (`judge` lies in judging.py, as a
module of its name would hide it.)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfc.testing.cases import Case, Sizes, attention_eqn, operands, standard_cases
    from tfc.testing.judging import Report, judge, served
    from tfc.testing.laws import LAWS, Law, Violation
    from tfc.testing.strategies import attention_eqns
    from tfc.testing.tolerance import compare, expected, expected_gradients

_HOMES = {
    "Case": "cases",
    "LAWS": "laws",
    "Law": "laws",
    "Report": "judging",
    "Sizes": "cases",
    "Violation": "laws",
    "attention_eqn": "cases",
    "attention_eqns": "strategies",
    "compare": "tolerance",
    "expected": "tolerance",
    "expected_gradients": "tolerance",
    "judge": "judging",
    "operands": "cases",
    "served": "judging",
    "standard_cases": "cases",
}

__all__ = [
    "LAWS",
    "Case",
    "Law",
    "Report",
    "Sizes",
    "Violation",
    "attention_eqn",
    "attention_eqns",
    "compare",
    "expected",
    "expected_gradients",
    "judge",
    "operands",
    "served",
    "standard_cases",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
