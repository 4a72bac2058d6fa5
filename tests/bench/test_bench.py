"""The benchmark suite: floors counted right, wrong results refused, committed results fresh and shown as they are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tfc.backends.kernel import Kernel, Target
from tfc.backends.xla.attention import KERNEL as XLA
from tfc.bench import attention, results, timing
from tfc.bench.cases import ATTENTION, CAUSAL, AttentionCase, Direction, and_all, window
from tfc.bench.peers import Form, Operands, Peer, PeerRefusal, Prepared, prepared
from tfc.bench.results import Row, kernel_hash, latest, markdown, read
from tfc.bench.timing import CALLS, JaxRunner
from tfc.commands.bench import bench, shown
from tfc.diagnostics import TfcError
from tfc.formula.expr import Const, Token, apply
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/*.jsonl"))
SMALL = AttentionCase(name="small", batch=1, length=1024, heads=2, kv_heads=1, head_dim=32, mask=CAUSAL)


@pytest.mark.parametrize("case", ATTENTION, ids=lambda c: c.name)
def test_visible_pairs_are_counted_as_the_mask_says(case: AttentionCase) -> None:
    """The closed form of the floor equals a count over tokens, on a shorter problem of the same mask."""
    small = replace(case, length=2048 if "1024" in case.name else 96)
    i, j = jnp.arange(small.length)[:, None], jnp.arange(small.length)[None, :]
    seen = jnp.ones((small.length, small.length), bool)
    if "full" not in case.name:
        seen &= j <= i
    if "window" in case.name:
        seen &= abs(i - j) < 1024
    if "documents" in case.name:
        seen &= i // 1024 == j // 1024
    assert small.pairs == int(seen.sum())


def test_peers_say_a_case_in_their_own_words_or_refuse() -> None:
    assert Form.of(replace(SMALL, mask=and_all(CAUSAL, window(7)))).window == 7
    own = apply("eq", apply("mod", Token("q"), Const(4)), apply("mod", Token("k"), Const(4)))
    with pytest.raises(PeerRefusal, match="no argument says"):
        Form.of(replace(SMALL, mask=and_all(CAUSAL, own)))


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
    (outcome,) = attention.run(replace(XLA, differentiable=False), cpu, ["jax"], samples=1, directions=["both"])
    assert not outcome.rows and outcome.refusals == {"xla": "has no gradient of its own"}


def test_a_suite_without_directions_refuses_one(tmp_path: Path) -> None:
    with pytest.raises(TfcError, match="has no directions"):
        bench("approximation", [], "", 3, tmp_path, False, "both")


def _jax(case: AttentionCase, sets: Sequence[Operands], direction: Direction) -> Prepared:
    def call(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, scale=case.scale, is_causal=True)

    return prepared(call, sets, direction)


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(eqn: object, target: Target):  # type: ignore[no-untyped-def]
        return lambda q, k, v: (jnp.zeros_like(q), jnp.zeros((1, 2, 1024)))

    broken = Kernel(name="broken", op=Attention, refuse=lambda e, t: None, build=build)
    monkeypatch.setattr(attention, "ATTENTION", (SMALL,))
    with pytest.raises(attention.BenchError, match="from float64"):
        list(attention.run(broken, Target(name="cpu", platform="cpu"), [], samples=1))


def test_a_runner_times_single_calls() -> None:
    x = jnp.ones((256, 256))
    runner = JaxRunner(lambda a: jnp.sort(a), [(x,), (x + 1,)])
    assert 0 < runner.sample() < 1e3
    for program, calls in ((runner.many, CALLS + 1), (runner.one, 1)):  # none dropped, none merged
        assert (program.lower(runner.sets).compile().as_text() or "").count(" sort(") == calls


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


def test_the_readme_shows_the_committed_results() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for file in RESULTS:
        assert shown(read(file)) in text, "run `tfc bench --render`"
