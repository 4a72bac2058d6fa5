"""Every benchmarked attention compiles for an absent H200, and all but one keep everything in registers."""

import os

import jax
import jax.numpy as jnp
import pytest

from tfc import aot
from tfc.backends.pallas_gpu.attention import KERNEL
from tfc.bench.cases import ATTENTION, AttentionCase
from tfc.ir.types import DType
from tfc.targets import resolve

pytestmark = pytest.mark.aot

DTYPES = {DType.BF16: jnp.bfloat16, DType.F32: jnp.float32, DType.I32: jnp.int32}


CASES = {case.name: case for one in ATTENTION for case in (one, one.beside) if case is not None}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_benchmarked_kernel_spills(case: AttentionCase) -> None:
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")
    target, eqn, kernel = resolve("h200"), case.eqn(), KERNEL
    assert kernel.refuse(eqn, target) is None
    shapes = [jax.ShapeDtypeStruct(a.type.ints, DTYPES[a.type.dtype]) for a in eqn.args]
    done = aot.compile_for("h200", kernel.build(eqn, target), *shapes)
    assert done.kernels, "the compiler reported no kernel"
    for used in done.kernels:
        assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0), f"{used} spills"
