"""The one place that knows how JAX 0.11 and 0.12 differ: each name here works on both."""

from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu

__all__ = ["mosaic_interpreter", "mosaic_load", "mosaic_races", "reset_interpreter"]


def mosaic_load(ref: Any, layout: Any = None) -> jax.Array:
    """The elements of an indexed reference (`ref.at[...]`) in the given register layout.

    Index first: `load(ref, index)` of 0.11 is gone in 0.12. Loads from global memory have no
    "optimized" form in either, and say so only when asked for one.
    """
    return plgpu.load(ref, layout=layout, optimized=False)


def mosaic_interpreter() -> Any:
    """What makes a Mosaic GPU kernel run on the CPU with every race looked for.

    0.12 raises at a race, 0.11 only notes it: see `mosaic_races`.
    """
    return plgpu.InterpretGPUParams(detect_races=True)


def mosaic_races() -> bool:
    """Whether the kernels interpreted since `reset_interpreter` raced (wait for their results first)."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call  # no public name in either version

    try:
        return bool(interpret_pallas_call.get_races().races_found)
    except AssertionError:  # none has run since
        return False


def reset_interpreter() -> None:
    """Forgets what earlier interpreted kernels left, also where one of them raised."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    interpret_pallas_call.reset_gpu_interpret_mode_state()
