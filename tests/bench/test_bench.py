"""The benchmark suite: floors counted right, wrong results refused, committed results fresh and shown as they are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import pytest

from tfc.backends.kernel import Kernel, Target
from tfc.backends.reference.attention import masked
from tfc.backends.xla.attention import KERNEL as XLA
from tfc.bench import attention, results, timing
from tfc.bench.cases import (
    ATTENTION,
    CAUSAL,
    PREFIXED,
    SEGMENTS,
    AttentionCase,
    Direction,
    alibi,
    among,
    and_all,
    drawn,
    hstu,
    softcap,
    window,
)
from tfc.bench.chart import bars
from tfc.bench.peers import Form, Operands, Peer, PeerRefusal, Prepared, prepared
from tfc.bench.results import Row, kernel_hash, latest, markdown, read
from tfc.bench.timing import CALLS, JaxRunner
from tfc.commands.bench import bench, charted, render, require_host, section
from tfc.diagnostics import TfcError
from tfc.formula.expr import Const, Token, apply
from tfc.ir.ops import Attention, Masked
from tfc.ir.program import Eqn

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/*.jsonl"))
SMALL = AttentionCase(name="small", batch=1, length=1024, heads=2, kv_heads=1, head_dim=32, mask=CAUSAL)


@pytest.mark.parametrize("case", ATTENTION, ids=lambda c: c.name)
def test_visible_pairs_are_counted_as_the_mask_says(case: AttentionCase) -> None:
    """The closed form of the floor equals a count over tokens by the definition, on a shorter problem of the mask."""
    small = replace(case, batch=1, heads=1, length=2304 if case.documents or "window" in case.name else 96)
    scores = jnp.zeros((1, 1, small.length, small.length))
    (kept,) = masked(Masked(formula=small.mask), jnp.float32, scores, *attention.captured(small))
    assert small.pairs == int(jnp.isfinite(kept).sum())


def test_lengths_of_documents_are_as_byte_transformer_draws_them() -> None:
    """Uniform from a fifth of the longest to it: the mean is 0.6 of it; they fill the row."""
    lengths = drawn(32, 1024)
    assert sum(lengths) == pytest.approx(32 * 0.6 * 1024, rel=1e-3)
    assert min(lengths) < 230 and max(lengths) > 1000 and lengths != tuple(sorted(lengths))
    (packed,) = (c for c in ATTENTION if c.name == "packed 32x1024 d64")
    assert packed.length == sum(packed.spans) == sum(lengths) and packed.beside is not None
    assert packed.beside.batch * packed.beside.length == 32 * 1024


def test_tiles_are_counted_alike_for_both_that_are_compared() -> None:
    """Ratios of visited tiles are near those of visible pairs, of which tiles hold a few more."""
    for case in (c for c in ATTENTION if c.beside is not None):
        assert case.beside is not None
        pairs = [c.pairs * c.batch * c.heads for c in (case, case.beside)]
        found = [attention.tiles(c) for c in (case, case.beside)]
        assert all(p <= 128 * 128 * t for p, t in zip(pairs, found, strict=True))
        assert pairs[1] / pairs[0] * 0.7 < found[1] / found[0] <= pairs[1] / pairs[0] * 1.01, case.name


def test_a_long_window_is_beside_a_short_one() -> None:
    """Four times the tokens: time follows tiles where the short one takes a quarter, and dense scores a sixteenth."""
    (case,) = (c for c in ATTENTION if c.name == "window1024 32k d128")
    assert case.beside is not None and case.mask == case.beside.mask and case.length == 4 * case.beside.length
    assert replace(case, name="", length=0, beside=None) == replace(case.beside, name="", length=0)
    assert attention.tiles(case.beside) / attention.tiles(case) == pytest.approx(1 / 4, rel=0.05)


SHORT = (
    replace(
        SMALL, name="packed", length=300, mask=SEGMENTS, captured=("segments q", "segments k"), documents=(90, 210)
    ),
    replace(SMALL, name="pointwise", length=300, weigh=hstu(300)),
    replace(
        SMALL, name="all", length=300, mask=and_all(PREFIXED, SEGMENTS), score=alibi(3, softcap(20.0)), prefix=40,
        captured=("segments q", "segments k", "prefixes q", "slopes"), documents=(90, 210),
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", SHORT, ids=lambda c: c.name)
def test_a_case_beside_another(case: AttentionCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows say what they were measured beside and both counts of tiles; peers without the weights compute the other."""
    case = replace(case, beside=replace(SMALL, length=300))
    monkeypatch.setattr(attention, "ATTENTION", (case,))
    monkeypatch.setattr(attention, "ROTATED", 1.0)
    monkeypatch.setattr(attention, "SAMPLED", 64)
    monkeypatch.setattr(timing, "CALLS", 1)
    monkeypatch.setitem(attention.PEERS, "jax", Peer("jax", _jax, ("jax",)))
    cpu = Target(name="cpu", platform="cpu", matmul_flops=1e9, bandwidth=1e12)
    (outcome,) = attention.run(XLA, cpu, ["jax"], chosen=[(case, "forward")], samples=1)
    rows = {row.peer: row for row in outcome.rows}
    assert rows["own"].beside == "small" and rows["own"].errors["xla"] < 5e-3
    assert rows["own"].quality["beside_tiles"] == 2 * 6 and rows["own"].quality["tiles"] >= 2 * 6
    assert rows["own"].quality["predicted"] == 2 * 6 / rows["own"].quality["tiles"]
    assert f"| own | {rows['own'].ratio:.2f} | {rows['own'].quality['predicted']:.2f} |" in markdown(outcome.rows)
    if case.name == "pointwise":
        assert rows["jax"].beside == "small"
    else:  # causal attention is not what the case asks for
        assert "jax" not in rows and "from what is right" in outcome.refusals["jax"]
    text = markdown(outcome.rows)
    assert "| beside | by |" in text and f"| {case.name} | forward | small | own |" in text


def test_peers_say_a_case_in_their_own_words_or_refuse() -> None:
    assert Form.of(replace(SMALL, mask=and_all(CAUSAL, window(7)))).window == 7
    own = apply("eq", apply("mod", Token("q"), Const(4)), apply("mod", Token("k"), Const(4)))
    with pytest.raises(PeerRefusal, match="no argument says"):
        Form.of(replace(SMALL, mask=and_all(CAUSAL, own)))
    with pytest.raises(PeerRefusal, match="weighs by the softmax alone"):
        Form.of(replace(SMALL, weigh=hstu(1024)))
    form = Form.of(SHORT[2])
    assert (form.causal, form.segments, form.prefixes, form.softcap, form.slopes) == (False, 0, 2, 20.0, 3)
    with pytest.raises(PeerRefusal, match="no tables"):
        form.without(window="no window", slopes="no tables")


def test_the_check_before_timing_tells_right_from_wrong() -> None:
    """Causal attention is near float64; the same without its last key, or with another scale, is not."""
    sets = attention.operand_sets(replace(SMALL, length=1024))
    q, k, v = sets[0]
    right = jax.nn.dot_product_attention(q, k, v, scale=SMALL.scale, is_causal=True)
    wrong = jax.nn.dot_product_attention(q, k, v, scale=SMALL.scale * 1.1, is_causal=True)
    shifted = jax.nn.dot_product_attention(q, jnp.roll(k, 1, 1), v, scale=SMALL.scale, is_causal=True)
    assert attention.distance(SMALL, right, sets[0]) < 5e-3
    assert attention.distance(SMALL, wrong, sets[0]) > 1e-2
    assert attention.distance(SMALL, shifted, sets[0]) > 1e-2


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
def test_the_check_of_gradients_tells_right_from_wrong(wrong: int | None) -> None:
    """xla's are near float64's; with one of the three a hundredth too large they are not."""

    def build(eqn: Eqn, target: Target) -> Callable[..., tuple[jax.Array, ...]]:
        serve = XLA.build(eqn, target)

        @jax.custom_vjp
        def call(*operands: jax.Array) -> tuple[jax.Array, ...]:
            return serve(*operands)

        def forward(*operands: jax.Array) -> tuple[Any, Any]:
            return jax.vjp(serve, *operands)

        def backward(pull: Any, cotangents: Any) -> tuple[jax.Array, ...]:
            return tuple(x * (1.02 if i == wrong else 1) for i, x in enumerate(pull(cotangents)))

        call.defvjp(forward, backward)
        return call

    cpu = Target(name="cpu", platform="cpu")
    case = replace(SMALL, batch=1, length=512, heads=4, kv_heads=2)
    found = attention.gradient_distance(case, replace(XLA, build=build), cpu)
    assert (found < attention.GRADIENTS) == (wrong is None), found


def test_a_case_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and a peer's: distances of results and of gradients, and a floor that counts both."""
    case = replace(SMALL, length=512)
    monkeypatch.setattr(attention, "ATTENTION", (case,))
    monkeypatch.setattr(attention, "ROTATED", 1.0)
    monkeypatch.setattr(timing, "CALLS", 1)
    monkeypatch.setitem(attention.PEERS, "jax", Peer("jax", _jax, ("jax",)))
    cpu = Target(name="cpu", platform="cpu", matmul_flops=1e9, bandwidth=1e12)
    forward, both = attention.run(XLA, cpu, ["jax"], samples=1)
    assert (forward.direction, both.direction) == ("forward", "both")
    for outcome in (forward, both):
        (row,) = outcome.rows
        assert row.direction == outcome.direction and row.ours_ms > 0 and set(row.errors) == {"xla", "jax"}
        assert max(row.errors.values()) < attention.GRADIENTS
    assert both.rows[0].floor_ms == pytest.approx(3.5 * forward.rows[0].floor_ms)
    (outcome,) = attention.run(replace(XLA, differentiable=False), cpu, ["jax"], chosen=[(case, "both")], samples=1)
    assert not outcome.rows and outcome.refusals == {"xla": "has no gradient of its own"}


def test_cases_are_chosen_by_one_text_or_several() -> None:
    assert among("alibi 8k d128", "") and among("alibi 8k d128", "softcap, alibi") and not among("alibi 8k", "d64,cap")


def test_without_a_cpu_nothing_is_checked_and_so_nothing_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(platform: str) -> Any:
        raise RuntimeError(f"Unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(TfcError, match="float64 on the CPU") as raised:
        require_host()
    assert "cuda,cpu" in (raised.value.diagnostics[0].help or "")


def test_a_suite_without_directions_refuses_one(tmp_path: Path) -> None:
    with pytest.raises(TfcError, match="has no directions"):
        bench("approximation", [], "", 3, tmp_path, False, "both")


def _jax(case: AttentionCase, sets: Sequence[Operands], direction: Direction) -> Prepared:
    def call(q: jax.Array, k: jax.Array, v: jax.Array, *captured: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, scale=case.scale, is_causal=True)

    return prepared(call, sets, direction)


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(eqn: object, target: Target):  # type: ignore[no-untyped-def]
        return lambda q, k, v: (jnp.zeros_like(q), jnp.zeros((1, 2, 1024)))

    broken = Kernel(name="broken", op=Attention, refuse=lambda e, t: None, build=build)
    monkeypatch.setattr(attention, "ATTENTION", (SMALL,))
    with pytest.raises(attention.BenchError, match="from float64"):
        list(attention.run(broken, Target(name="cpu", platform="cpu"), [], samples=1))


def test_a_wrong_case_keeps_no_other_from_its_turn() -> None:
    def prepare(case: int) -> int:
        if case == 1:
            raise attention.BenchError("wrong")
        return 10 * case

    said = list[str]()
    found = attention.prepared_first(prepare, [0, 1, 2], lambda: said.append("turn"))
    assert next(found) == (0, 0) and said == ["turn"]
    assert next(found) == (2, 20)
    with pytest.raises(attention.BenchError, match="wrong"):
        next(found)
    assert next(attention.prepared_first(prepare, [3, 1], None)) == (3, 30), "one after another"


def test_a_runner_times_single_calls() -> None:
    x = jnp.ones((256, 256))
    runner = JaxRunner(lambda a: jnp.sort(a), [(x,), (x + 1,)])
    assert 0 < runner.sample() < 1e3
    # none dropped, none merged
    assert (runner.program.lower(runner.sets).compile().as_text() or "").count(" sort(") == CALLS


def _row(**changes: object) -> Row:
    base = Row(
        suite="attention", case="d128 4k causal", direction="forward", implementation="pallas_gpu", peer="cudnn",
        ours_ms=1.0, peer_ms=1.5, ratio=1.5, samples={"pallas_gpu": [1.0], "cudnn": [1.5]}, floor_ms=0.5,
        device="d", versions={"jax": "0"}, date="2026-01-01T00:00:00+00:00", kernel_hash="h", command="tfc bench",
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def test_rows_round_trip_and_the_newest_counts(tmp_path: Path) -> None:
    old, new = _row(), _row(ratio=2.0, date="2026-02-01T00:00:00+00:00")
    file = tmp_path / "d" / "attention.jsonl"
    results.write(file, [new])
    results.write(file, [old])
    assert read(file) == [new, old]
    assert latest(read(file)) == [new]
    assert "| 2.00 |" in markdown(read(file)) and "50%" in markdown(read(file))


def test_figures_of_an_earlier_kernel_are_marked() -> None:
    """Change the kernel, and its figures are stale: the tables say so until they are measured again."""
    now = kernel_hash("attention")
    assert "*" not in markdown([_row(kernel_hash=now)])
    text = markdown([_row(kernel_hash=now), _row(case="softcap")])
    assert "| softcap * |" in text and "| d128 4k causal |" in text and "earlier version of the kernel" in text


@pytest.mark.parametrize("file", RESULTS, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_rows_are_what_their_samples_say(file: Path) -> None:
    from statistics import median

    for row in read(file):
        assert row.ours_ms == pytest.approx(median(row.samples[row.implementation]))
        assert row.peer_ms == pytest.approx(median(row.samples[row.peer]))
        assert row.ratio == pytest.approx(row.peer_ms / row.ours_ms)


def test_the_readmes_show_the_committed_results() -> None:
    """Tables and charts are those of the rows, the newest of each case."""
    for readme in (ROOT / "benchmarks" / "README.md", ROOT / "README.md"):
        text = readme.read_text(encoding="utf-8")
        for file in RESULTS:
            assert section(file, readme.parent) in text, "run `tfc bench --render`"
    for file in RESULTS:
        drawn = file.with_suffix(".svg")
        kept = drawn.read_text(encoding="utf-8") if drawn.exists() else ""
        assert kept == charted(read(file)), "run `tfc bench --render`"


def test_a_chart_has_a_bar_for_each_ratio() -> None:
    """Long bars are cut off and say their number; what is beside another case has none; names are escaped."""
    rows = [_row(), _row(peer="a<b", ratio=7.2), _row(case="softcap", direction="both", ratio=0.5)]
    chart = bars([*rows, _row(case="packed", peer="own", beside="padded")])
    ElementTree.fromstring(chart)  # it is XML
    assert chart.count("<path") == 3 + 1 and ">7.20<" in chart and "a&lt;b" in chart and "packed" not in chart
    assert "softcap, with gradients" in chart and "d128 4k causal, forward" in chart
    assert bars([_row(beside="padded")]) == ""


def test_render_writes_charts_and_links_them(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    file = folder / "results" / "d" / "attention.jsonl"
    results.write(file, [_row()])
    for readme in (folder / "README.md", tmp_path / "README.md"):
        readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    assert render(folder) == 0
    assert file.with_suffix(".svg").read_text() == bars([_row()])
    own, top = ((f / "README.md").read_text() for f in (folder, tmp_path))
    assert "(results/d/attention.svg)" in own and "(benchmarks/results/d/attention.svg)" in top
    assert "old" not in own and own.startswith("before\n") and own.endswith("after\n") and "| 1.50 |" in own
