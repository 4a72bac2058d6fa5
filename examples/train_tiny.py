"""A few sonnets -> a small language model of bytes that knows them by heart, trained on this machine's CPU; a sample.

    python examples/train_tiny.py --help

Shows the parts of a training run: `train_tiny.tfm` (the model, with dropout and layers computed again for their
gradients), `model(params, tokens, key=key)`, a loss of `tfc.training`, a step of optax, and checkpoints from which a
run goes on bit for bit. The text, `train_tiny.txt`, is by William Shakespeare (1609) and in the public domain.
"""

import json
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import tfc
from tfc.training import State, cross_entropy, restore, save

HERE = Path(__file__).parent
SPEC, TEXT = HERE / "train_tiny.tfm", HERE / "train_tiny.txt"

Array = jax.Array


def read(path: Path) -> np.ndarray[Any, Any]:
    """The text as bytes below 128, int32 [L]."""
    codes = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32)
    if codes.size == 0 or codes.max() > 127:
        raise click.ClickException(f"{path} is not ASCII text; the model's vocabulary has 128 bytes")
    return codes


def unigram_entropy(codes: np.ndarray[Any, Any]) -> float:
    """What a model loses, in nats a byte, that knows how frequent each byte is and nothing else."""
    shares = [n / codes.size for n in Counter(codes.tolist()).values()]
    return -sum(p * math.log(p) for p in shares)


def step_of(model: tfc.Model, optimizer: Any, codes: Array, batch: int, length: int) -> Any:
    """State -> (the state after one more step, the loss): everything random comes from the state's key and step."""

    def step(state: State) -> tuple[State, Array]:
        places, drops = jax.random.split(jax.random.fold_in(state.key, state.step))
        starts = jax.random.randint(places, (batch, 1), 0, codes.size - length)
        rows = codes[starts + jnp.arange(length + 1)]

        def loss(params: Any) -> Array:
            return cross_entropy(model(params, rows[:, :-1], key=drops), rows[:, 1:])

        value, slopes = jax.value_and_grad(loss)(state.params)
        updates, after = optimizer.update(slopes, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, after, state.step + 1, state.key), value

    return jax.jit(step, donate_argnums=0)


def begin(model: tfc.Model, optimizer: Any, seed: int) -> State:
    start, key = jax.random.split(jax.random.key(seed))
    params = model.init(start)
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)


def train(step: Any, state: State, steps: int, losses: list[float], every: int, keep: Any, progress: Progress) -> State:
    """Steps until `steps` are done; `keep(state, losses)` after each `every` of them, and at the end."""
    task = progress.add_task("training", total=steps, completed=int(state.step), loss="")
    while (done := int(state.step)) < steps:
        state, loss = step(state)
        losses.append(float(loss))
        if not math.isfinite(losses[-1]):
            raise click.ClickException(f"the loss of step {done} is {losses[-1]}; a smaller --rate may help")
        recent = losses[-20:]
        progress.update(task, advance=1, loss=f"loss {sum(recent) / len(recent):.3f}")
        if (done + 1) % every == 0 or done + 1 == steps:
            keep(state, losses)
    return state


def plot(losses: list[float], entropy: float, file: Path) -> None:
    """The losses as a picture."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise click.ClickException("--plot draws with matplotlib, which is not installed: "
                                   "pip install 'tfc[train]', or leave --plot out") from None  # fmt: skip
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, linewidth=1, label="loss")
    axes.axhline(entropy, color="gray", linestyle="--", label="frequencies of bytes alone")
    axes.set(xlabel="step", ylabel="nats a byte", ylim=(0, None))
    axes.legend()
    figure.savefig(file)
    pyplot.close(figure)


def written(path: Path, text: str) -> None:
    """The text in the file, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def losses_of(path: Path, steps: int) -> list[float]:
    """The losses of the first steps, as an earlier run wrote them."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line)["loss"] for line in lines[:steps]]


def sample(model: tfc.Model, params: Any, prompt: str, count: int, seed: int, temperature: float) -> str:
    """What the model makes of the beginning of a line. Generating never drops."""
    codes = [list(prompt.encode("ascii"))]
    key = jax.random.key(seed)
    tokens = model.generate(params, codes, count, temperature=temperature, key=key, progress=False)
    return prompt + bytes(tokens[0].astype(np.uint8).tolist()).decode("ascii", "replace")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--steps", default=1000, show_default=True, help="Steps of the whole run; its schedule is made for them.")
@click.option("--stop", type=int, help="Stop after this many steps, as if interrupted.")
@click.option("--resume", is_flag=True, help="Go on from OUT/state.safetensors; the result is that of one run, bit for "
              "bit.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="train_tiny_run", show_default=True,
              help="The folder of state.safetensors, losses.jsonl and, at the end, params.safetensors.")  # fmt: skip
@click.option("--every", default=100, show_default=True, help="Steps between checkpoints.")
@click.option("--text", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=TEXT,
              help="Another ASCII text to learn.")  # fmt: skip
@click.option("--batch", default=16, show_default=True, help="Pieces of text a step.")
@click.option("--length", default=96, show_default=True, help="Bytes of each piece.")
@click.option("--rate", default=3e-3, show_default=True, help="The largest learning rate.")
@click.option("--seed", default=0, show_default=True, help="Of parameters, batches, dropouts and the sample.")
@click.option("--prompt", default="When ", show_default=True, help="What the sample begins with.")
@click.option("--sample", "count", default=300, show_default=True, help="Bytes of the sample.")
@click.option("--temperature", default=0.5, show_default=True, help="Of the sample; 0 for the most likely bytes.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the losses into this file (.png, .svg).")
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help="Another value for a `let` of the spec.")
def main(
    steps: int, stop: int | None, resume: bool, out: Path, every: int, text: Path, batch: int, length: int, rate: float,
    seed: int, prompt: str, count: int, temperature: float, picture: Path | None, sets: tuple[str, ...],
) -> None:  # fmt: skip
    """Teaches a language model of a third of a million parameters some sonnets of Shakespeare, in about two minutes on
    two cores, and lets it recite.

    \b
    train_tiny.py                      the whole run, a checkpoint each 100 steps
    train_tiny.py --resume             go on after an interruption (Ctrl-C at any time)
    train_tiny.py --plot losses.png    and draw the losses
    train_tiny.py --set drop=0         without dropout; --set layers=1 and so on as the spec's `let`s say

    The loss is in nats a byte. Below the entropy of the bytes' frequencies a model knows more than letters; near 0 it
    knows the text by heart, which is what this one is for: there is too little text to learn English from.
    """
    console = Console(stderr=True)
    lets: dict[str, Any] = dict(item.split("=", 1) for item in sets if "=" in item)
    if len(lets) < len(sets):
        raise click.ClickException("--set takes NAME=VALUE, each name once")
    codes = read(text)
    if codes.size <= length + 1:
        raise click.ClickException(f"{text} has {codes.size} bytes, fewer than a piece of {length} needs")
    model = tfc.compile(SPEC, target="auto", **lets)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(50, steps // 4), steps, rate / 20)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    state: State = jax.jit(lambda: begin(model, optimizer, seed))()
    losses: list[float] = []
    out.mkdir(parents=True, exist_ok=True)
    file, lines = out / "state.safetensors", out / "losses.jsonl"
    if resume:
        if not file.is_file():
            raise click.ClickException(f"there is no {file} to resume from; run without --resume first")
        state = restore(file, state)
        losses = losses_of(lines, int(state.step))
    entropy = unigram_entropy(codes)
    size = sum(x.size for x in jax.tree.leaves(state.params))
    console.print(f"{codes.size:,} bytes of {text.name}, {size:,} parameters, {jax.devices()[0].device_kind}; "
                  f"guessing by frequency loses {entropy:.3f} nats a byte")  # fmt: skip

    def keep(state: State, losses: list[float]) -> None:
        written(lines, "".join(json.dumps({"step": i + 1, "loss": x}) + "\n" for i, x in enumerate(losses)))
        save(state, file)

    step = step_of(model, optimizer, jnp.asarray(codes), batch, length)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    began, first = time.perf_counter(), len(losses)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        state = train(step, state, min(steps, stop or steps), losses, every, keep, progress)
    done = int(state.step)
    if losses[-20:]:
        took, recent = time.perf_counter() - began, losses[-20:]
        console.print(f"step {done} of {steps}, {len(losses) - first} of them now in {took:.0f} s: "
                      f"loss {sum(recent) / len(recent):.3f} (mean of the last {len(recent)})")  # fmt: skip
    if picture is not None:
        plot(losses, entropy, picture)
        console.print(f"the losses are drawn in {picture}")
    if done < steps:
        save(state, file)
        console.print("go on with --resume")
        return
    model.save(state.params, out / "params.safetensors")
    if count:
        click.echo(sample(model, state.params, prompt, count, seed, temperature))


if __name__ == "__main__":
    try:
        main()
    except tfc.TfcError as e:
        sys.exit(str(e))
