"""Program -> nothing, or an IRError that names the invariant it breaks and shows the equations around the fault.

The invariants, each tested by a program that breaks it:

- names: well-formed, bound once in a program (a body is a program of its own), bound above their uses, and used with
  the type they are bound with; results exist
- types: what `infer` says of the operands is what the equation binds; sizes are not negative; every named length occurs
  in the shape of some input, so a call can bind it
- formulas: known primitives and variables, no field, slots within the operands, the kind that the attribute asks for
- parameters: a path is used once in the whole program and is no prefix of another; shapes are numbers; a table fills
  its shape; what is trained is floating
- inputs: lengths by default are integers; a body's inputs have no defaults
- repeats: the body takes (index, carries, invariants), gives the carries, and is itself such a program
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from tfc.ir.formulas import Place, held, variables
from tfc.ir.ops import OPS, Constant, Elementwise, Index, Op, Repeat
from tfc.ir.program import Eqn, Param, Program, Value
from tfc.ir.scan import NAME, PATH, WORDS
from tfc.ir.text import line, word
from tfc.ir.types import Dim, DType, IRError, TensorType

__all__ = ["verify"]

INITS = frozenset(["zeros", "ones", "normal", "glorot", "constant", "table", "packed"])
"""Kinds of `Init`. `packed`: what a pass made; it starts as the pass's ParamMap gives it, not by itself."""

REDUCTIONS = frozenset(["sum", "mean", "max", "min", "any", "all"])
"""What an index equation reduces with."""

ARITY = {
    "constant": (0, 0), "reduction": (1, 1), "take": (2, 2), "linear": (2, 3), "reshape": (1, 1), "slice": (1, 1),
    "concat": (1, None), "cast": (1, 1), "rotate": (1, 2), "scores": (2, 2), "score": (1, None), "masked": (1, None),
    "weigh": (1, None), "mix": (2, 2), "attention": (3, None), "ffn": (3, 7), "index": (0, None), "repeat": (0, None),
}  # fmt: skip
"""Operation -> fewest and most operands; an elementwise operation takes as many as its primitive."""


def verify(program: Program, *, after: str = "") -> None:
    """Checks every invariant. `after`: the pass that made the program, for the message. Raises IRError."""
    try:
        _program(program, Lengths.of(program))
        _paths(program)
    except IRError as e:
        raise IRError(f"after {after}: {e}" if after else str(e)) from None


@dataclass(frozen=True, slots=True)
class Lengths:
    """The named lengths that a call can bind: those in the shapes of the model's inputs."""

    names: frozenset[str]

    @staticmethod
    def of(program: Program) -> "Lengths":
        sizes = [n for i in program.inputs for n in i.value.type.shape]
        return Lengths(frozenset(name for n in sizes if isinstance(n, Dim) for name in n.names))

    def check(self, value: Value) -> None:
        for n in value.type.shape:
            if not (not isinstance(n, int) or n >= 0):
                raise IRError(f"{value}: {value.type} has a negative size")
            unknown = sorted(n.names - self.names) if isinstance(n, Dim) else []
            if unknown:
                raise IRError(f"{value}: {value.type} uses the length {unknown}, which no input's shape has")


def _program(program: Program, lengths: Lengths) -> None:
    if NAME.match(program.name) is None:
        raise IRError(f"`{program.name}` is no name for a program")
    known: dict[str, Value] = {}

    def bound(value: Value) -> None:
        if PATH.match(value.name) is None:
            raise IRError(f"`{value.name}` is no name for a value")
        if value.name in known:
            raise IRError(f"{value} is bound twice in {program.name}")
        lengths.check(value)
        known[value.name] = value

    for declared in program.inputs:
        bound(declared.value)
        if declared.default is not None:
            kind = declared.value.type
            if kind.dtype is not DType.I32:
                raise IRError(f"input {declared.value}: a default is a length, the input is {kind}")
            lengths.check(Value(declared.value.name, TensorType((declared.default,), DType.I32)))
    for param in program.params:
        bound(param.value)
        _param(param)
    for at, eqn in enumerate(program.eqns):
        try:
            for arg in eqn.args:
                _use(arg, known)
            _eqn(eqn, lengths)
            for out in eqn.outs:
                bound(out)
        except IRError as e:
            raise IRError(f"{e}\n{_around(program, at)}") from None
    if not program.results:
        raise IRError(f"{program.name} has no results")
    for result in program.results:
        try:
            _use(result, known)
        except IRError as e:
            raise IRError(f"result of {program.name}: {e}\n{_around(program, len(program.eqns))}") from None


def _use(value: Value, known: dict[str, Value]) -> None:
    if value.name not in known:
        raise IRError(f"{value} is used before it is bound")
    if known[value.name] != value:
        raise IRError(f"{value} is used as {value.type} and bound as {known[value.name].type}")


def _around(program: Program, at: int, reach: int = 3) -> str:
    """The equations around number `at`, which is marked."""
    shown = []
    for n in range(max(0, at - reach), min(len(program.eqns), at + reach + 1)):
        shown.append(f"{'>' if n == at else ' '} {line(program.eqns[n])}")
    return "\n".join([f"in {program.name}:", *shown])


def _param(param: Param) -> None:
    what = f"parameter {param.path}"
    if PATH.match(param.path) is None:
        raise IRError(f"`{param.path}` is no path for a parameter")
    if not param.value.type.static:
        raise IRError(f"{what}: {param.value.type} is not a shape of numbers")
    if param.init.kind not in INITS:
        raise IRError(f"{what}: `{param.init.kind}` is no way to start")
    if not (not param.trained or param.value.type.dtype.floating):
        raise IRError(f"{what}: {param.value.type} cannot be trained")
    if param.init.kind == "table":
        given, asked = len(param.init.table), prod(param.value.type.ints)
        if given != asked:
            raise IRError(f"{what}: a table of {given} numbers for {param.value.type}")


def _eqn(eqn: Eqn, lengths: Lengths) -> None:
    op = eqn.op
    if OPS.get(op.name) is not type(op):
        raise IRError(f"{type(op).__name__} is no operation of the IR")
    if isinstance(op, Elementwise):
        if op.fn not in PRIMITIVES:
            raise IRError(f"`{op.fn}` is no primitive")
        fewest: int = PRIMITIVES[op.fn].arity
        most: int | None = fewest
    else:
        fewest, most = ARITY[op.name]
    count = len(eqn.args)
    if not (fewest <= count and (most is None or count <= most)):
        raise IRError(f"{word(op)} does not take {count} operands")
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
    types = tuple(a.type for a in eqn.args)
    try:
        inferred = op.infer(*types)
    except (FormulaError, ValueError) as e:  # ValueError: an operand with too few axes to take apart
        raise IRError(f"{word(op)} of {', '.join(map(str, types))}: {e}") from None
    given = tuple(out.type for out in eqn.outs)
    if inferred != given:
        raise IRError(f"{word(op)} gives {_listed(inferred)}, bound as {_listed(given)}")


def _listed(types: Iterable[TensorType]) -> str:
    return ", ".join(map(str, types)) or "nothing"


def _formula(op: Op, place: Place, formula: Expr) -> None:
    what, known = op.name, variables(op, place)
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
                if what != "index":
                    raise IRError(f"{what}: {node} outside an index equation")
                if fn not in REDUCTIONS:
                    raise IRError(f"index: `{fn}` is no reduction")
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
    """Indices are distinct words, and each reduced one is used inside one `Reduce` over it, and only there."""
    names = [name for name, _ in (*op.axes, *op.reduced)]
    for name in names:
        if not (NAME.match(name) is not None and name not in WORDS):
            raise IRError(f"index: `{name}` is no name for an index")
    if len(set(names)) != len(names):
        raise IRError(f"index: {names} has an index twice")
    reduced = {name for name, _ in op.reduced}
    runs = [name for node in walk(op.expr) if isinstance(node, Reduce) for name in node.indices]
    if sorted(runs) != sorted(reduced):
        raise IRError(f"index: the expression reduces {runs}, the equation {sorted(reduced)}")
    loose = sorted(set(_free(op.expr)) & reduced)
    if loose:
        raise IRError(f"index: {loose} is used outside its reduction")


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
    body = op.body
    if not (len(body.inputs) > op.carries >= 0):
        raise IRError(f"repeat: a body of {len(body.inputs)} inputs for {op.carries} carries")
    if len(body.results) != op.carries:
        raise IRError(f"repeat: {len(body.results)} results of the body for {op.carries} carries")
    if not all(i.default is None for i in body.inputs):
        raise IRError("repeat: an input of the body has a default")
    _program(body, lengths)


def _paths(program: Program) -> None:
    """Paths are leaves of one tree: none twice, none inside another."""
    count = Counter(p.path for p in program.stored())
    for path, times in count.items():
        if times != 1:
            raise IRError(f"parameter {path} occurs {times} times")
        above = path.rpartition(".")[0]
        while above:
            if above in count:
                raise IRError(f"parameter {path} lies inside parameter {above}")
            above = above.rpartition(".")[0]
