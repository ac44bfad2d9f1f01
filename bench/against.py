"""The same work done by peers: planning, packing to disk and reading packs.

python -m bench.against [--json]
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.packing import CAPACITY, _read, _samples, _write, computing, plan, sft_lengths
from bench.peer import measure
from bench.table import Figure, command
from pipelines.shards import ShardReader

PACKERS = ("llama-factory", "axolotl", "olmo-core")


def main() -> None:
    command(figures, __doc__)


def figures(folder: Path, *, samples: int = 1_000_000, tokens: int = 16_000_000) -> Iterator[Figure]:
    """All figures of this file.

    Args:
        folder: empty, on the disk that is to be measured.
        samples: planned.
        tokens: packed and read.
    """
    yield from planning(folder, samples)
    yield from packing(folder, tokens)


def planning(folder: Path, samples: int) -> Iterator[Figure]:
    lengths = sft_lengths(samples)
    np.save(folder / "lengths.npy", lengths)
    ours = 1e3 * computing(partial(plan, lengths))
    fill = 100 * plan(lengths).fill
    for name in PACKERS:
        peer = measure("planning.py", name, folder / "lengths.npy", CAPACITY)
        if isinstance(peer, str):
            yield Figure(f"plan {samples:,} samples", ours, "ms", f"{name}, {peer}")
            continue
        yield Figure(f"plan {samples:,} samples", ours, "ms", name, 1e3 * peer["seconds"])
        theirs = 100 * int(lengths.sum(dtype=np.int64)) / CAPACITY / peer["packs"]
        yield Figure("  fill", fill, "%", name, theirs, ">= 1 x")


def packing(folder: Path, tokens: int) -> Iterator[Figure]:
    """Samples in memory to packs on disk, planning included, in processor time; ours also digests what it writes."""
    lengths = sft_lengths(tokens // 399)
    data = _samples(folder, lengths)
    ids = np.fromfile(data.token_files[0], np.uint32) & ~np.uint32(1 << 31)
    np.save(folder / "tokens.npy", ids)
    np.save(folder / "lengths.npy", lengths)
    sequence = np.arange(lengths.size)
    out = folder / "ours"
    mtok = ids.size / 1e6

    written = mtok / computing(lambda: _write(data, sequence, plan(lengths), out, 100_000))
    size = sum(path.stat().st_size for path in (out / "shards").iterdir()) / ids.size
    reader = ShardReader(out)
    places = np.random.default_rng(0).permutation(len(reader)).tolist()
    read = mtok / computing(partial(_read, reader, places))

    trl = measure("trl_packing.py", folder / "tokens.npy", folder / "lengths.npy", CAPACITY, folder)
    if isinstance(trl, str):
        yield Figure(
            "samples in memory to packs on disk, processor time", written, "Mtok/s", f"TRL, {trl}", target=">= 10 x"
        )
        yield Figure("read packs, shuffled", read, "Mtok/s", f"datasets, {trl}", target=">= 150")
    else:
        theirs = mtok / trl["seconds"]
        yield Figure(
            "samples in memory to packs on disk, processor time", written, "Mtok/s", "TRL bfd", theirs, ">= 10 x"
        )
        yield Figure("  size", size, "B/token", "TRL bfd, 32-bit columns", trl["bytes"] / ids.size)
        yield Figure("  fill", 100 * plan(lengths).fill, "%", "TRL bfd", 100 * ids.size / CAPACITY / trl["packs"])
        yield Figure(
            "read packs, shuffled", read, "Mtok/s", "datasets, TRL's", trl["read"] / 1e6 / trl["reading"], ">= 150"
        )
    ids_alone = mtok / computing(lambda: [reader[place].tokens.astype(np.int64) for place in places])
    megatron = measure("megatron_reading.py", folder / "tokens.npy", CAPACITY, folder)
    name = "Megatron IndexedDataset"
    if isinstance(megatron, str):
        yield Figure("read packs, shuffled, ids alone", ids_alone, "Mtok/s", f"{name}, {megatron}")
    else:
        theirs = megatron["tokens"] / 1e6 / megatron["reading"]
        yield Figure("read packs, shuffled, ids alone", ids_alone, "Mtok/s", name, theirs)


if __name__ == "__main__":
    main()
