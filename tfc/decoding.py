"""A model's program in its decoding form: caches made, new tokens and a cache into results and the next cache."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tfc.backends.binding import bind_call
from tfc.backends.emit import Emitted, emit
from tfc.backends.kernel import DTYPES, Target
from tfc.backends.reach import check_reach
from tfc.diagnostics import Diagnostic, TfcError
from tfc.ir.param_map import IDENTITY, ParamMap
from tfc.ir.program import Program
from tfc.ir.types import Dim, DType
from tfc.ir.verify import verify
from tfc.params import apply
from tfc.passes.decode import COUNT, LENGTH, Decode, given_once, kept, tokens_of
from tfc.passes.decoding.once import once
from tfc.passes.unroll import Unroll

__all__ = ["Cache", "Decoder"]

Array = jax.Array


@jax.tree_util.register_pytree_node_class
class Cache:
    """What decoding keeps from call to call: a pytree of arrays, made by `Model.init_cache`.

    length: int32 [B], the tokens that each row has seen. arrays: by name, [turns of the loops, B, ...]: keys, values
    and fields of tokens [.., L, ...], states of recurrences, last tokens of convolutions. slots: L, or None where
    nothing grows with the tokens. dtype: what was asked for. memory: by name, what was made of the inputs that are
    given once (keys and values of an encoder's result); empty where they are given with each call.
    """

    def __init__(
        self,
        length: Any,
        arrays: Mapping[str, Any],
        slots: int | None,
        dtype: DType | None,
        most: int | None = None,
        memory: Mapping[str, Any] | None = None,
    ) -> None:
        self.length, self.arrays, self.slots, self.dtype = length, dict(arrays), slots, dtype
        self.memory = dict(memory or {})
        self.most = most
        """No row has seen more, as far as known without asking the device; None where that is unknown."""

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        leaves = self.length, *self.arrays.values(), *self.memory.values()
        return leaves, (tuple(self.arrays), self.slots, self.dtype, tuple(self.memory))

    @classmethod
    def tree_unflatten(cls, aux: tuple[Any, ...], leaves: Sequence[Any]) -> "Cache":
        names, slots, dtype, recalled = aux
        own, memory = leaves[1 : 1 + len(names)], leaves[1 + len(names) :]
        arrays = dict(zip(names, own, strict=True))
        return cls(leaves[0], arrays, slots, dtype, memory=dict(zip(recalled, memory, strict=True)))

    def __repr__(self) -> str:
        size = sum(x.size * x.dtype.itemsize for x in (*self.arrays.values(), *self.memory.values()))
        room = "" if self.slots is None else f" of {self.slots} tokens"
        return f"Cache({self.length.shape[0]} rows{room}, {size:,} bytes)"


class Decoder:
    """Decoding forms of one model, compiled when first used."""

    def __init__(
        self,
        lowered: Program,
        target: Target,
        implementation: str | None,
        optimized: Callable[[frozenset[str]], Program],
        packed: Callable[[Any], Any],
    ) -> None:
        """optimized: the program after the passes, held back at sites. packed: parameters as those passes made them."""
        self.lowered, self.target, self.implementation = lowered, target, implementation
        self.optimized, self.packed = optimized, packed
        self._forms: dict[tuple[frozenset[str], DType | None, bool], Emitted] = {}
        self._prepared: dict[frozenset[str], tuple[Emitted, tuple[str, ...]]] = {}
        self._maps: dict[tuple[frozenset[str], DType | None, bool], ParamMap] = {}

    def form(self, held: frozenset[str] = frozenset(), dtype: DType | None = None, recalled: bool = False) -> Emitted:
        """The decoding form with passes held back at those sites; recalled: that which takes, in place of the inputs
        given once, what was made of them. Raises TfcError (E816) where there is none."""
        if (held, dtype, recalled) not in self._forms:
            program, map = Decode(dtype)(self.optimized(held)).program, IDENTITY
            verify(program, after=Decode.name)
            if recalled:
                verify(program := once(program, self.once).step, after="once")
            if self.target.platform == "gpu":  # XLA copies the slices of weights and caches that a loop reads
                done = Unroll()(program)
                verify(program := done.program, after=Unroll.name)
                map = done.map
            self._maps[held, dtype, recalled] = map
            self._forms[held, dtype, recalled] = emit(program, self.target, self.implementation)
        return self._forms[held, dtype, recalled]

    @cached_property
    def once(self) -> frozenset[str]:
        """The names of the inputs that say nothing of single tokens."""
        return given_once(self.lowered)

    def _taking(self, wanted: frozenset[str]) -> Program:
        """A program of those inputs alone, to bind arguments to."""
        inputs = tuple(i for i in self.lowered.inputs if i.value.name in wanted)
        return Program(self.lowered.name, inputs, (), (), tuple(i.value for i in inputs))

    def taking(self, cache: Cache) -> Program:
        """What a call with this cache takes: without the inputs given once, if they were given."""
        if not cache.memory:
            return self.lowered
        return self._taking(frozenset(i.value.name for i in self.lowered.inputs) - self.once)

    def prepared(self, held: frozenset[str] = frozenset()) -> tuple[Emitted, tuple[str, ...]]:
        """What depends on the inputs given once alone, and the names of its results in a cache's memory.

        Raises TfcError (E816) where there is no decoding form.
        """
        if held not in self._prepared:
            cut = once(Decode()(self.optimized(held)).program, self.once)
            verify(cut.prepare, after="once")
            names = tuple(v.name for v in cut.memory)
            self._prepared[held] = emit(cut.prepare, self.target, self.implementation), names
        return self._prepared[held]

    def remember(self, params: Any, cache: Cache, given: Mapping[str, Any]) -> Cache:
        """The cache with what is made of the inputs given once. Raises TfcError: E701 to E703, E708, E816."""
        self.check_once(given, cache.length.shape[0])
        return Cache(
            cache.length, cache.arrays, cache.slots, cache.dtype, cache.most, self._recall(params, dict(given))
        )

    def check_once(self, given: Mapping[str, Any], rows: int) -> None:
        """Raises TfcError where these are not the inputs given once, for so many rows: E701 to E703, E708."""
        own = bind_call(self._taking(self.once), given).lengths.get(str(_batch(self.form().program)))
        if own is not None and own != rows:
            fact = f"{own} rows of {', '.join(f'`{name}`' for name in given)} for {rows} rows of tokens"
            raise TfcError(Diagnostic("E708", fact, help="a row for each row"))

    @cached_property
    def _recall(self) -> Callable[..., dict[str, Array]]:
        def recall(params: Any, given: Mapping[str, Any]) -> dict[str, Array]:
            packed = self.packed(params)
            emitted, names = self.prepared(packed.held)
            return dict(zip(names, emitted(packed.arrays, given), strict=True))

        return jax.jit(recall)

    def cache(self, batch: int, length: int, dtype: Any = None) -> Cache:
        """Zeros for `batch` rows of up to `length` tokens. Raises TfcError: E707, E708, E816."""
        if batch < 1 or length < 1:
            fact = f"a cache for {batch} rows of {length} tokens"
            raise TfcError(Diagnostic("E708", fact, help="it has a row and a token at least"))
        kind = _kind(dtype)
        program = self.form(dtype=kind).program
        time, slots = _lengths(program)
        sizes = {str(_batch(program)): batch, slots: length}
        self._reaches({str(_batch(program)): batch, time: length})
        arrays = {v.name: jnp.zeros(v.type.bind(sizes).ints, DTYPES[v.type.dtype]) for v in kept(program)}
        return Cache(jnp.zeros(batch, jnp.int32), arrays, length if slots else None, kind, 0)

    def _reaches(self, lengths: Mapping[str, int]) -> None:
        """As many tokens in one call would be within every table. Raises TfcError (E707)."""
        bound = self.optimized(frozenset()).bind(lengths)
        if all(i.value.type.static for i in bound.inputs):
            check_reach(bound)

    def __call__(
        self, params: Any, cache: Cache, given: Mapping[str, Any], count: Any
    ) -> tuple[tuple[Any, ...], Cache]:
        """The results of new tokens, and the cache after them. given: by name. count: int [B], or None for all."""
        if not isinstance(cache, Cache):
            fact = f"decode takes a cache first, not {type(cache).__name__}"
            raise TfcError(Diagnostic("E708", fact, help="cache = model.init_cache(batch, length)"))
        if not isinstance(cache.length, Tracer) and cache.length.is_deleted():
            fact = "this cache was given to decode before, which has written into it"
            raise TfcError(Diagnostic("E708", fact, help="go on with the cache that decode gave back"))
        bound = bind_call(self.taking(cache), given)
        program = self.form(dtype=cache.dtype).program
        rows, new = (bound.lengths[str(n)] for n in (_batch(program), _time(program)))
        if new < 1 or cache.length.shape[0] != rows:
            fact = f"{rows} rows of {new} tokens for a cache of {cache.length.shape[0]} rows"
            raise TfcError(Diagnostic("E708", fact, help="a row for each row, and a token at least"))
        most = self._room(cache, count, rows, new)
        results, after = self.jitted(params, cache, dict(given), count)
        after.most = most
        return results, after

    @staticmethod
    def _room(cache: Cache, count: Any, rows: int, new: int) -> int | None:
        """How many tokens a row has at most after `new` more. Raises TfcError: E705 for counts, E708 for no room."""
        counts: Any = new
        if count is not None:
            if tuple(np.shape(count)) != (rows,):
                fact = f"`count` has the shape {list(np.shape(count))}, the batch {rows} rows"
                raise TfcError(Diagnostic("E702", fact, help="how many of a row's tokens count, int [B]"))
            if isinstance(count, Tracer):
                counts = None
            else:
                counts = np.asarray(count)
                if counts.dtype.kind not in "iu" or counts.min() < 0 or counts.max() > new:
                    fact = f"`count` is {counts.tolist()}, of {new} tokens"
                    raise TfcError(Diagnostic("E705", fact, help=f"whole numbers 0..{new}"))
        if counts is None or isinstance(cache.length, Tracer):
            return None
        if cache.slots is None:
            return 0
        if cache.most is None or cache.most + np.max(counts) > cache.slots:
            after = np.asarray(cache.length) + counts
            if np.max(after) > cache.slots:
                row = int(np.argmax(after))
                had, more = int(np.asarray(cache.length)[row]), int(np.broadcast_to(counts, rows)[row])
                fact = f"row {row} of the cache has {had} tokens and room for {cache.slots}; {more} more do not fit"
                raise TfcError(Diagnostic("E708", fact, help="make a longer one with init_cache"))
            return int(np.max(after))
        return int(cache.most + np.max(counts))

    @cached_property
    def jitted(self) -> Callable[..., tuple[tuple[Any, ...], Cache]]:
        """`step`, jitted; the cache is donated."""
        return jax.jit(self.step, donate_argnums=1)

    def step(self, params: Any, cache: Cache, given: Mapping[str, Any], count: Any) -> tuple[tuple[Any, ...], Cache]:
        """What a call computes, to be traced. A row without room has NaN for results."""
        packed = self.packed(params)
        emitted = self.form(packed.held, cache.dtype, bool(cache.memory))
        new = bind_call(self.taking(cache), given).lengths[str(_time(emitted.program))]
        counts = jnp.full(cache.length.shape, new) if count is None else jnp.clip(jnp.asarray(count), 0, new)
        counts = counts.astype(jnp.int32)
        arrays = apply.pack(self._maps[packed.held, cache.dtype, bool(cache.memory)], packed.arrays)
        found = emitted(arrays, {**given, **cache.memory, LENGTH: cache.length, COUNT: counts, **cache.arrays})
        names = [v.name for v in kept(emitted.program)]
        results, caches = found[: len(found) - len(names)], found[len(found) - len(names) :]
        length = cache.length + counts
        if cache.slots is not None:
            results = tuple(_lost(x, length > cache.slots) for x in results)
        kinds = cache.slots, cache.dtype
        after = Cache(length, dict(zip(names, caches, strict=True)), *kinds, memory=cache.memory)
        return tuple(results), after


def _lost(x: Array, rows: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[:1] != rows.shape:
        return x
    return jnp.where(jnp.reshape(rows, (-1, *[1] * (x.ndim - 1))), jnp.nan, x)


def _batch(program: Program) -> Dim:
    return _first(program, 0)


def _time(program: Program) -> Dim:
    return _first(program, 1)


def _first(program: Program, axis: int) -> Dim:
    """The rows, or the tokens: axes of the input that has both."""
    value = tokens_of(program)
    assert value is not None
    size = value.type.shape[axis]
    assert isinstance(size, Dim), "decoding forms leave both open"
    return size


def _lengths(program: Program) -> tuple[str, str]:
    """The names of the length of a call's tokens, and of the cache's; the latter empty where nothing grows."""
    before = {n for i in program.inputs[: -len(kept(program)) or None] for s in i.value.type.shape
              if isinstance(s, Dim) for n in s.names}  # fmt: skip
    grows = [n for v in kept(program) for s in v.type.shape if isinstance(s, Dim) for n in s.names if n not in before]
    return str(_time(program)), grows[0] if grows else ""


def _kind(dtype: Any) -> DType | None:
    """JAX's type in the IR's words. Raises TfcError (E708)."""
    if dtype is None:
        return None
    for kind, known in DTYPES.items():
        if kind.floating and jnp.dtype(known) == jnp.dtype(dtype):
            return kind
    fact = f"a cache of {jnp.dtype(dtype).name}"
    raise TfcError(Diagnostic("E708", fact, help="keys and values are kept in bfloat16, float16, float32 or float64"))
