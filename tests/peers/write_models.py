"""Small random models of transformers turned into checkpoints and outputs that `tests/test_peer_models.py` reads.

Runs in an environment of its own (torch, transformers, safetensors, numpy); tfc is not imported:

    python tests/peers/write_models.py FOLDER [NAME ...]
    TFC_PEERS=FOLDER pytest tests/test_peer_models.py

FOLDER is another one than that of `write_references.py`. Each module of `tests/peers/models` becomes FOLDER/NAME with
the checkpoint as `save_pretrained` writes it, and

    reference.safetensors   in.NAME: each input (int32, float32); f32, bf16: what transformers answers in that type,
                            as float32, and as `f32.0`, `f32.1` where the results are several; prompt [B, P],
                            generated [B, 64], margin [B, 64]: greedy tokens in float32, and how far each one's logit
                            is above the second best
    about.json              the spec, its settings, those of the published sizes, the parameters that these have, and
                            versions of the libraries
"""

import argparse
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from models import Peer
from safetensors.torch import save_file

SEED = 0


def references(peer: Peer, model: Any) -> dict[str, torch.Tensor]:
    """Inputs and outputs by the names above."""
    given = peer.inputs(np.random.default_rng(SEED))
    out = {f"in.{name}": x.float() if x.is_floating_point() else x.int() for name, x in given.items()}
    with torch.no_grad():
        out |= results("f32", peer.outputs(model, given))
        if peer.PROMPT:
            tokens, logits = peer.generate(model, given)
            if not torch.equal(tokens, logits.argmax(-1)):
                raise ValueError("the generated tokens are not those with the largest logits")
            best = logits.topk(2).values
            out["prompt"] = given["tokens"][:, : peer.PROMPT].int()
            out["generated"], out["margin"] = tokens.int(), (best[..., 0] - best[..., 1]).float()
        halved = {name: x.bfloat16() if x.is_floating_point() else x for name, x in given.items()}
        out |= results("bf16", peer.outputs(model.bfloat16(), halved))
    return {name: x.contiguous() for name, x in out.items()}


def results(name: str, found: Any) -> dict[str, torch.Tensor]:
    """`f32` for one, `f32.0`, `f32.1`, .. for several."""
    if isinstance(found, tuple):
        return {f"{name}.{i}": x.float() for i, x in enumerate(found)}
    return {name: found.float()}


def published(peer: Peer) -> int:
    """Parameters of the published sizes, tied ones once."""
    with torch.device("meta"):
        return sum(p.numel() for p in peer.published().parameters())


def write(name: str, folder: Path) -> None:
    peer: Peer = importlib.import_module(f"models.{name}")
    model = peer.build(SEED)
    part = getattr(peer, "SAVED", "")
    (getattr(model, part) if part else model).save_pretrained(folder / name)
    save_file(references(peer, model), folder / name / "reference.safetensors")
    about = {
        "spec": getattr(peer, "SPEC", name),
        "settings": dict(peer.SETTINGS),
        "published_settings": dict(getattr(peer, "PUBLISHED", {})),
        "published": published(peer),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (folder / name / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    there = sorted(p.stem for p in (Path(__file__).parent / "models").glob("*.py") if p.stem != "__init__")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(there)}; all if none is given")
    args = parser.parse_args()
    if strange := [name for name in args.names if name not in there]:
        parser.error(f"no module tests/peers/models/{strange[0]}.py")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in args.names or there:
        write(name, args.folder)
        print(f"wrote {args.folder / name}", flush=True)
    print(f"with torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
