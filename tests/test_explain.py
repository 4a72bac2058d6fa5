"""Reports: the cost of each operation, the kernel and every refusal, totals over repeats, lengths, JSON."""

import json
from pathlib import Path

import pytest

from tfc.diagnostics import TfcError
from tfc.explain import Cost, cost, default_lengths, explain, lengths_of
from tfc.formula.expr import PRIMITIVES
from tfc.front import front
from tfc.ir.ops import OPS, Op, Repeat
from tfc.ir.program import Eqn, Program
from tfc.ir.text import parse
from tfc.ir.types import DType
from tfc.passes.base import Note
from tfc.targets import resolve

ROOT = Path(__file__).resolve().parents[1]

ATTEND = """program attend(%q: bf16[B, T, 8, 64], %k: bf16[B, T, 2, 64], %v: bf16[B, T, 2, 64]) {{
  %o: bf16[B, T, 8, 64], %lse: f32[B, 8, T] = attention(scale=0.125{mask}) %q, %k, %v
  return %o
}}
"""

STACK = """program stack(%x: f32[B, T, 32]) {
  %y: f32[B, T, 32] = repeat(count=5, label=layer, carries=1) %x
    program layer(%i: int[], %x: f32[B, T, 32]) {
      %w: f32[32, 32] = param layer.w normal(0.02)
      %h: f32[B, T, 32] = linear %x, %w
      %y: f32[B, T, 32] = add %h, %x
      return %y
    }
  return %y
}
"""


def only(text: str, **lengths: int) -> Eqn:
    (eqn,) = parse(text).bind(lengths).eqns
    return eqn


def program(line: str, inputs: str) -> str:
    return f"program p({inputs}) {{\n  {line}\n  return %y\n}}\n"


@pytest.mark.parametrize(
    ("line", "inputs", "expected"),
    [
        ("%y: f32[3, 5] = linear %x, %w", "%x: f32[3, 4], %w: f32[4, 5]", Cost(120, 120, 4 * (12 + 20 + 15))),
        (
            "%y: bf16[3, 5] = linear %x, %w, %b",
            "%x: bf16[3, 4], %w: bf16[4, 5], %b: bf16[5]",
            Cost(135, 120, 2 * (12 + 20 + 5 + 15)),
        ),
        ("%y: f32[3, 1] = reduction(fn=sum) %x", "%x: f32[3, 4]", Cost(12, 0, 4 * (12 + 3))),
        (  # sum, mean, difference, square, its mean, products with the root and the scale, and one for what is of rows
            "%y: f32[3, 4], %z: f32[3, 4] = "
            "norm(centered=yes, eps=0.1, residual=yes, scaled=yes, keeps=yes) %x, %x, %s",
            "%x: f32[3, 4], %s: f32[4]",
            Cost(8 * 12, 0, 4 * (12 + 12 + 4 + 12 + 12)),
        ),
        ("%y: f32[3, 4] = mul %x, %x", "%x: f32[3, 4]", Cost(12, 0, 4 * 36)),
        ("%y: f32[2, 3] = take %x, %i", "%x: f32[1000, 3], %i: int[2]", Cost(0, 0, 8 + 2 * 24)),
        ("%y: f32[12] = reshape(shape=[12]) %x", "%x: f32[3, 4]", Cost(0, 0, 0)),
        ("%y: bf16[3, 4] = cast(dtype=bf16) %x", "%x: f32[3, 4]", Cost(0, 0, 12 * 6)),
        (  # of each token: decay, k v and adding it, and q S: five for every number of the state
            "%y: f32[2, 3, 4, 6], %z: f32[2, 4, 5, 6] = recurrence %q, %k, %v",
            "%q: f32[2, 3, 4, 5], %k: f32[2, 3, 4, 5], %v: f32[2, 3, 4, 6]",
            Cost(5 * 2 * 3 * 4 * 30, 4 * 2 * 3 * 4 * 30, 4 * (120 + 120 + 144 + 144 + 240)),
        ),
        ("%y: int[3, 2] = top(count=2) %x", "%x: f32[3, 4]", Cost(36, 0, 4 * 18)),
        ("%y: f32[3, 4] = rounded(format=fp8) %x", "%x: f32[3, 4]", Cost(60, 0, 4 * 24)),
        ("%y: f32[3, 4] = calibrated(path=a) %x", "%x: f32[3, 4]", Cost(0, 0, 0)),
        (
            "%y: f32[2, 8, 5, 7] = scores(scale=0.5) %q, %k",
            "%q: f32[2, 5, 8, 4], %k: f32[2, 7, 2, 4]",
            Cost(2 * 2 * 8 * 5 * 7 * 4, 2 * 2 * 8 * 5 * 7 * 4, 4 * (2 * 5 * 8 * 4 + 2 * 7 * 2 * 4 + 2 * 8 * 5 * 7)),
        ),
    ],
    ids=lambda x: x.split(" = ")[1].split("(")[0].split()[0] if isinstance(x, str) and " = " in x else None,
)
def test_costs_by_hand(line, inputs, expected):
    assert cost(only(program(line, inputs))) == expected


def test_attention_counts_the_tiles_that_its_mask_leaves():
    """Causal, 1024 long: of 8 x 8 tiles 36 are visited."""
    full = cost(only(ATTEND.format(mask=""), B=2, T=1024))
    causal = cost(only(ATTEND.format(mask=", mask=(k <= q)"), B=2, T=1024))
    fields = ATTEND.replace("v: bf16[B, T, 2, 64]", "v: bf16[B, T, 2, 64], %d: int[B, T]").replace("%v\n", "%v, %d\n")
    packed = cost(only(fields.format(mask=", mask=(k <= q and $0.q == $0.k)"), B=2, T=1024))
    assert packed.matmul == causal.matmul
    assert full.matmul == 4 * 2 * 8 * 1024 * 1024 * 64
    assert causal.matmul * 64 == full.matmul * 36
    assert causal.bytes == full.bytes == 2 * 2 * 1024 * 64 * (8 + 2 + 2 + 8) + 4 * 2 * 8 * 1024


def test_what_decoding_keeps_is_told():
    """Two layers of two heads of 16, keys and values in float32; of a model that cannot be decoded nothing."""
    text = explain(front(ROOT / "examples/llama_block.tfm").program, resolve("cpu"), {"B": 1, "T": 8}).text()
    assert "decode:llama: keeps 512 bytes a token and 0 a row" in text and "1, 2, 3, 4, 6, 8, 12" in text
    assert (
        "decode:" not in explain(front(ROOT / "examples/minilm.tfm").program, resolve("cpu"), {"B": 1, "T": 8}).text()
    )


def test_every_operation_has_a_cost():
    """A new operation that `cost` does not know ends in NotImplementedError here, not at a user's."""
    import inspect

    from tfc import explain as module

    text = inspect.getsource(module.cost)
    lacking = [op.__name__ for op in OPS.values() if op is not Repeat and f"{op.__name__}(" not in text]
    assert lacking == []
    assert issubclass(Repeat, Op) and "add" in PRIMITIVES


def test_repeats_count():
    report = explain(parse(STACK), resolve("cpu"), {"B": 2, "T": 3})
    linear, add = report.lines
    assert (linear.row.site, linear.row.count, add.row.count) == ("layer/%h", 5, 5)
    assert report.parameters == (1, 5 * 32 * 32, 4 * 5 * 32 * 32)
    assert report.total("matmul") == 5 * linear.cost.matmul == 5 * 2 * 6 * 32 * 32
    assert report.kernels() == {"xla": 10}
    assert report.seconds is None, "the cpu's rates are not in the table"


def test_the_hopper_kernel_serves_and_the_others_say_why_not():
    attend = parse(ATTEND.format(mask=", mask=(k <= q)"))
    (line,) = explain(attend, resolve("h200"), {"B": 2, "T": 512}).lines
    assert (line.row.kernel, line.row.refusals) == ("pallas_gpu", ())
    (line,) = explain(attend, resolve("a100"), {"B": 2, "T": 512}).lines
    assert line.row.kernel != "pallas_gpu"
    assert any(kernel == "pallas_gpu" and "9.0" in reason for kernel, reason in line.row.refusals)
    text = str(explain(attend, resolve("a100"), {"B": 2, "T": 512}))
    assert "why not another kernel" in text and "pallas_gpu for attention: needs compute capability 9.0" in text


def test_the_roofline_is_the_larger_of_two_times():
    h200 = resolve("h200")
    assert Cost(0, int(h200.matmul_flops), 0).seconds(h200, DType.BF16) == pytest.approx(1)
    assert Cost(0, 0, int(h200.bandwidth)).seconds(h200, DType.BF16) == pytest.approx(1)
    assert Cost(0, int(h200.matmul_flops), 3 * int(h200.bandwidth)).seconds(h200, DType.BF16) == pytest.approx(3)
    slow = Cost(0, int(h200.matmul_flops), 0).seconds(h200, DType.F32)
    assert slow is not None and slow > 10, "float32 is not computed at the bf16 rate"


def test_lengths():
    known: Program = parse(STACK)
    assert lengths_of(known) == ("B", "T")
    assert default_lengths(known, {"T": 7}) == {"B": 8, "T": 7}
    with pytest.raises(TfcError) as caught:
        explain(known, resolve("cpu"), {"B": 1, "T": 1, "N": 3})
    (found,) = caught.value.diagnostics
    assert found.code == "E806" and "`N`" in found.message and "B, T" in found.help
    with pytest.raises(TfcError, match="E702"):
        explain(known, resolve("cpu"), {"B": 1})


def test_json_and_text_say_the_same():
    notes = (Note("fold-norms:layer.norm", "the scale is read twice"), Note("tiles:%o", "36 of 64", held=False))
    attend = parse(ATTEND.format(mask=""))
    report = explain(attend, resolve("h200"), {"B": 2, "T": 512}, stages=("fuse-attention",), notes=notes)
    said, text = json.loads(json.dumps(report.to_json())), str(report)
    assert [o["kernel"] for o in said["operations"]] == ["pallas_gpu"]
    assert said["lengths"] == {"B": 2, "T": 512} and said["passes"] == ["fuse-attention"]
    assert said["total"]["flops"] == report.total("flops") > 0
    assert [n["held"] for n in said["notes"]] == [True, False]
    assert "attend on h200, B = 2, T = 512" in text and "pallas_gpu" in text
    assert "fold-norms:layer.norm: held back: the scale is read twice" in text
