"""Named benchmark cases turned into ptxas' reports, with no GPU: run as a program, one `== case` line before each."""

import sys

import jax
import jax.numpy as jnp

from tfc import aot
from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu.attention import KERNEL
from tfc.formula.expr import Const, Expr, Token, apply
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

Q, K = Token("q"), Token("k")
CAUSAL = apply("le", K, Q)
MASKS: dict[str, Expr] = {
    "full": Const(True),
    "causal": CAUSAL,
    "window1024": apply("and", CAUSAL, apply("lt", apply("sub", Q, K), Const(1024))),
}


def main(names: list[str]) -> None:
    """names: `<mask> d<head size>`."""
    target = Target(name="h200", platform="gpu", capability=9.0)
    for name in names:
        mask, d = name.split(" d")
        operand = TensorType((2, 4096, 4, int(d)), DType.BF16)
        op = Attention(scale=int(d) ** -0.5, mask=MASKS[mask])
        outs = tuple(map(Value, ("out", "lse"), op.infer(operand, operand, operand)))
        function = KERNEL.build(Eqn(outs, op, tuple(Value(x, operand) for x in "qkv")), target)
        place = jax.sharding.SingleDeviceSharding(aot.device("h200"))
        shape = jax.ShapeDtypeStruct(operand.ints, jnp.bfloat16, sharding=place)
        print(f"== {name}", flush=True)
        jax.jit(function).trace(shape, shape, shape).lower(lowering_platforms=("cuda",)).compile()


if __name__ == "__main__":
    main(sys.argv[1:])
