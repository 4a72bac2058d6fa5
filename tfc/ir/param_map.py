"""What a pass does to parameters, as data: each new parameter as an expression over the old, and back.

Axes count from the end (-1 is the last), so that a map means the same for a parameter and for a stack of them
(leading axes of `repeat`s). `tfc/params/` applies maps, differentiably; passes only write them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace

from tfc.record import record

__all__ = [
    "IDENTITY",
    "Add",
    "Call",
    "Concat",
    "Expr",
    "MatVec",
    "NonZero",
    "ParamMap",
    "Part",
    "ScaleRows",
    "Source",
    "Stack",
    "Sub",
    "Turn",
    "UnscaleRows",
    "inside",
    "parts",
    "sources",
    "substitute",
    "text",
]


@record(frozen=True, slots=True)
class Expr:
    """An array computed from parameters."""

    def __str__(self) -> str:
        return text(self)


@record(frozen=True, slots=True)
class Source(Expr):
    """The parameter of that path."""

    path: str


@record(frozen=True, slots=True)
class Concat(Expr):
    """Parts side by side along an axis."""

    of: tuple[Expr, ...]
    axis: int = -1


@record(frozen=True, slots=True)
class Part(Expr):
    """Elements start..start+size-1 along an axis: what `Concat` put together, taken apart."""

    of: Expr
    start: int
    size: int
    axis: int = -1


@record(frozen=True, slots=True)
class Stack(Expr):
    """Parts one upon another along a new axis, which is `axis` of the result."""

    of: tuple[Expr, ...]
    axis: int


@record(frozen=True, slots=True)
class Turn(Expr):
    """Element `index` along an axis, which goes: what `Stack` put together, taken apart."""

    of: Expr
    index: int
    axis: int


@record(frozen=True, slots=True)
class ScaleRows(Expr):
    """weight [..., K, O] with row k multiplied by scale [..., K]."""

    weight: Expr
    scale: Expr


@record(frozen=True, slots=True)
class UnscaleRows(Expr):
    """weight [..., K, O] with row k divided by scale [..., K]: undoes ScaleRows to rounding, if no scale is 0."""

    weight: Expr
    scale: Expr


@record(frozen=True, slots=True)
class MatVec(Expr):
    """vector [..., K] times weight [..., K, O] -> [..., O], summed in float32."""

    vector: Expr
    weight: Expr


@record(frozen=True, slots=True)
class Add(Expr):
    left: Expr
    right: Expr


@record(frozen=True, slots=True)
class Sub(Expr):
    left: Expr
    right: Expr


@record(frozen=True, slots=True)
class Call(Expr):
    """Result number `result` of a procedure of the table `tfc.params.fit.FITS`, given arrays and settings.

    data: the key of the calibration statistics that it needs besides (`tfc.calibration`), an empty string for none.
    Procedures take leading axes as stacks, so that a map means the same for a parameter and for a stack of them.
    """

    fn: str
    of: tuple[Expr, ...]
    settings: tuple[tuple[str, bool | int | float | str], ...] = ()
    result: int = 0
    data: str = ""


def parts(expr: Expr) -> tuple[Expr, ...]:
    """The expressions directly inside an expression."""
    match expr:
        case Source():
            return ()
        case Concat(inner, _) | Stack(inner, _) | Call(_, inner, _, _, _):
            return inner
        case Part(of, _, _, _) | Turn(of, _, _):
            return (of,)
        case ScaleRows(a, b) | UnscaleRows(a, b) | MatVec(a, b) | Add(a, b) | Sub(a, b):
            return (a, b)
    raise TypeError(f"{type(expr).__name__} is no expression over parameters")


def text(expr: Expr) -> str:
    """The expression as people read it: `concat(layer.look.q.weight, layer.look.k.weight)`."""
    match expr:
        case Source(path):
            return path
        case Concat(inner, axis):
            return f"concat({', '.join(map(text, inner))}{'' if axis == -1 else f', axis={axis}'})"
        case Stack(inner, axis):
            return f"stack({', '.join(map(text, inner))}, axis={axis})"
        case Turn(of, index, axis):
            return f"turn({text(of)}, {index}, axis={axis})"
        case Part(of, start, size, axis):
            return f"part({text(of)}, {start}, {size}{'' if axis == -1 else f', axis={axis}'})"
        case Add(a, b):
            return f"{text(a)} + {text(b)}"
        case Sub(a, b):
            return f"{text(a)} - {text(b)}"
        case ScaleRows(a, b):
            return f"scale_rows({text(a)}, {text(b)})"
        case UnscaleRows(a, b):
            return f"unscale_rows({text(a)}, {text(b)})"
        case MatVec(a, b):
            return f"matvec({text(a)}, {text(b)})"
        case Call(fn, inner, settings, result, data):
            given = [*map(text, inner), *(f"{k}={v}" for k, v in settings), *([f"data={data}"] if data else [])]
            return f"{fn}({', '.join(given)})[{result}]"
    raise TypeError(f"{type(expr).__name__} is no expression over parameters")


def sources(expr: Expr) -> frozenset[str]:
    """The paths of the parameters that an expression reads."""
    found: set[str] = set()
    left = [expr]
    while left:
        at = left.pop()
        if isinstance(at, Source):
            found.add(at.path)
        else:
            left.extend(parts(at))
    return frozenset(found)


def substitute(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """The expression with each parameter that `values` has replaced by its expression there."""
    if isinstance(expr, Source):
        return values.get(expr.path, expr)
    if isinstance(expr, Turn):  # a deep model has a thousand
        now = substitute(expr.of, values)
        return expr if now is expr.of else Turn(now, expr.index, expr.axis)
    match expr:
        case Concat(inner, axis):
            return Concat(tuple(substitute(p, values) for p in inner), axis)
        case Call(_, inner, _, _, _):
            return replace(expr, of=tuple(substitute(p, values) for p in inner))
        case Stack(inner, axis):
            return Stack(tuple(substitute(p, values) for p in inner), axis)
        case Part(of, start, size, axis):
            return Part(substitute(of, values), start, size, axis)
        case ScaleRows(a, b) | UnscaleRows(a, b) | MatVec(a, b) | Add(a, b) | Sub(a, b):
            return type(expr)(substitute(a, values), substitute(b, values))
    raise TypeError(f"{type(expr).__name__} is no expression over parameters")


@record(frozen=True, slots=True)
class NonZero:
    """A condition on values: no element of the parameter `path` is 0. Where it fails, the pass that asks for it
    at `site` is held back for these parameters (`model.pack` checks; a traced call cannot)."""

    path: str
    site: str


@record(frozen=True, slots=True)
class ParamMap:
    """forward: every path that changes, is new, or must be kept for the way back -> its expression over the old.
    backward: every old path that forward consumed or changed -> its expression over the new.
    A path in neither, and not removed, is carried over as it is.
    removed: old paths that the new tree lacks; each is in `backward`.
    kept: new paths that no program reads, held only so that backward can be computed.
    """

    forward: Mapping[str, Expr] = field(default_factory=dict)
    backward: Mapping[str, Expr] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    guards: tuple[NonZero, ...] = ()

    def after(self, paths: Iterable[str]) -> frozenset[str]:
        """The paths of the new tree, given those of the old one."""
        return (frozenset(paths) - self.removed) | self.forward.keys()

    def then(self, later: "ParamMap") -> "ParamMap":
        """This map, then `later`, as one. Raises ValueError where a guard of `later` asks for a computed parameter."""
        if later == IDENTITY:
            return self
        if self == IDENTITY:
            return later
        made = self.forward.keys() - self.backward.keys()  # exist between the two only
        forward = {path: e for path, e in self.forward.items() if path not in later.removed}
        forward |= {path: substitute(e, self.forward) for path, e in later.forward.items()}
        backward = {path: e for path, e in later.backward.items() if path not in made}
        went = later.backward  # empty for most passes, and there may be a thousand parameters
        backward |= {path: substitute(e, went) if went else e for path, e in self.backward.items()}
        return ParamMap(
            forward,
            backward,
            (self.removed | (later.removed - made)) - forward.keys(),
            (self.kept - later.removed) | later.kept,
            self.guards + tuple(NonZero(old, g.site) for g in later.guards for old in self._old(g.path)),
        )

    def _old(self, path: str) -> list[str]:
        """The parameters whose elements `path` holds after this map, by their paths before it."""
        expr = self.forward.get(path, Source(path))
        if not all(isinstance(e, Source | Concat | Part | Stack | Turn) for e in inside(expr)):
            raise ValueError(f"a guard asks for {path}, which is computed")
        return sorted(sources(expr))


def inside(expr: Expr) -> Iterator[Expr]:
    """The expression and all within it."""
    yield expr
    for part in parts(expr):
        yield from inside(part)


IDENTITY = ParamMap()
