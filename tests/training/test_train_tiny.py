"""The example that trains: help that teaches, an interrupted run that ends as an uninterrupted one, refusals."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner, Result
from rich.progress import Progress

import tfc
from tfc.training import State, restore, save

SCRIPT = Path(__file__).parents[2] / "examples" / "train_tiny.py"
SMALL = ["--set", "layers=1", "--set", "width=16", "--set", "heads=2", "--batch", "2", "--length", "16"]


def example() -> Any:
    spec = importlib.util.spec_from_file_location("train_tiny", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words: str) -> Result:
    return CliRunner().invoke(example().main, list(words))


def test_help_teaches():
    shown = run("--help")
    assert shown.exit_code == 0
    for word in ("--resume", "--steps", "--plot", "--set drop=0", "bit for bit", "two minutes"):
        assert word in " ".join(shown.output.split())


def test_steps_after_a_restart_are_those_without_one(tmp_path: Path):
    """Dropouts, batches, the optimizer and the schedule: all of it comes from what a checkpoint holds."""
    tiny = example()
    model = tfc.compile(tiny.SPEC, target="cpu", layers=1, width=16, heads=2)
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 6))
    step = tiny.step_of(model, optimizer, jnp.asarray(tiny.read(tiny.TEXT)), 2, 16)
    start: State = jax.jit(lambda: tiny.begin(model, optimizer, 0))()
    save(start, tmp_path / "start.safetensors")
    kept: dict[int, bytes] = {}

    def keep(state: State, losses: list[float]) -> None:
        save(state, tmp_path / "state.safetensors")
        kept[int(state.step)] = (tmp_path / "state.safetensors").read_bytes()

    def go(state: State, steps: int, losses: list[float]) -> State:
        with Progress(disable=True) as progress:
            return tiny.train(step, state, steps, losses, 3, keep, progress)

    whole: list[float] = []
    like = jax.eval_shape(lambda: start)
    end = go(restore(tmp_path / "start.safetensors", like), 6, whole)
    (tmp_path / "third.safetensors").write_bytes(kept[3])
    parts = whole[:3]
    after = go(restore(tmp_path / "third.safetensors", like), 6, parts)
    assert parts == whole and len(set(whole)) == 6
    first, second = (jax.tree.leaves(s._replace(key=jax.random.key_data(s.key))) for s in (end, after))
    assert [np.asarray(x).tobytes() for x in first] == [np.asarray(x).tobytes() for x in second]


@pytest.mark.slow
def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    made = run(*SMALL, "--steps", "7", "--every", "3", "--out", str(whole), "--sample", "0")
    assert made.exit_code == 0, made.output
    stopped = run(*SMALL, "--steps", "7", "--every", "2", "--stop", "3", "--out", str(parts))
    assert stopped.exit_code == 0 and "go on with --resume" in stopped.output
    assert not (parts / "params.safetensors").exists()
    resumed = run(*SMALL, "--steps", "7", "--every", "2", "--resume", "--out", str(parts), "--sample", "8")
    assert resumed.exit_code == 0 and "4 of them now" in " ".join(resumed.output.split())
    for name in ("state.safetensors", "params.safetensors", "losses.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    losses = [json.loads(line)["loss"] for line in (whole / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 7 and np.isfinite(losses).all()
    assert resumed.stdout.startswith("When ") and len(resumed.stdout.rstrip("\n").encode()) == len("When ") + 8


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "to resume from; run without --resume first" in run("--resume", "--out", str(tmp_path)).output
    (tmp_path / "short.txt").write_text("short")
    assert "has 5 bytes" in run("--text", str(tmp_path / "short.txt"), "--out", str(tmp_path)).output
    (tmp_path / "other.txt").write_text("ä" * 200)
    assert "is not ASCII text" in run("--text", str(tmp_path / "other.txt"), "--out", str(tmp_path)).output
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    import click

    with pytest.raises(click.ClickException, match=r"not installed: pip install 'tfc\[train\]'"):
        example().plot([1.0], 3.0, tmp_path / "x.png")


def test_losses_are_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    example().plot([3.0, 2.0, 1.0], 3.0, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_it_learns(tmp_path: Path):
    """To far less than the frequencies of bytes say: the text is known by heart."""
    made = run("--steps", "600", "--out", str(tmp_path))
    assert made.exit_code == 0, made.output
    losses = [json.loads(line)["loss"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    entropy = example().unigram_entropy(example().read(example().TEXT))
    assert np.mean(losses[-20:]) < 0.4 * entropy
