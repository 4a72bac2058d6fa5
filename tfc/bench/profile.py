"""A jitted function and its arguments turned into the share of its time that each operation of the program takes.

XLA's profiler times what XLA runs: loops that it fused of several operations have all their names, `attention` or
`ffn+linear+reduction`; what belongs to no operation (slices of stacked weights, copies) is `other`.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax

__all__ = ["operations", "shares"]

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = .*?\b([a-z-]+)\(", re.MULTILINE)
LOOPS = ("while", "call", "conditional")
"""Instructions whose time is that of the instructions within."""


def operations(compiled: str, known: Collection[str]) -> dict[str, str]:
    """The operations of each instruction of an optimized program's text, those within a fusion joined by `+`.

    known: the names of operations, which `emit` makes scopes of.
    """
    parts = re.split(r"^(?=%|ENTRY)", compiled, flags=re.MULTILINE)
    within = {m[1]: _named(part, known) for part in parts if (m := re.match(r"%([\w.-]+) \(", part))}
    found = {}
    for line in compiled.splitlines():
        if (m := INSTRUCTION.match(line)) and m[2] not in LOOPS:
            called = re.search(r"calls=%([\w.-]+)", line)
            names = within.get(called[1], frozenset()) if called else frozenset()
            found[m[1]] = "+".join(sorted(names or _named(line, known))) or "other"
    return found


def _named(text: str, known: Collection[str]) -> frozenset[str]:
    scopes = {part for path in re.findall(r'op_name="([^"]*)"', text) for part in re.split(r"[/;]", path)}
    return frozenset(scopes & set(known))


def shares(call: Callable[[], Any], compiled: str, known: Collection[str], calls: int = 5) -> Mapping[str, float]:
    """Shares of the time that instructions take in some calls, summed over threads, the largest first.

    compiled: the optimized program's text, whose instructions have the names that the profiler says.
    """
    of = operations(compiled, known)
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        spent: Counter[str] = Counter()
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in of:
                        spent[of[event.name]] += event.duration_ns
    total = sum(spent.values())
    return {name: round(t / total, 4) for name, t in spent.most_common()}
