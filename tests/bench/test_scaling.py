"""The suite `scaling`: its rows on small problems, what it refuses to time, its programs for an absent H200."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc import aot
from tfc.backends.gradients import differentiable
from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.pallas_gpu.backward import KERNEL
from tfc.backends.xla.attention import KERNEL as XLA
from tfc.bench import attention, scaling, timing, trained
from tfc.bench.attention import BenchError
from tfc.bench.cases import CAUSAL, SEGMENTS, AttentionCase, Direction, and_all
from tfc.bench.peers import asked
from tfc.bench.results import Row, markdown, read, write
from tfc.bench.scaling import PREDICTED, SCALING, TILES, WITH, Scaling, fitted, names, run, sets_of_lengths
from tfc.bench.scaling_table import chart, refusals, table
from tfc.bench.trained import TRAINED, Shape
from tfc.commands.bench import bench, charted, shown
from tfc.diagnostics import TfcError
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn
from tfc.targets import resolve
from tfc.testing.worker import Worker

CPU = Target(name="cpu", platform="cpu", matmul_flops=1e9, bandwidth=1e12)
SMALL = Scaling(
    packed=AttentionCase(
        name="documents", batch=2, length=640, heads=2, kv_heads=1, head_dim=16, mask=and_all(CAUSAL, SEGMENTS),
        captured=("segments q", "segments k"),
    ),
    growing=AttentionCase(name="growing", batch=1, length=0, heads=2, kv_heads=2, head_dim=16, mask=CAUSAL),
    lengths=(256, 1024),
    trained=Shape(batch=1, length=64, heads=2, head_dim=16),
    sets=9,
    documents=8,
    checked=4,
)  # fmt: skip
TIMED = ("slope of a head", "sink of a head")
HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROTATED", 1.0)
    monkeypatch.setattr(attention, "SAMPLED", 32)
    monkeypatch.setattr(timing, "CALLS", 1)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "ROTATED", 1.0)
        patch.setattr(attention, "SAMPLED", 32)
        patch.setattr(timing, "CALLS", 1)
        only = f"memory,documents,{','.join(TIMED)}"
        return [row for outcome in run(XLA, CPU, only=only, samples=3, sizes=SMALL) for row in outcome.rows]


def of(rows: list[Row], what: str, direction: str) -> Row:
    (row,) = (r for r in rows if what in r.case and r.direction == direction)
    return row


def test_sets_differ_and_fill_their_row() -> None:
    found = sets_of_lengths(50, 8192, 64)
    assert len(set(found)) == 50 and {sum(x) for x in found} == {8192}
    assert min(map(len, found)) <= 2 and max(map(len, found)) > 40 and all(min(x) > 0 for x in found)
    assert found == sets_of_lengths(50, 8192, 64)


def test_the_fit_finds_a_line_of_relative_errors() -> None:
    tiles = [1.0, 10.0, 100.0]
    assert fitted(tiles, [2.5 + 0.5 * x for x in tiles]) == pytest.approx((2.5, 0.5))
    constant, slope = fitted(tiles, [3.3, 7.5, 52.5])  # the first is a tenth too large: no line is nearer than 10 %
    off = [abs(constant + slope * x - y) / y for x, y in zip(tiles, [3.3, 7.5, 52.5], strict=True)]
    assert 0 < max(off) < 0.1


def test_documents_are_predicted_by_the_tiles_that_they_visit(rows: list[Row]) -> None:
    """The counts are those of dense masks; what is predicted is the fit, and the row says how far off it is."""
    row = of(rows, "documents", "forward")
    ours, predicted, tiles = (row.samples[name] for name in ("xla", PREDICTED, TILES))
    at = np.arange(640)
    for lengths, count in zip(sets_of_lengths(9, 640, 8), tiles, strict=True):
        document = np.repeat(np.arange(len(lengths)), lengths)
        seen = (document[:, None] == document) & (at[:, None] >= at)
        assert count == 2 * 2 * sum(
            seen[i : i + 128, j : j + 128].any() for i in range(0, 640, 128) for j in range(0, 640, 128)
        )
    q = row.quality
    assert (q["least_tiles"], q["most_tiles"]) == (min(tiles), max(tiles)) and max(tiles) > min(tiles)
    np.testing.assert_allclose(predicted, [q["constant_ms"] + 1e-6 * q["ns_a_tile"] * n for n in tiles])
    assert q["deviation"] == pytest.approx(max(abs(m - p) / p for m, p in zip(ours, predicted, strict=True)))
    assert ours == [np.median(row.samples[f"set {i}"]) for i in range(9)]
    assert q["compilations"] == 1 and q["independent_sets"] == 3 and q["sets"] == 9
    assert row.errors["xla"] < 5e-3 and "predicted over measured" in row.ratio_of


def test_each_gradient_is_timed_with_and_without(rows: list[Row]) -> None:
    for name in TIMED:
        row = of(rows, name, "backward")
        assert row.ratio == pytest.approx(np.median(row.samples[WITH]) / np.median(row.samples["xla"]))
        assert set(row.errors) == {"with", "without", "captured"} and max(row.errors.values()) < 1e-6
        assert row.quality["most"] == 1.25


@pytest.mark.parametrize("one", TRAINED, ids=lambda x: x.name)
def test_both_forms_of_the_backward_pass(one: trained.Trained) -> None:
    """Without: three gradients, with: those of what is captured, in its shape."""
    eqn = trained.equation(one, SMALL.trained, CPU)
    assert len(eqn.args) == 4 and isinstance(eqn.op, Attention)
    given = trained.operands(one, eqn, 0)
    without, whole = (trained.backward(XLA, eqn, CPU, captured=x)(*given) for x in (False, True))
    assert len(without) == 3 and [x.shape for x in whole] == [a.type.ints for a in eqn.args]
    assert float(jnp.abs(whole[3]).max()) > 0


@pytest.mark.slow
def test_kernels_without_the_sums_give_the_same_gradients() -> None:
    """By interpreted kernels: what is left out is the captured gradient alone."""
    with Worker(environment={"PYTHONPATH": HERE}) as worker:
        for name in ("slope of a head", "gate of a token"):
            (without, whole, captured), same = worker.call("trained_interpreted:compared", name, limit=300)
            assert max(without, whole, captured) < 1.5e-2 and same, name


def streaming(eqn: Eqn, target: Target) -> Callable[..., tuple[Any, ...]]:
    """Causal attention that keeps no N x M array: query tile by query tile, and its gradients likewise."""
    assert isinstance(eqn.op, Attention)
    scale = eqn.op.scale

    def call(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
        b, n, h, d = q.shape

        @jax.checkpoint
        def rows(of: tuple[jax.Array, jax.Array]) -> jax.Array:
            first, tile = of
            s = jnp.einsum("bnhd,bmhd->bhnm", tile, k, preferred_element_type=jnp.float32) * scale
            seen = first + jnp.arange(32)[:, None] >= jnp.arange(n)
            p = jax.nn.softmax(jnp.where(seen, s, -jnp.inf), axis=-1).astype(v.dtype)
            return jnp.einsum("bhnm,bmhd->bnhd", p, v)

        tiles = jnp.moveaxis(jnp.reshape(q, (b, n // 32, 32, h, d)), 1, 0)
        out = jax.lax.map(rows, (jnp.arange(0, n, 32), tiles))
        return jnp.reshape(jnp.moveaxis(out, 0, 1), q.shape), jnp.zeros((b, h, n))

    return call


def test_memory_is_told_from_what_grows_faster(rows: list[Row]) -> None:
    """Dense scores with gradients take a token four times as much at four times the length, tiles of queries do not."""
    quadratic = of(rows, "memory", "both")
    assert quadratic.unit == "bytes a token" and quadratic.ratio > 2
    assert quadratic.quality["operands 256"] == pytest.approx(quadratic.quality["operands 1k"], rel=1e-2)
    linear = replace(XLA, name="streaming", build=streaming)
    for outcome in run(linear, CPU, only="memory", sizes=SMALL):
        (row,) = outcome.rows
        assert 1 <= row.ratio < 1.5
        assert row.ours_ms >= row.floor_ms == row.quality["operands 1k"]
    assert set(of(rows, "memory", "forward").errors) == {"xla"}


def test_a_document_that_leaks_into_another_is_found() -> None:
    """A kernel whose mask forgets the documents is not timed, nor one that gives the same whatever it is given."""

    def leaking(eqn: Eqn, target: Target) -> Callable[..., tuple[Any, ...]]:
        assert isinstance(eqn.op, Attention)
        return XLA.build(replace(eqn, op=replace(eqn.op, mask=CAUSAL)), target)

    def constant(eqn: Eqn, target: Target) -> Callable[..., tuple[Any, ...]]:
        return lambda q, *_: (jnp.ones_like(q), jnp.zeros((2, 2, 640)))

    for build, said in ((leaking, "changes another document's result"), (constant, "changes nothing")):
        with pytest.raises(BenchError, match=said):
            list(run(replace(XLA, build=build), CPU, only="documents", samples=3, sizes=replace(SMALL, sets=4)))


def test_a_wrong_kernel_is_not_timed() -> None:
    def scaled(eqn: Eqn, target: Target) -> Callable[..., tuple[Any, ...]]:
        assert isinstance(eqn.op, Attention)
        return XLA.build(replace(eqn, op=replace(eqn.op, scale=1.3 * eqn.op.scale)), target)

    for only in ("documents", "memory"):
        with pytest.raises(BenchError, match="from float64"):
            list(run(replace(XLA, build=scaled), CPU, only=only, samples=3, sizes=replace(SMALL, sets=4)))


def test_what_compiles_anew_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fields(case: AttentionCase, common: Any) -> Any:
        given = attention.captured(case)
        if len(case.spans) % 2:  # another type is another program
            given = [x.astype(jnp.int16) for x in given]
        return [(*x[:3], *given, *x[5:]) for x in common]

    monkeypatch.setattr(scaling, "_with_fields", fields)
    with pytest.raises(BenchError, match="2 compilations for operands of the same shapes"):
        list(run(XLA, CPU, only="documents", samples=3, sizes=replace(SMALL, sets=5)))


def test_other_documents_gradients_stay_too() -> None:
    (outcome,) = run(XLA, CPU, only="documents", samples=3, direction="both", sizes=replace(SMALL, sets=4))
    assert outcome.rows[0].direction == "both" and outcome.rows[0].quality["compilations"] == 1


def test_refusals_are_said_in_words() -> None:
    """Of the run, of the table, and of the program that has no Hopper GPU."""
    said = refusals("NVIDIA H200")
    assert said == {
        "T5 table, 4k": "reads tables per head or per token, and `..` is neither",
        "sink of a head, 4k": "weighs by the softmax alone, not by `p * sigmoid(row.lse - $0[h])`",
    }
    assert refusals("cpu") == {}
    h200 = replace(resolve("h200"), interpret=True)
    found = {o.case: o.refusals for o in run(KERNEL, h200, only="T5 table,sink of a head", sizes=SMALL)}
    assert all(o["pallas_gpu"] for o in found.values()) and len(found) == 2
    ungraded = replace(XLA, differentiable=False)
    outcomes = {(o.case.split(",")[0]): o for o in run(ungraded, CPU, only="memory", direction="both", sizes=SMALL)}
    assert outcomes["memory"].refusals == {"xla": "has no gradient of its own"} and not outcomes["memory"].rows
    with pytest.raises(TfcError, match="`scaling` has no peer `flex`"):
        bench("scaling", ["flex"], "", 3, Path("unused"), False)
    with pytest.raises(TfcError, match="no case's name has `nothing`"):
        bench("scaling", [], "nothing", 3, Path("unused"), False)


def test_table_and_chart(rows: list[Row], tmp_path: Path) -> None:
    """A line a row, refusals below; a point a set; rows are kept and read as they are."""
    write(tmp_path / "scaling.jsonl", rows)
    assert read(tmp_path / "scaling.jsonl") == rows
    text = shown(rows)
    assert text == table(rows) and text != markdown(rows)
    assert all(f"| {row.case} | {row.direction} | {row.ratio:.3f} |" in text for row in rows)
    assert "1 compilation" in text and "at most 1.25 is asked for" in text and "bytes a token" in text
    assert "| T5 table, 4k | backward | refuses |" in table([replace(row, device="NVIDIA H200") for row in rows])
    assert " * |" in table([replace(rows[0], kernel_hash="old")]) and "have changed since" in table(
        [replace(rows[0], kernel_hash="old")]
    )
    root = ElementTree.fromstring(charted(rows))
    assert len(root.findall("{*}circle")) == 9 and "visited" in "".join(root.itertext())
    assert chart([r for r in rows if r.direction == "backward"]) == ""


def test_cases_have_names_of_their_own() -> None:
    assert len(set(names())) == len(names()) == 2 + len(TRAINED)
    assert names()[:2] == ["memory, 16k to 256k", "50 sets of documents, 8k"]
    assert all(b == 4 * a for a, b in pairwise(SCALING.lengths))


# ---- for an absent H200


@pytest.fixture(scope="module")
def h200() -> Iterator[Target]:
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")
    yield resolve("h200")


def shapes(eqn: Eqn) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(a.type.ints, DTYPES[a.type.dtype]) for a in eqn.args]


def clean(done: aot.Compiled) -> None:
    assert all((k.spill_stores, k.spill_loads, k.stack) == (0, 0, 0) for k in done.kernels), done.kernels


def call_of(case: AttentionCase, kernel: Kernel, target: Target, direction: Direction) -> Callable[..., Any]:
    built = differentiable(kernel, case.eqn(), target, XLA)
    return asked(lambda *x: built(*x)[0], direction)


@pytest.mark.aot
def test_memory_is_linear_as_compiled_for_h200(h200: Target) -> None:
    """Operands and results, and a thousandth or so beside them, at every length."""
    for direction in ("forward", "both"):
        found = []
        for length in SCALING.lengths:
            case = replace(SCALING.growing, length=length)
            given = shapes(case.eqn())
            given += given[:1] if direction == "both" else []
            done = aot.compile_for("h200", call_of(case, KERNEL, h200, direction), *given)
            clean(done)
            found.append((done.memory["total"] - done.memory["code"]) / length)
        assert max(found) / min(found) < 1.001 and max(found) < 1.01 * (4 if direction == "forward" else 8) * 4 * 256


@pytest.mark.aot
@pytest.mark.parametrize("one", TRAINED, ids=lambda x: x.name)
def test_backward_passes_compile_without_spills(one: trained.Trained, h200: Target) -> None:
    eqn = trained.equation(one, SCALING.trained, h200)
    if trained.refusal(KERNEL, eqn, h200):
        assert SCALING.of_trained(one) in refusals("NVIDIA H200")
        return
    results = [jax.ShapeDtypeStruct(o.type.ints, DTYPES[o.type.dtype]) for o in eqn.outs]
    for captured in (False, True):
        form = trained.backward(KERNEL, eqn, h200, captured=captured)
        done = aot.compile_for("h200", form, *shapes(eqn), *results, results[0])
        assert done.kernels
        clean(done)


@pytest.mark.aot
def test_documents_compile_without_spills(h200: Target) -> None:
    # longer than any of the suite `attention`: a process reports a kernel once
    packed = replace(SCALING.packed, length=SCALING.packed.length + 1024)
    for direction in ("forward", "both"):
        given = shapes(packed.eqn())
        given += given[:1] if direction == "both" else []
        done = aot.compile_for("h200", call_of(packed, KERNEL, h200, direction), *given)
        assert done.kernels
        clean(done)
