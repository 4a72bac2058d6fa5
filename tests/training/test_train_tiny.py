"""The example that trains: help that teaches, an interrupted run that ends as an uninterrupted one, refusals in words."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

SCRIPT = Path(__file__).parents[2] / "examples" / "train_tiny.py"
SMALL = ["--set", "layers=1", "--set", "width=16", "--set", "heads=2", "--batch", "2", "--length", "16", "--sample", "8"]


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


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    made = run(*SMALL, "--steps", "7", "--every", "3", "--out", str(whole))
    assert made.exit_code == 0, made.output
    stopped = run(*SMALL, "--steps", "7", "--every", "2", "--stop", "3", "--out", str(parts))
    assert stopped.exit_code == 0 and "go on with --resume" in stopped.output
    assert not (parts / "params.safetensors").exists()
    resumed = run(*SMALL, "--steps", "7", "--every", "2", "--resume", "--out", str(parts))
    assert resumed.exit_code == 0 and "4 of them now" in " ".join(resumed.output.split())
    for name in ("state.safetensors", "params.safetensors", "losses.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    losses = [json.loads(line)["loss"] for line in (whole / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 7 and np.isfinite(losses).all()
    assert resumed.stdout == made.stdout and made.stdout.startswith("When ")


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
