"""What a kernel is: the operation it serves, the reasons it may refuse, the function it builds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tfc.ir.ops import Op
from tfc.ir.program import Eqn
from tfc.ir.types import DType

__all__ = ["DTYPES", "Build", "Kernel", "Refuse", "Target"]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One implementation of one operation. `name` is what `implementation=` forces and `explain` prints:
    `reference`, `xla`, `cudnn`, `pallas_gpu`, ..."""

    name: str
    op: type[Op]
    refuse: Refuse
    build: Build
    differentiable: bool = True
    """False: gradients come from the `xla` form of the operation, and `explain` says so."""

    notes: Callable[[Eqn, Target], dict[str, Any]] | None = None
    """What `explain` prints beside the choice: block sizes, visited tiles."""
