"""A spec at the small size of its head -> its definitions in float64, with parameters to change and inputs to try.

Arrays are computed by the operations' definitions (`backends.reference`), compiled once for each set of shapes.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tfc.backends.reference.program import evaluate
from tfc.front import front
from tfc.ir.program import Program
from tfc.params.initial import initial
from tfc.testing.specs import read_head

__all__ = ["Small"]

Array = NDArray[Any]


class Small:
    """A model made small.

    path: a spec with a head. change: what is done to its text before it is read, for a model that should be equal.
    sets: values of `let`s, over those of the head. Needs `jax.enable_x64` in calls.
    """

    def __init__(self, path: Path, change: Callable[[str], str] | None = None, **sets: object) -> None:
        text = path.read_text(encoding="utf-8")
        changed = text if change is None else change(text)
        if change is not None and changed == text:
            raise ValueError(f"{path}: the change finds nothing to change")
        given = {**read_head(path).sets, **sets}
        self.program: Program = front(path if change is None else changed, given, ()).lowered.program
        self._call = jax.jit(self._results, compiler_options={"xla_backend_optimization_level": 0})

    @cached_property
    def params(self) -> dict[str, Array]:
        """By path: untrained ones as they are initialized, trained ones moved by normal numbers of deviation 0.3.

        The same for the same path and shape, whatever the model.
        """
        start = initial(self.program.stored(), jax.random.key(0))
        out = {}
        for stored in self.program.stored():
            rng = np.random.default_rng(list(stored.path.encode()))
            moved = 0.3 * rng.normal(size=stored.type.ints) if stored.trained else 0.0
            out[stored.path] = np.asarray(start[stored.path], np.float64) + moved
        return out

    def with_params(self, **changes: Array | float) -> dict[str, Array]:
        """The parameters, where each that ends with a name (`_` for `.`) is replaced: by an array or a number all over.

        Raises KeyError for a name that no parameter ends with.
        """
        out = dict(self.params)
        for name, value in changes.items():
            found = [p for p in out if p.replace(".", "_").endswith(name)]
            if not found:
                raise KeyError(f"{name}: the parameters are {', '.join(out)}")
            for p in found:
                out[p] = np.broadcast_to(np.asarray(value, np.float64), out[p].shape)
        return out

    def __call__(self, *, params: Any = None, **inputs: Any) -> Array:
        """The first result. params: arrays by path, where they are not the model's own."""
        return self.all(params=params, **inputs)[0]

    def all(self, *, params: Any = None, **inputs: Any) -> list[Array]:
        """The results, then the reports in the program's order."""
        arrays = {name: jnp.asarray(x) for name, x in (self.params if params is None else params).items()}
        return [np.asarray(x) for x in self._call(arrays, {name: jnp.asarray(x) for name, x in inputs.items()})]

    def report(self, name: str, *, params: Any = None, **inputs: Any) -> Array:
        """The side output whose path ends with the name."""
        paths = [path for path, _ in self.program.reports]
        (place,) = [i for i, path in enumerate(paths) if path.endswith(name)]
        return self.all(params=params, **inputs)[len(self.program.results) + place]

    def _results(self, arrays: Mapping[str, jax.Array], inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        lengths: dict[str, int] = {}
        for declared in self.program.inputs:
            for size, n in zip(declared.value.type.shape, inputs[declared.value.name].shape, strict=True):
                if not isinstance(size, int):
                    lengths[str(size)] = n
        return evaluate(self.program.bind(lengths), arrays, inputs, jnp.float64)
