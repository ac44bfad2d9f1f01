"""Tokens per second of the small model beside Hugging Face's Trainer and TRL's SFTTrainer, in processor time.

    python -m bench.trainers [--json]

The Trainer pads batches of 16 samples, SFTTrainer packs. Both run in an environment of their own, on the same lengths
and one thread.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.packed import CAPACITY, packed_like_alpaca
from bench.peer import measure
from bench.small import LLAMA, alpaca_like, batch_of, engine_of, one_rank, pack_of, pipeline_in
from bench.stepping import in_turns, step_of
from bench.table import Figure, command

TOKENIZER = Path(__file__).parent.parent / "pipelines/quickstart/tokenizer/tokenizer.json"
PEERS = {"trainer": "transformers.Trainer, padded", "sft": "trl.SFTTrainer, packed"}


def figures(folder: Path) -> Iterator[Figure]:
    """Ours on a pack, and each peer."""
    torch.set_num_threads(1)
    batch = batch_of([pack_of(packed_like_alpaca())])
    with one_rank():
        engine = engine_of(pipeline_in(folder))
        taken = in_turns({"ours": partial(step_of, engine, batch)}, rounds=3)
    ours = batch.tokens / taken["ours"]
    (folder / "config.json").write_text(json.dumps(LLAMA))
    np.save(folder / "lengths.npy", alpaca_like(2000))
    for kind, name in PEERS.items():
        arguments = (kind, folder / "config.json", TOKENIZER, folder / "lengths.npy", CAPACITY, folder / kind)
        found = measure("training.py", *arguments, timeout_s=600)
        if isinstance(found, str):
            yield Figure("training on packs", ours, "tok/s", f"{name}: {found}")
        else:
            yield Figure("training on packs", ours, "tok/s", name, found["tokens"] / found["seconds"])


if __name__ == "__main__":
    command(figures, __doc__)
