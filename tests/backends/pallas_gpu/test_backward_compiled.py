"""What the interpreter cannot see of the gradient kernels, looked up in what ptxas says of their code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfc import aot
from tfc.backends.pallas_gpu import by_keys, by_queries
from tfc.backends.pallas_gpu.backward import configs_for

FORMULAS = ("full", "causal", "window1024", "documents", "softcap", "alibi", "bias")
CASES = [f"{formula} d{d}" for d in (64, 128) for formula in FORMULAS]
CASES += ["causal d32", "bias d32", "softcap d256", "bias d256"]


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    """ptxas' report of each case, all compiled for H200 by one process."""
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")
    here = Path(__file__)
    paths = os.pathsep.join([aot.ptxas_folder(), os.environ["PATH"]])
    places = os.pathsep.join([str(here.parents[3]), str(here.parent)])
    run = subprocess.run(
        [sys.executable, str(here.parent / "compiled_gradients.py"), *CASES],
        env={**os.environ, "PATH": paths, "PYTHONPATH": places, "MOSAIC_GPU_DUMP_PTXAS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout
    parts = re.split(r"^== (.*)$", run.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.aot
@pytest.mark.parametrize("case", CASES)
def test_registers_suffice_and_products_overlap(reports: dict[str, str], case: str) -> None:
    """No spill, and no C7513: ptxas serializes products whose registers are written while they are in flight."""
    kernels = aot.parse_ptxas(reports[case])
    assert len(kernels) == (3 if case == "bias d128" or "d256" in case else 2)
    assert [(k.spill_stores, k.spill_loads, k.stack) for k in kernels] == [(0, 0, 0)] * len(kernels)
    assert "C75" not in reports[case]


@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
@pytest.mark.parametrize("n", [1, 128, 4096])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("score", [dict(plain=True), dict(intricate=True), {}])
def test_blocks_fit_into_shared_memory_and_registers(
    head_dim: int, n: int, more: bool, keys: bool, score: dict[str, bool]
) -> None:
    """Two tiles of rows (one for dv alone), two rings, numbers for each query: a Hopper block may have 227 KiB."""
    configs = configs_for(head_dim, n, more=more, keys=keys, **score)
    assert "".join(configs) == "qkv"
    for gives, config in configs.items():
        tiles = (1 if gives == "v" else 2) * config.rows + sum(config.rings) * config.columns
        assert tiles * head_dim * 2 + (config.rows + 2 * config.stages * config.columns) * 4 <= 226 * 1024
        consumer, producer = by_keys.REGISTERS[config.consumers]
        assert 128 * (config.consumers * consumer + producer) <= 64 * 1024
        assert consumer % 8 == producer % 8 == 0 and by_queries.REGISTERS is by_keys.REGISTERS
