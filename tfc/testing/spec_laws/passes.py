"""Laws of passes: each exact one alone, and all of them, keep values and gradients, and their maps lead back."""

import jax.numpy as jnp
import numpy as np

from tfc.backends.reference.program import evaluate
from tfc.ir.param_map import Add, Expr, MatVec, ParamMap, ScaleRows, Source, Sub, UnscaleRows, parts, substitute
from tfc.ir.verify import verify
from tfc.params.apply import pack, unpack
from tfc.passes import pipeline
from tfc.passes.base import Contract
from tfc.testing.interpreted import Traced
from tfc.testing.spec_laws.rounding import FINEST, apart, differs, gradient_noise, gradients_differ, noise
from tfc.testing.spec_laws.subject import Array, Subject

__all__ = ["alone", "gradients", "leads_back", "together"]


def alone(s: Subject) -> str | None:
    """Values after each exact pass by itself."""
    program = s.wide.lowered
    for step in pipeline.BY_NAME.values():
        if step.contract is not Contract.EXACT:
            continue
        done = step(program, s.held)
        if done.program == program:
            continue
        verify(done.program, after=step.name)
        if said := differs(s.defined(done.program, map=done.map), s.values, noise(s), FINEST):
            return f"after {step.name}, {said}"
    return None


def together(s: Subject) -> str | None:
    """Values after all passes."""
    return differs(s.defined(s.wide.program, map=s.wide.map), s.values, noise(s), FINEST)


def gradients(s: Subject) -> str | None:
    """Gradients after all passes, by the parameters as they were before."""
    return gradients_differ(s, _pulled(s), gradient_noise(s), FINEST)


def _pulled(s: Subject) -> dict[str, Array]:
    bound, map = s.wide.program.bind(s.lengths), s.wide.map
    params, given = s.arrays(s.wide)
    pulled = s.pulled(lambda p, x: evaluate(bound, pack(map, p), x, jnp.float64))
    found: dict[str, Array] = Traced(pulled, params, given)(params, given)
    return found


def leads_back(s: Subject) -> str | None:
    """pack gives what the last program stores; unpack gives the parameters again, the same bits where nothing is
    computed."""
    form = s.narrow
    params, _ = s.arrays(form)
    packed = pack(form.map, params)
    for stored in form.program.stored():
        if stored.path not in packed:
            return f"pack gives no {stored.path}"
        if packed[stored.path].shape != stored.type.ints:
            return f"pack gives {stored.path} {list(packed[stored.path].shape)}, the program has {stored.type}"
    back = unpack(form.map, packed)
    if back.keys() != params.keys():
        return f"unpack gives {', '.join(sorted(back.keys() ^ params.keys()))} too many or too few"
    for path, x in params.items():
        own, got = np.asarray(x).astype(np.float64), np.asarray(back[path]).astype(np.float64)
        if _moved(form.map, path):
            if not np.array_equal(own, got):
                return f"{path} comes back changed"
        elif said := apart(path, got, own, 0.0, 2.0 ** (-8 if x.dtype.itemsize < 4 else -20)):
            return said
    return None


def _moved(map: ParamMap, path: str) -> bool:
    """Whether the way there and back only moves what the parameter holds."""
    return not _computes(substitute(map.backward.get(path, Source(path)), map.forward))


def _computes(expr: Expr) -> bool:
    return isinstance(expr, ScaleRows | UnscaleRows | MatVec | Add | Sub) or any(map(_computes, parts(expr)))
