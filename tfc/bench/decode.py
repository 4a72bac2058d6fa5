"""Runs the suite `decode`: a few queries against long caches, checked against float64, timed beside peers in one run.

Time is what the cache takes to arrive: the floor is its bytes over the bandwidth that is measured in the same run, the
larger of what a copy and what a product of a vector with a matrix reach.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.bounds import visited_tiles
from tfc.backends.kernel import Kernel, Target
from tfc.backends.pallas_gpu import decode as kernels
from tfc.backends.reference.program import define
from tfc.bench.attention import OWN, ROTATED, WRONG, BenchError, prepared_first
from tfc.bench.decode_peers import PEERS
from tfc.bench.peers import Operands, PeerRefusal
from tfc.bench.results import Row, kernel_hash
from tfc.bench.side_by_side import Turn
from tfc.bench.timing import JaxRunner, Runner, interleave
from tfc.formula.expr import Kind, Load, Token, apply
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

__all__ = ["DECODE", "DecodeCase", "Outcome", "bandwidths", "built", "captured_of", "distance", "operand_sets", "run"]

SUITE = "decode"
SEEN = apply("le", Token("k"), Load(0, "q", Kind.INT))
FURTHEST = 5e-3
"""Most that results may be away from float64's: outputs, and weights before their product, are rounded to bf16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCase:
    """`queries` new tokens of each row against the keys and values of `length` tokens, the new ones among them.

    page: tokens of a page where keys and values lie in pages, in any order. kept: their type, where it has 8 bits.
    """

    name: str
    batch: int
    length: int
    queries: int = 1
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    page: int = 0
    kept: Literal["", "int8", "float8_e4m3fn"] = ""
    beside: "DecodeCase | None" = None
    """Another case that our kernel is measured on in the same run."""

    @property
    def bytes(self) -> int:
        """Keys and values read once; of 8 bits with a float32 scale a token and head. Queries and results, bf16."""
        a_token = self.head_dim + 4 if self.kept else 2 * self.head_dim
        cache = 2 * self.batch * self.length * self.kv_heads * a_token
        return cache + 2 * 2 * self.batch * self.queries * self.heads * self.head_dim

    def eqn(self) -> Eqn:
        """The attention of plain bf16 arrays, with the position of each query as a field that is known at run time."""
        return self.part(self.batch, self.heads, self.kv_heads, DType.BF16)

    def part(self, batch: int, heads: int, kv_heads: int, dtype: DType) -> Eqn:
        q = TensorType((batch, self.queries, heads, self.head_dim), dtype)
        kv = TensorType((batch, self.length, kv_heads, self.head_dim), dtype)
        types = (q, kv, kv, TensorType((batch, self.queries), DType.I32))
        op = Attention(scale=1 / math.sqrt(self.head_dim), mask=SEEN)
        args = tuple(Value(f"a{i}", t) for i, t in enumerate(types))
        return Eqn(tuple(Value(f"o{i}", t) for i, t in enumerate(op.infer(*types))), op, args)


def _case(batch: int, length: int, **more: Any) -> DecodeCase:
    words = [f"{more[w]} {w}" for w in ("queries",) if w in more]
    words += [f"pages {more['page']}"] if "page" in more else []
    words += [{"int8": "int8", "float8_e4m3fn": "fp8"}[more["kept"]]] if "kept" in more else []
    return DecodeCase(name=" ".join([f"{batch}x{length // 1024}k", *words]), batch=batch, length=length, **more)


_LONG, _MANY = _case(1, 131072), _case(8, 8192)

DECODE: tuple[DecodeCase, ...] = (
    _case(1, 4096),
    _case(1, 32768),
    _LONG,
    _case(32, 4096),
    _MANY,
    _case(64, 4096),
    _case(8, 32768),
    _case(2, 131072),
    _case(1, 32768, queries=4),
    _case(8, 8192, queries=4),
    _case(8, 8192, page=64, beside=_MANY),
    _case(1, 131072, kept="int8", beside=_LONG),
    _case(1, 131072, kept="float8_e4m3fn", beside=_LONG),
    _case(8, 8192, kept="int8", beside=_MANY),
)
"""The suite `decode`: one row, then several, then caches of a gigabyte; few queries; pages; caches of 8 bits."""


@dataclass(frozen=True)
class Outcome:
    """What a case gave: its rows, and who takes no part and why."""

    case: DecodeCase
    rows: tuple[Row, ...]
    refusals: dict[str, str]


# ---- operands and what is right


def operand_sets(case: DecodeCase) -> list[Operands]:
    """Enough sets that no call finds its own in the cache: q, k, v, the positions of the queries; then, where the case
    has them, the table of pages [B, M / page] and the scales of k and v.

    k and v: [B, M, G, D], or pages [P, page, G, D]; scales: float32 [B, G, M] or [P, G, page].
    """
    return [_operands(case, seed) for seed in range(max(2, math.ceil(ROTATED / case.bytes)))]


def captured_of(case: DecodeCase) -> list[jax.Array]:
    """The positions of the queries, the last ones of each row."""
    return [jnp.tile(jnp.arange(case.length - case.queries, case.length, dtype=jnp.int32), (case.batch, 1))]


def _operands(case: DecodeCase, seed: int) -> Operands:
    b, m, g, d = case.batch, case.length, case.kv_heads, case.head_dim
    first, *keys = jax.random.split(jax.random.key(seed), 6)
    rows, tokens = (b * m // case.page, case.page) if case.page else (b, m)
    made: list[jax.Array] = [jax.random.normal(first, (b, case.queries, case.heads, d), jnp.bfloat16)]
    for key in keys[:2]:
        if case.kept == "int8":
            made.append(jax.random.randint(key, (rows, tokens, g, d), -127, 128, jnp.int8))
        else:
            made.append(jax.random.normal(key, (rows, tokens, g, d), jnp.bfloat16).astype(case.kept or jnp.bfloat16))
    made += captured_of(case)
    if case.page:
        made.append(jax.random.permutation(keys[2], rows).reshape(b, -1).astype(jnp.int32))
    if case.kept:
        unit = 64.0 if case.kept == "int8" else 1.0  # so that what is kept has about the size of normal numbers
        made += [jax.random.uniform(key, (rows, g, tokens), jnp.float32, 0.5, 1.5) / unit for key in keys[3:5]]
    return tuple(made)


def cached(case: DecodeCase, operands: Operands, row: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of one row and head as float64 [M, D], in order, scales multiplied in."""
    out = []
    at = np.asarray(operands[4])[row] if case.page else slice(row, row + 1)
    scales = operands[4 + (case.page > 0) :]
    for i, x in enumerate(operands[1:3]):
        one = np.asarray(x[at][:, :, head].astype(jnp.float32), np.float64).reshape(case.length, case.head_dim)
        if case.kept:
            one = one * np.asarray(scales[i][at][:, head], np.float64).reshape(case.length, 1)
        out.append(one)
    return out[0], out[1]


def distance(case: DecodeCase, out: jax.Array, operands: Operands) -> float:
    """Norm-wise distance of `out` [B, N, H, D] to the float64 definition, of two rows and two heads of keys."""
    group, worst = case.heads // case.kv_heads, 0.0
    for b, g in {(0, 0), (case.batch - 1, case.kv_heads - 1)}:
        own = slice(g * group, (g + 1) * group)
        k, v = cached(case, operands, b, g)
        q = np.asarray(operands[0][b : b + 1, :, own].astype(jnp.float32), np.float64)
        taken = (q, k[None, :, None], v[None, :, None], np.asarray(operands[3][b : b + 1]))
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            op = case.part(1, group, 1, DType.F64).op
            want = np.asarray(define(op, jnp.float64, *map(jnp.asarray, taken))[0])
        got = np.asarray(out[b : b + 1, :, own].astype(jnp.float32), np.float64)
        worst = max(worst, float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    return worst


# ---- ours


def built(case: DecodeCase, kernel: Kernel, target: Target) -> Callable[..., jax.Array] | str:
    """The kernel as a function of the case's operands that gives the result, or why it does not serve.

    Pages and keys of 8 bits are options of pallas_gpu's kernel, which no equation asks for.
    """
    eqn = case.eqn()
    if reason := kernel.refuse(eqn, target):
        return reason
    if not case.page and not case.kept:
        plain = kernel.build(eqn, target)
        return lambda *operands: plain(*operands)[0]
    if kernel.name != "pallas_gpu":
        return f"has no {'pages' if case.page else 'keys of 8 bits'}"
    plan = kernels.plan_of(eqn, target, jnp.dtype(case.kept) if case.kept else None)
    plan = replace(plan, page=case.page, pool=case.batch * case.length // case.page if case.page else 0)
    sizes = dict(n=plan.n, m=plan.m, block_q=plan.n, block_k=plan.config.block_k, batch=plan.batch, heads=plan.heads)

    def call(q: Any, k: Any, v: Any, at: Any, *more: Any) -> jax.Array:
        bits = kernels.bits(visited_tiles(plan.mask, (at,), **sizes), plan)
        return kernels.call(plan)(q, k, v, bits, at, *more)[0]

    return call


def bandwidths(samples: int = 7, size: int = 2**28, rows: int = 8192, columns: int = 28672) -> dict[str, float]:
    """TB/s that a copy of `size` bytes and the product of a vector with a [rows, columns] matrix in bf16 reach here."""
    texts = [(jnp.full(size // 4, i, jnp.uint32),) for i in range(2)]
    copied = JaxRunner(lambda x: x ^ 1, texts)
    pairs = [
        (jnp.ones((1, rows), jnp.bfloat16), jax.random.normal(jax.random.key(i), (rows, columns), jnp.bfloat16))
        for i in range(2)
    ]
    read = JaxRunner(jnp.matmul, pairs)
    times = interleave({"copy": copied, "read": read}, samples)
    moved = {"copy": 2 * size, "read": 2 * rows * columns}
    return {f"{name}_tb_s": moved[name] / (1e-3 * median(times[name])) / 1e12 for name in moved}


@dataclass(frozen=True)
class Served:
    """Who serves a case, what each is away from what is right, and who takes no part and why."""

    runners: dict[str, Runner]
    errors: dict[str, float]
    refusals: dict[str, str]


def _prepare(case: DecodeCase, kernel: Kernel, target: Target, against: Sequence[str]) -> Served:
    """Us and every peer that serves the case. Raises BenchError where what we give is wrong."""
    sets = operand_sets(case)
    serve = built(case, kernel, target)
    if isinstance(serve, str):
        return Served({}, {}, {kernel.name: serve})
    runners: dict[str, Runner] = {kernel.name: JaxRunner(serve, sets)}
    errors = {kernel.name: _right(case, kernel, serve, sets)}
    refusals: dict[str, str] = {}
    if case.beside is not None and not isinstance(other := built(case.beside, kernel, target), str):
        others = operand_sets(case.beside)
        errors[OWN], runners[OWN] = _right(case.beside, kernel, other, others), JaxRunner(other, others)
    for name in against:
        try:
            runner, result = PEERS[name].prepare(case, sets)
            error = distance(case, result(), sets[0])
            if not error <= WRONG:
                raise PeerRefusal(f"what it gives is {error:.1e} from what is right")
            runners[name], errors[name] = runner, error
        except PeerRefusal as refusal:
            refusals[name] = str(refusal)
        except Exception as error:  # a peer may raise anything; what it said is the result
            refusals[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    return Served(runners, errors, refusals)


def run(
    kernel: Kernel,
    target: Target,
    against: Sequence[str],
    *,
    cases: Sequence[DecodeCase] = DECODE,
    samples: int = 15,
    reached: dict[str, float] | None = None,
    turn: Turn | None = None,
) -> Iterator[Outcome]:
    """Every case, one after another. reached: bandwidths, measured here where they are not given. turn: where other
    processes measure, too; all cases are prepared first.

    Raises BenchError where what the kernel gives is wrong; with `turn` after the outcomes of the others.
    """
    device, reached = jax.devices()[0].device_kind, reached or bandwidths()
    rate = 1e12 * max(reached.values())
    versions = {"jax": jax.__version__}
    for case, found in prepared_first(lambda case: _prepare(case, kernel, target, against), cases, turn):
        if kernel.name not in found.runners:
            yield Outcome(case, (), found.refusals)
            continue
        for name in found.runners.keys() & set(against):
            versions |= PEERS[name].versions()
        times, errors = interleave(found.runners, samples), found.errors
        ours = median(times[kernel.name])
        rows = []
        for name in [n for n in times if n != kernel.name]:
            beside = case.beside if name == OWN else None
            quality = {"tb_s": case.bytes / ours / 1e9, **reached}
            if beside is not None:
                quality["predicted"] = beside.bytes / case.bytes
            rows.append(Row(
                suite=SUITE, case=case.name, direction="decode", implementation=kernel.name, peer=name,
                ours_ms=ours, peer_ms=median(times[name]), ratio=median(times[name]) / ours, device=device,
                samples={kernel.name: times[kernel.name], name: times[name]}, versions=dict(versions),
                errors={kernel.name: errors[kernel.name], name: errors[name]}, floor_ms=1e3 * case.bytes / rate,
                date=datetime.now(UTC).isoformat(timespec="seconds"), kernel_hash=kernel_hash(SUITE),
                command=f"tfc bench decode --against {','.join(against)}", quality=quality,
                beside=beside.name if beside else "",
            ))  # fmt: skip
        yield Outcome(case, tuple(rows), found.refusals)


def _right(case: DecodeCase, kernel: Kernel, serve: Callable[..., jax.Array], sets: Sequence[Operands]) -> float:
    error = distance(case, jax.jit(serve)(*sets[0]), sets[0])
    if not error <= FURTHEST:
        raise BenchError(f"{case.name}: {kernel.name} is {error:.2e} from float64")
    return error
