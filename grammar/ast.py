"""The tree of a `.tfm` file as its author wrote it: frozen nodes, each with a place that equality ignores."""

from dataclasses import field

from tfc.record import record
from tfc.source import Span

__all__ = [
    "Argument",
    "Attribute",
    "Binary",
    "Binding",
    "Block",
    "Call",
    "Compare",
    "Declaration",
    "Default",
    "Derived",
    "Equation",
    "Expr",
    "Import",
    "Index",
    "Item",
    "Label",
    "Let",
    "List",
    "Module",
    "Name",
    "NamePair",
    "Names",
    "Node",
    "Number",
    "ParamDecl",
    "Parameter",
    "Repeat",
    "Report",
    "Return",
    "Role",
    "Setting",
    "Statement",
    "Subscript",
    "Text",
    "Unary",
]  # fmt: skip


@record(frozen=True, slots=True, kw_only=True)
class Node:
    """Anything written; `span` covers it whole. Comments are kept beside the tree, see `Module.comments`."""

    span: Span = field(compare=False, repr=False)


# ---- expressions: formulas, attribute values, equations alike


@record(frozen=True, slots=True, kw_only=True)
class Expr(Node):
    """An expression."""


@record(frozen=True, slots=True, kw_only=True)
class Number(Expr):
    """`42`, `4_096`, `1e-12`, `0.5`: an int where it is written as one."""

    value: int | float


@record(frozen=True, slots=True, kw_only=True)
class Text(Expr):
    """`"interleaved"`."""

    value: str


@record(frozen=True, slots=True, kw_only=True)
class Name(Expr):
    """`width`, `q`, `yes`, `no`, `f32`: what it means is lowering's business."""

    id: str


@record(frozen=True, slots=True, kw_only=True)
class List(Expr):
    """`[a, b]`."""

    items: tuple[Expr, ...]


@record(frozen=True, slots=True, kw_only=True)
class Unary(Expr):
    """op is `-` or `not`."""

    op: str
    operand: Expr


@record(frozen=True, slots=True, kw_only=True)
class Binary(Expr):
    """op is one of `+ - * / // % ^ and or`."""

    op: str
    left: Expr
    right: Expr


@record(frozen=True, slots=True, kw_only=True)
class Compare(Expr):
    """A chain: `0 <= q - k < 4` is first=0, rest=(("<=", q - k), ("<", 4)). op: `== != < <= > >=`."""

    first: Expr
    rest: tuple[tuple[str, Expr], ...]


@record(frozen=True, slots=True, kw_only=True)
class Attribute(Expr):
    """`q.segment`, `base.llama`."""

    value: Expr
    name: str


@record(frozen=True, slots=True, kw_only=True)
class Index(Expr):
    """An index where it is bound, `t` or `t: T // 2`; size says how far it goes, None: as far as the axes it reads.

    Of an index equation's result (the first perhaps `..`), and, with a size, in the head of a reducer: `sum[i: 3]`.
    """

    name: str
    size: Expr | None


@record(frozen=True, slots=True, kw_only=True)
class Subscript(Expr):
    """`slope[h]`, `int[B, T]`, and the head of a reducer, `sum[c]`. The bracket touches what it follows.

    The first index may be `..`, a Name of that id: all the axes before the others. Only where a call follows may an
    index carry its size, an Index.
    """

    value: Expr
    indices: tuple[Expr, ...]


@record(frozen=True, slots=True, kw_only=True)
class Label(Expr):
    """`rms@before_look`: this use's name in the parameter path."""

    value: Expr
    label: str


@record(frozen=True, slots=True, kw_only=True)
class Argument(Node):
    """`x` or `out = width` in a call."""

    name: str | None
    value: Expr


@record(frozen=True, slots=True, kw_only=True)
class Call(Expr):
    """`f(x, a = 1)`; `sum[c](x[b, c])` has a Subscript as callee, `rms@a(x)` a Label."""

    callee: Expr
    arguments: tuple[Argument, ...]


@record(frozen=True, slots=True, kw_only=True)
class Setting(Node):
    """`heads = 12` between braces; path has several segments for `q.weights = int4`."""

    path: tuple[str, ...]
    value: Expr


@record(frozen=True, slots=True, kw_only=True)
class Derived(Expr):
    """`layer { heads = 4 }` as a value: a copy with changes."""

    base: Expr
    changes: tuple[Setting, ...]


# ---- statements, in bodies and at the top


@record(frozen=True, slots=True, kw_only=True)
class Item(Node):
    """Something at the top of a file. `doc` is the string that stands before it."""

    doc: str | None = None


Statement = Item
"""Bodies hold: Let, Declaration, ParamDecl, Role, Block, Equation, Repeat, Return, Report."""


@record(frozen=True, slots=True, kw_only=True)
class Binding(Node):
    name: str
    value: Expr


@record(frozen=True, slots=True, kw_only=True)
class Let(Item):
    """`let width = 384, heads = 12`."""

    bindings: tuple[Binding, ...]


@record(frozen=True, slots=True, kw_only=True)
class Import(Item):
    """`import "llama3.tfm" as base (block, layer)`."""

    path: str
    alias: str | None
    names: tuple[str, ...]


@record(frozen=True, slots=True, kw_only=True)
class Parameter(Node):
    """An input of a block, model or role: `x`, `tokens: int[B, T]`, `lengths: int[B] = T`, `heads = 8`."""

    name: str
    type: Expr | None
    default: Expr | None


@record(frozen=True, slots=True, kw_only=True)
class Declaration(Item):
    """`KIND name = base { changes }`: a component derived from another. base None: the kind's own component."""

    kind: str
    name: str
    base: Expr | None
    changes: tuple[Setting, ...]


@record(frozen=True, slots=True, kw_only=True)
class ParamDecl(Item):
    """`param slope[h: heads] = 2 ^ (-8 * (h + 1) / heads) { trained = no }`; a dimension may name its index."""

    name: str
    dims: tuple[tuple[str | None, Expr], ...]
    init: Expr | None
    settings: tuple[Setting, ...]


@record(frozen=True, slots=True, kw_only=True)
class Role(Item):
    """`mask window(size) = abs(q - k) < size`. role: mask, score, weigh, position, feature, decay."""

    role: str
    name: str
    inputs: tuple[Parameter, ...]
    formula: Expr


@record(frozen=True, slots=True, kw_only=True)
class Block(Item):
    """`block name(inputs) { body }`, or `model`, the block one enters by."""

    kind: str
    name: str
    inputs: tuple[Parameter, ...]
    body: tuple[Item, ...]


@record(frozen=True, slots=True, kw_only=True)
class Equation(Item):
    """`x = f(x)`, or an index equation `y[b, t, o] = sum[c](x[b, t, c] * w[c, o])`.

    indices: None for the first; those of an index equation, the first perhaps `..`."""

    target: str
    indices: tuple[Index, ...] | None
    value: Expr


@record(frozen=True, slots=True, kw_only=True)
class Repeat(Item):
    """`repeat 13 as pair remat = full { ... }`; over is a count or a list."""

    over: Expr
    name: str
    settings: tuple[Setting, ...]
    body: tuple[Item, ...]


@record(frozen=True, slots=True, kw_only=True)
class Return(Item):
    value: Expr


@record(frozen=True, slots=True, kw_only=True)
class Report(Item):
    """`report loss = e`: a side output."""

    name: str
    value: Expr


@record(frozen=True, slots=True, kw_only=True)
class Default(Item):
    """`default linear { weights = int4 }`, `default precision { params = f32   compute = bf16 }`."""

    kind: str
    changes: tuple[Setting, ...]


@record(frozen=True, slots=True, kw_only=True)
class NamePair(Node):
    """`"encoder.layer.{layer}.attention.self.query.weight" = layer.look.q.weight [transposed]`."""

    theirs: str
    ours: Expr


@record(frozen=True, slots=True, kw_only=True)
class Names(Item):
    """`names hf { ... }`: a checkpoint's names for our parameters."""

    name: str
    entries: tuple[NamePair, ...]


@record(frozen=True, slots=True, kw_only=True)
class Module(Node):
    """A file. comments: (offset, text with its `#`), in order; the formatter puts them back."""

    version: int
    items: tuple[Item, ...]
    comments: tuple[tuple[int, str], ...] = field(default=(), compare=False)
