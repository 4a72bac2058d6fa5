"""Faults planted outside the GPU kernel are caught by `judge`: mechanical ones in the xla form, and in visited tiles.

The xla form of attention is mutated a node at a time: each comparison shifted or turned round, each factor, term
and bound dropped or exchanged, each condition negated, each whole number one more. Visited ranges are spoiled one at
a time: a partial range called full, a tile left out at either end. A mutant that nobody could tell from the
original is named here with the reason.
"""

import ast
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.bounds import visited_ranges
from tfc.backends.kernel import Kernel, Target
from tfc.backends.xla import attention as original
from tfc.formula.expr import Const, Kind, Load, apply
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn
from tfc.ir.types import DType
from tfc.testing import Case, Sizes, attention_eqn, float64, judge
from tfc.testing.cases import FORMULAS, Array, named_op
from tfc.testing.judging import DEFINITION
from tfc.testing.laws import Refused

CPU = Target(name="cpu", platform="cpu")
MUTATED = ("reader", "grouped_scores", "grouped_mix", "exponentials", "weights", "masked_scores", "attend")


def case(name: str, sizes: Sizes, flavour: str, seed: int = 0) -> Case:
    return Case(name, attention_eqn(named_op(name, sizes), sizes), seed, flavour)


def gated() -> Case:
    """A weigh formula: weights times a gate of the score and of the query."""
    gate = apply("mul", P, apply("sigmoid", apply("add", S, Load(0, "q", Kind.REAL))))
    op = Attention(scale=0.3, mask=apply("le", Load(1, "k", Kind.INT), Load(2, "q", Kind.INT)), weigh=gate)
    return Case("gated", attention_eqn(op, Sizes(2, 5, 7, 4, 2, 8, DType.F32), common=True), 0, "documents")


CASES = (
    case("documents", Sizes(2, 12, 12, 4, 2, 32, DType.F32), "documents"),
    case("own", Sizes(1, 5, 9, 6, 2, 16, DType.F32), "normal"),
    case("padding", Sizes(2, 4, 6, 2, 1, 8, DType.BF16), "blind"),
    case("full", Sizes(1, 6, 40, 1, 1, 8, DType.F32), "large"),
    case("causal", Sizes(1, 9, 4, 2, 2, 8, DType.F32), "normal"),
    gated(),
)
"""Few and small: a mutant is judged on one after another until it is caught."""


@dataclass(frozen=True)
class Mutant:
    """A source with one node changed: `before` became `after` in `function`."""

    function: str
    line: str
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.function}: `{self.before}` -> `{self.after}` in `{self.line}`"


SHIFTED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
RENAMED: Mapping[str, str] = {"max": "min", "any": "all", "sum": "max", "exp": "exp2", "log": "log1p", "repeat": "tile"}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(left, [op], [right]) if type(op) in SHIFTED:
            yield ast.Compare(left, [SHIFTED[type(op)]()], [right])
        case ast.BinOp(left, ast.Mult() | ast.Div() | ast.Sub(), right):
            yield left
            if not isinstance(node.op, ast.Div):
                yield right
        case ast.BinOp(left, ast.Add(), right):
            yield ast.BinOp(left, ast.Sub(), right)
        case ast.UnaryOp(ast.Invert() | ast.Not() | ast.USub(), operand):
            yield operand
        case ast.IfExp(test, body, other):
            yield ast.IfExp(test, other, body)
        case ast.If(test, body, other):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, other)
        case ast.Attribute(value, name, ctx) if name in RENAMED:
            yield ast.Attribute(value, RENAMED[name], ctx)
        case ast.Constant(int(value)) if not isinstance(value, bool):
            yield ast.Constant(value + 1)
        case ast.Call(ast.Attribute(ast.Name("jnp"), "where"), [test, x, y]):
            yield ast.Call(node.func, [test, y, x], [])


def mutants(source: str, functions: Sequence[str]) -> list[Mutant]:
    """Every change of every node of the functions named, one at a time."""

    def parsed() -> tuple[ast.Module, list[tuple[str, ast.AST]]]:
        tree = ast.parse(source)
        owners = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name in functions]
        return tree, [(f.name, node) for f in owners for node in ast.walk(f)]

    lines, found = source.splitlines(), []
    for at, (function, node) in enumerate(parsed()[1]):
        for i, after in enumerate(changes(node)):
            tree, nodes = parsed()
            old = nodes[at][1]
            new = list(changes(old))[i]
            mutated = ast.fix_missing_locations(Swap(old, new).visit(tree))
            line = lines[getattr(node, "lineno", 1) - 1].strip()
            found.append(Mutant(function, line, ast.unparse(node), ast.unparse(after), ast.unparse(mutated)))
    return found


class Swap(ast.NodeTransformer):
    """Puts one node in another's place."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.old:
            return self.new
        found: ast.AST = self.generic_visit(node)
        return found


SOURCE = inspect.getsource(original)
MUTANTS = mutants(SOURCE, MUTATED)

ON_CPU = "precision of products: the CPU has one, so only a GPU could tell"
UNSEEN = "stands where nothing is seen, and is masked afterwards: any finite number would do"
UNUSED = (
    "an axis that only fields with axes of their own and sums ask for: tests/backends/test_formula_nodes.py has them"
)
CLEARED = "only a NaN beyond a run-time length tells: tests/backends/test_xla.py has it"
WEIGHED = (
    "w = read(guarded(formula), {S: jnp.where(seen, s, 0), P: p, SEEN: seen, "
    "**row_statistics(formula, s)}).astype(real)"
)
AXES = 'axes = {"#b": (0, b), "h": (1, h), "#n": (2, n), "#m": (3, m)}'
WIDER = "axes |= {name: (4 + i, size) for i, (name, size) in enumerate(sizes.items())}"
CLEARS = """if any((isinstance(node, Load | Read) for node in walk(op.mask))):
    mask = read(op.mask)
    used = jnp.any(jnp.broadcast_to(mask, (*mask.shape[:3], shape[3])), axis=(1, 2))
    k, v = (_seen(x, used) for x in (k, v))"""
EQUIVALENT: Mapping[str, Sequence[tuple[str, str]]] = {
    ON_CPU: (
        ("'highest' if q.dtype.itemsize > 2 else None", 'exact = "highest" if q.dtype.itemsize > 2 else None'),
        ("q.dtype.itemsize > 2", 'exact = "highest" if q.dtype.itemsize > 2 else None'),
        ("2", 'exact = "highest" if q.dtype.itemsize > 2 else None'),
        ("'highest' if v.dtype.itemsize > 2 else None", 'exact = "highest" if v.dtype.itemsize > 2 else None'),
        ("v.dtype.itemsize > 2", 'exact = "highest" if v.dtype.itemsize > 2 else None'),
        ("2", 'exact = "highest" if v.dtype.itemsize > 2 else None'),
    ),
    UNSEEN: (("0", WEIGHED),),
    UNUSED: (
        *((number, AXES) for number in ("0", "2", "3")),
        *((term, WIDER) for term in ("4 + i", "4")),
        ("1", "wide = [1] * len(sizes)"),
        ("4", "return jnp.reshape(values, values.shape[:4])"),
        ("0", "shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])"),
    ),
    "only dropouts tell: tests/backends/test_dropout.py has them": (
        ("e / total", "w = e / total if op.weigh == P else weights(op.weigh, read, s, e / total, real)"),
        ("-op.seeds", "w = dropped(op.dropout, op.site, w, *captured[-op.seeds :])"),
    ),
    CLEARED: ((CLEARS, "if any(isinstance(node, Load | Read) for node in walk(op.mask)):"),),
    "the axis has one element, and JAX reads the nearest one there is": (
        ("0", "return e, total, jnp.where(found == 0, -jnp.inf, top + jnp.log(total))[..., 0]"),
    ),
}
"""Mutants that compute the same, by what was changed and its line, each for its reason."""

EXCEPTIONS = {found for reason in EQUIVALENT.values() for found in reason}


@dataclass(frozen=True)
class Eager:
    """A kernel called as it is built: what its operations compile to is shared by all mutants."""

    kernel: Kernel
    any_op: bool = True

    def run(self, eqn: Eqn, operands: Sequence[Array]) -> tuple[Array, Array | None]:
        if reason := self.kernel.refuse(eqn, CPU):
            raise Refused(reason)
        out, lse = self.kernel.build(eqn, CPU)(*map(jnp.asarray, operands))
        return np.asarray(out), np.asarray(lse)

    def gradient(self, eqn: Eqn, operands: Sequence[Array], dout: Array) -> dict[int, Array] | None:
        return None


def kernel_of(source: str) -> Kernel:
    module = types.ModuleType("mutant")
    exec(compile(source, "mutant", "exec"), module.__dict__)
    kernel = module.__dict__["KERNEL"]
    assert isinstance(kernel, Kernel)
    return kernel


def caught(mutant: Mutant) -> bool:
    try:
        kernel = kernel_of(mutant.source)
    except Exception:  # a module that cannot be imported is noticed without any test
        return True
    return any(not judge(Eager(kernel), cases=[c], laws=()).ok for c in CASES)


def test_the_original_is_right():
    """What is mutated passes by the same means."""
    report = judge(Eager(kernel_of(ast.unparse(ast.parse(SOURCE)))), cases=CASES, laws=())
    assert report.ok and report.served == len(CASES), report


@pytest.mark.parametrize("function", MUTATED)
def test_mechanical_faults_are_caught(function: str):
    mine = [m for m in MUTANTS if m.function == function]
    passed = [str(m) for m in mine if (m.before, m.line) not in EXCEPTIONS and not caught(m)]
    assert not passed, "\n".join(passed)
    assert mine


def test_enough_is_mutated():
    """Most mutants are judged, and no exception is made for a line that is not there."""
    assert EXCEPTIONS <= {(m.before, m.line) for m in MUTANTS}
    assert len(MUTANTS) - len(EXCEPTIONS) >= 50


BLOCK = 8
TILED = tuple(
    case(name, sizes, "documents", seed)
    for seed, name in enumerate(FORMULAS)
    for sizes in (Sizes(2, 20, 20, 2, 1, 8, DType.F32), Sizes(1, 9, 27, 2, 2, 8, DType.F32))
)
Ranges = tuple[Array, Array]
"""Counts [Br, Hr, Tq] and triples [Br, Hr, Tq, R, 3] of (start, end, full), as the GPU kernel reads them."""


def visited(c: Case) -> Ranges:
    """The key tiles that queries visit, by the code that the GPU kernel's build calls."""
    q, k, _, *captured = c.operands()
    assert isinstance(c.eqn.op, Attention)
    shape = dict(n=q.shape[1], m=k.shape[1], block_q=BLOCK, block_k=BLOCK, batch=q.shape[0], heads=q.shape[2])
    counts, triples = visited_ranges(c.eqn.op.mask, captured, **shape)
    return np.array(counts), np.array(triples)


def counted(ranges: Ranges, seen: Array) -> Array:
    """Which scores count, [B, H, N, M]: all that exist in full tiles, those that the mask leaves in partial ones."""
    counts, triples = ranges
    out = np.zeros_like(seen)
    for b, h, i in np.ndindex(seen.shape[:3]):
        at = (b % counts.shape[0], h % counts.shape[1], i // BLOCK)
        for start, end, full in triples[at][: counts[at]]:
            keys = slice(start * BLOCK, end * BLOCK)
            out[b, h, i, keys] = True if full else seen[b, h, i, keys]
    return out


@dataclass(frozen=True)
class Tiled:
    """Attention over the scores that visited tiles leave: numpy, in float32."""

    ranges: Ranges
    any_op: bool = False

    def run(self, eqn: Eqn, operands: Sequence[Array]) -> tuple[Array, Array | None]:
        op, (q, k, v, *captured) = eqn.op, operands
        assert isinstance(op, Attention)
        shown = counted(self.ranges, np.array(float64.seen_by(op, q, k, captured)))
        dense = float64.attention(replace(op, mask=Const(True)), *operands, at=float64.Precision.of(DType.F32))
        score = np.where(shown, dense.z, -np.inf)
        top = score.max(3, keepdims=True)
        e = np.exp(score - np.where(np.isneginf(top), 0, top))
        total = e.sum(3)
        v = np.repeat(v, q.shape[2] // k.shape[2], 2).transpose(0, 2, 1, 3)
        out = (e @ v) / np.where(total == 0, 1, total)[..., None]
        with np.errstate(divide="ignore"):
            return out.transpose(0, 2, 1, 3), top[..., 0] + np.log(total)

    def gradient(self, eqn: Eqn, operands: Sequence[Array], dout: Array) -> dict[int, Array] | None:
        return None


def spoiled(ranges: Ranges) -> Iterator[tuple[str, Ranges]]:
    """Each range in turn called full, begun a tile late, ended a tile early; each row's last range forgotten."""
    counts, triples = ranges
    for at in np.ndindex(counts.shape):
        if counts[at]:
            fewer = counts.copy()
            fewer[at] -= 1
            yield f"{at}: the last range forgotten", (fewer, triples)
        for r in range(counts[at]):
            for what, column, value in (("full", 2, 1), ("a tile late", 0, 1), ("a tile short", 1, -1)):
                wrong = triples.copy()
                wrong[(*at, r, column)] = 1 if what == "full" else wrong[(*at, r, column)] + value
                yield f"{at}, range {r}: {what}", (counts, wrong)


@pytest.mark.parametrize("c", TILED, ids=str)
def test_misjudged_tiles_are_caught(c: Case):
    """Tiles as they are found give the definition's results; spoiled so that another score counts, they do not."""
    op, (q, k, _, *captured) = c.eqn.op, c.operands()
    assert isinstance(op, Attention)
    seen, ranges = np.array(float64.seen_by(op, q, k, captured)), visited(c)
    report = judge(Tiled(ranges), cases=[c], laws=())
    assert report.ok, report
    harmful = [(what, wrong) for what, wrong in spoiled(ranges) if (counted(wrong, seen) != seen).any()]
    assert harmful
    missed = [what for what, wrong in harmful if DEFINITION not in judge(Tiled(wrong), cases=[c], laws=()).laws]
    assert not missed, missed
