"""How parameters start: what each kind draws, turn by turn, the same for the same key."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.ir.formats import Format
from tfc.ir.program import Init, Stored
from tfc.ir.types import DType, TensorType
from tfc.params.initial import SMALL, TOGETHER, initial, start

KEY = jax.random.key(0)


def stored(init: Init, *shape: int, turns: int = 0, dtype: DType = DType.F32) -> Stored:
    repeats = (("layer", turns),) if turns else ()
    return Stored("layer.w", TensorType((turns, *shape) if turns else shape, dtype), init, True, repeats)


def test_uniform():
    x = start(stored(Init("uniform", -0.5, high=2.0), 50, 40), KEY)
    assert -0.5 <= x.min() < -0.49 and 1.99 < x.max() < 2.0 and abs(x.mean() - 0.75) < 0.05


@pytest.mark.parametrize("rows, width", [(4, 4), (3, 5), (10, 4), (1, 3)])
def test_orthogonal(rows: int, width: int):
    """Blocks of as many rows as a row is long; the last may be shorter. Each turn draws its own."""
    w = start(stored(Init("orthogonal", 1.0), rows, width, turns=2), KEY)
    assert w.shape == (2, rows, width) and np.any(w[0] != w[1])
    for turn in w:
        for at in range(0, rows, width):
            block = turn[at : at + width]
            np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-5)
    doubled = start(stored(Init("orthogonal", 2.0), rows, width, turns=2), KEY)
    np.testing.assert_allclose(doubled, 2 * w, rtol=1e-6)


def test_orthogonal_rows_have_no_preferred_direction():
    """Without the signs of R, the first entry of Q would always be negative."""
    w = start(stored(Init("orthogonal", 1.0), 3, 3, turns=400), KEY)
    np.testing.assert_allclose(jnp.mean(w, axis=0), 0, atol=0.12)
    np.testing.assert_allclose(jnp.mean(w**2, axis=0), 1 / 3, atol=0.06)


def test_a_format_does_not_change_the_start():
    init = Init("normal", 0.02)
    plain = stored(init, 8, 8)
    kept = Stored(plain.path, plain.type, init, True, (), Format("binary", (("centered", True), ("per", "tensor"))))
    np.testing.assert_array_equal(start(kept, KEY), start(plain, KEY))


def test_each_path_draws_for_itself():
    a, b = (Stored(path, TensorType((4,), DType.F32), Init("normal", 1.0), True, ()) for path in ("a", "b"))
    alone, both = initial([a], KEY), initial([b, a], KEY)
    np.testing.assert_array_equal(alone["a"], both["a"])
    assert np.any(both["a"] != both["b"])


@pytest.mark.parametrize("kind", ["normal", "uniform", "orthogonal", "glorot"])
def test_what_is_drawn_is_rounded_to_its_type(kind: str):
    init = Init(kind, 0.5, high=1.0 if kind == "uniform" else 0.0)
    x = start(stored(init, 4, 6, dtype=DType.BF16), KEY)
    assert x.dtype == jnp.bfloat16 and np.all(np.isfinite(x.astype(jnp.float32)))


@pytest.mark.parametrize(
    "kind, dtype, key",
    [
        ("normal", DType.F32, KEY),
        ("normal", DType.BF16, jax.random.key(1, impl="rbg")),
        ("uniform", DType.BF16, jax.random.PRNGKey(2)),
        ("orthogonal", DType.F32, KEY),
        ("glorot", DType.F32, KEY),
        ("constant", DType.F32, KEY),
    ],
    ids=["normal", "rbg", "uniform", "orthogonal", "glorot", "constant"],
)
def test_drawn_together_as_drawn_alone(kind: str, dtype: DType, key: jax.Array):
    """To the bit: one, several and more than one call draws, in arrays of their own, among others of their type."""
    type, init = TensorType((5, 3), dtype), Init(kind, 0.5, high=1.0 if kind == "uniform" else 0.0)
    params = [Stored(f"p{n}.w", type, init, True, ()) for n in range(TOGETHER + 3)]
    other = Stored("other", TensorType((SMALL + 1, 2), dtype), init, True, ())
    made = initial([*params[:4], other, *params[4:]], key)
    assert list(made) == ["p0.w", "p1.w", "p2.w", "p3.w", "other", *[p.path for p in params[4:]]]
    assert len({x.unsafe_buffer_pointer() for x in made.values()}) == len(made)
    alone = jax.jit(lambda key, code: start(params[0], jax.random.fold_in(key, code)))
    for p in params:
        want = alone(key, np.uint32(zlib.crc32(p.path.encode())))
        assert made[p.path].dtype == want.dtype
        np.testing.assert_array_equal(made[p.path], want)
        np.testing.assert_array_equal(made[p.path], initial([p], key)[p.path])
