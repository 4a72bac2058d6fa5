"""A model, its parameters and batches of inputs -> statistics of values inside it: Gram matrices, sampled rows.

The program is observed before the passes (`tfc.passes.observe`) and run in its own precision. What it reports of one
batch is reduced before the next batch runs, so memory is that of one batch and of the statistics.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.emit import emit
from tfc.model import Model, Packed
from tfc.params import tree
from tfc.passes import pipeline
from tfc.passes.fuse_attention import FuseAttention
from tfc.passes.observe import Which, keys_of, observe
from tfc.passes.precision import Precision

__all__ = ["Batch", "Gram", "GramOf", "Reducer", "Rows", "statistics"]

Array = jax.Array
Host = np.ndarray[Any, Any]
Batch = Mapping[str, Any] | Sequence[Any]
"""The inputs of one call: by name, or in the order declared."""


class Reducer[Part, State](Protocol):
    """A running statistic: `part` of each batch, traced into the model's jitted call; the rest on the host."""

    def part(self, x: Array, turns: int, real: Array | None, key: Array) -> Part:
        """What one batch contributes: a pytree of arrays.

        x: [turns..., tokens..., C...], `turns` leading axes of loops. real: bool [B, T], the tokens that are there,
        for x [turns..., B, T, ...]; None where all are. key: a random key, another for each batch, and the same for
        all values of one batch.
        """
        ...

    def merge(self, state: State | None, part: Part) -> State:
        """The statistic so far (None at first) with one part more, whose arrays are numpy's."""
        ...

    def finish(self, state: State, turns: int) -> Any:
        """What the caller gets."""
        ...


@dataclass(frozen=True)
class GramOf:
    """gram: float64 [turns..., C, C], the sum of x x^T over all rows. count: how many rows."""

    gram: Host
    count: int


@dataclass(frozen=True)
class Gram:
    """x [turns..., ..., C] -> `GramOf` over the last axis: sums in float32 within a batch, float64 over batches."""

    def part(self, x: Array, turns: int, real: Array | None, key: Array) -> tuple[Array, Array]:
        wide = x.astype(jnp.float32)
        if real is not None:
            wide = jnp.where(_over(real, x, turns), wide, 0)
        rows = wide.reshape(*x.shape[:turns], -1, x.shape[-1])
        total = rows.shape[-2]
        count = jnp.int32(total) if real is None else jnp.sum(real, dtype=jnp.int32) * (total // max(1, real.size))
        return jnp.einsum("...nc,...nd->...cd", rows, rows, precision="highest"), count

    def merge(self, state: GramOf | None, part: tuple[Host, Host]) -> GramOf:
        gram, count = part[0].astype(np.float64), int(part[1])
        return GramOf(gram, count) if state is None else GramOf(state.gram + gram, state.count + count)

    def finish(self, state: GramOf, turns: int) -> GramOf:
        return state


@dataclass(frozen=True)
class Rows:
    """x [turns..., B, T, C...] -> at most `limit` tokens' values [turns..., R, C...], drawn without replacement, each
    set equally likely. Values with the same tokens (queries and keys of a self-attention, all turns) give the same
    tokens, row by row."""

    limit: int

    def part(self, x: Array, turns: int, real: Array | None, key: Array) -> tuple[Array, Array]:
        rows = jnp.moveaxis(x.reshape(*x.shape[:turns], -1, *x.shape[turns + 2 :]), turns, 0)
        drawn = jax.random.uniform(key, (len(rows),))
        if real is not None:
            drawn = jnp.where(real.reshape(-1), drawn, -1)
        best, at = jax.lax.top_k(drawn, min(self.limit, drawn.size))
        return best, rows[at]

    def merge(self, state: tuple[Host, Host] | None, part: tuple[Host, Host]) -> tuple[Host, Host]:
        drawn, rows = part if state is None else (np.concatenate(two) for two in zip(state, part, strict=True))
        best = np.argsort(-drawn, kind="stable")[: self.limit]
        best = best[drawn[best] >= 0]
        return drawn[best], rows[best]

    def finish(self, state: tuple[Host, Host], turns: int) -> Host:
        return np.moveaxis(state[1], 0, turns)


def statistics(
    model: Model,
    params: Mapping[str, Any] | Packed,
    batches: Iterable[Batch],
    which: Which,
    reduce: Reducer[Any, Any],
    *,
    real: Callable[[Mapping[str, Any]], Any] | None = None,
    key: Array | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """What `reduce` makes of each value that `which` names, by its key, over all batches; the values' leading axes are
    the turns of the loops around them.

    real: the inputs of a batch by name -> bool [B, T], the tokens that are there; it applies to values [.., B, T, ..]
    with those two sizes, and to others everything counts (batches of texts of one length need none). key: for what the
    reducer draws, key(0) by default. progress: a bar where stderr is a terminal.
    Keys inside a `route` are missing in the answer. Raises ValueError where there is no batch, or nothing to watch;
    TfcError for parameters and inputs as a call does.
    """
    watched = observe(model.lowered, which)
    if not watched.seen:
        raise ValueError(f"nothing to watch in {model.lowered.name}")
    result = pipeline.run(watched.program, (FuseAttention(), Precision()))
    flat = tree.flatten(model.unpack(params) if isinstance(params, Packed) else params)
    tree.check(flat, result.program.stored())
    run = emit(result.program, model.target)
    first = len(result.program.results)
    names = [path for path, _ in result.program.reports]

    @jax.jit
    def parts(flat: Mapping[str, Array], given: Mapping[str, Array], there: Any, key: Array) -> list[Any]:
        told = dict(zip(names, run(flat, given)[first:], strict=True))
        # the same value may be watched under several keys: one part for all of them
        made = {}
        for seen in watched.seen:
            if seen.report not in made:
                x, turns = told[seen.report], len(seen.repeats)
                made[seen.report] = reduce.part(x, turns, _mask(there, x, turns), key)
        return [made[seen.report] for seen in watched.seen]

    states: dict[str, Any] = {}
    key = jax.random.key(0) if key is None else key
    with _shown(batches, progress) as step:
        for n, batch in enumerate(batches):
            given = _given(model, batch)
            there = None if real is None else jnp.asarray(real(given), bool)
            found = jax.device_get(parts(flat, given, there, jax.random.fold_in(key, n)))
            for seen, part in zip(watched.seen, found, strict=True):
                states[seen.key] = reduce.merge(states.get(seen.key), part)
            step()
    if not states:
        raise ValueError("there is no batch to take statistics of")
    turns = {seen.key: len(seen.repeats) for seen in watched.seen}
    return {name: reduce.finish(states[name], turns[name]) for name in keys_of(watched.seen)}


def _given(model: Model, batch: Batch) -> dict[str, Any]:
    """The inputs by name, looked at as a call looks at them."""
    inputs, named = ((), batch) if isinstance(batch, Mapping) else (tuple(batch), {})
    given = model._given(inputs, named)
    model._look(given)
    return given


def _mask(real: Array | None, x: Array, turns: int) -> Array | None:
    """`real` where x is [turns..., B, T, ...] of its sizes."""
    if real is None or x.ndim < turns + 3 or x.shape[turns : turns + 2] != real.shape:
        return None
    return real


def _over(real: Array, x: Array, turns: int) -> Array:
    """bool [B, T] as it broadcasts to x [turns..., B, T, ...]."""
    return real.reshape(*real.shape, *[1] * (x.ndim - turns - 2))


@contextmanager
def _shown(batches: object, progress: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal; what is yielded is told of each batch."""
    if not (progress and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("calibrating", total=len(batches) if isinstance(batches, Sized) else None)
        yield lambda: bar.advance(task)
