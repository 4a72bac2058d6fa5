"""Several kernels of one operation turned into one of one name: the first that does not refuse serves."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from tfc.backends.kernel import Kernel, Target
from tfc.backends.refusal import Reason
from tfc.ir.program import Eqn

__all__ = ["either"]


@dataclass(frozen=True)
class First:
    """The kernels in the order asked; of a class, so that kernels can go to another process."""

    kernels: tuple[Kernel, ...]

    def serving(self, eqn: Eqn, target: Target) -> Kernel | None:
        return next((k for k in self.kernels if k.refuse(eqn, target) is None), None)


@dataclass(frozen=True)
class Refusal(First):
    """What the last one says, the most general, where all refuse."""

    def __call__(self, eqn: Eqn, target: Target) -> str | None:
        return None if self.serving(eqn, target) else self.kernels[-1].refuse(eqn, target)


@dataclass(frozen=True)
class Built(First):
    def __call__(self, eqn: Eqn, target: Target) -> Callable[..., tuple[jax.Array, ...]]:
        return (self.serving(eqn, target) or self.kernels[-1]).build(eqn, target)


@dataclass(frozen=True)
class Notes(First):
    def __call__(self, eqn: Eqn, target: Target) -> dict[str, Any]:
        kernel = self.serving(eqn, target)
        return {} if kernel is None or kernel.notes is None else kernel.notes(eqn, target)


@dataclass(frozen=True)
class Reasons(First):
    """All that the last one says, where all refuse."""

    def __call__(self, eqn: Eqn, target: Target) -> tuple[Reason, ...]:
        return () if self.serving(eqn, target) else self.kernels[-1].against(eqn, target)


def either(*kernels: Kernel) -> Kernel:
    """The kernels as one, with what the last one says of gradients; all of one name, operation and late operands.

    Raises ValueError for kernels that differ there: whoever asks for one by its name must not get less.
    """
    last = kernels[-1]
    for kernel in kernels:
        one, other = ((k.name, k.op, k.late, k.differentiable) for k in (kernel, last))
        if one != other:
            raise ValueError(f"{one} and {other} are no kernels of one name, operation, late operands and derivatives")
    return replace(last, refuse=Refusal(kernels), reasons=Reasons(kernels), build=Built(kernels), notes=Notes(kernels))
