"""The passes in their order, each neighbour with its reason; a program through all of them, verified after each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tfc.diagnostics import Diagnostic, TfcError, closest
from tfc.ir.dropout import drops
from tfc.ir.param_map import IDENTITY, ParamMap
from tfc.ir.program import Program
from tfc.ir.verify import Known, verify
from tfc.passes.analyse_tiles import AnalyseTiles
from tfc.passes.base import Note, Pass
from tfc.passes.compress_keys import CompressKeys
from tfc.passes.dead_code import DeadCode
from tfc.passes.factorize import Factorize
from tfc.passes.fold_norms import FoldNorms
from tfc.passes.fuse_attention import FuseAttention
from tfc.passes.fuse_ffn import FuseFfn
from tfc.passes.fuse_norms import FuseNorms
from tfc.passes.hash_attention import HashAttention
from tfc.passes.merge_projections import MergeProjections
from tfc.passes.no_dropout import NoDropout
from tfc.passes.precision import Precision
from tfc.passes.roll import Roll
from tfc.passes.seed_dropout import SeedDropout
from tfc.passes.unroll import Unroll

__all__ = ["BY_NAME", "DEFAULT", "Result", "Stage", "choose", "opening", "run"]

DEFAULT: tuple[Pass, ...] = (
    # first: a reader that itself is read by nothing would hold the others back
    DeadCode(),
    # before all that looks at layers, which then looks at one of them; what it says and asks for, it says once
    Roll(),
    # before what takes linear maps up: it knows them as readers of a norm, and gives a bias to all readers of one norm
    # alike, which both fuse-ffn and merge-projections ask for
    FoldNorms(),
    # before analyse-tiles, which speaks of attentions; nothing else depends on it
    FuseAttention(),
    # before merge-projections, which would put up and gate together: the feed-forward takes them apart
    FuseFfn(),
    # before precision, whose casts stand between a linear map and its parameter
    MergeProjections(),
    # before fuse-norms: it says what of a norm is computed in which type, an equation at a time
    Precision(),
    # last to change the program: what fold-norms moves into linear maps is by then no part of a norm any more
    FuseNorms(),
    # reads only
    AnalyseTiles(),
)
"""A test for each reason: with the two neighbours exchanged, a program loses what the order gives it."""

BY_NAME = {p.name: p for p in (*DEFAULT, Unroll(), Factorize(), CompressKeys(), HashAttention())}


def opening(program: Program, seeded: bool = False) -> tuple[Pass, ...]:
    """What goes before all passes: what becomes of the program's dropouts, where it has any. seeded: they happen.

    Before the others, which without dropout see the program as if it had not been written, and with it what it reads.
    """
    if not drops(program):
        return ()
    return (SeedDropout(),) if seeded else (NoDropout(),)


@dataclass(frozen=True)
class Stage:
    """The program after one pass, and what the pass had to say."""

    name: str
    program: Program
    notes: Sequence[Note] = ()


@dataclass(frozen=True)
class Result:
    """stages: `lower` (the program given), then one a pass. map: from the given program's parameters to the last's."""

    stages: tuple[Stage, ...]
    map: ParamMap

    @property
    def program(self) -> Program:
        return self.stages[-1].program

    @property
    def notes(self) -> tuple[Note, ...]:
        return tuple(note for stage in self.stages for note in stage.notes)

    def after(self, name: str) -> Program:
        """The program after the (last) pass of that name, or `lower`. Raises TfcError where none ran."""
        for stage in reversed(self.stages):
            if stage.name == name:
                return stage.program
        raise _no_pass(name, [stage.name for stage in self.stages])


def choose(names: Iterable[str]) -> tuple[Pass, ...]:
    """Passes by name, in the order given. Raises TfcError for a name that no pass has."""
    out: list[Pass] = []
    for name in names:
        if name not in BY_NAME:
            raise _no_pass(name, BY_NAME)
        out.append(BY_NAME[name])
    return tuple(out)


def _no_pass(name: str, known: Iterable[str]) -> TfcError:
    names = list(known)
    near = closest(name, names)
    hint = f"did you mean `{near}`?" if near else f"there are {', '.join(names)}"
    return TfcError(Diagnostic("E810", f"no pass is called `{name}`", help=hint))


def run(program: Program, passes: Sequence[Pass] = DEFAULT, hold: frozenset[str] = frozenset()) -> Result:
    """The program through the passes. Raises IRError, with the pass named, where one breaks an invariant.

    hold: sites (`Note.site`, `NonZero.site`) that the passes leave as they are.
    """
    known = Known()
    verify(program, after="lowering", known=known)
    stages, total = [Stage("lower", program)], IDENTITY
    for step in passes:
        done = step(program, hold)
        if done.program is not program:
            verify(done.program, after=step.name, known=known)
        total = total.then(done.map)
        program = done.program
        stages.append(Stage(step.name, program, tuple(done.notes)))
    return Result(tuple(stages), total)
