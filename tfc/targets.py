"""Names of devices into facts about them: `h200` -> a `Target` that kernels, rooflines and compilers read.

The table is importable without JAX; `resolve` loads it. Sources, one a family:

- NVIDIA capability, multiprocessors, shared memory: CUDA C++ Programming Guide, "Technical Specifications per
  Compute Capability"; memory, bandwidth, dense bf16 rate: the data sheets of A100 80GB SXM, H100 SXM5, H200 SXM
  and DGX B200 (rates printed there with sparsity are halved).
- TPU: cloud.google.com/tpu/docs, the page of each version; rates are a chip's. A JAX device is a chip of v4, v5p,
  v5e and v6e, and half a chip of tpu7x.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from glob import glob
from typing import TYPE_CHECKING, Literal

from tfc.diagnostics import Diagnostic, TfcError, closest

if TYPE_CHECKING:
    from tfc.backends.kernel import Target

__all__ = ["FACTS", "Facts", "named", "names", "resolve", "skip_absent"]

GIB = 2**30
TERA = 1e12


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a device without one at hand. Zero means unknown or meaningless.

    title: how the device calls itself (`device_kind` in JAX). capability: NVIDIA's compute capability.
    sms: multiprocessors. shared_memory: bytes a block may ask for. memory, l2: bytes. bandwidth: bytes/s.
    matmul_flops: dense bf16 FLOP/s. f32_flops: IEEE float32 FLOP/s, on TPU by six bf16 products.
    clock_ghz: the boost clock. topology: the smallest slice that the TPU compiler accepts.
    kinds: other names that JAX devices of this target go by.
    """

    platform: Literal["cpu", "gpu", "tpu"]
    title: str
    capability: float = 0.0
    sms: int = 0
    shared_memory: int = 0
    memory: int = 0
    bandwidth: float = 0.0
    matmul_flops: float = 0.0
    f32_flops: float = 0.0
    l2: int = 0
    clock_ghz: float = 0.0
    topology: str = ""
    kinds: tuple[str, ...] = ()


FACTS: Mapping[str, Facts] = {
    "cpu": Facts(platform="cpu", title="cpu"),
    "a100": Facts(
        platform="gpu", title="NVIDIA A100-SXM4-80GB", capability=8.0, sms=108, shared_memory=163 * 1024,
        memory=80 * GIB, bandwidth=2.039 * TERA, matmul_flops=312 * TERA, f32_flops=19.5 * TERA,
        l2=40 * 2**20, clock_ghz=1.41,
        kinds=("NVIDIA A100",),
    ),
    "h100": Facts(
        platform="gpu", title="NVIDIA H100 80GB HBM3", capability=9.0, sms=132, shared_memory=227 * 1024,
        memory=80 * GIB, bandwidth=3.35 * TERA, matmul_flops=989.4 * TERA, f32_flops=66.9 * TERA,
        l2=50 * 2**20, clock_ghz=1.98,
        kinds=("NVIDIA H100",),
    ),
    "h200": Facts(
        platform="gpu", title="NVIDIA H200", capability=9.0, sms=132, shared_memory=227 * 1024,
        memory=141 * 10**9, bandwidth=4.8 * TERA, matmul_flops=989.4 * TERA, f32_flops=66.9 * TERA,
        l2=50 * 2**20, clock_ghz=1.98,
    ),
    "b200": Facts(
        platform="gpu", title="NVIDIA B200", capability=10.0, sms=148, shared_memory=227 * 1024,
        memory=180 * 10**9, bandwidth=8.0 * TERA, matmul_flops=2250 * TERA, f32_flops=75 * TERA,
        l2=126 * 2**20, clock_ghz=1.965,
    ),
    "v4": Facts(
        platform="tpu", title="TPU v4", memory=32 * GIB, bandwidth=1.2 * TERA, matmul_flops=275 * TERA,
        f32_flops=275 / 6 * TERA, topology="v4:2x2x1",
    ),
    "v5e": Facts(
        platform="tpu", title="TPU v5 lite", memory=16 * GIB, bandwidth=0.819 * TERA, matmul_flops=197 * TERA,
        f32_flops=197 / 6 * TERA, topology="v5e:2x2", kinds=("TPU v5e",),
    ),
    "v5p": Facts(
        platform="tpu", title="TPU v5", memory=95 * GIB, bandwidth=2.765 * TERA, matmul_flops=459 * TERA,
        f32_flops=459 / 6 * TERA, topology="v5p:2x2x1", kinds=("TPU v5p",),
    ),
    "v6e": Facts(
        platform="tpu", title="TPU v6 lite", memory=32 * GIB, bandwidth=1.64 * TERA, matmul_flops=918 * TERA,
        f32_flops=918 / 6 * TERA, topology="v6e:2x2", kinds=("TPU v6e",),
    ),
    "tpu7x": Facts(
        platform="tpu", title="TPU7x", memory=192 * GIB, bandwidth=7.37 * TERA, matmul_flops=2307 * TERA,
        f32_flops=2307 / 6 * TERA, topology="tpu7x:2x2x1", kinds=("TPU v7x", "TPU v7"),
    ),
}  # fmt: skip
"""Every target that has a name."""


def names() -> tuple[str, ...]:
    """What `--target` takes, without `auto`."""
    return tuple(FACTS)


def named(name: str) -> Facts:
    """The facts of a target. Raises TfcError (E801) for a name that is not in the table."""
    if name in FACTS:
        return FACTS[name]
    like = "" if name in ("gpu", "cuda", "tpu") else closest(name.lower(), (*FACTS, "auto"))  # `cpu` is near `gpu`
    raise TfcError(
        Diagnostic(
            "E801",
            f"there is no target `{name}`",
            help=(f"did you mean `{like}`? " if like else "") + f"targets are auto, {', '.join(FACTS)}",
        )
    )


def of_kind(platform: str, kind: str) -> str:
    """The target that a JAX device of that platform and `device_kind` is, or an empty string."""
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    if platform == "cpu":
        return "cpu"
    for name, facts in FACTS.items():
        if facts.platform == platform and kind in (facts.title, *facts.kinds):
            return name
    # boards of one chip differ in the rest of their names: "NVIDIA H100 PCIe", "NVIDIA H200 NVL"
    titles = [(k, name) for name, f in FACTS.items() if f.platform == platform for k in (f.title, *f.kinds)]
    return max(((k, name) for k, name in titles if kind.startswith(k + " ")), default=("", ""))[1]


def skip_absent() -> None:
    """Where Linux shows no accelerator, tells JAX not to look for one, unless JAX_PLATFORMS says what to look for.

    The CUDA plugin, installed to compile for absent GPUs, prints a traceback when it is asked for present ones.
    JAX reads the variable when it is imported: call this before.
    """
    nodes = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
    if sys.platform == "linux" and not any(glob(n) for n in nodes):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def resolve(name: str = "auto", interpret: bool = False) -> "Target":
    """The target of that name; `auto` is the first device that JAX finds here. Loads JAX.

    interpret: run the target's kernels by interpretation on this machine's CPU.
    Raises TfcError: E801 for an unknown name.
    """
    from tfc.backends.kernel import Target

    if name == "auto":
        return _present()
    facts = named(name)
    return Target(
        name=name,
        platform=facts.platform,
        capability=facts.capability,
        sms=facts.sms,
        shared_memory=facts.shared_memory,
        memory=facts.memory,
        bandwidth=facts.bandwidth,
        matmul_flops=facts.matmul_flops,
        interpret=interpret,
    )


def _present() -> "Target":
    """The first JAX device; one that the table lacks is described by what it says of itself."""
    import jax

    from tfc.backends.kernel import Target

    device = jax.devices()[0]
    if known := of_kind(device.platform, device.device_kind):
        return resolve(known)
    if device.platform != "gpu":
        return Target(name=device.device_kind, platform="tpu" if device.platform == "tpu" else "cpu")
    return Target(
        name=device.device_kind,
        platform="gpu",
        capability=float(getattr(device, "compute_capability", 0.0)),
        sms=int(getattr(device, "core_count", 0)),
        shared_memory=int(getattr(device, "shared_memory_per_block_optin", 0)),
    )
