"""`tfc tune`: tables by equation, device and versions; interrupted runs go on; what is best is what kernels get."""

import json
import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tfc import aot, cli
from tfc.backends.kernel import DTYPES, Target
from tfc.backends.pallas_gpu import attention, backward, candidates, decode, pairs, plan, tuned
from tfc.bench import tuning
from tfc.bench.cases import ATTENTION, CAUSAL, AttentionCase, alibi
from tfc.bench.decode import DECODE
from tfc.bench.tuning import Task
from tfc.commands.tune import tune
from tfc.diagnostics import TfcError
from tfc.ir.types import DType
from tfc.targets import resolve

H200 = resolve("h200")
CASE = AttentionCase(name="c", batch=1, length=1024, heads=4, kv_heads=2, head_dim=64, mask=CAUSAL)
EQN = CASE.eqn()


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's table, in a folder of the test's own; nothing shipped."""
    file = tmp_path / "cache" / "tuned.jsonl"
    monkeypatch.setenv("TFC_TUNED", str(file))
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped.jsonl")
    tuned.forget()
    yield file
    tuned.forget()


def times(task: Task) -> float:
    """Best is a ring of two with key tiles of 64; a ring of four does not compile."""
    if task.config["stages"] == 4:
        raise ValueError("too much shared memory\nand more")
    return 100.0 + 10 * task.config.get("block_k", 64) / 64 + task.config["stages"]


def silent(task: Task, said: str) -> None:
    pass


def test_what_is_best_is_what_kernels_get(table: Path) -> None:
    before = attention.config_of(EQN, H200)
    work = tuning.tasks([(EQN, None)], H200, ["forward"])
    assert dict(work[0].config).items() <= {f.name: getattr(before, f.name) for f in fields(before)}.items()
    said: list[str] = []
    tuning.tune(work, times, table, lambda task, words: said.append(words))
    assert "ValueError: too much shared memory" in said and "112.0 us" in said
    got = attention.config_of(EQN, H200)
    assert (got.block_k, got.stages) == (64, 2) and got != before
    assert attention.config_of(replace(CASE, length=2048).eqn(), H200) != got  # another shape
    assert attention.config_of(EQN, replace(H200, name="h100")) == before  # another device
    assert attention.config_of(EQN, replace(H200, interpret=True)) == replace(before, consumers=2)
    assert attention.notes(EQN, H200)["block_k"] == 64


def test_an_interrupted_run_goes_on_where_it_stopped(table: Path) -> None:
    work = tuning.tasks([(EQN, None)], H200)
    asked: list[Task] = []

    def interrupted(task: Task) -> float:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(task)
        return times(task)

    with pytest.raises(KeyboardInterrupt):
        tuning.tune(work, interrupted, table, silent)
    assert len(table.read_text().splitlines()) == 3
    with table.open("a") as out:
        out.write('{"kernel": "forward", "dev')  # and one that was being written
    again: list[Task] = []

    def counted(task: Task) -> float:
        again.append(task)
        return times(task)

    with pytest.warns(UserWarning, match=r"tuned.jsonl:4: no line of a table"):
        tuning.tune(work, counted, table, silent)
    assert again == [task for task in work if task not in asked]
    with pytest.warns(UserWarning, match="no line of a table"):
        assert len(list(tuned.lines(table))) == len(work)
        tuning.tune(work, counted, table, silent)
    assert len(again) == len(work) - 3


def test_times_of_other_versions_say_nothing(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tuning.tasks([(EQN, None)], H200, ["forward"])
    tuning.tune(work, times, table, silent)
    assert set(tuned.versions()) == {"tfc", "kernels", "jax"}
    for name in ("tfc", "kernels", "jax"):
        monkeypatch.setattr(tuned, "versions", lambda name=name: {**real, name: "another"})
        tuned.forget()
        assert not tuned.fields("forward", EQN, H200)
        before = len(table.read_text().splitlines())
        tuning.tune(work, times, table, silent)
        assert len(table.read_text().splitlines()) == before + len(work)


real = tuned.versions()


@pytest.mark.parametrize(
    "text", ["{", "3", '{"kernel": 1}', '{"kernel": "f", "device": "h200", "equation": "e"}', "\x00"]
)
def test_a_corrupted_line_is_passed_over_with_a_warning(table: Path, text: str) -> None:
    work = tuning.tasks([(EQN, None)], H200, ["forward"])
    tuning.tune(work, times, table, silent)
    table.write_text(text + "\n" + table.read_text())
    tuned.forget()
    with pytest.warns(UserWarning, match=rf"{table}:1: no line of a table of block sizes"):
        assert tuned.fields("forward", EQN, H200)["stages"] == 2
    assert tuned.fields("forward", EQN, H200)["stages"] == 2  # said once


def test_the_users_table_counts_before_the_shipped_one(table: Path) -> None:
    work = tuning.tasks([(EQN, None)], H200, ["forward"])
    tuning.tune(work, lambda task: 1.0 + task.config["stages"] + task.config["block_k"], table, silent)
    assert tuning.ship(table, "h100") == 0
    assert tuning.ship(table, "h200") == 1 and tuning.ship(table, "h200") == 0
    shipped = dict(tuned.fields("forward", EQN, H200))
    table.unlink()
    tuned.forget()
    assert tuned.fields("forward", EQN, H200) == shipped and shipped["stages"] == 2
    tuning.tune(work, lambda task: 10.0 - task.config["stages"], table, silent)
    assert tuned.fields("forward", EQN, H200)["stages"] == 4


def test_each_kernel_has_its_own_entries(table: Path) -> None:
    few = DECODE[0].eqn()
    (wide,) = (c.eqn() for c in ATTENTION if c.name == "d256 4k causal")
    work = tuning.tasks([(EQN, None), (few, None), (wide, None)], H200)
    assert {t.kernel for t in work if t.eqn == EQN} == {"forward", "backward q", "backward kv"}
    assert candidates.kernels_of(wide, H200) == ("forward", "backward q", "backward k", "backward v")
    assert {t.kernel for t in work if t.eqn == wide} == {"backward q", "backward k", "backward v"}  # one way forward
    assert {t.kernel for t in work if t.eqn == few} == {"decode"}
    tuning.tune(work, times, table, silent)
    assert all(c.stages <= 2 for c in backward.configs_of(EQN, H200).values())  # by rule they are four
    assert [p.config for p in backward.plans_of(EQN, H200)] == list(backward.configs_of(EQN, H200).values())
    chosen = decode.plan_of(few, H200)
    line = tuned.best(tuned.lines(table))["decode", "h200", tuned.equation(few)]
    assert {**line["config"]} == {
        "block_k": chosen.config.block_k,
        "stages": chosen.config.stages,
        "splits": chosen.splits,
    }


def test_candidates_change_what_takes_time_and_not_what_is_computed() -> None:
    """All are fields of the kernel's configuration; how functions are computed is none of them; all fit."""
    for eqn in (EQN, *(c.eqn() for c in ATTENTION[::4]), DECODE[2].eqn()):
        for kernel in candidates.kernels_of(eqn, H200):
            found = candidates.candidates(kernel, eqn, H200)
            known = {f.name for f in fields(pairs.Config if kernel.startswith("backward") else plan.Config)} | {
                "splits"
            }
            assert 1 <= len(found) < 30
            assert all(set(c) <= known for c in found)
            assert len({json.dumps(c, sort_keys=True) for c in found}) == len(found)


def test_equations_that_the_backend_refuses_have_none() -> None:
    f32 = CASE.part(1, 64, 64, 4, 2, DType.F32)
    assert candidates.kernels_of(f32, H200) == ()
    assert not tuning.tasks([(EQN, None)], resolve("cpu"))


def test_a_wrong_candidate_is_told_from_a_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's timer compares results with those of the configuration in use before it takes a time."""

    def function(self: object, kernel: str, eqn: object, config: object) -> object:
        factor = 1.0 if config is None or config["stages"] != 3 else 1.1  # type: ignore[index]
        return lambda q, k, v: (q * factor).astype(jnp.bfloat16)

    monkeypatch.setattr(tuning.Device, "function", function)
    monkeypatch.setattr(tuning, "ROTATED", 1.0)
    device = tuning.Device(replace(H200, name="here"), samples=1)
    good, bad = (Task("forward", EQN, {"stages": n}, "here") for n in (2, 3))
    device(good)
    with pytest.raises(ValueError, match="from that of the configuration in use"):
        device(bad)


def test_a_device_that_fails_ends_the_run(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it failed at is kept as such; the next run goes on behind it."""
    work = tuning.tasks([(EQN, None)], H200, ["forward"])
    device = tuning.Device(H200)

    def fails(task: Task) -> float:
        monkeypatch.setattr(jnp, "ones", lambda n: 1 / 0)
        raise RuntimeError("illegal address")

    monkeypatch.setattr(device, "measured", lambda task: fails(task) if task == work[1] else 5.0)
    with pytest.raises(tuning.DeviceLost, match="illegal address"):
        tuning.tune(work, device, table, silent)
    assert [("error" in line, "us" in line) for line in tuned.lines(table)] == [(False, True), (True, False)]
    tuning.tune(work, times, table, silent)
    assert len(list(tuned.lines(table))) == len(work)


def test_operands_leave_every_pair_of_formulas_like_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "ROTATED", 1.0)
    q, k, v, at = tuning._sets(False, DECODE[0].eqn(), H200, None)[0]
    assert q.shape == (1, 1, 32, 128) and k.shape == v.shape == (1, 4096, 8, 128)
    assert at.dtype == jnp.int32 and bool((at == 4096).all())
    tilted = replace(CASE, score=alibi(0), captured=("slopes",), length=64).eqn()
    *_, slopes = tuning._sets(False, tilted, H200, (jnp.ones(4),))[0]
    assert bool((slopes == 1).all())


SPEC = """tfm 1
let width = 64
attention look { heads = 2   kv_heads = 2   head_dim = 32   mask = causal   position = rope(10_000) }
default precision { params = f32   compute = bf16   reduce = f32 }
model small(x: real[B, T, width]) { repeat 2 as layer { x = x + look(x) } return x }
"""


def test_the_command(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A spec's attention, then its decoding form; what is best is said; again, nothing is measured."""
    spec = tmp_path / "s.tfm"
    spec.write_text(SPEC)
    given = dict(sets={}, target="h200", shape={"B": "2", "T": "512"}, kernels=(), only="", ship=False)
    assert tune(str(spec), length=None, timer=times, **given) == 0  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert "forward 2x512x2x32" in said.out and "best 112.0 us" in said.out and "1/" in said.err
    kernels = {line["kernel"] for line in tuned.lines(table)}
    assert kernels == {"forward", "backward q", "backward kv"}

    def never(task: Task) -> float:
        raise AssertionError(task)

    assert tune(str(spec), length=None, timer=never, **given) == 0  # type: ignore[arg-type]
    given["shape"] = {"B": "2"}
    assert tune(str(spec), length=2048, timer=times, **given) == 0  # type: ignore[arg-type]
    assert "decode 2x1x2x32" in capsys.readouterr().out

    def stopped(task: Task) -> float:
        raise KeyboardInterrupt

    given["shape"] = {"B": "4", "T": "512"}
    assert tune(str(spec), length=None, timer=stopped, **given) == 1  # type: ignore[arg-type]
    assert "the same command goes on from there" in capsys.readouterr().err
    assert tune(None, length=None, **{**given, "ship": True}) == 0  # type: ignore[arg-type]
    assert "new in" in capsys.readouterr().out and tuned.SHIPPED.exists()


@pytest.mark.parametrize("suite", ["attention", "decode"])
def test_suites_are_tuned_with_their_own_fields(suite: str, table: Path) -> None:
    seen: list[Task] = []

    def timer(task: Task) -> float:
        seen.append(task)
        return 1.0

    only = "documents1024" if suite == "attention" else "1x4k"
    assert tune(suite, {}, "h200", {}, None, (), only, False, timer) == 0
    (arrays,) = {str([x.shape for x in t.captured()]) if t.captured else "" for t in seen}
    assert arrays == ("[(2, 8192), (2, 8192)]" if suite == "attention" else "[(1, 1)]")


def test_the_command_refuses_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "attention", "--target", "h200"]) == 1
    assert "measured on the device itself" in capsys.readouterr().err
    spec = tmp_path / "s.tfm"
    spec.write_text(SPEC.replace("bf16", "f32"))
    with pytest.raises(TfcError, match="no attention of"):
        tune(str(spec), {}, "h200", {}, None, (), "", False, times)


def test_shipped_lines_are_of_kernels_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each names a kernel, and fields that its configuration has."""
    monkeypatch.undo()
    shipped = Path(tuned.__file__).with_name("tuned.jsonl")
    for line in tuned.lines(shipped) if shipped.exists() else ():
        config = dict(line["config"])
        config.pop("splits", None)
        cls = pairs.Config if line["kernel"].startswith("backward") else plan.Config
        assert cls(**config) and line["kernel"].split()[0] in ("forward", "backward", "decode")


def test_an_unknown_equation_costs_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no table knows the kernel, the equation is not even written out."""

    def never(eqn: object) -> str:
        raise AssertionError

    monkeypatch.setattr(tuned, "equation", never)
    assert not tuned.fields("forward", EQN, H200)
    assert jax.devices()[0].platform == "cpu" and isinstance(H200, Target)


@pytest.mark.aot
@pytest.mark.parametrize("kernel", ["forward", "backward q", "backward kv", "decode"])
def test_a_candidate_compiles_for_an_absent_gpu(kernel: str) -> None:
    """What the device would time: the last candidate of each kernel, whose gradients also take results."""
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")
    eqn = DECODE[0].eqn() if kernel == "decode" else EQN
    function = tuning.Device(H200).function(kernel, eqn, candidates.candidates(kernel, eqn, H200)[-1])
    results = [v.type for v in eqn.outs] * 2 if kernel.startswith("backward") else []
    types = [*(a.type for a in eqn.args), *results]
    done = aot.compile_for("h200", function, *(jax.ShapeDtypeStruct(t.ints, DTYPES[t.dtype]) for t in types))
    assert done.kernels, "the compiler reported no kernel"
