"""Both backward passes of a spec by interpreted kernels, beside the xla form's: runs in a worker process."""

from dataclasses import replace

import jax
import numpy as np

from tfc.backends.pallas_gpu.backward import KERNEL
from tfc.backends.xla.attention import KERNEL as XLA
from tfc.bench import trained
from tfc.bench.attention import apart
from tfc.targets import resolve

SHAPE = trained.Shape(batch=1, length=100, heads=2, head_dim=32)


def compared(name: str) -> tuple[list[float], bool]:
    """Distances to the xla form of (the gradients of q, k, v without, with, of what is captured), and whether both
    forms' first three are the same bits."""
    (of,) = (x for x in trained.TRAINED if x.name == name)
    target = replace(resolve("h200"), interpret=True)
    eqn = trained.equation(of, SHAPE, target)
    *operands, cotangent = trained.operands(of, eqn, 0)
    given = (*operands, *KERNEL.build(eqn, target)(*operands), cotangent)
    right = trained.true(XLA, eqn, target, (*operands, cotangent))
    without, whole = (
        jax.jit(trained.backward(KERNEL, eqn, target, captured=captured))(*given) for captured in (False, True)
    )
    assert len(without) == 3 and len(whole) == 4 and whole[3].shape == operands[3].shape
    same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(without, whole, strict=False))
    return [apart(right[:3], without), apart(right[:3], whole[:3]), apart(right[3:], whole[3:])], same
