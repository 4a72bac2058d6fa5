"""Faults planted in the gradient kernels, one line each: all are noticed, by numbers, by a race, or by a hang ended."""

from collections.abc import Mapping
from typing import Any

import pytest

from tfc.testing.worker import CaseFailed, CaseHangs, Worker

CAUSAL = dict(formula="causal", h=4, g=2, n=60, m=150, d=32)
LONG = dict(formula="causal", h=1, n=200, m=330, d=32)  # more tiles than a ring holds
RINGS = dict(configs={"q": dict(stages=2, ahead=True), "kv": dict(stages=1)})
AHEAD = dict(configs={"q": dict(stages=2, ahead=True), "kv": dict(stages=2, ahead=True)})
BIAS = dict(formula="bias", h=2, g=2, n=70, m=70, d=32)
HIDDEN = dict(formula="hidden", h=1, n=70, m=70, d=32)

LIMIT = 30.0
"""Seconds for a case that takes three to six, and not for ever."""

# fault: (line of a kernel, what stands there instead, a case that tells the two apart, how it is run)
FAULTS: Mapping[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "causal aligned at the start": (
        'offset = self.plan.m - self.plan.n if side == "q" else 0', "offset = 0", CAUSAL, {}
    ),
    "delta added": ("return -tile.spread(delta)", "return tile.spread(delta)", CAUSAL, {}),
    "the slope of the score forgotten": (
        "return p, Kept(p if self.by_s == ONE else _only(p * _slope(tile, self.by_s), seen), {}, seen)",
        "return p, Kept(p, {}, seen)",
        dict(formula="softcap", h=1, n=70, m=70, d=32),
        {},
    ),
    "columns beyond the last one": (
        "seen = jnp.logical_and(seen, tile.spread(position) < plan.m)",
        "pass",
        dict(formula="all", h=1, n=60, m=70, d=32),
        {},
    ),
    "what the mask hides": ("return x if seen is None else jnp.where(seen, x, 0.0)", "return x", HIDDEN, {}),
    "a head's ranges for another": ("which = lax.div(i, ranges)", "which = i * 0", CAUSAL, {}),
    "one head of a group": (
        "return lax.fori_loop(0, count * ranges, each, carry)",
        "return lax.fori_loop(0, ranges, each, carry)",
        CAUSAL,
        {},
    ),
    "the first group's queries": ("self.head = self.kv_head * self.group", "self.head = self.kv_head", CAUSAL, {}),
    "the scale of dk forgotten": (
        'tiles[name][:, part] = (x * plan.scale if name == "k" else x).astype(plan.dtype)',
        "tiles[name][:, part] = x.astype(plan.dtype)",
        CAUSAL,
        {},
    ),
    "the scale of dq forgotten": (
        "self.q_tile[:, part] = (x * plan.scale).astype(plan.dtype)",
        "self.q_tile[:, part] = x.astype(plan.dtype)",
        CAUSAL,
        {},
    ),
    "query heads dealt round the kv heads": (
        "kv_head = lax.div(place.head, plan.heads // plan.kv_heads)",
        "kv_head = lax.rem(place.head, plan.kv_heads)",
        CAUSAL,
        {},
    ),
    "keys of the tile after": (
        "behind = terms(dq, before, mem.k_ring.at[last])",
        "behind = terms(dq, before, mem.k_ring.at[slot])",
        CAUSAL,
        RINGS,
    ),
    "the last tile's share of dq dropped": (
        "total = sums_of(*terms(total, ds, mem.k_ring.at[slot]), staging=self.staging)", "pass", CAUSAL, RINGS
    ),
    "queries of the tile after": (
        'behind = terms(totals["k"], ds, mem.q_ring.at[last])',
        'behind = terms(totals["k"], ds, mem.q_ring.at[slot])',
        LONG,
        AHEAD,
    ),
    "the last tile's share of dk dropped": (
        'totals["k"] = sums_of(*terms(totals["k"], ds, mem.q_ring.at[last]), staging=self.staging)',
        "pass",
        CAUSAL,
        AHEAD,
    ),
    "no zeros before the first tile": (
        "before[...] = plgpu.layout_cast(jnp.zeros(before.shape, plan.dtype), plgpu.Layout.WGMMA)", "pass", LONG, AHEAD
    ),
    "no wait for the zeros": ("plgpu.barrier_wait(mem.zeroed)", "pass", LONG, AHEAD),
    "Q overwritten a step early": (
        "unused = stages - 1 if plan.config.ahead else stages", "unused = stages", LONG, AHEAD
    ),
    "the share of dv dropped": (
        "beside=terms(dv, lambda found: found[0].astype(plan.dtype), do) if dv else (),",
        "beside=terms(dv, lambda found: found[0].astype(plan.dtype) * 0, do) if dv else (),",
        CAUSAL,
        AHEAD,
    ),
    "sums of leaves unweighted": (
        "return _only(flow * _slope(tile, slope), kept.seen) if made is None else flow * made",
        "return flow",
        BIAS,
        {},
    ),
    "no wait for Q": ("plgpu.barrier_wait(mem.q_ready.at[slot])", "pass", LONG, RINGS),
    "no wait for dO": ("plgpu.barrier_wait(mem.do_ready.at[passed])", "pass", LONG, RINGS),
    "no wait for K": ("plgpu.barrier_wait(mem.k_ready.at[slot])", "pass", LONG, RINGS),
    "no wait for V": ("between=lambda: plgpu.barrier_wait(mem.v_ready.at[passed]),", "between=bool,", LONG, RINGS),
    "Q overwritten while it is read": ("plgpu.barrier_wait(mem.q_free.at[slot])", "pass", LONG, RINGS),
    "dO overwritten while it is read": ("plgpu.barrier_wait(mem.do_free.at[passed])", "pass", LONG, RINGS),
    "V overwritten while it is read": ("plgpu.barrier_wait(mem.v_free.at[passed])", "pass", LONG, RINGS),
    "V never released": ("plgpu.barrier_arrive(mem.v_free.at[passed])", "pass", LONG, RINGS),
    "K overwritten while it is read": ("plgpu.barrier_wait(mem.k_free.at[slot])", "pass", LONG, RINGS),
    "Q never released": ("plgpu.barrier_arrive(mem.q_free.at[slot])", "pass", LONG, RINGS),
    "K never released": ("plgpu.barrier_arrive(mem.k_free.at[last])", "pass", LONG, RINGS),
}  # fmt: skip

QUICK = {"delta added", "one head of a group"}


def verdict(worker: Worker, case: dict[str, Any], how: dict[str, Any]) -> str:
    """What is wrong with the gradients, in words; empty where nothing is."""
    try:
        return str(worker.call("gradients:judge", case, limit=LIMIT, **how)["wrong"])
    except CaseHangs as hang:
        return str(hang)
    except CaseFailed as failed:
        assert failed.kind != "LookupError", failed
        return str(failed)


@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAULTS])
def test_faults_are_noticed(worker: Worker, fault: str) -> None:
    line, instead, case, how = FAULTS[fault]
    assert verdict(worker, case, {**how, "edits": {line: instead}})


@pytest.mark.slow
@pytest.mark.parametrize("case", [str(x) for x in {str(f[2:]): f for f in FAULTS.values()}])
def test_the_kernels_themselves_pass(worker: Worker, case: str) -> None:
    """What tells the faults apart is the fault, not the case."""
    fields, how = next(f[2:] for f in FAULTS.values() if str(f[2:]) == case)
    assert not verdict(worker, fields, how)
