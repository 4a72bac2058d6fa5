"""The table of kernels turned into the table of `README.md`: per operation, who is asked, and who serves which target.

`python -m tfc.backends.overview` prints it; a test compares it with the file.
"""

from collections.abc import Iterable, Mapping

from tfc.backends.kernel import Target
from tfc.backends.table import KERNELS
from tfc.formula.expr import Const, Kind, Read, Token, Var, apply
from tfc.ir import ops
from tfc.ir.formats import Format
from tfc.ir.ops import Op, S
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType

__all__ = ["TYPICAL", "markdown"]


def _t(*shape: int, dtype: DType = DType.BF16) -> TensorType:
    return TensorType(shape, dtype)


_U, _Q, _HEADS = Var("u", Kind.REAL), _t(2, 512, 8, 64), _t(2, 8, 512, 512, dtype=DType.F32)
TYPICAL: Mapping[type[Op], tuple[Op, tuple[TensorType, ...]]] = {
    ops.Constant: (ops.Constant(value=1.0, dtype=DType.F32), ()),
    ops.Elementwise: (ops.Elementwise(fn="add"), (_t(2, 512, 512), _t(2, 512, 512))),
    ops.Reduction: (ops.Reduction(fn="mean"), (_t(2, 512, 512, dtype=DType.F32),)),
    ops.Index: (ops.Index(axes=(("t", 512),), expr=Read(0, (Var("t", Kind.INT),), Kind.REAL)), (_t(512),)),
    ops.Take: (ops.Take(), (_t(1000, 512), _t(2, 512, dtype=DType.I32))),
    ops.Linear: (ops.Linear(), (_t(2, 512, 512), _t(512, 512))),
    ops.Reshape: (ops.Reshape(shape=(2, 512, 8, 64)), (_t(2, 512, 512),)),
    ops.Slice: (ops.Slice(start=0, size=64), (_t(2, 512, 512),)),
    ops.Concat: (ops.Concat(), (_t(2, 512), _t(2, 512))),
    ops.Cast: (ops.Cast(dtype=DType.F32), (_t(2, 512),)),
    ops.Rotate: (ops.Rotate(angle=apply("div", Var("pos", Kind.INT), Const(2)), dims=64), (_Q,)),
    ops.Scores: (ops.Scores(scale=0.125), (_Q, _Q)),
    ops.Score: (ops.Score(formula=apply("tanh", S)), (_HEADS,)),
    ops.Masked: (ops.Masked(formula=apply("le", Token("k"), Token("q"))), (_HEADS,)),
    ops.Weigh: (ops.Weigh(), (_HEADS,)),
    ops.Mix: (ops.Mix(), (_HEADS, _Q)),
    ops.Attention: (ops.Attention(scale=0.125, mask=apply("le", Token("k"), Token("q"))), (_Q, _Q, _Q)),
    ops.FeedForward: (
        ops.FeedForward(activation=apply("tanh", _U), gated=False, biased=False),
        (_t(2, 512, 512), _t(512, 2048), _t(2048, 512)),
    ),
    ops.Recurrence: (ops.Recurrence(decay="token"), (_Q, _Q, _Q, _t(2, 512, 8, dtype=DType.F32))),
    ops.Top: (ops.Top(count=2), (_t(2, 512, 8, dtype=DType.F32),)),
    ops.Calibrated: (ops.Calibrated(path="calibrated"), (_t(2, 8, dtype=DType.F32),)),
    ops.Rounded: (ops.Rounded(format=Format("fp8", (("variant", "e4m3"), ("per", "tensor")))), (_t(2, 512, 512),)),
    ops.ArrayFunction: (ops.ArrayFunction(fn="apportion", settings=(("total", 8),)), (_t(4, dtype=DType.F32),)),
    ops.CacheRead: (ops.CacheRead(), (_t(4, 2, 512, 8, 64), _t(dtype=DType.I32))),
    ops.CacheWrite: (
        ops.CacheWrite(),
        (_t(4, 2, 512, 8, 64), _t(2, 1, 8, 64), _t(dtype=DType.I32), *[_t(2, dtype=DType.I32)] * 2),
    ),
    ops.Dropout: (ops.Dropout(rate=0.1, path="dropout"), (_t(2, 512, 512), _t(2, dtype=DType.I32))),
    ops.ResidualNorm: (
        ops.ResidualNorm(centered=False, eps=1e-6, residual=True, scaled=True, keeps=True, dtype=DType.BF16),
        (_t(2, 512, 512), _t(2, 512, 512), _t(512, dtype=DType.F32)),
    ),
}
"""An everyday equation of each operation: bf16, eight heads of 64, causal."""


def markdown(targets: Iterable[Target]) -> str:
    """The table as Markdown: one row an operation, one column a target, a cell the kernel that is chosen.

    cuDNN is left out of the cells: whether its library is there is known on a machine with the GPU only.
    """
    columns = list(targets)
    lines = ["| operation | asked | " + " | ".join(t.name for t in columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for op, row in KERNELS.items():
        attributes, types = TYPICAL[op]
        args = tuple(Value(f"a{i}", t) for i, t in enumerate(types))
        eqn = Eqn(tuple(Value(f"o{i}", t) for i, t in enumerate(attributes.infer(*types))), attributes, args)
        first = [next(k.name for k in row if k.name != "cudnn" and k.refuse(eqn, t) is None) for t in columns]
        lines.append(f"| {op.name} | " + " | ".join([", ".join(k.name for k in row), *first]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from tfc.targets import names, resolve

    print(markdown(resolve(name) for name in names()), end="")
