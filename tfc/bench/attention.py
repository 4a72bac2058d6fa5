"""Runs the suite `attention`: every case checked against float64, then timed beside its peers in one run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.gradients import differentiable
from tfc.backends.kernel import Kernel, Target
from tfc.backends.reference.program import define
from tfc.backends.xla.attention import KERNEL as XLA
from tfc.bench.cases import ATTENTION, CAUSAL, DIRECTIONS, AttentionCase, Direction
from tfc.bench.peers import PEERS, Operands, Peer, PeerRefusal, prepared
from tfc.bench.results import Row, kernel_hash
from tfc.bench.timing import JaxRunner, Runner, interleave
from tfc.formula.expr import Const, conjuncts
from tfc.ir.types import DType

__all__ = ["BenchError", "Outcome", "run"]

ROTATED = 200e6
"""Bytes of operands in rotation: four times the 50 MB L2 cache of Hopper."""

SAMPLED = 256
"""Query rows checked at each of two places of a case, for two heads."""


GRADED = 2304
"""Longest problem of which gradients are checked: float64 scores of two heads of it take 85 MB, several times over."""

GRADIENTS = 1.5e-2
"""Most that bf16 gradients may be away: each is a sum of products of the rounded weights (2^-8) and rounded itself."""


class BenchError(Exception):
    """A case whose result is wrong: it is not timed."""


@dataclass(frozen=True)
class Outcome:
    """What a case gave in one direction: its rows, and who refused it and why."""

    case: AttentionCase
    direction: Direction
    rows: tuple[Row, ...]
    refusals: dict[str, str]


def operand_sets(case: AttentionCase, direction: Direction = "forward") -> list[Operands]:
    """Enough sets of random operands that no call finds its own in the cache; captured arrays are shared."""
    captured = [_captured(case, what) for what in case.captured]
    return [_operands(case, direction, captured, i) for i in range(max(2, math.ceil(ROTATED / case.bytes)))]


def _operands(case: AttentionCase, direction: Direction, captured: Sequence[jax.Array], seed: int) -> Operands:
    """q, k, v, what the formulas read, and for both directions a cotangent of the result."""
    *keys, last = jax.random.split(jax.random.key(seed), 4)
    heads = (case.heads, case.kv_heads, case.kv_heads)
    q, k, v = [
        jax.random.normal(key, (case.batch, case.length, n, case.head_dim), jnp.bfloat16)
        for key, n in zip(keys, heads, strict=True)
    ]
    cotangent = [jax.random.normal(last, q.shape, jnp.bfloat16)] if direction == "both" else []
    return (q, k, v, *captured, *cotangent)


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
    host = [_on_host(x) for x in operands]
    n, m = host[0].shape[1], host[1].shape[1]
    eqn = case.part(1, n, m, 1, 1, DType.F64)
    cpu = jax.devices("cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        out, _ = define(eqn.op, jnp.float64, *map(jnp.asarray, host))
        return np.asarray(out)[0, :, 0]


def gradient_distance(case: AttentionCase, kernel: Kernel, target: Target) -> float:
    """Norm-wise distance of the gradients of q, k and v to those of the float64 definition, the largest of the three:
    of two heads of a shorter problem, as each gradient depends on all of one."""
    group = case.heads // case.kv_heads
    small = replace(case, batch=1, length=min(case.length, GRADED), heads=2 * group, kv_heads=2)
    operands = _operands(small, "both", [_captured(small, what) for what in small.captured], 0)
    built = differentiable(kernel, small.eqn(), target, XLA)
    _, got = prepared(lambda *x: built(*x)[0], [operands], "both")
    q, k, v, *rest, cotangent = (_on_host(x) for x in operands)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        op = small.eqn().op
        _, pull = jax.vjp(lambda *x: define(op, jnp.float64, *x, *map(jnp.asarray, rest))[0], q, k, v)
        want = [np.asarray(x) for x in pull(jnp.asarray(cotangent))]
    pairs = zip(got()[1:], want, strict=True)
    return max(float(np.linalg.norm(_on_host(a) - b) / np.linalg.norm(b)) for a, b in pairs)


def _on_host(x: jax.Array) -> np.ndarray:
    """As float64 or int32 on the host."""
    host = np.asarray(x.astype(jnp.float32)) if x.dtype == jnp.bfloat16 else np.asarray(x)
    return host.astype(np.float64) if host.dtype.kind == "f" else host.astype(np.int32)


def apart(ours: Sequence[jax.Array], theirs: Sequence[jax.Array]) -> float:
    """The largest norm-wise distance of what a peer gives from what we give, of the same operands."""

    def one(a: jax.Array, b: jax.Array) -> float:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(a)))

    return max(map(one, ours, theirs))


@dataclass(frozen=True)
class Served:
    """Who serves a case, what each is away from what is right, and who refuses, in words."""

    runners: dict[str, Runner]
    errors: dict[str, float]
    refusals: dict[str, str]


def _prepare(
    case: AttentionCase, direction: Direction, kernel: Kernel, target: Target, peers: Sequence[Peer]
) -> Served:
    """Us and every peer that serves the case. Distances are to the definition; those of gradients are ours to the
    definition of a shorter problem, and the peers' to ours.

    Raises BenchError where what we give is wrong.
    """
    eqn = case.eqn()
    reason = kernel.refuse(eqn, target)
    if direction == "both" and not kernel.differentiable:
        own = kernel.gradient
        reason = reason or ("has no gradient of its own" if own is None else own.refuse(eqn, target))
    if reason:
        return Served({}, {}, {kernel.name: reason})
    built, sets = differentiable(kernel, eqn, target, XLA), operand_sets(case, direction)
    runner, result = prepared(lambda *operands: built(*operands)[0], sets, direction)
    runners: dict[str, Runner] = {kernel.name: runner}
    made = result()
    errors = {kernel.name: distance(case, made[0], sets[0][: 3 + len(case.captured)])}
    if direction == "both":
        errors[kernel.name] = max(errors[kernel.name], gradient_distance(case, kernel, target))
    refusals: dict[str, str] = {}
    for peer in peers:
        try:
            runner, result = peer.prepare(case, sets, direction)
            theirs = result()
            errors[peer.name] = distance(case, theirs[0], sets[0]) if direction == "forward" else apart(made, theirs)
            runners[peer.name] = runner
        except PeerRefusal as refusal:
            refusals[peer.name] = str(refusal)
        except Exception as error:  # a peer may raise anything; what it said is the result
            refusals[peer.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    limit = max([2 * e for n, e in errors.items() if n != kernel.name], default=1e-2)
    if direction == "both":
        limit = GRADIENTS
    if not errors[kernel.name] <= max(limit, 4e-3):
        raise BenchError(f"{case.name}: {kernel.name} is {errors[kernel.name]:.2e} from float64, peers {errors}")
    return Served(runners, errors, refusals)


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
    kernel: Kernel,
    target: Target,
    against: Sequence[str],
    *,
    only: str = "",
    samples: int = 15,
    directions: Sequence[Direction] = DIRECTIONS,
) -> Iterator[Outcome]:
    """Every case of the suite whose name contains `only`, one after another, in each direction. Raises BenchError on a
    wrong result."""
    peers = [PEERS[name] for name in against]
    device = jax.devices()[0].device_kind
    versions = {"jax": jax.__version__}
    rate = matrix_rate() if target.platform == "gpu" else target.matmul_flops

    def rows_of(
        times: dict[str, list[float]], case: AttentionCase, direction: Direction, errors: dict[str, float]
    ) -> Iterator[Row]:
        for name in times:
            if name == kernel.name:
                continue
            ours, theirs = median(times[kernel.name]), median(times[name])
            yield Row(
                suite="attention", case=case.name, direction=direction, implementation=kernel.name, peer=name,
                ours_ms=ours, peer_ms=theirs, ratio=theirs / ours, device=device, versions=dict(versions),
                samples={kernel.name: times[kernel.name], name: times[name]},
                errors={kernel.name: errors[kernel.name], name: errors[name]},
                floor_ms=case.floor_ms(rate, target.bandwidth, direction),
                date=datetime.now(UTC).isoformat(timespec="seconds"), kernel_hash=kernel_hash("attention"),
                command=f"tfc bench attention --against {','.join(against)}",
            )  # fmt: skip

    for case, direction in product([c for c in ATTENTION if only in c.name], directions):
        found = _prepare(case, direction, kernel, target, peers)
        for peer in peers:
            if peer.name in found.runners:
                versions |= peer.versions()
        times = interleave(found.runners, samples)
        yield Outcome(case, direction, tuple(rows_of(times, case, direction, found.errors)), found.refusals)
