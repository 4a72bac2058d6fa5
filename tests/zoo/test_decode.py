"""Every spec of the zoo in its decoding form: refused in words, or two ragged calls give what one call gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.kernel import DTYPES
from tfc.backends.reference.program import evaluate
from tfc.diagnostics import TfcError
from tfc.front import front
from tfc.ir.program import Program
from tfc.ir.text import parse, show
from tfc.ir.types import Dim, DType
from tfc.ir.verify import verify
from tfc.passes.decode import COUNT, LENGTH, Decode, kept, tokens_of
from tfc.testing.specs import read_head

ZOO = Path(__file__).parents[2] / "examples" / "zoo"
SPECS = sorted(ZOO.rglob("*.tfm"))
NAMES = [str(p.relative_to(ZOO)) for p in SPECS]
spec = pytest.mark.parametrize("path", SPECS, ids=NAMES)
# evaluating a model three times takes seconds: every twentieth one by default, all of them with --slow
few = pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=n, marks=[pytest.mark.slow] if i % 20 else [])
        for i, (p, n) in enumerate(zip(SPECS, NAMES, strict=True))
    ],
)


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def decoded(program: Program) -> Program | None:
    try:
        return Decode()(program).program
    except TfcError as error:
        (found,) = error.diagnostics
        assert found.code == "E816" and "cannot be decoded token by token: " in found.message
        return None


@spec
def test_the_form_is_a_program_or_refused_in_words(path: Path):
    form = decoded(front(path).program)
    if form is not None:
        verify(form)
        assert parse(show(form)) == form


def test_forty_systems_can_be_decoded():
    """Most others are encoders, or of images."""
    assert sum(decoded(front(p).program) is not None for p in SPECS) >= 40


def arrays(types: Any, seed: int, scale: float = 1.0) -> dict[str, Any]:
    rng, made = np.random.default_rng(seed), dict[str, Any]()
    for name, kind in types:
        n = kind.ints
        made[name] = rng.integers(0, 8, n) if kind.dtype is DType.I32 else scale * rng.standard_normal(n)
        made[name] = rng.integers(0, 2, n).astype(bool) if kind.dtype is DType.BOOL else made[name]
    return made


@few
def test_two_ragged_calls_are_one(path: Path):
    head = read_head(path)
    program = front(path, head.sets).program
    form = decoded(program)
    if form is None:
        return
    tokens = tokens_of(program)
    assert tokens is not None
    batch, time = (str(n) for n in tokens.type.shape[:2])
    total = head.lengths[time]
    sizes = {**{name: 3 for name in "MNSU"}, **head.lengths, batch: 2}
    whole = program.bind({**sizes, time: total})
    params = {k: jnp.asarray(x) for k, x in arrays([(s.path, s.type) for s in whole.stored()], 0, 0.5).items()}
    given = arrays([(i.value.name, i.value.type) for i in whole.inputs], 1)
    want = np.asarray(evaluate(whole, params, {k: jnp.asarray(x) for k, x in given.items()}, jnp.float64)[0])
    slots = {str(n) for v in kept(form) for n in v.type.shape if isinstance(n, Dim)} - {batch}
    cut = (total + 1) // 2
    length, caches = np.zeros(2, int), None
    for counts in (np.array([cut, cut - 1]), np.array([total - cut, total - cut])):
        new = int(counts.max())
        bound = form.bind({**sizes, time: new, **dict.fromkeys(slots, total)})
        if caches is None:
            caches = {v.name: jnp.zeros(v.type.ints, DTYPES[v.type.dtype]) for v in kept(bound)}
        at = np.minimum(length[:, None] + np.arange(new), total - 1)
        timed = {i.value.name for i in program.inputs if any(str(n) == time for n in i.value.type.shape)}
        part = {k: np.stack([x[b, at[b]] for b in range(2)]) if k in timed else x for k, x in given.items()}
        taken = {**part, LENGTH: length, COUNT: counts, **caches}
        y, *after = evaluate(bound, params, {k: jnp.asarray(x) for k, x in taken.items()}, jnp.float64)
        for b in range(2):
            own = slice(length[b], length[b] + counts[b])
            np.testing.assert_allclose(np.asarray(y)[b, : counts[b]], want[b, own], rtol=1e-7, atol=1e-7)
        length, caches = length + counts, dict(zip(caches, after, strict=True))
