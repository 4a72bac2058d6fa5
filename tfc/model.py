"""A program, passes and a target turned into a model: parameters in, results out, jitted; weights from and to files."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tfc.backends.binding import bind_call, lengths_of
from tfc.backends.emit import Emitted, emit
from tfc.backends.kernel import Target
from tfc.backends.reach import indexed
from tfc.decoding import Cache, Decoder
from tfc.diagnostics import Diagnostic, TfcError
from tfc.generation import Generator, prompts_of, sampling_of
from tfc.importers.hf import import_hf
from tfc.ir.names import NamesMap
from tfc.ir.param_map import ParamMap
from tfc.ir.program import Program
from tfc.ir.types import Dim, DType, bind
from tfc.params import apply, files, tree
from tfc.params.initial import initial

__all__ = ["Model", "Optimized", "Packed"]

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


@jax.tree_util.register_pytree_node_class
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

    @classmethod
    def tree_unflatten(cls, aux: tuple[tuple[str, ...], frozenset[str]], leaves: Sequence[Any]) -> "Packed":
        return cls(dict(zip(aux[0], leaves, strict=True)), aux[1])

    def __repr__(self) -> str:
        held = f", held back at {', '.join(sorted(self.held))}" if self.held else ""
        return f"Packed({len(self.arrays)} arrays{held})"


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
    ) -> None:
        """optimize: the passes, given the sites to hold back. Raises TfcError as `emit` does."""
        self.lowered = lowered
        self.target = target
        self.implementation = implementation
        self.names = dict(names or {})
        self._optimize = optimize
        self._variants: dict[frozenset[str], tuple[Optimized, Emitted]] = {}
        self._variant(frozenset())

    def __repr__(self) -> str:
        takes = ", ".join(f"{i.value.name}: {i.value.type}" for i in self.lowered.inputs)
        return f"Model {self.lowered.name}({takes}) for {self.target.name}"

    def _variant(self, held: frozenset[str]) -> tuple[Optimized, Emitted]:
        """The program with passes held back at those sites."""
        if held not in self._variants:
            result = self._optimize(held)
            self._variants[held] = result, emit(result.program, self.target, self.implementation)
        return self._variants[held]

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

    def pack(self, params: Params) -> Packed:
        """What the passes make of the parameters: done once, for serving.

        A pass that needs values to be other than they are (a norm's scale without zeros, say) is held back at that
        place. Under a trace values cannot be seen, and nothing is held back.
        Raises TfcError (E601 to E605) for parameters that are not those of the model.
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
        return Packed(apply.pack(self._variant(held)[0].map, flat), held)

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

    def __call__(self, params: "Params | Packed", *inputs: Any, **named: Any) -> Any:
        """The model's result, or a tuple of several. Jitted; differentiable in `params` and in real inputs.

        params: a nested dict (packed inside the jit) or what `pack` gave. inputs: in the order declared, or by name.
        Values are looked at where they are known, outside of traces: row numbers of tables, and lengths. Raises
        TfcError: E601 to E605 for parameters, E701 to E707 for inputs, E815 and E817 where the target cannot run
        here, E818 for a forward-mode derivative of kernels that have none.
        """
        results = self._called(self._jitted, params, inputs, named)
        return results[0] if len(results) == 1 else results

    def reports(self, params: "Params | Packed", *inputs: Any, **named: Any) -> dict[str, Array]:
        """The side outputs that the spec reports (the losses' inputs) by their paths, each with one leading axis for
        each enclosing `repeat`. Arguments and errors as in a call; jitted and differentiable like one.
        """
        found: dict[str, Array] = self._called(self._reporting, params, inputs, named)
        return found

    def _called(
        self, f: Callable[[Any, Any], Any], params: "Params | Packed", inputs: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Any:
        """f of the parameters and of the arguments by name, after everything that can be said of them beforehand."""
        given = self._given(inputs, named)
        self._present()
        self._look(given)
        try:
            return f(params, given)
        except TypeError as e:
            # JAX's own words for this name neither the model nor a way out
            if "forward-mode" not in str(e) or "custom_vjp" not in str(e):
                raise
            fact = f"{self.lowered.name} runs kernels on {self.target.name} that have no forward-mode derivative"
            hint = "jax.grad and jax.vjp work; jvp, jacfwd and hessian do with implementation='xla'"
            raise TfcError(Diagnostic("E818", fact, help=hint)) from e

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
        bound = bind_call(self.lowered, given)
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
        return emitted(packed.arrays, given)

    def _given(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name. Raises TfcError (E701) for too many, or one given twice."""
        declared = [i.value.name for i in self.lowered.inputs]
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
        """Values that are known now, against the tables they index and the lengths they cut.

        Raises TfcError: E704 for a row that a table lacks, E705 for a length.
        """
        faults: list[Diagnostic] = []
        for use in self._tables:
            if use.input in given and (fault := _outside(use.input, given[use.input], 0, use.rows - 1)):
                help = f"it indexes `{use.table}`, whose rows are 0..{use.rows - 1}"
                faults.append(Diagnostic("E704", fault, help=help))
        lengths = lengths_of(self.lowered, given)
        for i in self.lowered.inputs:
            # what a length stands for when left out is the most it can be; a plain number is a value like others
            most = bind(i.default, lengths) if isinstance(i.default, Dim) else None
            name = i.value.name
            if isinstance(most, int) and name in given and (fault := _outside(name, given[name], 1, most)):
                faults.append(Diagnostic("E705", fault, help=f"a length here is 1..{most}, and {most} if left out"))
        if faults:
            raise TfcError(*faults)

    @cached_property
    def _tables(self) -> Sequence[Any]:
        return indexed(self.lowered)

    # --- reports

    def explain(self, **lengths: int) -> Any:
        """Which kernel runs each operation, and why; costs. lengths: `B=8, T=512`; those left out get defaults."""
        from tfc import explain

        result = self._variant(frozenset())[0]
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

    def init_cache(self, batch: int, length: int, dtype: Any = None) -> Cache:
        """An empty cache for `batch` rows of up to `length` tokens each.

        dtype: what keys and values are kept in, `jnp.bfloat16` say; None for the type that they are computed in.
        Raises TfcError: E816, with the place, where the model's results depend on more than the tokens before; E707
        where a table (of positions, say) is shorter than `length`.
        """
        return self.decoder.cache(batch, length, dtype)

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
        given = self._given(inputs, named)
        self._present()
        self._look(given)
        results, after = self.decoder(params, cache, given, count)
        return (results[0] if len(results) == 1 else results), after

    @cached_property
    def _generator(self) -> Generator:
        """Raises TfcError: E816 for what cannot be decoded, E723 for a model that does not go on with token ids."""
        program = self.decoder.form().program
        tokens = [i.value for i in self.lowered.inputs if i.value.type.dtype is DType.I32 and i.value.type.rank == 2]
        scores = program.results[0].type
        if not tokens or not (scores.rank == 3 and scores.dtype.floating and scores.shape[:2] == tokens[0].type.shape):
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
    ) -> np.ndarray[Any, Any]:
        """The tokens that follow the prompts: int32 [B, steps], or as many until every row has stopped.

        tokens: token ids [B, P], of which the first `lengths` [B] of a row are its prompt; or lists, which may differ
        in length. temperature: 0 for the most likely token; else it is drawn, with `key`, among the `top_k` most likely
        ones and of those among the fewest with a probability of `top_p` together. Draws do not depend on how the steps
        are cut into loops. stop: tokens after which a row ends; what follows in it repeats the first of them.
        progress: a bar where stderr is a terminal.

        Prompts and caches are padded to buckets of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... tokens, powers of two and the
        halves between, so that few lengths are compiled; 32 steps run in one compiled loop.
        Raises TfcError: as `init_cache` and a call do; E703, E705, E706 for prompts and settings.
        """
        prompts, counts = prompts_of(tokens, lengths)
        sampling = sampling_of(steps, temperature, top_k, top_p, key)
        generator = self._generator
        others = [i for i in self.lowered.inputs if i.value.name != generator.tokens and i.default is None]
        if others:
            fact = f"{self.lowered.name} takes `{others[0].value.name}` with each token"
            raise TfcError(Diagnostic("E701", fact, help="call decode step by step"))
        self._present()
        self._look({generator.tokens: prompts})
        packed = params if isinstance(params, Packed) else self.pack(params)
        ends = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
        return generator(packed, prompts, counts, steps, sampling, key, ends, progress)


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


def _outside(name: str, x: Any, low: int, high: int) -> str:
    """The first element that is not in low..high, in words; nothing for a tracer, whose values are not known."""
    if isinstance(x, Tracer) or not jnp.issubdtype(x.dtype, jnp.integer):
        return ""
    values = np.asarray(x)
    wrong = (values < low) | (values > high)
    if not wrong.any():
        return ""
    at = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    place = f"[{', '.join(map(str, map(int, at)))}]" if at else ""
    more = f" (and {int(wrong.sum()) - 1} more)" if wrong.sum() > 1 else ""
    return f"`{name}{place}` is {int(values[at])}, outside {low}..{high}{more}"
