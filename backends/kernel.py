"""What a kernel is: the operation it serves, the reasons it may refuse, the function it builds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tfc.backends.refusal import Reason
from tfc.ir.ops import Op
from tfc.ir.program import Eqn
from tfc.ir.types import DType

__all__ = ["DTYPES", "Build", "Gradient", "Kernel", "Late", "Reasons", "Refuse", "Target"]

DTYPES: Mapping[DType, Any] = {
    DType.BOOL: jnp.bool_,
    DType.I32: jnp.int32,
    DType.BF16: jnp.bfloat16,
    DType.F16: jnp.float16,
    DType.F32: jnp.float32,
    DType.F64: jnp.float64,
}
"""The element types of the IR as JAX names them."""

Refuse = Callable[[Eqn, "Target"], str | None]
"""Why the kernel cannot serve the equation on the target, in words, or None when it can. Raises nothing."""

Reasons = Callable[[Eqn, "Target"], Iterable[Reason]]
"""Every reason why it cannot, the one that `Refuse` gives first. Raises nothing."""

Build = Callable[[Eqn, "Target"], Callable[..., tuple[jax.Array, ...]]]
"""The function of the equation's operands (shapes are static by then) that gives its results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Facts about a device that kernels ask for.

    capability: NVIDIA's compute capability (9.0 for Hopper), 0.0 elsewhere. sms: multiprocessors.
    interpret: run the target's kernels by interpretation on this machine's CPU.
    matmul_flops: dense bf16 rate in FLOP/s, bandwidth in bytes/s: the roofline of reports.
    """

    name: str
    platform: Literal["cpu", "gpu", "tpu"]
    capability: float = 0.0
    sms: int = 0
    shared_memory: int = 0
    memory: int = 0
    bandwidth: float = 0.0
    matmul_flops: float = 0.0
    interpret: bool = False


@partial(jax.tree_util.register_dataclass, data_fields=["x", "index"], meta_fields=["dtype"])
@dataclass(frozen=True)
class Late:
    """An operand that is not made yet: row `index` of `x`, or all of it where there is no index, cast to `dtype`.

    For a kernel that reads it where it lies: made before, it would be a copy of a whole row of a cache, or of a weight.
    """

    x: Any
    index: Any
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape if self.index is None else self.x.shape[1:])

    def array(self) -> jax.Array:
        x = self.x if self.index is None else jax.lax.dynamic_index_in_dim(self.x, self.index, 0, keepdims=False)
        return jnp.asarray(x).astype(self.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient:
    """The gradient of a kernel that JAX cannot differentiate.

    refuse: as a kernel's, asked where the kernel itself has not refused. build: the function of (operands, results,
    cotangents of the results) that gives an array for each operand, None for those without a gradient. notes: what
    `explain` prints of it.
    """

    refuse: Refuse
    build: Callable[[Eqn, Target], Callable[..., tuple[jax.Array | None, ...]]]
    notes: Callable[[Eqn, Target], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One implementation of one operation. `name` is what `implementation=` forces and `explain` prints:
    `reference`, `xla`, `cudnn`, `pallas_gpu`, ..."""

    name: str
    op: type[Op]
    refuse: Refuse
    build: Build
    differentiable: bool = True
    """False: JAX cannot differentiate what it builds. Gradients are those of `gradient`, and where there is none, or
    it refuses, those of the `xla` form of the operation; `explain` says which."""

    gradient: "Gradient | None" = None

    notes: Callable[[Eqn, Target], dict[str, Any]] | None = None
    """What `explain` prints beside the choice: block sizes, visited tiles."""

    reasons: Reasons | None = None
    """All that stands against the equation, with what would do instead. Without it the reason is that of `refuse`."""

    late: frozenset[int] = frozenset()
    """Operands, by number, that it takes as `Late` on a GPU."""

    def against(self, eqn: Eqn, target: Target) -> tuple[Reason, ...]:
        """Every reason why it cannot serve the equation on the target, each once; none when it can."""
        if self.reasons is None:
            text = self.refuse(eqn, target)
            return () if text is None else (Reason("refusal", text),)
        return tuple({reason.text: reason for reason in reversed(list(self.reasons(eqn, target)))}.values())[::-1]
