"""What a training run holds <-> one safetensors file, bit for bit, so that a run can go on as if it had not stopped."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfc.diagnostics import Diagnostic, TfcError
from tfc.params.files import Arrays, few, opened

__all__ = ["State", "restore", "save"]

FORMAT = "tfc training state 1"


class State(NamedTuple):
    """Everything that the next step depends on. params: the model's. optimizer: optax's. step: how many are done.
    key: `jax.random.key(seed)`, from which each step makes its own: `jax.random.fold_in(state.key, state.step)`."""

    params: Any
    optimizer: Any
    step: Any
    key: Any


def save(state: Any, path: str | os.PathLike[str]) -> None:
    """Writes a pytree of arrays, numbers and keys of jax.random (a `State`, say). The file appears whole or not at all:
    whoever is interrupted finds the one before.

    Raises TfcError: E606 for another ending than `.safetensors`, E607 where the file cannot be written or a leaf is
    no array, E602 where two leaves would have one name.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise TfcError(Diagnostic("E606", f"{file} does not end in .safetensors", help="that is what tfc writes"))
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    keys: dict[str, str] = {}
    for name, leaf in _leaves(state):
        if name in arrays:
            raise TfcError(Diagnostic("E602", f"two leaves of the state are called `{name}`", help="rename one"))
        arrays[name], kind = _stored(name, leaf)
        if kind:
            keys[name] = kind
    metadata = {FORMAT: json.dumps(keys, sort_keys=True)}  # of one entry: several would come in any order
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".tfc-") as folder:
            made = Path(folder) / file.name
            save_file(arrays, made, metadata=metadata)
            with made.open("rb") as f:
                os.fsync(f.fileno())
            os.replace(made, file)
    except OSError as e:
        raise TfcError(Diagnostic("E607", f"{file} cannot be written: {e.strerror or e}")) from None


def restore[T](path: str | os.PathLike[str], like: T) -> T:
    """The state that `save` wrote, in the structure of `like`: arrays, or what `jax.eval_shape` says of them.

    Raises TfcError, ten complaints at most: E601 for a leaf that the file lacks, E602 for one that `like` does not
    have, E603 for another shape, E605 for another element type or kind of key, E606 and E607 for other files.
    """
    leaves = dict(_leaves(like))
    with opened(path) as arrays:
        keys = _keys(path, arrays)
        faults = [Diagnostic("E601", f"{path} lacks `{name}`") for name in leaves if name not in arrays.names]
        faults += [
            Diagnostic("E602", f"{path} has `{name}`, which this run does not", help="was it another optimizer's?")
            for name in arrays.names
            if name not in leaves
        ]
        found: list[Any] = []
        for name, leaf in leaves.items():
            if name in arrays.names:
                made = _restored(name, leaf, arrays[name], keys.get(name, ""))
                (faults if isinstance(made, Diagnostic) else found).append(made)
    if faults:
        raise TfcError(*few(faults))
    restored: T = jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), found)
    return restored


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Each leaf by its path: `params.layer.look.q.weight`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator=".") or "state", leaf


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(name: str, leaf: Any) -> tuple[np.ndarray[Any, Any], str]:
    """The leaf as numpy has it, and the kind of key that it is, if it is one."""
    if _is_key(leaf):
        return np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufV" or array.dtype.hasobject:  # V: bfloat16 and other types of ml_dtypes
        raise TfcError(Diagnostic("E607", f"`{name}` is {type(leaf).__name__}, no array that safetensors holds"))
    return np.ascontiguousarray(array).reshape(array.shape), ""


def _keys(path: str | os.PathLike[str], arrays: Arrays) -> Mapping[str, str]:
    if FORMAT not in arrays.metadata:
        fact = f"{path} is no state of a training run"
        raise TfcError(Diagnostic("E607", fact, help="model.load reads parameters alone"))
    found: dict[str, str] = json.loads(arrays.metadata[FORMAT])
    return found


def _restored(name: str, like: Any, array: np.ndarray[Any, Any], kind: str) -> Any:
    """The array as `like` is, or the complaint."""
    if _is_key(like):
        expected = str(jax.random.key_impl(like)) if isinstance(like, jax.Array) else kind
        if kind != expected or not kind:
            return Diagnostic("E605", f"`{name}` is {f'a key of {kind}' if kind else 'no key'}, not one of {expected}")
        made: Any = jax.random.wrap_key_data(jnp.asarray(array), impl=kind)
        shape = made.shape
    else:
        wanted = np.asarray(like).dtype if isinstance(like, bool | int | float) else np.dtype(like.dtype)
        if array.dtype != wanted:
            return Diagnostic("E605", f"`{name}` is {array.dtype}, not {wanted}")
        made, shape = array, array.shape
    if shape != np.shape(like):
        return Diagnostic("E603", f"`{name}` has the shape {list(shape)} in the file, {list(np.shape(like))} here")
    if isinstance(like, bool | int | float):
        return type(like)(array)
    return made if _is_key(like) or isinstance(like, np.ndarray) else jnp.asarray(array)
