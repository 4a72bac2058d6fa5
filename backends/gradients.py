"""A kernel and an equation turned into a function with derivatives: the kernel's own, or those of another form."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.kernel import Gradient, Kernel, Late, Target
from tfc.backends.reverse_only import reverse_only
from tfc.ir.program import Eqn

__all__ = ["differentiable", "gradient_note", "own_gradient"]

Array = jax.Array
Call = Callable[..., tuple[Array, ...]]


def own_gradient(kernel: Kernel, eqn: Eqn, target: Target) -> Gradient | None:
    """The kernel's gradient, where it has one that does not refuse."""
    found = kernel.gradient
    return None if found is None or found.refuse(eqn, target) is not None else found


def gradient_note(kernel: Kernel, eqn: Eqn, target: Target) -> str | None:
    """Where gradients of an equation come from, in words; None where JAX differentiates the kernel itself."""
    if kernel.differentiable:
        return None
    if kernel.gradient is None:
        return "from the xla form"
    reason = kernel.gradient.refuse(eqn, target)
    return kernel.gradient.notes(eqn, target) if reason is None else f"from the xla form: {reason}"


def differentiable(kernel: Kernel, eqn: Eqn, target: Target, xla: Kernel) -> Call:
    """The kernel's function with derivatives.

    A gradient of its own keeps operands and results for the backward pass; without one the xla form is computed again
    there, and operands alone are kept. A gradient of a gradient is always the xla form's; forward mode is refused
    (E818). Under vmap each function runs once for each element of the mapped axis: a kernel's grid is written for the
    axes that it knows.
    """
    forward = kernel.build(eqn, target)
    if kernel.differentiable:
        return forward
    form = xla.build(eqn, target)
    mapped = jax.custom_batching.sequential_vmap(forward)
    own = own_gradient(kernel, eqn, target)
    pull = _pulled(form) if own is None else _own(own.build(eqn, target), form)

    @jax.custom_vjp
    def call(*operands: Any) -> tuple[Array, ...]:
        return tuple(mapped(*operands))

    def keep(*operands: Any) -> tuple[tuple[Array, ...], Any]:
        results = call(*operands)  # itself, so that a gradient of a gradient has a rule, too
        return results, (operands, None if own is None else results)

    def back(kept: Any, cotangents: tuple[Array, ...]) -> tuple[Any, ...]:
        operands, results = kept
        return pull(operands, results, cotangents)

    call.defvjp(keep, back)
    place = f" of {eqn.span.source.name}:{eqn.span.line}" if eqn.span else ""
    what = f"this {eqn.op.name}{place} runs on {kernel.name}"
    return lambda *operands: call(*reverse_only(operands, what))


def _pulled(form: Call) -> Callable[..., tuple[Any, ...]]:
    """The derivative of the form, which computes its results again."""
    return lambda operands, _, cotangents: tuple(jax.vjp(form, *operands)[1](cotangents))


def _own(gradient: Callable[..., tuple[Array | None, ...]], form: Call) -> Callable[..., tuple[Any, ...]]:
    """The kernel's gradient, whose own derivative is the form's; operands put off are made first."""

    def real(operands: tuple[Array, ...], results: tuple[Array, ...], cotangents: tuple[Array, ...]) -> list[Array]:
        return [x for x in gradient(operands, results, cotangents) if x is not None]

    mapped = jax.custom_batching.sequential_vmap(real)

    @jax.custom_vjp
    def call(operands: tuple[Array, ...], results: tuple[Array, ...], cotangents: tuple[Array, ...]) -> list[Array]:
        found: list[Array] = mapped(operands, results, cotangents)
        return found

    def keep(*given: Any) -> tuple[list[Array], Any]:
        return call(*given), given

    def back(given: Any, changes: list[Array]) -> tuple[Any, ...]:
        operands, results, cotangents = given

        def plain(operands: tuple[Array, ...], cotangents: tuple[Array, ...]) -> list[Array]:
            found = jax.vjp(form, *operands)[1](cotangents)
            return [x for x, y in zip(found, operands, strict=True) if _real(y)]

        of_operands, of_cotangents = jax.vjp(plain, operands, cotangents)[1](changes)
        return of_operands, jax.tree.map(jnp.zeros_like, results), of_cotangents

    call.defvjp(keep, back)

    def pull(operands: tuple[Any, ...], results: tuple[Array, ...], cotangents: tuple[Array, ...]) -> tuple[Any, ...]:
        made, unmade = jax.vjp(lambda *late: tuple(x.array() if isinstance(x, Late) else x for x in late), *operands)
        found = iter(call(made, results, cotangents))
        whole = tuple(next(found) if _real(x) else np.zeros(x.shape, jax.dtypes.float0) for x in made)
        return tuple(unmade(whole))

    return pull


def _real(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))
