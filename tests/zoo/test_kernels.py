"""Systems of streaming attention name the kernel that they expect on an H200, in bf16; here is what is chosen."""

import re
from pathlib import Path

import pytest

from tfc.backends.emit import emit
from tfc.explain import default_lengths
from tfc.front import front
from tfc.ir.ops import Attention
from tfc.targets import resolve
from tfc.testing.specs import read_head

ZOO = Path(__file__).parents[2] / "examples" / "zoo"

LISTED = {
    "MHA, GQA": "softmax/qwen3",
    "GQA": "softmax/llama3",
    "MQA": "lowrank/minimum",
    "ALiBi": "softmax/bloom",
    "T5": "softmax/t5",
    "Gemma-2": "softmax/gemma2",
    "learned sinks": "softmax/gpt_oss",
    "first tokens as sinks": "softmax/streaming_llm",
    "packed (ByteTransformer)": "softmax/bytetransformer",
    "Longformer": "sparse/longformer",
    "BigBird": "sparse/bigbird",
    "Sparse Transformer": "sparse/sparse_transformer",
    "MASFormer": "sparse/masformer",
    "LS-attention": "sparse/ls_attention",
    "CLEAR": "sparse/clear",
    "Swin": "vision/swin",
    "CrossFormer": "vision/crossformer",
    "GC ViT": "vision/gc_vit",
    "FIT": "vision/fit",
    "FlatFormer": "vision/flatformer",
    "FlashVGGT": "vision/flashvggt",
    "CvT": "vision/cvt",
    "SegFormer": "vision/segformer",
    "LXMERT": "vision/lxmert",
    "iTransformer": "vision/itransformer",
    "Mixture-of-Transformers": "vision/mixture_of_transformers",
    "MixFormer": "vision/mixformer",
    "Primer": "softmax/primer",
    "GTrXL": "softmax/gtrxl",
    "gated attention": "softmax/gated_attention",
    "HSTU": "softmax/hstu",
    "TokenFormer": "lowrank/tokenformer",
}
"""Systems of families A and B that the Hopper kernel is meant for, by their specs."""

OTHERS = sorted(
    name
    for name in (p.relative_to(ZOO).with_suffix("").as_posix() for p in ZOO.rglob("*.tfm"))
    if name not in LISTED.values() and read_head(ZOO / f"{name}.tfm").kernels
)
LONG = 48
"""Letters of a formula in a reason up to which heads repeat it."""


def chosen(file: Path) -> list[str]:
    """What runs the spec's attentions, each answer once: `pallas_gpu`, or `xla: why pallas_gpu refuses`."""
    program = front(file).result.program
    rows = emit(program, resolve("h200")).plan(default_lengths(program, {}))
    return list(dict.fromkeys(said(r.kernel, dict(r.refusals)) for r in rows if isinstance(r.eqn.op, Attention)))


def said(kernel: str, refusals: dict[str, str]) -> str:
    if kernel == "pallas_gpu":
        return kernel
    reason = re.sub(rf"`[^`]{{{LONG},}}`", "`..`", refusals["pallas_gpu"])
    return f"xla: {reason}"  # cuDNN comes before it where its library is


@pytest.mark.parametrize("name", [*LISTED.values(), *OTHERS])
def test_each_names_the_kernels_that_run_it(name: str, zoo: Path, request: pytest.FixtureRequest) -> None:
    found = chosen(zoo / f"{name}.tfm")
    file = ZOO / f"{name}.tfm"
    if request.config.getoption("--update-golden"):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# kernel: ")]
        file.write_text(
            "\n".join([lines[0], *(f"# kernel: {one}" for one in found), *lines[1:]]) + "\n", encoding="utf-8"
        )
    named = read_head(file).kernels
    print(f"{name}: {'; '.join(found)}")
    assert found, "has no attention that could be fused"
    assert sorted(named) == sorted(found), "\n".join(["what its head should say:", *(f"# kernel: {x}" for x in found)])


def test_most_of_the_list_run_on_our_kernel() -> None:
    """Of those that do not, in whole or in part, this says why (-rP shows it)."""
    heads = {what: read_head(ZOO / f"{name}.tfm").kernels for what, name in LISTED.items()}
    for what, kernels in heads.items():
        print(f"{what}: {'; '.join(kernels)}")
    assert sum(kernels == ("pallas_gpu",) for kernels in heads.values()) >= 22
