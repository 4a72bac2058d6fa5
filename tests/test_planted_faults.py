"""Faults planted outside the GPU kernel are caught by `judge`: mechanical ones in the xla form, and in visited tiles.

The xla form of attention is mutated a node at a time: each comparison shifted or turned round, each factor, term
and bound dropped or exchanged, each condition negated, each whole number one more. Visited ranges are spoiled one at
a time: a partial range called full, a tile left out at either end. A mutant that nobody could tell from the
original is named here with the reason.
"""

import ast
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tfc.backends.bounds import visited_ranges
from tfc.backends.kernel import Kernel, Target
from tfc.backends.xla import attention as original
from tfc.formula.expr import Kind, Load, apply
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn
from tfc.ir.types import DType
from tfc.testing import Case, Report, Sizes, attention_eqn, float64, judge
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
    lines = source.splitlines()
    found = []
    count = len(list(ast.walk(ast.parse(source))))
    for at in range(count):
        tree = ast.parse(source)
        owners = {n: f.name for f in tree.body if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        node = list(ast.walk(tree))[at]
        if owners.get(node) not in functions:
            continue
        for i in range(len(list(changes(node)))):
            tree = ast.parse(source)
            node = list(ast.walk(tree))[at]
            after = list(changes(node))[i]
            mutated = ast.fix_missing_locations(Swap(node, after).visit(tree))
            line = lines[node.lineno - 1].strip()  # type: ignore[attr-defined]  # nodes that change have a line
            found.append(Mutant(owners_of(tree, after), line, ast.unparse(node), ast.unparse(after), ast.unparse(mutated)))
    return found


class Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def owners_of(tree: ast.Module, node: ast.AST) -> str:
    return next(f.name for f in tree.body if isinstance(f, ast.FunctionDef) and node in ast.walk(f))
