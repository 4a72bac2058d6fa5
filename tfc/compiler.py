"""A spec, a target and the passes' names turned into a model: the whole way from text to a jitted callable."""

import os
from collections.abc import Iterable

from tfc.front import front
from tfc.model import Model
from tfc.passes import pipeline
from tfc.passes.base import Pass
from tfc.targets import resolve

__all__ = ["compile"]


def compile(
    path_or_text: str | os.PathLike[str],
    target: str = "auto",
    implementation: str | None = None,
    passes: Iterable[str | Pass] | None = None,
    *,
    interpret: bool = False,
    model: str | None = None,
    **lets: object,
) -> Model:
    """The model that a spec describes, for a target.

    path_or_text: a `.tfm` file, or its text. target: `auto` for the first device of this machine, or a name such as
    `cpu`, `h200`. implementation: the kernel to use wherever an operation has one of that name. passes: names or
    passes, in their order, instead of the default ones. interpret: run the target's kernels by interpretation on
    this machine's CPU. model: the model's name, where the file has several (else its last). lets: other values for
    the spec's `let`s, `layers=2`.

    Raises TfcError: every complaint about the spec (E0xx to E5xx), and E801 to E814 for the target, the passes and
    the implementation.
    """
    chosen = None if passes is None else tuple(passes)
    built = front(path_or_text, lets, chosen, model)
    program = built.lowered.program

    def optimize(held: frozenset[str]) -> pipeline.Result:
        return pipeline.run(program, (*pipeline.opening(program), *_passes(chosen)), held) if held else built.result

    def dropping(held: frozenset[str]) -> pipeline.Result:
        return pipeline.run(program, (*pipeline.opening(program, seeded=True), *_passes(chosen)), held)

    made = Model(program, optimize, resolve(target, interpret), implementation, built.names, dropping)
    made.spec = path_or_text, lets
    return made


def _passes(given: Iterable[str | Pass] | None) -> tuple[Pass, ...]:
    if given is None:
        return pipeline.DEFAULT
    return tuple(p for item in given for p in (pipeline.choose([item]) if isinstance(item, str) else (item,)))
