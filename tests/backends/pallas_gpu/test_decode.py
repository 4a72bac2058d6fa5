"""The Hopper decoding kernel, interpreted with races looked for, beside the definition in float64."""

import os
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tfc import aot
from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu import attention, decode
from tfc.backends.pallas_gpu.decode_plan import shared_bytes
from tfc.backends.table import choose
from tfc.formula.expr import Expr, Kind, Token, Var, apply
from tfc.ir.ops import YES, Attention, P, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.targets import resolve
from tfc.testing import Case, Sizes, attention_eqn, judge
from tfc.testing.cases import FORMULAS as ATTENTION
from tfc.testing.cases import named_op
from tfc.testing.worker import CaseFailed, CaseHangs, Worker

FORMULAS = (
    "full",
    "causal",
    "aligned",
    "window",
    "sinks",
    "softcap",
    "alibi",
    "own",
    "each head its own window",
    "heads as numbers",
)

CASES: dict[str, dict[str, Any]] = {
    "one part": dict(splits=1),
    "a part for each tile": dict(splits=4),
    "parts that see nothing": dict(splits=8, m=520, lengths=(3, 520), b=2),
    "more visits than a ring holds": dict(splits=1, m=330, stages=2),
    "empty rows": dict(splits=2, lengths=(0, 90), b=2),
    "one key": dict(splits=2, lengths=(1,)),
    "head size 32": dict(splits=2, d=32, n=2),
    "head size 128": dict(splits=2, d=128, h=2),
    "head size 256": dict(splits=2, d=256, h=2, m=130),
    "head size 80": dict(splits=2, d=80, h=2, m=130, n=2),
    "all rows of head size 192": dict(splits=2, h=16, n=4, d=192, m=130),
    "head size 96": dict(splits=3, d=96, h=6, g=2, m=130),
    "head size 16": dict(splits=2, d=16, h=3, n=4, m=130),
    "head size 80 in one part": dict(splits=1, d=80, h=2, m=130, n=2),
    "float16": dict(splits=2, dtype="float16"),
    "no groups": dict(splits=2, h=2, g=2),
    "rows that do not fill eight": dict(splits=2, h=6, g=2, n=3),
    "all rows": dict(splits=2, h=16, n=4),
    "eight heads of two groups": dict(splits=2, h=8, g=2, b=2, formula="alibi"),
    "eight heads of four groups": dict(splits=3, h=16, g=8, formula="own"),
    "eight heads, numbered": dict(splits=2, h=8, g=2, formula="heads as numbers"),
    "eight heads, the query's own position": dict(splits=2, h=8, g=4, formula="aligned"),
    "tiles of 128 keys": dict(splits=2, block_k=128, m=300),
    "first row of a cache": dict(splits=2, row=0, m=136, b=2),
    "last row of a cache": dict(splits=2, row=2, m=136, b=2),
    "lengths known": dict(splits=2, traced=False),
    "pages": dict(splits=2, m=256, page=128, b=2),
    "pages of a tile in a row of a cache": dict(splits=2, m=200, page=64, b=2, row=1),
    "int8": dict(splits=2, kept="int8"),
    "int8, head size 32": dict(splits=2, kept="int8", d=32, n=2),
    "int8, head size 128": dict(splits=2, kept="int8", d=128, h=2),
    "float8": dict(splits=2, kept="float8_e4m3fn"),
    "float8 for float16": dict(splits=2, kept="float8_e4m3fn", dtype="float16"),
    "pages of int8 in a row of a cache": dict(splits=2, m=200, page=64, b=2, row=1, kept="int8"),
}


H200 = Target(name="h200", platform="gpu", capability=9.0, sms=132)

SLOW = {
    "one key", "head size 256", "head size 16", "head size 80 in one part", "head size 128", "float16", "no groups",
    "tiles of 128 keys", "first row of a cache", "lengths known", "a part for each tile", "pages",
    "int8, head size 32", "int8, head size 128", "float8", "float8 for float16", "more visits than a ring holds",
    "rows that do not fill eight", "eight heads of four groups", "eight heads, numbered", "parts that see nothing",
    "head size 96", "all rows of head size 192",
}  # fmt: skip


def verdict(worker: Worker, **case: Any) -> dict[str, Any]:
    found: dict[str, Any] = worker.call("interpreted_decode:judge", case)
    return found


def test_every_formula_is_listed(worker: Worker) -> None:
    assert worker.call("interpreted_decode:formulas") == list(FORMULAS)


@pytest.mark.parametrize(
    "formula",
    [pytest.param(f, marks=pytest.mark.slow) if f in ("full", "window", "aligned", "causal") else f for f in FORMULAS],
)
def test_formulas(worker: Worker, formula: str) -> None:
    """Rows of different lengths, speculated tokens, heads that share keys, a last tile that is not whole."""
    found = verdict(worker, formula=formula, b=2, n=3, m=200, h=4, g=2, splits=2)
    assert not found["wrong"], found


@pytest.mark.parametrize(
    "change", [pytest.param(c, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, c in CASES.items()]
)
def test_variants(worker: Worker, change: dict[str, Any]) -> None:
    found = verdict(worker, **change)
    assert not found["wrong"], found
    empty = change.get("lengths", (1,))[0] == 0
    assert found["blind"] == (4 if empty else 0)


@pytest.mark.parametrize("splits", [pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3, 5)])
def test_how_keys_are_dealt_out_changes_no_more_than_roundings(worker: Worker, splits: int) -> None:
    case = dict(formula="sinks", b=2, n=2, m=300, h=2)
    one, other = verdict(worker, **case, splits=1), verdict(worker, **case, splits=splits)
    assert not one["wrong"] and not other["wrong"]
    assert np.abs(one["out"] - other["out"]).max() < 2**-7


@given(
    formula=st.sampled_from(FORMULAS),
    n=st.integers(1, 8),
    m=st.integers(9, 330),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 1), (8, 1)]),
    d=st.sampled_from([32, 64]),
    splits=st.integers(1, 6),
    dtype=st.sampled_from(["bfloat16", "float16"]),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=2)
def test_drawn_cases(
    worker: Worker, formula: str, n: int, m: int, heads: tuple[int, int], d: int, splits: int, dtype: str, seed: int
) -> None:
    h, g = heads
    found = verdict(
        worker, formula=formula, b=2, n=n, m=m, h=h, g=g, d=d, dtype=dtype, splits=min(splits, -(-m // 64)), seed=seed
    )
    event("sees nothing" if found["blind"] else "sees something")
    assert not found["wrong"], found


def test_as_registered(worker: Worker) -> None:
    found = verdict(worker, b=2, n=2, m=136, h=4, g=2, row=1)
    assert not found["wrong"], found


# fault: (line of the kernel, what stands there instead, a case that tells the two apart)
TWO = dict(splits=2, b=2, n=2, m=200, h=4, g=2)
FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no wait for K": ("plgpu.barrier_wait(self.mem.k_ready.at[self.slot])", "pass", TWO),
    "no wait for V": ("plgpu.barrier_wait(self.mem.v_ready.at[self.slot])", "pass", TWO),
    "no wait for Q": ("plgpu.barrier_wait(mem.q_ready)", "pass", TWO),
    "a part's tiles as if it were the first": (
        "return place * self.plan.splits + self.part", "return place * self.plan.splits", TWO,
    ),
    "one tile again and again": (
        "later, ahead = find(ahead, wanted)",
        "later, _ = find(ahead, wanted)",
        dict(splits=1, m=300, lengths=(300,)),
    ),
    "queries and heads exchanged": (
        "self.leaves[node] = Placed(row % plan.group + here.kv_head * plan.group, (self.rows,))",
        "self.leaves[node] = Placed(row // plan.group + here.kv_head * plan.group, (self.rows,))",
        dict(TWO, formula="heads as numbers"),
    ),
    "keys beyond the last": (
        "return jnp.logical_and(seen, tile.spread(self.key_positions(key_tile)) < self.plan.m)", "return seen",
        dict(splits=2, formula="full"),
    ),
    "output not shrunk as the maximum rises": (
        "out = out * spread(shrink, out)", "out = out * 1.0", dict(splits=1, lengths=(200,)),
    ),
    "parts added without their shares": ("share = jnp.exp2(other - base)", "share = jnp.exp2(base - base)", TWO),
    "sum not shrunk as the maximum rises": (
        "stats = [top, stats[1] * spread(shrink, p) + p]", "stats = [top, stats[1] + p]",
        dict(splits=1, lengths=(200,)),
    ),
    "scales of keys for values": (
        "p = scaled(p, arrived.scale(mem.v_scales)).astype(plan.dtype)",
        "p = scaled(p, arrived.scale(mem.k_scales)).astype(plan.dtype)",
        dict(splits=2, kept="int8"),
    ),
    "values asked for before they are left": (
        'ask(later, slot, wanted, "v" if widened else "k")', 'ask(later, slot, wanted, "v")',
        dict(splits=1, m=300, lengths=(300,)),
    ),
    "tiles for those of the ring before": (
        "return ahead, (*tiles, later), out, *stats", "return ahead, (later, *tiles), out, *stats",
        dict(splits=1, m=300, lengths=(290,)),
    ),
    "another group's rows": (
        "own = lax.rem(kv_head * plan.group, 8) if plan.shared else 0  # the first row of the group", "own = 0",
        dict(splits=2, h=8, g=2),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(worker: Worker, fault: str) -> None:
    """By numbers, by a race, or by a hang ended; without the fault the case passes."""
    line, instead, case = FAULTS[fault]
    assert not verdict(worker, **case)["wrong"]
    try:
        assert worker.call("interpreted_decode:judge", case, {line: instead}, limit=20.0)["wrong"]
    except CaseHangs:
        pass
    except CaseFailed as failed:
        assert failed.kind != "LookupError", failed


@pytest.mark.aot
@pytest.mark.parametrize("kept", [None, "int8", "float8_e4m3fn"])
@pytest.mark.parametrize(
    ("head_dim", "n"), [(16, 2), (32, 2), (64, 2), (64, 16), (80, 2), (96, 2), (128, 1), (128, 16), (160, 2), (192, 16),
                        (256, 2), (256, 10), (256, 12)],
)  # fmt: skip
def test_registers_suffice(head_dim: int, n: int, kept: str | None) -> None:
    """No spill, and as few as as many blocks take as are to share a multiprocessor."""
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")
    made = decode.plan_of(equation(d=head_dim, mask=apply("le", K, Q), n=n), H200, kept and jnp.dtype(kept))
    plan = replace(made, splits=4)
    tiles = np.ones((1, 1, 1, plan.key_tiles), np.int32)

    def call(q: jax.Array, k: jax.Array, v: jax.Array, *scales: jax.Array) -> jax.Array:
        return decode.call(plan)(q, k, v, decode.bits(tiles, plan), *scales)[0]

    keys = jax.ShapeDtypeStruct((1, 4096, 8, head_dim), plan.kept or plan.dtype)
    scales = [] if kept is None else [jax.ShapeDtypeStruct((1, 8, 4096), jnp.float32)] * 2
    shapes = (jax.ShapeDtypeStruct((1, n, 32, head_dim), plan.dtype), keys, keys, *scales)
    if kept is not None and head_dim not in (32, 64, 128):
        with pytest.raises(ValueError, match="keys of 8 bits have heads of 32, 64 or 128"):
            aot.compile_for("h200", call, *shapes)
        return
    kernel = aot.compile_for("h200", call, *shapes).kernels[0]
    assert (kernel.spill_stores, kernel.spill_loads, kernel.stack) == (0, 0, 0)
    blocks = decode.resident(head_dim, plan.rows, kept is not None)
    assert kernel.registers * 128 * blocks <= 2**16


def test_pages_are_whole_tiles() -> None:
    plan = replace(decode.plan_of(equation(), H200), page=96, pool=8)
    with pytest.raises(ValueError, match="pages of 96 tokens are no whole number of key tiles of 64"):
        decode.call(plan)


LONG = [
    Sizes(2, 1, 5000, 32, 8, 128, DType.BF16),
    Sizes(1, 4, 3001, 8, 2, 64, DType.F16),
    Sizes(3, 8, 777, 8, 1, 32, DType.BF16),
    Sizes(1, 1, 2000, 4, 2, 256, DType.BF16),
    Sizes(2, 3, 1500, 6, 3, 80, DType.BF16),
]


@pytest.mark.parametrize("name", ATTENTION)
def test_few_queries_of_every_named_formula_are_served(name: str) -> None:
    for sizes in LONG:
        assert decode.refuse(attention_eqn(named_op(name, sizes), sizes), H200) is None


@pytest.mark.device
@pytest.mark.parametrize("name", ATTENTION)
def test_the_kernel_agrees_with_float64(name: str) -> None:
    """On the device: many parts, ragged ends."""
    target = resolve("auto")
    if target.capability != 9.0:
        pytest.skip(f"needs a Hopper GPU; here is {target.name}")
    cases = [Case(name, attention_eqn(named_op(name, sizes), sizes), i) for i, sizes in enumerate(LONG)]
    report = judge(decode.KERNEL, cases=cases, target=target, laws=(), gradients=False)
    print(f"{name}: {report.served} served, worst error {report.worst:.2f} of what is allowed")
    assert report.ok, report
    assert report.served == len(cases)


# --- what needs no interpreter

H, Q, K = Var("h", Kind.INT), Token("q"), Token("k")


def equation(
    b: int = 1, n: int = 1, m: int = 4096, h: int = 32, g: int = 8, d: int = 128, dv: int | None = None,
    dtype: DType = DType.BF16, score: Expr = S, mask: Expr = YES, weigh: Expr = P,
    captured: tuple[TensorType, ...] = (),
) -> Eqn:  # fmt: skip
    types = [TensorType((b, t, heads, size), dtype) for t, heads, size in ((n, h, d), (m, g, d), (m, g, dv or d))]
    types += captured
    op = Attention(scale=1.0, score=score, mask=mask, weigh=weigh)
    outs = op.infer(*types)
    args = tuple(Value(f"x{i}", t) for i, t in enumerate(types))
    return Eqn((Value("out", outs[0]), Value("lse", outs[1])), op, args)


def test_the_table_asks_it_first_and_under_the_same_name() -> None:
    """Few queries go to it, others to the streaming kernel; what both refuse, the latter refuses in its own words."""
    for implementation in (None, "pallas_gpu"):
        few, many = (choose(equation(n=n), H200, implementation).kernel for n in (1, 64))
        assert few.name == many.name == "pallas_gpu"
        assert few.notes is not None and set(few.notes(equation(), H200)) == {"splits", "block_k", "stages"}
        assert many.notes is not None and many.notes(equation(n=64), H200) == attention.notes(equation(n=64), H200)
    refused = equation(dtype=DType.F32)
    assert dict(choose(refused, H200).refusals)["pallas_gpu"] == attention.refuse(refused, H200)


@pytest.mark.parametrize("head_dim", range(16, 272, 16))
def test_blocks_fit_into_shared_memory(head_dim: int) -> None:
    """Q, weights, the rings or the results in their place, what is widened, barriers; of a multiprocessor's 228 KiB
    each block costs one more, and may have 227."""
    for rows, kept in ((8, False), (64, False), (8, True), (64, True)):
        config, columns = decode.config_for(head_dim, rows, kept), -(-head_dim // 64) * 64
        tokens, results = config.stages * config.block_k, 4 * rows * (columns + 1)
        rings = tokens * (2 * head_dim if kept else 2 * (head_dim + columns))
        wide = 2 * config.block_k * (head_dim + columns) + 8 * tokens if kept else 0
        block = 2 * rows * (head_dim + config.block_k) + max(rings, results) + wide + 2048
        assert block <= shared_bytes(config, head_dim, rows, kept) - 1024
        block += 8 * (1 + 2 * config.stages)
        assert decode.resident(head_dim, rows, kept) * (block + 1024) <= 228 * 1024
        assert config.stages > 1


@pytest.mark.parametrize(
    ("rows", "tiles", "splits"), [(8, 64, 32), (1, 2048, 256), (8, 2048, 33), (256, 64, 1), (512, 1, 1), (1, 0, 1)]
)
def test_parts_fill_the_device(rows: int, tiles: int, splits: int) -> None:
    assert decode.splits_for(rows, tiles, 264) == splits


@given(rows=st.integers(1, 600), tiles=st.integers(1, 300), slots=st.sampled_from([7, 132, 264]))
def test_parts_are_at_most_the_tiles(rows: int, tiles: int, slots: int) -> None:
    found = decode.splits_for(rows, tiles, slots)
    assert 1 <= found <= tiles
    if rows < slots // 2 and tiles >= slots:
        assert found > 1


@settings(max_examples=15)
@given(data=st.data(), tiles=st.integers(1, 200), splits=st.integers(1, 9), kv_heads=st.sampled_from([1, 2]))
def test_every_visited_tile_is_a_bit_of_one_part(data: st.DataObject, tiles: int, splits: int, kv_heads: int) -> None:
    """A tile that any head of a group visits; whether the classes are known or traced."""
    eqn = equation(m=tiles * 64, h=4, g=kv_heads)
    plan = replace(decode.plan_of(eqn, H200), splits=splits)
    seed = data.draw(st.integers(0, 2**31 - 1))
    classes = np.random.default_rng(seed).integers(0, 3, (2, 4, 1, tiles)) * np.ones(1, np.int32)
    words = decode.bits(classes, plan)
    assert words.shape == (2, kv_heads, plan.words, splits)
    assert np.array_equal(np.asarray(decode.bits(jnp.asarray(classes), plan)), words)
    seen = (classes[:, :, 0] > 0).reshape(2, kv_heads, 4 // kv_heads, tiles).any(axis=2)
    for tile in range(tiles):
        place, part = divmod(tile, splits)
        word, bit = divmod(place, 24)
        assert np.array_equal((words[:, :, word, part] >> bit) & 1, seen[:, :, tile])
    assert np.array_equal((words >> 24).sum(axis=(2, 3)), seen.sum(axis=2))
