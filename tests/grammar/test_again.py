"""Turns of an unrolled loop that are repeated from earlier ones: the same program as when each is lowered."""

import pytest

from tfc.front import front
from tfc.grammar.lowering.again import Turns

HEAD = "tfm 1\nattention far { heads = 2   mask = causal }\nattention near = far { mask = causal and window(4) }\n"
LIST = "[ffn, far, near, ffn, far, far, near, ffn, near]"
BODIES = {
    # name: (items before the loop, the body of a turn, what follows), how many turns are repeated
    "residual": ("", "x = x + f(rms(x))", "return x", 5),
    "labels": ("", "x = rms@after(x + f@inside(rms@before(x)))", "return x", 5),
    "a constant": ("", "x = x * 0.5 + f(x) * 2", "return x", 5),
    "a parameter of the turn": (
        "",
        "param gain[16] = ones\n y[b, t, c] = gain[c] * x[b, t, c]\n x = f(y)",
        "return x",
        5,
    ),
    "what came in, by another name": ("first = x", "x = first + f(x)", "return x", 5),
    "two are carried": ("y = x * 2", "z = f(x) + y\n y = x\n x = z", "return x + y", 4),
    "two that are one": ("y = x", "y = x + f(y)\n x = y", "return x", 5),
    "only some turns change it": ("y = x", "x = f(x)", "return x + y", 5),
    "a number is carried": ("n = 1", "x = x + n * f(x)\n n = n + 1", "return x", 0),
    "fields": ("x = tag(x, keep = keep)", "x = tag(x + f(x), keep = keep)", "return if(x.keep, x, 0 * x)", 5),
    "weights of the body around": ("linear same = linear", "x = f(same(x, 16))", "return x", 5),
    "a loop in the turn": ("", "repeat 2 as inner { x = f(x) }", "return x", 0),
    "a list in the turn": ("", "repeat [rms, layer_norm] as norm { x = norm(x) }\n x = f(x)", "return x", 5),
    "a report": ("", "x = x + f(x)\n report size = mean(x)", "return x", 0),
    "a statistic": ("", "m[c] = mean[b, t](x[b, t, c])\n x = f(x) * calibrated(m)", "return x", 0),
}


def text(name: str) -> str:
    before, body, after, _ = BODIES[name]
    loop = f"repeat {LIST} as f {{\n {body}\n }}"
    return f"{HEAD}model m(x: real[B, T, 16], keep: bool[B, T]) {{\n {before}\n {loop}\n {after}\n}}\n"


@pytest.mark.parametrize("name", BODIES)
def test_the_program_is_the_same(name, monkeypatch):
    """Values, their names, parameters and their paths; and the turns that could be repeated were."""
    found: list[bool] = []
    again = Turns.again
    monkeypatch.setattr(Turns, "again", lambda *a: found.append(again(*a)) or found[-1])
    quick = front(text(name))
    monkeypatch.setattr(Turns, "again", lambda *a: False)
    slow = front(text(name))
    assert quick.lowered.program == slow.lowered.program
    assert str(quick.program) == str(slow.program)
    assert [e.span for e in quick.lowered.program.eqns] == [e.span for e in slow.lowered.program.eqns]
    assert quick.lowered.program.stored() == slow.lowered.program.stored()
    assert sum(found) == BODIES[name][3]


def test_a_change_reaches_every_turn(monkeypatch):
    """What a derivation changes inside the loop, and what it misses, is said as without repeated turns."""
    block = f"block b(x) {{\n repeat {LIST} as f {{ x = x + f(rms@before(x)) }}\n return x\n}}\n"
    made = front(f"{HEAD}{block}b c = b {{ f.before.eps = 0.5 }}\nmodel m(x: real[B, T, 16]) {{ return c(x) }}\n")
    monkeypatch.setattr(Turns, "again", lambda *a: False)
    same = front(f"{HEAD}{block}b c = b {{ f.before.eps = 0.5 }}\nmodel m(x: real[B, T, 16]) {{ return c(x) }}\n")
    assert made.program == same.program
