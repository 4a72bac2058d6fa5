"""Every kernel of attention that a spec of the zoo runs on an H200 compiles without one, and nothing spills."""

import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

import tfc
from tfc import aot
from tfc.backends.emit import Emitted, emit
from tfc.backends.kernel import DTYPES, Late
from tfc.backends.pallas_gpu import attention, backward, decode
from tfc.backends.table import named
from tfc.diagnostics import TfcError
from tfc.explain import lengths_of
from tfc.front import front
from tfc.ir.ops import Attention, CacheRead
from tfc.ir.program import Eqn, Program
from tfc.ir.types import TensorType
from tfc.passes.decode import tokens_of
from tfc.targets import resolve

H200 = resolve("h200")
ROWS, TOKENS = 2, 8192
"""Lengths that a spec leaves open: of the batch, and all others, those of caches too."""
LONGER = {"sparse/moba.tfm": 65_536}
"""Of a spec that chooses among blocks of 4096."""
SHARES = 4
"""Into so many tests each kind is dealt, so that workers share the work."""


SPILLING = {
    ("forward", "linear/transnormer.tfm"): 16,
    ("forward", "softmax/pgqa.tfm"): 88,
    ("forward", "softmax/dgqa.tfm"): 88,
    ("backward", "softmax/pgqa.tfm"): 32,
    ("backward", "softmax/dgqa.tfm"): 32,
    ("backward", "sparse/clear.tfm"): 8,
    ("backward", "sparse/lra_local.tfm"): 8,
    ("backward", "sparse/masformer.tfm"): 92,
    ("backward", "sparse/sparse_transformer.tfm"): 168,
}
"""Of a thread, the most bytes of registers that a kernel is known to keep in memory: three consumers and keys that end
within a tile, or a mask with divisions, at 64; every other keeps none."""


@dataclass(frozen=True)
class Compilation:
    """A kernel to compile for an equation. spec: the first that runs it. like: the first whose kernel has the same
    configuration. kept: keys and values are rows of a cache."""

    kind: str
    spec: str
    like: str
    eqn: Eqn
    kept: bool = False


def forward_of(eqn: Eqn, kept: bool) -> Hashable:
    """What decides on the code of the kernel that gives results, but for lengths; and whether tiles are whole."""
    if decode.refuse(eqn, H200) is None:
        plan = decode.plan_of(eqn, H200)
        return "cached", plan.config, plan.splits > 1, *_common(eqn, plan.config.block_k, kept)
    config = attention.config_of(eqn, H200)
    return "streaming", config, eqn.args[0].type.ints[1] % config.block_q == 0, *_common(eqn, config.block_k, kept)


def backward_of(eqn: Eqn) -> Hashable:
    """The same of the kernels that give gradients."""
    configs = backward.configs_of(eqn, H200)
    whole = tuple(eqn.args[0].type.ints[1] % x == 0 for c in configs.values() for x in (c.rows, c.columns))
    return tuple(configs.items()), whole, *_common(eqn, max(c.columns for c in configs.values()), False)


def _common(eqn: Eqn, block_k: int, kept: bool) -> tuple[Hashable, ...]:
    op, (q, k, v, *captured) = eqn.op, (a.type for a in eqn.args)
    assert isinstance(op, Attention)
    sizes = q.last, v.last, q.dtype, q.shape[2] == k.shape[2], k.ints[1] % block_k == 0
    return op.score, op.mask, op.weigh, sizes, kept, tuple((x.rank, x.dtype) for x in captured)


def forms(folder: Path) -> Iterator[tuple[str, bool, Emitted]]:
    """Each spec as it is called at once; and, where it has such a form, token by token."""
    for file in sorted(folder.rglob("*.tfm")):
        name = file.relative_to(folder).as_posix()
        yield name, False, emit(front(file).result.program, H200)
        try:
            yield name, True, tfc.compile(file, target="h200").decoder.form()
        except TfcError as error:
            assert [d.code for d in error.diagnostics] == ["E816"], error


def lengths(spec: str, program: Program, stepping: bool) -> dict[str, int]:
    names = lengths_of(program)
    found = {name: LONGER.get(spec, TOKENS) if i else ROWS for i, name in enumerate(names)}
    tokens = tokens_of(program) if stepping else None
    if tokens is not None:
        (new,) = tokens.type.shape[1].names  # type: ignore[union-attr]  # a decoding form leaves this length open
        found[new] = 1
    return found


def compilations(folder: Path, every: bool) -> Iterator[Compilation]:
    """Of each kind of kernel every distinct configuration once. every: each equation that is another, whatever it
    shares."""
    seen: set[Hashable] = set()
    likes: dict[Hashable, str] = {}
    for spec, stepping, emitted in forms(folder):
        bound = emitted.plan(lengths(spec, emitted.program, stepping))
        reads = {out for row in bound if isinstance(row.eqn.op, CacheRead) for out in row.eqn.outs}
        for row in bound:
            eqn = row.eqn
            if not isinstance(eqn.op, Attention) or row.kernel != "pallas_gpu":
                continue
            kept = stepping and eqn.args[1] in reads
            kinds = {"decode" if stepping else "forward": forward_of(eqn, kept)}
            if not stepping and backward.refuse(eqn, H200) is None:
                kinds["backward"] = backward_of(eqn)
            for kind, key in kinds.items():
                like = likes.setdefault((kind, key), spec)
                distinct = (kind, (eqn.op, tuple(a.type for a in eqn.args), kept)) if every else (kind, key)
                if distinct not in seen:
                    seen.add(distinct)
                    yield Compilation(kind, spec, like, eqn, kept)


@pytest.fixture(scope="module")
def found(zoo: Path, request: pytest.FixtureRequest) -> list[Compilation]:
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")
    deep = request.config.getoption("--hypothesis-profile") or os.environ.get("TFC_PROFILE")
    return list(compilations(zoo, every=deep == "deep"))


def shape(t: TensorType) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(t.ints, DTYPES[t.dtype])


def compiled(one: Compilation) -> aot.Compiled:
    eqn, shapes = one.eqn, [shape(a.type) for a in one.eqn.args]
    kernel = named(Attention, "pallas_gpu")
    assert kernel is not None and kernel.gradient is not None
    if one.kind == "backward":
        results = [shape(o.type) for o in eqn.outs]
        run: Callable[..., Any] = kernel.gradient.build(eqn, H200)
        return aot.compile_for("h200", lambda *x: [y for y in run(*x) if y is not None], shapes, results, results)
    built = kernel.build(eqn, H200)
    if not one.kept:
        return aot.compile_for("h200", built, *shapes)
    for i in (1, 2):
        shapes[i] = jax.ShapeDtypeStruct((3, *shapes[i].shape), shapes[i].dtype)

    def step(q: Any, k: Any, v: Any, row: Any, *captured: Any) -> Any:
        return built(q, Late(k, row, k.dtype), Late(v, row, v.dtype), *captured)

    return aot.compile_for("h200", step, *shapes[:3], jax.ShapeDtypeStruct((), "int32"), *shapes[3:])


@pytest.mark.aot
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("kind", ["forward", "backward", "decode"])
def test_every_configuration_of_the_zoo_compiles_and_keeps_to_registers(
    kind: str, share: int, found: list[Compilation]
) -> None:
    mine = [one for one in found if one.kind == kind][share::SHARES]
    assert mine
    wrong = []
    for one in mine:
        done = compiled(one)
        assert isinstance(one.eqn.op, Attention) and any(call.startswith("mosaic_gpu") for call in done.calls), one
        print(
            f"{one.spec}: {one.eqn.args[0].type} {one.eqn.args[2].type} {one.eqn.op.score}, {one.eqn.op.mask}, "
            f"{one.eqn.op.weigh}: {done.seconds:.1f} s, {[k.registers for k in done.kernels]} registers"
        )
        most = SPILLING.get((kind, one.like), 0)
        wrong += [f"{one.spec}: {k}" for k in done.kernels if max(k.spill_stores, k.spill_loads, k.stack) > most]
    assert not wrong, "\n".join(wrong)


@pytest.mark.aot
def test_the_zoo_has_many(found: list[Compilation]) -> None:
    """And what is left out is left out because another spec's is the same."""
    counts = {kind: sum(one.kind == kind for one in found) for kind in ("forward", "backward", "decode")}
    print(counts)
    assert {(one.kind, one.like) for one in found} >= set(SPILLING)
    assert counts["forward"] >= 35 and counts["backward"] >= 25 and counts["decode"] >= 15
