"""The order and its reasons, verification after each pass, names, and the table in the README."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from tfc.diagnostics import TfcError
from tfc.ir.ops import Attention, FeedForward, Op, Repeat, ResidualNorm
from tfc.ir.program import Program
from tfc.ir.text import parse, show
from tfc.ir.types import DType, IRError
from tfc.passes import pipeline
from tfc.passes.base import Contract, Pass, Rewritten
from tfc.passes.compress_keys import CompressKeys
from tfc.passes.decode import Decode
from tfc.passes.factorize import Factorize
from tfc.passes.hash_attention import HashAttention
from tfc.passes.no_dropout import NoDropout
from tfc.passes.pipeline import BY_NAME, DEFAULT, choose, run
from tfc.passes.seed_dropout import SeedDropout
from tfc.passes.unroll import Unroll

ROOT = Path(__file__).parents[2]


def program(*lines: str, result: str = "%y", precision: str = "") -> Program:
    return parse("\n".join(["program p(%x: f32[B, T, 4]) {", precision, *lines, f"return {result}", "}"]))


def ops(program: Program) -> list[Op]:
    return [op for e in program.eqns for op in (e.op, *(ops(e.op.body) if isinstance(e.op, Repeat) else []))]


NORM = ("%s: f32[4] = param n.scale ones", "%b: f32[4] = param n.bias zeros")
NORMED = ("%m: f32[B, T, 4] = mul %x, %s", "%n: f32[B, T, 4] = add %m, %b")
BF16 = "precision(params=f32, compute=bf16, reduce=f32)"


def maps(*names: str, out: int = 4, biased: str = "") -> tuple[str, ...]:
    """Linear maps of %n called %q, ..., and their parameters."""
    lines: list[str] = []
    for n in names:
        lines.append(f"%w{n}: f32[4, {out}] = param look.{n}.weight ones")
        if n in biased:
            lines.append(f"%b{n}: f32[{out}] = param look.{n}.bias zeros")
    for n in names:
        lines.append(f"%{n}: f32[B, T, {out}] = linear %n, %w{n}" + (f", %b{n}" if n in biased else ""))
    return tuple(lines)


FFN = (
    *maps("u", "g"),
    "%c: f32[] = constant(value=0.3, dtype=f32)",
    "%gc: f32[B, T, 4] = mul %g, %c",
    "%h: f32[B, T, 4] = mul %gc, %u",
    "%d: f32[4, 4] = param look.d.weight ones",
    "%y: f32[B, T, 4] = linear %h, %d",
)
RENAMED = ("%zero: f32[] = constant(value=0.0, dtype=f32)", "%n: f32[B, T, 4] = add %x, %zero")


def merged(after: Program) -> bool:
    return "look.qk.weight" in {p.path for p in after.params}


def has(kind: type[Op]) -> Callable[[Program], bool]:
    return lambda after: any(isinstance(op, kind) for op in ops(after))


def read_nothing_of_norm(after: Program) -> bool:
    return "n.scale" not in {p.path for p in after.params}


RMS = (
    "%eps: f32[] = constant(value=0.1, dtype=f32)", "%sq: f32[B, T, 4] = mul %x, %x",
    "%ms: f32[B, T, 1] = reduction(fn=mean) %sq", "%sh: f32[B, T, 1] = add %ms, %eps",
    "%rt: f32[B, T, 1] = rsqrt %sh", "%m: f32[B, T, 4] = mul %x, %rt", "%n: f32[B, T, 4] = mul %m, %s",
)  # fmt: skip


def rounds_its_norm(after: Program) -> bool:
    """There is a norm, and it gives what the linear map after it reads."""
    return [op.dtype for op in ops(after) if isinstance(op, ResidualNorm)] == [DType.BF16]


QK = "%y: f32[B, T, 4] = mul %q, %k"


def layers(*dead: str) -> tuple[str, ...]:
    """Four equal layers, the second of which has more equations."""
    params = [f"%w{n}: f32[4, 4] = param layer.{n}.weight ones" for n in range(4)]
    eqns = [f"%x{n}: f32[B, T, 4] = linear %x{n - 1 if n else ''}, %w{n}" for n in range(4)]
    return (*params, *eqns[:2], *dead, *eqns[2:])


REASONS = {
    ("dead-code", "roll"): (program(*layers("%dead: f32[B, T, 4] = abs %x1"), result="%x3"), lambda p: has(Repeat)(p)),
    ("dead-code", "fold-norms"): (
        program(*NORM, *NORMED, *maps("q"), "%dead: f32[B, T, 4] = abs %n", result="%q"),
        read_nothing_of_norm,
    ),
    ("fold-norms", "fuse-ffn"): (
        program(
            *NORM, *NORMED, *maps("u"), "%h: f32[B, T, 4] = tanh %u", "%d: f32[4, 4] = param look.d.weight ones",
            "%e: f32[4] = param look.d.bias ones", "%y: f32[B, T, 4] = linear %h, %d, %e",
        ),
        has(FeedForward),
    ),
    ("fold-norms", "merge-projections"): (program(*NORM, *NORMED, *maps("q", "k", biased="q"), QK), merged),
    ("fuse-ffn", "merge-projections"): (program(*RENAMED, *FFN), has(FeedForward)),
    ("fold-norms", "fuse-norms"): (program(NORM[0], *RMS, *maps("q"), result="%q"), read_nothing_of_norm),
    ("precision", "fuse-norms"): (
        program(NORM[0], *RMS, *maps("q"), result="%q", precision=BF16), rounds_its_norm,
    ),
    ("merge-projections", "precision"): (program(*RENAMED, *maps("q", "k"), QK, precision=BF16), merged),
}  # fmt: skip


@pytest.mark.parametrize("pair", REASONS, ids=" ".join)
def test_each_neighbour_has_its_reason(pair: tuple[str, str]):
    """In the default order the program gets something that it does not get with the two exchanged."""
    before, gained = REASONS[pair]
    names = [p.name for p in DEFAULT]
    assert names.index(pair[0]) < names.index(pair[1])
    first, second = (names.index(n) for n in pair)
    names[first], names[second] = names[second], names[first]
    assert gained(run(before).program)
    assert not gained(run(before, choose(names)).program)


def test_tiles_are_analysed_of_fused_attentions():
    lines = (
        "%h: f32[B, T, 2, 2] = reshape(shape=[B, T, 2, 2]) %x",
        "%s: f32[B, 2, T, T] = scores(scale=1.0) %h, %h",
        "%w: f32[B, 2, T, T], %l: f32[B, 2, T] = weigh %s",
        "%y: f32[B, T, 2, 2] = mix %w, %h",
    )
    result = run(program(*lines))
    assert any(isinstance(op, Attention) for op in ops(result.program))
    assert [str(n) for n in result.notes] == ["analyse-tiles:y: no mask: every tile is visited"]


def test_every_pass_has_a_reason_for_its_place():
    placed = {name for pair in REASONS for name in pair} | {"fuse-attention", "analyse-tiles"}
    assert placed == {p.name for p in DEFAULT} <= BY_NAME.keys()


def test_layers_are_rolled_before_norms_are_folded():
    """Else each layer would say, and ask for, what one of them does."""
    lines = [f"%s{n}: f32[4] = param layer.{n}.scale ones" for n in range(4)]
    lines += [f"%w{n}: f32[4, 4] = param layer.{n}.weight ones" for n in range(4)]
    for n in range(4):
        lines += [f"%n{n}: f32[B, T, 4] = mul %x{n or ''}, %s{n}", f"%x{n + 1}: f32[B, T, 4] = linear %n{n}, %w{n}"]
    before = program(*lines, result="%x4")
    names = [p.name for p in DEFAULT]
    late = [n for n in names if n != "roll"]
    late.insert(late.index("fold-norms") + 1, "roll")
    assert {g.site for g in run(before).map.guards} == {"fold-norms:layer.scale"}
    assert len(run(before).map.guards) == 4, "one of each layer's parameter, all for one site"
    assert len({g.site for g in run(before, choose(late)).map.guards}) == 4


@dataclass(frozen=True)
class Careless:
    """Drops every equation."""

    name: ClassVar[str] = "careless"
    contract: ClassVar[Contract] = Contract.EXACT

    def __call__(self, program: Program, hold: frozenset[str] = frozenset(), /) -> Rewritten:
        return Rewritten(replace(program, eqns=()))


def test_a_pass_that_breaks_a_program_is_named():
    with pytest.raises(IRError, match=r"^after careless: result of p: %y is used before it is bound"):
        run(program("%y: f32[B, T, 4] = abs %x"), [Careless()])


def test_a_broken_program_is_lowerings_fault():
    with pytest.raises(IRError, match=r"^after lowering: p has no results"):
        run(replace(program(result="%x"), results=()))


def test_stages_are_the_program_after_each_pass():
    before = program(*RENAMED, *FFN)
    result = run(before)
    assert [s.name for s in result.stages] == ["lower", *(p.name for p in DEFAULT)]
    assert result.after("lower") is before
    assert result.after("analyse-tiles") is result.program
    assert not any(isinstance(op, FeedForward) for op in ops(result.after("fuse-attention")))
    assert any(isinstance(op, FeedForward) for op in ops(result.after("fuse-ffn")))


def test_an_unknown_pass_is_refused():
    with pytest.raises(TfcError) as e:
        choose(["fuse-atention"])
    assert str(e.value) == "error[E810]: no pass is called `fuse-atention`\nhelp: did you mean `fuse-attention`?"
    with pytest.raises(TfcError) as e:
        run(program(result="%x"), choose(["dead-code"])).after("xyz")
    assert str(e.value) == "error[E810]: no pass is called `xyz`\nhelp: there are lower, dead-code"


def test_names_are_as_users_write_them():
    for step in DEFAULT:
        assert isinstance(step, Pass)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", step.name)
        module = type(step).__module__
        assert module == f"tfc.passes.{step.name.replace('-', '_')}"


ON_REQUEST = (NoDropout(), SeedDropout(), Factorize(1), CompressKeys(1), HashAttention(), Decode(), Unroll())
"""What no default order runs."""


def test_every_file_is_a_pass_or_a_tool():
    tools = {"__init__", "base", "rewrite", "repetition", "observe", "pipeline"}
    found = {f.stem for f in (ROOT / "passes").glob("*.py")} - tools
    assert found == {p.name.replace("-", "_") for p in (*DEFAULT, *ON_REQUEST)}


def test_the_readme_lists_the_pipeline():
    """One row a pass, in the order of the pipeline, with its contract."""
    text = (ROOT / "passes" / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    listed = (*DEFAULT, *ON_REQUEST)
    assert [row[0].strip("`") for row in rows] == [p.name for p in listed]
    assert [re.split(r"\W", row[2])[0] for row in rows] == [str(p.contract) for p in listed]


def test_nothing_is_shared_between_runs():
    """Passes keep no state: the same program gives the same text again."""
    before = program(*NORM, *NORMED, *maps("q", "k"), QK)
    assert show(run(before).program) == show(run(before).program)
    assert pipeline.DEFAULT is DEFAULT
