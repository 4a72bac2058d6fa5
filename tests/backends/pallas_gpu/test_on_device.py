"""The Hopper kernel on a Hopper GPU, judged as anybody's: the definition in float64, the derived tolerance."""

from collections.abc import Iterator

import pytest

from tfc.backends.pallas_gpu.attention import KERNEL
from tfc.ir.types import DType
from tfc.targets import resolve
from tfc.testing import Case, Sizes, attention_eqn, judge, standard_cases
from tfc.testing.cases import FORMULAS, named_op

pytestmark = pytest.mark.device

LONG = [
    Sizes(2, 1000, 1000, 4, 2, 128),
    Sizes(1, 77, 2049, 4, 1, 64),
    Sizes(2, 1536, 700, 3, 3, 32),
    Sizes(1, 300, 700, 4, 2, 80),
    Sizes(1, 300, 700, 2, 1, 96),
    Sizes(1, 300, 700, 2, 1, 256),
]


def long_cases(name: str) -> Iterator[Case]:
    """Many tiles, ragged ends, fewer queries than keys and more."""
    for i, sizes in enumerate(LONG):
        sizes = Sizes(sizes.batch, sizes.n, sizes.m, sizes.heads, sizes.kv_heads, sizes.head_dim, DType.BF16)
        yield Case(name, attention_eqn(named_op(name, sizes), sizes), i)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_kernel_agrees_with_float64(name: str) -> None:
    target = resolve("auto")
    if target.capability != 9.0:
        pytest.skip(f"needs a Hopper GPU; here is {target.name}")
    cases = [*standard_cases([name], [DType.BF16, DType.F16]), *long_cases(name)]
    report = judge(KERNEL, cases=cases, target=target, laws=(), gradients=False)
    print(f"{name}: {report.served} served, worst error {report.worst:.2f} of what is allowed")
    assert report.ok, report
    assert report.served == len(cases)
