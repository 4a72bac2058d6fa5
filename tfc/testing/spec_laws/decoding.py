"""Laws of decoding: whatever the split of a text into calls, the results are those of one call."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from tfc.backends.emit import emit
from tfc.backends.kernel import DTYPES
from tfc.backends.reference.program import evaluate
from tfc.diagnostics import TfcError
from tfc.ir.program import Program
from tfc.ir.text import parse, show
from tfc.ir.types import Dim
from tfc.ir.verify import verify
from tfc.passes.decode import COUNT, LENGTH, Decode, kept, tokens_of
from tfc.testing.interpreted import interpreted
from tfc.testing.spec_laws.rounding import FINEST, apart, noise
from tfc.testing.spec_laws.subject import Array, Refused, Subject

__all__ = ["decoded", "form_of", "kernels", "time_of"]


def form_of(s: Subject) -> Program:
    """The decoding form of the wide program after the passes. Raises Refused where there is none."""
    try:
        form = Decode()(s.wide.program).program
    except TfcError as error:
        raise Refused(error.diagnostics[0].message.partition(": ")[2] or error.diagnostics[0].message) from None
    verify(form, after="decode")
    return form


def time_of(program: Program) -> tuple[str, str]:
    """The names of the rows and of the tokens."""
    tokens = tokens_of(program)
    assert tokens is not None, "a decoding form has tokens"
    batch, time = tokens.type.shape[:2]
    return str(batch), str(time)


def decoded(s: Subject) -> str | None:
    """By the definitions; the form is read back from its text, too."""
    form = form_of(s)
    if parse(show(form)) != form:
        return f"the decoding form's text is of another program\n{show(form)}"
    params, _ = s.arrays(s.wide, s.wide.map)

    def step(bound: Program, given: dict[str, Any]) -> Any:
        return interpreted(lambda p, x: evaluate(bound, p, x, jnp.float64))(params, given)

    return _split(s, form, step)


def kernels(s: Subject) -> str | None:
    """By the target's kernels."""
    form = form_of(s)
    params, _ = s.arrays(s.wide, s.wide.map)
    run = emit(form, s.target)

    def step(bound: Program, given: dict[str, Any]) -> Any:
        return s.called(run, params, given)

    return _split(s, form, step)


def _split(s: Subject, form: Program, step: Any) -> str | None:
    """Two calls of unequal parts, rows ragged in the first, against one."""
    declared = s.wide.lowered.inputs
    batch, time = time_of(s.wide.lowered)
    rows, total = s.lengths.get(batch, 1), s.lengths.get(time, 1)
    slots = {str(n) for v in kept(form) for n in v.type.shape if isinstance(n, Dim)} - {batch}
    timed = {i.value.name for i in declared if len(i.value.type.shape) > 1 and str(i.value.type.shape[1]) == time}
    rng = np.random.default_rng(s.seed)
    first = rng.integers(0, total + 1, rows)
    first[0] = max(1, total // 2)
    length, caches = np.zeros(rows, int), None
    given = s.given(s.wide, s.inputs)
    allowed = noise(s)
    for counts in (first, total - first):
        new = int(counts.max())
        if not new:
            continue
        bound = form.bind({**s.lengths, time: new, **dict.fromkeys(slots, total)})
        if caches is None:
            caches = {v.name: jnp.zeros(v.type.ints, DTYPES[v.type.dtype]) for v in kept(bound)}
        at = np.minimum(length[:, None] + np.arange(new), total - 1)
        part = {k: jnp.stack([x[b, at[b]] for b in range(rows)]) if k in timed else x for k, x in given.items()}
        taken = {**part, LENGTH: jnp.asarray(length, jnp.int32), COUNT: jnp.asarray(counts, jnp.int32), **caches}
        found = step(bound, taken)
        results, after = found[: len(found) - len(caches)], found[len(found) - len(caches) :]
        for i, got in enumerate(results):
            whole: Array = s.values[i]
            for b in range(rows):
                n, own = int(counts[b]), slice(int(length[b]), int(length[b] + counts[b]))
                if n and (said := apart(f"result {i}", np.asarray(got)[b, :n], whole[b, own], allowed[i], FINEST)):
                    return f"row {b}, tokens {own.start} to {own.stop}: {said}"
        length, caches = length + counts, dict(zip(caches, after, strict=True))
    return None
