"""Laws of kernels: what the target runs gives what the definitions give, in float64 and in the precision declared."""

import jax

from tfc.testing.spec_laws.rounding import (
    FINEST,
    ROUNDOFF,
    differs,
    gradient_noise,
    gradients_differ,
    jumps,
    noise,
)
from tfc.testing.spec_laws.subject import Inapplicable, Subject

__all__ = ["declared", "declared_gradients", "gradients", "values"]


def values(s: Subject) -> str | None:
    """In float64, where a difference is a fault and no rounding."""
    return differs(s.run(s.wide), s.values, noise(s), FINEST)


def gradients(s: Subject) -> str | None:
    """The same of gradients, by parameters and by real inputs."""
    return gradients_differ(s, s.kernel_gradients(s.wide), gradient_noise(s), FINEST)


def _smooth(s: Subject) -> None:
    if jumps(s.narrow.lowered):
        raise Inapplicable("choices or rounded formats: a rounding error may change everything")


def declared(s: Subject) -> str | None:
    """In the precision that the spec asks for, within a small multiple of what rounding does to the definitions."""
    _smooth(s)
    with jax.enable_x64(False):
        found = s.run(s.narrow)
    return differs(found, s.values, noise(s, _coarsest(s)), _coarsest(s))


def declared_gradients(s: Subject) -> str | None:
    """The same of gradients, which are finite and have the parameters' element types."""
    _smooth(s)
    with jax.enable_x64(False):
        found = s.kernel_gradients(s.narrow)
        params, _ = s.arrays(s.narrow)
    for path, x in params.items():
        if found[path].dtype != x.dtype:
            return f"the gradient of {path} is {found[path].dtype}, the parameter {x.dtype}"
    return gradients_differ(s, found, gradient_noise(s, _coarsest(s)), _coarsest(s))


def _coarsest(s: Subject) -> float:
    asked = s.narrow.lowered.precision
    return max(ROUNDOFF[d] for d in (asked.params, asked.compute, asked.reduce))
