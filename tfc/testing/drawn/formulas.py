"""Masks, scores and weights: named ones and drawn formulas turned into the text of attributes and declarations."""

import re

from tfc.formula.expr import Apply, Const, Expr, Kind, Load, Read, Token, rewrite, text, walk
from tfc.testing import formulas
from tfc.testing.drawn.writer import Writer

__all__ = ["mask", "position", "score", "weigh"]


def spelled(w: Writer, formula: Expr, heads: int) -> str:
    """A formula as the language writes it: slots become fields of the tokens, and parameters.

    Tables hold real numbers: whole ones are a table's floor, conditions its sign.
    """
    names: dict[int, str] = {}

    def rule(node: Expr) -> Expr | None:
        match node:
            case Read(slot, at, Kind.INT):
                return Apply("floor", (Apply("mul", (Const(3), Read(slot, at, Kind.REAL))),))
            case Read(slot, at, Kind.BOOL):
                return Apply("gt", (Read(slot, at, Kind.REAL), Const(0)))
        return None

    for node in walk(formula):
        if isinstance(node, Load) and node.slot not in names:
            kind = {Kind.INT: "int", Kind.BOOL: "bool", Kind.REAL: "real"}[node.kind]
            names[node.slot] = w.field(kind, len(names) % 2)
        elif isinstance(node, Read) and node.slot not in names:
            dims = str(heads) if len(node.indices) == 1 else f"5, {heads}"
            names[node.slot] = w.param("table", dims, "normal(1)")
    said = text(rewrite(formula, rule))
    said = re.sub(r"\$(\d+)\.([qk])", lambda m: f"{m[2]}.{names[int(m[1])]}", said)
    return re.sub(r"\$(\d+)\[", lambda m: f"{names[int(m[1])]}[", said)


def _declared(w: Writer, role: str, said: str) -> str:
    """The formula itself, or its name after a declaration in the file."""
    if w.half():
        return f"({said})"
    name = w.name(role)
    w.item(f"{role} {name} = {said}")
    w.uses(f"{role} declared")
    return name


_MASKS = ("window({n})", "not window({n})", "dilated({n})", "window({n}) or dilated(2)")
_PLACED = (*_MASKS, "prefix({n})", "blocks({n})", "previous_block({n})", "strided({n})", "fixed({n})")


def mask(w: Writer, heads: int) -> str:
    """What the mode demands, and perhaps a mask beside it."""
    parts = []
    if w.mode.causal:
        parts.append("causal")
    if w.mode.packed:
        parts.append("documents")
    if w.mode.padded:
        parts.append("unpadded")
    match w.one(["", "named", "named", "drawn", "loop", "inputs"]):
        case "named":
            parts.append(f"({w.one(_MASKS if w.mode.shifted else _PLACED).format(n=w.number(2, 4))})")
            w.uses("mask named")
        case "drawn":
            formula = w.draw(formulas.masks())
            if not (w.mode.shifted and _places(formula)):
                parts.append(_declared(w, "mask", spelled(w, formula, heads)))
                w.uses("mask drawn")
        case "loop" if w.loops:
            parts.append(f"window(1 + {w.loops[-1]})")
            w.uses("mask by turn")
        case "inputs":
            name = w.name("near")
            w.item(f"mask {name}(size, step = 2) = abs(q - k) < size or (q - k) % step == 0")
            parts.append(f"{name}({w.number(1, 3)})")
            w.uses("mask with inputs")
    return " and ".join(parts) or w.one(["", "", "causal", "yes"])


def _places(formula: Expr) -> bool:
    """Whether a formula reads the place of one token other than in `q - k`."""
    gone = {Apply("sub", (Token("q"), Token("k"))), Apply("sub", (Token("k"), Token("q")))}
    left = rewrite(formula, lambda node: Const(1) if node in gone else None)
    return any(isinstance(node, Token) for node in walk(left))


def score(w: Writer, heads: int) -> str:
    match w.one(["", "", "softcap", "alibi", "tilt", "relative", "t5", "own", "drawn", "sum"]):
        case "softcap":
            found = f"softcap({w.number(1, 5)})"
        case "alibi":
            found = f"alibi({heads})"
        case "tilt":
            found = f"tilt({w.param('slope', f'h: {heads}', '2 ^ (-(h + 1))')})"
        case "relative":
            found = f"relative({w.param('offset', f'7, {heads}', 'normal(1)')}, 3)"
        case "t5":
            found = f"t5({w.param('bucket', f'8, {heads}', 'normal(1)')}, {w.one(['yes', 'no'])}, 8, 5)"
        case "own":
            found = f"s * (1 + 0.1 * q.{w.field('real', 0)}) + k.{w.field('real', 1)}"
        case "drawn":
            formula = w.draw(formulas.scores())
            far = w.mode.shifted and _places(formula)
            found = "" if far else _declared(w, "score", spelled(w, formula, heads))
        case "sum":
            found = "softcap(4) + if(q == k, 1, 0)"
        case _:
            found = ""
    if found:
        w.uses("score")
    return found


def weigh(w: Writer, heads: int) -> str:
    if not w.seldom():
        return ""
    w.uses("weigh")
    match w.one(["sink", "softmax1", "clipped", "pointwise", "gate"]):
        case "sink":
            w.uses("sink")
            return f"sink({w.param('sink', str(heads), 'normal(1)')})"
        case "pointwise":
            return w.one(["pointwise_relu(4)", "hstu(4)", "pointwise_sigmoid(4)", "pointwise_relu2(4)"])
        case "gate":
            return f"p * sigmoid(s + q.{w.field('real', 1)})"
        case "clipped":
            return "clipped(-0.03)"
    return "softmax1"


def position(w: Writer) -> str:
    if w.half():
        return ""
    w.uses("position")
    own: tuple[str, ...] = () if w.mode.shifted else ("0.3 * pos + c", "pos / (1 + c)")
    return w.one(["rope()", "rope(base = 100)", "rope_stretched(2)", "rope_ntk(2)", "rope_llama3()", *own])
