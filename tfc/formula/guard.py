"""A formula made safe to differentiate where a mask hides it: what is not finite there gets a harmless argument.

A score such as `s - pace * log(1 + q - k)` means nothing for keys after the query. Under a causal mask nobody sees it,
but a derivative does: zero times infinity. Where `seen` is false, the functions of `HARMLESS` take a constant instead.
"""

from collections.abc import Mapping

from tfc.formula.expr import Apply, Const, Expr, Field, Kind, Load, Reduce, Token, Var, walk

__all__ = ["SEEN", "guarded", "partial"]

SEEN = Var("seen", Kind.BOOL)
"""Whether the query sees the key: the leaf that a guarded formula reads."""

HARMLESS: Mapping[str, tuple[int, float]] = {
    "log": (0, 1.0), "log1p": (0, 0.0), "sqrt": (0, 1.0), "rsqrt": (0, 1.0), "normal_quantile": (0, 0.5),
    "exp": (0, 0.0), "exp2": (0, 0.0), "div": (1, 1.0), "pow": (0, 1.0),
}  # fmt: skip
"""The functions that can be infinite or undefined: which argument matters, and a value at which they are neither."""

_NO_GRADIENT = frozenset(("floor", "stop", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "floordiv", "mod"))
"""Nothing is differentiated through these."""


def partial(expr: Expr) -> bool:
    """Whether the formula can be infinite or undefined for some pair of tokens, where gradients run."""
    return guarded(expr) is not expr


def guarded(expr: Expr) -> Expr:
    """The formula with every argument that could do harm replaced where `SEEN` is false; itself if there is none."""
    match expr:
        case Apply(fn, args) if fn not in _NO_GRADIENT:
            made = tuple(map(guarded, args))
            if fn in HARMLESS and _harms(fn, args):
                at, value = HARMLESS[fn]
                safe = Apply("where", (SEEN, made[at], Const(value)))
                made = (*made[:at], safe, *made[at + 1 :])
            return expr if all(a is b for a, b in zip(made, args, strict=True)) else Apply(fn, made)
        case Reduce(fn, names, body):
            inner = guarded(body)
            return expr if inner is body else Reduce(fn, names, inner)
    return expr


def _harms(fn: str, args: tuple[Expr, ...]) -> bool:
    """Whether the function's value hangs on the tokens at all, and is not one of a finite argument's finite values."""
    if fn == "pow" and isinstance(args[1], Const) and isinstance(args[1].value, int) and args[1].value >= 0:
        return False
    of = args if fn == "pow" else (args[HARMLESS[fn][0]],)
    return any(
        isinstance(n, Token | Field | Load) or (isinstance(n, Var) and n.name != "h") for a in of for n in walk(a)
    )
