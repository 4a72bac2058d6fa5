"""`param slope[h: heads] = 2 ^ (-8 * (h + 1) / heads) { trained = no }` -> a parameter of the place it stands in."""

from dataclasses import replace
from itertools import product as cartesian

from tfc.diagnostics import Edit, Note, closest
from tfc.grammar import ast
from tfc.grammar.lowering.evaluate import evaluate
from tfc.grammar.lowering.factors import declare_factors
from tfc.grammar.lowering.formats import fit_of, kept_of
from tfc.grammar.lowering.numbers import whole
from tfc.grammar.lowering.scope import RESERVED, Scope, reserved
from tfc.grammar.lowering.segments import names_read
from tfc.grammar.lowering.session import LIMITS, Frame, fail
from tfc.grammar.lowering.values import Builtin, Meaning, Tensor, describe, is_number
from tfc.ir.formats import FORMATS, Fit, Format
from tfc.ir.program import Init, Param, Value
from tfc.ir.types import Size, TensorType, product
from tfc.source import Span

__all__ = ["declare_param", "make_param"]

_SETTINGS = ("trained", "fit", "format")
DEFAULT = Init("normal", 0.02)
"""How a parameter starts that does not say how."""


def declare_param(item: ast.ParamDecl, frame: Frame) -> None:
    """Bind the parameter's name in the body; it is made where it is first read, in this frame."""
    frame.scope.defer(item.name, lambda: make_param(item, frame), item.span)


def make_param(item: ast.ParamDecl, frame: Frame) -> Tensor:
    """The parameter of this place, made on first use; a second use must have the same sizes."""
    if item.name in RESERVED:
        frame.session.report(reserved(item.name, item.span))
    shape = tuple(_size(node, item, frame) for _, node in item.dims)
    elements = product(shape)
    assert isinstance(elements, int)
    if elements > LIMITS["elements"]:
        sizes, most = " x ".join(map(str, shape)), LIMITS["elements"]
        fail("E502", f"`{item.name}` has {sizes} elements; at most {most} are allowed", frame.at(item.span))
    known = frame.place.params.get(item.name)
    if known is not None:
        if known.type.shape != shape:
            path = frame.place.join(item.name)
            fail(
                "E407", f"`{path}` has the sizes {list(known.type.shape)}, and here {list(shape)}",
                frame.at(item.span), help="weights declared once fit one size; declare another, or call a recipe",
                notes=(Note("it was made here", known.span),),
            )  # fmt: skip
        return known
    settings = _settings(item, frame)
    type = TensorType(shape, frame.session.precision.params)
    path = frame.place.join(item.name)
    init = _init(item, shape, frame)
    if init.kind == "orthogonal" and len(shape) < 2:
        at = frame.at(item.init.span if item.init is not None else item.span)
        fail("E305", f"`orthogonal` makes rows of a matrix; `{item.name}` has {len(shape)} axes", at)
    param = Param(path, Value(item.name, type), init, *settings)
    hint = path.removeprefix(f"{_inner(frame)}.") if _inner(frame) else path
    if param.format is not None and not FORMATS[param.format.name].rounds:
        tensor = declare_factors(param, param.format, hint, frame.at(item.span), frame)
    else:
        tensor = frame.place.builder.declare(param, hint, frame.at(item.span))
    frame.place.params[item.name] = tensor
    return tensor


def _inner(frame: Frame) -> str:
    """The path of the loop whose turns own the parameter: left out of the value's name."""
    return frame.session.loops.get(id(frame.place.builder), "")


def _size(node: ast.Expr, item: ast.ParamDecl, frame: Frame) -> int:
    """One size of a parameter: a whole number, known now."""
    size = whole(evaluate(node, frame), f"the size `{node.span.text}` of `{item.name}`", frame.at(node.span))
    if not isinstance(size, int):
        fail(
            "E406", f"the size `{node.span.text}` of `{item.name}` is {size}, known only when the model is called",
            frame.at(node.span), help="a parameter has the same size whatever comes in",
        )  # fmt: skip
    if size < 0:
        fail("E402", f"the size `{node.span.text}` of `{item.name}` is {size}", frame.at(node.span))
    return size


def _settings(item: ast.ParamDecl, frame: Frame) -> tuple[bool, Format | None, Fit | None]:
    """Whether it is trained, what it is kept in, what fits it: the format's own procedure unless one is named."""
    trained, kept, fit = True, None, None
    given: dict[str, ast.Setting] = {}
    for setting in item.settings:
        name = ".".join(setting.path)
        if name not in _SETTINGS:
            near = closest(name, _SETTINGS)
            span = Span(setting.span.source, setting.span.start, setting.span.start + len(name))
            fail("E204", f"a param has no attribute `{name}`", frame.at(setting.span),
                 help=f"did you mean `{near}`?" if near else f"it has {', '.join(_SETTINGS)}",
                 edits=(Edit(span, near),) if near else ())  # fmt: skip
        if name in given:
            fail("E214", f"`{name}` is given twice", frame.at(setting.span))
        given[name] = setting
        value, at = evaluate(setting.value, frame), frame.blame(setting.value)
        if name == "format":
            kept = kept_of(value, "format", at, frame)
        elif name == "fit":
            fit = fit_of(value, at, frame)
        elif isinstance(value, bool):
            trained = value
        else:
            fail("E305", f"`trained` is `yes` or `no`, not {describe(value)}", frame.at(setting.span))
    if kept is not None and len(item.dims) < 2:
        at = frame.blame(given["format"].value)
        fail("E305", f"the format {kept.format} is one of weights with inputs and outputs; `{item.name}` has "
             f"{len(item.dims)} axes", at, notes=(Note("it is declared here", item.span),))  # fmt: skip
    return trained, kept.format if kept else None, fit or (kept.fit if kept else None)


def _init(item: ast.ParamDecl, shape: tuple[Size, ...], frame: Frame) -> Init:
    if item.init is None:
        return DEFAULT
    named = [(i, name) for i, (name, _) in enumerate(item.dims) if name is not None]
    if named:
        return _table(item, shape, frame)
    return _as_init(evaluate(item.init, frame), item.init, frame)


def _as_init(value: Meaning, node: ast.Expr, frame: Frame) -> Init:
    if isinstance(value, Init):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Init("zeros") if value == 0 else Init("ones") if value == 1 else Init("constant", float(value))
    if isinstance(value, Builtin) and value.name == "normal":
        fail("E206", "`normal` needs its standard deviation", frame.at(node.span), help="normal(0.02)")
    if isinstance(value, Builtin) and value.name == "uniform":
        fail("E206", "`uniform` needs the least and the largest number", frame.at(node.span), help="uniform(-0.1, 0.1)")
    if isinstance(value, Builtin) and value.name == "orthogonal":
        return Init("orthogonal", 1.0)
    fail("E305", f"a parameter starts from a number or an initializer, not {describe(value)}", frame.at(node.span),
         help="zeros, ones, glorot, normal(std), uniform(low, high), orthogonal, or a formula of named dimensions: "
         "`[h: heads] = 2 ^ -h`")  # fmt: skip


def _table(item: ast.ParamDecl, shape: tuple[Size, ...], frame: Frame) -> Init:
    """The initial value computed element by element from the names of its dimensions; once where layers are alike."""
    known = _read(item, shape, frame)
    made = frame.session.tables.get(known)
    if made is None:
        made = _computed(item, shape, frame)
        if known is not None:
            frame.session.tables[known] = made
    return made


def _read(item: ast.ParamDecl, shape: tuple[Size, ...], frame: Frame) -> object:
    """What decides the elements, where that is numbers and functions of the core only; else None."""
    assert item.init is not None
    if frame.indices or frame.bound:
        return None
    read = []
    for name in sorted(names_read(item.init) - {name for name, _ in item.dims}):
        value = frame.scope.find(name)
        if not isinstance(value, (bool, int, float, Builtin)):
            return None
        read.append((name, type(value), value))
    return id(item), shape, tuple(read)


def _computed(item: ast.ParamDecl, shape: tuple[Size, ...], frame: Frame) -> Init:
    assert item.init is not None
    sizes = [n for n in shape if isinstance(n, int)]
    count = product(sizes)
    assert isinstance(count, int)
    if count > LIMITS["table"]:
        fail(
            "E502",
            f"a table of {count} elements; at most {LIMITS['table']} are computed while compiling",
            frame.at(item.span),
        )
    scope = Scope(frame.scope)
    inner = replace(frame, scope=scope)
    values: list[float] = []
    for at in cartesian(*(range(n) for n in sizes)):
        for i, (name, _) in zip(at, item.dims, strict=True):
            if name is not None:
                scope.bind(name, i, item.span)
        value = evaluate(item.init, inner)
        if isinstance(value, Init):
            return value  # `[h: heads] = zeros`: the name is not used
        if not is_number(value):
            fail("E305", f"an element of `{item.name}` is {describe(value)}, not a number", frame.at(item.init.span))
        assert isinstance(value, int | float)
        values.append(float(value))
    return Init("table", table=tuple(values))
