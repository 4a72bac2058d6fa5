"""What lowering makes, run by the reference: shared loops, routes, fields at their tokens, tokens chosen."""

from pathlib import Path

import jax
import numpy as np
import pytest

import tfc

B, T = 2, 6


def run(folder: Path, body: str, items: str = "", x: np.ndarray | None = None, **given: np.ndarray) -> list[np.ndarray]:
    """The results of a small model, its parameters drawn by their paths."""
    path = folder / "m.tfm"
    path.write_text(f"tfm 1\n{items}\nmodel m(x: real[B, T, 8], ids: int[B, T]) {{\n{body}\n}}\n", encoding="utf-8")
    model = tfc.compile(path, implementation="reference")
    params = model.init(jax.random.key(0))
    drawn = np.random.default_rng(0).standard_normal((B, T, 8)).astype(np.float32)
    given.setdefault("ids", np.arange(B * T, dtype=np.int32).reshape(B, T) % 3)
    out = model(params, x=drawn if x is None else x, **given)
    return [np.asarray(o) for o in (out if isinstance(out, tuple | list) else [out])]


DEEP = "block deep(x) {\n  repeat 2 as inner { x = x + linear(rms(x), size(x)) }\n  return x\n}"


def test_a_shared_loop_gives_the_same_wherever_it_runs(tmp_path: Path) -> None:
    one = "  block one = deep\n"
    (twice,) = run(tmp_path, f"{one}  x = one(x)\n  return one(x)", DEEP)
    (looped,) = run(tmp_path, f"{one}  repeat 2 as turn {{ x = one(x) }}\n  return x", DEEP)
    (once,) = run(tmp_path, f"{one}  return one(x)", DEEP)
    (again,) = run(tmp_path, f"{one}  return one(x)", DEEP, x=once)
    np.testing.assert_allclose(twice, looped, rtol=1e-6)
    np.testing.assert_allclose(twice, again, rtol=1e-6)
    assert np.abs(twice - once).max() > 0.01


@pytest.mark.parametrize(
    "f",
    [
        "linear(rms(x), 5)",
        "join(split(x, 2) * 2) + linear(x, 8, biased = yes)",
        'rounded(x, int8(per = "row"))',
        "rounded(x, mx)",
        "concat(cut(x, 0, 2), gelu(x))",
        "route(x, linear { out = 8 }, 2, top(x, 1) % 2)",
    ],
)
def test_what_is_routed_goes_with_its_token(tmp_path: Path, f: str) -> None:
    """Tokens and choices in another order give the results in that order."""
    items, body = f"block f(x) {{ return {f} }}", "  return route(x, f, 3, ids)"
    x = np.random.default_rng(1).standard_normal((B, T, 8)).astype(np.float32)
    ids = np.random.default_rng(2).integers(0, 3, (B, T)).astype(np.int32)
    order = np.random.default_rng(3).permutation(T)
    (plain,) = run(tmp_path, body, items, x=x, ids=ids)
    (moved,) = run(tmp_path, body, items, x=x[:, order], ids=ids[:, order])
    np.testing.assert_allclose(moved, plain[:, order], rtol=1e-6, atol=1e-6)


def test_fields_are_of_their_tokens(tmp_path: Path) -> None:
    tags = "  k[b, t] = 1.0 * ids[b, t]\n  x = tag(x, keep = k)\n"
    x = np.random.default_rng(4).standard_normal((B, T, 8)).astype(np.float32)
    ids = np.random.default_rng(5).integers(0, 9, (B, T)).astype(np.int32)
    scaled, heads, chosen = run(
        tmp_path, f"{tags}  return [x * x.keep, split(x, 2) * x.keep, if(x.keep > 4, x, -x)]", x=x, ids=ids
    )
    np.testing.assert_allclose(scaled, x * ids[..., None], rtol=1e-6)
    np.testing.assert_allclose(heads, x.reshape(B, T, 2, 4) * ids[..., None, None], rtol=1e-6)
    np.testing.assert_allclose(chosen, np.where(ids[..., None] > 4, x, -x))


def test_tokens_chosen_bring_what_they_carry(tmp_path: Path) -> None:
    body = """  place[t] = t
  x = tag(x, kind = ids, pos = place)
  n[b, t] = sum[c](x[b, t, c])
  best = top(n, 2)
  y = append(pick(x, best), part(x, 1, 2))
  return [best, y, y.kind, y.pos, cut(x, 3, 2)]"""
    x = np.random.default_rng(6).standard_normal((B, T, 8)).astype(np.float32)
    ids = np.random.default_rng(7).integers(0, 9, (B, T)).astype(np.int32)
    best, y, kind, pos, cut = run(tmp_path, body, x=x, ids=ids)
    wanted = np.argsort(-x.sum(-1), axis=-1)[:, :2]
    np.testing.assert_array_equal(best, wanted)
    at = np.concatenate([wanted, np.broadcast_to([1, 2], (B, 2))], axis=1)
    np.testing.assert_allclose(y, np.take_along_axis(x, at[..., None], axis=1))
    np.testing.assert_array_equal(kind, np.take_along_axis(ids, at, axis=1))
    np.testing.assert_array_equal(pos, at)
    np.testing.assert_allclose(cut, x[..., 3:5])
