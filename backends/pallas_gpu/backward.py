"""An attention equation turned into its gradient by Hopper kernels: what they refuse, block sizes, operands.

One kernel runs over key tiles and sums dk and dv (`by_keys`), one over query tiles and sums dq (`by_queries`): seven
products a pair of tiles instead of five, and no sum that depends on the order in which blocks run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.bounds import visited_ranges, visiting_ranges
from tfc.backends.formula import LOG2E, unlowerable
from tfc.backends.kernel import DTYPES, Gradient, Kernel, Target
from tfc.backends.pallas_gpu import by_keys, by_queries, tuned
from tfc.backends.pallas_gpu.attention import KERNEL as FORWARD
from tfc.backends.pallas_gpu.attention import operands, padded, up
from tfc.backends.pallas_gpu.pairs import Config, Leaf, Plan, leaves_of
from tfc.backends.pallas_gpu.plan import ROWS, intricate
from tfc.backends.refusal import Change, Reason, first
from tfc.formula.derive import S, derivative
from tfc.formula.expr import Const, FormulaError, Kind, Load, Side, apply, kind_of, walk
from tfc.ir.ops import Attention, P
from tfc.ir.program import Eqn

__all__ = ["KERNEL", "build", "configs_for", "configs_of", "reasons", "refuse"]

Array = jax.Array

KERNELS: Mapping[Side, Callable[[Plan], Callable[..., tuple[Array, ...]]]] = {
    "q": by_queries.launch,
    "k": by_keys.launch,
}
"""By the side of their rows."""

HEAD_DIMS = (32, 64, 128, 256)


def configs_for(
    head_dim: int, n: int, *, more: bool = False, keys: bool = False, intricate: bool = False, plain: bool = False
) -> dict[str, Config]:
    """Block sizes by the gradients that a kernel gives: of those that fit its registers, at 64 and 128 the fastest of
    those measured on an H200.

    A consumer over keys holds two sums of 64 x D and two tiles of scores: at 128 these are 192 of its 240 registers.
    One over queries holds one sum. At 64 there is room for tiles of twice the width.
    more: the kernel over queries sums gradients of captured arrays too, or reads fields of the keys; intricate: the
    score has functions with many values under way. Neither fits beside such tiles, nor the former beside output
    cotangents that are held in registers.
    keys: the kernel over keys sums gradients of captured arrays too; at 128 they do not fit beside both dk and dv,
    which then are a kernel each, for an eighth product.
    plain: the score is `s` and no field is read, which leaves room for a product that runs ahead.
    At 256 dk alone takes 128 registers, and shared memory has room for three tiles of the other side: two
    of those that the last product reads, unless sums of captured arrays' gradients want it.
    """
    if head_dim == 256:
        two, one = Config(stages=2, passing=1), Config(stages=1)
        return {"q": one if more else two, "k": one if keys else two, "v": Config(stages=2)}
    if head_dim == 128 and keys:
        return {"q": Config(stages=4, ahead=True), "k": Config(stages=3), "v": Config(stages=4)}
    if head_dim == 128 or more or intricate or n <= 2 * ROWS:
        large, narrow = head_dim == 128, Config(stages=4)
        return {"q": replace(narrow, ahead=True, held=large and not more), "kv": replace(narrow, ahead=large and plain)}
    wide = Config(columns=128, stages=3)
    return {"q": replace(wide, ahead=True), "kv": wide}


def reasons(eqn: Eqn, target: Target) -> Iterator[Reason]:
    """Why the gradient of an equation that the forward kernel serves is left to another: nothing where it is not."""
    op, (q, _, v) = eqn.op, (a.type for a in eqn.args[:3])
    assert isinstance(op, Attention)
    if q.last not in HEAD_DIMS or v.last != q.last:
        text = f"head sizes {q.last} and {v.last} are not both 32, 64, 128 or 256"
        yield Reason("head size", text, of_heads(eqn))
    if op.weigh != P:
        yield Reason("weigh", f"weighs by the softmax alone, not by `{op.weigh}`")
    if kind_of(op.score) is not Kind.REAL:
        change = Change(words=f"`1.0 * ({op.score})`", op=dict(score=apply("mul", Const(1.0), op.score)))
        yield Reason("no real", f"the score `{op.score}` is {kind_of(op.score)}: only reals have derivatives", change)
        return
    try:
        slopes = [derivative(op.score, S)]
        slopes += [
            derivative(op.score, leaf) for leaves in leaves_of(op.score, _trained(eqn)).values() for leaf in leaves
        ]
    except FormulaError as error:
        yield Reason("no derivative", str(error))
        return
    if missing := unlowerable(op.score, op.mask, *slopes):
        yield Reason("function", f"`{missing}` has no form in Mosaic GPU")


def of_heads(eqn: Eqn) -> Change | None:
    """Queries, keys and values with heads of the next size that both fit."""
    wide = max(eqn.args[0].type.ints[3], eqn.args[2].type.ints[3])
    size = next((d for d in HEAD_DIMS if d >= wide), None)
    if size is None:
        return None
    types = {n: a.type.with_last(size) for n, a in enumerate(eqn.args[:3])}
    return Change(words=f"heads of {size}, keys and values alike", types=types)


def refuse(eqn: Eqn, target: Target) -> str | None:
    """The first reason why the gradient of an equation that the forward kernel serves is left to another, or None."""
    return first(reasons(eqn, target))


def _trained(eqn: Eqn) -> frozenset[int]:
    """The captured slots that are real."""
    return frozenset(slot for slot, a in enumerate(eqn.args[3:]) if a.type.dtype.floating)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What the forward pass leaves: float32 [B, H, N] each, as the kernels read them."""

    lse: Array
    delta: Array


def saved(out: Array, lse: Array, dout: Array, dlse: Array, end: int) -> Saved:
    """lse in base 2, +inf for queries that see nothing or do not exist, so that their weights are zero; delta, the
    row sums of p dp, from dout * out (arXiv:2205.14135), less what a cotangent of lse adds to every score.

    out, dout: [B, N, H, D]; lse, dlse: [B, H, N]; end: tokens to reach to.
    """
    blind = jnp.isneginf(lse)
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=3)
    delta = jnp.where(blind, 0.0, jnp.swapaxes(delta, 1, 2) - dlse)
    wide = ((0, 0), (0, 0), (0, end - lse.shape[2]))
    lse = jnp.pad(jnp.where(blind, jnp.inf, lse * LOG2E), wide, constant_values=jnp.inf)
    return Saved(lse=lse, delta=jnp.pad(delta, wide))


def firsts(counts: Any, triples: Any) -> Any:
    """[Br, Hr, T, 4]: each count with the first triple. Of numpy arrays a numpy array."""
    xp: Any = np if isinstance(counts, np.ndarray) and isinstance(triples, np.ndarray) else jnp
    return xp.concatenate([counts[..., None], triples[..., 0, :]], axis=-1)


def call(plans: Sequence[Plan]) -> Callable[..., tuple[dict[str, Array], dict[int, Array]]]:
    """The plans as a function of (q, k, v, out, lse, dout, dlse, visits, captured) that gives the gradients of q, k and
    v by these names, and those of the captured slots that have any, by slot, in float32.

    visits: for each plan, (counts, triples) of `visited_ranges` or `visiting_ranges`.
    """
    n, m = plans[0].n, plans[0].m
    reach: dict[Side, int] = {
        side: max(
            up(plan.length(side), plan.config.rows if plan.rows == side else plan.config.columns) for plan in plans
        )
        for side in ("q", "k")
    }
    run = [KERNELS[plan.rows](plan) for plan in plans]

    def gradient(
        q: Array,
        k: Array,
        v: Array,
        out: Array,
        lse: Array,
        dout: Array,
        dlse: Array,
        visits: Sequence[tuple[Any, Any]],
        captured: Sequence[Array],
    ) -> tuple[dict[str, Array], dict[int, Array]]:
        kept = saved(out, lse, dout, dlse, reach["q"])
        q, dout = (padded(x, 1, up(n, 8)) for x in (q, dout))
        k, v = (padded(x, 1, up(m, 8)) for x in (k, v))
        fields = operands(tuple(captured), (plans[0].score, plans[0].mask), reach)
        found: dict[str, Array] = {}
        by_slot: dict[int, Array] = {}
        for plan, own, (counts, triples) in zip(plans, run, visits, strict=True):
            ranges = jnp.asarray(firsts(counts, triples)), jnp.asarray(triples)
            made = own(q, k, v, dout, kept.lse, kept.delta, *ranges, *fields)
            for name, x in zip(plan.gives, made, strict=False):
                found[name] = x[:, : plan.length(plan.rows)]
            for i, leaf in enumerate(plan.leaves):
                part = _summed(leaf, made[-1][i, :, :, : plan.length(plan.rows)], captured[leaf.slot])
                by_slot[leaf.slot] = by_slot[leaf.slot] + part if leaf.slot in by_slot else part
        return found, by_slot

    return gradient


def _summed(leaf: Leaf, sums: Array, x: Array) -> Array:
    """[B, H, tokens] sums in the shape of the captured array: [H], [B, T] or [T]."""
    if isinstance(leaf, Load):
        return jnp.sum(sums, axis=1 if x.ndim == 2 else (0, 1))
    return jnp.sum(sums, axis=(0, 2))


def configs_of(eqn: Eqn, target: Target) -> dict[str, Config]:
    """The block sizes of an equation's gradient kernels, by what each gives: measured ones, where a table has them, or
    by rule."""
    op, q = eqn.op, eqn.args[0].type
    assert isinstance(op, Attention)
    leaves = leaves_of(op.score, _trained(eqn))
    read = {node.side for f in (op.score, op.mask) for node in walk(f) if isinstance(node, Load)}
    ruled = configs_for(
        q.ints[3],
        q.ints[1],
        more="k" in read or bool(leaves["q"]),
        keys=bool(leaves["k"]),
        intricate=intricate(op.score),
        plain=op.score == S and not read,
    )
    return {gives: replace(c, **tuned.fields(f"backward {gives}", eqn, target)) for gives, c in ruled.items()}


def plans_of(eqn: Eqn, target: Target, configs: Mapping[str, Config] | None = None) -> tuple[Plan, ...]:
    """The kernels' plans of an equation whose shapes are bound. configs: others than those of `configs_of`."""
    op, (q, k, _, *_) = eqn.op, (a.type for a in eqn.args)
    assert isinstance(op, Attention)
    (batch, n, heads, head_dim), (_, m, kv_heads, _) = q.ints, k.ints
    leaves = leaves_of(op.score, _trained(eqn))
    plans = []
    for gives, config in (configs or configs_of(eqn, target)).items():
        side: Side = "q" if gives == "q" else "k"
        plan = Plan(
            # interpreted warpgroups are threads that wait for one another: see the forward kernel
            config=replace(config, consumers=min(config.consumers, 2)) if target.interpret else config,
            rows=side,
            gives=tuple(gives),
            batch=batch,
            n=n,
            m=m,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=DTYPES[q.dtype],
            scale=op.scale,
            score=op.score,
            mask=op.mask,
            leaves=() if gives == "v" else leaves[side],
            interpret=target.interpret,
        )
        plans.append(plan)
    return tuple(plans)


def build(
    eqn: Eqn, target: Target, configs: Mapping[str, Config] | None = None
) -> Callable[..., tuple[Array | None, ...]]:
    """The gradient as a function of (operands, results, cotangents), each a sequence of arrays, that gives one array
    an operand, None for those that have no gradient. configs: other block sizes than those of `configs_of`."""
    op, (q, k) = eqn.op, (a.type for a in eqn.args[:2])
    assert isinstance(op, Attention)
    (batch, n, heads, _), m = q.ints, k.ints[1]
    plans = plans_of(eqn, target, configs)

    def visits(plan: Plan, captured: Sequence[Array]) -> tuple[Any, Any]:
        find, (rows, columns) = visited_ranges, (plan.config.rows, plan.config.columns)
        if plan.rows == "k":
            find, (rows, columns) = visiting_ranges, (columns, rows)
        return find(op.mask, captured, n=n, m=m, block_q=rows, block_k=columns, batch=batch, heads=heads)

    def gradient(
        operands: Sequence[Array], results: Sequence[Array], cotangents: Sequence[Array]
    ) -> tuple[Array | None, ...]:
        captured = operands[3:]
        if batch * n * m == 0:
            return tuple(jnp.zeros_like(x) if _real(x) else None for x in operands)
        run = call(plans) if target.interpret else _jitted(plans)
        met = [visits(plan, captured) for plan in plans]
        found, by_slot = run(*operands[:3], *results, *cotangents, met, captured)
        of_slots = [
            (by_slot[slot] if slot in by_slot else jnp.zeros_like(x)).astype(x.dtype) if _real(x) else None
            for slot, x in enumerate(captured)
        ]
        return found["q"], found["k"], found["v"], *of_slots

    return gradient


def _real(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


@lru_cache(maxsize=256)
def _jitted(plans: tuple[Plan, ...]) -> Callable[..., Any]:
    """The plans' function. Layers that are written out share one, so that their kernels are lowered once."""
    return jax.jit(call(plans))


def notes(eqn: Eqn, target: Target) -> str:
    """The kernels and their block sizes, for reports."""
    blocks = ((plan.gives, plan.config) for plan in plans_of(eqn, target))
    return "its own: " + ", ".join(f"d{' d'.join(gives)} by {c.rows} x {c.columns}" for gives, c in blocks)


KERNEL: Kernel = replace(FORWARD, gradient=Gradient(refuse=refuse, build=build, notes=notes))
"""The forward kernel with gradients of its own."""
