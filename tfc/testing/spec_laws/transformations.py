"""Laws of transformations: a mapped model is a loop over its calls; a jitted one gives the same, finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from tfc.params.apply import pack
from tfc.testing.spec_laws.rounding import FINEST, differs, noise
from tfc.testing.spec_laws.subject import Subject

__all__ = ["jitted", "mapped"]


def mapped(s: Subject) -> str | None:
    """jax.vmap over parameters and inputs."""
    f, (params, given) = s.emitted(s.wide), s.arrays(s.wide, s.wide.map)
    other = {name: x if i % 2 else x * 0.9 for i, (name, x) in enumerate(params.items())}
    turned = {name: jnp.roll(x, 1, 0) if x.ndim else x for name, x in given.items()}
    both = [jax.tree.map(lambda *xs: jnp.stack(xs), *pair) for pair in ((params, other), (given, turned))]
    every = s.called(jax.vmap(lambda p, x: f(p, x)), *both)
    loop = [s.run(s.wide), s.run(s.wide, turned, other)]
    for n, results in enumerate(loop):
        found = [np.asarray(x[n]) for x in every]
        right = [np.asarray(x).astype(np.float64) for x in results]
        if said := differs(found, right, noise(s), FINEST):
            return f"element {n} of the mapped axis: {said}"
    return None


def jitted(s: Subject) -> str | None:
    """In the precision declared: jit gives what runs op by op, to rounding; the gradients of its sum are finite."""
    form = s.wide
    f, (params, given) = s.emitted(form), s.arrays(form)
    real = [i for i, x in enumerate(s.values) if x.dtype.kind == "f"]

    def total(p: dict[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        results = f(pack(form.map, p), given)
        return sum((jnp.sum(results[i]) for i in real), jnp.float64(0)), tuple(results)

    (_, results), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    if said := differs(results, s.values, noise(s), FINEST):
        return said
    for path, g in gradients.items():
        if not bool(jnp.all(jnp.isfinite(g))):
            return f"the gradient of {path} is not finite"
    return None
