"""Attention of every kind that the language has, turned into component declarations and calls."""

from tfc.testing.drawn import formulas
from tfc.testing.drawn.norms import norm
from tfc.testing.drawn.weights import formatted
from tfc.testing.drawn.writer import Writer

__all__ = ["attention", "look", "mixing"]


def look(w: Writer) -> str:
    """The name of an attention declared in the file, a recipe; or in the body, where its mask reads the turn."""
    name, heads = w.name("look"), w.one([2, 4, 4, 1])
    groups = w.one([n for n in (heads, 2, 1, 2) if heads % n == 0])
    w.uses({heads: "MHA", 1: "MQA"}.get(groups, "GQA"))
    said = [f"heads = {heads}", f"kv_heads = {groups}"]
    if w.half() or heads == 1:
        said.append(f"head_dim = {w.one([4, 2])}")
    for attribute, found in (
        ("position", formulas.position(w)),
        ("score", formulas.score(w, heads)),
        ("mask", formulas.mask(w, heads)),
        ("weigh", formulas.weigh(w, heads)),
    ):
        if found:
            said.append(f"{attribute} = {found}")
            if attribute == "position" and w.half():
                said += [w.one(["rotated = 2", 'pairing = "interleaved"'])]
    if w.seldom():
        said.append("qk_norm = rms")
        w.uses("qk_norm")
    if w.seldom():
        said.append(w.one(["biased = yes", "q = linear { biased = yes }", "scale = 0.3"]))
    if w.seldom():
        said.append(f"out = linear {{ {formatted(w)} }}")
    if w.seldom():
        said.append('kv_cache = int8(per = "row")')
        w.uses("kv_cache")
    text = f"attention {name} {{ {'   '.join(said)} }}"
    local = any(label in text for label in w.loops)
    if not local:
        w.item(text)
        return _derived(w, name)
    w.line(text)
    w.owned.add(name)
    return name


def _derived(w: Writer, name: str) -> str:
    """The component, perhaps derived under another name."""
    if w.number(0, 3) < 3:
        return name
    derived = w.name("look")
    w.item(f"attention {derived} = {name} {{ {w.one(['scale = 0.4', 'biased = yes', 'score = softcap(3)'])} }}")
    w.uses("derived")
    return derived


def attention(w: Writer) -> str:
    """Attention of the tokens to themselves, perhaps gated."""
    name = look(w)
    label = "" if name in w.owned else f"@{w.name('self')}"
    made = f"{name}{label}({norm(w)})"
    if w.seldom():
        made = f"{made} * sigmoid(linear@{w.name('gate')}(x, 8))"
        w.uses("gate")
    return made


def latent(w: Writer) -> str:
    w.uses("latent attention")
    query = w.one(["", ", query_rank = 3"])
    mask = formulas.mask(w, 2) or "yes"
    sizes = f"heads = 2, kv_rank = 4, plain_dim = 4, rotated_dim = 2{query}"
    return f"latent_attention@{w.name('latent')}({norm(w)}, {sizes}, mask = {mask})"


def crossed(w: Writer) -> str:
    """Attention to another sequence, which all tokens see whole."""
    w.memory = True
    w.uses("memory")
    return f"attention@{w.name('cross')}({norm(w)}, memory = other, heads = 2)"


def by_hand(w: Writer) -> str:
    """Attention written out, its halves or its whole."""
    w.uses("attend")
    q, k, v = (f"split(linear@{w.name(n)}(x, 8), 2)" for n in ("ask", "key", "value"))
    mask = formulas.mask(w, 2) or "yes"
    if w.half():
        return f"linear@{w.name('out')}(join(attend({q}, {k}, {v}, scale = 0.5, mask = {mask})), 8)"
    return f"linear@{w.name('out')}(join(mix(weights({q}, {k}, scale = 0.5, mask = {mask}), {v})), 8)"


def mixing(w: Writer) -> str:
    """Any of them: an expression of [B, T, 8]."""
    return w.one([attention, attention, attention, attention, latent, crossed, by_hand])(w)
