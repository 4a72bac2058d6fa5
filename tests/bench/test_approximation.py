"""The suite of approximations: rank correlation, a small run, its table and its chart, the sentences."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import jax
import numpy as np
import pytest

import tfc
from tfc.bench import approximation
from tfc.bench.approximation import VARIANTS, Dense, Variant, chart, measured, spearman, table
from tfc.bench.results import read, write
from tfc.diagnostics import TfcError

ROOT = Path(__file__).parents[2]
SIZES = dict(layers=2, width=16, heads=2, hidden=32, vocab=50, longest=16)


def test_rank_correlation() -> None:
    x = np.array([3.0, 1.0, 2.0, 10.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    # ties share the mean of their ranks: (1.5, 1.5, 3) with (1, 2, 3)
    assert spearman(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx(np.sqrt(3) / 2)


def test_sentences_are_different_and_none_calibrates_what_it_judges() -> None:
    sets = [(ROOT / "benchmarks" / "approximation" / f"{n}.txt").read_text().splitlines() for n in ("sentences", "tuning", "calibration")]  # noqa: E501  # fmt: skip
    assert len(sets[0]) == 60 and len(sets[1]) >= 60
    assert len(set(sets[0]) | set(sets[1])) == len(sets[0]) + len(sets[1])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[approximation.Row]:
    """A small model with random weights, factorized at full rank and at half."""
    small = tmp_path_factory.mktemp("spec") / "small.tfm"
    lets = ", ".join(f"{k} = {v}" for k, v in SIZES.items())
    text = (ROOT / "examples" / "minilm.tfm").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("let layers", "let vocab"))]
    small.write_text("\n".join(["tfm 1", f"let {lets}, kinds = 2", *lines[1:]]))
    model = tfc.compile(small, "cpu")
    params = jax.tree.map(lambda x: x * 8, model.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    inputs = {"tokens": rng.integers(0, 50, (7, 9)).astype(np.int32), "lengths": rng.integers(2, 10, 7)}
    dense = Dense(small, model, params, inputs, [{"tokens": rng.integers(0, 50, (4, 9)).astype(np.int32)}])
    seeded = replace(VARIANTS[1], name="thrice", seeds=3)
    return measured(dense, (VARIANTS[0], VARIANTS[4], seeded), rounds=2)


def test_rows_say_what_was_seen(rows: list[approximation.Row], tmp_path: Path) -> None:
    full, half, thrice = (r.quality for r in rows)
    assert full["spearman"] > 0.999 and full["distance"] < 1e-4
    assert 0 < half["spearman"] < 1 and half["bytes"] < full["bytes"] and full["bytes"] > full["dense_bytes"]
    assert [thrice[f"spearman_{n}"] for n in range(3)] == [thrice["spearman"]] * 3
    assert all(len(x) == 2 for r in rows for x in r.samples.values())
    write(tmp_path / "a.jsonl", rows)
    assert read(tmp_path / "a.jsonl") == rows


def test_table_and_chart(rows: list[approximation.Row]) -> None:
    assert [line.split("|")[1].strip() for line in table(rows).splitlines()[2:5]] == [r.case for r in rows]
    root = ElementTree.fromstring(chart(rows))
    assert len(root.findall("{*}circle")) == 2 and "svd" in "".join(root.itertext())
    assert "No results" in table([])


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximation, "PACKAGE", "no_such_package")
    with pytest.raises(TfcError, match="not installed"):
        approximation.opened(ROOT / "examples" / "minilm.tfm", tmp_path)


def test_variants_have_names_of_their_own() -> None:
    assert len({v.name for v in VARIANTS}) == len(VARIANTS) and all(isinstance(v, Variant) for v in VARIANTS)
