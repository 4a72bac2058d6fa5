"""The two ways to decide what dropout means: gone, or with a seed that reaches every loop; and attention with it."""

from tfc.front import front
from tfc.ir.dropout import drops
from tfc.ir.ops import Attention, Dropout, Mix, Repeat, Route
from tfc.ir.param_map import IDENTITY
from tfc.ir.program import Eqn, Program
from tfc.ir.text import parse, show
from tfc.ir.verify import verify
from tfc.passes import pipeline
from tfc.passes.fuse_attention import FuseAttention
from tfc.passes.no_dropout import NoDropout
from tfc.passes.seed_dropout import SeedDropout

LOOPS = """
program p(%x: f32[B, T, 4]) {
  %d: f32[B, T, 4] = dropout(rate=0.5, path=dropout) %x
  %y: f32[B, T, 4] = repeat(count=2, label=outer, carries=1) %d
    program outer(%outer: int[], %x: f32[B, T, 4]) {
      %seed: f32[4] = param dropout.seed ones
      %y: f32[B, T, 4] = repeat(count=3, label=inner, carries=1) %x
        program inner(%inner: int[], %dropout.seed: f32[B, T, 4]) {
          %d: f32[B, T, 4] = dropout(rate=0.25, path=outer.inner.dropout) %dropout.seed
          report kept = %d
          return %d
        }
      %z: f32[B, T, 4] = mul %y, %seed
      return %z
    }
  return %y
}
""".replace("%y: f32[B, T, 4] = repeat(count=3", "%y: f32[B, T, 4], %k: f32[3, B, T, 4] = repeat(count=3")


def loops() -> Program:
    program = parse(LOOPS)
    verify(program)
    return program


def dropouts(program: Program, around: tuple[Eqn, ...] = ()) -> list[tuple[Eqn, tuple[Eqn, ...]]]:
    found = [(e, around) for e in program.eqns if isinstance(e.op, Dropout)]
    for eqn, body in program.bodies():
        found += dropouts(body, (*around, eqn))
    return found


def test_nothing_is_left_of_dropout():
    done = NoDropout()(loops())
    verify(done.program)
    assert not drops(done.program) and done.map == IDENTITY
    outer = next(body for _, body in done.program.bodies())
    inner = next(body for _, body in outer.bodies())
    assert inner.eqns == () and inner.results == (inner.inputs[1].value,) == (inner.reports[0][1],)
    assert done.program.eqns[0].args == (done.program.inputs[0].value,)


def test_a_program_without_dropout_stays_the_same():
    program = NoDropout()(loops()).program
    assert NoDropout()(program).program is program
    assert SeedDropout()(program).program is program
    assert pipeline.opening(program) == pipeline.opening(program, seeded=True) == ()


def test_the_seed_reaches_every_loop_with_the_turns_around():
    done = SeedDropout()(loops())
    verify(done.program)
    assert done.map == IDENTITY
    (x, seed) = (i.value for i in done.program.inputs)
    assert (x.name, seed.name, str(seed.type)) == ("x", "dropout.seed", "int[2]")
    (top, _), (deep, (outer, inner)) = dropouts(done.program)
    assert top.args[1:] == (seed,)
    assert isinstance(outer.op, Repeat) and isinstance(inner.op, Repeat)
    body = outer.op.body
    assert outer.args[-1] == seed and inner.args[-2:] == (body.inputs[-1].value, body.inputs[0].value)
    within = inner.op.body.inputs
    # the body has a value of that name already: the seed is called otherwise
    assert [i.value.name for i in within] == ["inner", "dropout.seed", "dropout.seed_2", "dropout.turn"]
    assert deep.args == (within[1].value, within[2].value, within[3].value, within[0].value)
    assert parse(show(done.program)) == done.program


ATTENTION = """
program p(%q: f32[B, T, 2, 4], %k: f32[B, T, 2, 4], %u: f32[2], %seed: int[2], %turn: int[]) {
  %s: f32[B, 2, T, T] = scores(scale=0.5) %q, %k
  %z: f32[B, 2, T, T] = score(formula=s * $0[h]) %s, %u
  %w: f32[B, 2, T, T], %lse: f32[B, 2, T] = weigh %z
  %d: f32[B, 2, T, T] = dropout(rate=0.1, path=look.dropout) %w, %seed, %turn
  %y: f32[B, T, 2, 4] = mix %d, %k
  return %y, RESULT
}
"""


def test_attention_takes_the_dropout_of_its_weights():
    program = parse(ATTENTION.replace("RESULT", "%lse"))
    fused = FuseAttention()(program).program
    verify(fused)
    (eqn,) = fused.eqns
    q, k, u, seed, turn = (i.value for i in program.inputs)
    assert isinstance(eqn.op, Attention)
    assert (eqn.op.dropout, eqn.op.site, eqn.op.turns) == (0.1, "look.dropout", 1)
    assert eqn.args == (q, k, k, u, seed, turn)
    assert parse(show(fused)) == fused


def test_attention_holds_back_where_dropped_weights_are_read():
    for result in ("%d", "%w"):
        program = parse(ATTENTION.replace("RESULT", result))
        done = FuseAttention()(program)
        assert any(isinstance(e.op, Mix) for e in done.program.eqns)
        (note,) = done.notes
        assert f"{result} " in note.message and "is also read elsewhere" in note.message


SPEC = """
tfm 1
model m(tokens: int[B, T]) {
  embed word = embed { vocab = 16   width = 8 }
  x = word(tokens)
  repeat 2 as layer {
    x = x + dropout(attention(rms(x), heads = 2, dropout = RATE), RATE)
    x = x + experts(x, 4, chosen = 2, expert = ffn { hidden = 8   projection = linear   act = kept })
  }
  return x
}
block kept(x) { return dropout(gelu(x), RATE) }
"""


def test_a_spec_without_a_key_is_one_without_dropout():
    """Word for word the same program, after the same passes; and a share of 0 writes nothing at all."""
    with_it, without = (front(SPEC.replace("RATE", rate)) for rate in ("0.5", "0"))
    assert drops(with_it.lowered.program) and not drops(without.lowered.program)
    assert show(with_it.program) == show(without.program)
    assert [s.name for s in with_it.result.stages][1] == "no-dropout"
    assert "no-dropout" not in [s.name for s in without.result.stages]


def test_routed_experts_and_attention_get_the_seed():
    lowered = front(SPEC.replace("RATE", "0.5")).lowered.program
    made = pipeline.run(lowered, (*pipeline.opening(lowered, seeded=True), *pipeline.DEFAULT)).program
    (body,) = [e.op.body for e in made.eqns if isinstance(e.op, Repeat)]
    ((look, args),) = [(e.op, e.args) for e in body.eqns if isinstance(e.op, Attention)]
    seed = body.inputs[-1].value
    assert args[-2:] == (seed, body.inputs[0].value) and look.turns == 1
    ((routed, given),) = [(e.op, e.args) for e in body.eqns if isinstance(e.op, Route)]
    assert seed in given
    (inside,) = [e for e in routed.body.eqns if isinstance(e.op, Dropout)]
    assert len(inside.args) == 4  # x, seed, the layer, the copy
    paths = [e.op.path for e, _ in dropouts(made) if isinstance(e.op, Dropout)] + [look.site]
    assert len(set(paths)) == len(paths) == 3
