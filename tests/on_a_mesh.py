"""A model and eight devices of the host -> how far its results are from one device's, and what the devices exchange.

Runs in a process whose XLA has eight devices: see `tests/test_transformations.py`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import tfc

BATCH, LENGTH = 24, 12
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def exchanged(compiled: Any) -> list[tuple[str, tuple[int, ...]]]:
    """The collectives of a compiled program, each with the shape of what it gives."""
    found = re.findall(rf"= \w+\[([\d,]*)\]\S* ({'|'.join(COLLECTIVES)})(?:-start)?\(", compiled.as_text())
    return [(name, tuple(int(n) for n in shape.split(",") if n)) for shape, name in found]


def run(path: str, sets: dict[str, Any], explicit: bool, sharded: bool, packed: bool) -> dict[str, Any]:
    """The batch sharded over eight devices; or over four pairs, each `sharded` parameter within one."""
    assert jax.device_count() == 8
    model = tfc.compile(path, target="cpu", **sets)
    params: Any = model.init(jax.random.key(0))
    if packed:
        params = model.pack(params)
    tokens = np.random.default_rng(0).integers(0, int(sets["vocab"]), (BATCH, LENGTH)).astype(np.int32)
    document = np.repeat([[0] * 5 + [1] * 7], BATCH, 0).astype(np.int32)

    def loss(p: Any, tokens: Any) -> Any:
        return jnp.mean(jax.nn.logsumexp(model(p, tokens, document=document), axis=-1))

    want = np.asarray(model(params, tokens, document))
    slopes = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params, tokens))
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.make_mesh((4, 2) if sharded else (8, 1), ("data", "model"), axis_types=(kind, kind))

    def place(x: Any) -> Any:
        split = sharded and x.ndim and x.shape[-1] % 2 == 0
        spec = PartitionSpec(*[None] * (x.ndim - 1), "model") if split else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        placed = jax.tree.map(place, params)
        batch = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec("data")))
        got = model(placed, batch, document)
        step = jax.jit(jax.grad(loss))
        found = step(placed, batch)
        forward = jax.jit(lambda p, t: model(p, t, document)).lower(placed, batch).compile()
    return {
        "result": float(np.max(np.abs(np.asarray(got) - want))),
        "gradients": max(
            float(np.max(np.abs(np.asarray(a) - b)) / (np.max(np.abs(b)) + 1e-6))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(slopes), strict=True)
        ),
        "sharding": got.sharding.spec[0],
        "exchanged": exchanged(forward),
    }
