"""MiniLM of Hugging Face transformers, eager on torch's CPU: token ids from a file, the seconds of calls to stdout.

A program of its own, in a Python that has torch and transformers and need not have tfc:

    python minilm_peer.py WEIGHTS IDS.npy LENGTHS.npy OUT.npy

writes the embeddings float32 [B, 384] to OUT.npy, then `ready` and its versions as JSON; for every line on stdin it
makes one call and prints its wall and CPU seconds.
"""

import json
import sys
import time

import numpy as np
import torch
import transformers


def main() -> None:
    weights, ids_file, lengths_file, out = sys.argv[1:]
    transformers.logging.set_verbosity_error()
    model = transformers.BertModel.from_pretrained(weights, add_pooling_layer=False).eval()
    ids = torch.from_numpy(np.load(ids_file).astype(np.int64))
    lengths = torch.from_numpy(np.load(lengths_file).astype(np.int64))
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()

    def call() -> torch.Tensor:
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            real = mask[..., None].float()
            return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1))

    np.save(out, call().numpy())
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "torch threads": str(torch.get_num_threads()),
        "transformers attention": str(model.config._attn_implementation),
    }
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main()
