"""Measured times of block sizes, kept as JSON lines, turned into what an equation's kernel is configured with.

Asked first is the user's table, which `tfc tune` writes and which counts for the versions that it was measured with,
then the one that is shipped with the package. What neither has is left to the rules of `config_for` and the like.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfc.backends.kernel import Target
    from tfc.ir.program import Eqn

__all__ = ["SHIPPED", "best", "equation", "fields", "lines", "user_file", "versions"]

SHIPPED = Path(__file__).with_name("tuned.jsonl")
"""Lines as the user's, whatever versions they were measured with; none where the file is not there."""

VARIABLE = "TFC_TUNED"
"""Names another file than the one in the user's cache folder."""

Fields = Mapping[str, Any]
NOTHING: Fields = {}


def equation(eqn: "Eqn") -> str:
    """An attention's formulas and the types of its operands, as text: what a table is keyed by."""
    op: Any = eqn.op
    return f"score {op.score}; mask {op.mask}; weigh {op.weigh}; {', '.join(str(a.type) for a in eqn.args)}"


def fields(kernel: str, eqn: "Eqn", target: "Target") -> Fields:
    """What the tables say of a kernel (`forward`, `backward q` and the like, `decode`) for an equation whose shapes are
    bound: fields of its configuration, mostly none. Interpreted kernels are configured by rule."""
    known = NOTHING if target.interpret else _table().get((kernel, target.name))
    return known.get(equation(eqn), NOTHING) if known else NOTHING


@cache
def _table() -> dict[tuple[str, str], dict[str, Fields]]:
    """(kernel, device) -> equation -> fields; read once in a process."""
    out: dict[tuple[str, str], dict[str, Fields]] = {}
    for file, wanted in ((SHIPPED, None), (user_file(), versions)):  # of two that know an equation the later counts
        if file.exists():
            for line in best(lines(file, wanted() if wanted else None)).values():
                out.setdefault((line["kernel"], line["device"]), {})[line["equation"]] = line["config"]
    return out


def forget() -> None:
    """Lets the tables be read again: one of them has been written."""
    _table.cache_clear()


def best(measured: Iterator[Fields]) -> dict[tuple[str, str, str], Fields]:
    """(kernel, device, equation) -> the line with the least time; lines that say why there is none do not count."""
    out: dict[tuple[str, str, str], Fields] = {}
    for line in measured:
        key = (line["kernel"], line["device"], line["equation"])
        if "us" in line and (key not in out or line["us"] < out[key]["us"]):
            out[key] = line
    return out


def lines(file: Path, of: Mapping[str, str] | None = None) -> Iterator[Fields]:
    """The file's lines, of these versions where they are given. A line that is none, as an interrupted write leaves it,
    is passed over with a warning."""
    for number, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            whole = all(isinstance(line[word], str) for word in ("kernel", "device", "equation"))
            whole = whole and all(isinstance(line[word], dict) for word in ("config", "versions"))
            whole = whole and (isinstance(line["us"], int | float) if "us" in line else isinstance(line["error"], str))
        except (ValueError, KeyError, TypeError):
            whole, line = False, {}
        if not whole:
            warnings.warn(f"{file}:{number}: no line of a table of block sizes; it is passed over", stacklevel=2)
        elif of is None or line["versions"] == of:
            yield line


def user_file() -> Path:
    """Where `tfc tune` keeps what it measures."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("tfc"), "tuned.jsonl")


@cache
def versions() -> dict[str, str]:
    """Of tfc, of its kernels' sources and of JAX: a time that was measured with others says nothing."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    try:
        own = metadata.version("tfc")
    except metadata.PackageNotFoundError:  # run from its sources
        own = ""
    return {"tfc": own, "kernels": digest.hexdigest()[:12], "jax": metadata.version("jax")}
