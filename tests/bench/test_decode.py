"""The suite `decode`: caches read as they are kept, wrong results refused, rows with their bandwidths."""

import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc import aot
from tfc.backends.kernel import Kernel, Target
from tfc.backends.pallas_gpu.decode import KERNEL
from tfc.backends.xla.attention import KERNEL as XLA
from tfc.bench import decode, timing
from tfc.bench.attention import BenchError
from tfc.bench.decode import DECODE, DecodeCase
from tfc.bench.decode_peers import PEERS, DecodePeer, _in_jax
from tfc.bench.peers import PeerRefusal
from tfc.bench.results import markdown
from tfc.commands.bench import bench
from tfc.diagnostics import TfcError
from tfc.ir.ops import Attention
from tfc.targets import resolve

SMALL = DecodeCase(name="small", batch=2, length=128, heads=4, kv_heads=2, head_dim=32)
REACHED = {"copy_tb_s": 3.0, "read_tb_s": 4.0}
CPU = Target(name="cpu", platform="cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "ROTATED", 1.0)
    monkeypatch.setattr(timing, "CALLS", 1)


def test_cases_are_named_by_what_they_are() -> None:
    names = [case.name for case in DECODE]
    assert len(set(names)) == len(names) and names[0] == "1x4k" and "1x32k 4 queries" in names
    assert {"8x8k pages 64", "1x128k int8", "1x128k fp8"} <= set(names)
    assert DECODE[0].bytes == 2 * 4096 * 8 * 128 * 2 + 2 * 32 * 128 * 2
    (int8,) = (c for c in DECODE if c.name == "1x128k int8")
    assert int8.beside is not None and int8.beside.bytes / int8.bytes == pytest.approx(256 / 132, rel=1e-3)


@pytest.mark.parametrize("more", [{}, {"page": 16}, {"kept": "int8"}, {"page": 16, "kept": "float8_e4m3fn"}], ids=str)
def test_what_is_kept_is_read_as_it_is_kept(more: dict[str, object]) -> None:
    """Against jax.nn on keys and values put together by plain indexing; a result with two tokens exchanged is far."""
    case = replace(SMALL, queries=3, **more)  # type: ignore[arg-type]
    q, k, v, at, *rest = decode.operand_sets(case)[0]
    made = []
    for i, x in enumerate((k, v)):
        y = x.astype(jnp.float32)
        if case.kept:
            y = y * jnp.swapaxes(rest[(case.page > 0) + i], 1, 2)[..., None]
        made.append(jnp.concatenate([y[p] for p in rest[0].ravel()]).reshape(2, 128, 2, 32) if case.page else y)
    mask = (jnp.arange(128) <= at[:, :, None])[:, None]
    right = jax.nn.dot_product_attention(q.astype(jnp.float32), *made, mask=mask)
    operands = decode.operand_sets(case)[0]
    assert decode.distance(case, right, operands) < 1e-5
    wrong = jax.nn.dot_product_attention(q.astype(jnp.float32), made[0], made[1][:, ::-1], mask=mask)
    assert decode.distance(case, wrong, operands) > 0.1


def test_rows_hold_the_bandwidths_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(case: DecodeCase, sets: object) -> object:
        return _in_jax(lambda q, k, v, mask=None: jax.nn.dot_product_attention(q, k, v, mask=mask), case, sets)  # type: ignore[arg-type]

    def wrong(case: DecodeCase, sets: object) -> object:
        return _in_jax(lambda q, k, v, mask=None: jax.nn.dot_product_attention(q, v, k, mask=mask), case, sets)  # type: ignore[arg-type]

    monkeypatch.setitem(PEERS, "jax", DecodePeer("jax", plain, ("jax",)))  # type: ignore[arg-type]
    monkeypatch.setitem(PEERS, "wrong", DecodePeer("wrong", wrong, ("jax",)))  # type: ignore[arg-type]
    cases = [replace(SMALL, queries=2, beside=replace(SMALL, name="other")), replace(SMALL, name="pages", page=16)]
    outcome, refused = decode.run(XLA, CPU, ["jax", "wrong"], cases=cases, samples=1, reached=REACHED)
    rows = {row.peer: row for row in outcome.rows}
    assert set(rows) == {"jax", "own"} and "from what is right" in outcome.refusals["wrong"]
    assert rows["jax"].floor_ms == pytest.approx(1e3 * cases[0].bytes / 4e12)
    assert rows["jax"].quality["read_tb_s"] == 4.0 and rows["jax"].quality["tb_s"] > 0
    assert rows["own"].beside == "other" and rows["own"].quality["predicted"] == pytest.approx(
        replace(SMALL).bytes / cases[0].bytes
    )
    assert "| small | decode | other | own |" in markdown(outcome.rows)
    assert not refused.rows and refused.refusals == {"xla": "has no pages"}


def test_a_wrong_kernel_is_not_timed() -> None:
    def build(eqn: object, target: Target):  # type: ignore[no-untyped-def]
        return lambda q, k, v, at: (jnp.zeros_like(q), q)

    broken = Kernel(name="broken", op=Attention, refuse=lambda e, t: None, build=build)
    with pytest.raises(BenchError, match="from float64"):
        list(decode.run(broken, CPU, [], cases=[SMALL], samples=1, reached=REACHED))


def test_peers_refuse_pages_and_keys_of_eight_bits() -> None:
    for change, words in ((dict(page=64), "pages"), (dict(kept="int8"), "int8 with scales")):
        with pytest.raises(PeerRefusal, match=words):
            PEERS["cudnn"].prepare(replace(SMALL, **change), [])  # type: ignore[arg-type]


def test_bandwidths_are_measured() -> None:
    found = decode.bandwidths(samples=1, size=2**16, rows=64, columns=64)
    assert set(found) == {"copy_tb_s", "read_tb_s"} and all(np.isfinite(x) for x in found.values())


def test_a_name_that_the_suite_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TfcError, match="`decode` has no peer `flex`"):
        bench("decode", ["flex"], "", 3, tmp_path, False)
    with pytest.raises(TfcError, match="no case's name has `4096`"):
        bench("decode", [], "4096", 3, tmp_path, False)
    with pytest.raises(TfcError, match="has no directions"):
        bench("decode", [], "", 3, tmp_path, False, "both")


@pytest.mark.aot
@pytest.mark.parametrize("case", DECODE, ids=lambda c: c.name)
def test_every_case_compiles_without_spills(case: DecodeCase) -> None:
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")
    serve = decode.built(case, KERNEL, resolve("h200"))
    assert not isinstance(serve, str), serve
    shapes = jax.eval_shape(lambda: decode._operands(case, 0))
    done = aot.compile_for("h200", serve, *shapes)
    assert done.kernels, "the compiler reported no kernel"
    for used in done.kernels:
        assert (used.spill_stores, used.spill_loads, used.stack) == (0, 0, 0), f"{used} spills"
