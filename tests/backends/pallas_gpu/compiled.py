"""Named cases turned into ptxas' reports, with no GPU: run as a program, one `== case` line before each.

A name is words: masks, scores and weighs by name, `d128` or `d192/128`, and options of the kernel: `persistent`,
`grid`, `running` maxima, `k64` keys a tile, `s3` stages, `c3` consumers.
"""

import re
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from tfc import aot
from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu.attention import build, config_of
from tfc.backends.pallas_gpu.plan import Config
from tfc.formula.expr import Const, Expr, Kind, Load, Read, Token, Var, apply
from tfc.ir.ops import Attention, P, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

Q, K, H, LSE = Token("q"), Token("k"), Var("h", Kind.INT), Var("row.lse", Kind.REAL)
CAUSAL = apply("le", K, Q)
SEGMENTS = apply("eq", Load(0, "q", Kind.INT), Load(0, "k", Kind.INT))
B, N, HEADS = 2, 4096, 4
FIELD, TABLE = TensorType((B, N), DType.I32), TensorType((HEADS,), DType.F32)

Part = tuple[dict[str, Expr], tuple[TensorType, ...]]
PARTS: dict[str, Part] = {
    "full": ({}, ()),
    "causal": (dict(mask=CAUSAL), ()),
    "window1024": (dict(mask=apply("and", CAUSAL, apply("lt", apply("sub", Q, K), Const(1024)))), ()),
    "documents": (dict(mask=apply("and", CAUSAL, SEGMENTS)), (FIELD,)),
    "softcap": (dict(score=apply("mul", Const(20.0), apply("tanh", apply("div", S, Const(20.0))))), ()),
    "coarse": (dict(score=apply("mul", Const(20.0), apply("approximate_tanh", apply("div", S, Const(20.0))))), ()),
    "alibi": (
        dict(score=apply("sub", S, apply("mul", Read(0, (H,), Kind.REAL), apply("abs", apply("sub", Q, K))))),
        (TABLE,),
    ),
    "sink": (dict(weigh=apply("mul", P, apply("sigmoid", apply("sub", LSE, Read(0, (H,), Kind.REAL))))), (TABLE,)),
    "hstu": (dict(weigh=apply("div", apply("mul", S, apply("sigmoid", S)), Const(4096.0))), ()),
    "relu2": (dict(weigh=apply("pow", apply("div", apply("max", S, Const(0.0)), Const(4096)), Const(2))), ()),
    "clipped": (dict(weigh=apply("max", apply("sub", apply("mul", Const(1.1), P), Const(0.02)), Const(0.0))), ()),
}
"""What a word says of the operation, and what slot 0 then holds."""
OPTIONS: dict[str, dict[str, Any]] = {
    "persistent": dict(persistent=True),
    "grid": dict(persistent=False),
    "running": dict(bounded=False),
}


def case(name: str) -> tuple[Eqn, dict[str, Any]]:
    """The equation, and what the name says of the kernel's configuration."""
    formulas: dict[str, Any] = {}
    captured: tuple[TensorType, ...] = ()
    changes: dict[str, Any] = {}
    d = dv = 64
    for word in name.split():
        if word in PARTS:
            formulas |= PARTS[word][0]
            captured = captured or PARTS[word][1]
        elif word in OPTIONS:
            changes |= OPTIONS[word]
        elif size := re.fullmatch(r"d(\d+)(?:/(\d+))?", word):
            d, dv = int(size[1]), int(size[2] or size[1])
        elif size := re.fullmatch(r"([ksc])(\d+)", word):
            changes[{"k": "block_k", "s": "stages", "c": "consumers"}[size[1]]] = int(size[2])
        else:
            raise KeyError(f"`{word}` names nothing")
    types = (*(TensorType((B, N, HEADS, x), DType.BF16) for x in (d, d, dv)), *captured)
    op = Attention(scale=d**-0.5, **formulas)
    outs = tuple(map(Value, ("out", "lse"), op.infer(*types)))
    return Eqn(outs, op, tuple(Value(f"x{i}", t) for i, t in enumerate(types))), changes


def config(name: str, target: Target) -> Config:
    eqn, changes = case(name)
    return replace(config_of(eqn, target), **changes)


def main(names: list[str]) -> None:
    target = Target(name="h200", platform="gpu", capability=9.0, sms=132)
    place = jax.sharding.SingleDeviceSharding(aot.device("h200"))
    for name in names:
        eqn, _ = case(name)
        function = build(eqn, target, config(name, target))
        kinds = {DType.BF16: jnp.bfloat16, DType.I32: jnp.int32, DType.F32: jnp.float32}
        shapes = [jax.ShapeDtypeStruct(a.type.ints, kinds[a.type.dtype], sharding=place) for a in eqn.args]
        print(f"== {name}", flush=True)
        jax.jit(lambda *xs, f=function: f(*xs)[0]).trace(*shapes).lower(lowering_platforms=("cuda",)).compile()


if __name__ == "__main__":
    main(sys.argv[1:])
