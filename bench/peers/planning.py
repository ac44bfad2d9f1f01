# mypy: ignore-errors
"""Peers' packers on given lengths: seconds and packs of one, as JSON.

python planning.py llama-factory|axolotl|olmo-core LENGTHS.npy CAPACITY
"""

import importlib.util
import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np


def llama_factory(lengths, capacity):
    # Loaded by its path: the package around it imports sound and vision.
    package = Path(importlib.util.find_spec("llamafactory").origin).parent
    path = package / "data" / "processor" / "processor_utils.py"
    spec = importlib.util.spec_from_file_location("processor_utils", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["processor_utils"] = module
    spec.loader.exec_module(module)
    # Its own default: it packs every 1,000 records by themselves, and all at once would take it far longer.
    batches = [lengths[begin : begin + 1000].tolist() for begin in range(0, lengths.size, 1000)]
    return lambda: [knapsack for batch in batches for knapsack in module.greedy_knapsack(batch, capacity)]


def axolotl(lengths, capacity):
    from axolotl.utils.samplers.multipack import pack_parallel

    # Its own defaults, and lengths in the order of the data as its sampler passes them.
    pack = partial(pack_parallel, bin_capacity=capacity, group_size=100_000, bin_size=200, num_processes=1)
    pack(lengths[:1000])  # compiles
    return partial(pack, lengths)


def olmo_core(lengths, capacity):
    from olmo_core.data.utils import InstancePacker

    ends = np.cumsum(lengths, dtype=np.int64)
    documents = np.stack([ends - lengths, ends], 1)
    return lambda: InstancePacker(capacity).pack_documents(documents)[0]


def main():
    packers = {"llama-factory": llama_factory, "axolotl": axolotl, "olmo-core": olmo_core}
    packer = packers[sys.argv[1]](np.load(sys.argv[2]), int(sys.argv[3]))
    began = time.process_time()
    packs = packer()
    print(json.dumps({"seconds": time.process_time() - began, "packs": len(packs)}))


if __name__ == "__main__":
    main()
