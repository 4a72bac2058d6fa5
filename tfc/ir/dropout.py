"""Dropout: which elements of a tensor a call leaves out, as a function of integers alone."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

from tfc.identity import identity
from tfc.ir.op import Op
from tfc.ir.program import Program
from tfc.ir.types import DType, IRError, TensorType

__all__ = ["GOLDEN", "MURMUR", "PARITY", "ROTATIONS", "SEED", "Dropout", "check_dropped", "drops", "site", "threshold"]

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
"""By how many bits the rounds of Threefry-2x32 rotate, in turn (Salmon, Moraes, Dror and Shaw, "Parallel random
numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405)."""

PARITY = 0x1BD11BDA
"""What Threefry's third key word is exclusive-or'ed with (the same paper)."""

MURMUR = (16, 0x85EBCA6B, 13, 0xC2B2AE35, 16)
"""Shift, factor, shift, factor, shift of the 32-bit finalizer of MurmurHash3 (Austin Appleby, public domain)."""

GOLDEN = 0x9E3779B9
"""2^32 over the golden ratio: its multiples are far apart (Knuth, The Art of Computer Programming 3, 6.4)."""

SEED = TensorType((2,), DType.I32)
TURN = TensorType((), DType.I32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropout(Op):
    """Elements left out at random, the others divided by 1 - rate (arXiv:1207.0580); without a seed, x itself.

    operands: x [..., C]; then, where a call drops, seed: int[2] and the turn int[] of each loop around, outermost
    first   -> x's type

    All arithmetic is modulo 2^32. mix(K, c) is Threefry-2x32 with 20 rounds of the counter c under the key K, f the
    finalizer `MURMUR`. With r the number of the row (the leading axes counted row-major) and c the place in it:

        K = mix(seed, site(path)); for each turn t: K = mix(K, (t, 1)); (a, b) = mix(K, (r, 0))
        kept where f(f(a + c * GOLDEN) ^ b) >= threshold(rate)

    So an attention weight [B, H, N, M] is decided by its batch row, head, query and key, whatever computes it.
    In a route a token's row is its own among all tokens, and the copy counts as a turn.
    path: where it stands in the spec, another for every place.
    """

    name: ClassVar[str] = "dropout"
    rate: float
    path: str

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        x, *given = operands
        if not x.dtype.floating or x.rank < 1:
            raise IRError(f"dropout of {x}")
        if not 0 <= self.rate < 1:
            raise IRError(f"dropout of {self.rate} of {x}; 0 or more, and below 1")
        if given:
            check_dropped("dropout", given)
        return (x,)


def check_dropped(what: str, given: "list[TensorType] | tuple[TensorType, ...]") -> None:
    """Raises IRError unless these are the types of a seed and of turns."""
    seed, *turns = given
    if seed != SEED:
        raise IRError(f"{what}: a seed {seed}, not {SEED}")
    if any(t != TURN for t in turns):
        raise IRError(f"{what}: turns {', '.join(map(str, turns))}, not {TURN}")


def drops(program: Program) -> bool:
    """Whether the program, or a body of it, has a dropout."""
    ops = {identity(e.op): e.op for e in program.eqns}.values()  # equal layers have the same ones
    bodies: list[Program] = [body for op in ops if (body := getattr(op, "body", None)) is not None]
    return any(isinstance(op, Dropout) for op in ops) or any(map(drops, bodies))


def site(path: str) -> tuple[int, int]:
    """Two words below 2^32 for a path: its 64-bit BLAKE2b digest (RFC 7693), little-endian."""
    digest = int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "little")
    return digest & 0xFFFFFFFF, digest >> 32


def threshold(rate: float) -> int:
    """A word below it, of 2^32 equally likely ones, leaves its element out."""
    return int(rate * 2**32)
