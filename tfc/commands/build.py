"""A spec's path and the `let`s of a command line -> a model; `tfc.compile` for names that Python could not pass."""

from collections.abc import Mapping

from tfc.front import front
from tfc.model import Model
from tfc.passes import pipeline
from tfc.targets import resolve

__all__ = ["build"]


def build(file: str, sets: Mapping[str, str], target: str, implementation: str | None = None) -> Model:
    """The model. A `let` may have any name here, `target` and `model` too. Raises TfcError as `tfc.compile` does."""
    lowered = front(file, sets).lowered

    def optimized(held: frozenset[str], seeded: bool = False) -> pipeline.Result:
        passes = (*pipeline.opening(lowered.program, seeded), *pipeline.DEFAULT)
        return pipeline.run(lowered.program, passes, held)

    def dropping(held: frozenset[str]) -> pipeline.Result:
        return optimized(held, seeded=True)

    return Model(lowered.program, optimized, resolve(target), implementation, lowered.names, dropping)
