"""Every spec of the zoo is checked, typed, formatted, short, and runs."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tfc
from tfc.front import front
from tfc.grammar.constructs import CONSTRUCTS, constructs, kinds, table
from tfc.grammar.format import format_module
from tfc.grammar.parser import parse
from tfc.ir.functions import FUNCTIONS
from tfc.ir.types import DType
from tfc.source import Source
from tfc.testing.specs import lines_of_code, read_head

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "examples" / "zoo"
SPECS = sorted(ZOO.rglob("*.tfm"))
NAMES = [str(p.relative_to(ZOO)) for p in SPECS]
spec = pytest.mark.parametrize("path", SPECS, ids=NAMES)
# compiling a model twice takes seconds: every sixteenth one by default, all of them with --slow
runs = pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=n, marks=[pytest.mark.slow] if i % 16 else [])
        for i, (p, n) in enumerate(zip(SPECS, NAMES, strict=True))
    ],
)


@pytest.fixture
def compiled_quickly():
    """XLA without its optimizations: what is compared are meanings."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_seventy_systems():
    assert len(SPECS) >= 70
    assert len({p.stem for p in SPECS}) == len(SPECS)


@spec
def test_checks_and_types(path):
    made = front(path)
    assert not made.warnings, [str(w) for w in made.warnings]


@spec
def test_short_and_canonical(path):
    text = path.read_text(encoding="utf-8")
    assert lines_of_code(text) <= 60
    module, faults = parse(Source(str(path), text))
    assert module is not None and not faults
    assert format_module(module) == text


def _inputs(model, lengths):
    """An array for every input of the model: small numbers for integers, normal ones else."""
    rng = np.random.default_rng(0)
    out = {}
    for declared in model.program.inputs:
        t = declared.value.type
        known = {n for s in t.shape if not isinstance(s, int) for n in s.names}
        shape = t.bind({n: lengths.get(n, 2 if n == "B" else 16) for n in known}).ints
        if declared.default is not None:
            continue
        if t.dtype is DType.I32:
            out[declared.value.name] = jnp.asarray(rng.integers(0, 2, shape), jnp.int32)
        elif t.dtype is DType.BOOL:
            out[declared.value.name] = jnp.asarray(rng.integers(0, 2, shape) > 0)
        else:
            out[declared.value.name] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return out


@runs
@pytest.mark.usefixtures("compiled_quickly")
def test_runs(path):
    """`xla` gives what the definitions give, finite, at the small size that the head names."""
    head = read_head(path)
    sets: dict[str, Any] = dict(head.sets)
    fast = tfc.compile(path, target="cpu", **sets)
    slow = tfc.compile(path, target="cpu", implementation="reference", **sets)
    params = fast.init(jax.random.key(0))
    inputs = _inputs(fast, head.lengths)
    for ours, true in zip(
        jax.tree.leaves(fast(params, **inputs)), jax.tree.leaves(slow(params, **inputs)), strict=True
    ):
        assert ours.shape == true.shape and bool(jnp.all(jnp.isfinite(true.astype(jnp.float32))))
        np.testing.assert_allclose(ours.astype(jnp.float32), true.astype(jnp.float32), rtol=2e-3, atol=2e-4)


def test_no_construct_and_no_kind_serves_one_system_only():
    modules = [parse(Source(str(p), p.read_text(encoding="utf-8")))[0] for p in SPECS]
    used = [constructs(m) | kinds(m) for m in modules if m is not None]
    assert len(used) == len(SPECS)
    every = {*CONSTRUCTS, *(name for found in used for name in found)}
    assert [name for name in sorted(every) if sum(name in found for found in used) < 2] == []


def test_few_registered_functions():
    assert len(FUNCTIONS) <= 10


def test_the_table_is_the_generated_one():
    text = (ZOO / "README.md").read_text(encoding="utf-8")
    assert table(ZOO) in text, "python -m tfc.grammar.constructs examples/zoo"
