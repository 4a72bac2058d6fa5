"""What the interpreter cannot see of the Hopper kernel, looked up in what ptxas says of its code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfc import aot

CASES = [f"{mask} d{d}" for d in (32, 64, 128, 256) for mask in ("full", "causal", "window1024")]
CASES += [
    "causal d16",
    "causal d80",
    "causal d96",
    "causal d160",
    "causal d192/128",
    "causal d64/128",
    "causal d128/64",
]
CASES += [f"causal {word} d{d}" for d in (64, 128, 256) for word in ("softcap", "alibi", "documents", "sink")]
CASES += [f"causal {word} d{d}" for d in (64, 128) for word in ("hstu", "relu2", "clipped")]
CASES += [f"{mask} grid d{d}" for d in (64, 128) for mask in ("full", "causal", "causal alibi")]
CASES += [
    "causal persistent k64 s3 d192/128",
    "causal softcap grid d64",
    "causal softcap running persistent d128",
    "causal coarse d64",
    "causal coarse d128",
    "causal coarse d256",
    "causal softcap d64/128",
    "documents softcap d128",
    "full softcap d64",
    "full softcap d128",
]


@pytest.fixture(scope="module")
def reports() -> dict[str, str]:
    """ptxas' report of each case, all compiled for H200 by one process."""
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")
    here = Path(__file__)
    paths = os.pathsep.join([aot.ptxas_folder(), os.environ["PATH"]])
    run = subprocess.run(
        [sys.executable, str(here.parent / "compiled.py"), *CASES],
        env={**os.environ, "PATH": paths, "PYTHONPATH": str(here.parents[3]), "MOSAIC_GPU_DUMP_PTXAS": "1"},
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
    assert kernels  # two, where weights need log-sum-exps beforehand and no case before has compiled those
    assert all((k.spill_stores, k.spill_loads, k.stack) == (0, 0, 0) for k in kernels)
    assert "C75" not in reports[case]
