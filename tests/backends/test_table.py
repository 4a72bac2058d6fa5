"""The table of kernels: complete, asked in order, refusing in words; and its picture in the README."""

from pathlib import Path

import jax
import pytest

import tfc.backends
from tfc.backends.kernel import Kernel, Target
from tfc.backends.overview import TYPICAL, markdown
from tfc.backends.table import IMPLEMENTATIONS, KERNELS, choose, known
from tfc.diagnostics import TfcError
from tfc.ir import ops
from tfc.ir.ops import OPS, Attention, Linear, Op, Repeat, Route
from tfc.ir.program import Eqn, Value
from tfc.ir.types import DType, TensorType
from tfc.targets import names, resolve

CPU = Target(name="cpu", platform="cpu")


def equation(op: Op, *types: TensorType) -> Eqn:
    outs = tuple(Value(f"o{i}", t) for i, t in enumerate(op.infer(*types)))
    return Eqn(outs, op, tuple(Value(f"a{i}", t) for i, t in enumerate(types)))


def attention(dtype: DType = DType.BF16, d: int = 64) -> Eqn:
    return equation(Attention(scale=0.125), *[TensorType((1, 128, 2, d), dtype)] * 3)


def test_every_operation_without_a_body_has_kernels_of_its_own_and_the_reference_last():
    assert set(KERNELS) == set(OPS.values()) - {Repeat, Route}
    for op, row in KERNELS.items():
        assert all(k.op is op for k in row)
        assert row[-1].name == "reference" and len({k.name for k in row}) == len(row)
    assert set(IMPLEMENTATIONS) == {"pallas_gpu", "cudnn", "xla", "reference"}


@pytest.mark.parametrize("name", names())
def test_every_target_is_served(name: str):
    for attributes, types in TYPICAL.values():
        assert choose(equation(attributes, *types), resolve(name)).kernel is not None


def test_the_first_that_serves_is_chosen_and_the_others_say_why_not():
    on_h200 = choose(attention(), resolve("h200"))
    assert (on_h200.kernel.name, on_h200.refusals) == ("pallas_gpu", ())
    on_cpu = choose(attention(), CPU)
    assert on_cpu.kernel.name == "xla"
    assert [name for name, _ in on_cpu.refusals] == ["pallas_gpu", "cudnn"]
    assert all(reason for _, reason in on_cpu.refusals)
    assert choose(attention(DType.F32), resolve("h200")).kernel.name == "xla"


def test_a_forced_kernel_serves_or_raises_with_the_reason():
    assert choose(attention(), CPU, "reference").kernel.name == "reference"
    assert choose(attention(), resolve("h200"), "xla").kernel.name == "xla"
    with pytest.raises(TfcError) as caught:
        choose(attention(DType.F32), resolve("h200"), "pallas_gpu")
    (found,) = caught.value.diagnostics
    assert found.code == "E812" and "pallas_gpu" in found.message and "f32" in found.message
    assert found.help == "default precision { compute = bf16 }; implementation xla or reference would serve as it is"


def test_a_forced_kernel_says_everything_that_stands_against_it():
    with pytest.raises(TfcError) as caught:
        choose(attention(DType.F32, d=72), resolve("b200"), "pallas_gpu")
    said = [d.message.partition(" on b200: ")[2] for d in caught.value.diagnostics]
    assert said == [
        "needs compute capability 9.0 (Hopper), the target has 10.0",
        "computes in bf16 or f16, the operands are f32",
        "head size 72: takes multiples of 16 up to 256",
    ]


@pytest.mark.parametrize("kernel", [k for row in KERNELS.values() for k in row if k.reasons], ids=lambda k: k.name)
@pytest.mark.parametrize("target", names())
def test_the_first_of_all_reasons_is_the_one_of_a_refusal(kernel: Kernel, target: str):
    for eqn in (attention(), attention(DType.F32, d=72)):
        found = kernel.against(eqn, resolve(target))
        assert kernel.refuse(eqn, resolve(target)) == (found[0].text if found else None)


def test_an_operation_without_a_kernel_of_the_forced_name_chooses_for_itself():
    eqn = equation(Linear(), TensorType((2, 3), DType.F32), TensorType((3, 4), DType.F32))
    assert choose(eqn, CPU, "pallas_gpu").kernel.name == "xla"


def test_an_unknown_implementation_is_refused_with_a_suggestion():
    known(None)
    known("xla")
    with pytest.raises(TfcError, match="did you mean `cudnn`"):
        known("cudn")


def test_float64_is_refused_until_jax_has_it():
    eqn = equation(ops.Reduction(fn="sum"), TensorType((2, 3), DType.F64))
    with pytest.raises(TfcError, match=r"xla nor reference cannot serve .*jax_enable_x64"):
        choose(eqn, CPU)
    with jax.enable_x64(True):
        assert choose(eqn, CPU).kernel.name == "xla"


def test_the_readme_shows_the_table():
    readme = Path(tfc.backends.__path__[0]) / "README.md"
    table = markdown(resolve(name) for name in names())
    assert table in readme.read_text(), "python -m tfc.backends.overview prints the table that README.md should have"
