"""An operand of a function that has no forward-mode derivative -> itself, through which `jax.jvp` is refused in words.

JAX's own refusal of `jax.custom_vjp` names neither what has no derivative nor a way out, and where the caller has
wrapped a model in `jax.jit` or `jax.linearize`, no code of ours is on the way to add that. So the operand's tangent
goes through a linear primitive that can be transposed, all that reverse mode does, and neither run nor compiled.
"""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from tfc.diagnostics import Diagnostic, TfcError

__all__ = ["reverse_only"]


def reverse_only(x: Any, what: str) -> Any:
    """x, arrays of any structure. what: says in a refusal what has no such derivative.

    Whoever runs, maps or compiles a forward-mode derivative with respect to a real of it gets TfcError (E818).
    """

    def mark(leaf: jax.Array) -> jax.Array:
        real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        marked: jax.Array = _value.bind(leaf, what=what) if real else leaf
        return marked

    return jax.tree.map(mark, x)


def _refuse(*_: Any, what: str, **__: Any) -> NoReturn:
    fact = f"{what}, which has no forward-mode derivative"
    hint = (
        "differentiate in reverse, by jax.grad, jax.vjp or jax.jacrev; "
        "jvp, jacfwd, linearize and hessian do with implementation='xla'"
    )
    raise TfcError(Diagnostic("E818", fact, help=hint))


def _jvp(primals: Any, tangents: Any, *, what: str) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    if not isinstance(tangent, ad.Zero):
        tangent = _tangent.bind(tangent, what=what)
    return _value.bind(x, what=what), tangent


_value, _tangent = Primitive("reverse_only"), Primitive("reverse_only_tangent")
for primitive in (_value, _tangent):
    primitive.def_abstract_eval(lambda x, *, what: x)

_value.def_impl(lambda x, *, what: x)
ad.primitive_jvps[_value] = _jvp
batching.primitive_batchers[_value] = lambda xs, at, *, what: (_value.bind(*xs, what=what), *at)
mlir.register_lowering(_value, lambda _, x, *, what: [x])

_tangent.def_impl(_refuse)
ad.deflinear2(_tangent, lambda cotangent, _, *, what: [cotangent])
batching.primitive_batchers[_tangent] = _refuse
mlir.register_lowering(_tangent, _refuse)
