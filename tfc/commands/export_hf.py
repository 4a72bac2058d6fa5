"""`tfc export hf`: weights under a spec's names -> a Hugging Face checkpoint, and what it lacks in words."""

from collections.abc import Mapping
from pathlib import Path

import click

from tfc.commands.build import build
from tfc.commands.progress import progress
from tfc.commands.run import weights_path
from tfc.ir.names import Ignored

__all__ = ["export_hf"]


def export_hf(spec: str, sets: Mapping[str, str], weights: str, output: str) -> int:
    """Loads, writes, says what is left out, and returns the exit code."""
    model = build(spec, sets, "cpu")
    with progress(f"reading {weights}"):
        params = model.load(weights_path(weights))
    with progress(f"writing {output}"):
        model.export_hf(params, output)
    files = sorted(p.name for p in Path(output).glob("*.safetensors"))
    click.echo(f"wrote {output}: {', '.join(files)}")
    if left := [e.pattern for e in model.names["hf"].entries if isinstance(e.ours, Ignored)]:
        click.echo("left out, as the spec has no parameters for them:")
        for pattern in left:
            click.echo(f"  {pattern}")
    if not (Path(output) / "config.json").exists():
        click.echo("note: config.json and tokenizer are not written; copy them from the model this came from", err=True)
    return 0
