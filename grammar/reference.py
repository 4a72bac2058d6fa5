"""The grammar, the tables of the core and the library's files -> the language's reference, a page of Markdown.

`python -m tfc.grammar.reference` writes it beside this file; a test compares the two.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from tfc.formula.expr import INFIX, PRIMITIVES
from tfc.grammar import ast
from tfc.grammar.lowering.core import FUNCTIONS
from tfc.grammar.lowering.scope import IMPLICIT
from tfc.grammar.parser import parse
from tfc.grammar.samples import CALLS, STAGE
from tfc.ir.formats import FITTERS, FORMATS
from tfc.ir.functions import FUNCTIONS as REGISTERED
from tfc.ir.ops import ROW
from tfc.source import Source

__all__ = ["EXAMPLES", "PAGE", "page", "rules"]

PAGE = Path(__file__).with_name("REFERENCE.md")

EXAMPLES: Mapping[str, str] = {
    "import_from": 'import "llama3.tfm" as base\nimport "parts.tfm" (gated, mixed)',
    "names": 'names hf {\n  "layers.{layer}.q_proj.weight" = transpose(layer.look.q.weight)\n}',
    "default": "default precision { params = f32   compute = bf16 }\ndefault linear { weights = int4(group = 128) }",
    "let": "let width = 384, kernel = choice(5, 9)\nlet order = [mamba2, ffn] * 7 + [ffn { hidden = 64 }]",
    "param": "param slope[h: heads] = 2 ^ (-8 * (h + 1) / heads) { trained = no }",
    "component": "attention far { heads = 8   score = softcap(50)   mask = causal }",
    "derivation": "attention near = far { mask = causal and window(4_096) }",
    "role": "score tilt(slope) = s - slope[h] * abs(q - k)",
    "block": '"Documentation stands before."\nblock layer(x, look, feed = ffn) { return x + feed(look(rms@first(x))) }',
    "equation": "block residual(x, f) {\n  y = f(rms(x))\n  return x + y\n}",
    "index_equation": "block means(x, count) {\n"
    "  y[b, t: length(x) // count, c] = mean[i: count](x[b, t * count + i, c])\n  return y\n}",
    "repeat": "block stack(x, layer) {\n  repeat 12 as block { x = layer(x) }\n"
    "  repeat [mamba2, ffn] as part { x = x + part(rms(x)) }\n  return x\n}",
    "return_value": "model both(x: real[B, T, 8], ids: int[B, T] = 0) { return [x, rms(x)] }",
    "report": "block watched(x) {\n  report size = mean(abs(x))\n  return x\n}",
    "derived": "let tail = ffn { hidden = 64   up.weights = nm(2, 4) }",
    "comparison": "mask near_past = 0 <= q - k < 4",
    "power": "let small = -2 ^ -3 ^ 2",
    "attribute": "mask documents = q.segment == k.segment",
    "label": "block twice(x) { return rms@last(rms@first(x)) }",
    "subscript": "score offset(table, reach) = s + table[q - k + reach, h]",
    "reducer": "block sums(x) {\n  y[b, t] = sum[i: 3, c](x[b, t + i, c])\n  return y\n}",
    "leading": "block project(x, w) {\n  y[.., o] = sum[c](x[.., c] * w[c, o])\n  return y\n}",
    "call": "mask mine = causal and window(length = 128)",
    "list": "let kernels = [5, 9, [gelu, silu]]",
}
"""Rule of the grammar -> a snippet that uses it. A test parses each and looks for the rule in what came out."""

_INTRODUCTION = """\
# Reference of the language

Written by `make docs` from the grammar, the tables of the compiler and the library: change those, not this page.
[README.md](README.md) explains the language.
"""

_MEANINGS = {
    "q": "the query token; as a number its position; `q.f` is its field `f`, `q.f[i]` an element of it",
    "k": "the key token, likewise",
    "h": "the query head, counted from 0",
    "s": "the score so far: at first the scaled product of the rotated query and key",
    "p": "the softmax of the score over the keys that the mask leaves",
    "row": "statistics of the query's row over the keys that the mask leaves: " + ", ".join(f"`{n}`" for n in ROW),
    "pos": "the position; `pos.f` is the token's field `f`",
    "pairs": "how many pairs of channels turn",
    "u": "an element of the head's vector; `u[d]` is the element d",
    "c": "a position's pair of channels, a feature's own index, a decay's key channel",
}


def rules() -> dict[str, tuple[str, str]]:
    """Rule -> (its section, its productions as the grammar's file has them). Rules that only group are left out."""
    text = files("tfc.grammar").joinpath("tfm.lark").read_text(encoding="utf-8")
    found: dict[str, tuple[str, str]] = {}
    section = ""
    for line in text.splitlines():
        if heading := re.match(r"// ---- (.*)", line):
            section = heading[1]
        elif rule := re.match(r"\??([a-z][a-z_]*): ", line):
            found[rule[1]] = (section, _code(line))
        elif alternative := re.match(r" +\| .*-> ([a-z_]+)", line):
            found[alternative[1]] = (section, _code(line))
    return {name: row for name, row in found.items() if row[0]}


def _code(line: str) -> str:
    """A line of the grammar without its comment."""
    return re.sub(r"\s+//( .*)?$", "", line).strip()


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, *_constructs(), *_tables(), *_library()]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


# ---- constructs


def _constructs() -> Iterator[str]:
    yield "## Constructs\n\nEach rule of `tfm.lark` that an author meets, with an example."
    section = ""
    for name, (where, production) in rules().items():
        if name not in EXAMPLES:
            continue
        if where != section:
            section = where
            yield f"### {section[0].upper()}{section[1:]}"
        yield f"`{production}`"
        yield _snippet(EXAMPLES[name])


def _snippet(text: str) -> str:
    return f"```tfm\n{text.strip()}\n```"


# ---- tables


def _tables() -> Iterator[str]:
    yield "## Implicit variables of formulas"
    roles = [(n, ", ".join(role for role, names in IMPLICIT.items() if n in names), m) for n, m in _MEANINGS.items()]
    yield _table(("variable", "roles", "meaning"), ((f"`{n}`", where, m) for n, where, m in roles))
    yield "## Core functions\n\nInputs with `?` may be left out; `..` takes any number."
    rows = ((f"`{_call(f.name, f.inputs, f.many)}`", f.doc) for f in FUNCTIONS.values() if f.name not in REGISTERED)
    yield _table(("function", "meaning"), rows)
    yield (
        "## Primitives\n\nOf numbers and tensors, element by element, and in formulas. `if(c, x, y)` looks at one side "
        "only\nwhere `c` is known while compiling."
    )
    yield _table(("primitive", "meaning"), ((f"`{_written(p)}`", _meaning(p)) for p in PRIMITIVES))
    yield "## Registered array functions\n\nEach has a definition and no kernel."
    yield _table(
        ("function", "meaning"), ((f"`{_settings(r.name, r.settings, '..')}`", r.doc) for r in REGISTERED.values())
    )
    yield "## Formats\n\nOf `weights`, `inputs`, `kv_cache` and `rounded(x, format)`."
    yield _table(("format", "meaning"), ((f"`{_settings(f.name, f.settings)}`", f.doc) for f in FORMATS.values()))
    yield "## Fitting procedures\n\nOf `fit = ..`, of a `param` or in a format."
    yield _table(("procedure", "finds"), ((f"`{_settings(f.name, f.settings)}`", f.doc) for f in FITTERS.values()))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _call(name: str, inputs: Iterable[str], many: bool) -> str:
    return f"{name}({', '.join([*inputs, *(['..'] if many else [])])})"


def _written(name: str) -> str:
    if name == "where":
        return "if(c, x, y)"
    if name in INFIX:
        symbol = INFIX[name][0]
        return f"{symbol} x" if name == "not" else f"{symbol}x" if name == "neg" else f"x {symbol} y"
    return f"{name}({', '.join('xyz'[: PRIMITIVES[name].arity])})"


def _meaning(name: str) -> str:
    row = PRIMITIVES[name]
    gives = f"; {row.gives}" if row.gives is not None else ""
    return f"{row.meaning}{gives}"


def _settings(name: str, settings: Mapping[str, object], *before: str) -> str:
    """`int4(group = 128)`; a setting that must be given stands alone."""
    shown = [*before, *(n if isinstance(v, type) else f"{n} = {_value(v)}" for n, v in settings.items())]
    return f"{name}({', '.join(shown)})" if shown else name


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f'"{value}"' if isinstance(value, str) else str(value)


# ---- the library


def _library() -> Iterator[str]:
    yield (
        "## The library\n\nWritten in the language, in the files of `prelude/`: to be read and copied. "
        "An example stands for `CALL`\nin this file:"
    )
    yield _snippet(STAGE)
    for entry in sorted(files("tfc.grammar").joinpath("prelude").iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(".tfm"):
            continue
        module, found = parse(Source(entry.name, entry.read_text(encoding="utf-8")))
        if module is None:
            raise RuntimeError(f"{entry.name} does not parse: {found[0]}")
        yield f"### {entry.name.removesuffix('.tfm')}\n\n[prelude/{entry.name}](prelude/{entry.name})"
        for item in module.items:
            assert isinstance(item, ast.Block | ast.Role)
            doc = " ".join((item.doc or "").split("\n"))
            yield f"**`{item.name}`** {doc}"
            yield f"```\n{_signature(item)}\n```"
            if item.name in CALLS:  # a test asks for one of each
                yield f"Example: `{CALLS[item.name]}`"


def _signature(item: ast.Block | ast.Role) -> str:
    """A formula whole, a block without its body."""
    text = item.span.text
    text = text[text.index(f"{item.kind if isinstance(item, ast.Block) else item.role} {item.name}") :]
    if isinstance(item, ast.Role):
        return text
    end = item.body[0].span.start - (item.span.end - len(text))
    return text[: text.rindex("{", 0, end)].rstrip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
