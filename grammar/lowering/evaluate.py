"""An expression of the tree and a frame -> its value: names, operators, formulas, calls, derivations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from tfc.diagnostics import Edit, Note, closest
from tfc.formula.expr import PRIMITIVES, Field, Kind, Read, Reduce, Var
from tfc.grammar import ast
from tfc.grammar.lowering import core
from tfc.grammar.lowering.algebra import formula_of, leaf, operate
from tfc.grammar.lowering.fields import of_tokens
from tfc.grammar.lowering.formats import called
from tfc.grammar.lowering.ranges import bind_range, fresh_index
from tfc.grammar.lowering.roles import LEADING, check_reads, checked_role, dot, element, implicit, part_of_implicit
from tfc.grammar.lowering.scope import IMPLICIT, RESERVED, ROLES, FileScope, Scope, unknown
from tfc.grammar.lowering.segments import check_path, did_you_mean
from tfc.grammar.lowering.session import LIMITS, Frame, counted, fail, is_library, refuse
from tfc.grammar.lowering.values import (
    Builtin,
    Change,
    Component,
    Formula,
    Given,
    Kept,
    Meaning,
    Place,
    RoleRef,
    Tensor,
    describe,
)
from tfc.ir.formats import Fit, FormatKind
from tfc.source import Span

__all__ = ["argument", "derive", "evaluate", "operand", "role_formula"]

_BINARY = {
    "+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod", "^": "pow", "and": "and", "or": "or",
}  # fmt: skip
_COMPARE = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_REDUCERS = ("sum", "mean", "max", "min", "any", "all")


def evaluate(node: ast.Expr, frame: Frame) -> Meaning:
    """What the expression means in this frame. Raises Failed, or Poisoned after an earlier complaint."""
    value = _evaluate(node, frame)
    if frame.session.seen is not None and not is_library(node.span.source):
        frame.session.seen.note(node.span, value)
    return value


def _evaluate(node: ast.Expr, frame: Frame) -> Meaning:
    match node:
        case ast.Number(value=value) | ast.Text(value=value):
            return value
        case ast.Name():
            return _name(node, frame)
        case ast.List(items=items):
            return _list(node, items, frame)
        case ast.Unary(op=op, operand=inner):
            fn = "neg" if op == "-" else "not"
            return operate(fn, [(operand(inner, frame), inner.span)], node.span, frame)
        case ast.Binary():
            return _binary(node, frame)
        case ast.Compare():
            return _compare(node, frame)
        case ast.Attribute():
            return _attribute(node, frame)
        case ast.Subscript():
            return _subscript(node, frame)
        case ast.Call():
            return _call(node, frame)
        case ast.Derived(base=base, changes=changes):
            return derive(evaluate(base, frame), changes, node.span, frame)
        case ast.Index(name=name):
            fail("E309", f"`{node.span.text}` says how far an index goes, and `{name}` is none", frame.at(node.span),
                 help="sizes stand in `y[t: 4] = ..` and `sum[i: 3](..)`")  # fmt: skip
        case ast.Label():
            fail("E208", "a label names the use of a block in a call: `f@name(x)`", node.span)
    raise AssertionError(f"no meaning for {type(node).__name__}")


def operand(node: ast.Expr, frame: Frame) -> Meaning:
    """The value of an operand; a role without inputs stands for its formula."""
    value = evaluate(node, frame)
    return role_formula(value, (), node.span, frame) if isinstance(value, RoleRef) else value


# ---- names


def _name(node: ast.Name, frame: Frame) -> Meaning:
    if node.id in frame.indices:
        return leaf(frame.indices[node.id], Kind.INT, node.span, frame)
    if node.id in frame.bound:
        return frame.bound[node.id]
    if frame.role and node.id in IMPLICIT[frame.role]:
        return implicit(node, frame)
    value = frame.scope.find(node.id)
    if value is None:
        _unknown(node, frame)
    if isinstance(value, RoleRef) and frame.formula:
        return role_formula(value, (), node.span, frame)
    return value


def _unknown(node: ast.Name, frame: Frame) -> NoReturn:
    """Complain about a name that means nothing here."""
    loop = frame.scope.loop_of(node.id)
    if loop is not None:
        fail(
            "E213", f"`{node.id}` is known in the turns of `{loop.name}` only", frame.at(node.span),
            help=f"give `{node.id}` a value before the loop: what a turn leaves in it is carried on",
            notes=(Note("it is made in this loop", loop.span),),
        )  # fmt: skip
    if frame.role and node.id in RESERVED:
        roles = ", ".join(role for role, names in IMPLICIT.items() if node.id in names)
        fail("E302", f"a {frame.role} has no `{node.id}`; it is known in: {roles}", frame.at(node.span))
    found = unknown(node, frame.scope)
    fail(found.code, found.message, frame.at(node.span), help=found.help, edits=found.edits)


def _list(node: ast.List, items: Sequence[ast.Expr], frame: Frame) -> tuple[Meaning, ...]:
    if len(items) > LIMITS["list"]:
        fail("E502", f"a list of {len(items)} elements; at most {LIMITS['list']} are allowed", node.span)
    values = tuple(evaluate(item, frame) for item in items)
    for item, value in zip(items, values, strict=True):
        if isinstance(value, tuple) and any(isinstance(v, tuple) for v in value):
            refuse("a list of lists of lists", item.span)
    return values


# ---- operators


def _binary(node: ast.Binary, frame: Frame) -> Meaning:
    """A chain `a + b + c` is folded from the left without recursion."""
    spine: list[ast.Binary] = []
    at: ast.Expr = node
    while isinstance(at, ast.Binary):
        spine.append(at)
        at = at.left
    value, span = operand(at, frame), at.span
    for link in reversed(spine):
        right = operand(link.right, frame)
        value, span = operate(_BINARY[link.op], [(value, span), (right, link.right.span)], link.span, frame), link.span
    return value


def _compare(node: ast.Compare, frame: Frame) -> Meaning:
    """`a <= b < c` is `a <= b and b < c`, b evaluated once."""
    left, left_span = operand(node.first, frame), node.first.span
    made: Meaning | None = None
    for op, right_node in node.rest:
        right = operand(right_node, frame)
        span = left_span.to(right_node.span)
        one = operate(_COMPARE[op], [(left, left_span), (right, right_node.span)], span, frame)
        made = (
            one if made is None else operate("and", [(made, node.first.span.to(left_span)), (one, span)], span, frame)
        )
        left, left_span = right, right_node.span
    assert made is not None
    return made


# ---- attributes and elements


def _attribute(node: ast.Attribute, frame: Frame) -> Meaning:
    """`q.segment` in a formula, `x.segment` of a tensor, `words.weight` of a declared component, `file.name`."""
    if (part := part_of_implicit(node, frame)) is not None:
        return part
    owner = _owner(node.value, frame)
    match owner:
        case FileScope():
            found = owner.own(node.name)
            if found is None:
                near = closest(node.name, owner.listed())
                fail("E201", f"`{node.value.span.text}` has no `{node.name}`", node.span, help=did_you_mean(near))
            return found
        case Tensor():
            if node.name in owner.fields:
                return of_tokens(owner, node.name)
            have = ", ".join(sorted(owner.fields)) or "none"
            fail(
                "E306", f"`{node.value.span.text}` carries no field `{node.name}`; it carries {have}", node.span,
                help=f"set it with `tag(x, {node.name} = ..)`", notes=(Note("it is made here", owner.span),),
            )  # fmt: skip
        case Place():
            return _weight(owner, node, frame)
    fail("E305", f"{describe(owner)} has no `.{node.name}`", node.span)


def _owner(node: ast.Expr, frame: Frame) -> Meaning | Place:
    """What stands before the point; a component declared in a body, and what is inside it, is its place."""
    if isinstance(node, ast.Attribute):
        owner = _owner(node.value, frame)
        if isinstance(owner, Place) and node.name in owner.below:
            return owner.below[node.name]
        return _attribute(node, frame)
    value = evaluate(node, frame)
    if isinstance(value, Component):
        if value.place is None:
            fail(
                "E305", f"`{value.name}` is a recipe: it has no weights of its own until it is used", node.span,
                help=f"declare one in this body: `{value.block.name} {value.name} = ..`",
            )  # fmt: skip
        return value.place
    return value


def _weight(place: Place, node: ast.Attribute, frame: Frame) -> Tensor:
    if node.name in place.params:
        return place.params[node.name]
    known = [*place.params, *place.below]
    if not known:
        fail("E305", f"`{node.value.span.text}` has no weights yet: it is used further down", frame.at(node.span))
    near = closest(node.name, known)
    fail("E201", f"`{node.value.span.text}` has no weight `{node.name}`", frame.at(node.span), help=did_you_mean(near))


def _subscript(node: ast.Subscript, frame: Frame) -> Meaning:
    base = evaluate(node.value, frame)
    if isinstance(base, Formula) and isinstance(base.expr, Field | Var):
        return element(base, _indices(node, frame), node, frame)
    if isinstance(base, tuple):
        return _element(base, node, frame)
    if not isinstance(base, Tensor):
        fail("E305", f"{describe(base)} has no elements", frame.at(node.span))
    if not (frame.formula or frame.indices):
        fail(
            "E304", f"`{node.span.text}` reads one element, which only formulas and index equations do",
            frame.at(node.span), help="an index equation names every index: `y[b, t] = x[b, t, 0]`",
        )  # fmt: skip
    return read(base, node, frame)


def read(base: Tensor, node: ast.Subscript, frame: Frame) -> Formula:
    """One element of a tensor, by whole numbers."""
    indices = _indices(node, frame)
    if len(indices) != base.type.rank:
        fail(
            "E304", f"`{node.value.span.text}` is {base.type}: {base.type.rank} indices, not {len(indices)}",
            frame.at(node.span), notes=(Note("it is made here", base.span),),
        )  # fmt: skip
    expr = Read(frame.session.slot(base), tuple(i.expr for i in indices), base.type.dtype.kind)
    frame.session.place_of(expr, node.span)
    size, depth = 1 + sum(i.size for i in indices), 1 + max((i.depth for i in indices), default=0)
    return Formula(expr, base.type.dtype.kind, node.span, size, depth)


def _indices(node: ast.Subscript, frame: Frame) -> list[Formula]:
    """What stands in the brackets: whole numbers; `..` the leading axes, in a role those of the head."""
    indices: list[Formula] = []
    for index in node.indices:
        if is_ellipsis(index):
            if frame.role:
                indices.append(leaf(LEADING, Kind.INT, index.span, frame))
            indices.extend(leaf(v, Kind.INT, index.span, frame) for n, v in frame.indices.items() if n.startswith(".."))
            continue
        formula = formula_of(operand(index, frame), index.span, frame)
        if formula.kind not in (Kind.INT, None):
            fail("E301", f"`{index.span.text}` is {formula.kind}; an index is a whole number", frame.at(index.span))
        indices.append(formula)
    return indices


def is_ellipsis(node: ast.Expr) -> bool:
    """`..` among indices: all the leading axes."""
    return isinstance(node, ast.Name) and node.id == ".."


def _element(base: tuple[Meaning, ...], node: ast.Subscript, frame: Frame) -> Meaning:
    at = evaluate(node.indices[0], frame)
    if len(node.indices) != 1 or not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(base):
        fail("E305", f"`{node.span.text}`: a list of {len(base)} has elements 0 to {len(base) - 1}", node.span)
    return base[at]


# ---- calls


def _call(node: ast.Call, frame: Frame) -> Meaning:
    callee, label = node.callee, None
    if isinstance(callee, ast.Label):
        label, callee = callee.label, callee.value
    if isinstance(callee, ast.Subscript) and isinstance(callee.value, ast.Name) and callee.value.id in _REDUCERS:
        return _reduce(callee, node, frame)
    value = _callee(callee, frame)
    match value:
        case Component():
            return frame.session.inline(value, node, label, callee, frame)
        case RoleRef():
            return role_formula(value, node.arguments, node.span, frame)
        case Builtin(name):
            if label and name != "route":
                fail("E208", f"`{name}` owns no weights, so its use needs no label", node.callee.span)
            return _builtin(name, node, frame)
        case Kept() | FormatKind() | Fit():
            return called(value, *_given(node, frame), node.span, frame)
    fail("E305", f"`{callee.span.text}` is {describe(value)}; it cannot be called", frame.at(callee.span))


def _callee(node: ast.Expr, frame: Frame) -> Meaning:
    """What is called: the name of a role does not stand for its formula, and a tensor or an index hides no block."""
    if isinstance(node, ast.Name) and node.id not in frame.bound:
        value = frame.scope.find(node.id)
        at = frame.scope.parent
        while at is not None and isinstance(value, Tensor):
            outer = at.find(node.id)
            value, at = (outer, at.parent) if isinstance(outer, Component | RoleRef | Builtin) else (value, at.parent)
        if value is None:
            _unknown(node, frame)
        return value
    return evaluate(node, frame)


def _builtin(name: str, node: ast.Call, frame: Frame) -> Meaning:
    if name == "if":
        return _choose(node, frame)
    if name == "dot":
        return dot([(operand(a.value, frame), a.value.span) for a in node.arguments], node, frame)
    if name in ("any", "all"):
        fail("E309", f"`{name}` stands in index equations, with its indices: `{name}[t](..)`", frame.at(node.span))
    function = core.FUNCTIONS.get(name)
    reduces = function is not None and len(node.arguments) == 1
    if name in PRIMITIVES and not reduces:
        return _primitive(name, node, frame)
    assert function is not None, f"no meaning for {name}"
    return core.call(function, *_given(node, frame, function.inputs), node, frame)


def _given(node: ast.Call, frame: Frame, inputs: Sequence[str] = ()) -> tuple[list[Given], dict[str, Given]]:
    """The arguments of a call, evaluated: those by position, for a core function's inputs, and by name."""
    named: dict[str, Given] = {}
    positional: list[Given] = []
    for arg in node.arguments:
        place = inputs[len(positional)].rstrip("?") if len(positional) < len(inputs) else ""
        given = Given(argument(arg.name or place, arg.value, frame), arg)
        if arg.name:
            if arg.name in named:
                fail("E214", f"`{arg.name}` is given twice", arg.span)
            named[arg.name] = given
        else:
            positional.append(given)
    return positional, named


def _primitive(name: str, node: ast.Call, frame: Frame) -> Meaning:
    arity = PRIMITIVES[name].arity
    named = next((a for a in node.arguments if a.name), None)
    if named:
        fail("E204", f"`{name}` has no input `{named.name}`", frame.at(named.span))
    if len(node.arguments) != arity:
        fail("E207", f"`{name}` takes {counted(arity, 'argument')}, not {len(node.arguments)}", frame.at(node.span))
    return operate(name, [(operand(a.value, frame), a.value.span) for a in node.arguments], node.span, frame)


def _choose(node: ast.Call, frame: Frame) -> Meaning:
    """`if(c, a, b)`: where c is known while compiling, the other side is not even looked at."""
    if len(node.arguments) != 3 or any(a.name for a in node.arguments):
        fail("E207", f"`if` takes a condition and two values, not {len(node.arguments)} arguments", node.span)
    condition, yes, no = (a.value for a in node.arguments)
    chosen = operand(condition, frame)
    if isinstance(chosen, bool):
        return evaluate(yes if chosen else no, frame)
    operands = [(chosen, condition.span), (operand(yes, frame), yes.span), (operand(no, frame), no.span)]
    return operate("where", operands, node.span, frame)


def _reduce(callee: ast.Subscript, node: ast.Call, frame: Frame) -> Formula:
    """`sum[c](x[b, c] * w[c])` of an index equation, or of a formula."""
    assert isinstance(callee.value, ast.Name)
    if not (frame.indices or (frame.role and frame.formula)):
        fail("E309", f"`{callee.span.text}(..)` stands in index equations only", frame.at(node.span),
             help=f"over the last axis, keeping it: `{callee.value.id}(x)`")  # fmt: skip
    names: dict[str, str] = {}  # as written -> in the equation
    for index in callee.indices:
        if not isinstance(index, ast.Name | ast.Index):
            fail("E309", f"`{index.span.text}` is no name of an index", frame.at(index.span))
        name = index.id if isinstance(index, ast.Name) else index.name
        if name in frame.indices:
            fail("E309", f"`{name}` is an index of the result already", frame.at(index.span))
        if name in names:
            fail("E309", f"`{name}` is an index of this `{callee.value.id}` twice", frame.at(index.span))
        if frame.role and name in IMPLICIT[frame.role]:
            fail("E309", f"`{name}` means something in this {frame.role}; an index needs a name of its own",
                 frame.at(index.span))  # fmt: skip
        names[name] = fresh_index(name, frame)
    for index, name in zip(callee.indices, names.values(), strict=True):
        bind_range(index, name, {*names, *frame.indices}, evaluate, frame)
    if len(node.arguments) != 1 or node.arguments[0].name:
        fail("E207", f"`{callee.span.text}` takes one expression", frame.at(node.span))
    inner = replace(frame, indices={**frame.indices, **{n: Var(name, Kind.INT) for n, name in names.items()}})
    body = formula_of(operand(node.arguments[0].value, inner), node.arguments[0].value.span, frame)
    fn = callee.value.id
    if fn in ("any", "all") and body.kind not in (Kind.BOOL, None):
        fail("E301", f"`{fn}` takes booleans; `{body.span.text}` is {body.kind}", frame.at(body.span))
    kind = Kind.BOOL if fn in ("any", "all") else Kind.REAL if fn == "mean" else body.kind
    expr = Reduce(fn, tuple(names.values()), body.expr)
    frame.session.place_of(expr, node.span)
    return Formula(
        expr, Kind.INT if kind is Kind.BOOL and fn == "sum" else kind, node.span, body.size + 1, body.depth + 1
    )


# ---- roles


def argument(name: str, node: ast.Expr, frame: Frame) -> Meaning:
    """The value of an input or attribute: what is called like a role is a formula of that role."""
    if name not in ROLES:
        return evaluate(node, frame)
    inner = replace(frame, role=name, formula=True, allowed=IMPLICIT[name], bound={}, indices={})
    return checked_role(name, operand(node, inner), node, frame)


def role_formula(ref: RoleRef, arguments: Sequence[ast.Argument], span: Span, frame: Frame) -> Meaning:
    """A role's formula with its inputs filled in; implicit variables may be bound by name."""
    decl, role = ref.decl, ref.decl.role
    frame.session.count("calls", frame.at(span))
    given, bound = _role_arguments(ref, arguments, frame)
    check_reads(decl, bound, span, frame)
    within = frame.role in IMPLICIT or bool(frame.indices)
    allowed = IMPLICIT[role] & frame.allowed if within else IMPLICIT[role]
    library = is_library(decl.span.source) and not is_library(span.source)
    site = frame.site or (span if library else None)
    scope = Scope(ref.scope)
    inner = replace(
        frame, scope=scope, role=role, formula=frame.formula, allowed=frozenset(allowed), bound=bound, indices={},
        site=site, active=frame.enter(decl, span),
    )  # fmt: skip
    if any(isinstance(v, Tensor) and v.type.shape for v in bound.values()):
        inner.formula = False  # `softcap(30, s = logits)`: the formula is applied to a whole tensor
    elif not within:
        inner.formula = True
    for wanted in decl.inputs:
        if wanted.name in given:
            scope.bind(wanted.name, *given[wanted.name])
        elif wanted.default is not None:
            scope.bind(wanted.name, operand(wanted.default, inner), wanted.span)
        else:
            fail("E206", f"the {role} `{decl.name}` needs `{wanted.name}`", frame.at(span),
                 help=f"write `{decl.name}({', '.join(i.name for i in decl.inputs)})`",
                 notes=(Note("it is declared here", wanted.span),))  # fmt: skip
    value = operand(decl.formula, inner)
    if not isinstance(value, Formula):
        return value
    return replace(value, span=span) if site is span else value


def _role_arguments(
    ref: RoleRef, arguments: Sequence[ast.Argument], frame: Frame
) -> tuple[dict[str, tuple[Meaning, Span]], dict[str, Meaning]]:
    """(inputs by name, implicit variables bound by name)."""
    decl = ref.decl
    given: dict[str, tuple[Meaning, Span]] = {}
    bound: dict[str, Meaning] = {}
    inputs = [i.name for i in decl.inputs]
    position = 0
    for arg in arguments:
        name = arg.name
        if name is None:
            if position >= len(inputs):
                takes = counted(len(inputs), "input")
                fail("E207", f"`{decl.name}` takes {takes}, not {position + 1}", frame.at(arg.span))
            name, position = inputs[position], position + 1
        value = operand(arg.value, frame)
        if name in inputs:
            if name in given:
                fail("E214", f"`{name}` is given twice", frame.at(arg.span))
            given[name] = (value, arg.value.span)
        elif name in IMPLICIT[decl.role]:
            bound[name] = value
        else:
            near = closest(name, [*inputs, *IMPLICIT[decl.role]])
            edits = (Edit(Span(arg.span.source, arg.span.start, arg.span.start + len(name)), near),) if near else ()
            fail("E204", f"the {decl.role} `{decl.name}` has no input `{name}`", frame.at(arg.span),
                 help=did_you_mean(near), edits=edits)  # fmt: skip
    return given, bound


# ---- derivation


def derive(base: Meaning, changes: Sequence[ast.Setting], span: Span, frame: Frame) -> Component:
    """A copy of a component with changes; their values see the scope they are written in."""
    if not isinstance(base, Component):
        fail("E305", f"`{span.text}`: {describe(base)} cannot be derived from", frame.at(span))
    made: dict[tuple[str, ...], Change] = {c.path: c for c in base.changes}
    first: dict[tuple[str, ...], Span] = {}
    for setting in changes:
        check_path(base, setting)
        if first.setdefault(setting.path, setting.span) is not setting.span:
            fail("E214", f"`{'.'.join(setting.path)}` is given twice", setting.span,
                 notes=(Note("first here", first[setting.path]),))  # fmt: skip
        value = argument(setting.path[-1], setting.value, frame)
        for path in [p for p in made if p[: len(setting.path)] == setting.path]:
            del made[path]  # a later whole replaces earlier parts
        made[setting.path] = Change(setting.path, value, setting.value.span, setting.span)
    return replace(base, changes=tuple(made.values()), place=None)
