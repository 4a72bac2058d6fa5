"""Program -> text that people and golden files read, and that text back -> the same Program.

One line an equation, `%out: type = op(attributes) %operands`; an elementwise operation prints as its primitive's
name; attributes at their defaults are left out; the body of a `repeat` or a `route` follows, indented; `#` starts a
comment:

    program encode(%x: f32[B, T, 384]) {
      %w: f32[384, 64] = param layer.q.weight normal(0.02) frozen as int4(group=64) fit gptq
      %h: f32[B, T, 64] = linear %x, %w
      %y: f32[B, T, 64] = mul %h, %h
      report layer.energy = %y
      return %y
    }

`parse(show(p)) == p` for every program that `verify` accepts. Spans are not part of the text.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Final, get_type_hints

from tfc.formula.expr import PRIMITIVES, Expr, Load, Read, rewrite
from tfc.ir.formats import FITTERS, FORMATS, Fit, Format
from tfc.ir.formulas import formulas, variables
from tfc.ir.ops import OPS, Elementwise, Index, Op
from tfc.ir.program import Eqn, Init, Input, Param, Precision, Program, Value
from tfc.ir.scan import Cursor
from tfc.ir.types import DType, IRError, Size, TensorType

__all__ = ["line", "parse", "show", "word"]

Setting = bool | int | float | str
"""Of a format, a fitting procedure or a registered function."""


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
        yield f"  {_typed(param.value)} = param {param.path} {_init(param.init)}{_kept(param)}"
    for eqn in program.eqns:
        yield f"  {line(eqn)}"
        if isinstance(body := getattr(eqn.op, "body", None), Program):
            yield from (f"    {inner}" for inner in _lines(body))
    for path, value in program.reports:
        yield f"  report {path} = {value}"
    yield f"  {' '.join(['return', *_commas(map(str, program.results))])}"
    yield "}"


def line(eqn: Eqn) -> str:
    """One equation; of a `repeat` or a `route` the line without its body."""
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
    inside = [_number(init.value)] if init.value or init.high or init.kind in ("normal", "constant") else []
    inside += [_number(init.high)] if init.high else []
    table = [f"[{', '.join(map(_number, init.table))}]"] if init.table else []
    return init.kind + (f"({', '.join([*inside, *table])})" if inside or table else "")


def _kept(param: Param) -> str:
    """What follows the start: ` each [layer: 6] frozen as int4(group=64) fit gptq`."""
    frozen = f" each {_axes(param.repeats)}" if param.repeats else ""
    frozen += "" if param.trained else " frozen"
    kept = f" as {_format(param.format)}" if param.format else ""
    return frozen + kept + (f" fit {_fit(param.fit)}" if param.fit else "")


def _number(value: bool | int | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value)


def _setting(value: Setting) -> str:
    return value if isinstance(value, str) else _number(value)


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


_Settings = tuple[tuple[str, Setting], ...]


def _called(name: str, settings: _Settings, defaults: Mapping[str, Setting | type]) -> str:
    """`int4(group=64)`: the settings that are not at their defaults."""
    shown = ", ".join(f"{k}={_setting(v)}" for k, v in settings if k not in defaults or defaults[k] != v)
    return f"{name}({shown})" if shown else name


def _format(format: Format) -> str:
    known = FORMATS.get(format.name)  # what verify refuses is shown too
    return _called(format.name, format.settings, known.settings if known else {})


def _fit(fit: Fit) -> str:
    known = FITTERS.get(fit.name)
    return _called(fit.name, fit.settings, known.settings if known else {})


def _read_called(
    at: Cursor, what: str, table: Mapping[str, Mapping[str, Setting | type]]
) -> tuple[str, tuple[tuple[str, Setting], ...]]:
    """A name of the table, perhaps with settings; those not given take their defaults."""
    name = at.next("word")
    if name not in table:
        raise IRError(f"line {at.line}: `{name}` is no {what}")
    defaults = table[name]
    given = dict(_read_settings(at, "(", ")")) if at.sees("(") else {}
    for key in given:
        if key not in defaults:
            raise IRError(f"line {at.line}: {name} has no setting `{key}`")
    for key, default in defaults.items():
        if key not in given and isinstance(default, type):
            raise IRError(f"line {at.line}: {name} needs its setting `{key}`")
    kept = {key: given.get(key, default) for key, default in defaults.items()}
    return name, tuple((key, value) for key, value in kept.items() if not isinstance(value, type))


def _read_format(at: Cursor) -> Format:
    return Format(*_read_called(at, "format", {f.name: f.settings for f in FORMATS.values()}))


def _read_fit(at: Cursor) -> Fit:
    return Fit(*_read_called(at, "fitting procedure", {f.name: f.settings for f in FITTERS.values()}))


def _settings(settings: _Settings) -> str:
    return f"[{', '.join(f'{k}={_setting(v)}' for k, v in settings)}]"


def _read_settings(at: Cursor, opening: str = "[", closing: str = "]") -> _Settings:
    out: list[tuple[str, Setting]] = []
    at.expect(opening)
    while not at.take(closing):
        name = at.next("word")
        at.expect("=")
        literal = at.now.kind != "word" or at.sees("yes", "no", "inf")
        out.append((name, at.number() if literal else at.next("word")))
        if not at.sees(closing):
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
    Format: (_read_format, _format),
    _Settings: (_read_settings, _settings),
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
    reports: list[tuple[str, Value]] = []
    while not at.take("return"):
        if at.take("report"):
            path = at.next("word")
            at.expect("=")
            reports.append((path, _value(at, known)))
            continue
        outs = [_bound(at, known)]
        while at.take(","):
            outs.append(_bound(at, known))
        at.expect("=")
        if at.take("param"):
            params.append(_param(at, outs[0]))
        else:
            eqns.append(_eqn(at, tuple(outs), known))
    results = _values(at, known)
    at.expect("}")
    return Program(name, tuple(inputs), tuple(params), tuple(eqns), results, precision, doc, tuple(reports))


def _param(at: Cursor, value: Value) -> Param:
    path, init = at.next("word"), _read_init(at)
    repeats: list[tuple[str, int]] = []
    for label, count in _read_axes(at) if at.take("each") else ():
        if not isinstance(count, int):
            raise IRError(f"line {at.line}: {count} turns of {label}")
        repeats.append((label, count))
    frozen = at.take("frozen")
    format = _read_format(at) if at.take("as") else None
    fit = _read_fit(at) if at.take("fit") else None
    return Param(path, value, init, not frozen, format, fit, tuple(repeats))


def _bound(at: Cursor, known: dict[str, Value]) -> Value:
    """`%name: type`, from here on known by its name."""
    name = at.next("value")[1:]
    at.expect(":")
    known[name] = Value(name, at.type())
    return known[name]


def _values(at: Cursor, known: Mapping[str, Value]) -> tuple[Value, ...]:
    out: list[Value] = []
    while at.now.kind == "value" and at.after.text != ":":  # `%y: type` binds the next equation's value
        out.append(_value(at, known))
        if not at.take(","):
            break
    return tuple(out)


def _value(at: Cursor, known: Mapping[str, Value]) -> Value:
    name = at.next("value")[1:]
    if name not in known:
        raise IRError(f"line {at.line}: %{name} is not bound above")
    return known[name]


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
    kind, numbers, table = at.next("word"), list[float](), list[float]()
    if at.take("("):
        while not at.sees("[", ")"):
            numbers.append(float(at.number()))
            at.take(",")
        if at.take("["):
            while not at.take("]"):
                table.append(at.number())
                if not at.sees("]"):
                    at.expect(",")
        at.expect(")")
    value, high, *more = *numbers, *(0.0,) * (2 - len(numbers))
    if more:
        raise IRError(f"line {at.line}: {kind} of {len(numbers)} numbers")
    return Init(kind, value, tuple(table), high)


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
    if any(f.name == "body" for f in fields(cls)):
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
        named = {key: given.get(key, ()) for key in ("axes", "reduced", "lengths")}
        return at.formula(variables(Index(**named, expr=Expr()), _INDEX))
    (place,) = (p for p in formulas(cls) if p.attribute == name)
    return at.formula(place.variables)


(_INDEX,) = formulas(Index)


def _with_kinds(expr: Expr, captured: tuple[TensorType, ...], start: int) -> Expr:
    """The formula with each slot's kind, which the text leaves to the operand's type."""

    def known(node: Expr) -> Expr | None:
        match node:
            case Load(slot) | Read(slot) if slot >= len(captured):
                raise IRError(f"line {start}: slot ${slot} of {len(captured)} operands")
            case Load(slot, side, _, indices):
                return Load(slot, side, captured[slot].dtype.kind, indices)
            case Read(slot, indices):
                return Read(slot, indices, captured[slot].dtype.kind)
        return None

    return rewrite(expr, known)
