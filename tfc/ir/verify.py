"""Program -> nothing, or an IRError that names the invariant it breaks and shows the equations around the fault.

The invariants, each tested by a program that breaks it:

- names: well-formed, bound once in a program (a body is a program of its own), bound above their uses, and used with
  the type they are bound with; results exist
- types: what `infer` says of the operands is what the equation binds; sizes are not negative; every named length occurs
  in the shape of some input, so a call can bind it
- formulas: known primitives and variables, no field, slots within the operands, the kind that the attribute asks for
- parameters: a path is used once in the whole program and is no prefix of another; shapes are numbers; a table fills
  its shape; what is trained, or kept in a format, is floating
- formats, fitting procedures, registered functions: known, with all their settings, in order, of the right types
- reports: a well-formed path each, once in a program; calibrated statistics likewise, in the whole program
- inputs: lengths by default are integers; a body's inputs have no defaults
- repeats and routes: the body takes (index, carries or tokens, invariants), gives the carries or one tensor of tokens,
  and is itself such a program
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isnan, prod

from tfc.formula.expr import (
    PRIMITIVES,
    Apply,
    Const,
    Expr,
    FormulaError,
    Kind,
    Load,
    Read,
    Reduce,
    Token,
    Var,
    kind_of,
    walk,
)
from tfc.formula.expr import Field as FieldNode
from tfc.identity import identity
from tfc.ir.formats import CHOICES, FITTERS, FORMATS, Fit, Format
from tfc.ir.formulas import Place, held, variables
from tfc.ir.functions import FUNCTIONS
from tfc.ir.ops import (
    OPS,
    REMAT,
    ArrayFunction,
    Attention,
    Calibrated,
    Constant,
    Dropout,
    Elementwise,
    Index,
    Op,
    Repeat,
    Rounded,
    Route,
)
from tfc.ir.program import Eqn, Param, Program, Value
from tfc.ir.scan import NAME, PATH, WORDS
from tfc.ir.text import line, word
from tfc.ir.types import Dim, DType, IRError, TensorType

__all__ = ["Known", "verify"]

INITS = frozenset(["zeros", "ones", "normal", "uniform", "orthogonal", "glorot", "constant", "table", "packed"])
"""Kinds of `Init`. `packed`: what a pass made; it starts as the pass's ParamMap gives it, not by itself."""

REDUCTIONS = frozenset(["sum", "mean", "max", "min", "any", "all"])
"""What an index equation reduces with."""

ARITY = {
    "constant": (0, 0), "reduction": (1, 1), "take": (2, 2), "linear": (2, 3), "reshape": (1, 1), "slice": (1, 1),
    "concat": (1, None), "cast": (1, 1), "rotate": (1, None), "scores": (2, 2), "score": (1, None), "masked": (1, None),
    "weigh": (1, None), "mix": (2, 2), "attention": (3, None), "ffn": (3, 7), "index": (0, None), "repeat": (0, None),
    "recurrence": (3, 8), "top": (1, 1), "route": (3, None), "calibrated": (1, 1), "rounded": (1, 1),
    "function": (0, None), "cache_read": (2, 2), "cache_write": (3, 5), "dropout": (1, None), "norm": (1, 4),
}  # fmt: skip
"""Operation -> fewest and most operands; an elementwise operation takes as many as its primitive."""


Made = tuple[list[TensorType], list[TensorType]]
"""The types of operands and of results."""


@dataclass(frozen=True, slots=True)
class Known:
    """What has been checked, by identity: operations, parameters, and what several of these say; and, by the lengths
    known then, types and what operations make of them.

    Most of a program stays as it is from pass to pass, and equal layers have the same operations and types.
    """

    parts: dict[int, Op | Param] = field(default_factory=dict)
    kinds: set[tuple[object, ...]] = field(default_factory=set)
    made: dict[frozenset[str], dict[int, list[Made]]] = field(default_factory=dict)
    types: dict[frozenset[str], dict[int, TensorType]] = field(default_factory=dict)


def verify(program: Program, *, after: str = "", known: Known | None = None) -> None:
    """Checks every invariant. `after`: the pass that made the program, for the message. Raises IRError.

    known: what need not be checked again, to which this program's equations and values are added.
    """
    try:
        _program(program, Lengths.of(program, known or Known()))
        _paths(program)
        _statistics(program)
    except IRError as e:
        raise IRError(f"after {after}: {e}" if after else str(e)) from None


@dataclass(frozen=True, slots=True)
class Lengths:
    """The named lengths that a call can bind: those in the shapes of the model's inputs. With what is known."""

    names: frozenset[str]
    parts: dict[int, Op | Param]
    kinds: set[tuple[object, ...]]
    made: dict[int, list[Made]]
    types: dict[int, TensorType]

    @staticmethod
    def of(program: Program, known: Known) -> "Lengths":
        sizes = [n for i in program.inputs for n in i.value.type.shape]
        names = frozenset(name for n in sizes if isinstance(n, Dim) for name in n.names)
        made, types = known.made.setdefault(names, {}), known.types.setdefault(names, {})
        return Lengths(names, known.parts, known.kinds, made, types)

    def check(self, value: Value) -> None:
        key = identity(value.type)
        if key in self.types:
            return
        for n in value.type.shape:
            if not (not isinstance(n, int) or n >= 0):
                raise IRError(f"{value}: {value.type} has a negative size")
            unknown = sorted(n.names - self.names) if isinstance(n, Dim) else []
            if unknown:
                raise IRError(f"{value}: {value.type} uses the length {unknown}, which no input's shape has")
        self.types[key] = value.type


def _program(program: Program, lengths: Lengths) -> None:
    if NAME.match(program.name) is None:
        raise IRError(f"`{program.name}` is no name for a program")
    known: dict[str, Value] = {}

    def bound(value: Value, checked: bool = False) -> None:
        name = value.name
        if name in known:
            raise IRError(f"{value} is bound twice in {program.name}")
        if PATH.match(name) is None:
            raise IRError(f"`{name}` is no name for a value")
        if not checked:
            lengths.check(value)
        known[name] = value

    for declared in program.inputs:
        bound(declared.value)
        if declared.default is not None:
            kind = declared.value.type
            if kind.dtype is not DType.I32:
                raise IRError(f"input {declared.value}: a default is a length, the input is {kind}")
            lengths.check(Value(declared.value.name, TensorType((declared.default,), DType.I32)))
    for param in program.params:
        bound(param.value)
        key = identity(param)
        if key not in lengths.parts:
            if param.path != param.value.name and PATH.match(param.path) is None:
                raise IRError(f"`{param.path}` is no path for a parameter")
            said = identity(param.value.type), identity(param.init), identity(param.format), identity(param.fit)
            kept = *said, param.trained, param.repeats
            if kept not in lengths.kinds:
                _param(param)
                lengths.kinds.add(kept)
            lengths.parts[key] = param
    for at, eqn in enumerate(program.eqns):
        try:
            for arg in eqn.args:
                if known.get(arg.name) is not arg:
                    _use(arg, known)
            again = _eqn(eqn, lengths)
            for out in eqn.outs:
                name = out.name
                if again and name not in known and name.isidentifier() and name.isascii():
                    known[name] = out  # as most are
                else:
                    bound(out, checked=again)
        except IRError as e:
            raise IRError(f"{e}\n{_around(program, at)}") from None
    if not (program.results or program.reports):
        raise IRError(f"{program.name} has no results")
    for result in program.results:
        try:
            _use(result, known)
        except IRError as e:
            raise IRError(f"result of {program.name}: {e}\n{_around(program, len(program.eqns))}") from None
    for path, value in program.reports:
        if PATH.match(path) is None:
            raise IRError(f"`{path}` is no path for a report")
        if [p for p, _ in program.reports].count(path) > 1:
            raise IRError(f"{path} is reported twice in {program.name}")
        try:
            _use(value, known)
        except IRError as e:
            raise IRError(f"report {path}: {e}\n{_around(program, len(program.eqns))}") from None


def _use(value: Value, known: dict[str, Value]) -> None:
    if value.name not in known:
        raise IRError(f"{value} is used before it is bound")
    if known[value.name] is not value and known[value.name] != value:
        raise IRError(f"{value} is used as {value.type} and bound as {known[value.name].type}")


def _around(program: Program, at: int, reach: int = 3) -> str:
    """The equations around number `at`, which is marked."""
    shown = []
    for n in range(max(0, at - reach), min(len(program.eqns), at + reach + 1)):
        shown.append(f"{'>' if n == at else ' '} {line(program.eqns[n])}")
    return "\n".join([f"in {program.name}:", *shown])


def _param(param: Param) -> None:
    """What a parameter says of itself, but for its path."""
    what = f"parameter {param.path}"
    if not param.value.type.static:
        raise IRError(f"{what}: {param.value.type} is not a shape of numbers")
    if param.init.kind not in INITS:
        raise IRError(f"{what}: `{param.init.kind}` is no way to start")
    if not (not param.trained or param.value.type.dtype.floating):
        raise IRError(f"{what}: {param.value.type} cannot be trained")
    turns, shape = tuple([count for _, count in param.repeats]), param.value.type.ints
    own = shape[len(turns) :]
    if shape[: len(turns)] != turns or len(turns) > len(shape):
        raise IRError(f"{what}: {param.value.type} does not begin with its turns {list(turns)}")
    if param.init.kind == "table":
        given, asked = len(param.init.table), prod(own)
        if given != asked:
            raise IRError(f"{what}: a table of {given} numbers for {param.value.type}")
    if param.init.kind == "uniform" and not param.init.value <= param.init.high:
        raise IRError(f"{what}: uniform from {param.init.value} to {param.init.high}")
    if param.init.kind == "orthogonal" and len(own) < 2:
        raise IRError(f"{what}: {param.value.type} has no rows")
    if param.format is not None:
        if not (param.value.type.dtype.floating and own):
            raise IRError(f"{what}: {param.value.type} kept as {param.format.name}")
        if param.format.name in FORMATS and not FORMATS[param.format.name].rounds:
            raise IRError(f"{what}: kept as {param.format.name}, which is made of several parameters")
        _format(what, param.format)
    if param.fit is not None:
        _fit(what, param.fit)


Setting = bool | int | float | str


def _format(what: str, format: Format) -> None:
    """A known format whose settings are complete, in order, and possible."""
    if format.name not in FORMATS:
        raise IRError(f"{what}: `{format.name}` is no format")
    _settings(f"{what}: {format.name}", format.settings, FORMATS[format.name].settings)
    for key, value in format.settings:
        known = CHOICES.get((format.name, key))
        if known is not None and value not in known:
            raise IRError(f"{what}: {format.name} has no {key} `{value}`, only {', '.join(known)}")
        lowest = 0 if key in ("group", "n") and format.name != "mx" else 1
        if isinstance(value, int) and not isinstance(value, bool) and value < lowest:
            raise IRError(f"{what}: {format.name} with {key} = {value}")
    if format.name == "nm" and dict(format.settings)["n"] > dict(format.settings)["m"]:  # type: ignore[operator]  # ints
        raise IRError(f"{what}: {format} keeps more than there are")


def _fit(what: str, fit: Fit) -> None:
    if fit.name not in FITTERS:
        raise IRError(f"{what}: `{fit.name}` fits nothing")
    _settings(f"{what}: {fit.name}", fit.settings, FITTERS[fit.name].settings)


def _settings(what: str, given: tuple[tuple[str, Setting], ...], asked: Mapping[str, Setting | type]) -> None:
    """Every setting, in the table's order, of the default's type (an integer is a real number too)."""
    names = [name for name, _ in given]
    if names != list(asked):
        raise IRError(f"{what} with the settings {names}, not {list(asked)}")
    for name, value in given:
        default = asked[name]
        kind = default if isinstance(default, type) else type(default)
        if not (type(value) is kind or (kind is float and type(value) is int)):
            raise IRError(f"{what}: {name} = {value!r} is no {kind.__name__}")
        if isinstance(value, float) and isnan(value):
            raise IRError(f"{what}: {name} is not a number")


def _eqn(eqn: Eqn, lengths: Lengths) -> bool:
    """Whether the same operation is known to make these types of these; then there is nothing more to check."""
    op = eqn.op
    types, given = [a.type for a in eqn.args], [out.type for out in eqn.outs]
    key = identity(op)
    known = lengths.made.get(key, [])  # the operation is kept in `parts`
    for taken, made in known:
        if taken == types and made == given:
            return True
    if key not in lengths.parts:
        _op(op, lengths)
        if not isinstance(op, Repeat | Route):  # bodies follow the lengths around them
            lengths.parts[key] = op
    fewest, most = (PRIMITIVES[op.fn].arity,) * 2 if isinstance(op, Elementwise) else ARITY[op.name]
    count = len(eqn.args)
    if not (fewest <= count and (most is None or count <= most)):
        raise IRError(f"{word(op)} does not take {count} operands")
    try:
        inferred = op.infer(*types)
    except (FormulaError, ValueError) as e:  # ValueError: an operand with too few axes to take apart
        raise IRError(f"{word(op)} of {', '.join(map(str, types))}: {e}") from None
    if [*inferred] != given:
        raise IRError(f"{word(op)} gives {_listed(inferred)}, bound as {_listed(given)}")
    if not isinstance(op, Repeat | Route) and len(known) < 8:
        lengths.made.setdefault(key, known).append((types, given))
    return False


def _op(op: Op, lengths: Lengths) -> None:
    """What an operation says of itself."""
    if OPS.get(op.name) is not type(op):
        raise IRError(f"{type(op).__name__} is no operation of the IR")
    if isinstance(op, Elementwise) and op.fn not in PRIMITIVES:
        raise IRError(f"`{op.fn}` is no primitive")
    for place, formula in held(op):
        _formula(op, place, formula)
    match op:
        case Index():
            _index(op)
        case Constant(value=value, dtype=dtype):
            if isnan(value):
                raise IRError("a constant that is not a number")
            fits = isinstance(value, bool) if dtype is DType.BOOL else dtype.floating or isinstance(value, int)
            if not (fits and isinstance(value, bool) == (dtype is DType.BOOL)):
                raise IRError(f"constant: {value} is no {dtype}")
        case Repeat():
            _repeat(op, lengths)
        case Route():
            _route(op, lengths)
        case Rounded(format=format):
            _format("rounded", format)
        case ArrayFunction(fn=fn, settings=settings):
            if fn not in FUNCTIONS:
                raise IRError(f"`{fn}` is no registered function")
            _settings(f"function: {fn}", settings, FUNCTIONS[fn].settings)
        case Calibrated(path=path):
            if PATH.match(path) is None:
                raise IRError(f"calibrated: `{path}` is no path for a parameter")
        case Dropout(path=path):
            if PATH.match(path) is None:
                raise IRError(f"dropout: `{path}` is no path")
        case Attention(dropout=rate, site=path):
            if (PATH.match(path) is not None) != (rate != 0):
                raise IRError(f"attention: dropout of {rate} with the path `{path}`")


def _listed(types: Iterable[TensorType]) -> str:
    return ", ".join(map(str, types)) or "nothing"


def _formula(op: Op, place: Place, formula: Expr) -> None:
    what, known = op.name, variables(op, place)
    if place.tokens:
        reduced = [name for node in walk(formula) if isinstance(node, Reduce) for name in node.indices]
        known = {**known, **dict.fromkeys(reduced, Kind.INT)}
        for name in reduced:
            if NAME.match(name) is None or name in WORDS:
                raise IRError(f"{what}: `{name}` is no name for an index")
    for node in walk(formula):
        match node:
            case FieldNode():
                raise IRError(f"{what}: {node} is a field; fields become operands in lowering")
            case Apply(fn, _) if fn not in PRIMITIVES:
                raise IRError(f"{what}: `{fn}` is no primitive")
            case Var(name, kind):
                if name not in known:
                    raise IRError(f"{what}: `{name}` means nothing in {formula}")
                if kind is not known[name]:
                    raise IRError(f"{what}: `{name}` is {known[name]}, not {kind}")
            case Const(value):
                if isnan(value):
                    raise IRError(f"{what}: a constant that is not a number")
            case Reduce(fn, _, _):
                if what != "index" and not place.tokens:
                    raise IRError(f"{what}: {node} where nothing is reduced")
                if fn not in REDUCTIONS:
                    raise IRError(f"{what}: `{fn}` is no reduction")
            case Token() | Load():
                if not place.tokens:
                    raise IRError(f"{what}: {node} stands for a token, and there is none")
            case Read():
                if place.captured is None:
                    raise IRError(f"{what}: {node} reads a slot, and nothing is captured")
    try:
        kind = kind_of(formula)
    except FormulaError as e:
        raise IRError(f"{what}: {e}") from None
    fits = place.gives == "any" or (kind is Kind.BOOL) == (place.gives == "boolean")
    if not fits:
        raise IRError(f"{what}: {formula} is {kind}, a {place.gives} is asked for")


def _index(op: Index) -> None:
    """Indices are distinct words, and each reduced one is used inside a `Reduce` over it, and only there."""
    names = [name for name, _ in (*op.axes, *op.reduced, *op.lengths)]
    for name in names:
        if not (NAME.match(name) is not None and name not in WORDS):
            raise IRError(f"index: `{name}` is no name for an index")
    if len(set(names)) != len(names):
        raise IRError(f"index: {names} has an index twice")
    reduced = {name for name, _ in op.reduced}
    sums = [node for node in walk(op.expr) if isinstance(node, Reduce)]
    runs = {name for node in sums for name in node.indices}
    if runs != reduced:
        raise IRError(f"index: the expression reduces {sorted(runs)}, the equation {sorted(reduced)}")
    for node in sums:
        within = {name for inner in walk(node.body) if isinstance(inner, Reduce) for name in inner.indices}
        twice = sorted(within & set(node.indices)) + [n for n in node.indices if node.indices.count(n) > 1]
        if twice:
            raise IRError(f"index: {twice} is reduced within its own reduction")
    loose = sorted(set(_free(op.expr)) & reduced)
    if loose:
        raise IRError(f"index: {loose} is used outside its reduction")
    numbers = [name for name, size in op.lengths if isinstance(size, int)]
    if numbers:
        raise IRError(f"index: {numbers} is a number, no length that only a call tells")


def _free(expr: Expr, inside: frozenset[str] = frozenset()) -> Iterator[str]:
    """The variables that no `Reduce` around them binds."""
    match expr:
        case Var(name, _):
            if name not in inside:
                yield name
        case Reduce(_, indices, body):
            yield from _free(body, inside | set(indices))
        case Apply(_, args):
            for arg in args:
                yield from _free(arg, inside)
        case _:
            for index in getattr(expr, "indices", ()):
                yield from _free(index, inside)


def _repeat(op: Repeat, lengths: Lengths) -> None:
    if NAME.match(op.label) is None:
        raise IRError(f"repeat: `{op.label}` is no label")
    if op.count < 0:
        raise IRError(f"repeat: {op.count} turns")
    if op.remat not in REMAT:
        raise IRError(f"repeat: remat is {', '.join(REMAT)}, not `{op.remat}`")
    body = op.body
    if not (len(body.inputs) > op.carries >= 0):
        raise IRError(f"repeat: a body of {len(body.inputs)} inputs for {op.carries} carries")
    if len(body.results) != op.carries:
        raise IRError(f"repeat: {len(body.results)} results of the body for {op.carries} carries")
    _body(op.name, body, lengths)


def _route(op: Route, lengths: Lengths) -> None:
    if PATH.match(op.label) is None:
        raise IRError(f"route: `{op.label}` is no label")
    if len(op.body.inputs) < 2:
        raise IRError(f"route: a body of {len(op.body.inputs)} inputs")
    _body(op.name, op.body, lengths)


def _body(what: str, body: Program, lengths: Lengths) -> None:
    if not all(i.default is None for i in body.inputs):
        raise IRError(f"{what}: an input of the body has a default")
    _program(body, lengths)


def _statistics(program: Program) -> None:
    """A calibrated statistic becomes a parameter of its own."""
    calibrated = list(_calibrated(program))
    if not calibrated:
        return
    count = Counter(calibrated) + Counter(p.path for p in program.stored())
    for path in calibrated:
        if count[path] > 1:
            raise IRError(f"calibrated {path}: the path is taken")


def _calibrated(program: Program) -> Iterator[str]:
    for eqn in program.eqns:
        if isinstance(eqn.op, Calibrated):
            yield eqn.op.path
    for _, body in program.bodies():
        yield from _calibrated(body)


def _paths(program: Program) -> None:
    """Paths are leaves of one tree: none twice, none inside another."""
    count = Counter([p.path for p in program.stored()])
    clear: set[str] = set()  # no parameter has such a path, nor one that it lies inside of
    for path, times in count.items():
        if times != 1:
            raise IRError(f"parameter {path} occurs {times} times")
        above = path.rpartition(".")[0]
        while above and above not in clear:
            if above in count:
                raise IRError(f"parameter {path} lies inside parameter {above}")
            clear.add(above)
            above = above.rpartition(".")[0]
