"""Runs the suite `attention`: every case checked against float64, then timed beside its peers in one run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.kernel import Kernel, Target
from tfc.backends.reference.program import define
from tfc.bench.cases import ATTENTION, CAUSAL, AttentionCase
from tfc.bench.peers import PEERS, Operands, Peer, PeerRefusal
from tfc.bench.results import Row, kernel_hash
from tfc.bench.timing import JaxRunner, Runner, interleave
from tfc.formula.expr import Const, conjuncts
from tfc.ir.types import DType

__all__ = ["BenchError", "Outcome", "run"]

ROTATED = 200e6
"""Bytes of operands in rotation: four times the 50 MB L2 cache of Hopper."""

SAMPLED = 256
"""Query rows checked at each of two places of a case, for two heads."""


class BenchError(Exception):
    """A case whose result is wrong: it is not timed."""


@dataclass(frozen=True)
class Outcome:
    """What a case gave: its rows, and who refused it and why."""

    case: AttentionCase
    rows: tuple[Row, ...]
    refusals: dict[str, str]


def operand_sets(case: AttentionCase) -> list[Operands]:
    """Enough sets of random operands that no call finds its own in the cache; captured arrays are shared."""
    count = max(2, math.ceil(ROTATED / case.bytes))
    captured = [_captured(case, what) for what in case.captured]
    sets = []
    for i in range(count):
        keys = jax.random.split(jax.random.key(i), 3)
        heads = (case.heads, case.kv_heads, case.kv_heads)
        qkv = [
            jax.random.normal(key, (case.batch, case.length, n, case.head_dim), jnp.bfloat16)
            for key, n in zip(keys, heads, strict=True)
        ]
        sets.append((*qkv, *captured))
    return sets


def _captured(case: AttentionCase, what: str) -> jax.Array:
    if what.startswith("segments"):
        segments = jnp.arange(case.length, dtype=jnp.int32) // int(what.split()[1])
        return jnp.tile(segments, (case.batch, 1))
    if what == "slopes":  # ALiBi for a power of two of heads (arXiv:2108.12409)
        return 2.0 ** (-8.0 * (jnp.arange(case.heads, dtype=jnp.float32) + 1) / case.heads)
    raise ValueError(f"no operands called {what!r}")


def distance(case: AttentionCase, out: jax.Array, operands: Operands) -> float:
    """Norm-wise distance of `out` [B, N, H, D] to the float64 definition, on sampled rows of two heads.

    Rows a..b of a causal case see keys before b only, so a sample is the definition's last rows of the shorter
    problem of b keys; without a mask any rows of the whole problem serve.
    """
    causal = CAUSAL in conjuncts(case.mask)
    if not causal and case.mask != Const(True):
        raise BenchError(f"{case.name}: no way to sample rows of this mask")
    worst = 0.0
    for b, h in ((0, 0), (case.batch - 1, case.heads - 1)):
        g = h // (case.heads // case.kv_heads)
        for end in (case.length // 2 + 77, case.length):
            rows, keys = slice(end - SAMPLED, end), slice(0, end if causal else case.length)
            q, k, v = operands[:3]
            parts = [q[b : b + 1, rows, h : h + 1], k[b : b + 1, keys, g : g + 1], v[b : b + 1, keys, g : g + 1]]
            for what, x in zip(case.captured, operands[3:], strict=True):
                sides = {"q": (slice(b, b + 1), rows), "k": (slice(b, b + 1), keys)}
                parts.append(x[sides.get(what.split()[-1], slice(h, h + 1))])
            want = _definition(case, parts)
            got = np.asarray(out[b, rows, h].astype(jnp.float32), np.float64)
            worst = max(worst, float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    return worst


def _definition(case: AttentionCase, operands: Sequence[jax.Array]) -> np.ndarray:
    """The reference in float64 on the CPU: one batch row, one head -> [n, D]."""
    host = [np.asarray(x.astype(jnp.float32)) if x.dtype == jnp.bfloat16 else np.asarray(x) for x in operands]
    n, m = host[0].shape[1], host[1].shape[1]
    eqn = case.part(1, n, m, 1, 1, DType.F64)
    cpu = jax.devices("cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        wide = [jnp.asarray(x, jnp.float64) if x.dtype.kind == "f" else jnp.asarray(x, jnp.int32) for x in host]
        out, _ = define(eqn.op, jnp.float64, *wide)
        return np.asarray(out)[0, :, 0]


def _prepare(
    case: AttentionCase, sets: list[Operands], kernel: Kernel, target: Target, peers: Sequence[Peer]
) -> tuple[dict[str, Runner], dict[str, float], dict[str, str]]:
    """Runners and distances to the definition of us and of every peer that serves the case; refusals in words."""
    eqn = case.eqn()
    if reason := kernel.refuse(eqn, target):
        raise BenchError(f"{case.name}: {kernel.name} refuses: {reason}")
    built = kernel.build(eqn, target)

    def ours(*operands: jax.Array) -> jax.Array:
        return built(*operands)[0]

    runners: dict[str, Runner] = {kernel.name: JaxRunner(ours, sets)}
    errors = {kernel.name: distance(case, jax.jit(ours)(*sets[0]), sets[0])}
    refusals: dict[str, str] = {}
    for peer in peers:
        try:
            runner, result = peer.prepare(case, sets)
            errors[peer.name] = distance(case, result(), sets[0])
            runners[peer.name] = runner
        except PeerRefusal as refusal:
            refusals[peer.name] = str(refusal)
        except Exception as error:  # a peer may raise anything; what it said is the result
            refusals[peer.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    limit = max([2 * e for n, e in errors.items() if n != kernel.name], default=1e-2)
    if not errors[kernel.name] <= max(limit, 4e-3):
        raise BenchError(f"{case.name}: {kernel.name} is {errors[kernel.name]:.2e} from float64, peers {errors}")
    return runners, errors, refusals


def matrix_rate(samples: int = 5) -> float:
    """bf16 FLOP/s that the library's product of two random 8192 x 8192 matrices reaches here: the floor's rate."""
    size = 8192
    pairs = [
        tuple(jax.random.normal(jax.random.key(2 * i + j), (size, size), jnp.bfloat16) for j in range(2))
        for i in range(2)
    ]
    runner = JaxRunner(jnp.matmul, pairs)
    return 2 * size**3 / (1e-3 * median(runner.sample() for _ in range(samples)))


def run(
    kernel: Kernel, target: Target, against: Sequence[str], *, only: str = "", samples: int = 15
) -> Iterator[Outcome]:
    """Every case of the suite whose name contains `only`, one after another. Raises BenchError on a wrong result."""
    peers = [PEERS[name] for name in against]
    device = jax.devices()[0].device_kind
    versions = {"jax": jax.__version__}
    rate = matrix_rate() if target.platform == "gpu" else target.matmul_flops
    for case in (c for c in ATTENTION if only in c.name):
        sets = operand_sets(case)
        runners, errors, refusals = _prepare(case, sets, kernel, target, peers)
        for peer in peers:
            if peer.name in runners:
                versions |= peer.versions()
        times = interleave(runners, samples)
        ours = median(times[kernel.name])
        shared = {
            "suite": "attention", "case": case.name, "direction": "forward", "implementation": kernel.name,
            "ours_ms": ours, "floor_ms": case.floor_ms(rate, target.bandwidth), "device": device,
            "versions": dict(versions), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "kernel_hash": kernel_hash("attention"),
            "command": f"tfc bench attention --against {','.join(against)}",
        }  # fmt: skip
        rows = tuple(
            Row(
                **shared, peer=name, peer_ms=median(times[name]), ratio=median(times[name]) / ours,
                samples={kernel.name: times[kernel.name], name: times[name]},
                errors={kernel.name: errors[kernel.name], name: errors[name]},
            )
            for name in times if name != kernel.name
        )  # fmt: skip
        yield Outcome(case, rows, refusals)
