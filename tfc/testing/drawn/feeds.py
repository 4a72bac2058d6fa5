"""Feed-forward networks, adapters and other maps of each token, turned into expressions."""

from tfc.testing.drawn.norms import norm
from tfc.testing.drawn.weights import formatted
from tfc.testing.drawn.writer import Writer

__all__ = ["ACTIVATIONS", "feed", "feeding"]

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu2", "elu", "softplus", "tanh", "sigmoid")


def feed(w: Writer) -> str:
    """The name of a feed-forward network declared in the file."""
    name = w.name("feed")
    said = [f"hidden = {w.one([8, 12, 16])}", f"act = {w.one(ACTIVATIONS)}"]
    if w.half():
        said.append(f"gate = {w.one(ACTIVATIONS)}")
        w.uses("gated ffn")
    if w.seldom():
        said.append("biased = yes")
    elif w.seldom():
        said.append(f"{w.one(['up', 'down'])} = linear {{ {formatted(w)} }}")
    w.item(f"ffn {name} {{ {'   '.join(said)} }}")
    w.uses("ffn")
    return name


def _network(w: Writer) -> str:
    return f"{feed(w)}@{w.name('think')}({norm(w)})"


def _small(w: Writer) -> str:
    """One call of a map of the library."""
    w.uses("small maps")
    n, x = w.name("map"), norm(w)
    maps = (
        f"adapter@{n}({x}, hidden = 4)",
        f"lora_linear@{n}({x}, 8, rank = 2)",
        f"linear@{n}({x}, 8, biased = yes)",
        f"layer_scale@{n}({x}, init = 0.5)",
        f"linear@{n}({x}, 8, {formatted(w)})",
        f"clip({x}, -1, 1) * 0.5",
        f"softmax({x})",
        f"log_softmax({x})",
        f"{w.one(ACTIVATIONS)}(linear@{n}({x}, 8)) * x",
    )
    return w.one(maps)


def _experts(w: Writer) -> str:
    w.uses("experts")
    over = w.one(["chosen", "all"])
    return f'experts@{w.name("crowd")}({norm(w)}, 3, chosen = 2, expert = ffn {{ hidden = 8 }}, over = "{over}")'


def _route(w: Writer) -> str:
    """Through copies of a network that the tokens themselves choose."""
    w.uses("route")
    name = w.name("chosen")
    w.line(f"{name}[b, t, k: 2] = (tokens[b, t] + {w.number(1, 2)} * k) % 3")
    weight = w.one(["0.5", "softmax(cut(x, 0, 2))"])
    return f"route(x, {feed(w)}, 3, {name}, {weight})"


def feeding(w: Writer) -> str:
    """Any of them: an expression of [B, T, 8]."""
    return w.one([_network, _network, _network, _small, _experts, _route])(w)
