"""A function and the name of a device, present or not, into compiled code with what its compiler says of it.

The real compilers run: XLA, Mosaic GPU and ptxas for NVIDIA, libtpu for TPU. What they lack without the device is
a way to run the result, autotuning, and cuDNN (its library is asked while compiling): a call of it is refused.
"""

import ctypes
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tfc.diagnostics import Diagnostic, TfcError
from tfc.targets import Facts, named, of_kind

__all__ = ["Compiled", "KernelUse", "compile_for", "device", "export_for", "missing", "ptxas_folder"]

_PROCESS: dict[str, float] = {}
"""The capability that this process compiled Mosaic GPU kernels for: JAX keeps them without regard to it."""


@dataclass(frozen=True, slots=True)
class KernelUse:
    """What ptxas says of one kernel. spills: bytes stored and loaded because registers did not suffice."""

    name: str
    architecture: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled function. memory: bytes of arguments, results, temporaries, code and their sum, on the device.

    cost: XLA's own count (`flops`, `bytes accessed`), None where this compiler gives none without the device.
    kernels: one entry a Mosaic GPU kernel that this process had not compiled yet, none for a TPU.
    calls: the targets of custom calls in the final code.
    """

    target: str
    executable: Any
    seconds: float
    memory: Mapping[str, int]
    cost: Mapping[str, float] | None
    kernels: tuple[KernelUse, ...]
    calls: tuple[str, ...]


def missing(name: str) -> tuple[str, ...]:
    """The packages that compiling for the target takes and that are not installed; empty when it can be done.

    Raises TfcError (E801) for an unknown target.
    """
    facts = named(name)
    if facts.platform == "cpu":
        return ()
    if facts.platform == "tpu":
        return () if _installed("libtpu") else ("libtpu",)
    wanted = [p for p in ("jax-cuda13-plugin", "jax-cuda13-pjrt") if not _installed(p)]
    return (*wanted, *(() if ptxas_folder() else ("nvidia-cuda-nvcc",)))


def device(name: str) -> Any:
    """A JAX device to place shapes on: the one here, or else the compiler's idea of the target.

    Raises TfcError: E801 unknown target, E802 its compiler is not installed.
    """
    import jax

    facts = named(name)
    if facts.platform == "cpu":
        return jax.devices("cpu")[0]
    if lacking := missing(name):
        extra = "tpu" if facts.platform == "tpu" else "aot"
        raise TfcError(
            Diagnostic(
                "E802",
                f"cannot compile for {name} here: {' and '.join(lacking)} not installed",
                help=f"pip install 'tfc[{extra}]'",
            )
        )
    if facts.platform == "gpu":
        _ptxas_on_path()
    if here := [d for d in jax.devices() if of_kind(d.platform, d.device_kind) == name]:
        return here[0]
    from jax.experimental import topologies

    if facts.platform == "tpu":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        return topologies.get_topology_desc(platform="tpu", topology_name=facts.topology).devices[0]
    described = topologies.get_topology_desc(
        platform="cuda", topology_name=name, target_config=target_config(facts), topology="1x1x1"
    )
    return described.devices[0]


def target_config(facts: Facts) -> str:
    """The text form of XLA's GpuTargetConfigProto (xla/stream_executor/device_description.proto) for an NVIDIA GPU.

    What no kernel depends on is the same for every capability: warps of 32, blocks of at most 1024 threads,
    65536 registers a multiprocessor.
    """
    major, minor = divmod(round(facts.capability * 10), 10)
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_core: {facts.shared_memory + 1024}
  shared_memory_per_block_optin: {facts.shared_memory}
  threads_per_core_limit: 2048
  core_count: {facts.sms}
  fpus_per_core: {64 if facts.capability == 8.0 else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {facts.bandwidth:.0f}
  l2_cache_size: {facts.l2}
  clock_rate_ghz: {facts.clock_ghz}
  device_memory_size: {facts.memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{facts.title}"
"""


def compile_for(name: str, function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Compiled:
    """Compiles `function` for the target. args: pytrees of arrays or `jax.ShapeDtypeStruct`s, for their shapes.

    Raises TfcError: E801 and E802 as `device` does, E803 where the program calls cuDNN, which is not installed,
    E805 where this process compiled kernels for another compute capability before.
    """
    import jax
    from jax.sharding import SingleDeviceSharding

    place = SingleDeviceSharding(device(name))
    capability = named(name).capability
    if capability and _PROCESS.get("mosaic", capability) != capability:
        raise TfcError(
            Diagnostic(
                "E805",
                f"{name} has compute capability {capability}, and this process has compiled kernels for "
                f"{_PROCESS['mosaic']}, which JAX would reuse",
                help="compile for one capability a process (each `tfc compile` is one)",
            )
        )
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args)
    platform = {"gpu": "cuda"}.get(named(name).platform, named(name).platform)
    began = time.perf_counter()
    with _ptxas_report() as said:
        try:
            lowered = (
                jax.jit(_plain(function), donate_argnums=donate).trace(*shapes).lower(lowering_platforms=(platform,))
            )
            executable = lowered.compile()
        except RuntimeError as error:
            if "cuDNN not found" not in str(error):
                raise
            raise TfcError(
                Diagnostic(
                    "E803",
                    f"the program calls cuDNN, which {name}'s compiler needs at hand and does not find",
                    help="pip install nvidia-cudnn-cu13, or choose another kernel (--implementation pallas_gpu, xla)",
                )
            ) from error
    seconds = time.perf_counter() - began
    calls = tuple(sorted(set(re.findall(r'custom_call_target="([^"]+)"', executable.as_text() or ""))))
    if any(c.startswith("mosaic_gpu") for c in calls):
        _PROCESS["mosaic"] = capability
    return Compiled(
        target=name,
        executable=executable,
        seconds=seconds,
        memory=_memory(executable.memory_analysis()),
        cost=_cost(executable.cost_analysis()),
        kernels=parse_ptxas("".join(said)),
        calls=calls,
    )


def export_for(name: str, function: Callable[..., Any], *args: Any) -> bytes:
    """The function lowered for the target's platform, as `jax.export` serializes it (load: `jax.export.deserialize`).

    It holds StableHLO and the kernels' code for exactly these shapes; the target's JAX compiles it when loaded.
    Raises TfcError (E804) where flatbuffers, which serializing takes, is not installed.
    """
    import jax
    from jax import export

    if find_spec("flatbuffers") is None:
        raise TfcError(Diagnostic("E804", "writing an artifact takes flatbuffers", help="pip install 'tfc[aot]'"))
    facts = named(name)
    platform = {"gpu": "cuda"}.get(facts.platform, facts.platform)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    exported = export.export(
        jax.jit(_plain(function)),
        platforms=[platform],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(c) for c in ("mosaic_gpu_v2", "tpu_custom_call")],
    )(*shapes)
    return bytes(exported.serialize())


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function: `jax.jit` keeps weak references, which not every callable object takes."""

    def call(*args: Any) -> Any:
        return function(*args)

    return call


def parse_ptxas(text: str) -> tuple[KernelUse, ...]:
    """The kernels of a `ptxas -v` report, in its order."""
    found = []
    parts = re.split(r"Compiling entry function '([^']+)' for '([^']+)'", text)
    for name, architecture, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        registers = re.search(r"Used (\d+) registers", body)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", body)
        stack, stores, loads = (int(n) for n in frame.groups()) if frame else (0, 0, 0)
        kernel = name.removesuffix("_mosaic_gpu_kernel")
        found.append(KernelUse(kernel, architecture, int(registers[1]) if registers else 0, stores, loads, stack))
    return tuple(found)


def _memory(stats: Any) -> dict[str, int]:
    if stats is None:
        return {}
    parts = {
        "arguments": int(stats.argument_size_in_bytes),
        "results": int(stats.output_size_in_bytes),
        "temporaries": int(stats.temp_size_in_bytes),
        "code": int(stats.generated_code_size_in_bytes),
    }
    return {**parts, "total": sum(parts.values()) - int(stats.alias_size_in_bytes)}


def _cost(analysis: Any) -> dict[str, float] | None:
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else None
    if not analysis:
        return None
    return {k: float(v) for k, v in analysis.items() if k in ("flops", "bytes accessed", "transcendentals")}


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def ptxas_folder() -> str:
    """The folder of ptxas: a CUDA wheel's first (it fits the plugin), else what the PATH has; empty if none."""
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for folder in ("cu13/bin", "cuda_nvcc/bin"):
            if (Path(root) / folder / "ptxas").is_file():
                return str(Path(root) / folder)
    found = shutil.which("ptxas")
    return str(Path(found).parent) if found else ""


def _ptxas_on_path() -> None:
    """Mosaic GPU looks ptxas up on the PATH while it compiles."""
    folder, path = ptxas_folder(), os.environ.get("PATH", "")
    if folder and folder != path.split(os.pathsep)[0]:
        os.environ["PATH"] = folder + os.pathsep + path


@contextmanager
def _ptxas_report() -> Iterator[list[str]]:
    """Collects what Mosaic GPU's ptxas prints, which goes to the process's file descriptors and not to `sys.stdout`.

    Other text that arrives meanwhile is passed on to the real stderr afterwards. JAX keeps compiled kernels: one that
    this process compiled before is not reported again.
    """
    said: list[str] = []
    before = os.environ.get("MOSAIC_GPU_DUMP_PTXAS")
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as into:
        try:
            os.dup2(into.fileno(), 1)
            os.dup2(into.fileno(), 2)
            yield said
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            ctypes.CDLL(None).fflush(None)  # what C code left in its buffers belongs here, too
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
            if before is None:
                del os.environ["MOSAIC_GPU_DUMP_PTXAS"]
            else:
                os.environ["MOSAIC_GPU_DUMP_PTXAS"] = before
            into.seek(0)
            text = into.read().decode(errors="replace")
            said.append(text)
            if other := [line for line in text.splitlines() if line.strip() and not _of_ptxas(line)]:
                print("\n".join(other), file=sys.stderr)


def _of_ptxas(line: str) -> bool:
    return line.startswith("ptxas ") or "bytes stack frame" in line
