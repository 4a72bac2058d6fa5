"""Runs the suite `scaling`: what attention's time and memory grow with, and what gradients of captured arrays cost.

Its rows compare our kernel with itself, so each says what its ratio is (`Row.ratio_of`):

- sets of documents through one compiled function: predicted over measured milliseconds, medians of the sets. `samples`
  holds one number a set under `tiles`, `predicted` and the kernel's name, then the times of each set.
- memory from short to long: bytes a token, the most over the least of the lengths.
- what a score captures: the backward pass with its gradient over the same without.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.gradients import differentiable
from tfc.backends.kernel import Kernel, Target
from tfc.backends.xla.attention import KERNEL as XLA
from tfc.bench import attention, trained
from tfc.bench.attention import BenchError
from tfc.bench.cases import CAUSAL, SEGMENTS, AttentionCase, Direction, among, and_all
from tfc.bench.peers import Operands, asked
from tfc.bench.results import Row, kernel_hash
from tfc.bench.timing import JaxRunner, interleave
from tfc.bench.trained import TRAINED, Shape, Trained

__all__ = ["MOST", "SCALING", "SUITE", "Outcome", "Scaling", "fitted", "names", "run", "sets_of_lengths"]

SUITE = "scaling"
PREDICTED, TILES, WITH = "predicted", "tiles", "with its gradient"
MOST = 1.25
"""What a backward pass with a captured gradient may take at most, over the same without."""

WRONG = 1e-2
"""From where on a result is not that of bf16: it is not timed."""

CHECKED = 3
"""Sets of which one document is exchanged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """The suite's sizes. packed: documents of each of `sets` sets fill its rows. growing: an attention at each of
    `lengths`, in order. checked: its query rows that are compared with float64."""

    packed: AttentionCase
    growing: AttentionCase
    lengths: tuple[int, ...]
    trained: Shape = field(default_factory=Shape)
    sets: int = 50
    documents: int = 64
    checked: int = 16

    @property
    def of_documents(self) -> str:
        return f"{self.sets} sets of documents, {_short(self.packed.length)}"

    @property
    def of_memory(self) -> str:
        return f"memory, {_short(self.lengths[0])} to {_short(self.lengths[-1])}"

    def of_trained(self, of: Trained) -> str:
        return f"{of.name}, {_short(self.trained.length)}"


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


SCALING = Scaling(
    packed=AttentionCase(
        name="documents", batch=2, length=8192, heads=16, kv_heads=16, head_dim=128, mask=and_all(CAUSAL, SEGMENTS),
        captured=("segments q", "segments k"),
    ),
    growing=AttentionCase(
        name="growing", batch=1, length=0, heads=4, kv_heads=4, head_dim=128, mask=CAUSAL,
    ),
    lengths=(2**14, 2**16, 2**18),
)  # fmt: skip
"""Each length four times the one before: then each problem sets a new peak of the device's memory, also forward alone
after the shorter one with gradients."""


@dataclass(frozen=True)
class Outcome:
    """What a case gave: its rows, and who takes no part and why."""

    case: str
    rows: tuple[Row, ...]
    refusals: dict[str, str]


def names(sizes: Scaling = SCALING) -> list[str]:
    return [sizes.of_memory, sizes.of_documents, *map(sizes.of_trained, TRAINED)]


def run(
    kernel: Kernel,
    target: Target,
    *,
    only: str = "",
    samples: int = 15,
    direction: Direction | None = None,
    sizes: Scaling = SCALING,
) -> Iterator[Outcome]:
    """Every case whose name has one of the texts of `only`. direction: None takes memory in both, documents forward.

    Memory first: the device tells no more than its highest peak since the process began. Raises BenchError where a
    result is wrong, a function was compiled anew, or a document changes what another one gets.
    """
    if among(sizes.of_memory, only):
        yield from _memory(kernel, target, sizes, ("forward", "both") if direction is None else (direction,))
    if among(sizes.of_documents, only):
        yield _documents(kernel, target, sizes, direction or "forward", max(3, samples // 2))
    for of in TRAINED:
        if among(sizes.of_trained(of), only):
            yield _trained(of, kernel, target, sizes, samples)


def _row(kernel: Kernel, samples: dict[str, list[float]], peer: str, **more: Any) -> Row:
    ours, theirs = median(samples[kernel.name]), median(samples[peer])
    return Row(
        suite=SUITE, implementation=kernel.name, peer=peer, ours_ms=ours, peer_ms=theirs, ratio=theirs / ours,
        samples=samples, device=jax.devices()[0].device_kind, versions={"jax": jax.__version__},
        date=datetime.now(UTC).isoformat(timespec="seconds"), kernel_hash=kernel_hash(SUITE),
        command=f"tfc bench {SUITE}", **more,
    )  # fmt: skip


def _refusal(case: AttentionCase, direction: Direction, kernel: Kernel, target: Target) -> str | None:
    eqn = case.eqn()
    return trained.refusal(kernel, eqn, target) if direction == "both" else kernel.refuse(eqn, target)


# ---- documents


def sets_of_lengths(count: int, total: int, most: int, seed: int = 0) -> list[tuple[int, ...]]:
    """`count` different sets of lengths of documents that fill `total` tokens: how many there are is log-uniform from 1
    to `most`, where they end uniform."""
    drawn, found = random.Random(seed), dict[tuple[int, ...], None]()
    while len(found) < count:
        cuts = sorted(drawn.sample(range(1, total), round(most ** drawn.random()) - 1))
        found[tuple(b - a for a, b in pairwise([0, *cuts, total]))] = None
    return list(found)


def fitted(tiles: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """(constant, slope) of times over tiles with the least squares of relative errors."""
    x, y = np.asarray(tiles, np.float64), np.asarray(times, np.float64)
    (constant, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(y)), rcond=None)
    return float(constant), float(slope)


def _documents(kernel: Kernel, target: Target, sizes: Scaling, direction: Direction, samples: int) -> Outcome:
    """Every set through the same compiled programs, in turn, `samples` times."""
    packed = sizes.packed
    if reason := _refusal(packed, direction, kernel, target):
        return Outcome(sizes.of_documents, (), {kernel.name: reason})
    drawn = sets_of_lengths(sizes.sets, packed.length, sizes.documents)
    cases = [replace(packed, documents=lengths) for lengths in drawn]
    built = differentiable(kernel, packed.eqn(), target, XLA)
    common = attention.operand_sets(cases[0], direction)
    runner = JaxRunner(asked(lambda *x: built(*x)[0], direction), common)
    given = [_with_fields(case, common) for case in cases]
    tiles = [float(attention.tiles(case)) for case in cases]
    several = sorted((i for i, case in enumerate(cases) if len(case.spans) > 1), key=lambda i: tiles[i])
    chosen = [several[round(n * (len(several) - 1) / (CHECKED - 1))] for n in range(CHECKED)]
    for i in chosen:
        _check_independence(cases[i], runner, given[i], seed=1000 + i)
    middle = chosen[CHECKED // 2]
    error = attention.distance(cases[middle], runner.program(given[middle])[0][0], given[middle][0])
    if not error <= WRONG:
        raise BenchError(f"{sizes.of_documents}: {kernel.name} is {error:.2e} from float64")
    raw: list[list[float]] = [[] for _ in cases]
    for _ in range(samples):
        for i, operands in enumerate(given):
            runner.sets = operands
            raw[i].append(runner.sample())
    compiled = _compiled(runner.program)
    if compiled != 1:
        raise BenchError(f"{sizes.of_documents}: {compiled} compilations for operands of the same shapes")
    measured = [median(times) for times in raw]
    constant, slope = fitted(tiles, measured)
    predicted = [constant + slope * count for count in tiles]
    off = [abs(m - p) / p for m, p in zip(measured, predicted, strict=True)]
    row = _row(
        kernel,
        {kernel.name: measured, PREDICTED: predicted, TILES: tiles, **{f"set {i}": x for i, x in enumerate(raw)}},
        PREDICTED,
        case=sizes.of_documents,
        direction=direction,
        floor_ms=median(case.floor_ms(target.matmul_flops, target.bandwidth, direction) for case in cases),
        errors={kernel.name: error},
        quality={
            "deviation": max(off),
            "deviation_median": median(off),
            "constant_ms": constant,
            "ns_a_tile": 1e6 * slope,
            "least_tiles": min(tiles),
            "most_tiles": max(tiles),
            "sets": len(cases),
            "compilations": compiled,
            "independent_sets": CHECKED,
        },
        ratio_of="predicted over measured ms, medians of the sets; predicted: a constant and a time a tile, fitted",
    )
    return Outcome(sizes.of_documents, (row,), {})


def _with_fields(case: AttentionCase, common: Sequence[Operands]) -> list[Operands]:
    """The operand sets with the case's own fields of tokens."""
    fields = attention.captured(case)
    return [(*x[:3], *fields, *x[3 + len(fields) :]) for x in common]


def _compiled(program: Any) -> int:
    """How many compiled programs a jitted function holds."""
    return int(program._cache_size())


def _check_independence(case: AttentionCase, runner: JaxRunner, sets: list[Operands], seed: int) -> None:
    """Raises BenchError where another q, k and v of one document change a bit of what another document gets, results
    and gradients, or none of its own."""
    ends = np.cumsum(case.spans)
    which = len(ends) // 2
    mine = np.zeros((1, case.length, 1, 1), bool)
    mine[:, ends[which] - case.spans[which] : ends[which]] = True
    keys = jax.random.split(jax.random.key(seed), 3)
    own = zip(keys, sets[0][:3], strict=True)
    exchanged = [jnp.where(mine, jax.random.normal(key, x.shape, x.dtype), x) for key, x in own]
    before, after = (runner.program(given)[0] for given in (sets, [(*exchanged, *sets[0][3:]), *sets[1:]]))
    for a, b in zip(before, after, strict=True):
        same = jax.lax.bitcast_convert_type(a, jnp.uint16) == jax.lax.bitcast_convert_type(b, jnp.uint16)
        if not bool(jnp.all(same | mine)):
            raise BenchError(f"documents {case.spans}: what document {which} holds changes another document's result")
        if bool(jnp.all(same)):
            raise BenchError(f"documents {case.spans}: what document {which} holds changes nothing")


# ---- memory


def _memory(kernel: Kernel, target: Target, sizes: Scaling, directions: Sequence[Direction]) -> Iterator[Outcome]:
    """Bytes a token at each length, forward before both, so that each problem sets a new peak."""
    used: dict[Direction, list[dict[str, float]]] = {d: [] for d in directions}
    refused: dict[Direction, str] = {}
    for length in sizes.lengths:
        case = replace(sizes.growing, length=length)
        for direction in directions:
            if reason := _refusal(case, direction, kernel, target):
                refused[direction] = reason
                continue
            checked = sizes.checked if length == sizes.lengths[-1] and direction == "forward" else 0
            used[direction].append(_used(case, direction, kernel, target, checked))
    for direction in directions:
        if direction in refused:
            yield Outcome(sizes.of_memory, (), {kernel.name: refused[direction]})
            continue
        found = used[direction]
        last = found[-1]
        each = [x["compiled"] for x in found]
        quality = {
            f"{what} {_short(n)}": x[what]
            for n, x in zip(sizes.lengths, found, strict=True)
            for what in ("compiled", "device", "operands")
            if what in x
        }
        row = _row(
            kernel,
            {kernel.name: [min(each)], "most": [max(each)]},
            "most",
            case=sizes.of_memory,
            direction=direction,
            floor_ms=last["operands"],
            errors={kernel.name: last["error"]} if "error" in last else {},
            quality=quality,
            unit="bytes a token",
            ratio_of="bytes a token at the length with most over that with least",
        )
        yield Outcome(sizes.of_memory, (row,), {})


def _used(case: AttentionCase, direction: Direction, kernel: Kernel, target: Target, checked: int) -> dict[str, float]:
    """Bytes a token of a call: `compiled`, operands, results and temporaries as the compiled program says;
    `operands`, without temporaries; `device`, by how much the call raised the device's peak, where it did.

    checked: query rows to compare with float64. Raises BenchError where the result is wrong.
    """
    built = differentiable(kernel, case.eqn(), target, XLA)
    call = asked(lambda *x: built(*x)[0], direction)
    held = _stats("bytes_in_use")
    operands = _long_operands(case, direction)
    compiled = jax.jit(call).lower(*operands).compile()
    said = compiled.memory_analysis()
    if said is None:
        raise BenchError(f"{case.length} tokens: the compiler does not say how much memory the program takes")
    moved = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    out = {"compiled": (moved + said.temp_size_in_bytes) / case.length, "operands": moved / case.length}
    before = _stats("peak_bytes_in_use")
    results = jax.block_until_ready(compiled(*operands))
    peak = _stats("peak_bytes_in_use")
    if peak > before:
        out["device"] = (peak - held) / case.length
    if checked:
        out["error"] = attention.distance(case, results[0], operands, sampled=checked)
        if not out["error"] <= WRONG:
            raise BenchError(f"{case.length} tokens: {kernel.name} is {out['error']:.2e} from float64")
    return out


def _stats(what: str) -> int:
    """A figure of the device's allocator; 0 where it keeps none, as on a CPU."""
    return int((jax.local_devices()[0].memory_stats() or {}).get(what, 0))


BLOCK = 4096


def _long_operands(case: AttentionCase, direction: Direction) -> Operands:
    """q, k, v and, for both directions, a cotangent, made block by block: then making them takes no more memory than
    they do, and the peak is the call's."""
    block = math.gcd(case.length, BLOCK)

    @jax.jit
    def made(key: jax.Array) -> jax.Array:
        shape = (case.batch, block, case.heads, case.head_dim)
        keys = jax.random.split(key, case.length // block)
        blocks = jax.lax.map(lambda own: jax.random.normal(own, shape, jnp.bfloat16), keys)
        return jnp.reshape(jnp.swapaxes(blocks, 0, 1), (case.batch, case.length, *shape[2:]))

    return tuple(made(jax.random.key(i)) for i in range(4 if direction == "both" else 3))


# ---- what scores capture


def _trained(of: Trained, kernel: Kernel, target: Target, sizes: Scaling, samples: int) -> Outcome:
    """The backward pass with and without the gradient of what is captured, in turn."""
    name, eqn = sizes.of_trained(of), trained.equation(of, sizes.trained, target)
    if reason := trained.refusal(kernel, eqn, target):
        return Outcome(name, (), {kernel.name: reason})
    forward = jax.jit(kernel.build(eqn, target))

    def whole(seed: int) -> Operands:
        *operands, cotangent = trained.operands(of, eqn, seed)
        return (*operands, *forward(*operands), cotangent)

    first = whole(0)
    taken = sum(x.nbytes for x in first)
    sets = [first, *(whole(seed) for seed in range(1, max(2, math.ceil(attention.ROTATED / taken))))]
    runners = {
        key: JaxRunner(trained.backward(kernel, eqn, target, captured=captured), sets)
        for key, captured in ((kernel.name, False), (WITH, True))
    }
    errors = _checked(name, eqn, target, first, *(runner.program(sets)[0] for runner in runners.values()))
    times = interleave(dict(runners), samples)
    b, n, h, d = eqn.args[0].type.ints
    case = AttentionCase(name=name, batch=b, length=n, heads=h, kv_heads=h, head_dim=d, mask=CAUSAL)
    rates = target.matmul_flops, target.bandwidth
    row = _row(
        kernel,
        times,
        WITH,
        case=name,
        direction="backward",
        floor_ms=case.floor_ms(*rates, "both") - case.floor_ms(*rates),
        errors=errors,
        quality={"most": MOST},
        ratio_of="backward with the gradient of what is captured over the same without",
    )
    return Outcome(name, (row,), {})


def _checked(
    name: str, eqn: Any, target: Target, given: Operands, without: Sequence[jax.Array], whole: Sequence[jax.Array]
) -> dict[str, float]:
    """Distances of both forms' gradients of q, k and v, and of what is captured, from those of the xla form. Raises
    BenchError where one is another function's."""
    *operands, _, _, cotangent = given
    right = trained.true(XLA, eqn, target, (*operands, cotangent))
    errors = {
        "without": attention.apart(right[:3], without),
        "with": attention.apart(right[:3], whole[:3]),
        "captured": attention.apart(right[3:], whole[3:]),
    }
    if not max(errors.values()) <= attention.WRONG:
        raise BenchError(f"{name}: gradients are {errors} from those of the xla form")
    return errors
