"""`tfc compile`: a spec and the name of a device -> compiled code, what its compiler says of it, and an artifact."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import jax

from tfc.aot import Compiled, compile_for, export_for
from tfc.backends.emit import emit
from tfc.backends.kernel import DTYPES
from tfc.commands.numbers import whole_numbers
from tfc.commands.progress import progress
from tfc.diagnostics import Diagnostic, TfcError
from tfc.explain import Report, default_lengths, explain
from tfc.front import front
from tfc.ir.program import Program
from tfc.targets import resolve

__all__ = ["compile_", "shapes"]


def compile_(
    file: str,
    sets: Mapping[str, str],
    target: str,
    shape: Mapping[str, str],
    implementation: str | None,
    output: str | None,
    as_json: bool,
) -> int:
    """Compiles, prints the report, writes `report.json` and the artifact, and returns the exit code."""
    built = front(file, sets)
    program, facts = built.result.program, resolve(target)
    lengths = default_lengths(program, whole_numbers(shape))
    passes = [stage.name for stage in built.result.stages[1:]]
    report = explain(program, facts, lengths, implementation, stages=passes, notes=built.result.notes)
    emitted = emit(program, facts, implementation)
    arguments = shapes(program, lengths)
    with progress(f"compiling {program.name} for {facts.name}"):
        compiled = compile_for(facts.name, emitted, *arguments)
    said = {**report.to_json(), **_json(compiled)}
    written: list[str] = []
    if output is not None:
        try:
            with progress("exporting"):
                artifact = export_for(facts.name, emitted, *arguments)
            written.append(_write(Path(output), f"{program.name}.{facts.name}.jax", artifact))
            said["artifact"] = Path(written[0]).name
        except (NotImplementedError, ValueError) as error:  # what jax.export says of a program it cannot serialize
            said["artifact"], said["artifact_refused"] = None, str(error).splitlines()[0]
        written.append(_write(Path(output), "report.json", (json.dumps(said, indent=2) + "\n").encode()))
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return 0
    click.echo(str(report))
    click.echo("\n".join(["", *_text(compiled, report)]))
    if said.get("artifact_refused"):
        click.echo(f"no artifact: {said['artifact_refused']}")
    for path in written:
        click.echo(f"wrote {path}")
    return 0


def shapes(program: Program, lengths: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters by path, inputs by name) as shapes, for these lengths."""
    bound = program.bind(lengths)
    params = {s.path: jax.ShapeDtypeStruct(s.type.ints, DTYPES[s.type.dtype]) for s in bound.stored()}
    inputs = {i.value.name: jax.ShapeDtypeStruct(i.value.type.ints, DTYPES[i.value.type.dtype]) for i in bound.inputs}
    return params, inputs


def _json(compiled: Compiled) -> dict[str, Any]:
    return {
        "compile_seconds": round(compiled.seconds, 3),
        "memory": dict(compiled.memory),
        "compiler_cost": None if compiled.cost is None else dict(compiled.cost),
        "kernels": [
            {
                "name": k.name,
                "architecture": k.architecture,
                "registers": k.registers,
                "spill_stores": k.spill_stores,
                "spill_loads": k.spill_loads,
                "stack": k.stack,
            }
            for k in compiled.kernels
        ],
        "custom_calls": list(compiled.calls),
        "jax": jax.__version__,
    }


def _text(compiled: Compiled, report: Report) -> list[str]:
    out = [f"compiled for {compiled.target} in {compiled.seconds:.1f} s"]
    if compiled.memory:
        parts = [f"{name} {size / 2**20:.1f} MiB" for name, size in compiled.memory.items()]
        out.append(f"memory: {', '.join(parts)}")
    if compiled.cost:
        out.append("cost by XLA: " + ", ".join(f"{v:.3g} {k}" for k, v in compiled.cost.items()))
    else:
        out.append("cost by XLA: not without the device; the counts above are tfc's own")
    for k in compiled.kernels:
        spills = f"{k.spill_stores} bytes stored, {k.spill_loads} loaded" if k.spill_stores or k.spill_loads else "none"
        out.append(f"kernel {k.name} ({k.architecture}): {k.registers} registers a thread, spills: {spills}")
    if compiled.calls:
        out.append(f"calls of libraries and kernels: {', '.join(compiled.calls)}")
    on = ", ".join(f"{name} {count}" for name, count in report.kernels().items())
    return [*out, f"operations of a call by kernel: {on}"]


def _write(folder: Path, name: str, data: bytes) -> str:
    """A file written whole or not at all. Raises TfcError (E807) where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(data)
        os.chmod(file.name, 0o644)
        os.replace(file.name, folder / name)
    except OSError as error:
        fact = f"{folder / name} cannot be written: {error.strerror or error}"
        raise TfcError(Diagnostic("E807", fact)) from error
    return str(folder / name)
