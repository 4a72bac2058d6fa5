"""Faults planted in the Hopper kernel, one line each: all are noticed, by numbers, by a race, or by a hang ended."""

from collections.abc import Mapping
from typing import Any

import pytest

from tfc.testing.worker import CaseFailed, CaseHangs, Worker

CAUSAL = dict(formula="causal", h=4, g=2, n=60, m=150)
WIDE = dict(formula="causal", h=1, n=60, m=330)  # one query tile, more key tiles than a ring holds
LISTS = dict(formula="causal", h=2, n=140, m=140, d=32, blocks=1)  # tile after tile by one block

LIMIT = 20.0
"""Seconds for a case that takes one or two, and not for ever."""

# fault: (line of the kernel, what stands there instead, a case that tells the two apart)
FAULTS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "causal aligned at the start": ("offset = plan.m - plan.n", "offset = 0", CAUSAL),
    "output not shrunk as the maximum rises": (
        "out = out * lax.broadcast_in_dim(shrink, out.shape, (0,))",
        "out = out * 1.0",
        CAUSAL,
    ),
    "sum not shrunk as the maximum rises": (
        "total = total * shrink + p.sum(axis=1)",
        "total = total + p.sum(axis=1)",
        CAUSAL,
    ),
    "the maximum of the last tile only": (
        "raised = jnp.maximum(top, core.max(axis=1) * factor)",
        "raised = core.max(axis=1) * factor",
        dict(formula="full", n=60, m=300, large=60.0),  # a larger score left behind grows beyond float32
    ),
    "query heads dealt round the kv heads": (
        "kv_head = lax.div(visits.head, plan.heads // plan.kv_heads)",
        "kv_head = lax.rem(visits.head, plan.kv_heads)",
        CAUSAL,
    ),
    "a partial tile taken for full": (
        "carry = lax.fori_loop(0, jnp.where(full, count, 0), partial(visit, last=last, masked=False), carry)",
        "carry = lax.fori_loop(0, jnp.where(full, count, count), partial(visit, last=last, masked=False), carry)",
        CAUSAL,
    ),
    "keys beyond the last one": (
        "exists = tile.spread(self.key_positions(key_tile)) < self.plan.m",
        "exists = tile.spread(self.key_positions(key_tile)) <= self.plan.m",
        dict(formula="full", n=60, m=70),
    ),
    "infinity less infinity": (
        "base = jnp.where(raised == -jnp.inf, 0.0, raised)",
        "base = raised",
        dict(formula="causal", n=100, m=60),
    ),
    "natural for binary logarithms": (
        "core, factor = self.core(raw, key_tile), self.plan.exponent.factor",
        "core, factor = self.core(raw, key_tile), self.plan.exponent.factor / LOG2E",
        CAUSAL,
    ),
    "the scale dropped": (
        "core, factor = self.core(raw, key_tile), self.plan.exponent.factor",
        "core, factor = self.core(raw, key_tile), LOG2E",
        CAUSAL,
    ),
    "a bound that is no bound": (
        "top: Any = self.plan.base if len(stats) == 1 else stats[0] + exponent.shift",
        "top: Any = 0.0 if len(stats) == 1 else stats[0] + exponent.shift",
        dict(formula="softcap", n=60, m=70),
    ),
    "bounded scores of keys that are not seen": (
        "return jnp.where(self.seen(key_tile), p, 0.0) if masked else p",
        "return p",
        dict(formula="softcap", n=60, m=150),
    ),
    "a range's last tile twice": (
        "last = jnp.where(turn == 0, end - 2, end - 1)  # the very last tile is visited before this loop",
        "last = end - 1",
        CAUSAL,
    ),
    "rows of the first consumer for all": (
        "return batch, pl.ds(tile * config.block_q + wg * ROWS, ROWS), head",
        "return batch, pl.ds(tile * config.block_q, ROWS), head",
        CAUSAL,
    ),
    "values of the tile after": (
        "slot, before = lax.rem(step, config.stages), lax.rem(step - 1, config.stages)",
        "slot, before = lax.rem(step, config.stages), lax.rem(step, config.stages)",
        CAUSAL,
    ),
    "no wait for Q": ("plgpu.barrier_wait(mem.q_ready.at[wg])", "pass", CAUSAL),
    "no wait for the first K": ("plgpu.barrier_wait(mem.k_ready.at[begin])", "pass", CAUSAL),
    "outputs overwritten while they are stored": (
        "plgpu.wait_smem_to_gmem(0)  # what the tile before stored",
        "pass",
        LISTS,
    ),
    "the same queries again": (
        "pl.when(more)(partial(fetch, upcoming))",
        "pl.when(more)(partial(fetch, visits))",
        LISTS,
    ),
    "the ring begun anew with each tile": ("begin = lax.rem(step, config.stages)", "begin = 0", LISTS),
    "a factor of rows forgotten": (
        "shared = jnp.where(total == 0, 0.0, share.value / total)",
        "shared = jnp.where(total == 0, 0.0, 1 / total)",
        dict(formula="sink", n=60, m=70),
    ),
    "weights of keys that are not seen": (
        "return jnp.where(self.seen(key_tile), weight, 0.0) if masked and not early else weight",
        "return weight",
        dict(formula="clipped", n=60, m=150),
    ),
    "scores of keys that are not seen": (
        "natural = jnp.where(self.seen(key_tile), natural, 0.0)",
        "pass",
        dict(formula="hstu", n=60, m=150),
    ),
    "no wait for V": ("plgpu.barrier_wait(mem.v_ready.at[before])", "pass", CAUSAL),
    "no wait for the next K": ("plgpu.barrier_wait(mem.k_ready.at[slot])", "pass", WIDE),
    "no wait for the last V": ("plgpu.barrier_wait(mem.v_ready.at[slot])", "pass", WIDE),
    "K overwritten while it is read": ("plgpu.barrier_wait(mem.k_free.at[slot])", "pass", WIDE),
    "V overwritten while it is read": ("plgpu.barrier_wait(mem.v_free.at[slot])", "pass", WIDE),
    "K never released": ("plgpu.barrier_arrive(mem.k_free.at[slot])", "pass", WIDE),
    "V never released": ("plgpu.barrier_arrive(mem.v_free.at[before])", "pass", WIDE),
}


QUICK = {
    "causal aligned at the start", "output not shrunk as the maximum rises", "keys beyond the last one",
    "a bound that is no bound", "no wait for Q", "K overwritten while it is read", "the same queries again",
    "a factor of rows forgotten",
}  # fmt: skip
"""One of each kind; the others are for the deep profile and for `.ci/run slow`."""


def verdict(worker: Worker, case: dict[str, Any], edits: Mapping[str, str] | None) -> str:
    """What is wrong with the kernel, in words; empty where nothing is."""
    try:
        return str(worker.call("interpreted:judge", case, edits, limit=LIMIT)["wrong"])
    except CaseHangs as hang:
        return str(hang)
    except CaseFailed as failed:
        assert failed.kind != "LookupError", failed
        return str(failed)


@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAULTS])
def test_faults_are_noticed(worker: Worker, fault: str) -> None:
    line, instead, case = FAULTS[fault]
    assert verdict(worker, case, {line: instead})


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in [FAULTS[f][2] for f in QUICK] else pytest.mark.slow, id=str(case))
        for case in {str(c): c for _, _, c in FAULTS.values()}.values()
    ],
)
def test_the_kernel_itself_passes(worker: Worker, case: dict[str, Any]) -> None:
    """What tells the faults apart is the fault, not the case."""
    assert not verdict(worker, case, None)


def test_a_hang_is_ended_in_words(worker: Worker) -> None:
    """A barrier nobody arrives at: the case is ended within its limit, and the next one runs."""
    line = "plgpu.barrier_arrive(mem.turn.at[lax.rem(wg + 1, consumers)])"
    with pytest.raises(CaseHangs, match="hangs: no result after"):
        worker.call("interpreted:judge", CAUSAL, {line: "pass"}, limit=5.0)
    assert not verdict(worker, WIDE, None)
