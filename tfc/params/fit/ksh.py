"""Queries and keys of an attention, text by text -> hash functions whose codes agree where the two are alike.

Kernel-supervised hashing as EcoFormer does it (arXiv:2209.09004), and random functions of the same form:

    kap_a = exp(-|u - anchor_a|^2 / (2 spread)),  code_r = 1 if sum_a vote_ra (kap_a - center_a) >= 0 else -1

with u a query or a key of length 1. Anchors are tokens of the texts, `center` is the mean of kap, `spread` that of the
squared distances of a text's keys; votes start as normal numbers, and `fit_bits` moves them. Where queries and keys
differ, one set of functions hashes both; of grouped heads, the queries of all that read a key head are its queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tfc.diagnostics import Diagnostic, TfcError

__all__ = ["Attended", "Bits", "alike", "fit_bits", "ksh", "nearness", "random_hash"]

Array = jax.Array
Host = np.ndarray[Any, Any]
SHORTEST = 1e-12
"""What a vector is divided by at least, when it is made of length 1; as `unit` of the language."""


@dataclass(frozen=True)
class Attended:
    """What the scores of one attention read, for S texts filled up to one length.

    queries: [turns.., S, N, H, D]   keys: [turns.., S, M, G, D]   real: bool [S, N]   seen: bool [S, M], the queries
    and the keys that are there.
    """

    queries: Host
    keys: Host
    real: Host
    seen: Host


class Bits(NamedTuple):
    """What fitting did.

    vote: [H, bits, anchors]   before, after: [bits], the objective of hard codes before and after each bit's steps, as
    kept   residual: [S, H, N, M], what is left of bits * Y
    """

    vote: Array
    before: Array
    after: Array
    residual: Array


def ksh(arrays: Sequence[Array], settings: Mapping[str, Any], data: Attended) -> tuple[Array, Array, Array, Array]:
    """anchor [turns.., G, anchors, D], vote [.., G, bits, anchors], center [.., G, anchors], spread [.., G], fitted.

    settings: bits, anchors, seed; steps and rate of the gradient descent of each bit; pairs: how many keys of each
    query count as alike; unlike: how many as unlike, 0 for as many (as the source has it); frozen: whether the spread
    found is used from then on, or each text's own.
    Raises TfcError E631 where the texts have fewer tokens than there are anchors.
    """
    return _each(data, settings, True)


def random_hash(
    arrays: Sequence[Array], settings: Mapping[str, Any], data: Attended
) -> tuple[Array, Array, Array, Array]:
    """As `ksh` with the same seed, with the votes as they are drawn."""
    return _each(data, settings, False)


def _each(data: Attended, settings: Mapping[str, Any], fitted: bool) -> tuple[Array, Array, Array, Array]:
    """One attention after the other: every turn has functions and random numbers of its own."""
    queries, keys = np.asarray(data.queries), np.asarray(data.keys)
    turns = queries.shape[:-4]
    groups = queries.shape[-2] // keys.shape[-2]
    real, seen = jnp.asarray(np.repeat(data.real, groups, 1)), jnp.asarray(data.seen)
    made = []
    for turn in range(int(np.prod(turns))):
        q, k = queries.reshape(-1, *queries.shape[-4:])[turn], keys.reshape(-1, *keys.shape[-4:])[turn]
        u, w = _unit(_grouped(q, k.shape[2])), _unit(jnp.asarray(k, jnp.float32))
        made.append(_functions(u, w, real, seen, settings, fitted, turn))
    return tuple(jnp.reshape(jnp.stack(x), (*turns, *x[0].shape)) for x in zip(*made, strict=True))  # type: ignore[return-value]  # four of them


def _grouped(q: Host, heads: int) -> Array:
    """[S, N, H, D] -> [S, N * H / G, G, D]: the queries of one token that read one key head, one after another."""
    s, n, h, d = q.shape
    split = jnp.asarray(q, jnp.float32).reshape(s, n, heads, h // heads, d)
    return jnp.moveaxis(split, 3, 2).reshape(s, n * (h // heads), heads, d)


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), SHORTEST)


def _functions(
    u: Array, w: Array, real: Array, seen: Array, settings: Mapping[str, Any], fitted: bool, turn: int
) -> tuple[Array, Array, Array, Array]:
    """One attention's.   u: [S, N, H, D] and w: [S, M, H, D] of length 1, `real` and `seen` of them there"""
    bits, anchors = settings["bits"], settings["anchors"]
    drawn, chosen = jax.random.split(jax.random.fold_in(jax.random.key(settings["seed"]), turn))
    vote = jax.random.normal(drawn, (u.shape[2], bits, anchors), jnp.float32)
    anchor = _anchors(u, w, np.asarray(real), np.asarray(seen), anchors, chosen)
    away, far = _away(u, anchor), _away(w, anchor)
    own = _spread(far, seen)
    spread = jnp.mean(own, axis=0)
    used = jnp.broadcast_to(spread, own.shape) if settings["frozen"] else own
    near, by = nearness(away, used), nearness(far, used)
    center = (_mean(near, real) + _mean(by, seen)) / 2
    if fitted:
        y = alike(u, w, real, seen, settings["pairs"], settings["unlike"])
        there = (near - center) * real[:, :, None, None], (by - center) * seen[:, :, None, None]
        vote = fit_bits(*there, y, vote, real, seen, settings["steps"], settings["rate"]).vote
    return anchor, vote, center, spread


def _anchors(u: Array, w: Array, real: Host, seen: Host, count: int, key: Array) -> Array:
    """Tokens drawn without replacement among the queries and keys that are there -> [H, count, D].

    The same tokens for all heads. The source draws them from one image; a text may be shorter than that.
    """
    pool = [x[np.nonzero(there)] for x, there in ((u, real), (w, seen))]
    if pool[0].shape == pool[1].shape and bool(jnp.all(pool[0] == pool[1])):
        pool = pool[:1]  # one projection for both
    tokens = jnp.concatenate(pool)
    if len(tokens) < count:
        fact = f"the calibration data have {len(tokens)} tokens, and {count} of them are to be anchors"
        raise TfcError(Diagnostic("E631", fact, help="give more or longer texts, or ask for fewer anchors"))
    return jnp.moveaxis(tokens[jax.random.permutation(key, len(tokens))[:count]], 0, 1)


def _away(x: Array, anchor: Array) -> Array:
    """Squared distances: [S, N, H, D] and [H, A, D] -> [S, N, H, A]"""
    return jnp.sum((x[:, :, :, None] - anchor) ** 2, axis=-1)


def _spread(far: Array, seen: Array) -> Array:
    """[S, H]: the mean squared distance of each text's keys."""
    total = jnp.sum(jnp.mean(far, axis=-1) * seen[:, :, None], axis=1)
    return total / jnp.maximum(jnp.sum(seen, axis=1), 1)[:, None]


def nearness(away: Array, spread: Array | Host) -> Array:
    """away: [S, N, H, A], spread: [S, H] -> exp(-away / (2 spread))"""
    return jnp.exp(-away / (2 * spread[:, None, :, None]))


def _mean(x: Array, there: Array) -> Array:
    """[S, N, H, A] -> [H, A]: over the tokens of a text, then over texts."""
    count = jnp.maximum(jnp.sum(there, axis=1), 1)[:, None, None]
    return jnp.mean(jnp.sum(x * there[:, :, None, None], axis=1) / count, axis=0)


def alike(u: Array, w: Array, real: Array | Host, seen: Array | Host, pairs: int, unlike: int = 0) -> Array:
    """Y [S, H, N, M]: of each query 1 for the `pairs` keys of the largest inner product, -1 for the `unlike` of the
    least (0: as many as alike), 0 for the others. No more than half of a text's keys are alike, no more than the rest
    unlike."""
    close = jnp.einsum("snhd,smhd->shnm", u, w, precision="highest")
    there = seen[:, None, None, :]
    most = jnp.argsort(jnp.argsort(-jnp.where(there, close, -jnp.inf), axis=-1), axis=-1)
    least = jnp.argsort(jnp.argsort(jnp.where(there, close, jnp.inf), axis=-1), axis=-1)
    count = jnp.sum(seen, axis=1)[:, None, None, None]
    few = jnp.minimum(pairs, count // 2)
    many = jnp.minimum(unlike, count - few) if unlike else few
    y = jnp.where(least < many, -1.0, jnp.where(most < few, 1.0, 0.0))
    return jnp.where(there & real[:, None, :, None], y, 0.0)


@partial(jax.jit, static_argnames=("steps",))
def fit_bits(near: Array, by: Array, y: Array, vote: Array, real: Array, seen: Array, steps: int, rate: float) -> Bits:
    """Moves the votes, bit by bit, so that (1 / bits) sum_r t_ir t_jr comes near Y.

    near: [S, N, H, A] of queries, by: [S, M, H, A] of keys, centered and zero where no token is; Y [S, H, N, M]; vote
    [H, bits, A]. A bit takes `steps` steps of gradient descent (momentum 0.9, Nesterov's) on the objective
    -mean over texts and heads of (t R t') / (N bits) with tanh(g / 2) for t, R being what the bits before left of
    bits * Y. Its new votes are kept if that lessens the objective of hard codes, for all heads together, else the
    old ones; then R loses t t'.
    """
    bits = vote.shape[1]
    size = jnp.maximum(jnp.sum(real, axis=1), 1)[:, None] * bits

    def objective(t: Array, s: Array, left: Array) -> Array:
        return -jnp.mean(jnp.einsum("snh,shnm,smh->sh", t, left, s, precision="highest") / size)

    def sums(a: Array) -> tuple[Array, Array]:
        return tuple(jnp.einsum("snha,ha->snh", x, a, precision="highest") for x in (near, by))  # type: ignore[return-value]  # two of them

    def hard(a: Array) -> tuple[Array, Array]:
        g, f = sums(a)
        return jnp.where(g >= 0, 1.0, -1.0) * real[:, :, None], jnp.where(f >= 0, 1.0, -1.0) * seen[:, :, None]

    def soft(a: Array, left: Array) -> Array:
        g, f = sums(a)
        return objective(jnp.tanh(g / 2), jnp.tanh(f / 2), left)

    def bit(left: Array, start: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
            a, speed = state
            slope = jax.grad(soft)(a, left)
            speed = 0.9 * speed + slope
            return a - rate * (slope + 0.9 * speed), speed

        moved, _ = jax.lax.fori_loop(0, steps, step, (start, jnp.zeros_like(start)))
        before, after = objective(*hard(start), left), objective(*hard(moved), left)
        kept = jnp.where(after < before, moved, start)
        t, s = hard(kept)
        return left - jnp.einsum("snh,smh->shnm", t, s), (kept, before, jnp.minimum(before, after))

    left, (votes, before, after) = jax.lax.scan(bit, bits * y, jnp.moveaxis(vote, 1, 0))
    return Bits(jnp.moveaxis(votes, 0, 1), before, after, left)
