"""A program, a target and lengths into a report: each operation's kernel and why, cost, time at the roofline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tfc.backends.emit import Row, emit
from tfc.backends.kernel import Target
from tfc.diagnostics import Diagnostic, TfcError
from tfc.formula.expr import Expr, Load, Read, Var, conjuncts, walk
from tfc.formula.tiles import visited
from tfc.ir.ops import (
    ArrayFunction,
    Attention,
    CacheRead,
    CacheWrite,
    Calibrated,
    Cast,
    Concat,
    Constant,
    Dropout,
    Elementwise,
    FeedForward,
    Index,
    Linear,
    Masked,
    Mix,
    Recurrence,
    Reduction,
    Reshape,
    ResidualNorm,
    Rotate,
    Rounded,
    Route,
    Score,
    Scores,
    Slice,
    Take,
    Top,
    Weigh,
)
from tfc.ir.program import Eqn, Program
from tfc.ir.types import DType, TensorType
from tfc.passes.base import Note
from tfc.passes.decode import notes as decoding
from tfc.targets import FACTS

__all__ = ["Cost", "Line", "Report", "cost", "default_lengths", "explain", "lengths_of"]

TILE = 128
"""Tokens of a query and of a key tile by which the work of a mask is counted."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of one operation. flops: a multiplication and an addition count two. matmul: those of them that a
    matrix unit does. bytes: operands and results, once each, as if they all went through memory."""

    flops: int
    matmul: int
    bytes: int

    def seconds(self, target: Target, dtype: DType) -> float | None:
        """The larger of matrix time and memory time; None where the target's rates are unknown."""
        if not target.bandwidth or not target.matmul_flops:
            return None
        facts = FACTS.get(target.name)
        rate = facts.f32_flops if facts and facts.f32_flops and dtype in (DType.F32, DType.F64) else target.matmul_flops
        return max(self.matmul / rate, self.bytes / target.bandwidth)


@dataclass(frozen=True, slots=True)
class Line:
    """One operation. count: how often a call runs it; cost and seconds are of one run."""

    row: Row
    cost: Cost
    seconds: float | None

    @property
    def place(self) -> str:
        """`file:line` of what the user wrote, where the operation has one."""
        span = self.row.span
        return f"{span.source.name}:{span.line}" if span else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "site": self.row.site,
            "op": self.row.op,
            "place": self.place,
            "results": [str(v.type) for v in self.row.eqn.outs],
            "count": self.row.count,
            "kernel": self.row.kernel,
            "refusals": [{"kernel": k, "reason": why} for k, why in self.row.refusals],
            "notes": {k: v if isinstance(v, (int, float, bool)) else str(v) for k, v in self.row.notes.items()},
            "flops": self.cost.flops,
            "bytes": self.cost.bytes,
            "roofline_seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Everything `tfc explain` says. parameters: (arrays, numbers, bytes). notes: what the passes say."""

    program: str
    target: Target
    lengths: Mapping[str, int]
    lines: tuple[Line, ...]
    parameters: tuple[int, int, int]
    stages: tuple[str, ...]
    notes: tuple[Note, ...]

    def total(self, what: str) -> int:
        """`flops`, `matmul` or `bytes` of a whole call."""
        return sum(int(getattr(line.cost, what)) * line.row.count for line in self.lines)

    @property
    def seconds(self) -> float | None:
        """The sum over operations, each alone at the roofline; XLA fuses neighbours and can be below it."""
        known = [line.seconds * line.row.count for line in self.lines if line.seconds is not None]
        return sum(known) if known else None

    def kernels(self) -> dict[str, int]:
        """Kernel -> how many operations a call runs on it."""
        out: dict[str, int] = {}
        for line in self.lines:
            out[line.row.kernel] = out.get(line.row.kernel, 0) + line.row.count
        return out

    def to_json(self) -> dict[str, Any]:
        arrays, numbers, size = self.parameters
        return {
            "program": self.program,
            "target": self.target.name,
            "lengths": dict(self.lengths),
            "operations": [line.to_json() for line in self.lines],
            "parameters": {"arrays": arrays, "numbers": numbers, "bytes": size},
            "total": {"flops": self.total("flops"), "bytes": self.total("bytes"), "roofline_seconds": self.seconds},
            "passes": list(self.stages),
            "notes": [{"site": n.site, "held": n.held, "message": n.message} for n in self.notes],
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, every: bool = False) -> str:
        """The report for people: a table, then every refusal once, then what the passes say.

        every: a line for each operation; else small neighbours on one kernel share one.
        """
        lengths = ", ".join(f"{k} = {v}" for k, v in self.lengths.items())
        arrays, numbers, size = self.parameters
        out = [f"{self.program} on {self.target.name}" + (f", {lengths}" if lengths else "")]
        out += [f"{numbers:,} parameters in {arrays} arrays, {_size(size)}", ""]
        out += _table([[line] for line in self.lines] if every else _groups(self.lines))
        seconds = self.seconds
        time = f", {_time(seconds)} at the roofline, each operation alone" if seconds is not None else ""
        out += ["", f"a call: {_count(self.total('flops'))}FLOP, {_size(self.total('bytes'))} moved{time}"]
        if refused := _refusals(self.lines):
            out += ["", "why not another kernel", *refused]
        if noted := [f"  {line.row.site}: {k}: {v}" for line in self.lines for k, v in line.row.notes.items()]:
            out += ["", "what the kernels say", *noted]
        out += ["", f"passes: {', '.join(self.stages) or 'none'}", *(f"  {note}" for note in self.notes)]
        return "\n".join(out)


def explain(
    program: Program,
    target: Target,
    lengths: Mapping[str, int],
    implementation: str | None = None,
    stages: Sequence[str] = (),
    notes: Iterable[Note] = (),
) -> Report:
    """What a call of the program with these lengths runs on the target, without running anything.

    stages, notes: the passes that made the program, and what they said. What decoding keeps is added to it.
    Raises TfcError: E702 for a length that is missing, E806 for one that the program does not have, and what `emit`
    raises for the implementation.
    """
    known = lengths_of(program)
    if unknown := [n for n in lengths if n not in known]:
        fact = f"{program.name} has no length `{unknown[0]}`"
        raise TfcError(Diagnostic("E806", fact, help=f"its lengths are {', '.join(known) or 'all numbers'}"))
    lines = []
    for row in emit(program, target, implementation).plan(lengths):
        own = cost(row.eqn)
        lines.append(Line(row, own, own.seconds(target, row.eqn.args[0].type.dtype if row.eqn.args else DType.F32)))
    stored = [s.type for s in program.stored()]
    count = [prod(t.ints) for t in stored]
    size = sum(n * t.dtype.bytes for n, t in zip(count, stored, strict=True))
    parameters = (len(stored), sum(count), size)
    said = (*notes, *decoding(program))
    return Report(program.name, target, lengths, tuple(lines), parameters, tuple(stages), said)


def lengths_of(program: Program) -> tuple[str, ...]:
    """The named lengths that the program's inputs leave open, in order of appearance."""
    sizes = (n for i in program.inputs for n in i.value.type.shape if not isinstance(n, int))
    return tuple(dict.fromkeys(name for size in sizes for name in sorted(size.names)))


def default_lengths(program: Program, given: Mapping[str, int]) -> dict[str, int]:
    """Lengths for a report where none are asked for: 8 for the first (the batch), 128 for the others."""
    return {**{name: 128 if i else 8 for i, name in enumerate(lengths_of(program))}, **given}


def cost(eqn: Eqn) -> Cost:
    """FLOPs and bytes of one run. Lengths are numbers.

    Attention counts the pairs in the tiles that its mask leaves, as far as positions tell; formulas are not
    counted. A recurrence counts what its state costs, token by token; a route its weighted sum, its body has lines of
    its own. Transcendentals count one.
    """
    types = [a.type for a in eqn.args]
    outs = [v.type for v in eqn.outs]
    moved = sum(_bytes(t) for t in (*types, *outs))
    out = prod(outs[0].ints)
    match eqn.op:
        case Linear():
            flops = 2 * out * types[1].ints[0]
            return Cost(flops + (out if len(types) > 2 else 0), flops, moved)
        case FeedForward() as op:
            rows, deep, wide = prod(types[0].ints[:-1]), types[0].ints[-1], types[1].ints[-1]
            flops = 2 * rows * wide * (deep * (1 + op.gated) + outs[0].ints[-1])
            return Cost(flops + rows * wide, flops, moved)
        case Attention() as op:
            (b, n, h, d), (_, m, _, dv) = types[0].ints, types[2].ints
            pairs = b * h * _pairs(op.mask, n, m)
            return Cost(2 * pairs * (d + dv) + 5 * pairs, 2 * pairs * (d + dv), moved)
        case Recurrence():
            (b, n, h, d), m, dv = types[0].ints, types[1].ints[1], types[2].ints[-1]
            return Cost(b * h * d * dv * (2 * n + 3 * m), 2 * b * h * d * dv * (n + m), moved)
        case Route(count=count):
            return Cost(2 * count * out, 0, 2 * count * _bytes(outs[0]))
        case Scores():
            flops = 2 * out * types[0].ints[-1]
            return Cost(flops, flops, moved)
        case Mix():
            flops = 2 * out * types[0].ints[-1]
            return Cost(flops, flops, moved)
        case Index(reduced=reduced) as op:
            turns = out * prod(n for _, n in reduced if isinstance(n, int))
            flops = turns * max(1, sum(1 for node in walk(op.expr) if not isinstance(node, Read)) // 2)
            return Cost(flops, 0, moved)
        case ResidualNorm() as op:
            steps = 4 + op.residual + 2 * op.centered + op.scaled + op.biased
            return Cost(steps * out, 0, moved)
        case Reduction():
            return Cost(prod(types[0].ints), 0, moved)
        case Weigh():
            return Cost(5 * out, 0, moved)
        case Elementwise() | Score() | Masked() | Rotate() | ArrayFunction():
            return Cost(out, 0, moved)
        case Top():
            length = types[0].ints[-1]
            return Cost(prod(types[0].ints) * max(1, length.bit_length()), 0, moved)
        case Rounded():
            return Cost(5 * out, 0, moved)
        case Dropout():
            return Cost(20 * out, 0, moved)
        case Take():
            return Cost(0, 0, _bytes(types[1]) + 2 * _bytes(outs[0]))
        case Reshape() | Constant() | Calibrated():
            return Cost(0, 0, 0)
        case Slice() | CacheRead():
            return Cost(0, 0, 2 * _bytes(outs[0]))
        case CacheWrite():
            return Cost(0, 0, 2 * _bytes(types[1]))
        case Concat() | Cast():
            return Cost(0, 0, moved)
    raise NotImplementedError(f"the cost of {eqn.op.name}")


def _pairs(mask: Expr, n: int, m: int) -> int:
    """Query-key pairs in the tiles that are visited, as far as positions tell: what fields leave out is not known."""
    tiles = [
        visited(part, n=n, m=m, block_q=min(TILE, max(n, 1)), block_k=min(TILE, max(m, 1)))
        for part in conjuncts(mask)
        if not any(isinstance(node, Load | Read | Var) for node in walk(part))
    ]
    return round(n * m * min((t.fraction for t in tiles), default=1.0))


def _bytes(t: TensorType) -> int:
    return prod(t.ints) * t.dtype.bytes


def _groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Neighbours in one body, on one kernel that nobody refused and without a matrix product, are together."""
    out: list[list[Line]] = []
    for line in lines:
        small = line.cost.matmul == 0 and not line.row.refusals and not line.row.notes
        last = out[-1][-1] if out else None
        together = small and last is not None and last.cost.matmul == 0 and not last.row.refusals and not last.row.notes
        if last is not None and together and (last.row.kernel, last.row.within) == (line.row.kernel, line.row.within):
            out[-1].append(line)
        else:
            out.append([line])
    return out


def _table(groups: Sequence[Sequence[Line]]) -> list[str]:
    head = ("operation", "times", "on", "gives", "FLOP", "moved", "roofline", "where")
    table = [head, *(_cells(group) for group in groups)]
    widths = [max(len(r[i]) for r in table) for i in range(len(head))]
    right = {1, 4, 5, 6}
    out = []
    for row in table:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        out.append("  ".join(cells).rstrip())
    return out


def _cells(group: Sequence[Line]) -> tuple[str, ...]:
    first, last = group[0], group[-1]
    name = f"{first.row.site} {first.row.op}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    seconds = None if first.seconds is None else sum(line.seconds or 0.0 for line in group)
    return (
        name,
        str(first.row.count),
        first.row.kernel,
        str(last.row.eqn.outs[0].type),
        _count(sum(line.cost.flops for line in group)),
        _size(sum(line.cost.bytes for line in group)),
        "-" if seconds is None else _time(seconds),
        next((line.place.rpartition("/")[2] for line in group if line.place), ""),
    )


def _refusals(lines: Sequence[Line]) -> list[str]:
    """One line a kernel, operation and reason, with every site that it holds for."""
    sites: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        for kernel, reason in line.row.refusals:
            sites.setdefault((kernel, line.row.op, reason), []).append(line.row.site)
    return [f"  {kernel} for {op}: {reason}  ({_some(where)})" for (kernel, op, reason), where in sites.items()]


def _some(sites: Sequence[str]) -> str:
    return ", ".join(sites[:3]) + (f" and {len(sites) - 3} more" if len(sites) > 3 else "")


def _count(n: float) -> str:
    """1234567 -> `1.23 M`, with a space before what follows."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:g} "


def _size(n: int) -> str:
    return f"{_count(n)}B"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
