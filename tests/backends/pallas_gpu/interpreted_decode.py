"""Named cases turned into verdicts: the interpreted decoding kernel beside attention's definition in float64.

This module runs in a worker process (`tfc.testing.worker`): an interpreted kernel can hang.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from tfc.backends.bounds import visited_tiles
from tfc.backends.kernel import Late, Target
from tfc.backends.pallas_gpu import cached, decode
from tfc.compat import mosaic_races, reset_interpreter
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.testing.tolerance import expected

S, H = Var("s", Kind.REAL), Var("h", Kind.INT)
AT, K = Load(0, "q", Kind.INT), Token("k")
SLOPE = Read(1, (H,), Kind.REAL)

Draw = Callable[[np.random.Generator, "Case"], np.ndarray[Any, Any]]


def both(x: Expr, y: Expr) -> Expr:
    return apply("and", x, y)


def window(width: int) -> Expr:
    return apply("lt", apply("sub", AT, K), Const(width))


CAUSAL = apply("le", K, AT)


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A mask and a score, and how the captured arrays are drawn; the first is the queries' positions."""

    mask: Expr = CAUSAL
    score: Expr = S
    captured: tuple[Draw, ...] = ()


def positions(rng: np.random.Generator, case: "Case") -> np.ndarray[Any, Any]:
    """[B, N]: each row of the batch has kept a number of tokens of its own, as many as `case.lengths` says or drawn."""
    lengths = case.lengths or tuple(int(x) for x in rng.integers(case.n, case.m + 1, case.b))
    return (np.asarray(lengths)[:, None] - case.n + np.arange(case.n)[None]).astype(np.int32)


def slopes(rng: np.random.Generator, case: "Case") -> np.ndarray[Any, Any]:
    return np.exp2(-8 * (np.arange(case.h) + 1) / case.h).astype(np.float32)


FORMULAS: Mapping[str, Formula] = {
    "full": Formula(mask=Const(True)),
    "causal": Formula(captured=(positions,)),
    "aligned": Formula(mask=apply("le", K, Token("q"))),
    "window": Formula(mask=both(CAUSAL, window(40)), captured=(positions,)),
    "sinks": Formula(  # the first keys and the last ones
        mask=both(CAUSAL, apply("or", window(70), apply("lt", K, Const(4)))), captured=(positions,)
    ),
    "softcap": Formula(
        score=apply("mul", Const(2.0), apply("tanh", apply("div", S, Const(2.0)))), captured=(positions,)
    ),
    "alibi": Formula(
        score=apply("sub", S, apply("mul", SLOPE, apply("abs", apply("sub", AT, K)))), captured=(positions, slopes)
    ),
    "own": Formula(  # tables of heads, fields of queries and of keys, of each kind
        mask=both(
            CAUSAL,
            apply("or", Read(1, (H,), Kind.BOOL), apply("ne", Load(2, "k", Kind.INT), apply("mod", AT, Const(3)))),
        ),
        score=apply("add", S, apply("mul", Load(3, "q", Kind.REAL), Load(4, "k", Kind.REAL))),
        captured=(
            positions,
            lambda r, c: np.arange(c.h) % 2 == 0,
            lambda r, c: r.integers(0, 3, (c.b, c.m)).astype(np.int32),
            lambda r, c: r.normal(size=c.n).astype(np.float32),
            lambda r, c: r.normal(size=(c.b, c.m)).astype(np.float32),
        ),
    ),
    "each head its own window": Formula(
        mask=both(CAUSAL, apply("lt", apply("sub", AT, K), Read(1, (H,), Kind.INT))),
        captured=(positions, lambda r, c: (8 << np.arange(c.h)).astype(np.int32)),
    ),
    "heads as numbers": Formula(
        score=apply("add", S, apply("mul", H, Const(0.01))),
        mask=both(CAUSAL, apply("eq", apply("mod", H, Const(2)), apply("mod", K, Const(2)))),
        captured=(positions,),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a case; row is the row of stacks of three that holds keys and values, whose other rows are NaN."""

    formula: str = "causal"
    b: int = 1
    n: int = 1
    m: int = 200
    h: int = 4
    g: int = 1
    d: int = 64
    dtype: str = "bfloat16"
    splits: int | None = None
    block_k: int = 64
    stages: int = 2
    seed: int = 0
    lengths: tuple[int, ...] | None = None
    row: int | None = None
    traced: bool = True
    page: int = 0
    kept: str | None = None


KINDS = {"i": DType.I32, "f": DType.F32, "b": DType.BOOL, "bfloat16": DType.BF16, "float16": DType.F16}
TARGET = Target(name="h200", platform="gpu", capability=9.0, sms=132, interpret=True)


def equation(case: Case, captured: list[Any]) -> Eqn:
    shapes = [(case.b, case.n, case.h, case.d), *[(case.b, case.m, case.g, case.d)] * 2]
    types = [TensorType(s, KINDS[case.dtype]) for s in shapes]
    types += [TensorType(x.shape, KINDS[x.dtype.kind]) for x in captured]
    formula = FORMULAS[case.formula]
    op = Attention(scale=case.d**-0.5, score=formula.score, mask=formula.mask)
    args = tuple(Value(f"a{i}", t) for i, t in enumerate(types))
    return Eqn(tuple(map(Value, ("out", "lse"), op.infer(*types))), op, args)


def function(case: Case, eqn: Eqn) -> Any:
    """The kernel as it is registered, or with a number of splits and block sizes of the case's own."""
    if case.splits is None:
        return decode.build(eqn, TARGET)
    made = decode.plan_of(eqn, TARGET)
    config = replace(made.config, block_k=case.block_k, stages=case.stages)
    plan = replace(made, config=config, splits=case.splits, stacked=case.row is not None)
    if case.page:
        plan = replace(plan, page=case.page, pool=POOL * -(-case.m // case.page))
    if case.kept is not None:
        plan = replace(plan, kept=jnp.dtype(case.kept))
    sizes = dict(n=case.n, m=case.m, block_q=case.n, block_k=case.block_k, batch=case.b, heads=case.h)
    kernel = decode.call(plan)

    def call(q: Any, k: Any, v: Any, *captured: Any) -> Any:
        return kernel(q, k, v, decode.bits(visited_tiles(plan.mask, captured, **sizes), plan), *captured)

    return call


POOL = 3
"""Pages of a pool for each that a row of the batch may need."""


def paged(case: Case, k: Any, v: Any, rng: np.random.Generator) -> tuple[list[Any], Any]:
    """Keys and values cut into pages that lie in any order among others, which are NaN (the largest where there is no
    NaN), and the table."""
    each = -(-case.m // case.page)
    table = rng.permutation(POOL * each)[: case.b * each].reshape(case.b, each).astype(np.int32)
    pools = []
    for x in (k, v):
        x = np.pad(x, [(0, 0), (0, each * case.page - case.m), *[(0, 0)] * (x.ndim - 2)])
        wrong = 127 if x.dtype == np.int8 else np.nan
        pool = np.full((POOL * each, case.page, *x.shape[2:]), wrong, x.dtype)
        pool[table.ravel()] = x.reshape(-1, *pool.shape[1:])
        pools.append(jnp.asarray(pool))
    return pools, jnp.asarray(table)


def narrowed(x: Any, kept: Any) -> tuple[Any, Any]:
    """The values in 8 bits, and a float32 scale for each token and head."""
    wide, whole = x.astype(np.float64), jnp.issubdtype(kept, jnp.integer)
    scale = np.maximum(np.abs(wide).max(axis=-1), 1e-6) / (127 if whole else 448)
    wide = wide / scale[..., None]
    return (np.round(wide) if whole else wide).astype(kept), scale.astype(np.float32)


@contextmanager
def planted(edits: Mapping[str, str]) -> Iterator[None]:
    """Lines of the kernel's module replaced for what is built meanwhile; indentation stays."""
    lines = inspect.getsource(cached).splitlines()
    for line, other in edits.items():
        at = [i for i, x in enumerate(lines) if x.strip() == line]
        if len(at) != 1:
            raise LookupError(f"the kernel has {len(at)} lines `{line}`")
        lines[at[0]] = lines[at[0]].replace(line, other)
    module = ModuleType("mutant")
    sys.modules["mutant"] = module  # dataclasses look their module up
    exec(compile("\n".join(lines), "mutant", "exec"), module.__dict__)
    with patch.multiple(decode, launch=module.launch, merge=module.merge):
        yield


def arrays(case: Case) -> list[Any]:
    """q, k, v in the case's type, and the captured arrays."""
    rng = np.random.default_rng(case.seed)
    captured = [draw(rng, case) for draw in FORMULAS[case.formula].captured]
    shapes = [(case.b, case.n, case.h, case.d), *[(case.b, case.m, case.g, case.d)] * 2]
    return [*(np.asarray(jnp.asarray(rng.normal(size=s), case.dtype)) for s in shapes), *captured]


def judge(fields: Mapping[str, Any], edits: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a case through the interpreted kernel, races looked for, and compares with float64 by the tolerance table.

    edits: lines of the kernel's source to replace, each of which must occur once: a planted fault. Gives `wrong` in
    words, the largest error to what is allowed, and how many rows see nothing.
    """
    case = Case(**fields)
    operands = arrays(case)
    eqn = equation(case, operands[3:])
    assert decode.refuse(eqn, TARGET) is None, decode.refuse(eqn, TARGET)
    given: list[Any] = [jnp.asarray(x) for x in operands]
    scales: list[Any] = []
    table: list[Any] = []
    if case.kept is not None:
        (k, k_scale), (v, v_scale) = (narrowed(x, jnp.dtype(case.kept)) for x in operands[1:3])
        operands[1:3] = [
            x.astype(np.float64) * s[..., None].astype(np.float64) for x, s in ((k, k_scale), (v, v_scale))
        ]
        given[1:3], scales = [jnp.asarray(k), jnp.asarray(v)], [k_scale, v_scale]
    if case.page:
        rng = np.random.default_rng(case.seed)
        given[1:3], pages = paged(case, np.asarray(given[1]), np.asarray(given[2]), rng)
        table = [pages]
        if scales:
            scales = paged(case, scales[0], scales[1], np.random.default_rng(case.seed))[0]
    scales = [jnp.swapaxes(jnp.asarray(x), 1, 2) for x in scales]
    given += [*table, *scales]
    if case.row is not None:
        stacked = [1, 2, *range(len(given) - len(scales), len(given))]
        for i in stacked:
            wrong = 127 if given[i].dtype == jnp.int8 else jnp.nan
            stack = jnp.full((3, *given[i].shape), wrong, given[i].dtype).at[case.row].set(given[i])
            given[i] = Late(stack, jnp.int32(case.row), stack.dtype)
    reset_interpreter()
    with planted(edits) if edits else nullcontext():
        call = function(case, eqn)
    found = (jax.jit(call) if case.traced else call)(*given)
    found = [np.asarray(x) for x in found]
    assert not mosaic_races(), "RACE DETECTED"
    assert isinstance(eqn.op, Attention)
    measured = [e.compare(x) for e, x in zip(expected(eqn.op, operands), found, strict=True)]
    return {
        "wrong": "; ".join(m.reason for m in measured if not m.ok),
        "ratio": max(m.ratio for m in measured),
        "blind": int(np.isneginf(found[1]).sum()),
        "out": found[0].astype(np.float32),
    }


def formulas() -> list[str]:
    """Their names."""
    return list(FORMULAS)
