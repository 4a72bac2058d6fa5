"""Program -> text that people and golden files read, and that text back -> the same Program.

One line an equation, `%out: type = op(attributes) %operands`; an elementwise operation prints as its primitive's
name; attributes at their defaults are left out; a `repeat`'s body follows, indented; `#` starts a comment:

    program encode(%x: f32[B, T, 384]) {
      %w: f32[384, 64] = param layer.q.weight normal(0.02)
      %h: f32[B, T, 64] = linear %x, %w
      %y: f32[B, T, 64] = mul %h, %h
      return %y
    }

`parse(show(p)) == p` for every program that `verify` accepts. Spans are not part of the text.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Final, get_type_hints

from tfc.formula.expr import PRIMITIVES, Expr, Load, Read, rewrite
from tfc.ir.formulas import formulas, variables
from tfc.ir.ops import OPS, Elementwise, Index, Op, Repeat
from tfc.ir.program import Eqn, Init, Input, Param, Precision, Program, Value
from tfc.ir.scan import Cursor
from tfc.ir.types import DType, IRError, Size, TensorType

__all__ = ["line", "parse", "show", "word"]


# --- Program -> text


def show(program: Program) -> str:
    """The program as text, ending in a newline."""
    return "\n".join(_lines(program)) + "\n"


def _lines(program: Program) -> Iterator[str]:
    yield f"program {program.name}({', '.join(map(_input, program.inputs))}) {{"
    if program.doc:
        yield f"  {json.dumps(program.doc, ensure_ascii=False)}"
    if program.precision != Precision():
        p = program.precision
        yield f"  precision(params={p.params}, compute={p.compute}, reduce={p.reduce})"
    for param in program.params:
        frozen = "" if param.trained else " frozen"
        yield f"  {_typed(param.value)} = param {param.path} {_init(param.init)}{frozen}"
    for eqn in program.eqns:
        yield f"  {line(eqn)}"
        if isinstance(eqn.op, Repeat):
            yield from (f"    {inner}" for inner in _lines(eqn.op.body))
    yield f"  {' '.join(['return', *_commas(map(str, program.results))])}"
    yield "}"


def line(eqn: Eqn) -> str:
    """One equation; of a `repeat` the line without its body."""
    shown = ", ".join(_attributes(eqn.op))
    head = f"{', '.join(map(_typed, eqn.outs))} = {word(eqn.op)}" + (f"({shown})" if shown else "")
    return " ".join([head, *_commas(map(str, eqn.args))])


def word(op: Op) -> str:
    """What an operation is called in the text: its name, or of an elementwise one its primitive's."""
    return op.fn if isinstance(op, Elementwise) else op.name


def _commas(words: Iterable[str]) -> list[str]:
    """["a, b"], or nothing for no words."""
    joined = ", ".join(words)
    return [joined] if joined else []


def _typed(value: Value) -> str:
    return f"{value}: {value.type}"


def _input(declared: Input) -> str:
    default = "" if declared.default is None else f" = {declared.default}"
    return f"{_typed(declared.value)}{default}"


def _init(init: Init) -> str:
    inside = [_number(init.value)] if init.value or init.kind in ("normal", "constant") else []
    table = [f"[{', '.join(map(_number, init.table))}]"] if init.table else []
    return init.kind + (f"({', '.join([*inside, *table])})" if inside or table else "")


def _number(value: bool | int | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value)


def _attributes(op: Op) -> Iterator[str]:
    if isinstance(op, Elementwise):
        return
    for name, (_, default, _, write) in _SCHEMAS.get(type(op), {}).items():
        value = getattr(op, name)
        if value != default:
            yield f"{name}={write(value)}"


# --- an operation's attributes, by the annotation of each field


def _sizes(shape: tuple[Size, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _axes(axes: tuple[tuple[str, Size], ...]) -> str:
    return f"[{', '.join(f'{name}: {size}' for name, size in axes)}]"


def _read_axes(at: Cursor) -> tuple[tuple[str, Size], ...]:
    out: list[tuple[str, Size]] = []
    at.expect("[")
    while not at.take("]"):
        name = at.next("word")
        at.expect(":")
        out.append((name, at.size()))
        if not at.sees("]"):
            at.expect(",")
    return tuple(out)


def _read_formula(at: Cursor) -> Expr:
    raise AssertionError("formulas are read with their variables")


_Reader = Callable[[Cursor], Any]
_Writer = Callable[[Any], str]
_FORMS: Final[Mapping[object, tuple[_Reader, _Writer]]] = {
    bool: (Cursor.number, _number),
    int: (Cursor.integer, _number),
    float: (Cursor.number, _number),
    bool | int | float: (Cursor.number, _number),
    str: (lambda at: at.next("word"), str),
    DType: (Cursor.dtype, str),
    Size: (Cursor.size, str),
    tuple[Size, ...]: (Cursor.shape, _sizes),
    tuple[tuple[str, Size], ...]: (_read_axes, _axes),
    Expr: (_read_formula, str),
}


_Form = tuple[object, object, _Reader, _Writer]


def _schema(cls: type[Op]) -> Mapping[str, _Form]:
    """Attribute -> its annotation, its default (or what stands for none), how it is read and written. No bodies."""
    hints = get_type_hints(cls)
    out: dict[str, _Form] = {}
    for f in fields(cls):
        if f.name != "body":
            read, write = _FORMS[hints[f.name]]
            out[f.name] = (hints[f.name], f.default, read, write)
    return out


_SCHEMAS: Final[Mapping[type[Op], Mapping[str, _Form]]] = {cls: _schema(cls) for cls in OPS.values()}


# --- text -> Program


def parse(text: str) -> Program:
    """The program that a text shows. Raises IRError with the line where it is not one. Does not `verify`."""
    at = Cursor(text)
    program = _program(at)
    if at.now.kind != "end":
        raise at.fail("the end")
    return program


def _program(at: Cursor) -> Program:
    at.expect("program")
    name = at.next("word")
    known: dict[str, Value] = {}
    inputs: list[Input] = []
    at.expect("(")
    while not at.take(")"):
        value = _bound(at, known)
        inputs.append(Input(value, at.size() if at.take("=") else None))
        if not at.sees(")"):
            at.expect(",")
    at.expect("{")
    doc = str(json.loads(at.next("string"))) if at.now.kind == "string" else ""
    precision = _precision(at) if at.sees("precision") else Precision()
    params: list[Param] = []
    eqns: list[Eqn] = []
    while not at.take("return"):
        outs = [_bound(at, known)]
        while at.take(","):
            outs.append(_bound(at, known))
        at.expect("=")
        if at.take("param"):
            path, init = at.next("word"), _read_init(at)
            params.append(Param(path, outs[0], init, trained=not at.take("frozen")))
        else:
            eqns.append(_eqn(at, tuple(outs), known))
    results = _values(at, known)
    at.expect("}")
    return Program(name, tuple(inputs), tuple(params), tuple(eqns), results, precision, doc)


def _bound(at: Cursor, known: dict[str, Value]) -> Value:
    """`%name: type`, from here on known by its name."""
    name = at.next("value")[1:]
    at.expect(":")
    known[name] = Value(name, at.type())
    return known[name]


def _values(at: Cursor, known: Mapping[str, Value]) -> tuple[Value, ...]:
    out: list[Value] = []
    while at.now.kind == "value" and at.after.text != ":":  # `%y: type` binds the next equation's value
        name = at.next("value")[1:]
        if name not in known:
            raise IRError(f"line {at.line}: %{name} is not bound above")
        out.append(known[name])
        if not at.take(","):
            break
    return tuple(out)


def _precision(at: Cursor) -> Precision:
    at.expect("precision")
    words: dict[str, DType] = {}
    at.expect("(")
    while not at.take(")"):
        name = at.next("word")
        at.expect("=")
        words[name] = at.dtype()
        if not at.sees(")"):
            at.expect(",")
    return Precision(**words)


def _read_init(at: Cursor) -> Init:
    kind, value, table = at.next("word"), 0.0, list[float]()
    if at.take("("):
        if not at.sees("["):
            value = float(at.number())
            at.take(",")
        if at.take("["):
            while not at.take("]"):
                table.append(at.number())
                if not at.sees("]"):
                    at.expect(",")
        at.expect(")")
    return Init(kind, value, tuple(table))


def _eqn(at: Cursor, outs: tuple[Value, ...], known: Mapping[str, Value]) -> Eqn:
    start = at.now.line
    word = at.next("word")
    if word in PRIMITIVES:
        return Eqn(outs, Elementwise(fn=word), _values(at, known))
    if word not in OPS:
        raise IRError(f"line {start}: `{word}` is no operation")
    cls = OPS[word]
    given: dict[str, Any] = {}
    if at.take("("):
        while not at.take(")"):
            name = at.next("word")
            at.expect("=")
            given[name] = _attribute(at, cls, name, given)
            if not at.sees(")"):
                at.expect(",")
    args = _values(at, known)
    if cls is Repeat:
        given["body"] = _program(at)
    for place in formulas(cls):
        if place.attribute in given and place.captured is not None:
            types = tuple(a.type for a in args[place.captured :])
            given[place.attribute] = _with_kinds(given[place.attribute], types, start)
    try:
        return Eqn(outs, cls(**given), args)
    except TypeError as e:
        raise IRError(f"line {start}: {word}: {e}") from None


def _attribute(at: Cursor, cls: type[Op], name: str, given: Mapping[str, Any]) -> object:
    schema = _SCHEMAS[cls]
    if name not in schema:
        raise IRError(f"line {at.line}: {cls.name} has no attribute `{name}`")
    annotation, _, read, _ = schema[name]
    if annotation is not Expr:
        return read(at)
    if cls is Index and "axes" in given:
        return at.formula(variables(Index(axes=given["axes"], reduced=given.get("reduced", ()), expr=Expr()), _INDEX))
    (place,) = (p for p in formulas(cls) if p.attribute == name)
    return at.formula(place.variables)


(_INDEX,) = formulas(Index)


def _with_kinds(expr: Expr, captured: tuple[TensorType, ...], start: int) -> Expr:
    """The formula with each slot's kind, which the text leaves to the operand's type."""

    def known(node: Expr) -> Expr | None:
        match node:
            case Load(slot) | Read(slot) if slot >= len(captured):
                raise IRError(f"line {start}: slot ${slot} of {len(captured)} operands")
            case Load(slot, side):
                return Load(slot, side, captured[slot].dtype.kind)
            case Read(slot, indices):
                return Read(slot, indices, captured[slot].dtype.kind)
        return None

    return rewrite(expr, known)
