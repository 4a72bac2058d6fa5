"""An attention equation turned into the configurations of its kernels that are worth timing, the rule's first."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from tfc.backends.kernel import Target
from tfc.backends.pallas_gpu import attention, backward, decode
from tfc.backends.pallas_gpu.decode_plan import shared_bytes
from tfc.backends.pallas_gpu.plan import ROWS
from tfc.backends.pallas_gpu.streaming import SHARED_MEMORY
from tfc.ir.program import Eqn

__all__ = ["Fields", "candidates", "kernels_of"]

Fields = Mapping[str, Any]

CHOSEN = ("consumers", "block_k", "stages", "persistent", "columns", "ahead", "passing")
"""The fields that are chosen by time."""


def kernels_of(eqn: Eqn, target: Target) -> tuple[str, ...]:
    """The kernels that run for the equation, as `tuned.fields` calls them; none where this backend refuses it."""
    if decode.refuse(eqn, target) is None:
        return ("decode",)
    if attention.refuse(eqn, target) is not None:
        return ()
    if backward.refuse(eqn, target) is not None:
        return ("forward",)
    return ("forward", *(f"backward {gives}" for gives in backward.configs_of(eqn, target)))


def candidates(kernel: str, eqn: Eqn, target: Target) -> list[Fields]:
    """Configurations that fit shared memory, as far as it is known before a kernel is traced. The first is in use."""
    match kernel.split():
        case ["forward"]:
            made = _forward(eqn, target)
        case ["decode"]:
            made = _decode(eqn, target)
        case _:
            made = _backward(kernel.split()[1], eqn, target)
    return list({tuple(fields.items()): fields for fields in made}.values())


def _fields(config: Any) -> Fields:
    return {name: x for name, x in asdict(config).items() if name in CHOSEN}


def _forward(eqn: Eqn, target: Target) -> Iterable[Fields]:
    """A third consumer where the output leaves room for it; rings from two tiles up to what memory has."""
    ruled, head_dim, values = attention.config_of(eqn, target), *_sizes(eqn)
    yield _fields(ruled)
    wide = max(head_dim, values)
    for consumers, block_k, stages, persistent in product((2, 3), (64, 128), (2, 3, 4), (False, True)):
        queries = consumers * ROWS * (2 * (wide + values * persistent) + 4)
        fits = queries + stages * block_k * 2 * (head_dim + values) + 1024 <= SHARED_MEMORY
        if fits and (consumers == 2 or values <= 64) and (block_k == 64 or values <= 128):
            yield _fields(replace(ruled, consumers=consumers, block_k=block_k, stages=stages, persistent=persistent))


def _decode(eqn: Eqn, target: Target) -> Iterable[Fields]:
    """Rings that let one to three blocks share a multiprocessor, and keys dealt out to one or two such rounds."""
    plan, head_dim = decode.plan_of(eqn, target), _sizes(eqn)[0]
    yield {"block_k": plan.config.block_k, "stages": plan.config.stages, "splits": plan.splits}
    rows, sms = plan.batch * plan.kv_heads, target.sms or decode.SMS
    for block_k, stages, blocks in product((64, 128), (2, 3, 4, 6), (1, 2, 3)):
        config = replace(plan.config, block_k=block_k, stages=stages)
        if blocks * shared_bytes(config, head_dim, plan.rows, kept=False) <= decode.SHARED_MEMORY:
            tiles = -(-plan.m // block_k)
            for rounds in (1, 2):
                splits = decode.splits_for(rows, tiles, rounds * blocks * sms)
                yield {"block_k": block_k, "stages": stages, "splits": splits}


def _backward(gives: str, eqn: Eqn, target: Target) -> Iterable[Fields]:
    """Two tiles of the own side and two rings of the other's must fit; the rest is for the compiler to say."""
    ruled, (head_dim, _) = backward.configs_of(eqn, target)[gives], _sizes(eqn)
    yield _fields(ruled)
    for consumers, columns, stages, ahead in product((2, 3), (64, 128), (1, 2, 3, 4), (False, True)):
        passing = 1 if head_dim > 128 and stages == 2 and gives != "v" else 0
        size = 2 * head_dim * (2 * consumers * ROWS + (stages + (passing or stages)) * columns)
        if size > SHARED_MEMORY or (ahead and (gives == "v" or stages < 2)):
            continue
        if head_dim > 64 and (consumers > 2 or columns > 64):  # the sums and the tiles of scores fill the registers
            continue
        sizes: dict[str, Any] = dict(consumers=consumers, columns=columns, stages=stages, ahead=ahead, passing=passing)
        yield _fields(replace(ruled, **sizes))


def _sizes(eqn: Eqn) -> tuple[int, int]:
    """Of heads and of values."""
    return eqn.args[0].type.ints[3], eqn.args[2].type.ints[3]
