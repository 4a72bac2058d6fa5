"""Named cases turned into ptxas' reports of gradient kernels, with no GPU: one `== case` line before each.

python compiled_gradients.py "causal d128" "softcap d64"
"""

import sys

import jax
import jax.numpy as jnp
from compiled import PARTS
from interpreted import ALIBI, SEGMENTS, H, both, softcap

from tfc import aot
from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu.backward import KERNEL
from tfc.formula.expr import Const, Expr, Kind, Load, Read, apply
from tfc.ir.ops import Attention, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

B, T, HEADS = 2, 4096, 4
IDS, TABLE, FIELD = (TensorType((B, T), DType.I32), TensorType((HEADS,), DType.F32), TensorType((B, T), DType.F32))
BIAS = apply("add", S, apply("mul", Load(0, "k", Kind.REAL), Read(1, (H,), Kind.REAL)))
YES = Const(True)
MASKS: dict[str, Expr] = {name: PARTS[name][0].get("mask", YES) for name in ("full", "causal", "window1024")}

FORMULAS: dict[str, tuple[Expr, Expr, tuple[TensorType, ...]]] = {
    **{name: (S, mask, ()) for name, mask in MASKS.items()},
    "documents": (S, both(MASKS["causal"], SEGMENTS), (IDS, IDS)),
    "softcap": (softcap(20.0), MASKS["causal"], ()),
    "alibi": (ALIBI, MASKS["causal"], (TABLE,)),
    "bias": (BIAS, MASKS["causal"], (FIELD, TABLE)),
}


def main(names: list[str]) -> None:
    """names: `<formula> d<head size>`."""
    target = Target(name="h200", platform="gpu", capability=9.0)
    place = jax.sharding.SingleDeviceSharding(aot.device("h200"))
    dtypes = {DType.BF16: jnp.bfloat16, DType.F32: jnp.float32, DType.I32: jnp.int32}

    def shape(t: TensorType) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(t.ints, dtypes[t.dtype], sharding=place)

    for name in names:
        formula, d = name.split(" d")
        score, mask, captured = FORMULAS[formula]
        operand = TensorType((B, T, HEADS, int(d)), DType.BF16)
        types = (operand, operand, operand, *captured)
        op = Attention(scale=int(d) ** -0.5, score=score, mask=mask)
        outs = tuple(map(Value, ("out", "lse"), op.infer(*types)))
        eqn = Eqn(outs, op, tuple(Value(f"x{i}", t) for i, t in enumerate(types)))
        assert KERNEL.gradient is not None and KERNEL.gradient.refuse(eqn, target) is None
        function = KERNEL.gradient.build(eqn, target)
        operands, results = tuple(map(shape, types)), tuple(shape(o.type) for o in outs)
        print(f"== {name}", flush=True)

        def real(*given: tuple[jax.Array, ...], function=function) -> list[jax.Array]:
            return [x for x in function(*given) if x is not None]

        jax.jit(real).trace(operands, results, results).lower(lowering_platforms=("cuda",)).compile()


if __name__ == "__main__":
    main(sys.argv[1:])
