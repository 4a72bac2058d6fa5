"""The scale and bias at the end of a norm -> part of the linear maps that read it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tfc.ir.ops import Elementwise, Linear
from tfc.ir.param_map import Add, Expr, MatVec, NonZero, ParamMap, ScaleRows, Source, Sub, UnscaleRows
from tfc.ir.program import Eqn, Init, Param, Program, Value
from tfc.ir.text import word
from tfc.ir.types import TensorType
from tfc.passes.base import Contract, Note, Rewritten
from tfc.passes.rewrite import Scope, beside, rewrite, unlike_written

__all__ = ["FoldNorms"]


@dataclass(frozen=True)
class FoldNorms:
    """linear(n * scale + bias, w, b)  ->  linear(n, scale_rows(w, scale), b + bias w)

    Exact up to rounding: (n * scale + bias) w + b = n (diag(scale) w) + (bias w + b). A bias is made where the linear
    map had none. Two passes over the activations less for each norm (arXiv:2404.00456 folds for another reason).

    The scale and bias stay in the tree, unread, so that the way back can divide them out again: it needs every element
    of the scale to be non-zero, and `pack` on values asks for that.

    Holds back where anything but a linear map with a weight of its own reads the scaled value (in a post-norm model
    the residual does), where a parameter concerned has another reader, where some of them are trained and some not, and
    where one is kept in a format or fitted: what is rounded, or found, is the weight as it was written.
    """

    name: ClassVar[str] = "fold-norms"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        return _Folding(self.name, hold, {p.path for p in program.stored()}).run(program)


@dataclass(frozen=True)
class _Site:
    """n * scale (+ bias), as far as it reads like the end of a norm."""

    n: Value
    scale: Param
    bias: Param | None
    out: Value
    readers: Sequence[Eqn]


@dataclass
class _Folding:
    name: str
    hold: frozenset[str]
    taken: set[str]
    notes: list[Note] = field(default_factory=list)
    forward: dict[str, Expr] = field(default_factory=dict)
    backward: dict[str, Expr] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    guards: list[NonZero] = field(default_factory=list)

    def run(self, program: Program) -> Rewritten:
        new = rewrite(program, self.rule)
        map = ParamMap(self.forward, self.backward, kept=frozenset(self.kept), guards=tuple(self.guards))
        return Rewritten(new, map, self.notes)

    def rule(self, eqn: Eqn, scope: Scope) -> list[Eqn] | None:
        """A site is judged at its multiplication; its linear maps find it again, and fold what was judged good."""
        if isinstance(eqn.op, Linear):
            site = _site_above(eqn.args[0], scope)
            if site is not None and not self._refusal(site, scope):
                return [self._folded(eqn, site, scope)]
        elif (site := _site(eqn, scope)) is not None:
            self._judge(eqn, site, scope)
        return None

    def _judge(self, eqn: Eqn, site: _Site, scope: Scope) -> None:
        name = f"{self.name}:{site.scale.path}"
        if why := self._refusal(site, scope):
            self.notes.append(Note(name, why, span=eqn.span))
            return
        self.guards.append(NonZero(site.scale.path, name))
        for param in (site.scale, site.bias):
            if param is not None:
                self.kept.add(param.path)
                self.forward[param.path] = self.backward[param.path] = Source(param.path)
                scope.replace_params([param], None)

    def _refusal(self, site: _Site, scope: Scope) -> str:
        """Why the site stays as it is, or an empty string."""
        if f"{self.name}:{site.scale.path}" in self.hold:
            return "asked to"
        for param in (site.scale, site.bias):
            if param is not None and not scope.once(param.value):
                return f"{param.path} has another reader"
        for reader in site.readers:
            if not isinstance(reader.op, Linear) or reader.args[0] != site.out:
                outs = ", ".join(map(str, reader.outs))
                return (
                    f"{site.out}, the normalized value, is also read by {word(reader.op)} ({outs}), no linear map of it"
                )
        if scope.reads.get(site.out, 0) != len(site.readers):
            told = "a result" if site.out in scope.program.results else "reported"
            return f"{site.out}, the normalized value, is {told}"
        concerned = [p for p in (site.scale, site.bias) if p is not None]
        for reader in site.readers:
            operands = reader.args[1:] if site.bias else reader.args[1:2]
            for operand in operands:
                param = scope.params.get(operand)
                if param is None:
                    return f"{operand}, which makes {reader.out} of {site.out}, is no parameter of the same body"
                if not scope.once(operand):
                    return f"{param.path} has another reader"
                concerned.append(param)
        for param in concerned:
            if why := unlike_written(param):
                return why
        if len({p.trained for p in concerned}) > 1:
            frozen = ", ".join(p.path for p in concerned if not p.trained)
            return f"{frozen} is frozen, the other parameters concerned are trained"
        return ""

    def _folded(self, eqn: Eqn, site: _Site, scope: Scope) -> Eqn:
        weight = scope.params[eqn.args[1]].path
        scale = Source(site.scale.path)
        self.forward[weight] = ScaleRows(Source(weight), scale)
        self.backward[weight] = UnscaleRows(Source(weight), scale)
        operands = [site.n, *eqn.args[1:]]
        if site.bias is not None:
            shift = MatVec(Source(site.bias.path), Source(weight))
            if len(eqn.args) > 2:
                bias = scope.params[eqn.args[2]].path
                self.forward[bias] = Add(Source(bias), shift)
                self.backward[bias] = Sub(Source(bias), MatVec(Source(site.bias.path), self.backward[weight]))
            else:
                made = self._bias(eqn, scope)
                self.forward[made.path] = shift
                operands.append(made.value)
        return Eqn(eqn.outs, eqn.op, tuple(operands), eqn.span)

    def _bias(self, eqn: Eqn, scope: Scope) -> Param:
        """A bias for a linear map that had none, beside its weight."""
        weight = scope.params[eqn.args[1]]
        path = f"{weight.path.rpartition('.')[0]}.bias".lstrip(".")
        while path in self.taken:
            path += "_folded"
        self.taken.add(path)
        type = TensorType((weight.value.type.last,), weight.value.type.dtype)
        made = Param(path, scope.fresh(beside(weight, path), type), Init("packed"), weight.trained)
        scope.replace_params([], made)
        return made


def _site(eqn: Eqn, scope: Scope) -> _Site | None:
    """The site whose multiplication `eqn` is."""
    parts = _with_vector("mul", eqn, scope)
    if parts is None:
        return None
    n, scale = parts
    after = scope.readers(eqn.out)
    bias, out = None, eqn.out
    if after and scope.once(eqn.out) and (shifted := _with_vector("add", after[0], scope)) is not None:
        bias, out = shifted[1], after[0].out
    return _Site(n, scale, bias, out, scope.readers(out)) if scope.reads.get(out) else None


def _site_above(value: Value, scope: Scope) -> _Site | None:
    """The site that makes `value`."""
    eqn = scope.maker(value)
    if eqn is not None and (shifted := _with_vector("add", eqn, scope)) is not None:
        eqn = scope.maker(shifted[0])
    site = _site(eqn, scope) if eqn is not None else None
    return site if site is not None and site.out == value else None


def _with_vector(fn: str, eqn: Eqn, scope: Scope) -> tuple[Value, Param] | None:
    """x and p, if the equation is `fn` of a value x [..., K] and a parameter p [K], in either order."""
    if eqn.op != Elementwise(fn=fn):
        return None
    for x, p in (eqn.args, eqn.args[::-1]):
        if p in scope.params and x not in scope.params and x.type.rank > 1 and _fits(p, x, eqn.out):
            return x, scope.params[p]
    return None


def _fits(p: Value, x: Value, out: Value) -> bool:
    return p.type.shape == (x.type.last,) and x.type == out.type
