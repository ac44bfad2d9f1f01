# mypy: ignore-errors
"""TRL's pack_dataset, tokens in memory to packs on disk, and reading them back with datasets, as JSON.

python trl_packing.py TOKENS.npy LENGTHS.npy CAPACITY FOLDER
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, disable_progress_bars, load_from_disk
from trl import pack_dataset


def main():
    tokens, lengths = np.load(sys.argv[1]), np.load(sys.argv[2])
    capacity, folder = int(sys.argv[3]), Path(sys.argv[4])
    disable_progress_bars()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens.astype(np.int32)))
    data = Dataset(pa.table({"input_ids": column, "labels": column}))
    few = data.select(range(1000))
    pack_dataset(few, capacity, strategy="bfd").save_to_disk(folder / "first")

    began = time.process_time()
    pack_dataset(data, capacity, strategy="bfd").save_to_disk(folder / "packs")
    seconds = time.process_time() - began
    size = sum(path.stat().st_size for path in (folder / "packs").glob("*.arrow"))

    packs = load_from_disk(folder / "packs").with_format("torch")
    some = range(min(len(packs), 500))
    began = time.process_time()
    read = sum(len(packs[index]["input_ids"]) for index in some)
    reading = time.process_time() - began
    print(json.dumps({"seconds": seconds, "bytes": size, "packs": len(packs), "read": read, "reading": reading}))


if __name__ == "__main__":
    main()
