# mypy: ignore-errors
"""Megatron-LM's IndexedDataset: packs of tokens written and read again, ids alone, as JSON.

python megatron_reading.py TOKENS.npy CAPACITY FOLDER
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder


def main():
    tokens, capacity, folder = np.load(sys.argv[1]).astype(np.int32), int(sys.argv[2]), Path(sys.argv[3])
    packs = torch.from_numpy(tokens[: tokens.size // capacity * capacity].reshape(-1, capacity))
    builder = IndexedDatasetBuilder(str(folder / "packs.bin"), dtype=np.int32)
    for pack in packs:
        builder.add_item(pack)
        builder.end_document()
    builder.finalize(str(folder / "packs.idx"))

    data = IndexedDataset(str(folder / "packs"))
    places = np.random.default_rng(0).permutation(len(data)).tolist()
    for _ in range(2):  # the second time is the warm one
        began = time.process_time()
        for place in places:
            torch.from_numpy(data[place].astype(np.int64))
        reading = time.process_time() - began
    print(json.dumps({"tokens": packs.numel(), "reading": reading}))


if __name__ == "__main__":
    main()
