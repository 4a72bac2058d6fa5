"""tfc: specs of transformers compiled to JAX and Pallas. The public names, resolved when first used.

`import tfc` and the commands that only read specs load no JAX: `compile`, `Model` and `import_hf` do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfc.compiler import compile
    from tfc.diagnostics import TfcError
    from tfc.importers.hf import import_hf
    from tfc.model import Model, Packed
    from tfc.testing.spec_laws.verifying import verify

__all__ = ["Model", "Packed", "TfcError", "__version__", "compile", "import_hf", "verify"]

__version__ = "0.1.0"

_WHERE = {
    "Model": "tfc.model",
    "Packed": "tfc.model",
    "TfcError": "tfc.diagnostics",
    "compile": "tfc.compiler",
    "import_hf": "tfc.importers.hf",
    "verify": "tfc.testing.spec_laws.verifying",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tfc' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
