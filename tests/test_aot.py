"""Compilation for devices that are not here: ptxas reports, refusals in words, and the real compilers."""

import os
import re
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tfc import aot
from tfc.diagnostics import TfcError
from tfc.targets import FACTS

F32 = jax.ShapeDtypeStruct((128, 128), jnp.float32)


@pytest.fixture(scope="module")
def nvidia():
    """The compilers for NVIDIA; a test that needs them says what is missing, and fails where TFC_AOT asks for it."""
    if lacking := aot.missing("h200"):
        (pytest.fail if os.environ.get("TFC_AOT") else pytest.skip)(f"pip install 'tfc[aot]': {', '.join(lacking)}")


def test_what_ptxas_says_is_read():
    """Two kernels, the second one spilling, as ptxas 13.5 prints them."""
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'attention_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for attention_mosaic_gpu_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers
ptxas info    : Compile time = 80.289 ms
ptxas info    : Compiling entry function 'other' for 'sm_100a'
ptxas info    : Function properties for other
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""
    assert aot.parse_ptxas(said) == (
        aot.KernelUse("attention", "sm_90a", 168, 0, 0, 0),
        aot.KernelUse("other", "sm_100a", 255, 16, 20, 24),
    )
    assert aot.parse_ptxas("nothing of ptxas") == ()


def test_the_cpu_is_always_here():
    done = aot.compile_for("cpu", lambda x, y: x @ y, F32, F32)
    assert done.memory["arguments"] == 2 * 128 * 128 * 4 and done.memory["results"] == 128 * 128 * 4
    assert done.cost is not None and done.cost["flops"] == 2 * 128**3
    assert done.kernels == ()


def test_an_artifact_computes_what_the_function_does():
    pytest.importorskip("flatbuffers")
    from jax import export

    data = aot.export_for("cpu", lambda x, y: {"sum": x + 2 * y}, F32, F32)
    x = jnp.arange(128.0 * 128).reshape(128, 128)
    loaded = export.deserialize(bytearray(data))
    assert loaded.platforms == ("cpu",)
    assert jnp.array_equal(loaded.call(x, x)["sum"], 3 * x)


@pytest.mark.parametrize("name", [n for n, f in FACTS.items() if f.platform != "cpu"])
def test_without_its_compiler_a_target_is_refused_by_package(monkeypatch, name):
    monkeypatch.setattr(aot, "_installed", lambda package: False)
    monkeypatch.setattr(aot, "ptxas_folder", lambda: "")
    tpu = FACTS[name].platform == "tpu"
    expected = ("libtpu",) if tpu else ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc")
    assert aot.missing(name) == expected
    with pytest.raises(TfcError) as caught:
        aot.compile_for(name, lambda x: x, F32)
    (found,) = caught.value.diagnostics
    assert found.code == "E802" and all(p in found.message for p in expected)
    assert found.help == f"pip install 'tfc[{'tpu' if tpu else 'aot'}]'"


def test_every_gpu_has_a_description_that_says_its_facts():
    for name in ("a100", "h100", "h200", "b200"):
        text, facts = aot.target_config(FACTS[name]), FACTS[name]
        major, minor = str(facts.capability).split(".")
        assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in text
        assert f"core_count: {facts.sms}\n" in text and f'device_description_str: "{facts.title}"' in text


def test_kernels_of_another_capability_need_another_process(monkeypatch):
    """JAX keeps compiled Mosaic kernels without regard to the capability they were compiled for."""
    monkeypatch.setattr(aot, "device", lambda name: jax.devices("cpu")[0])  # also where no compiler is installed
    monkeypatch.setitem(aot._PROCESS, "mosaic", 9.0)
    with pytest.raises(TfcError, match="E805"):
        aot.compile_for("b200", lambda x: x, F32)


@pytest.mark.aot
@pytest.mark.parametrize("name", ["h100", "h200"])
def test_xla_compiles_for_an_absent_gpu(nvidia, name):
    done = aot.compile_for(name, lambda x, y: jax.nn.gelu(x @ y), F32, F32)
    assert done.memory["arguments"] == 2 * 128 * 128 * 4
    assert aot.device(name).device_kind == FACTS[name].title


@pytest.mark.aot
def test_a_kernel_of_ours_compiles_and_tells_its_registers(nvidia, capfd):
    import jax.experimental.pallas.mosaic_gpu as plgpu

    def tripled(x_ref, out_ref):  # used nowhere else: JAX does not report a kernel that it has compiled before
        out_ref[...] = 3 * x_ref[...]

    launch = plgpu.kernel(tripled, out_type=F32)
    done = aot.compile_for("h200", lambda x: launch(x) + 1, F32)
    (kernel,) = done.kernels
    assert kernel.name == "tripled" and kernel.architecture == "sm_90a"
    assert 0 < kernel.registers <= 255 and kernel.spill_stores == kernel.spill_loads == 0
    assert any(c.startswith("mosaic_gpu") for c in done.calls)
    assert "ptxas" not in capfd.readouterr().out, "the report is read, not passed on"

    exported = aot.export_for("h200", lambda x: launch(x) + 1, F32)
    assert jax.export.deserialize(bytearray(exported)).platforms == ("cuda",)


@pytest.mark.aot
def test_cudnn_without_its_library_is_refused_in_words(nvidia):
    from importlib.util import find_spec

    if find_spec("nvidia.cudnn") is not None:
        pytest.skip("cuDNN is installed here")
    q = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
    with pytest.raises(TfcError) as caught:
        aot.compile_for("h200", lambda q: jax.nn.dot_product_attention(q, q, q, implementation="cudnn"), q)
    (found,) = caught.value.diagnostics
    assert found.code == "E803" and "nvidia-cudnn-cu13" in found.help


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v5e", "v6e"])
def test_xla_compiles_for_an_absent_tpu(name):
    if aot.missing(name):
        pytest.skip("pip install 'tfc[tpu]': libtpu is not installed")
    done = aot.compile_for(name, lambda x, y: x @ y, F32, F32)
    assert done.cost is not None and done.cost["flops"] >= 2 * 128**3


LLAMA = {"width": 512, "heads": 8, "kv_heads": 4, "hidden": 1024, "vocab": 1024}
MINILM = {"width": 384, "heads": 12, "kv_heads": 12, "hidden": 1536, "vocab": 1024}
MADE = re.compile(r"^\s+(?:ROOT )?%[\w.\-]+ = (.*?) ([\w\-]+)\(")
SIZES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8}


def decoding(layers, new, batch=4, length=4096, implementation=None, **sizes):
    """A call of `decode` with `new` tokens compiled for an H200; the shapes of its parameters and of its cache."""
    import tfc

    spec = Path(__file__).parents[1] / "examples/llama_block.tfm"
    model = tfc.compile(spec, target="h200", implementation=implementation, layers=layers, **sizes)
    packed = jax.eval_shape(model.pack, jax.eval_shape(model.init, jax.random.key(0)))
    cache = jax.eval_shape(lambda: model.init_cache(batch, length))
    tokens = jax.ShapeDtypeStruct((batch, new), jnp.int32)

    def step(p, c, t):
        return model.decoder.step(p, c, {"tokens": t}, None)

    return aot.compile_for("h200", step, packed, cache, tokens, donate=(1,)), packed, cache


@pytest.mark.aot
def test_a_decoding_step_writes_its_cache_in_place(nvidia):
    """Whatever the depth, temporaries are what one layer needs: no copy of all weights, nor of all that is kept; and
    the cache that comes out is the one that went in."""
    few, many = (decoding(n, 1, **LLAMA, compute="bf16")[0] for n in (2, 6))
    row = 2 * 4 * 4096 * 4 * 64 * 2  # a layer's keys and values, bfloat16
    assert many.memory["temporaries"] - few.memory["temporaries"] < row / 16
    assert many.memory["temporaries"] < row / 16
    assert many.memory["total"] < many.memory["arguments"] + many.memory["temporaries"] + row / 16


def largest(hlo: str, but: set[int]) -> int:
    """Bytes of the largest array that the optimized code makes. Of what is written in place the results look as large
    as what holds them: arrays of the sizes `but`, those of the caches, are left out."""
    inner = set(re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", hlo))
    found, within = [0], ""
    for line in hlo.splitlines():
        if head := re.match(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$", line):
            within = head[1]
        made = MADE.match(line)
        if not made or within in inner or made[2] in ("parameter", "get-tuple-element", "tuple", "bitcast", "while"):
            continue
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", made[1]):
            size = SIZES.get(kind, 0) * prod(int(n) for n in dims.split(",") if n)
            found.append(0 if size in but else size)
    return max(found)


@pytest.mark.aot
@pytest.mark.parametrize(
    ("sizes", "implementation", "batch", "length", "new"),
    [
        ({**LLAMA, "compute": "bf16"}, None, 1, 8192, 1),
        ({**LLAMA, "compute": "bf16"}, None, 4, 8192, 1),
        ({**LLAMA, "compute": "bf16"}, "xla", 4, 8192, 1),
        (LLAMA, None, 4, 8192, 1),
        ({**MINILM, "compute": "bf16"}, None, 2, 512, 1),
        ({**MINILM, "compute": "bf16"}, None, 2, 512, 8),
    ],
    ids=["one row", "four rows", "xla's attention", "float32", "small", "small, eight tokens"],
)
def test_a_decoding_step_copies_no_layer(nvidia, sizes, implementation, batch, length, new):
    """No temporary is as large as a layer's weights, or as what a layer keeps; nor are all together, as long as no
    array has a row for every key."""
    layers = 8
    done, packed, cache = decoding(layers, new, batch, length, implementation, **sizes)
    weights = sum(x.size * x.dtype.itemsize for path, x in packed.arrays.items() if path.startswith("layer.")) // layers
    stacks = {x.size * x.dtype.itemsize for x in cache.arrays.values()}
    kept = sum(x.size * x.dtype.itemsize for x in cache.arrays.values()) // layers
    assert len(cache.arrays) == 2
    scores = implementation == "xla" or "compute" not in sizes  # tfc's own kernel takes no float32
    assert done.memory["temporaries"] < (kept if scores else min(weights, kept))
    assert largest(done.executable.as_text(), stacks) < min(weights, kept) / 3


def test_arrays_in_compiled_code_are_found():
    """What the test above reads, of code with a slice of a stack, a fused computation and a cache written in place."""
    hlo = """HloModule m

%fused (p: f32[8]) -> f32[4096] {
  ROOT %wide = f32[4096]{0} broadcast(%p)
}

ENTRY %main (a: bf16[4,16,64], b: s32[]) -> bf16[4,16,64] {
  %a = bf16[4,16,64]{2,1,0} parameter(0)
  %slice = (bf16[1,16,64]{2,1,0}, f32[3]{0}) fusion(%a, %b), kind=kLoop, calls=%fused
  ROOT %written = bf16[4,16,64]{2,1,0} fusion(%a), kind=kInput, calls=%other
}
"""
    assert largest(hlo, {4 * 16 * 64 * 2}) == 16 * 64 * 2
    assert largest(hlo, set()) == 4 * 16 * 64 * 2
