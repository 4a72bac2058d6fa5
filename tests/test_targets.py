"""Names of devices: the table, its rooflines, names misspelt, and the devices that JAX shows."""

import subprocess
import sys
from dataclasses import fields

import pytest

from tfc.backends.kernel import Target
from tfc.diagnostics import TfcError
from tfc.targets import FACTS, Facts, named, of_kind, resolve

NVIDIA = [n for n, f in FACTS.items() if f.platform == "gpu"]
TPU = [n for n, f in FACTS.items() if f.platform == "tpu"]


def test_the_table_has_what_the_readme_names():
    assert set(FACTS) == {"cpu", "a100", "h100", "h200", "b200", "v4", "v5e", "v5p", "v6e", "tpu7x"}


@pytest.mark.parametrize("name", NVIDIA)
def test_nvidia_facts(name):
    facts = FACTS[name]
    assert facts.capability in (8.0, 9.0, 10.0) and facts.sms > 100
    assert 160 * 1024 <= facts.shared_memory <= 227 * 1024
    # every one of them needs 100 to 300 operations for a byte to be busy in bf16; a wrong power of ten shows
    assert 100 < facts.matmul_flops / facts.bandwidth < 320
    assert facts.f32_flops < facts.matmul_flops / 10


@pytest.mark.parametrize("name", TPU)
def test_tpu_facts(name):
    facts = FACTS[name]
    assert facts.topology.startswith(f"{name}:") and facts.capability == 0 and facts.sms == 0
    assert 100 < facts.matmul_flops / facts.bandwidth < 600


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("interpret", [False, True])
def test_resolve_copies_every_fact_that_a_target_has(name, interpret):
    target = resolve(name, interpret)
    assert (target.name, target.interpret) == (name, interpret)
    shared = {f.name for f in fields(Target)} & {f.name for f in fields(Facts)}
    assert shared == {f.name for f in fields(Target)} - {"name", "interpret"}
    assert all(getattr(target, f) == getattr(FACTS[name], f) for f in shared)


def test_auto_is_the_device_that_jax_shows():
    import jax

    found = resolve("auto")
    assert found.platform == jax.devices()[0].platform


@pytest.mark.parametrize(
    ("platform", "kind", "name"),
    [
        ("cpu", "cpu", "cpu"),
        ("gpu", "NVIDIA H200", "h200"),
        ("cuda", "NVIDIA H100 80GB HBM3", "h100"),
        ("gpu", "NVIDIA H100 PCIe", "h100"),
        ("gpu", "NVIDIA A100-SXM4-80GB", "a100"),
        ("tpu", "TPU v5 lite", "v5e"),
        ("tpu", "TPU v5p", "v5p"),
        ("tpu", "TPU v6 lite", "v6e"),
        ("gpu", "NVIDIA GeForce RTX 4090", ""),
        ("gpu", "TPU v4", ""),
    ],
)
def test_devices_by_what_they_call_themselves(platform, kind, name):
    assert of_kind(platform, kind) == name


@pytest.mark.parametrize(("typed", "meant"), [("h20", "h200"), ("H200", "h200"), ("v5", "v5"), ("gpu", ""), ("", "")])
def test_a_misspelt_name_gets_a_suggestion(typed, meant):
    with pytest.raises(TfcError) as caught:
        named(typed)
    (found,) = caught.value.diagnostics
    assert found.code == "E801" and f"`{typed}`" in found.message
    assert (f"did you mean `{meant}" in found.help) == bool(meant)
    assert all(name in found.help for name in FACTS)


def test_the_names_need_no_jax():
    code = "import sys, tfc.targets; print([m for m in ('jax', 'numpy', 'ml_dtypes') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
