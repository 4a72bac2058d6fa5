"""Runs the suite `attention`: every case checked against float64, then timed beside its peers in one run."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.bounds import visited_tiles
from tfc.backends.gradients import differentiable
from tfc.backends.kernel import Kernel, Target
from tfc.backends.reference.program import define
from tfc.backends.xla.attention import KERNEL as XLA
from tfc.bench.cases import ATTENTION, CAUSAL, DIRECTIONS, SEGMENTS, AttentionCase, Direction
from tfc.bench.peers import PEERS, Operands, Peer, PeerRefusal, prepared
from tfc.bench.results import Row, kernel_hash
from tfc.bench.side_by_side import Turn
from tfc.bench.timing import JaxRunner, Runner, interleave
from tfc.formula.expr import Const, conjuncts
from tfc.ir.ops import P
from tfc.ir.types import DType

__all__ = ["BenchError", "Outcome", "captured", "matrix_rate", "prepared_first", "run"]

ROTATED = 200e6
"""Bytes of operands in rotation: four times the 50 MB L2 cache of Hopper."""

SAMPLED = 256
"""Query rows checked at each of two places of a case, for two heads."""


GRADED = 2304
"""Longest problem of which gradients are checked: float64 scores of two heads of it take 85 MB, several times over."""

GRADIENTS = 1.5e-2
"""Most that bf16 gradients may be away: each is a sum of products of the rounded weights (2^-8) and rounded itself."""


WRONG = 5e-2
"""From where on a peer's result is another function's and not that of bf16: such a peer is not timed."""

OWN = "own"
"""The name among peers of our own kernel on the case that another is measured beside."""


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
    given = captured(case)
    return [_operands(case, direction, given, i) for i in range(max(2, math.ceil(ROTATED / case.bytes)))]


def captured(case: AttentionCase) -> list[jax.Array]:
    """The arrays of the formulas' slots."""
    return [_captured(case, what) for what in case.captured]


def _operands(case: AttentionCase, direction: Direction, given: Sequence[jax.Array], seed: int) -> Operands:
    """q, k, v, what the formulas read, and for both directions a cotangent of the result."""
    *keys, last = jax.random.split(jax.random.key(seed), 4)
    heads = (case.heads, case.kv_heads, case.kv_heads)
    q, k, v = [
        jax.random.normal(key, (case.batch, case.length, n, case.head_dim), jnp.bfloat16)
        for key, n in zip(keys, heads, strict=True)
    ]
    cotangent = [jax.random.normal(last, q.shape, jnp.bfloat16)] if direction == "both" else []
    return (q, k, v, *given, *cotangent)


def _captured(case: AttentionCase, what: str) -> jax.Array:
    if what == "slopes":  # ALiBi for a power of two of heads (arXiv:2108.12409)
        return 2.0 ** (-8.0 * (jnp.arange(case.heads, dtype=jnp.float32) + 1) / case.heads)
    starts = np.cumsum((0, *case.spans[:-1]))
    fields = {"segments": np.arange(len(starts)), "prefixes": starts + case.prefix}
    of_tokens = np.repeat(fields[what.split()[0]], case.spans).astype(np.int32)
    return jnp.tile(jnp.asarray(of_tokens), (case.batch, 1))


def tiles(case: AttentionCase) -> int:
    """Tiles of 128 queries and 128 keys that a kernel has to visit, of all rows and heads."""
    given = [np.asarray(x) for x in captured(case)]
    sizes = dict(n=case.length, m=case.length, block_q=128, block_k=128, batch=case.batch, heads=case.heads)
    found = visited_tiles(case.mask, given, **sizes)
    of_each: float = np.mean(found > 0) * found.shape[2] * found.shape[3]
    return round(of_each * case.batch * case.heads)


def _tiles_of(case: AttentionCase, other: AttentionCase) -> dict[str, float]:
    counts = tiles(case), tiles(other)
    return {"tiles": counts[0], "beside_tiles": counts[1], "predicted": counts[1] / counts[0]}


def distance(case: AttentionCase, out: jax.Array, operands: Operands, *, sampled: int | None = None) -> float:
    """Norm-wise distance of `out` [B, N, H, D] to the float64 definition, on sampled rows of two heads: at each of two
    places `sampled`, or SAMPLED.

    Rows a..b of a causal case see keys before b only, so a sample is the definition's last rows of the shorter
    problem of b keys, as it is where a document ends at b; without a mask any rows of the whole problem serve.
    """
    plain, causal = case.mask == Const(True), CAUSAL in conjuncts(case.mask)
    ends = [case.length // 2 + 77, case.length]
    if SEGMENTS in conjuncts(case.mask):
        ends[0] = min(np.cumsum(case.spans).tolist(), key=lambda end: abs(end - ends[0]))
    elif not plain and not causal:
        raise BenchError(f"{case.name}: no way to sample rows of this mask")
    worst = 0.0
    for b, h in ((0, 0), (case.batch - 1, case.heads - 1)):
        g = h // (case.heads // case.kv_heads)
        for end in ends:
            rows, keys = slice(max(0, end - (sampled or SAMPLED)), end), slice(0, case.length if plain else end)
            q, k, v = operands[:3]
            parts = [q[b : b + 1, rows, h : h + 1], k[b : b + 1, keys, g : g + 1], v[b : b + 1, keys, g : g + 1]]
            for what, x in zip(case.captured, operands[3 : 3 + len(case.captured)], strict=True):
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
    operands = _operands(small, "both", captured(small), 0)
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
    """Who serves a case, what each is away from what is right, and who refuses, in words. elsewhere: those who compute
    the case that ours is measured beside."""

    runners: dict[str, Runner]
    errors: dict[str, float]
    refusals: dict[str, str]
    elsewhere: frozenset[str] = frozenset()


def _ours(
    case: AttentionCase, direction: Direction, kernel: Kernel, target: Target, sets: Sequence[Operands]
) -> tuple[Runner, tuple[jax.Array, ...], float] | str:
    """The kernel on a case: what times it, what it gives of the first operands, and its distance to the definition; or
    why it refuses. Distances of gradients are of a shorter problem."""
    eqn = case.eqn()
    reason = kernel.refuse(eqn, target)
    if direction == "both" and not kernel.differentiable:
        own = kernel.gradient
        reason = reason or ("has no gradient of its own" if own is None else own.refuse(eqn, target))
    if reason:
        return reason
    built = differentiable(kernel, eqn, target, XLA)
    runner, result = prepared(lambda *operands: built(*operands)[0], sets, direction)
    made = result()
    error = distance(case, made[0], sets[0])
    return runner, made, max(error, gradient_distance(case, kernel, target)) if direction == "both" else error


def _prepare(
    case: AttentionCase, direction: Direction, kernel: Kernel, target: Target, peers: Sequence[Peer]
) -> Served:
    """Us and every peer that serves the case. Distances are to the definition; those of gradients are ours to the
    definition of a shorter problem, and the peers' to ours.

    Peers have no weights but the softmax's: where the case has others, they compute the case that it is beside.
    Raises BenchError where what we give is wrong.
    """
    sets = operand_sets(case, direction)
    ours = _ours(case, direction, kernel, target, sets)
    if isinstance(ours, str):
        return Served({}, {}, {kernel.name: ours})
    runner, made, error = ours
    runners, errors, refusals = {kernel.name: runner}, {kernel.name: error}, dict[str, str]()
    elsewhere, other = set[str](), case
    if case.beside is not None:
        beside_sets = operand_sets(case.beside, direction)
        own = _ours(case.beside, direction, kernel, target, beside_sets)
        if isinstance(own, str):
            refusals[OWN] = own
        else:
            runners[OWN], errors[OWN] = own[0], own[2]
            elsewhere.add(OWN)
        if case.weigh != P and not isinstance(own, str):
            other, sets, made = case.beside, beside_sets, own[1]
            elsewhere |= {peer.name for peer in peers}
    for peer in peers:
        try:
            runner, result = peer.prepare(other, sets, direction)
            theirs = result()
            apart_ = distance(other, theirs[0], sets[0]) if direction == "forward" else apart(made, theirs)
            if not apart_ <= WRONG:
                raise PeerRefusal(f"what it gives is {apart_:.1e} from what is right")
            runners[peer.name], errors[peer.name] = runner, apart_
        except PeerRefusal as refusal:
            refusals[peer.name] = str(refusal)
        except Exception as error:  # a peer may raise anything; what it said is the result
            refusals[peer.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    limit = max([2 * e for n, e in errors.items() if n not in (kernel.name, OWN)], default=1e-2)
    if direction == "both":
        limit = GRADIENTS
    for name in (kernel.name, OWN):
        if not errors.get(name, 0.0) <= max(limit, 4e-3):
            raise BenchError(f"{case.name}: {kernel.name} is {errors[name]:.2e} from float64, peers {errors}")
    return Served(runners, errors, refusals, frozenset(elsewhere))


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
    chosen: Sequence[tuple[AttentionCase, Direction]] | None = None,
    samples: int = 15,
    rate: float | None = None,
    turn: Turn | None = None,
) -> Iterator[Outcome]:
    """The chosen cases, or all of the suite, one after another, each in its direction. rate: the matrix rate in FLOP/s,
    measured here where it is not given. turn: where other processes measure, too; all cases are prepared first.

    Raises BenchError on a wrong result; with `turn` after the outcomes of the others.
    """
    peers = [PEERS[name] for name in against]
    device = jax.devices()[0].device_kind
    versions = {"jax": jax.__version__}
    if rate is None:
        rate = matrix_rate() if target.platform == "gpu" else target.matmul_flops
    asked = list(product(ATTENTION, DIRECTIONS)) if chosen is None else chosen

    def rows_of(
        times: dict[str, list[float]], case: AttentionCase, direction: Direction, found: Served
    ) -> Iterator[Row]:
        errors = found.errors
        for name in times:
            if name == kernel.name:
                continue
            ours, theirs = median(times[kernel.name]), median(times[name])
            other = case.beside if name in found.elsewhere else None
            yield Row(
                suite="attention", case=case.name, direction=direction, implementation=kernel.name, peer=name,
                ours_ms=ours, peer_ms=theirs, ratio=theirs / ours, device=device, versions=dict(versions),
                samples={kernel.name: times[kernel.name], name: times[name]},
                errors={kernel.name: errors[kernel.name], name: errors[name]},
                floor_ms=case.floor_ms(rate, target.bandwidth, direction),
                date=datetime.now(UTC).isoformat(timespec="seconds"), kernel_hash=kernel_hash("attention"),
                command=f"tfc bench attention --against {','.join(against)}",
                beside="" if other is None else other.name,
                quality={} if other is None else _tiles_of(case, other),
            )  # fmt: skip

    for (case, direction), found in prepared_first(lambda asked: _prepare(*asked, kernel, target, peers), asked, turn):
        for peer in peers:
            if peer.name in found.runners:
                versions |= peer.versions()
        times = interleave(found.runners, samples)
        yield Outcome(case, direction, tuple(rows_of(times, case, direction, found)), found.refusals)


def prepared_first[Case, Made](
    prepare: Callable[[Case], Made], cases: Sequence[Case], turn: Turn | None
) -> Iterator[tuple[Case, Made]]:
    """Each case with what `prepare` makes of it, when it is asked for; or, where there is a turn to wait for, all of
    them before it. Raises BenchError as `prepare` does, then after the others."""
    if turn is None:
        for case in cases:
            yield case, prepare(case)
        return
    made: list[tuple[Case, Made]] = []
    wrong: list[BenchError] = []
    for case in cases:
        try:
            made.append((case, prepare(case)))
        except BenchError as error:
            wrong.append(error)
    turn()
    while made:
        yield made.pop(0)  # and its arrays are let go
    if wrong:
        raise BenchError("; ".join(map(str, wrong)))
