"""Laws of passes on drawn programs: what comes out verifies, exact passes keep values and gradients, maps lead back."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfc.backends.reference.program import evaluate
from tfc.ir.op import promote
from tfc.ir.ops import Attention, FeedForward, Linear, Mix, Op, Recurrence, Reduction, Repeat, Route, Scores
from tfc.ir.param_map import IDENTITY, Add, MatVec, ParamMap, ScaleRows, Source, Sub, UnscaleRows, parts, substitute
from tfc.ir.param_map import Expr as ParamExpr
from tfc.ir.program import Precision, Program
from tfc.ir.text import show
from tfc.ir.types import DType, TensorType
from tfc.ir.verify import verify
from tfc.params.apply import failing_guards, pack, unpack
from tfc.passes.base import Contract
from tfc.passes.dead_code import DeadCode
from tfc.passes.pipeline import DEFAULT, run
from tfc.passes.precision import Precision as PrecisionPass
from tfc.testing.programs import LENGTHS, programs

EXACT = [p for p in DEFAULT if p.contract is Contract.EXACT]
SEEDS = st.integers(0, 2**31 - 1)
Tree = dict[str, jax.Array]


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def parameters(program: Program, seed: int) -> Tree:
    """An array for each parameter, no element of which is 0."""
    rng = np.random.default_rng(seed)
    sizes = {s.path: s.type.ints for s in program.stored()}
    return {path: jnp.asarray(rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n)) for path, n in sizes.items()}


def inputs(seed: int) -> Mapping[str, jax.Array]:
    rng = np.random.default_rng(seed + 1)
    b, t = LENGTHS["B"], LENGTHS["T"]
    return {
        "x": jnp.asarray(rng.standard_normal((b, t, 4))),
        "real": jnp.asarray(rng.integers(0, 2, (b, t)).astype(bool)),
        "ids": jnp.asarray(rng.integers(0, 5, (b, t)), jnp.int32),
    }


def judged(program: Program, map: ParamMap, params: Tree, seed: int) -> tuple[tuple[jax.Array, ...], Tree]:
    """The results, and the gradients of a random sum of them by the parameters as they were before the map."""
    bound = program.bind(LENGTHS)
    out, pull = jax.vjp(lambda p: evaluate(bound, pack(map, p), inputs(seed), jnp.float64), params)
    rng = np.random.default_rng(seed + 2)
    (gradients,) = pull(tuple(jnp.asarray(rng.standard_normal(y.shape)) for y in out))
    return out, gradients


def close(a: Any, b: Any) -> None:
    """Equal to float64 rounding, in units of the largest element."""
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10 * float(1 + jnp.max(jnp.abs(b), initial=0)))


@settings(max_examples=settings().max_examples // 3)  # each runs half a dozen programs
@given(program=programs(depth=1), seed=SEEDS)
def test_exact_passes_keep_the_function(program: Program, seed: int):
    """Values after each pass alone; after the pipeline also gradients, by the parameters as they were before it."""
    verify(program)
    params = parameters(program, seed)
    values, gradients = judged(program, IDENTITY, params, seed)
    for step in EXACT:
        done = step(program)
        if done.program != program:
            verify(done.program, after=step.name)
            found = evaluate(done.program.bind(LENGTHS), pack(done.map, params), inputs(seed), jnp.float64)
            for a, b in zip(found, values, strict=True):
                close(a, b)
    last = run(program)
    found, back = judged(last.program, last.map, params, seed)
    for a, b in zip(found, values, strict=True):
        close(a, b)
    for path in params:
        close(back[path], gradients[path])


@pytest.mark.parametrize("step", [p for p in EXACT if p.name not in ("analyse-tiles", "roll")], ids=lambda p: p.name)
def test_the_law_is_not_vacuous(step: Any):
    """Each pass finds work, beyond what is dead, in a fifth of the drawn programs, and holds back in some. No layer is
    drawn four times over: what rolls them has programs of its own."""
    changed = held = 0

    @given(program=programs(depth=1))
    @settings(max_examples=120)
    def count(program: Program) -> None:
        nonlocal changed, held
        alive = program if step.name == "dead-code" else DeadCode()(program).program
        done = step(alive)
        changed += done.program != alive
        held += any(n.held for n in done.notes)

    count()
    assert changed >= 24
    assert held >= 5 or step.name == "dead-code"


@given(program=programs(), seed=SEEDS)
def test_maps_lead_back(program: Program, seed: int):
    """pack gives what the last program stores, and what is kept; unpack gives the parameters again: the same bits where
    no map computes, to rounding elsewhere."""
    done = run(program)
    params = parameters(program, seed)
    assert failing_guards(done.map, params) == ()
    packed = pack(done.map, params)
    assert packed.keys() == done.map.after(params.keys())
    assert packed.keys() == {s.path for s in done.program.stored()} | done.map.kept
    for s in done.program.stored():
        assert packed[s.path].shape == s.type.ints
    back = unpack(done.map, packed)
    assert back.keys() == params.keys()
    for path, x in params.items():
        if moved(done.map, path):
            np.testing.assert_array_equal(back[path], x)
        else:
            close(back[path], x)


def moved(map: ParamMap, path: str) -> bool:
    """Whether the way there and back only moves what the parameter holds."""
    back = map.backward.get(path, Source(path))
    through = substitute(back, map.forward)
    return not any(isinstance(e, ScaleRows | UnscaleRows | MatVec | Add | Sub) for e in inside(through))


def inside(expr: ParamExpr) -> Iterator[ParamExpr]:
    yield expr
    for part in parts(expr):
        yield from inside(part)


@given(
    asked=st.sampled_from([(DType.BF16, DType.F32), (DType.F16, DType.F32), (DType.BF16, DType.BF16)]), data=st.data()
)
def test_precision_only_casts(asked: tuple[DType, DType], data: st.DataObject):
    """In float64, where a cast changes nothing, the program computes the same bits; and every operand is as asked."""
    compute, reduce = asked
    program = data.draw(programs(depth=1, precision=Precision(DType.F32, compute, reduce)))
    done = PrecisionPass()(program)
    verify(done.program, after="precision")
    assert done.map == IDENTITY and done.program.stored() == program.stored()
    for op, types in operands(done.program):
        match op:
            case Linear() | FeedForward() | Scores():
                wanted = compute
            case Attention():
                wanted, types = compute, types[:3]
            case Recurrence(decay=decay):
                assert decay == "none" or types[3].dtype is promote([types[3].dtype, reduce])
                wanted, types = compute, types[:3]
            case Route():
                wanted, types = compute, types[:1]
            case Mix():
                wanted, types = compute, types[1:]
            case Reduction():  # or wider, where what is reduced is
                assert types[0].dtype is promote([types[0].dtype, reduce])
                continue
            case Repeat(carries=carries):
                wanted, types = compute, types[:carries]
            case _:
                continue
        assert all(t.dtype is wanted for t in types if t.dtype.floating), (op, types)
    params = parameters(program, 0)
    before = evaluate(program.bind(LENGTHS), params, inputs(0), jnp.float64)
    after = evaluate(done.program.bind(LENGTHS), params, inputs(0), jnp.float64)
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)


def operands(program: Program) -> Iterator[tuple[Op, list[TensorType]]]:
    """Every equation's operation and its operands' types, bodies' too."""
    for eqn in program.eqns:
        yield eqn.op, [a.type for a in eqn.args]
        if isinstance(eqn.op, Repeat | Route):
            yield from operands(eqn.op.body)


@given(program=programs())
def test_one_precision_changes_nothing(program: Program):
    """The limit at which the approximate pass is exact."""
    assert PrecisionPass()(program).program is program


@given(program=programs())
def test_a_second_run_finds_nothing(program: Program):
    """The pipeline on its own result: the fused and merged forms hold nothing more to fuse or merge."""
    once = run(program)
    assert show(run(once.program).program) == show(once.program)


@given(program=programs(), data=st.data())
def test_what_is_held_stays(program: Program, data: st.DataObject):
    """A site in `hold` is noted as held, and its guard is gone."""
    done = run(program)
    if not done.map.guards:
        return
    site = data.draw(st.sampled_from(sorted(g.site for g in done.map.guards)))
    held = run(program, hold=frozenset([site]))
    assert site in {n.site for n in held.notes if n.held}
    assert {g.site for g in held.map.guards} == {g.site for g in done.map.guards} - {site}
