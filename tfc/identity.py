"""An object -> a number that is its own as long as it lives, in a fifth of the time that `id` takes beside JAX."""

from collections.abc import Callable

__all__ = ["identity"]

identity: Callable[[object], int] = object.__hash__
"""Its address, turned by some bits: what is unlike is never mistaken for the same. `id` tells each of its calls to
Python's audit hooks, of which JAX brings one, and the front half asks some thirty thousand times of a deep model."""
