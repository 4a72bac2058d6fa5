"""A program, passes and a target turned into a model: parameters in, results out, jitted; weights from and to files."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer

from tfc.backends.binding import bind_call
from tfc.backends.emit import Emitted, emit
from tfc.backends.kernel import Target
from tfc.backends.sharding import explicit_mesh, without_explicit
from tfc.backends.values import Values
from tfc.decoding import Cache, Decoder
from tfc.diagnostics import Diagnostic, TfcError
from tfc.exporters.hf import export_hf
from tfc.generation import Generator, prompts_of, sampling_of
from tfc.importers.hf import import_hf
from tfc.ir.names import NamesMap
from tfc.ir.param_map import ParamMap
from tfc.ir.program import Program
from tfc.ir.types import DType
from tfc.params import apply, files, tree
from tfc.params.initial import initial

__all__ = ["Model", "Optimized", "Packed"]

SEED = "#seed"
"""Where a call's arguments by name hold the seed of its dropouts: no name that an input can have."""

THREADS = 4
"""A block's warpgroups, of which an interpreted kernel has three, and one thread for everything else."""

Array = jax.Array
Params = Mapping[str, Any]


class Optimized(Protocol):
    """What the passes give: `tfc.passes.pipeline.Result`."""

    @property
    def program(self) -> Program: ...
    @property
    def map(self) -> ParamMap: ...
    @property
    def stages(self) -> Sequence[Any]: ...
    @property
    def notes(self) -> Sequence[Any]: ...


@jax.tree_util.register_pytree_with_keys_class
class Packed:
    """Parameters as the passes made them: a pytree of arrays, by dotted path.

    held: the sites where a pass was held back because these values do not allow it; static, as the program that
    takes the arrays depends on it.
    """

    def __init__(self, arrays: Mapping[str, Any], held: frozenset[str] = frozenset()) -> None:
        self.arrays = dict(sorted(arrays.items()))
        self.held = held

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[tuple[str, ...], frozenset[str]]]:
        return tuple(self.arrays.values()), (tuple(self.arrays), self.held)

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], tuple[tuple[str, ...], frozenset[str]]]:
        keyed = tuple((jax.tree_util.DictKey(path), x) for path, x in self.arrays.items())
        return keyed, (tuple(self.arrays), self.held)

    @classmethod
    def tree_unflatten(cls, aux: tuple[tuple[str, ...], frozenset[str]], leaves: Sequence[Any]) -> "Packed":
        return cls(dict(zip(aux[0], leaves, strict=True)), aux[1])

    def __repr__(self) -> str:
        held = f", held back at {', '.join(sorted(self.held))}" if self.held else ""
        return f"Packed({len(self.arrays)} arrays{held})"


def _written(aux: Any) -> bytes:
    paths, held = aux
    return json.dumps([list(paths), sorted(held)]).encode()


def _read(written: bytes) -> tuple[tuple[str, ...], frozenset[str]]:
    paths, held = json.loads(written)
    return tuple(paths), frozenset(held)


# what `jax.export` writes of an argument's structure
export.register_pytree_node_serialization(
    Packed, serialized_name="tfc.model.Packed", serialize_auxdata=_written, deserialize_auxdata=_read
)


class Model:
    """A compiled model. Call it with parameters and inputs; the rest of its methods concern parameters.

    Parameters are a nested dict with the spec's paths, one leading axis for each enclosing `repeat`.
    """

    def __init__(
        self,
        lowered: Program,
        optimize: Callable[[frozenset[str]], Optimized],
        target: Target,
        implementation: str | None = None,
        names: Mapping[str, NamesMap] | None = None,
        dropping: Callable[[frozenset[str]], Optimized] | None = None,
    ) -> None:
        """optimize: the passes, given the sites to hold back. dropping: the same for calls with a key, whose program
        takes a seed as its last input. Raises TfcError as `emit` does."""
        self.lowered = lowered
        self.target = target
        self.implementation = implementation
        self.names = dict(names or {})
        self.spec: tuple[str | os.PathLike[str], Mapping[str, object]] | None = None
        """What it was compiled from, path or text, with its `let`s: `tfc.compile` says so."""
        self._optimize = optimize
        self._dropping = dropping or optimize
        self._variants: dict[tuple[frozenset[str], bool], tuple[Optimized, Emitted]] = {}
        self._variant(frozenset())

    def __repr__(self) -> str:
        takes = ", ".join(f"{i.value.name}: {i.value.type}" for i in self.lowered.inputs)
        return f"Model {self.lowered.name}({takes}) for {self.target.name}"

    def _variant(self, held: frozenset[str], seeded: bool = False) -> tuple[Optimized, Emitted]:
        """The program with passes held back at those sites. seeded: that of calls with a key, which drop."""
        if (held, seeded) not in self._variants:
            result = self._dropping(held) if seeded else self._optimize(held)
            self._variants[held, seeded] = result, emit(result.program, self.target, self.implementation)
        return self._variants[held, seeded]

    @property
    def program(self) -> Program:
        """The program after all passes."""
        return self._variant(frozenset())[0].program

    # --- parameters

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters. key: `jax.random.key(0)`."""
        return tree.nest(initial(self.lowered.stored(), key))

    def load(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Parameters from a safetensors file with tfc's own names, as `save` writes them; or from a folder with a
        Hugging Face checkpoint, by the spec's `names hf`.

        Raises TfcError (E601 to E609), naming each parameter and both shapes.
        """
        stored = self.lowered.stored()
        if not os.path.isdir(path):
            found = files.load(path, stored)
        elif "hf" in self.names:
            found = import_hf(path, stored, self.names["hf"])
        else:
            fact = f"{os.fspath(path)} is a folder, and the spec of {self.lowered.name} has no `names hf` for it"
            hint = "add `names hf { ... }` to the spec, or give a safetensors file that tfc wrote"
            raise TfcError(Diagnostic("E609", fact, help=hint))
        return tree.nest({name: jnp.asarray(x) for name, x in found.items()})

    def save(self, params: "Params | Packed", path: str | os.PathLike[str]) -> None:
        """Writes parameters (unpacked, if need be) to a safetensors file: `layer.3.look.q.weight` for turn 3."""
        flat = tree.flatten(self.unpack(params) if isinstance(params, Packed) else params)
        self._fits(flat, self.lowered)
        files.save(flat, path, self.lowered.stored())

    def export_hf(self, params: "Params | Packed", folder: str | os.PathLike[str]) -> tuple[str, ...]:
        """Writes parameters (unpacked, if need be) as a Hugging Face checkpoint, by the spec's `names hf`: what `load`
        read from one comes back bit for bit. Arrays keep the element type that they have here.

        Returns the checkpoint's names that the map calls `none`: they are left out, as configuration and tokenizer.
        Raises TfcError: E601 to E605, E607, E609, E620.
        """
        flat = tree.flatten(self.unpack(params) if isinstance(params, Packed) else params)
        self._fits(flat, self.lowered)
        if "hf" not in self.names:
            fact = f"the spec of {self.lowered.name} has no `names hf`"
            raise TfcError(Diagnostic("E609", fact, help="add `names hf { ... }` to it; save writes tfc's own names"))
        return export_hf(flat, folder, self.lowered.stored(), self.names["hf"])

    def pack(self, params: Params, data: Mapping[str, Any] | None = None) -> Packed:
        """What the passes make of the parameters: done once, for serving.

        A pass that needs values to be other than they are (a norm's scale without zeros, say) is held back at that
        place. Under a trace values cannot be seen, and nothing is held back.
        data: calibration statistics by key (`tfc.calibration.statistics`), for passes that fit to them.
        Raises TfcError (E601 to E605) for parameters that are not those of the model, E631 for statistics missing.
        """
        flat = tree.flatten(params)
        self._fits(flat, self.lowered)
        held: frozenset[str] = frozenset()
        concrete = not any(isinstance(x, Tracer) for x in flat.values())
        while concrete:
            failing = apply.failing_guards(self._variant(held)[0].map, flat)
            if not failing:
                break
            held |= {g.site for g in failing}
        return Packed(apply.pack(self._variant(held)[0].map, flat, data), held)

    def unpack(self, packed: Packed) -> dict[str, Any]:
        """The parameters that `pack` was given, to rounding where a pass computed with them."""
        return tree.nest(apply.unpack(self._variant(packed.held)[0].map, packed.arrays))

    @staticmethod
    def _fits(flat: Mapping[str, Any], program: Program) -> None:
        try:
            tree.check(flat, program.stored())
        except TfcError as e:
            raise TfcError(*files.few(e.diagnostics)) from None

    # --- calls

    def __call__(self, params: "Params | Packed", *inputs: Any, key: Any = None, **named: Any) -> Any:
        """The model's result, or a tuple of several. Jitted; differentiable in `params` and in real inputs.

        params: a nested dict (packed inside the jit) or what `pack` gave. inputs: in the order declared, or by name.
        key: `jax.random.key(step)` where dropouts happen, another for each step of a training; without it they do not,
        and cost nothing. A model without dropouts takes it and drops nothing. (An input of that name takes it instead.)
        Values are looked at where they are known, outside of traces: row numbers of tables, and lengths; those of a JAX
        array once, when it is first given.
        Raises TfcError: E601 to E605 for parameters, E701 to E707 for inputs, E815 and E817 where the target cannot run
        here, E818 for a forward-mode derivative of kernels that have none.
        """
        results = self._called(self._jitted, params, inputs, named, key)
        return results[0] if len(results) == 1 else results

    def reports(self, params: "Params | Packed", *inputs: Any, key: Any = None, **named: Any) -> dict[str, Array]:
        """The side outputs that the spec reports (the losses' inputs) by their paths, each with one leading axis for
        each enclosing `repeat`. Arguments and errors as in a call; jitted and differentiable like one.
        """
        found: dict[str, Array] = self._called(self._reporting, params, inputs, named, key)
        return found

    def _called(
        self,
        f: Callable[[Any, Any], Any],
        params: "Params | Packed",
        inputs: tuple[Any, ...],
        named: Mapping[str, Any],
        key: Any = None,
    ) -> Any:
        """f of the parameters and of the arguments by name, after everything that can be said of them beforehand."""
        if key is not None and any(i.value.name == "key" for i in self.lowered.inputs):
            named, key = {**named, "key": key}, None
        given = self._given(inputs, named)
        self._present()
        self._look(given)
        if key is not None and self._drops:
            given[SEED] = _seed(key)
        return f(params, given)

    @cached_property
    def _jitted(self) -> Callable[[Any, Mapping[str, Any]], tuple[Array, ...]]:
        count = len(self.lowered.results)
        return jax.jit(lambda params, given: self._run(params, given)[:count])

    @cached_property
    def _reporting(self) -> Callable[[Any, Mapping[str, Any]], dict[str, Array]]:
        paths = [path for path, _ in self.lowered.reports]
        count = len(self.lowered.results)
        return jax.jit(lambda params, given: dict(zip(paths, self._run(params, given)[count:], strict=True)))

    def _run(self, params: "Params | Packed", given: Mapping[str, Array]) -> tuple[Array, ...]:
        """The results, then the reports."""
        if mesh := explicit_mesh(params, given):
            found: tuple[Array, ...] = without_explicit(self._run, mesh, self.lowered, params, given)
            return found
        seed = {name: x for name, x in given.items() if name == SEED}
        given = {name: x for name, x in given.items() if name != SEED}
        bound = bind_call(self.program, given)  # it has the inputs of the lowered one, and seldom more layers than one
        empty = [name for name, n in bound.lengths.items() if n == 0]
        if empty:
            shapes = ", ".join(f"`{i.value.name}` {i.value.type}" for i in bound.program.inputs)
            fact = f"{' and '.join(empty)} = 0 in {shapes}"
            raise TfcError(Diagnostic("E706", fact, help="an empty call has no result"))
        packed = params if isinstance(params, Packed) else self.pack(params)
        result, emitted = self._variant(packed.held)
        if packed is params:
            read = {p: x for p, x in packed.arrays.items() if p not in result.map.kept}
            self._fits(read, result.program)
        if not seed:
            return emitted(packed.arrays, given)
        dropping, emitted = self._variant(packed.held, seeded=True)
        arrays = packed.arrays
        if dropping.map != result.map:  # a dropout stood between what a pass would have joined
            plain = self.unpack(params) if isinstance(params, Packed) else params
            arrays = apply.pack(dropping.map, tree.flatten(plain))
        (last,) = dropping.program.inputs[len(self.lowered.inputs) :]
        return emitted(arrays, {**given, last.value.name: seed[SEED]})

    def _given(
        self, inputs: tuple[Any, ...], named: Mapping[str, Any], takes_them: Program | None = None
    ) -> dict[str, Any]:
        """Arguments by name, of this model or of what else takes them. Raises TfcError (E701) for too many, or one
        given twice."""
        declared = [i.value.name for i in (takes_them or self.lowered).inputs]
        takes = f"it takes {', '.join(declared)}"
        if len(inputs) > len(declared):
            fact = f"{self.lowered.name} was given {len(inputs)} arguments"
            raise TfcError(Diagnostic("E701", fact, help=takes))
        given = dict(zip(declared, inputs, strict=False))
        twice = [name for name in named if name in given]
        if twice:
            raise TfcError(Diagnostic("E701", f"{self.lowered.name} was given `{twice[0]}` twice", help=takes))
        return {name: _array(name, x) for name, x in (given | dict(named)).items()}

    def _present(self) -> None:
        """Raises TfcError where the target's kernels cannot run here: E815, or E817 where they would never end."""
        here = jax.default_backend()
        if self.target.interpret:
            self._threads()
        if self.target.interpret or self.target.platform in ("cpu", here):
            return
        fact = f"the model is compiled for {self.target.name}, and JAX runs on {here} here"
        hint = "target='auto' takes what is here; `tfc compile` compiles for devices that are elsewhere"
        raise TfcError(Diagnostic("E815", fact, help=hint))

    @staticmethod
    def _threads() -> None:
        """Interpreted warpgroups are threads that wait for one another: with too few, the first kernel would hang."""
        have = int(os.environ.get("NPROC") or os.cpu_count() or 1)  # as XLA counts
        if have < THREADS:
            fact = f"interpreting kernels takes {THREADS} threads of XLA, and it has {have} here"
            raise TfcError(Diagnostic("E817", fact, help="set NPROC=16 in the environment before Python starts"))

    def _look(self, given: Mapping[str, Any]) -> None:
        """Raises TfcError for values that are known now: E704 for a row that a table lacks, E705 for a length."""
        self._values.check(given)

    @cached_property
    def _drops(self) -> bool:
        return len(self._variant(frozenset(), seeded=True)[0].program.inputs) > len(self.lowered.inputs)

    @cached_property
    def _values(self) -> Values:
        return Values(self.lowered)

    # --- reports

    def explain(self, *, dropping: bool = False, **lengths: int) -> Any:
        """Which kernel runs each operation, and why; costs. lengths: `B=8, T=512`; those left out get defaults.

        dropping: of calls with a key.
        """
        from tfc import explain

        result = self._variant(frozenset(), dropping)[0]
        return explain.explain(
            result.program,
            self.target,
            explain.default_lengths(result.program, lengths),
            self.implementation,
            stages=[stage.name for stage in result.stages[1:]],
            notes=result.notes,
        )

    # --- decoding

    @cached_property
    def decoder(self) -> Decoder:
        """The decoding forms; `decoder.step` is what `decode` traces, `decoder.form().program` what it runs."""

        def packed(params: "Params | Packed") -> Packed:
            return params if isinstance(params, Packed) else self.pack(params)

        def optimized(held: frozenset[str]) -> Program:
            return self._variant(held)[0].program

        return Decoder(self.lowered, self.target, self.implementation, optimized, packed)

    def init_cache(
        self, batch: int, length: int, dtype: Any = None, params: "Params | Packed | None" = None, **once: Any
    ) -> Cache:
        """An empty cache for `batch` rows of up to `length` tokens each.

        params, once: inputs that say nothing of single tokens (the text that an encoder reads), by name, and the
        parameters: what depends on them alone is computed now, kept, and not given to `decode` again.

        dtype: what keys and values are kept in, `jnp.bfloat16` say; None for the type that they are computed in.
        Raises TfcError: E816, with the place, where the model's results depend on more than the tokens before; E707
        where a table (of positions, say) is shorter than `length`.
        """
        cache = self.decoder.cache(batch, length, dtype)
        if not once:
            return cache
        if params is None:
            fact = f"what {self.lowered.name} makes of {', '.join(f'`{name}`' for name in once)} depends on parameters"
            raise TfcError(Diagnostic("E708", fact, help="model.init_cache(batch, length, params=params, ...)"))
        given = {name: _array(name, x) for name, x in once.items()}
        self._present()
        self._look(given)
        return self.decoder.remember(params, cache, given)

    def decode(
        self, params: "Params | Packed", cache: Cache, *inputs: Any, count: Any = None, **named: Any
    ) -> tuple[Any, Cache]:
        """The model's result for n >= 1 new tokens of each row, after those that the cache has seen; and the cache
        after them. Whatever the split of a text into calls, the results are those of one call with all of it.

        params: a nested dict (packed inside the jit: with `pack` once it is faster). cache: from `init_cache` or from
        `decode`; it is donated, do not use it again. inputs: as in a call, the new tokens alone. count: int [B], how
        many of each row's n tokens count (0..n, default all): the rest is padding, its results mean nothing.
        Compiled once for each n. Raises TfcError as a call does, and E708 for a cache that does not fit or is full.
        """
        given = self._given(inputs, named, self.decoder.taking(cache) if isinstance(cache, Cache) else None)
        self._present()
        self._look(given)
        results, after = self.decoder(params, cache, given, count)
        return (results[0] if len(results) == 1 else results), after

    @cached_property
    def _generator(self) -> Generator:
        """Raises TfcError: E816 for what cannot be decoded, E723 for a model that does not go on with token ids."""
        program = self.decoder.form().program
        ids = [i.value for i in self.lowered.inputs if i.value.type.dtype is DType.I32 and i.value.type.rank == 2]
        scores = program.results[0].type
        tokens = [v for v in ids if v.type.shape == scores.shape[:2]]
        if not tokens or not (scores.rank == 3 and scores.dtype.floating):
            fact = f"{self.lowered.name} gives {scores}, no score of each next token for token ids [B, T]"
            raise TfcError(Diagnostic("E723", fact, help="decode takes and gives anything"))
        return Generator(self.decoder, tokens[0].name)

    def generate(
        self,
        params: "Params | Packed",
        tokens: Any,
        steps: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        key: Array | None = None,
        lengths: Any = None,
        stop: int | Sequence[int] | None = None,
        progress: bool = True,
        **once: Any,
    ) -> np.ndarray[Any, Any]:
        """The tokens that follow the prompts: int32 [B, steps], or as many until every row has stopped.

        tokens: token ids [B, P], of which the first `lengths` [B] of a row are its prompt; or lists, which may differ
        in length. temperature: 0 for the most likely token; else it is drawn, with `key`, among the `top_k` most likely
        ones and of those among the fewest with a probability of `top_p` together. Draws do not depend on how the steps
        are cut into loops. stop: tokens after which a row ends; what follows in it repeats the first of them.
        progress: a bar where stderr is a terminal. once: the model's inputs that say nothing of single tokens, by name:
        the text that an encoder reads, with as many rows as there are prompts; read once, before the first token.

        Prompts and caches are padded to buckets of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... tokens, powers of two and the
        halves between, so that few lengths are compiled; 32 steps run in one compiled loop.
        Raises TfcError: as `init_cache` and a call do; E703, E705, E706 for prompts and settings.
        """
        prompts, counts = prompts_of(tokens, lengths)
        sampling = sampling_of(steps, temperature, top_k, top_p, key)
        generator = self._generator
        others = [i for i in self.lowered.inputs if i.value.name not in self.decoder.once | {generator.tokens}]
        if wrong := [i.value.name for i in others if i.default is None or i.value.name in once]:
            fact = f"{self.lowered.name} takes `{wrong[0]}` with each token"
            raise TfcError(Diagnostic("E701", fact, help="call decode step by step"))
        given = {name: _array(name, x) for name, x in once.items()}
        required = any(i.default is None for i in self.lowered.inputs if i.value.name in self.decoder.once)
        if given or required:
            self.decoder.check_once(given, len(prompts))
        self._present()
        self._look({generator.tokens: prompts, **given})
        packed = params if isinstance(params, Packed) else self.pack(params)
        ends = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
        return generator(packed, prompts, counts, steps, sampling, key, ends, progress, given)


def _array(name: str, x: Any) -> Any:
    """What JAX and numpy hold as it is, anything else as numpy reads it. Raises TfcError (E703) where that fails."""
    if isinstance(x, jax.Array | np.ndarray):
        return x
    try:
        array = np.asarray(x)
    except ValueError:
        raise TfcError(Diagnostic("E703", f"`{name}` is a list of unequal lengths, not an array")) from None
    if array.dtype.kind not in "biuf":
        raise TfcError(Diagnostic("E703", f"`{name}` is {type(x).__name__}, not an array of numbers"))
    return array


def _seed(key: Any) -> Array:
    """int32 [2]: the seed that a key stands for. Raises TfcError (E703) for what is no key, or several."""
    try:
        return jax.random.bits(key, (2,), jnp.uint32).astype(jnp.int32)
    except (TypeError, ValueError) as e:
        fact = f"`key` is {type(key).__name__}, not one key of jax.random"
        raise TfcError(Diagnostic("E703", fact, help="key=jax.random.key(0)")) from e
