"""Prompts and a decoder turned into more tokens: greedy or drawn, many steps in one compiled loop."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tfc.decoding import Cache, Decoder
from tfc.diagnostics import Diagnostic, TfcError

__all__ = ["CHUNK", "Generator", "Sampling", "bucket", "pick", "prompts_of", "sampling_of"]

Array = jax.Array

CHUNK = 32
"""Steps of one compiled loop; between loops the progress is shown, and it is seen whether every row has stopped."""


def bucket(length: int) -> int:
    """The length that prompts and caches are padded to: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... powers of two and the halves
    between them. So a model is compiled for a few lengths, of which at most a third is padding."""
    power = 1
    while power < length:
        power *= 2
    half = power - power // 4
    return half if half >= length else power


@dataclass(frozen=True, slots=True)
class Sampling:
    """What decides the next token. temperature 0: the most likely one."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None


class Generator:
    """Generation with one model; its loops are compiled when first used."""

    def __init__(self, decoder: Decoder, tokens: str) -> None:
        """tokens: the name of the input that takes token ids."""
        self.decoder, self.tokens = decoder, tokens
        self._prefill = jax.jit(self._filled, donate_argnums=1)
        self._loops: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(
        self,
        packed: Any,
        prompts: np.ndarray[Any, Any],
        lengths: np.ndarray[Any, Any],
        steps: int,
        sampling: Sampling,
        key: Array | None,
        stop: tuple[int, ...],
        progress: bool,
        once: Mapping[str, Any],
    ) -> np.ndarray[Any, Any]:
        """int32 [B, n], n <= steps. prompts: int32 [B, P], of which the first `lengths` count, 1 or more. once: the
        inputs that are given once."""
        rows, longest = prompts.shape
        cache = self._room(rows, int(lengths.max()) + steps - 1)
        if once:
            cache = self.decoder.remember(packed, cache, once)
        if width := bucket(longest - 1) if longest > 1 else 0:
            before = np.zeros((rows, width), np.int32)
            before[:, : longest - 1] = prompts[:, :-1]
            cache = self._prefill(packed, cache, before, lengths - 1)
        token: Any = prompts[np.arange(rows), lengths - 1]
        done: Any = np.zeros(rows, bool)
        loop = self._loop(sampling.temperature == 0, sampling.top_k, sampling.top_p is not None, stop)
        key = jax.random.key(0) if key is None else key
        found: list[np.ndarray[Any, Any]] = []
        with shown(steps, progress) as show:
            for start in range(0, steps, CHUNK):
                count = min(CHUNK, steps - start)
                chance = sampling.temperature, sampling.top_p or 1.0
                cache, token, done, out, ran = loop(packed, cache, token, done, key, start, count, *chance)
                found.append(np.asarray(out)[:, : int(ran)])
                show(start + int(ran))
                if np.all(done):
                    break
        return np.concatenate(found, axis=1)

    def _room(self, rows: int, length: int) -> Cache:
        """A cache for a bucket of tokens; where the model's tables are shorter, for just as many as there will be."""
        try:
            return self.decoder.cache(rows, bucket(length))
        except TfcError as error:
            if {d.code for d in error.diagnostics} != {"E707"}:
                raise
            return self.decoder.cache(rows, length)

    def _filled(self, packed: Any, cache: Cache, tokens: Any, count: Any) -> Cache:
        """The cache after tokens whose results nobody asks for."""
        return self.decoder.step(packed, cache, {self.tokens: tokens}, count)[1]

    def _loop(self, greedy: bool, top_k: int | None, cut: bool, stop: tuple[int, ...]) -> Callable[..., Any]:
        asked = (greedy, top_k, cut, stop)
        if asked not in self._loops:
            self._loops[asked] = jax.jit(self._chunk(greedy, top_k, cut, stop), donate_argnums=1)
        return self._loops[asked]

    def _chunk(self, greedy: bool, top_k: int | None, cut: bool, stop: tuple[int, ...]) -> Callable[..., Any]:
        def chunk(packed: Any, cache: Cache, token: Array, done: Array, key: Array, start: Any, count: Any,
                  temperature: Any, top_p: Any) -> tuple[Any, ...]:  # fmt: skip
            ends = jnp.asarray(stop or (-1,), jnp.int32)

            def going(state: tuple[Any, ...]) -> Array:
                more: Array = (state[0] < count) & ~jnp.all(state[3])
                return more

            def turn(state: tuple[Any, ...]) -> tuple[Any, ...]:
                i, cache, token, done, out = state
                results, cache = self.decoder.step(packed, cache, {self.tokens: token[:, None]}, None)
                scores = results[0][:, -1].astype(jnp.float32)
                drawn = None if greedy else jax.random.fold_in(key, start + i)
                chosen = pick(scores, drawn, temperature, top_k, top_p if cut else None)
                chosen = jnp.where(done, ends[0] if stop else 0, chosen)
                done = done | jnp.any(chosen[:, None] == ends, axis=1)
                return i + 1, cache, chosen, done, out.at[:, i].set(chosen)

            out = jnp.zeros((token.shape[0], CHUNK), jnp.int32)
            start_state = (jnp.int32(0), cache, token.astype(jnp.int32), done, out)
            i, cache, token, done, out = lax.while_loop(going, turn, start_state)
            return cache, token, done, out, i

        return chunk


def pick(scores: Array, key: Array | None, temperature: Any, top_k: int | None, top_p: Any) -> Array:
    """The next token of each row, int32 [B]; without a key the largest score, of equal ones the lowest number.

    scores: [B, V]. Else drawn from softmax(scores / temperature), of the top_k largest scores (and those equal to the
    last of them), of which the fewest stay that have a probability of top_p together (arXiv:1904.09751).
    """
    if key is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    scores = scores / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        scores = jnp.where(scores < lax.top_k(scores, top_k)[0][:, -1:], -jnp.inf, scores)
    if top_p is not None:
        ordered = -jnp.sort(-scores, axis=-1)
        share = jax.nn.softmax(ordered, axis=-1)
        kept = jnp.cumsum(share, axis=-1) - share < top_p  # what comes before is less: the first always stays
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    return jax.random.categorical(key, scores, axis=-1).astype(jnp.int32)


def prompts_of(tokens: Any, lengths: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(int32 [B, P], int32 [B]) of an array, or of lists that may differ in length.

    Raises TfcError: E703, E705, E706.
    """
    if isinstance(tokens, Sequence) and lengths is None and all(isinstance(row, Sequence) for row in tokens):
        lengths = [len(row) for row in tokens]
        tokens = [[*row, *[0] * (max(lengths, default=0) - len(row))] for row in tokens]
    found: np.ndarray[Any, Any] = np.asarray(tokens)
    if found.ndim != 2 or (found.size and found.dtype.kind not in "iu"):
        fact = f"prompts are token ids [B, P], not {found.dtype.name}[{', '.join(map(str, found.shape))}]"
        raise TfcError(Diagnostic("E703", fact, help="one prompt is a batch of one: [[1, 2, 3]]"))
    if 0 in found.shape:
        raise TfcError(Diagnostic("E706", "generation goes on from a token at least", help="begin with a start token"))
    rows, longest = found.shape
    counts: np.ndarray[Any, Any] = np.full(rows, longest) if lengths is None else np.asarray(lengths)
    fits = counts.shape == (rows,) and counts.dtype.kind in "iu"
    if not (fits and counts.min() >= 1 and counts.max() <= longest):
        fact = f"`lengths` is {counts.tolist()} for prompts of {longest} tokens"
        raise TfcError(Diagnostic("E705", fact, help=f"a length for each prompt, 1..{longest}"))
    return found.astype(np.int32), counts.astype(np.int32)


def sampling_of(steps: int, temperature: float, top_k: int | None, top_p: float | None, key: Any) -> Sampling:
    """What was asked for, if it can be. Raises TfcError (E705)."""
    faults = {
        f"steps = {steps}": steps >= 1,
        f"temperature = {temperature}": temperature >= 0,
        f"top_k = {top_k}": top_k is None or top_k >= 1,
        f"top_p = {top_p}": top_p is None or 0 < top_p <= 1,
        "temperature without a key": temperature == 0 or key is not None,
    }
    if wrong := [fact for fact, fine in faults.items() if not fine]:
        hint = "steps and top_k from 1, temperature from 0 (greedy), top_p in (0, 1], key=jax.random.key(0) to draw"
        raise TfcError(Diagnostic("E705", f"generate with {', '.join(wrong)}", help=hint))
    return Sampling(float(temperature), top_k, top_p)


@contextmanager
def shown(steps: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal: what is yielded is told how many steps are done."""
    if not (progress and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("generating", total=steps)
        yield lambda done: bar.update(task, completed=done)
