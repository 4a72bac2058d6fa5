"""What is to be judged, a kernel or anybody's callable, turned into a `Candidate`: in this process, or in a worker."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.gradients import differentiable, own_gradient
from tfc.backends.kernel import DTYPES, Kernel, Target
from tfc.backends.table import named
from tfc.compat import mosaic_races, reset_interpreter
from tfc.ir.program import Eqn
from tfc.testing.cases import Array
from tfc.testing.laws import Candidate, Refused
from tfc.testing.worker import CaseFailed, Worker

__all__ = ["Isolated", "OfCallable", "OfKernel", "RaceFound", "candidate_of"]


class RaceFound(Exception):
    """An interpreted kernel read what another thread was writing, or wrote it."""


@lru_cache(maxsize=64)
def _built(kernel: Kernel, eqn: Eqn, target: Target) -> Callable[..., tuple[jax.Array, ...]]:
    return jax.jit(kernel.build(eqn, target))


@lru_cache(maxsize=64)
def _pulled(kernel: Kernel, eqn: Eqn, target: Target) -> Callable[..., Any]:
    xla = named(type(eqn.op), "xla")
    assert xla is not None
    return jax.jit(_gradient_of(differentiable(kernel, eqn, target, xla)))


def _gradient_of(function: Callable[..., Any]) -> Callable[..., dict[int, jax.Array]]:
    """(operands, dout) -> the gradient of sum(out * dout) by the number of each operand of floating type."""

    def gradient(operands: Sequence[jax.Array], dout: jax.Array) -> dict[int, jax.Array]:
        floating = [i for i, x in enumerate(operands) if jnp.issubdtype(x.dtype, jnp.floating)]

        def out(*chosen: jax.Array) -> jax.Array:
            whole = list(operands)
            for i, x in zip(floating, chosen, strict=True):
                whole[i] = x
            found = function(*whole)
            first: jax.Array = found[0] if isinstance(found, tuple | list) else found
            return first

        value, pull = jax.vjp(out, *(operands[i] for i in floating))
        return dict(zip(floating, pull(dout.astype(value.dtype)), strict=True))

    return gradient


@dataclass(frozen=True, slots=True)
class OfKernel:
    """One of tfc's kernels on a target. Where the target is interpreted, races are looked for."""

    kernel: Kernel
    target: Target
    any_op: bool = True

    def _served(self, eqn: Eqn) -> None:
        if reason := self.kernel.refuse(eqn, self.target):
            raise Refused(reason)

    def run(self, eqn: Eqn, operands: Sequence[Array]) -> tuple[Array, Array | None]:
        self._served(eqn)
        watched = self._watch()
        results = [x.block_until_ready() for x in _built(self.kernel, eqn, self.target)(*map(jnp.asarray, operands))]
        if watched and mosaic_races():
            raise RaceFound(f"{self.kernel.name} has a race")
        for value, x in zip(eqn.outs, results, strict=True):
            if x.shape != value.type.ints or x.dtype != DTYPES[value.type.dtype]:
                raise TypeError(f"{value} is {x.dtype}{list(x.shape)}, the equation says {value.type}")
        return np.asarray(results[0]), np.asarray(results[1])

    def gradient(self, eqn: Eqn, operands: Sequence[Array], dout: Array) -> dict[int, Array] | None:
        self._served(eqn)
        if not self.kernel.differentiable and own_gradient(self.kernel, eqn, self.target) is None:
            return None
        watched = self._watch()
        found = _pulled(self.kernel, eqn, self.target)(list(map(jnp.asarray, operands)), jnp.asarray(dout))
        done = {i: np.asarray(x) for i, x in found.items()}
        if watched and mosaic_races():
            raise RaceFound(f"{self.kernel.name} has a race in its gradient")
        return done

    def _watch(self) -> bool:
        """Whether races are looked for, from here on."""
        watched = self.target.interpret and self.target.platform == "gpu"
        if watched:
            reset_interpreter()
        return watched


@dataclass(frozen=True, slots=True)
class OfCallable:
    """f(q, k, v, *captured) -> out, or (out, lse). One with a parameter `op` can be asked for any formula.

    f: the function, or "package.module:function". Arrays are [B, N, H, D] and [B, M, G, D]; lse is [B, H, N].
    """

    f: Callable[..., Any] | str
    differentiable: bool = False

    def function(self) -> Callable[..., Any]:
        if not isinstance(self.f, str):
            return self.f
        module, _, name = self.f.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found

    @property
    def any_op(self) -> bool:
        return "op" in inspect.signature(self.function()).parameters

    def _call(self, eqn: Eqn) -> Callable[..., Any]:
        f = self.function()
        return (lambda *operands: f(*operands, op=eqn.op)) if self.any_op else f

    def run(self, eqn: Eqn, operands: Sequence[Array]) -> tuple[Array, Array | None]:
        found = self._call(eqn)(*map(jnp.asarray, operands))
        out, lse = found if isinstance(found, tuple | list) else (found, None)
        return np.asarray(out), None if lse is None else np.asarray(lse)

    def gradient(self, eqn: Eqn, operands: Sequence[Array], dout: Array) -> dict[int, Array] | None:
        if not self.differentiable:
            return None
        found = _gradient_of(self._call(eqn))(list(map(jnp.asarray, operands)), jnp.asarray(dout))
        return {i: np.asarray(x) for i, x in found.items()}


@dataclass(frozen=True, slots=True)
class Isolated:
    """A candidate asked in a process of its own, which is ended at `limit` seconds. It must be picklable."""

    inner: Candidate
    worker: Worker
    limit: float = 60.0

    @property
    def any_op(self) -> bool:
        return self.inner.any_op

    def _ask(self, method: str, *args: Any) -> Any:
        self.worker.call(READY, limit=self.worker.setup_limit)  # a fresh process imports JAX: not the case's time
        try:
            return self.worker.call("tfc.testing.candidates:answer", self.inner, method, *args, limit=self.limit)
        except CaseFailed as failed:
            if failed.kind == Refused.__name__:
                raise Refused(str(failed)) from failed
            raise

    def run(self, eqn: Eqn, operands: Sequence[Array]) -> tuple[Array, Array | None]:
        out, lse = self._ask("run", eqn, tuple(operands))
        return out, lse

    def gradient(self, eqn: Eqn, operands: Sequence[Array], dout: Array) -> dict[int, Array] | None:
        found: dict[int, Array] | None = self._ask("gradient", eqn, tuple(operands), dout)
        return found


READY = "tfc.testing.candidates:ready"


def ready() -> None:
    """Nothing, once this module is imported and JAX has found its devices."""
    jax.devices()


def answer(candidate: Candidate, method: str, *args: Any) -> Any:
    """What a candidate gives: the worker's side of `Isolated`."""
    return getattr(candidate, method)(*args)


def candidate_of(
    judged: Kernel | Candidate | Callable[..., Any] | str, target: Target | None, differentiable: bool
) -> Candidate:
    """The kernel on the target (this machine's CPU where none is given), or the callable, as a candidate."""
    if isinstance(judged, Candidate):
        return judged
    if isinstance(judged, Kernel):
        return OfKernel(judged, target or Target(name="cpu", platform="cpu"))
    return OfCallable(judged, differentiable)
