"""Planning packs, writing and reading shards: speed, fill and size, on one core.

    python -m bench.packing [--json] [--samples 10_000_000]

Lengths are an SFT-like mix: log-normal with median 245, clipped to 16..4,096, about 399 tokens on average.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.table import Figure, fastest, show
from pipelines.artifacts import Manifest
from pipelines.schema import PackTable
from pipelines.shards import FORMAT_VERSION, ShardReader
from prep.assemble import assemble
from prep.packing import Packing, pack
from prep.store import LOSS_BIT, Samples

CAPACITY = 4096
Lengths = npt.NDArray[np.int32]

computing = partial(fastest, clock=time.process_time)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--samples", type=int, default=10_000_000, help="samples of the largest plan")
    parser.add_argument("--tokens", type=int, default=64_000_000, help="tokens written and read")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
        show(list(figures(Path(folder), samples=options.samples, tokens=options.tokens)), as_json=options.json)


def figures(folder: Path, *, samples: int = 10_000_000, tokens: int = 64_000_000) -> Iterator[Figure]:
    """All figures of this file.

    Args:
        folder: empty, on the disk that is to be measured.
        samples: of the largest plan.
        tokens: written and read.
    """
    yield from planning(samples)
    yield from filling(min(samples, 1_000_000))
    yield from writing_and_reading(folder, tokens)
    yield from opening(folder, samples)
    yield from remembering(folder, samples)


def sft_lengths(samples: int) -> Lengths:
    return np.random.default_rng(0).lognormal(5.5, 1.0, samples).clip(16, CAPACITY).astype(np.int32)


def plan(lengths: Lengths, **keys: Any) -> Packing:
    return pack(lengths, PackTable(**{"capacity": CAPACITY, "scope": "global", "strategy": "best_fit", **keys}))


def planning(largest: int) -> Iterator[Figure]:
    for samples in (1_000_000, largest):
        lengths = sft_lengths(samples)
        scatter = partial(_scatter, lengths, np.random.default_rng(1).permutation(samples), np.empty_like(lengths))
        limit = 1e3 * computing(scatter)
        plans: dict[str, dict[str, Any]] = {
            "best_fit": {},
            "best_fit in windows": {"scope": "window"},
            "in_order": {"strategy": "in_order"},
            "concat_split": {"strategy": "concat_split"},
        }
        for name, keys in plans.items():
            milliseconds = 1e3 * computing(partial(plan, lengths, **keys))
            target = f"<= {10 if samples <= 1_000_000 else samples / 40_000:g}" if name == "best_fit" else ""
            what = f"plan {samples:,} samples, {name}"
            yield Figure(what, milliseconds, "ms", "writing the lengths in another order", limit, target)


def filling(samples: int) -> Iterator[Figure]:
    mixes = {
        "SFT-like": (sft_lengths(samples), "<= 2"),
        "SFT-like, none below 64": (np.maximum(sft_lengths(samples), 64), ""),
        "all in (C/4, C/2]": (_uniform(samples, 4, 2), ""),
        "all in (C/5, C/3]": (_uniform(samples, 5, 3), ""),
    }
    for name, (lengths, target) in mixes.items():
        packing = plan(lengths)
        above = packing.packs - packing.lower_bound
        yield Figure(f"packs above the lower bound, {name}", above, "packs", "lower bound", packing.lower_bound, target)
    strategies: dict[str, dict[str, Any]] = {
        "best_fit": {},
        "best_fit in windows of 65,536": {"scope": "window"},
        "in_order": {"strategy": "in_order"},
    }
    # The default is in_order, and is held to the same.
    for mix, target in (("SFT-like", ""), ("all in (C/4, C/2]", ">= 95")):
        bound = plan(mixes[mix][0]).tokens / plan(mixes[mix][0]).lower_bound / CAPACITY
        for strategy, keys in strategies.items():
            fill = 100 * plan(mixes[mix][0], **keys).fill
            yield Figure(f"fill, {mix}, {strategy}", fill, "%", "at the lower bound", 100 * bound, target)


def writing_and_reading(folder: Path, tokens: int) -> Iterator[Figure]:
    lengths = sft_lengths(tokens // 399)
    samples = _samples(folder, lengths)
    sequence = np.random.default_rng(1).permutation(lengths.size)
    packing = plan(lengths[sequence])
    mtok = packing.tokens / 1e6
    for name, vocabulary, size in (("32-bit ids", 100_000, "<= 4.2"), ("16-bit ids", 60_000, "<= 2.2")):
        out = folder / f"vocabulary-{vocabulary}"
        _write(samples, sequence, packing, out, vocabulary)
        content = (out / "shards" / "shard-00000.arrow").read_bytes()
        yield Figure(f"size, {name}", len(content) / packing.tokens, "B/token", target=size)

        written = mtok / fastest(partial(_write, samples, sequence, packing, out, vocabulary))
        computed = mtok / computing(partial(_write, samples, sequence, packing, out, vocabulary))
        raw = mtok / fastest(partial(_write_raw, out / "raw", content))
        digest = mtok / computing(partial(hashlib.sha256, content))
        yield Figure(f"write packs, {name}", written, "Mtok/s", "write and fsync of the bytes", raw, ">= 150")
        yield Figure(f"  processor time alone, {name}", computed, "Mtok/s", "their SHA-256, part of it", digest)

        reader = ShardReader(out)
        ids = np.concatenate([pack.tokens for pack in reader])
        limit = mtok / computing(partial(np.copyto, np.empty(ids.size, np.int64), ids))
        orders = {
            "in order": range(len(reader)),
            "shuffled": np.random.default_rng(2).permutation(len(reader)).tolist(),
        }
        for order, packs in orders.items():
            read = mtok / computing(partial(_read, reader, packs))
            yield Figure(f"read packs, {name}, {order}", read, "Mtok/s", "copy of the ids to int64", limit, ">= 150")


def opening(folder: Path, largest: int) -> Iterator[Figure]:
    """Short samples, so that many fit on a disk: what is measured does not depend on their tokens."""
    for number in (100_000, largest):
        lengths = np.full(number, 4, np.int32)
        out = folder / f"samples-{number}"
        _write(_samples(folder, lengths), np.arange(number), plan(lengths), out, vocabulary=60_000)
        milliseconds = 1e3 * fastest(partial(_first, out))
        yield Figure(f"open and first batch, {number:,} samples", milliseconds, "ms", target="<= 20")


def remembering(folder: Path, samples: int) -> Iterator[Figure]:
    """Memory from samples to packs, over what a process takes before there are samples."""
    for sources in (1, 4):
        for strategy in ("in_order", "concat_split"):
            alone, *peaks = _peaks(folder, samples, sources, strategy)
            what = f"memory at its peak, {samples:,} samples of {sources} sources, {strategy}"
            yield Figure(what, max(peaks) / samples, "B/sample", "the samples alone", alone / samples, "<= 60")


def _peaks(folder: Path, samples: int, sources: int, strategy: str) -> list[int]:
    """Bytes that the samples take, then those of each step, from a process in which nothing else was done."""
    asked = [str(folder), str(samples), str(sources), strategy]
    # What is freed goes back at once, as with many samples it does anyway.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    told = subprocess.run(
        [sys.executable, "-m", "bench.peak", *asked], check=True, capture_output=True, text=True, env=environment
    ).stdout
    return list(json.loads(told).values())


def _uniform(samples: int, below: int, upto: int) -> Lengths:
    return np.random.default_rng(0).integers(CAPACITY // below + 1, CAPACITY // upto + 1, samples).astype(np.int32)


def _samples(folder: Path, lengths: Lengths) -> Samples:
    """One chunk of random tokens, the last two thirds of every sample with loss."""
    ends = np.cumsum(lengths, dtype=np.int64)
    tokens = np.random.default_rng(0).integers(0, 60_000, ends[-1], dtype=np.uint32)
    prompts = np.stack([lengths // 3, lengths - lengths // 3], 1).ravel()
    tokens[np.repeat(np.arange(prompts.size) % 2 == 1, prompts)] |= LOSS_BIT
    path = folder / "tokens.u32"
    tokens.tofile(path)
    zeros = np.zeros(lengths.size, np.uint32)
    return Samples(
        lengths=lengths,
        loss_tokens=np.zeros(lengths.size, np.int32),
        file=zeros,
        record=np.arange(lengths.size, dtype=np.uint32),
        start=zeros,
        chunk=np.zeros(lengths.size, np.int32),
        offset=ends - lengths,
        token_files=[path],
        records=np.array([lengths.size]),
    )


def _write(samples: Samples, sequence: Any, packing: Packing, out: Path, vocabulary: int) -> None:
    for shard in out.glob("shards/*"):
        shard.unlink()
    writing = assemble(samples, sequence, packing, out, vocabulary=vocabulary, shard_tokens=2**28, workers=1)
    shards = list(writing)
    facts = {"packs_per_shard": [shard.packs for shard in shards]}
    Manifest("prep", FORMAT_VERSION, "bench", {}, [shard.record for shard in shards], facts).write(out)


def _write_raw(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())


def _read(reader: ShardReader, packs: Iterable[int]) -> None:
    for index in packs:
        one = reader[index]
        _ = one.tokens.astype(np.int64), one.labels, one.positions, one.cu_seqlens


def _first(out: Path) -> None:
    reader = ShardReader(out)
    _read(reader, [len(reader) // 2])


def _scatter(lengths: Lengths, places: npt.NDArray[np.int64], target: Lengths) -> None:
    target[places] = lengths


if __name__ == "__main__":
    main()
