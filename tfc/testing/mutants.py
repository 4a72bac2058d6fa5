"""Functions of a module turned into faulty ones, mechanically: a node of their source changed at a time.

A mutant is put in place by exchanging the function's code, so that whatever refers to the function runs it.
"""

import ast
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Mutant", "mutants", "planted"]

SHIFTED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
RENAMED: Mapping[str, str] = {"max": "min", "any": "all", "sum": "max", "exp": "exp2", "log": "log1p", "repeat": "tile"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One node changed: `before` became `after` at `line`; kind says how."""

    kind: str
    line: str
    before: str
    after: str
    code: types.CodeType

    def __str__(self) -> str:
        return f"{self.kind}: `{self.before}` -> `{self.after}` in `{self.line}`"


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in a node's place, and what kind of change that is."""
    match node:
        case ast.Compare(left, [op], [right]) if type(op) in SHIFTED:
            yield "comparison", ast.Compare(left, [SHIFTED[type(op)]()], [right])
        case ast.BoolOp(_, values):
            yield "condition dropped", values[0]
            yield "condition dropped", values[-1]
        case ast.BinOp(left, ast.Mult() | ast.Div() | ast.Sub(), right):
            yield "factor or term dropped", left
            if not isinstance(node.op, ast.Div):
                yield "factor or term dropped", right
        case ast.BinOp(left, ast.Add(), right):
            yield "sign", ast.BinOp(left, ast.Sub(), right)
        case ast.UnaryOp(ast.Invert() | ast.Not() | ast.USub(), operand):
            yield "negation dropped", operand
        case ast.IfExp(test, body, other):
            yield "branches exchanged", ast.IfExp(test, other, body)
        case ast.If(test, body, other):
            yield "guard turned round", ast.If(ast.UnaryOp(ast.Not(), test), body, other)
        case ast.Attribute(value, name, ctx) if name in RENAMED:
            yield "function exchanged", ast.Attribute(value, RENAMED[name], ctx)
        case ast.Constant(int(value)) if not isinstance(value, bool):
            yield "number or axis", ast.Constant(value + 1)
        case ast.Call(ast.Attribute(ast.Name("jnp"), "where"), [test, x, y]):
            yield "branches exchanged", ast.Call(node.func, [test, y, x], [])


def mutants(function: Callable[..., Any]) -> list[Mutant]:
    """Every change of every node of the function's body, one at a time, in the order of its text."""
    source = textwrap.dedent(inspect.getsource(function))
    lines, found = source.splitlines(), []
    count = sum(1 for _ in _nodes(ast.parse(source)))
    for at in range(count):
        node = list(_nodes(ast.parse(source)))[at]
        for i, (kind, _) in enumerate(changes(node)):
            tree = ast.parse(source)
            old = list(_nodes(tree))[at]
            before = ast.unparse(old)
            new = list(changes(old))[i][1]
            after = ast.unparse(ast.fix_missing_locations(ast.copy_location(new, old)))
            mutated = ast.fix_missing_locations(_Swap(old, new).visit(tree))
            assert isinstance(mutated, ast.Module)
            line = lines[getattr(old, "lineno", 1) - 1].strip()
            code = _code(mutated, function.__name__)
            if code.co_freevars == function.__code__.co_freevars:
                found.append(Mutant(kind, line, before, after, code))
    return found


def _nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes of the function's statements: neither its signature nor what is declared for readers."""
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    for statement in function.body:
        yield from ast.walk(statement)


def _code(tree: ast.Module, name: str) -> types.CodeType:
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    function.decorator_list = []
    made = compile(tree, f"<mutant of {name}>", "exec")
    found = [c for c in made.co_consts if isinstance(c, types.CodeType) and c.co_name == name]
    if not found:
        raise ValueError(
            f"the text at {name}'s lines is another function's: its file has changed since it was imported"
        )
    return found[0]


class _Swap(ast.NodeTransformer):
    """Puts one node in another's place."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.old:
            return self.new
        found: ast.AST = self.generic_visit(node)
        return found


@contextmanager
def planted(function: types.FunctionType, mutant: Mutant) -> Iterator[None]:
    """The function is the mutant meanwhile."""
    before = function.__code__
    function.__code__ = mutant.code
    try:
        yield
    finally:
        function.__code__ = before
