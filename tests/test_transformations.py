"""JAX's transformations of a compiled model: each gives what the plain call gives, or refuses in words."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import tfc
from tfc.backends import values as looking
from tfc.backends.values import Values
from tfc.diagnostics import TfcError
from tfc.model import Model, Packed
from tfc.testing.worker import Worker

HERE = Path(__file__).parent
SPEC = str(HERE.parent / "examples" / "tilted.tfm")
SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "vocab": 32, "compute": "f32"}
TOKENS = np.random.default_rng(0).integers(0, 32, (3, 7)).astype(np.int32)
DOCUMENT = np.array([[0, 0, 0, 1, 1, 1, 1]] * 3, np.int32)
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def model() -> Model:
    return tfc.compile(SPEC, target="cpu", **SIZES)


@pytest.fixture(scope="module")
def params(model: Model) -> dict[str, Any]:
    return model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def logits(model: Model, params: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(model(params, TOKENS, DOCUMENT))


def loss_of(model: Model, params: Any, tokens: Any = TOKENS) -> jax.Array:
    logits = model(params, tokens, document=DOCUMENT[: len(tokens)])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], jnp.asarray(tokens)[:, 1:]))


def test_jit_shapes_and_jaxprs(model: Model, params: dict[str, Any], logits: Any):
    """A model within a jit, its shapes without computing, its text; inputs by position and by name."""
    close(jax.jit(model)(params, TOKENS, DOCUMENT), logits)
    close(jax.jit(lambda p, **given: model(p, **given))(params, tokens=TOKENS, document=DOCUMENT), logits)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    found = jax.eval_shape(model, shapes, jax.ShapeDtypeStruct((3, 7), jnp.int32))
    assert (found.shape, found.dtype) == (logits.shape, logits.dtype)
    text = str(jax.make_jaxpr(model)(params, TOKENS))
    assert "scan" in text and "dot_general" in text and "callback" not in text


def test_gradients_are_those_of_the_program_written_out(model: Model, params: dict[str, Any]):
    """value_and_grad in any nesting with jit, packed or not, against a difference quotient along a direction."""
    value, slopes = jax.value_and_grad(partial(loss_of, model))(params)
    jitted, same = jax.jit(jax.value_and_grad(partial(loss_of, model)))(params)
    close(value, jitted)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), slopes, same)
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    leaves, structure = jax.tree.flatten(params)
    along = structure.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])

    def at(step: float) -> float:
        return float(loss_of(model, jax.tree.map(lambda p, d: p + step * d, params, along)))

    slope = sum(float(jnp.vdot(a, b)) for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(along), strict=True))
    assert slope == pytest.approx((at(1e-3) - at(-1e-3)) / 2e-3, rel=2e-2)
    _, forward = jax.jvp(partial(loss_of, model), (params,), (along,))
    assert slope == pytest.approx(float(forward), rel=1e-3)


def test_maps_over_inputs_and_over_parameters(model: Model, params: dict[str, Any], logits: Any):
    close(jax.vmap(lambda t, d: model(params, t[None], d[None])[0])(TOKENS, DOCUMENT), logits)
    both = [params, model.init(jax.random.key(5))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *both)
    many = jax.vmap(lambda p: model(p, TOKENS, DOCUMENT))(stacked)
    one = jax.vmap(lambda p, t: model(p, t[None], DOCUMENT[:1])[0])(stacked, TOKENS[:2])
    close(many[0], logits)
    close(many[1], model(both[1], TOKENS, DOCUMENT))
    close(one, [many[0, 0], many[1, 1]])
    slopes = jax.vmap(jax.grad(partial(loss_of, model)))(stacked)
    wanted = jax.grad(partial(loss_of, model))(both[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-6), slopes, wanted)


def test_loops_over_a_model_and_recomputing_it(model: Model, params: dict[str, Any], logits: Any):
    """`lax.scan` over batches and `jax.checkpoint` around a call."""
    _, rows = jax.lax.scan(lambda c, td: (c, model(params, td[0][None], td[1][None])[0]), 0, (TOKENS, DOCUMENT))
    close(rows, logits)
    plain = jax.grad(partial(loss_of, model))(params)
    again = jax.grad(jax.checkpoint(partial(loss_of, model)))(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), again, plain)

    def kept(f: Any) -> int:
        return sum(x.size for x in jax.tree.leaves(jax.vjp(f, params)[1]))

    assert kept(jax.checkpoint(partial(loss_of, model))) < kept(partial(loss_of, model))


@pytest.mark.parametrize("packed", [False, True])
def test_an_export_is_loaded_and_called(model: Model, params: dict[str, Any], logits: Any, packed: bool):
    given: Any = model.pack(params) if packed else params
    written = export.export(jax.jit(model))(given, TOKENS, DOCUMENT).serialize(vjp_order=1)
    loaded = export.deserialize(written)
    close(loaded.call(given, TOKENS, DOCUMENT), logits)
    slopes = jax.grad(lambda p: jnp.sum(jnp.sin(loaded.call(p, TOKENS, DOCUMENT))))(given)
    wanted = jax.grad(lambda p: jnp.sum(jnp.sin(model(p, TOKENS, DOCUMENT))))(given)
    assert jax.tree.structure(slopes) == jax.tree.structure(given)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), slopes, wanted)


@pytest.mark.parametrize("packed", [False, True])
def test_an_optimizer_steps_and_donates(model: Model, params: dict[str, Any], packed: bool):
    """Parameters and `Packed` ones are pytrees to optax, to jit and to donation: what was given is gone."""
    given: Any = jax.tree.map(jnp.copy, model.pack(params) if packed else params)
    adam = optax.adam(1e-2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(p: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, slopes = jax.value_and_grad(partial(loss_of, model))(p)
        updates, state = adam.update(slopes, state, p)
        return optax.apply_updates(p, updates), state, value

    first, state, losses = given, adam.init(given), []
    for _ in range(5):
        given, state, value = step(given, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1 and isinstance(given, Packed) == packed
    assert all(x.is_deleted() for x in jax.tree.leaves(first))
    assert jax.tree.structure(given) == jax.tree.structure(first)


def test_packed_parameters_are_a_pytree_with_paths(model: Model, params: dict[str, Any]):
    packed = model.pack(params)
    doubled = jax.tree.map(lambda x: 2 * x, packed)
    assert isinstance(doubled, Packed) and doubled.held == packed.held and list(doubled.arrays) == list(packed.arrays)
    stacked = jax.vmap(model.pack)(jax.tree.map(lambda x: x[None], params))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), stacked, packed)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(packed)]
    assert len(set(paths)) == len(packed.arrays) and any("words.weight" in path for path in paths)


# --- kernels without a forward derivative: shapes only, nothing is interpreted


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(Model, "_present", lambda self: None)  # traced here, run nowhere
    sizes = {**SIZES, "width": 128, "compute": "bf16"}
    yield tfc.compile(SPEC, target="h200", implementation="pallas_gpu", **sizes)


def test_kernels_are_traced_by_every_transformation(kernels: Model):
    params = jax.eval_shape(kernels.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)

    def total(p: Any, t: Any) -> jax.Array:
        return jnp.sum(kernels(p, t).astype(jnp.float32))

    rows = [line.row for line in kernels.explain(B=2, T=128).lines if line.row.op == "attention"]
    assert [row.kernel for row in rows] == ["pallas_gpu"]
    assert "custom_vjp_call" in str(jax.make_jaxpr(kernels)(params, tokens))
    slopes = jax.eval_shape(jax.grad(jax.checkpoint(total)), params, tokens)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), slopes) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    twice = jax.grad(lambda p: jnp.sum(jax.grad(total)(p, jnp.zeros((2, 128), jnp.int32))["last"]["scale"] ** 2))
    assert jax.tree.structure(jax.eval_shape(twice, params)) == jax.tree.structure(params)
    mapped = jax.eval_shape(jax.vmap(lambda t, p: kernels(p, t[None]), (0, None)), tokens, params)
    assert mapped.shape == (2, 1, 128, 32)

    def loop(p: Any, t: Any) -> jax.Array:
        return jax.lax.scan(lambda c, x: (c + total(p, x[None]), None), jnp.zeros(()), t)[0]

    assert jax.eval_shape(loop, params, tokens).shape == ()


FORWARD: dict[str, Any] = {
    "jacfwd": jax.jacfwd,
    "hessian": jax.hessian,
    "jvp": lambda f: lambda p, t: jax.jvp(lambda p: f(p, t), (p,), (p,)),
    "linearize": lambda f: lambda p, t: jax.linearize(lambda p: f(p, t), p)[1](p),
    "jvp of a jit": lambda f: lambda p, t: jax.jvp(jax.jit(lambda p: f(p, t)), (p,), (p,)),
}


@pytest.mark.parametrize("forward", FORWARD)
def test_forward_mode_through_kernels_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, forward: str):
    """At the latest when it is compiled; the same of the xla form compiles."""
    monkeypatch.setattr(Model, "_present", lambda self: None)  # nothing is interpreted

    def lowered(implementation: str) -> str:
        sizes = {**SIZES, "layers": 1, "width": 32, "compute": "bf16"}
        model = tfc.compile(SPEC, target="h200", interpret=True, implementation=implementation, **sizes)
        params = jax.eval_shape(model.init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)
        loss = FORWARD[forward](lambda p, t: jnp.sum(model(p, t).astype(jnp.float32)))
        return jax.jit(loss).lower(params, tokens).as_text()

    assert "dot_general" in lowered("xla")
    with pytest.raises(TfcError, match=r"this attention of .*tilted.tfm:18 runs on pallas_gpu") as caught:
        lowered("pallas_gpu")
    assert [d.code for d in caught.value.diagnostics] == ["E818"]
    assert "jax.grad" in caught.value.diagnostics[0].help and "implementation='xla'" in caught.value.diagnostics[0].help


# --- many devices


@pytest.fixture(scope="module")
def eight() -> Iterator[Worker]:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    with Worker(environment={"PYTHONPATH": str(HERE), **flags}) as worker:
        yield worker


@pytest.mark.parametrize(
    "explicit, sharded, packed",
    [
        (True, False, True),
        pytest.param(False, True, False, marks=pytest.mark.slow),
        pytest.param(False, False, False, marks=pytest.mark.slow),
        pytest.param(True, True, False, marks=pytest.mark.slow),
    ],
)
def test_a_batch_sharded_over_a_mesh(eight: Worker, explicit: bool, sharded: bool, packed: bool):
    """The results of one device; the result is sharded as the batch is, and no device sees another's rows.

    With parameters on each device nothing at all is exchanged. With sharded ones partial results are, of a device's own
    rows: nothing that is exchanged has as many rows as the batch.
    """
    found = eight.call("on_a_mesh:run", SPEC, SIZES, explicit, sharded, packed, limit=300)
    assert found["result"] < 2e-5 and found["gradients"] < 1e-3
    assert found["sharding"] == "data"
    if sharded:
        assert found["exchanged"] and all(24 not in shape for _, shape in found["exchanged"]), found["exchanged"]
    else:
        assert not found["exchanged"]


# --- what a call costs beside its jit


def test_values_of_an_array_are_looked_at_once(model: Model, monkeypatch: pytest.MonkeyPatch):
    """A JAX array is brought to the host when first given; what lies there is looked at each time."""
    values, copies, found = Values(model.lowered), list[Any](), looking._found

    def look(name: str, x: Any, *limits: int) -> str:
        copies.append(x)
        return found(name, x, *limits)

    monkeypatch.setattr(looking, "_found", look)
    tokens = jnp.asarray(TOKENS)
    for _ in range(3):
        values.check({"tokens": tokens})
    assert len(copies) == 1 and len(values._fit) == 1
    values.check({"tokens": jnp.asarray(TOKENS)})
    assert len(copies) == 2
    del tokens
    copies.clear()
    assert not values._fit  # nothing is kept of arrays that are gone
    host = TOKENS.copy()
    values.check({"tokens": host})
    host[0, 0] = 99
    with pytest.raises(TfcError, match="is 99"):
        values.check({"tokens": host})
    bad = jnp.asarray(host)
    for _ in range(2):
        with pytest.raises(TfcError, match="is 99"):
            values.check({"tokens": bad})
