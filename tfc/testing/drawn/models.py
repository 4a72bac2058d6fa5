"""A whole spec drawn: its inputs, fields, body, results and precision, as text that `tfc check` takes."""

from dataclasses import dataclass
from functools import cache

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tfc.testing.drawn.bodies import steps
from tfc.testing.drawn.writer import LENGTHS, Mode, Writer

__all__ = ["MODES", "Drawn", "numbered", "specs"]

MODES = (
    Mode(),
    Mode(causal=True),
    Mode(causal=True, padded=True),
    Mode(padded=True),
    Mode(causal=True, packed=True),
    Mode(packed=True, placed=True),
    Mode(causal=True, packed=True, placed=True),
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A spec as text, numbers for its lengths, what it was drawn to keep, and the concepts that it uses."""

    text: str
    mode: Mode
    concepts: frozenset[str]

    @property
    def lengths(self) -> dict[str, int]:
        return dict(LENGTHS)

    def __str__(self) -> str:
        return self.text


@st.composite
def specs(draw: st.DrawFn, *, modes: tuple[Mode, ...] = MODES, depth: int = 2) -> Drawn:
    """Specs of B x 6 tokens, eight channels and a few layers, of every concept of the language."""
    mode = draw(st.sampled_from(modes))
    w = Writer(draw, mode)
    with w.body() as body:
        steps(w, depth)
        results = _results(w)
    with w.body() as start:
        _start(w)
    lines = [*start, *body, results]
    doc = '"A drawn model." ' if w.half() else ""
    text = "\n".join(["tfm 1", *_defaults(w), *w.top, f"{doc}model drawn({', '.join(_inputs(w))}) {{", *lines, "}", ""])
    return Drawn(text, mode, frozenset(w.concepts))


SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)


@cache
def numbered(number: int) -> Drawn:
    """A spec by its number, the same each time; modes take turns. The last of a few draws from a seed of its own, as
    Hypothesis begins with what is simple."""
    found: list[Drawn] = []

    @seed(number)
    @settings(
        max_examples=3, derandomize=False, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=SLOW,
    )  # fmt: skip
    @given(specs(modes=(MODES[number % len(MODES)],)))
    def collect(spec: Drawn) -> None:
        found.append(spec)

    collect()
    return found[-1]


def _defaults(w: Writer) -> list[str]:
    if not w.seldom():
        return []
    w.uses("bf16")
    return ["default precision { params = f32   compute = bf16   reduce = f32 }"]


def _inputs(w: Writer) -> list[str]:
    found = ["tokens: int[B, T]"]
    found += ["warmth: real[B, T, 8]"] if w.real else []
    found += ["other: real[B, S, 8]"] if w.memory else []
    found += ["document: int[B, T] = 0"] if w.mode.packed else []
    found += ["place: int[B, T] = 0"] if w.mode.placed else []
    found += ["lengths: int[B] = T"] if w.mode.padded else []
    return found


def _start(w: Writer) -> None:
    """The embedding, and the fields that formulas read."""
    w.line("embed words = embed { vocab = 11   width = 8 }")
    w.line(w.one(["x = words(tokens)", "x = words(tokens) * sqrt(8)"]))
    if w.seldom():
        w.real = True
        w.line("x = x + warmth")
        w.uses("real input")
    if not w.mode.packed and w.seldom():
        w.line(w.one(["x = learned_positions@spots(x, longest = 8)", "x = sinusoidal(x)"]))
        w.uses("positions of the stream")
    tags = [f"{name} = {value}" for name, (_, value) in sorted(w.fields.items())]
    for made, _ in w.fields.values():
        w.line(made)
    if w.mode.packed:
        tags.append("segment = document")
        w.uses("documents")
    if w.mode.placed:
        tags.append("pos = place")
        w.uses("positions given")
    if w.mode.padded:
        w.line("real_token[b, t: length(x)] = t < lengths[b]")
        tags.append("real = real_token")
        w.uses("lengths")
    if tags:
        w.line(f"x = tag(x, {', '.join(tags)})")


def _results(w: Writer) -> str:
    """The model's last statement."""
    if w.seldom():
        w.line(f"report {w.name('load')} = mean(x ^ 2)")
        w.uses("report")
    scores = w.one(["unembed(rms@last(x), words)", "linear@head(layer_norm@last(x), 5)",
                    "softcap(5, s = unembed(x, words))", "rms@last(x)"])  # fmt: skip
    if w.often():
        return f"return {scores}"
    w.uses("several results")
    second = ["x"]
    second += ["mean_pool(x)"] if w.mode.free else ["mean_real(x)"] if w.mode == Mode(padded=True) else []
    return f"return [{scores}, {w.one(second)}]"
