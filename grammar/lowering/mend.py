"""What lowering complains about -> the same complaints with edits that would mend them, where the text tells how.

Lowering knows what is wrong; here the tree around the place is looked at for what was meant. Each rule is for a code,
returns nothing where it is not sure, and changes only the user's own text. It runs when something is wrong, never else.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

from tfc.diagnostics import Diagnostic, Edit, closest
from tfc.grammar import ast
from tfc.grammar.lowering.aliases import (
    ATTRIBUTES,
    FOREIGN_MODULES,
    IMPLICIT_ALIASES,
    NAMES,
    ONLY_TRAINING,
    OTHERWISE,
    TYPES,
    plain,
)
from tfc.grammar.lowering.around import Site, fresh, holds, indent_of, literal, nodes
from tfc.grammar.lowering.library import core_scope, library_blocks, library_item, library_items
from tfc.grammar.lowering.scope import IMPLICIT, name_span
from tfc.grammar.lowering.segments import names_read
from tfc.grammar.syntax.words import short
from tfc.source import Span

__all__ = ["mended"]

Edits = tuple[Edit, ...]
Answer = tuple[str, Edits] | None
"""A help (empty: that of the complaint) and edits that go together."""


def mended(found: Iterable[Diagnostic], module: ast.Module) -> list[Diagnostic]:
    """Complaints with edits where there were none, or better ones."""
    out = []
    for one in found:
        rule = _RULES.get(one.code)
        if rule is not None and one.span is not None and one.span.source is module.span.source:
            answer = rule(Site(one, one.span, module))
            if answer is not None:
                one = replace(one, help=answer[0] or one.help, edits=answer[1])
        out.append(one)
    return out


# ---- names


def _unknown_name(at: Site) -> Answer:
    """`rmsnorm`, `nn.rms`, `RMS`; in formulas `i`, `query`, `scores`."""
    word, chain = at.text, at.chain
    if len(chain) > 1 and isinstance(chain[-2], ast.Attribute) and word in FOREIGN_MODULES:
        return f"nothing stands before it: `{chain[-2].name}`", (at.edit(at.span.start, at.span.end + 1, ""),)
    parameter = at.around(ast.Parameter)
    if parameter is not None and isinstance(parameter.type, ast.Subscript):
        names = [n for n in parameter.type.indices if isinstance(n, ast.Name) and n.id.islower() and len(n.id) == 1]
        if any(n.span == at.span for n in names):
            edits = tuple(Edit(n.span, n.id.upper()) for n in names)
            return "lengths that come with the call are capitals: `B`, `T`", edits
    role = at.around(ast.Role)
    meant = IMPLICIT_ALIASES.get(plain(word), "")
    if role is not None and meant in IMPLICIT[role.role]:
        return f"a {role.role} calls it `{meant}`", (Edit(at.span, meant),)
    return _known_elsewhere(at, word)


def _known_elsewhere(at: Site, word: str) -> Answer:
    core = core_scope()
    known = {**{plain(n): n for n in (*core.names, *library_items())}, **{plain(n): n for n in _declared(at.module)}}
    name = known.get(plain(word)) or NAMES.get(plain(word), "")
    if name and name != word and (name in library_items() or name in core.names or name in _declared(at.module)):
        return f"write `{name}`", (Edit(at.span, name),)
    if plain(word) in ONLY_TRAINING:
        return "it concerns training, of which a spec says nothing", ()
    return (OTHERWISE[plain(word)], ()) if plain(word) in OTHERWISE else None


def _declared(module: ast.Module) -> set[str]:
    return {i.name for i in module.items if isinstance(i, ast.Declaration | ast.Block | ast.Role | ast.ParamDecl)}


def _unknown_kind(at: Site) -> Answer:
    if not at.said("^the kind `"):
        return None
    blocks = library_blocks() | {i.name for i in at.module.items if isinstance(i, ast.Block)}
    kinds = {plain(n): n for n in blocks}
    near = kinds.get(plain(at.text)) or NAMES.get(plain(at.text), "")
    near = near if near in blocks else closest(at.text, blocks - {at.text})
    return (f"did you mean `{near}`?", (Edit(at.span, near),)) if near else ("a kind is a block", ())


def _unknown_attribute(at: Site) -> Answer:
    """`num_heads = 8`, `window = 128`, `causal = yes`, `dropout = 0.1`; `weights = int4` of an `ffn`."""
    setting = at.around(ast.Setting)
    wrong = at.said(r"has no (?:attribute|input) `(\w+)`")
    holder = next((n for n in reversed(at.chain) if isinstance(n, ast.Declaration | ast.Derived | ast.Default)), None)
    if wrong is None:
        return None
    meant = ATTRIBUTES.get(plain(wrong[1]), "")
    given = {p.path[-1] for p in holder.changes} if holder else set()
    has = {n for note in at.found.notes for n in re.findall(r"[(,] ?(\w+)", _signature(note.span))}
    if meant and meant in has and meant not in given and at.text == wrong[1]:
        return f"did you mean `{meant}`?", (Edit(at.span, meant),)
    if setting is None or holder is None or len(setting.path) != 1 or at.text != wrong[1]:
        return None
    if plain(wrong[1]) in ONLY_TRAINING:
        return "it concerns training, of which a spec says nothing", (_without(setting),)
    linear = library_item("linear")
    if isinstance(linear, ast.Block) and wrong[1] in {i.name for i in linear.inputs} and "projection" in has - given:
        inner = f"projection = linear {{ {setting.span.text} }}"
        return f"its projections have it: `{inner}`", (Edit(setting.span, inner),)
    return _formula_as_attribute(at, setting, holder.changes)


def _signature(span: Span) -> str:
    """The inputs of a block whose head the span is."""
    text = span.source.text[span.start : span.start + 2_000]
    return re.sub(r"\s+", " ", text[: text.find(") {") + 1 or len(text)])


def _formula_as_attribute(at: Site, setting: ast.Setting, others: tuple[ast.Setting, ...]) -> Answer:
    """`window = 128` for `mask = window(128)`: an attribute called like a formula of the library."""
    (name,) = setting.path
    if name not in library_items():
        return None
    role = _role_of(name)
    if not role:
        return None
    match setting.value:
        case ast.Name(id="yes"):
            formula = f"{name}()" if role == "position" else name
        case ast.Number() | ast.Name() | ast.Binary():
            formula = f"{name}({setting.value.span.text})"
        case _:
            return None
    other = next((s for s in others if s.path == (role,)), None)
    if other is None:
        return f"write `{role} = {formula}`", (Edit(setting.span, f"{role} = {formula}"),)
    if role != "mask":
        return None
    if isinstance(other.value, ast.Binary) and other.value.op == "or":
        return None
    edits = (at.edit(other.span.end, other.span.end, f" and {formula}"), _without(setting))
    return f"write `mask = {other.value.span.text} and {formula}`", edits


def _without(setting: ast.Setting) -> Edit:
    """An attribute taken out, with the blanks after it."""
    text, end = setting.span.source.text, setting.span.end
    while text[end : end + 1] in (" ", "\t"):
        end += 1
    return Edit(Span(setting.span.source, setting.span.start, end), "")


def _role_of(name: str) -> str:
    """The role of a formula of the library."""
    item = library_item(name)
    return item.role if isinstance(item, ast.Role) else ""


def _declared_twice(at: Site) -> Answer:
    name = at.said(r"^`(\w+)` (?:is declared twice|names weights)")
    if name is None:
        return None
    start = _own_name(at, name[1])
    if start is None:
        return None
    new = fresh(name[1], at.span.source.text)
    return f"choose another name: `{new}`", (at.edit(start, start + len(name[1]), new),)


def _own_name(at: Site, name: str) -> int | None:
    for node in reversed(at.chain):
        match node:
            case ast.Binding() if node.name == name:
                return node.span.start
            case ast.Declaration() | ast.ParamDecl() | ast.Role() | ast.Block() if node.name == name:
                return name_span(node).start
    return at.span.start if at.text == name else None


def _label(at: Site) -> Answer:
    """`f@a` where another use is called `a` already, or where there is nothing to label."""
    label = at.around(ast.Label) or next((n for n in at.chain if isinstance(n, ast.Label)), None)
    call = at.around(ast.Call)
    if call is not None and isinstance(call.callee, ast.Label):
        label = call.callee
    if label is None:
        return None
    start = label.span.end - len(label.label)
    if at.said("is used twice"):
        new = fresh(label.label, at.span.source.text)
        return f"a label names one use; write `{label.value.span.text}@{new}`", (at.edit(start, label.span.end, new),)
    if at.said("owns no weights"):
        return "leave the label out", (at.edit(label.value.span.end, label.span.end, ""),)
    return None


# ---- formulas


def _implicit(at: Site) -> Answer:
    """`q` in a position, `s` in a mask."""
    role = at.around(ast.Role)
    word = at.text
    if role is None:
        return None
    meant = {"q": "pos", "k": "pos", "s": "p" if role.role == "weigh" else ""}.get(word, "")
    if role.role == "position" and meant == "pos":
        return "a position calls it `pos`", (Edit(at.span, "pos"),)
    if role.role == "mask" and word in ("s", "row") and not role.inputs:
        start = role.span.start + max(0, role.span.text.find(f"mask {role.name}"))
        formula = role.formula.span
        edits = (
            at.edit(start, start + 4, "score"), at.edit(formula.start, formula.start, "if("),
            at.edit(formula.end, formula.end, ", s, -inf)"),
        )  # fmt: skip
        return f"what reads `{word}` is a score: `score {role.name} = if(.., s, -inf)`", edits
    return None


def _other_role(at: Site) -> Answer:
    """`score = causal`, `mask = softcap(50)`: the attribute is another one."""
    if at.said("the text "):
        return _other_sort(at)
    if at.said("^`mask` is a boolean") and at.text in ("0", "1"):
        word = "yes" if at.text == "1" else "no"
        return f"write `{word}`", (Edit(at.span, word),)
    setting = at.around(ast.Setting)
    holder = next((n for n in reversed(at.chain) if isinstance(n, ast.Declaration | ast.Derived | ast.Default)), None)
    argument = at.around(ast.Argument)
    call = at.around(ast.Call)
    if argument is not None and argument.name and call is not None and argument in call.arguments:
        written, taken = argument.name, {a.name for a in call.arguments}
        start = argument.span.start
    elif setting is not None and holder is not None and setting in holder.changes:
        written, taken = setting.path[-1], {s.path[-1] for s in holder.changes}
        start = setting.value.span.start
        start = at.span.source.text.rfind(written, setting.span.start, start)
    else:
        return None
    said = at.said(r"is an? (mask|score|weigh|position): it reads")
    role = said[1] if said else "mask" if at.said(r"is boolean$") else ""
    if not role or role in taken or written not in ("mask", "score", "weigh", "position") or role == written:
        return None
    return "", (at.edit(start, start + len(written), role),)


def _no_field(at: Site) -> Answer:
    """`q.segmnt`, and fields that nobody has set though the body has a tensor of that name."""
    said = at.said(r"carr(?:y|ies) no field `(\w+)`; (?:they|it) carr(?:y|ies) (.*)$")
    item = next((n for n in at.chain if isinstance(n, ast.Item)), None)
    if said is None or item is None:
        return None
    name, near = said[1], closest(said[1], said[2].split(", "))
    if near and near != "none":
        reads = (n for n in nodes(item) if isinstance(n, ast.Attribute) and n.name == name)
        edits = tuple(at.edit(n.span.end - len(name), n.span.end, near) for n in reads if n.span.text.endswith(name))
        return f"did you mean `{near}`?", edits
    for note in at.found.notes:
        there = Site(at.found, note.span, at.module)
        block, call = there.around(ast.Block), there.around(ast.Call)
        if note.span.source is not at.module.span.source or block is None or call is None or not call.arguments:
            continue
        bound = {i.name for i in block.inputs} | {e.target for e in block.body if isinstance(e, ast.Equation)}
        tokens = call.arguments[0]
        if tokens.name is not None or (name not in bound and (block.kind != "model" or not block.inputs)):
            continue
        start, end = tokens.span.start, tokens.span.end
        edits = (at.edit(start, start, "tag("), at.edit(end, end, f", {name} = {name})"))
        if name not in bound:  # then it comes with the call, a number for each token
            last = block.inputs[-1].span.end
            edits = (at.edit(last, last, f", {name}: int[B, T]"), *edits)
        return f"set it on what is read: `tag({tokens.span.text}, {name} = {name})`", edits
    return None


# ---- calls


def _missing_argument(at: Site) -> Answer:
    """`unembed(x)` where the body has an `embed word`; a model's input without its type."""
    if said := at.said(r"the input `(\w+)` of a model needs a type"):
        if at.text.startswith(said[1]):
            end = at.span.start + len(said[1])
            return "", (at.edit(end, end, ": int[B, T]"),)
        return None
    said = at.said(r"^`(\w+)` needs `(\w+)`$")
    call, block = at.around(ast.Call), at.around(ast.Block)
    if said is None or call is None or block is None or call.span != at.span:
        return None
    wanted = said[2]
    names = {i.name for i in block.inputs} | _declared(at.module)
    names |= {b.name for i in at.module.items if isinstance(i, ast.Let) for b in i.bindings}
    for item in block.body:
        names |= {item.target} if isinstance(item, ast.Equation) else set()
        names |= {item.name} if isinstance(item, ast.Declaration | ast.ParamDecl) else set()
    near = wanted if wanted in names else closest(wanted, names)
    if not near or near in names_read(call):
        return None
    end = call.span.end - 1
    comma = ", " if call.arguments else ""
    return f"give it in the call: `{wanted} = {near}`", (at.edit(end, end, f"{comma}{wanted} = {near}"),)


def _call_with(at: Site) -> ast.Call | None:
    """The call that the place is, or is an argument of."""
    calls = [n for n in reversed(at.chain) if isinstance(n, ast.Call)]
    given = (c for c in calls if any(a.span == at.span for a in c.arguments))
    return next(given, calls[0] if calls else None)


def _too_many(at: Site) -> Answer:
    said = at.said(r"takes (\d+) (?:inputs?|arguments?), not")
    call = _call_with(at)
    if said is None or call is None:
        return None
    positional = [a for a in call.arguments if a.name is None]
    extra = positional[int(said[1]) :]
    if not extra or call.arguments[-len(extra) :] != tuple(extra):
        return None
    help = at.found.help and f"{at.found.help}; drop the others"
    kept = call.arguments[: -len(extra)]
    start = kept[-1].span.end if kept else extra[0].span.start
    return help or "drop what is too much", (at.edit(start, extra[-1].span.end, ""),)


def _given_twice(at: Site) -> Answer:
    """Of an attribute or argument given twice, the second is dropped."""
    call, setting = _call_with(at), at.around(ast.Setting)
    arguments = list(call.arguments) if call else []
    for before, one in pairwise(arguments):
        if holds(one, at.span):
            return "remove one of them", (at.edit(before.span.end, one.span.end, ""),)
    if setting is not None and setting.span == at.span:
        return "remove one of them", (_without(setting),)
    return None


def _returns(at: Site) -> Answer:
    """A body without its `return`; one inside a loop."""
    text = at.span.source.text
    if at.said("returns nothing"):
        block = next((n for n in nodes(at.module) if isinstance(n, ast.Block) and holds(n, at.span)), None)
        last = block.body[-1] if block is not None and block.body else None
        if block is None or last is None:
            return None
        if isinstance(last, ast.Equation) and last.indices is None and not isinstance(last.value, ast.Derived):
            help = f"end it with `return {short(last.value.span.text)}`"
            return help, (at.edit(last.span.start, last.value.span.start, "return "),)
        named = [i.target for i in block.body if isinstance(i, ast.Equation)]
        if not named:
            return None
        added = f"\n{indent_of(text, last.span.start)}return {named[-1]}"
        return f"end it with `return {named[-1]}`", (at.edit(last.span.end, last.span.end, added),)
    if at.said("nothing after `return`"):
        body = next((n.body for n in reversed(at.chain) if isinstance(n, ast.Block | ast.Repeat)), ())
        return "", (at.edit(at.span.start, max(i.span.end for i in body), ""),) if body else ()
    loop = at.around(ast.Repeat)
    given = at.around(ast.Return)
    if not at.said("inside `repeat`") or loop is None or given is None:
        return None
    outer = at.chain[at.chain.index(loop) - 1]
    start = given.span.start
    while start > 0 and text[start - 1].isspace():
        start -= 1
    out = [at.edit(start, given.span.end, "" if given is loop.body[-1] else " ")]
    if isinstance(outer, ast.Block) and not any(isinstance(i, ast.Return) for i in outer.body):
        after = loop.span.end
        out.append(at.edit(after, after, f"\n{indent_of(text, loop.span.start)}{given.span.text}"))
    said = "it goes after the loop" if len(out) > 1 else "drop it; what the last turn leaves is known after the loop"
    return said, tuple(out)


# ---- values


def _other_sort(at: Site) -> Answer:
    """Element types of elsewhere, numbers and names in quotes, weights of a recipe."""
    if at.said("is no element type"):
        meant = TYPES.get(plain(at.text), plain(at.text))
        known = ("int", "bool", "real", "bf16", "f16", "f32", "f64")
        return (f"write `{meant}`", (Edit(at.span, meant),)) if meant in known else None
    if said := at.said(r'the text "(.*)"'):
        return _quoted(at, said[1])
    if said := at.said(r"^`(\w+)` is a recipe"):
        return _into_the_body(at, said[1])
    if at.said(r"it cannot be called$") and (said := at.said(r"^`(\w+)` is `no`")):
        settings = [n for n in nodes(at.module) if isinstance(n, ast.Setting) and n.path == (said[1],)]
        settings = [s for s in settings if s.value.span.text == "no"]
        if len(settings) == 1:
            return "what is not there is `none`", (Edit(settings[0].value.span, "none"),)
    if at.said(r"takes a number or a list, not the number") and (number := literal(at.chain[-1], at.module)):
        return "turns are whole", (Edit(number.span, str(max(1, round(number.value)))),)
    return None


def _quoted(at: Site, text: str) -> Answer:
    """A text where a name or a number belongs, or one word for another."""
    found = [n for n in nodes(at.module) if isinstance(n, ast.Text) and n.value == text]
    if len(found) != 1:
        return None
    if meant := re.fullmatch(r'did you mean ("\w+")\?', at.found.help):
        return "", (Edit(found[0].span, meant[1]),)
    lets = {b.name for i in at.module.items if isinstance(i, ast.Let) for b in i.bindings}
    known = text in lets | _declared(at.module) or text in library_items() or text in core_scope().names
    if known or re.fullmatch(r"\d[\d_]*(?:\.\d+)?", text):
        return f"write it without quotes: `{text}`", (Edit(found[0].span, text),)
    return None


def _into_the_body(at: Site, name: str) -> Answer:
    """A component declared at the top of the file, whose weights a body reads, declared in that body."""
    block = at.around(ast.Block)
    items = [i for i in at.module.items if isinstance(i, ast.Declaration) and i.name == name]
    if block is None or len(items) != 1 or not block.body or block not in at.module.items:
        return None
    calls = (n for n in nodes(block) if isinstance(n, ast.Call) and n.span.end < at.span.end)
    if not any(isinstance(c.callee, ast.Name) and c.callee.id == name for c in calls):
        return None  # its weights would be read before they are used
    if any(name in names_read(i) for i in at.module.items if i is not block and i is not items[0]):
        return None
    text, first = at.span.source.text, block.body[0].span.start
    end = items[0].span.end
    while text[end : end + 1] in (" ", "\n") and end < len(text):
        end += 1
    gap = "\n" + indent if (indent := indent_of(text, first)) else " "
    edits = (at.edit(items[0].span.start, end, ""), at.edit(first, first, f"{items[0].span.text}{gap}"))
    return "declare it in this body, which then owns its weights", edits


def _numbers(at: Site) -> Answer:
    """A number that does not divide, or is not whole, where it is written."""
    number = literal(at.chain[-1], at.module)
    if number is None:
        return None
    holder = next((n for n in reversed(at.chain) if isinstance(n, ast.Declaration | ast.Derived)), None)
    for setting in holder.changes if holder is not None else ():
        width = literal(setting, at.module) if setting.path == ("head_dim",) else None
        if width is not None and 0.5 < width.value < 1e6 and width.value != int(width.value):
            return "`head_dim` is a whole number", (Edit(width.span, str(round(width.value))),)
    if said := at.said(r"into (-?\d+) (?:heads|kv_heads)$"):
        fits = re.search(r"may be ([\d, ]+)", at.found.help)
        if fits is None or number.value != int(said[1]):
            return None
        counts = [int(n) for n in fits[1].split(", ")]
        near = min(counts, key=lambda n: (abs(n - number.value), n))
        return f"{at.found.help}; the nearest is {near}", (Edit(number.span, str(near)),)
    if at.said(r"not a whole number") and 0.5 < number.value < 1e6:
        return f"write {round(number.value)}", (Edit(number.span, str(round(number.value))),)
    return None


def _unequal(at: Site) -> Answer:
    """Queries and keys of two sizes, each from its own `linear`: the keys' follows the queries'."""
    if not at.said(r"^q .* does not fit k "):
        return None
    sizes = []
    for note in at.found.notes[:2]:
        there = Site(at.found, note.span, at.module)
        item = there.around(ast.Equation)
        calls = [n for n in nodes(item) if isinstance(n, ast.Call)] if item is not None else []
        calls = [c for c in calls if c.callee.span.text.startswith("linear") and len(c.arguments) > 1]
        widths = [c.arguments[1].value for c in calls]
        if len(widths) != 1:
            return None
        sizes.append(widths[0])
    if len(sizes) != 2 or sizes[0] == sizes[1]:
        return None
    return f"as many channels as the queries have: {sizes[0].span.text}", (Edit(sizes[1].span, sizes[0].span.text),)


_RULES: dict[str, Callable[[Site], Answer]] = {
    "E201": _unknown_name,
    "E202": _declared_twice,
    "E204": _unknown_attribute,
    "E205": _unknown_kind,
    "E206": _missing_argument,
    "E207": _too_many,
    "E208": _label,
    "E212": _returns,
    "E214": _given_twice,
    "E302": _implicit,
    "E303": _other_role,
    "E305": _other_sort,
    "E306": _no_field,
    "E401": _unequal,
    "E402": _numbers,
    "E404": _numbers,
}
