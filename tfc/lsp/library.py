"""The prelude's files -> their items and symbols, for looking up; and what is said of the words that are built in."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from tfc.formula.expr import INFIX, PRIMITIVES
from tfc.grammar import ast
from tfc.grammar.lowering.core import FUNCTIONS
from tfc.grammar.lowering.library import core_scope, library_items
from tfc.grammar.lowering.session import LIBRARY
from tfc.grammar.lowering.values import Builtin, describe
from tfc.grammar.parser import parse
from tfc.grammar.syntax.scan import scan
from tfc.grammar.syntax.words import ROLES
from tfc.ir.formats import FITTERS, FORMATS
from tfc.ir.functions import FUNCTIONS as REGISTERED
from tfc.lsp.symbols import Table, table
from tfc.lsp.text import Tokens
from tfc.source import Source

__all__ = [
    "IMPLICIT_WORDS",
    "KEYWORDS",
    "ROW_WORDS",
    "CoreWord",
    "Entry",
    "core_words",
    "entry",
    "library_path",
    "library_table",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """An item of the prelude: a block or a formula."""

    item: ast.Block | ast.Role
    table: Table

    @property
    def doc(self) -> str:
        return self.item.doc or ""


def library_path(source: Source) -> Path | None:
    """The installed file of a prelude text, where the package lies in a folder."""
    found = Path(str(files("tfc.grammar") / "prelude" / source.name.removeprefix(LIBRARY)))
    return found.resolve() if found.is_file() else None


@cache
def library_table(file: str) -> tuple[ast.Module | None, Table | None]:
    """A prelude file, parsed whole; its places are those that lowering reports."""
    text = (files("tfc.grammar") / "prelude" / file).read_text(encoding="utf-8")
    source = Source(LIBRARY + file, text)
    module, _ = parse(source)
    return (module, table(module, Tokens(scan(source)))) if module is not None else (None, None)


@cache
def entry(name: str) -> Entry | None:
    """The prelude's item of that name."""
    known = library_items().get(name)
    if known is None:
        return None
    module, symbols = library_table(known[0])
    if module is None or symbols is None:
        return None
    for item in module.items:
        if isinstance(item, ast.Block | ast.Role) and item.name == name:
            return Entry(item, symbols)
    return None


@dataclass(frozen=True, slots=True)
class CoreWord:
    """A word that the compiler knows: how it is written, what it means. kind: function, value, type, format, .."""

    name: str
    kind: str
    written: str
    doc: str


@cache
def core_words() -> Mapping[str, CoreWord]:
    """Every word of the core scope."""
    out: dict[str, CoreWord] = {}
    for name, value in core_scope().names.items():
        if name in FORMATS:
            row = FORMATS[name]
            settings = ", ".join(f"{k} = {_shown(v)}" for k, v in row.settings.items())
            out[name] = CoreWord(name, "format", f"{name}({settings})" if settings else name, row.doc)
        elif name in FITTERS:
            fitter = FITTERS[name]
            settings = ", ".join(f"{k} = {_shown(v)}" for k, v in fitter.settings.items())
            out[name] = CoreWord(name, "fit", f"{name}({settings})" if settings else name, fitter.doc)
        elif name in REGISTERED:
            settings = ", ".join(REGISTERED[name].settings)
            out[name] = CoreWord(name, "function", f"{name}(x, {settings})", REGISTERED[name].doc)
        elif name in FUNCTIONS:
            function = FUNCTIONS[name]
            inputs = [f"{n.rstrip('?')} = .." if n.endswith("?") else n for n in function.inputs]
            inputs += ["x, .."] if function.many else []
            inputs += ["name = .."] if function.open else []
            out[name] = CoreWord(name, "function", f"{name}({', '.join(inputs)})", function.doc)
        elif name in PRIMITIVES and name not in INFIX:
            row_ = PRIMITIVES[name]
            arguments = ", ".join("xyz"[: row_.arity])
            out[name] = CoreWord(name, "function", f"{name}({arguments})", row_.meaning)
        elif isinstance(value, Builtin):
            written, doc = _WORDS.get(name, (f"{name}(..)", ""))
            out[name] = CoreWord(name, "function", written, doc)
        else:
            out[name] = CoreWord(name, "value", name, describe(value))
    return out


def _shown(value: object) -> str:
    if isinstance(value, type):
        return f"<{value.__name__}>"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


_WORDS = {
    "if": ("if(condition, a, b)", "a where the condition holds, else b; only the chosen side is looked at where it is "
           "known while compiling"),
    "dot": ("dot(q.a, k.b)", "the sum of the products over the last axis of two fields"),
    "any": ("any[t](condition)", "whether it holds for some index"),
    "all": ("all[t](condition)", "whether it holds for every index"),
}  # fmt: skip

KEYWORDS: Mapping[str, str] = {
    "let": "names compile-time values; `--set name=value` overrides those of the file",
    "param": "declares a parameter: `param slope[h: heads] = 2 ^ -h { trained = no }`",
    "import": "brings in another file: all of it, under a name, or some names",
    "default": "changes a kind for all that the model uses",
    "names": "maps a checkpoint's names to ours",
    "block": "equations over tensors; inputs with defaults are the attributes of a component made of it",
    "model": "the block that one enters by; its inputs carry types",
    "repeat": "a loop with weights of its own in every turn: `repeat layers as layer { .. }`",
    "report": "a side output: `report balance = mean(lag)`",
    "return": "what the body gives",
    **{role: f"declares a {role} formula: `{role} name(inputs) = ..`" for role in ROLES},
}
"""What opens an item or a statement."""

IMPLICIT_WORDS: Mapping[str, str] = {
    "q": "the query token; as a number, its position. `q.f` is a field that the token carries",
    "k": "the key token; as a number, its position. `k.f` is a field that the token carries",
    "h": "the query head, counted from 0",
    "s": "the score so far: at first the scaled product of query and key",
    "p": "the weight: the softmax of the scores over the keys that the mask leaves",
    "row": "statistics of the query's row, over the keys that the mask leaves: `row.count`, `row.mean`, ..",
    "pos": "the position",
    "c": "a channel: a pair of channels in a position formula, a feature of a feature map, a key's channel in a decay",
    "pairs": "how many pairs of channels there are",
    "u": "the vector; as a number, its element",
}
"""The implicit variables of formulas. A test keeps it complete."""

ROW_WORDS: Mapping[str, str] = {
    "count": "how many keys the mask leaves",
    "mean": "the mean of their scores",
    "deviation": "the standard deviation of their scores, with count - 1; 0 below two keys",
    "max": "the largest of their scores",
    "rank": "how many of them have a larger score, or an equal one and a lower index",
    "lse": "the logarithm of the sum of the exponentials of their final scores; in `weigh` only",
}
"""The statistics of `row`."""
