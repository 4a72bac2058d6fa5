"""Models of Hugging Face transformers turned into files of inputs and outputs that `tests/test_peers.py` compares with.

Runs in an environment of its own (torch, transformers, safetensors, numpy); tfc is not imported:

    python tests/peers/write_references.py FOLDER --minilm FOLDER_OF_WEIGHTS
    TFC_PEERS=FOLDER pytest tests/test_peers.py

Outputs are computed in float64 from float32 weights. FOLDER gets `minilm.npz`, and for each small random model its
checkpoint and `reference.npz`. Seeds are fixed: the files are the same each time, up to the libraries' versions.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers

SENTENCES = [
    "A sentence.",
    "The bank raised interest rates to slow inflation.",
    "Bees dance to tell the hive where the flowers are, and how far it is to fly there from home.",
    "Rates!",
]


def write_minilm(weights: Path, folder: Path) -> None:
    """last_hidden_state [4, T, 384], lengths [4], tokens [4, T] and the mean-pooled unit vectors [4, 384]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    model = transformers.BertModel.from_pretrained(weights, add_pooling_layer=False).double().eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].double()
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    np.savez(
        folder / "minilm.npz",
        tokens=batch["input_ids"].numpy().astype(np.int32),
        lengths=batch["attention_mask"].sum(1).numpy().astype(np.int32),
        hidden=hidden.numpy(),
        embeddings=torch.nn.functional.normalize(pooled).numpy(),
    )


def scatter(model: torch.nn.Module) -> None:
    """Every parameter drawn wide enough that no part of the model is close to the identity or to zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "norm" in name or ".ln_" in name or name.startswith("ln_")
            if norm and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 0.15)


def write_small(name: str, model: torch.nn.Module, saved: torch.nn.Module, vocab: int, folder: Path) -> None:
    """The checkpoint, tokens [3, 17], and the logits [3, 17, vocab]."""
    scatter(model)
    saved.save_pretrained(folder / name)
    tokens = np.random.default_rng(0).integers(0, vocab, (3, 17))
    with torch.no_grad():
        logits = model.double().eval()(input_ids=torch.from_numpy(tokens)).logits
    np.savez(folder / name / "reference.npz", tokens=tokens.astype(np.int32), logits=logits.numpy())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minilm", type=Path, help="the folder with MiniLM's model.safetensors and tokenizer.json")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.minilm:
        write_minilm(args.minilm, args.folder)
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=256, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )
    write_small("gpt2", gpt2, gpt2.transformer, 256, args.folder)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    )
    write_small("llama", llama, llama, 256, args.folder)
    print(f"wrote {args.folder} with torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
