"""A model, its parameters and batches of texts -> the queries and keys of its attentions; hash functions of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tfc.calibration import Batch, Reducer, statistics
from tfc.diagnostics import Diagnostic, TfcError
from tfc.ir.program import Stored
from tfc.model import Model, Packed
from tfc.params.apply import evaluate
from tfc.params.fit.ksh import Attended
from tfc.params.tree import DTYPES
from tfc.passes.hash_attention import ROLES, calls
from tfc.passes.observe import Which, attentions, observe

__all__ = ["Texts", "Whole", "attended", "hash_functions"]

Array = jax.Array
Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Texts:
    """values: [turns.., S, T, ...], zero beyond a text's end.   real: bool [S, T]"""

    values: Host
    real: Host


@dataclass(frozen=True)
class Whole:
    """x [turns.., B, T, ...] -> `Texts`: the values of the first `limit` texts, whole, filled up to one length."""

    limit: int = 64

    def part(self, x: Array, turns: int, real: Array | None, key: Array) -> tuple[Array, Array]:
        there = jnp.ones(x.shape[turns : turns + 2], bool) if real is None else real
        shown = there.reshape(*there.shape, *[1] * (x.ndim - turns - 2))
        return jnp.where(shown, x.astype(jnp.float32), 0), there

    def merge(self, state: list[Texts] | None, part: tuple[Host, Host]) -> list[Texts]:
        state = state or []
        left = self.limit - sum(len(t.real) for t in state)
        values, real = part
        turns = values.ndim - real.ndim - 2  # heads and channels
        if left > 0:
            state.append(Texts(values[(slice(None),) * turns + (slice(left),)], real[:left]))
        return state

    def finish(self, state: list[Texts], turns: int) -> Texts:
        longest = max(t.real.shape[1] for t in state)

        def filled(x: Host, axis: int) -> Host:
            widths = [(0, longest - n if i == axis else 0) for i, n in enumerate(x.shape)]
            return np.pad(x, widths)

        values = np.concatenate([filled(t.values, turns + 1) for t in state], axis=turns)
        return Texts(values, np.concatenate([filled(t.real, 1) for t in state]))


def attended(
    model: Model,
    params: Mapping[str, Any] | Packed,
    batches: Iterable[Batch],
    *,
    chosen: Callable[[str], bool] = lambda place: True,
    real: Callable[[Mapping[str, Any]], Any] | None = None,
    limit: int = 64,
    progress: bool = True,
) -> dict[str, Attended]:
    """What the attentions at the chosen places attend to, by the place (`layer.look`): the data that `ksh` asks for.

    real: as of `statistics`. limit: how many texts are kept, the first ones. A place with several attentions has the
    texts of each. Raises as `statistics` does.
    """
    found = statistics(model, params, batches, attentions(chosen), Whole(limit), real=real, progress=progress)
    return _by_place(found)


def _by_place(found: Mapping[str, Texts]) -> dict[str, Attended]:
    places = [name.removesuffix(".queries") for name in found if name.endswith(".queries")]
    sides = {place: (found[f"{place}.queries"], found[f"{place}.keys"]) for place in places}
    return {place: Attended(q.values, k.values, q.real, k.real) for place, (q, k) in sides.items()}


class Trained(Protocol):
    """What a conversion starts from: `tfc.conversion.Trained`."""

    @property
    def model(self) -> Model: ...
    @property
    def key(self) -> Array | None: ...
    def statistics(self, which: Which, reduce: Reducer[Any, Any]) -> dict[str, Any]: ...


def hash_functions(trained: Trained, to: Model, wanted: Sequence[Stored]) -> tuple[dict[str, Array], set[str]]:
    """The hash functions of a hashed attention of `to`, fitted to the attention that stands there in the trained model:
    (arrays by path, no path used up). An entry of `tfc.conversion.FITTING`.

    Raises TfcError: E631 without data, E632 where the trained model has no attention there, or one of other heads.
    """
    roles = {stored.path.rpartition(".")[2]: stored for stored in wanted}
    place = wanted[0].path.rpartition(".")[0]
    if not roles.keys() <= set(ROLES) or not {"anchor", "vote", "center"} <= roles.keys():
        fact = f"`ksh` fits {', '.join(ROLES)} of a hashed attention, not {', '.join(roles)} of `{place}`"
        raise TfcError(Diagnostic("E632", fact, help="hashed_attention of the library declares them"))
    found = _near(place, trained.model)
    data = _by_place(trained.statistics(attentions({found}.__contains__), Whole()))[found]
    anchor, vote = roles["anchor"].type.ints, roles["vote"].type.ints
    have, want = (*data.keys.shape[:-4], *data.keys.shape[-2:]), (*anchor[:-2], anchor[-1])
    if have != want:
        fact = f"`{place}` hashes heads {list(want)}, and the keys at `{found}` are {list(have)}"
        raise TfcError(Diagnostic("E632", fact, help="turns, key heads and their size must be the same"))
    fit = roles["anchor"].fit
    settings: dict[str, Any] = dict(fit.settings) if fit is not None else {}
    seed = 0 if trained.key is None else int(jax.random.bits(trained.key) >> 1)
    made = calls(found, vote[-2], anchor[-2], seed=seed, frozen="spread" in roles, fitting=settings)
    done: dict[Any, tuple[Array, ...]] = {}
    arrays = {role: evaluate(call, {}, {found: data}, done) for role, call in made.items()}
    return {s.path: arrays[role].astype(DTYPES[s.type.dtype]) for role, s in roles.items()}, set()


def _near(place: str, model: Model) -> str:
    """The place of the attention that stands at a place, or around it. Raises TfcError E632 where there is none."""
    which: Which = attentions()
    known = {seen.key.rpartition(".")[0] for seen in observe(model.lowered, which).seen}
    around = [p for p in known if f"{place}.".startswith(f"{p}.")]
    if not around:
        fact = f"`{place}` hashes what an attention attends to, and {model.lowered.name} has none there"
        raise TfcError(Diagnostic("E632", fact, help=f"there are {', '.join(sorted(known)) or 'no attentions'}"))
    return max(around, key=len)
