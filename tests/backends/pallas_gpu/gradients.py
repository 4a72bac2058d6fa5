"""Named cases turned into verdicts: the interpreted gradient kernels beside float64 gradients and their tolerance.

This module runs in a worker process, as `interpreted` does.
"""

import inspect
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from interpreted import CAUSAL, FORMULAS, Case, Formula, H, K, Q, S, arrays, scale_of

from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu import backward
from tfc.backends.pallas_gpu.backward import KERNEL
from tfc.backends.pallas_gpu.pairs import Config
from tfc.compat import mosaic_races, reset_interpreter
from tfc.formula.expr import Const, Kind, Load, Read, apply
from tfc.ir.ops import Attention
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.testing import float64
from tfc.testing.tolerance import expected_gradients

BIAS = apply(
    "add",
    apply("mul", Load(0, "k", Kind.REAL), apply("add", S, apply("tanh", S))),
    apply("mul", apply("add", Load(1, "q", Kind.REAL), Load(0, "q", Kind.REAL)), Read(2, (H,), Kind.REAL)),
)

GRADED: Mapping[str, Formula] = {
    **FORMULAS,
    # trained: a field of queries and keys alike, one of the queries for all batch rows, and a table of the heads
    "bias": Formula(
        score=BIAS,
        mask=CAUSAL,
        captured=(
            lambda r, b, n, m, h: r.normal(size=(b, n)).astype(np.float32),
            lambda r, b, n, m, h: r.normal(size=n).astype(np.float32),
            lambda r, b, n, m, h: r.normal(size=h).astype(np.float32),
        ),
        dense=lambda *_: (None, None),
    ),
    # keys that do not exist reach the sums of the queries' rows, and nothing else: theirs are zeros
    "all": Formula(
        score=apply("add", S, apply("mul", Load(0, "q", Kind.REAL), apply("add", K, Const(1)))),
        captured=(lambda r, b, n, m, h: r.normal(size=(b, n)).astype(np.float32) * 0.1,),
        dense=lambda *_: (None, None),
    ),
    # not finite where the mask hides it: a key after the query
    "hidden": Formula(
        score=apply("sub", S, apply("log", apply("sub", apply("add", Q, Const(1)), K))),
        mask=CAUSAL,
        dense=lambda *_: (None, None),
    ),
}

H200 = Target(name="h200", platform="gpu", capability=9.0, interpret=True)
KINDS = {"bfloat16": DType.BF16, "float16": DType.F16, "int32": DType.I32, "float32": DType.F32, "bool": DType.BOOL}


def equation(case: Case) -> tuple[Eqn, list[Any]]:
    """The case's equation, and its operands in numpy."""
    formula = GRADED[case.formula]
    qkv, captured = arrays(case, formula)
    operands = [np.asarray(jnp.asarray(x, case.dtype)) for x in qkv] + captured
    types = [TensorType(x.shape, KINDS[str(x.dtype)]) for x in operands]
    op = Attention(scale=scale_of(case), score=formula.score, mask=formula.mask)
    outs = tuple(map(Value, ("out", "lse"), op.infer(*types)))
    return Eqn(outs, op, tuple(Value(f"a{i}", t) for i, t in enumerate(types))), operands


def judge(
    fields: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]] | None = None, **how: Any
) -> dict[str, Any]:
    """The gradient kernels on the results of the definition, rounded as the forward kernel rounds them.

    configs: instead of the defaults. how: `edits`, lines of the kernels to replace, a planted fault; `only`, one of
    "out" and "lse", the other's cotangent is zero; `traced`, under jit; `twice`, run again, and compare bits.
    """
    case = Case(**fields)
    eqn, operands = equation(case)
    assert KERNEL.gradient is not None and KERNEL.gradient.refuse(eqn, H200) is None
    changes: dict[str, Any] = {"KERNELS": mutated(how["edits"])} if how.get("edits") else {}
    if configs:
        made = {gives: Config(**config) for gives, config in configs.items()}
        changes["configs_for"] = lambda *sizes, **what: made
    with patch.multiple(backward, **changes) if changes else nullcontext():
        return _judged(case, eqn, operands, how)


def _judged(case: Case, eqn: Eqn, operands: list[Any], how: Mapping[str, Any]) -> dict[str, Any]:
    op = eqn.op
    assert isinstance(op, Attention) and KERNEL.gradient is not None
    rng = np.random.default_rng(case.seed + 1)
    dout = np.asarray(jnp.asarray(rng.normal(size=operands[0].shape) * (how.get("only") != "lse"), case.dtype))
    dlse = (rng.normal(size=(case.b, case.h, case.n)) * (how.get("only") != "out")).astype(np.float32)
    precision = float64.Precision.of(KINDS[case.dtype])
    forward = float64.attention(op, *operands, at=precision)
    results = jnp.asarray(forward.out, case.dtype), jnp.asarray(forward.lse, jnp.float32)
    gradient = KERNEL.gradient.build(eqn, H200)
    run = jax.jit(gradient) if how.get("traced") else gradient

    def once() -> list[Any]:
        reset_interpreter()
        found = run([jnp.asarray(x) for x in operands], results, (jnp.asarray(dout), jnp.asarray(dlse)))
        found = [None if x is None else np.asarray(x) for x in found]
        assert not mosaic_races(), "RACE DETECTED"
        return found

    found = once()
    if how.get("twice"):
        assert all(np.array_equal(x, y) for x, y in zip(found, once(), strict=True) if x is not None), "bits differ"
    right = expected_gradients(op, operands, dout, dlse)
    assert sorted(right) == [i for i, x in enumerate(found) if x is not None], "gradients of real operands alone"
    for i in right:
        assert (found[i].shape, found[i].dtype) == (operands[i].shape, operands[i].dtype)
    measured = {right[i].what: right[i].compare(found[i]) for i in right}
    return {
        "wrong": "; ".join(m.reason for m in measured.values() if not m.ok),
        "ratios": {name: round(m.ratio, 3) for name, m in measured.items()},
        "blind": int(np.isneginf(forward.lse).sum()),
    }


MODULES = ("pairs", "meetings", "inflight", "by_keys", "by_queries")


def mutated(edits: Mapping[str, str]) -> Any:
    """The kernels of copies of their modules with lines replaced; each line must occur once among them all."""
    package = "tfc.backends.pallas_gpu"
    lines = {name: inspect.getsource(sys.modules[f"{package}.{name}"]).splitlines() for name in MODULES}
    for line, other in edits.items():
        at = [(name, i) for name in MODULES for i, x in enumerate(lines[name]) if x.strip() == line]
        if len(at) != 1:
            raise LookupError(f"the kernels have {len(at)} lines `{line}`")
        ((name, i),) = at
        lines[name][i] = lines[name][i].replace(line, other)
    for name in MODULES:  # a copy sees copies of the modules before it
        text = "\n".join(lines[name])
        for before in MODULES:
            text = text.replace(f"from {package}.{before} import", f"from mutant_{before} import")
        module = sys.modules[f"mutant_{name}"] = ModuleType(f"mutant_{name}")
        exec(compile(text, f"mutant_{name}", "exec"), module.__dict__)
    return {"q": sys.modules["mutant_by_queries"].launch, "k": sys.modules["mutant_by_keys"].launch}
