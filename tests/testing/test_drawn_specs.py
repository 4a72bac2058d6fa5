"""Drawn specs: `tfc check` takes every one, they use every concept of the language, and no law is violated by any."""

from collections import Counter

import jax
import pytest
from hypothesis import given, settings

from tfc.front import front
from tfc.testing.drawn import MODES, Drawn, Mode, numbered, specs
from tfc.testing.spec_laws import LAWS, Claims, Subject
from tfc.testing.spec_laws.judging import verdict

JUDGED, CHECKED = 8, 105
"""How many are judged by default, and how many only checked."""

COSTLY = frozenset(law.name for law in LAWS if "gradients" in law.name or "mapped" in law.name)
"""By default they are asked of every second spec."""

CONCEPTS = {
    "MHA", "GQA", "MQA", "attend", "block", "block declared", "bf16", "change at a call", "derived", "documents",
    "experts", "ffn", "field", "gate", "gated ffn", "index equation", "input format", "kv_cache", "latent attention",
    "lengths", "long residual", "mask by turn", "mask declared", "mask drawn", "mask named", "mask with inputs",
    "memory",
    "nested repeat", "norm", "norm of all tokens", "param", "position", "positions given", "positions of the stream",
    "post norm", "qk_norm", "real input", "recurrence", "repeat", "repeat over a list", "report", "report in a loop",
    "route", "score", "score declared", "several results", "shared weights", "sink", "small maps", "weigh",
    "weight format",
}  # fmt: skip


def drawn(count: int) -> list[Drawn]:
    return [numbered(i) for i in range(count)]


def judged(spec: Drawn) -> Subject:
    """The spec with what it was drawn to keep as claims."""
    mode = spec.mode
    claims = Claims(mode.causal, "document" if mode.packed else None, "place" if mode.placed else None)
    return Subject(spec.text, lengths=spec.lengths, claims=claims)


def wrong(spec: Drawn, seen: Counter[tuple[str, str]] | None = None, costly: bool = True) -> list[str]:
    """The laws that the spec violates, in words; `seen` counts what came of each. costly: those of most work, too."""
    subject, out = judged(spec), []
    for law in LAWS:
        if law.deep or (law.name in COSTLY and not costly):
            continue
        found = verdict(law, subject)
        if seen is not None:
            seen[law.name, found.status] += 1
        if found.status == "violated":
            out.append(f"{law.name}: {found.detail}\n{spec}")
    return out


def test_every_drawn_spec_is_checked():
    """A text with an error is a fault of the strategy."""
    for spec in drawn(CHECKED):
        assert not [w for w in front(spec.text).warnings if w.severity == "error"]


def test_they_use_the_whole_language():
    used = Counter(concept for spec in drawn(CHECKED) for concept in spec.concepts)
    assert used.keys() >= CONCEPTS, CONCEPTS - used.keys()
    assert {spec.mode for spec in drawn(CHECKED)} == set(MODES)


def test_laws_hold():
    """And each is asked often enough to mean something; refusals are shown with -s."""
    seen: Counter[tuple[str, str]] = Counter()
    found = [said for i, spec in enumerate(drawn(JUDGED)) for said in wrong(spec, seen, costly=i % 2 == 0)]
    assert not found, "\n".join(found)
    for (law, status), n in sorted(seen.items()):
        print(f"{n:4} {status:9} {law}")
    for law in LAWS:
        if not law.deep:
            assert seen[law.name, "passed"] >= 2, law.name


CAUSAL = tuple(mode for mode in MODES if mode.causal and not mode.padded and not mode.packed)


@pytest.mark.slow
@given(spec=specs(modes=CAUSAL))
@settings(max_examples=max(20, settings().max_examples // 5))
def test_laws_hold_of_causal_specs(spec: Drawn):
    """The mode in which most can be decoded."""
    assert not wrong(spec)


@pytest.mark.slow
@given(spec=specs())
@settings(max_examples=max(100, settings().max_examples // 5))
def test_laws_hold_deep(spec: Drawn):
    assert not wrong(spec)


@pytest.mark.slow
def test_jit_changes_nothing():
    (law,) = (law for law in LAWS if law.deep)
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        for spec in drawn(CHECKED)[: JUDGED // 2]:
            assert verdict(law, judged(spec)).status == "passed", spec
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def test_a_free_mode_promises_nothing():
    assert Mode().free and not Mode(causal=True).free
