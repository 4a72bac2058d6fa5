"""The norm as one operation: what it computes beside the equations it stands for, gradients too."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfc.backends.emit import emit
from tfc.backends.kernel import Target
from tfc.front import front
from tfc.ir.ops import Repeat, ResidualNorm
from tfc.ir.param_map import IDENTITY
from tfc.ir.program import Eqn, Program
from tfc.ir.text import parse
from tfc.ir.types import DType
from tfc.ir.verify import verify
from tfc.passes.fuse_norms import FuseNorms
from tfc.passes.pipeline import DEFAULT, choose, run

CPU = Target(name="cpu", platform="cpu")
EXAMPLES = Path(__file__).parents[2] / "examples"


def written(
    dtype: str, reduce: str, *, centered: bool, residual: bool, affine: bool, kept: bool, rounded: bool
) -> Program:
    """A norm as lowering and precision write it: x (and y) in `dtype`, statistics in `reduce`."""
    same = dtype == reduce
    lines = ["%s: f32[8] = param s normal(1.0)", "%b: f32[8] = param b normal(1.0)"]
    lines += ["%two: int[] = constant(value=2, dtype=int)", f"%eps: {reduce}[] = constant(value=1e-05, dtype={reduce})"]
    lines += [f"%z: {dtype}[B, T, 8] = add %x, %y"] if residual else []
    z = "%z" if residual else "%x"
    wide = z if same else "%wide"
    lines += [] if same else [f"%wide: {reduce}[B, T, 8] = cast(dtype={reduce}) {z}"]
    if centered:
        lines += [f"%m: {reduce}[B, T, 1] = reduction(fn=mean) {wide}", f"%c: {reduce}[B, T, 8] = sub {z}, %m"]
    d, squared = ("%c", "%c") if centered else (z, wide)
    lines += [f"%q: {reduce}[B, T, 8] = pow {squared}, %two", f"%v: {reduce}[B, T, 1] = reduction(fn=mean) %q"]
    lines += [f"%e: {reduce}[B, T, 1] = add %v, %eps", f"%r: {reduce}[B, T, 1] = rsqrt %e"]
    lines += [f"%n: {reduce}[B, T, 8] = mul {d}, %r"]
    out = "%n"
    if affine:
        vectors = "%s", "%b"
        if reduce != "f32":
            lines += [f"%s2: {reduce}[8] = cast(dtype={reduce}) %s", f"%b2: {reduce}[8] = cast(dtype={reduce}) %b"]
            vectors = "%s2", "%b2"
        lines += [f"%o: {reduce}[B, T, 8] = mul %n, {vectors[0]}", f"%p: {reduce}[B, T, 8] = add %o, {vectors[1]}"]
        out = "%p"
    if rounded and not same:
        lines.append(f"%low: {dtype}[B, T, 8] = cast(dtype={dtype}) {out}")
        out = "%low"
    results = f"{out}, {z}" if kept else out
    head = f"program p(%x: {dtype}[B, T, 8], %y: {dtype}[B, T, 8]) {{"
    return parse("\n".join([head, *lines, f"return {results}", "}"]))


FORMS = [
    {"centered": True, "residual": True, "affine": True, "kept": True, "rounded": True},
    {"centered": True, "residual": True, "affine": True, "kept": False, "rounded": False},
    {"centered": False, "residual": True, "affine": False, "kept": True, "rounded": True},
    {"centered": False, "residual": False, "affine": True, "kept": False, "rounded": True},
    {"centered": True, "residual": False, "affine": False, "kept": False, "rounded": False},
]


def norms(program: Program) -> list[Eqn]:
    """Every norm, those of loops' bodies too."""
    out: list[Eqn] = []
    for eqn in program.eqns:
        out += [eqn] if isinstance(eqn.op, ResidualNorm) else []
        out += norms(eqn.op.body) if isinstance(eqn.op, Repeat) else []
    return out


def computed(program: Program, dtype: DType) -> tuple[Any, Any]:
    """Results and gradients by parameters and inputs, as XLA computes them on this machine."""
    rng = np.random.default_rng(3)
    kind = {DType.BF16: jnp.bfloat16, DType.F32: jnp.float32}[dtype]
    params = {p: jnp.asarray(rng.standard_normal(8), jnp.float32) for p in ("s", "b")}
    inputs = {n: jnp.asarray(rng.standard_normal((2, 3, 8)) + 0.5, kind) for n in ("x", "y")}
    outs, pull = jax.vjp(jax.jit(lambda p, i: emit(program, CPU)(p, i)), params, inputs)
    return outs, pull(tuple(jnp.asarray(rng.standard_normal(o.shape), o.dtype) for o in outs))


@pytest.mark.parametrize("types", [("f32", "f32"), ("bf16", "f32"), ("bf16", "bf16")], ids="-".join)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(k for k, v in f.items() if v))
def test_the_norm_is_what_was_written_out(types: tuple[str, str], form: dict[str, bool]):
    before = written(*types, **form)
    done = FuseNorms()(before)
    verify(done.program)
    assert done.map == IDENTITY and done.program.params == before.params and not done.notes
    (eqn,) = norms(done.program)
    assert isinstance(eqn.op, ResidualNorm)
    assert (eqn.op.centered, eqn.op.residual, eqn.op.scaled) == (form["centered"], form["residual"], form["affine"])
    assert eqn.op.keeps == (form["kept"] and form["residual"])
    dtype = {str(d): d for d in DType}[types[0]]
    (old, old_gradients), (new, new_gradients) = computed(before, dtype), computed(done.program, dtype)
    # the same operations on the same types: in bf16 one of them may fall to the other side of a rounding
    unit = 2.0**-22 if types == ("f32", "f32") else 2.0**-8
    for a, b in zip(jax.tree.leaves((new, new_gradients)), jax.tree.leaves((old, old_gradients)), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=2 * unit * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_values_are_the_same_bits(dtype: str):
    """Of the forward pass: the steps of the written-out norm, in their order and types, and jit rounds none of them."""
    before = written(dtype, "f32", **FORMS[0])
    after = FuseNorms()(before).program
    rng = np.random.default_rng(5)
    kind = jnp.bfloat16 if dtype == "bf16" else jnp.float32
    params = {p: jnp.asarray(rng.standard_normal(8), jnp.float32) for p in ("s", "b")}
    inputs = {n: jnp.asarray(rng.standard_normal((2, 3, 8)), kind) for n in ("x", "y")}
    for a, b in zip(emit(after, CPU)(params, inputs), emit(before, CPU)(params, inputs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("spec", "found"), [("minilm", 3), ("zoo/softmax/llama3", 3), ("zoo/softmax/gemma2", 9), ("gpt2_block", 3)]
)
def test_norms_of_models_are_found(spec: str, found: int):
    result = front(EXAMPLES / f"{spec}.tfm").result
    assert len(norms(result.program)) == found
    assert not [n for n in result.notes if n.site.startswith("fuse-norms")]


def test_what_is_asked_for_is_held():
    before = written("f32", "f32", **FORMS[0])
    done = FuseNorms()(before, frozenset(["fuse-norms:s"]))
    assert done.program == before
    assert [str(n) for n in done.notes] == ["fuse-norms:s: held back: asked to"]


def test_a_sum_that_two_norms_are_of_belongs_to_the_first():
    lines = ["%z: f32[B, T, 8] = add %x, %x", "%two: int[] = constant(value=2, dtype=int)"]
    for n in "ab":
        lines += [
            f"%q{n}: f32[B, T, 8] = pow %z, %two", f"%m{n}: f32[B, T, 1] = reduction(fn=mean) %q{n}",
            f"%e{n}: f32[B, T, 1] = add %m{n}, %two", f"%r{n}: f32[B, T, 1] = rsqrt %e{n}",
            f"%n{n}: f32[B, T, 8] = mul %z, %r{n}",
        ]  # fmt: skip
    program = parse("\n".join(["program p(%x: f32[B, T, 8]) {", *lines, "return %na, %nb", "}"]))
    done = FuseNorms()(program).program
    verify(done)
    assert [(str(o), len(e.args)) for e in done.eqns for o in e.outs] == [("%na", 2), ("%z", 2), ("%nb", 1)]


def test_precision_takes_a_norm_as_it_is():
    """All passes again, of what they gave; and with casts after the norm instead of before it, of operands alone."""
    sets = {"compute": "bf16"}
    once = front(EXAMPLES / "minilm.tfm", sets).result.program
    assert norms(run(once).program) == norms(once) != []
    names = [p.name for p in DEFAULT if p.name not in ("precision", "fuse-norms")]
    lowered = front(EXAMPLES / "minilm.tfm", sets).result.after("lower")
    late = run(lowered, choose([*names, "fuse-norms", "precision"])).program
    verify(late)
    assert len(norms(late)) == 3
    for eqn in norms(late):
        assert all(a.type.dtype is eqn.args[0].type.dtype for a in eqn.args[:2])
        assert isinstance(eqn.op, ResidualNorm) and eqn.op.reduce is DType.F32
