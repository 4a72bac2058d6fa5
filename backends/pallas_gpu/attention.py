"""An attention equation turned into a call of the Hopper kernel: what it refuses, its block sizes, its operands."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.kernel import DTYPES, Kernel, Late, Target
from tfc.backends.pallas_gpu import schedule, tuned
from tfc.backends.pallas_gpu.plan import ROWS, Config, Plan, intricate
from tfc.backends.pallas_gpu.refusals import in_bf16, of_device, of_dropout, of_formulas, of_types
from tfc.backends.pallas_gpu.streaming import SHARED_MEMORY, launch
from tfc.backends.pallas_gpu.weighing import weighing
from tfc.backends.refusal import Change, Reason, first, resized
from tfc.formula.expr import Expr, Load, Side, walk
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn
from tfc.ir.types import DType

__all__ = ["KERNEL", "build", "config_for", "reasons", "refuse"]

Array = jax.Array

Launch = Callable[[Plan], Callable[..., tuple[Array, ...]]]

CACHED = 24 * 2**20
"""Bytes of keys and values that blocks on their own lists work on at once: half the second-level cache."""


def config_for(head_dim: int, n: int, fields: int = 0, value_dim: int = 0) -> Config:
    """Block sizes by head size and query length: at 32, 64 and 128 the fastest of those measured on an H200
    (benchmarks/), at other sizes those of the next size whose registers and shared memory they fit.

    At 128 two consumers fill the register file. Smaller heads leave room for a third, which hides more of the
    exponentials that then outweigh the products; but a third that gets no row only waits.
    Blocks stay on their multiprocessor where outputs fit beside queries and rings that still hold two tiles of 128
    keys or three of 64: from head size 192 on they do not.
    fields: how many fields of the keys the formulas read, of which each thread holds a quarter of a tile's columns.
    Beside the scores and an output of 128 columns one field of 128 keys fits its registers, a second does not.
    value_dim: the values' size, where it is another. An output of more than 128 columns leaves room for 64 keys'.
    """
    values = value_dim or head_dim
    if max(head_dim, values) <= 64 and not fields and n > 2 * ROWS:
        return Config(consumers=3, block_k=128, stages=3, persistent=True)
    row = 2 * (head_dim + values)  # bytes of a key and its value
    free = SHARED_MEMORY - 1024 - 2 * ROWS * (2 * max(head_dim, values) + 4)
    staying = free - 2 * ROWS * 2 * values
    if values <= (64 if fields > 1 else 128) and 2 * 128 * row <= free:
        return Config(consumers=2, block_k=128, stages=2, persistent=2 * 128 * row <= staying)
    persistent = 3 * 64 * row <= staying
    return Config(
        consumers=2, block_k=64, stages=min(4, (staying if persistent else free) // (64 * row)), persistent=persistent
    )


def reasons(eqn: Eqn, target: Target) -> Iterator[Reason]:
    """Why this kernel cannot serve `eqn` on `target`: nothing when it can."""
    op = eqn.op
    assert isinstance(op, Attention)
    q, v = eqn.args[0].type, eqn.args[2].type
    yield from of_device(target)
    yield from of_types(eqn)
    if not whole(q.ints[3]):
        yield Reason("head size", f"head size {q.last}: takes multiples of 16 up to 256", of_size(eqn, q.ints[3]))
    if not whole(v.ints[3]) and v.last != q.last:
        text = f"values of size {v.last}: takes multiples of 16 up to 256"
        yield Reason("value size", text, of_size(eqn, v.ints[3]))
    keys, most = v.ints[1], 64 * schedule.MOST
    if keys > most:
        change = Change(words=f"a sequence of at most {most} keys", types=resized(eqn, "k", most))
        yield Reason("keys", f"numbers key tiles in 15 bits: {keys} keys are more than {most}", change)
    yield from of_dropout(op)
    yield from of_formulas(eqn, "score", "mask", "weigh")
    if q.dtype is DType.F16 and not weighing(op.weigh).softmax and any(node == S for node in walk(op.weigh)):
        text = f"keeps weights in f16, which ends at 65504, and nothing bounds `{op.weigh}`: bf16 would do"
        yield Reason("weights in f16", text, in_bf16(eqn))


def refuse(eqn: Eqn, target: Target) -> str | None:
    """The first reason why this kernel cannot serve `eqn` on `target`, or None when it can."""
    return first(reasons(eqn, target))


def whole(size: int) -> bool:
    """Whether heads of this size are whole chunks of shared memory, and fit."""
    return size % 16 == 0 and 0 < size <= 256


def of_size(eqn: Eqn, size: int) -> Change:
    """Every operand of this size with heads of the next size that fits."""
    fits = min(256, up(max(size, 1), 16))
    types = {n: a.type.with_last(fits) for n, a in enumerate(eqn.args[:3]) if a.type.last == size}
    return Change(words=f"heads of {fits} instead of {size}", types=types)


def padded(x: Array, axis: int, size: int) -> Array:
    """x with zeros up to `size` along `axis`; x itself where it is as long."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return x if size == x.shape[axis] else jnp.pad(x, widths)


def up(n: int, multiple: int) -> int:
    """n rounded up to a multiple."""
    return -(-n // multiple) * multiple


def operands(captured: tuple[Array, ...], exprs: tuple[Expr, ...], ends: Mapping[Side, int]) -> tuple[Array, ...]:
    """Captured arrays as the kernel reads them: int32 or float32, fields as long as the last tile reaches.

    A slot that both sides read reaches as far as the longer of the two; one that none reads stays as it is.
    """
    reach = {s: 0 for s in range(len(captured))}
    for node in (n for expr in exprs for n in walk(expr)):
        if isinstance(node, Load):
            reach[node.slot] = max(reach[node.slot], ends[node.side])
    out = []
    for slot, x in enumerate(captured):
        x = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32)
        out.append(padded(x, -1, reach[slot]) if reach[slot] else x)
    return tuple(out)


def call(plan: Plan, launch: Launch = launch) -> Callable[..., tuple[Array, Array]]:
    """The plan as a function of (q, k, v, turns, ranges, *captured), lengths and types as the equation has them; k
    and v are `Late` where the plan says that they are rows of stacks. turns, ranges: as `launch` takes them.

    Log-sum-exps of pointwise weights are a launch of their own, the softmax's; where nobody reads them XLA drops it.
    """
    n, m, config = plan.n, plan.m, plan.config
    ends: dict[Side, int] = {"q": up(n, config.block_q), "k": up(m, config.block_k)}
    kernel = launch(plan)
    softmax = kernel if plan.weighing.softmax else launch(replace(plan, weigh=P))
    formulas = (plan.score, plan.mask, plan.weigh)

    def attention(q: Array, k: Any, v: Any, turns: Any, ranges: Any, *captured: Array) -> tuple[Array, Array]:
        row: tuple[Array, ...] = ()
        if plan.stacked:
            row = (jnp.reshape(k.index, 1).astype(jnp.int32),)
            k, v = (jnp.reshape(x.x, (-1, *x.x.shape[2:])) for x in (k, v))
        q, k, v = padded(q, 1, up(n, 8)), padded(k, 1, up(m, 8)), padded(v, 1, up(m, 8))
        given = (q, k, v, jnp.asarray(turns), jnp.asarray(ranges), *operands(captured, formulas, ends), *row)
        out, lse = softmax(*given)
        if not plan.weighing.softmax:
            (out,) = kernel(*given, *([lse] if plan.weighing.reads_lse else ()))
        return out[:, :n], lse[:, :, :n]

    return attention


def build(eqn: Eqn, target: Target, config: Config | None = None) -> Callable[..., tuple[Array, Array]]:
    """The equation as a function of q, k, v and the captured arrays that gives (out, lse).

    config: other block sizes and options than `config_of` chooses. Raises ValueError where they take too much memory.
    """
    op, (q, _, v, *_) = eqn.op, (a.type for a in eqn.args)
    assert isinstance(op, Attention)
    (batch, n, heads, head_dim), (_, m, kv_heads, values) = q.ints, v.ints
    if batch * n * m == 0:  # nothing to see, or nobody to see it
        empty = (batch, n, heads, values)
        return lambda q, *_: (jnp.zeros(empty, q.dtype), jnp.full((batch, heads, n), -jnp.inf, jnp.float32))
    plan = Plan(
        config=config or config_of(eqn, target),
        batch=batch,
        n=n,
        m=m,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=values,
        dtype=DTYPES[q.dtype],
        scale=op.scale,
        score=op.score,
        mask=op.mask,
        weigh=op.weigh,
        interpret=target.interpret,
    )
    tiles = dict(n=n, m=m, block_q=plan.config.block_q, block_k=plan.config.block_k, batch=batch, heads=heads)

    def attention(q: Array, k: Any, v: Any, *captured: Array) -> tuple[Array, Array]:
        stacked = m % 8 == 0 and all(isinstance(x, Late) and _whole(x) for x in (k, v))
        if not stacked:
            k, v = (x.array() if isinstance(x, Late) else x for x in (k, v))
        turns, ranges = schedule.ranges(op.mask, captured, **tiles)
        blocks = 0
        if plan.config.persistent and isinstance(turns, np.ndarray) and 0 < target.sms < batch * heads * plan.tiles:
            blocks = target.sms  # with no more tiles than multiprocessors each has one in any case
            together = max(1, CACHED // (2 * m * (head_dim + values))) * (heads // kv_heads)
            turns = schedule.lists(turns, ranges, batch=batch, heads=heads, blocks=blocks, together=together)
        return _called(replace(plan, stacked=stacked, blocks=blocks))(q, k, v, turns, ranges, *captured)

    return attention


def _whole(x: Late) -> bool:
    """Whether it is a row of a stack in the stack's own type."""
    return x.index is not None and x.x.dtype == x.dtype


def _called(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    """The plan's function. Layers that are written out share one, so that their kernel is lowered once."""
    return call(plan) if plan.interpret else _jitted(plan)


@lru_cache(maxsize=256)
def _jitted(plan: Plan) -> Callable[..., tuple[Array, Array]]:
    return jax.jit(call(plan))


def config_of(eqn: Eqn, target: Target) -> Config:
    """The block sizes of an equation whose shapes are bound: measured ones, where a table has them, or by rule."""
    op, (_, n, _, head_dim), values = eqn.op, eqn.args[0].type.ints, eqn.args[2].type.ints[3]
    assert isinstance(op, Attention)
    formulas = (op.score, op.mask, op.weigh)
    fields = {node for f in formulas for node in walk(f) if isinstance(node, Load) and node.side == "k"}
    heavy = intricate(op.score)
    config = config_for(head_dim, n, len(fields) + (heavy if fields else 0), values)
    if heavy and values >= 128:  # such functions leave no registers for a list, nor beside wider outputs for a base
        config = replace(config, persistent=False, bounded=values == 128)
    config = replace(config, **tuned.fields("forward", eqn, target))
    # interpreted warpgroups are threads that wait for one another, and XLA keeps no more than the machine has cores
    return replace(config, consumers=2) if target.interpret else config


def notes(eqn: Eqn, target: Target) -> dict[str, Any]:
    """Block sizes, and whether blocks stay for more than one query tile, for reports."""
    config = config_of(eqn, target)
    said: dict[str, Any] = {"block_q": config.block_q, "block_k": config.block_k, "stages": config.stages}
    assert isinstance(eqn.op, Attention)
    if weighing(eqn.op.weigh).reads_lse:
        said["passes"] = "two: log-sum-exps first, then the weights that need them"
    return said


KERNEL = Kernel(
    name="pallas_gpu",
    op=Attention,
    refuse=refuse,
    build=build,
    differentiable=False,
    notes=notes,
    reasons=reasons,
    late=frozenset([1, 2]),
)
