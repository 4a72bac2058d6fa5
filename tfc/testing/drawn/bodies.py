"""Steps one after another turned into a body's statements: loops, shared components, blocks called with changes."""

from tfc.testing.drawn.attentions import look, mixing
from tfc.testing.drawn.feeds import ACTIVATIONS, feed, feeding
from tfc.testing.drawn.indices import indexed
from tfc.testing.drawn.mixers import mixer
from tfc.testing.drawn.norms import norm
from tfc.testing.drawn.writer import Writer

__all__ = ["steps"]


def steps(w: Writer, depth: int, most: int = 3) -> None:
    """Statements that change `x`; loops are nested `depth` deep at most."""
    for _ in range(w.number(1, most)):
        kind = w.one(["sublayer"] * 4 + ["shared", "block", "extra", "saved"] + ["loop", "list"] * (2 if depth else 0))
        {
            "sublayer": _sublayer, "shared": _shared, "block": _block, "extra": _sublayer, "saved": _saved,
            "loop": lambda w: _loop(w, depth), "list": _list,
        }[kind](w)  # fmt: skip


def _sublayer(w: Writer) -> None:
    made = w.one([mixing, mixing, feeding, feeding, mixer, indexed])(w)
    if w.seldom():
        w.line(f"x = {norm(w, f'(x + {made})')}")
        w.uses("post norm")
    elif w.seldom():
        w.line(f"x = x + layer_scale@{w.name('scaled')}({made}, init = 0.5)")
    else:
        w.line(f"x = x + {made}")


def _saved(w: Writer) -> None:
    """A value that is read again later."""
    old = w.name("old")
    w.line(f"{old} = x")
    _sublayer(w)
    w.line(w.one([f"x = x + 0.5 * {old}", f"x = linear@{w.name('both')}(concat(x, {old}), 8)",
                  f"x = x + tanh({old}) * {old}", f"x = {old} + 0.3 * (x - stop({old}))"]))  # fmt: skip
    w.uses("long residual")


def _shared(w: Writer) -> None:
    """A component that owns its weights once, called twice."""
    w.uses("shared weights")
    name = w.name("own")
    kind, made = ("attention", look(w)) if w.half() else ("ffn", feed(w))
    w.line(f"{kind} {name} = {made}")
    w.line(f"x = x + {name}({norm(w)})")
    if w.half():
        _sublayer(w)
    w.line(f"x = x + 0.5 * {name}({norm(w)})")


def _block(w: Writer) -> None:
    """A block of the file, called under a label, its components given, perhaps changed."""
    w.uses("block")
    name = w.name("layer")
    n = w.name("at")
    w.item(
        f"block {name}(x, look, think = ffn {{ hidden = 8 }}) {{ x = x + look(rms@before_{n}(x)) "
        f"return x + think(layer_norm@behind_{n}(x)) }}"
    )
    given = look(w)
    if w.half():
        given = f"{given} {{ scale = 0.4 }}"
        w.uses("change at a call")
    think = w.one(["", f", {feed(w)}", f", think = ffn {{ hidden = 8   act = {w.one(ACTIVATIONS)} }}"])
    call = f"{name}@{w.name('use')}(x, {given}{think})"
    w.line(f"x = {call}")
    if w.seldom():
        own = w.name("body")
        w.line(f"block {own} = {name}")
        w.line(f"x = {own}(x, {given})")
        if w.half():
            w.line(f"x = {own}(x, {given})")
        w.uses("block declared")


def _loop(w: Writer, depth: int) -> None:
    """Weights of their own each turn; formulas may read the turn."""
    w.uses("nested repeat" if w.loops else "repeat")
    label = w.name("turn")
    count = w.number(1, 3 if not w.loops else 2)
    with w.body() as inner:
        w.loops.append(label)
        steps(w, depth - 1, 2)
        if w.seldom():
            w.line(f"report {w.name('size')} = mean(abs(x))")
            w.uses("report in a loop")
        w.loops.pop()
    w.line(f"repeat {count} as {label} {{ {' '.join(inner)} }}")


def _list(w: Writer) -> None:
    """Components in turn."""
    w.uses("repeat over a list")
    parts = [look(w) if w.half() else feed(w) for _ in range(w.number(1, 2))]
    label = w.name("part")
    times = w.one(["", " * 2"])
    w.line(f"repeat [{', '.join(parts)}]{times} as {label} {{ x = x + {label}({norm(w)}) }}")
