"""Rounding to formats: worked values, the grids themselves, error bounds, gradients, and the jnp form's agreement."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tfc.backends.emit import emit
from tfc.backends.kernel import Target
from tfc.backends.reference.formats import ROUNDINGS
from tfc.backends.reference.program import evaluate
from tfc.backends.table import named
from tfc.backends.weights import rounding
from tfc.backends.xla.formats import FORMS
from tfc.ir.formats import FORMATS, Format
from tfc.ir.ops import Rounded
from tfc.ir.program import Eqn, Program, Value
from tfc.ir.text import parse
from tfc.ir.types import DType, TensorType

CPU = Target(name="cpu", platform="cpu")
INF = float("inf")


def made(name: str, **given: Any) -> Format:
    """The format with its defaults filled in."""
    settings = {k: given.get(k, v) for k, v in FORMATS[name].settings.items()}
    return Format(name, tuple(settings.items()))


EVERY = [
    made("int8"), made("int8", per="row", symmetric=False), made("int8", group=4), made("int8", outliers=2.0),
    made("int8", per="tensor", symmetric=False, outliers=2.0), made("int8", group=5, symmetric=False, outliers=2.0),
    made("int4"), made("int4", group=4), made("int4", group=0, per="row", symmetric=False),
    made("fp8"), made("fp8", variant="e5m2", per="row"), made("fp8", per="column"),
    made("mx"), *(made("mx", variant=v, group=4) for v in ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "int8")),
    made("ternary"), made("ternary", per="row", threshold=1.0),
    made("binary"), made("binary", centered=False, per="column"),
    made("nm", n=2, m=4), made("nm", n=1, m=3), made("block_sparse", size=2, density=0.5),
    made("block_sparse", size=3, density=0.0),
]  # fmt: skip
every = pytest.mark.parametrize("format", EVERY, ids=str)


@cache
def compiled(name: str, format: Format) -> Any:
    def call(x: jax.Array) -> jax.Array:
        value = Value("x", TensorType(x.shape, DType.F32 if x.dtype == jnp.float32 else DType.BF16))
        kernel = named(Rounded, name)
        assert kernel is not None
        (out,) = kernel.build(Eqn((value,), Rounded(format=format), (value,)), CPU)(x)
        assert out.dtype == x.dtype
        return out

    return jax.jit(call)


def reference(format: Format, x: Any) -> jax.Array:
    return compiled("reference", format)(jnp.asarray(x))


def fast(format: Format, x: Any) -> jax.Array:
    return compiled("xla", format)(jnp.asarray(x))


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Of very different sizes, some zero, some equal."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-4, 3, shape)
    x[rng.uniform(size=shape) < 0.1] = 0.0
    x[..., 1] = x[..., 0]
    return x.astype(np.float32)


def test_every_format_that_rounds_has_a_definition():
    rounding = {f.name for f in FORMATS.values() if f.rounds}
    assert ROUNDINGS.keys() == FORMS.keys() == rounding
    assert {f.name for f in EVERY} == rounding


@every
@pytest.mark.parametrize("shape", [(2, 3, 7), (6,)])
def test_the_fast_form_gives_the_same_numbers(format: Format, shape: tuple[int, ...]):
    """Not nearly: codes are codes. Scales are float32 quotients, that is all that may differ."""
    pulled = np.random.default_rng(9).standard_normal(shape).astype(np.float32)

    @jax.jit
    def both(x: jax.Array) -> Any:
        forms = [jax.vjp(partial(f, format), x) for f in (fast, reference)]
        return [(out, pull(jnp.asarray(pulled))[0]) for out, pull in forms]

    for seed in range(3):
        (ours, slope), (true, wanted) = both(numbers(*shape, seed=seed))
        np.testing.assert_allclose(ours, true, rtol=3e-7, atol=1e-30)
        np.testing.assert_array_equal(slope, wanted)


@every
def test_zeros_stay_zeros_and_bfloat16_stays_what_it_is(format: Format):
    assert not np.any(reference(format, np.zeros((4, 8), np.float32)))
    assert not np.any(fast(format, np.zeros((4, 8), np.float32)))
    x = jnp.asarray(numbers(4, 8)).astype(jnp.bfloat16)
    assert fast(format, x).dtype == jnp.bfloat16


@pytest.mark.parametrize("format", [f for f in EVERY if f.name not in ("ternary", "binary")], ids=str)
def test_rounding_twice_changes_nothing(format: Format):
    """Values of a format are its values, where the range is found again: means (ternary, binary) are not."""
    x = reference(format, numbers(4, 8))
    np.testing.assert_allclose(reference(format, x), x, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("format", [f for f in EVERY if dict(f.settings).get("outliers", INF) == INF], ids=str)
def test_scaling_by_a_power_of_two_scales_the_result(format: Format):
    """But of outliers, which are told by their size."""
    x = numbers(4, 8)
    np.testing.assert_array_equal(reference(format, 8 * x), 8 * reference(format, x))


@every
def test_gradients_pass(format: Format):
    """Everywhere but where a microscaled block saturates."""
    x = jnp.asarray(numbers(4, 8))
    slope = jax.grad(lambda x: jnp.sum(reference(format, x)))(x)
    if format.name != "mx":
        np.testing.assert_array_equal(slope, 1.0)
        return
    out = reference(format, x)
    assert set(np.unique(slope)) <= {0.0, 1.0}
    assert np.all(slope[np.abs(x) <= np.abs(out)] == 1)
    assert np.all(np.abs(x)[slope == 0] > np.abs(out)[slope == 0])


def test_symmetric_integers():
    """By hand: the largest is 12.7, so steps of 0.1 in 8 bits; halves go to the even code."""
    x = np.array([[12.7, 0.26, -0.31, 0.0], [1.0, 0.3, -1.0, 0.5]], np.float32)
    out = reference(made("int8", per="row"), x)
    np.testing.assert_allclose(out[0], [12.7, 0.3, -0.3, 0.0], rtol=1e-6)
    four = reference(made("int4", group=0, per="row"), np.array([[7.0, 0.5, 1.5, 2.5, -0.5]], np.float32))
    np.testing.assert_array_equal(four, [[7.0, 0.0, 2.0, 2.0, 0.0]])
    column = reference(made("int4", group=0), np.array([[7.0, 0.5], [0.5, 7.0]], np.float32))
    np.testing.assert_array_equal(column, [[7.0, 0.0], [0.0, 7.0]])


def test_asymmetric_integers():
    """15 steps from -1 to 6.5: of 0.5, and 0 is code 2."""
    x = np.array([[-1.0, 6.5, 0.3, 3.1]], np.float32)
    np.testing.assert_array_equal(
        reference(made("int4", group=0, per="row", symmetric=False), x), [[-1.0, 6.5, 0.5, 3.0]]
    )
    positive = reference(made("int4", group=0, per="row", symmetric=False), np.array([[15.0, 3.4]], np.float32))
    np.testing.assert_array_equal(positive, [[15.0, 3.0]])  # 0 belongs to the range


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_at_most_half_a_step_off(bits: int, symmetric: bool):
    x = numbers(16, 32)
    out = reference(made(f"int{bits}", group=8, symmetric=symmetric), x)
    groups = x.reshape(16, 4, 8)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    reach = np.maximum(-low, high)
    step = reach / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
    assert np.all(np.abs(np.asarray(out).reshape(groups.shape) - groups) <= step[..., None] * (0.5 + 1e-5))


def test_a_short_last_group_is_a_group():
    x = numbers(3, 7)
    out = reference(made("int4", group=4), x)
    np.testing.assert_array_equal(out[:, 4:], reference(made("int4", group=3), x[:, 4:]))


def test_outliers():
    """A channel that reaches the limit anywhere stays as it is, and does not widen the others' range (LLM.int8)."""
    x = numbers(5, 6)
    x[2, 3] = 100.0
    out = reference(made("int8", per="row", outliers=50.0), x)
    np.testing.assert_array_equal(out[:, 3], x[:, 3])
    rest = np.delete(x, 3, axis=1)
    np.testing.assert_array_equal(np.delete(out, 3, axis=1), reference(made("int8", per="row"), rest))
    np.testing.assert_array_equal(reference(made("int8", outliers=0.0), x), x)


GRIDS = {
    "e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip


def grid(variant: str) -> np.ndarray[Any, Any]:
    """Every finite number of a small float."""
    if variant == "int8":
        return np.arange(-127, 128, dtype=np.float32) / 64
    codes = np.arange(2 ** ml_dtypes.finfo(GRIDS[variant]).bits, dtype=np.uint8).view(GRIDS[variant])
    values = codes.astype(np.float32)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("variant", ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "int8"])
@pytest.mark.parametrize("form", [fast, reference])
def test_small_floats_go_to_the_nearest_of_their_grid(form: Any, variant: str):
    """Each number of the grid stays; halfway between two the even code wins; between, the nearest."""
    known = grid(variant)
    half = (known[1:] + known[:-1]) / 2
    near = np.concatenate([half, np.nextafter(half, np.float32(np.inf)), np.nextafter(half, np.float32(-np.inf))])
    top = known.max()
    block = np.concatenate([known, near, [top]]).astype(np.float32)  # the largest magnitude makes the scale 1
    out = np.asarray(form(made("mx", variant=variant, group=len(block)), block[None]))[0]
    np.testing.assert_array_equal(out[: len(known)], known)
    got = out[len(known) : -1]
    if variant != "int8":
        np.testing.assert_array_equal(got, near.astype(GRIDS[variant]).astype(np.float32))
    assert set(got) <= set(known)
    assert np.all(np.abs(got - near) <= np.min(np.abs(near[:, None] - known), axis=1))


@pytest.mark.parametrize("form", [fast, reference])
def test_fp8_scales_the_largest_to_the_largest(form: Any):
    """And casts as the types themselves do."""
    x = numbers(8, 16)
    for variant, kind in (("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)):
        scale = np.abs(x).max() / np.float32(ml_dtypes.finfo(kind).max)
        true = (x / scale).astype(kind).astype(np.float32) * scale
        np.testing.assert_allclose(form(made("fp8", variant=variant), x), true, rtol=1e-6)


def test_microscaling():
    """By hand: the largest, 7, is above 4 = 2^2 and below 8, so the block's scale is 1, and it saturates at 6."""
    x = np.array([[7.0, 0.3, 2.4, -5.0, 0.0, 0.25, 0.75, 1.2]], np.float32)
    np.testing.assert_array_equal(reference(made("mx", group=8), x), [[6.0, 0.5, 2.0, -4.0, 0.0, 0.0, 1.0, 1.0]])
    slope = jax.grad(lambda x: jnp.sum(reference(made("mx", group=8), x)))(jnp.asarray(x))
    np.testing.assert_array_equal(slope, [[0.0, 1, 1, 1, 1, 1, 1, 1]])
    other = x.copy()
    other[0, 4:] = [1000.0, 1.0, 1.0, 1.0]  # an outlier in another block of 4 changes nothing here
    np.testing.assert_array_equal(
        reference(made("mx", group=4), other)[:, :4], reference(made("mx", group=4), x)[:, :4]
    )
    assert np.all(np.isnan(reference(made("mx", group=4), np.array([[1.0, np.inf, 0.0, 1.0]], np.float32))))


@pytest.mark.parametrize("form", [fast, reference])
def test_ternary_and_binary(form: Any):
    x = np.array([[1.0, -2.0, 0.5, 0.1]], np.float32)  # the mean magnitude is 0.9: above 0.63 lie 1 and -2
    np.testing.assert_allclose(form(made("ternary"), x), [[1.5, -1.5, 0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(form(made("binary", centered=False), x), [[0.9, -0.9, 0.9, 0.9]], rtol=1e-6)
    np.testing.assert_allclose(form(made("binary"), x), [[0.9, -0.9, 0.9, 0.9]], rtol=1e-6)  # the mean is -0.1
    shifted = np.array([[3.0, 2.0, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(form(made("binary"), shifted), [[1.5, 1.5, -1.5, -1.5]], rtol=1e-6)
    np.testing.assert_allclose(form(made("binary", centered=False), np.array([[0.0, -2.0]], np.float32)), [[1.0, -1.0]])


@pytest.mark.parametrize("form", [fast, reference])
def test_n_of_m_and_blocks(form: Any):
    x = np.array([[1.0, -3.0, 2.0, 0.5, 1.0, 1.0, 1.0, 1.0]], np.float32)
    np.testing.assert_array_equal(form(made("nm", n=2, m=4), x), [[0.0, -3.0, 2.0, 0.0, 1.0, 1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(form(made("nm", n=4, m=4), x), x)
    square = np.array([[1.0, 1, 0, 2], [1, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]], np.float32)
    kept = np.where(np.array([[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2) > 0, square, 0)  # norms 2, 2, 0, 3
    np.testing.assert_array_equal(form(made("block_sparse", size=2, density=0.5), square), kept)
    np.testing.assert_array_equal(form(made("block_sparse", size=2, density=1.0), square), square)


WEIGHTS = """
program p(%x: f32[B, 4]) {{
  %w: f32[4, 3] = param w normal(1.0) as {format}
  %y: f32[B, 3] = linear %x, %w
  %z: f32[B, 3] = repeat(count=2, label=layer, carries=1) %y
    program layer(%i: int[], %x: f32[B, 3]) {{
      %w: f32[3, 3] = param layer.w normal(1.0) frozen as {format}
      %y: f32[B, 3] = linear %x, %w
      return %y
    }}
  return %z
}}"""


def weights(format: str) -> tuple[Program, dict[str, jax.Array], dict[str, jax.Array]]:
    params = {"w": jnp.asarray(numbers(4, 3)), "layer.w": jnp.asarray(numbers(2, 3, 3))}
    return parse(WEIGHTS.format(format=format)), params, {"x": jnp.asarray(numbers(5, 4, seed=4))}


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("format", ["int4(group=2)", "int8", "int8(per=tensor)", "nm(n=1, m=2)", "fp8", "binary"])
def test_weights_are_rounded_where_they_are_read(format: str, implementation: str):
    """Along their inputs, each turn of a loop by itself; gradients reach the ones that are trained."""
    program, params, inputs = weights(format)
    (kept,) = {p.format for p in program.params}
    assert kept is not None

    def rounded(w: Any) -> Any:
        """[K, O], groups along K."""
        flipped = {"column": "row", "row": "column"}
        settings = tuple((k, flipped.get(str(v), v) if k == "per" else v) for k, v in kept.settings)
        return reference(Format(kept.name, settings), jnp.asarray(w).T).T

    want = inputs["x"] @ rounded(params["w"])
    for turn in range(2):
        want = want @ rounded(params["layer.w"][turn])
    (got,) = emit(program, CPU, implementation)(params, inputs)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    bound = program.bind({"B": 5})
    np.testing.assert_allclose(evaluate(bound, params, inputs, jnp.float32)[0], want, rtol=1e-5, atol=1e-5)
    slopes = jax.grad(lambda p: jnp.sum(emit(program, CPU, implementation)(p, inputs)[0]))(params)
    assert np.any(slopes["w"]) and not np.any(slopes["layer.w"])


def test_columns_of_a_weight_have_scales_of_their_own():
    """A column scaled by 1000 leaves the codes of the others alone; so do inputs in another group."""
    program, params, _ = weights("int8")
    eqn = rounding(program.params[0])
    assert eqn is not None and eqn.op.format["per"] == "row"  # type: ignore[attr-defined]  # a Rounded
    scaled = params["w"].at[:, 1].mul(1000)
    for w in (params["w"], scaled):
        identity = {"x": jnp.eye(4)}
        one = parse(WEIGHTS[: WEIGHTS.index("  %z")].format(format="int8") + "  return %y\n}")
        (out,) = emit(one, CPU)({"w": w}, identity)
        assert np.all(np.abs(out - w) <= np.abs(w).max(0) / 127 * 0.51)
