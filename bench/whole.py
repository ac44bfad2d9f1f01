"""`packtrain prep` from raw data to shards: speed on two processes, and memory beside the size of the data.

python -m bench.whole [--json]

Conversations of made-up words, whose frequencies fall as those of words do, and a byte-level BPE trained on them.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from bench.ftdp import write
from bench.table import Figure, command
from bench.tree import Cost, cost
from prep.bpe import train_bpe, write_tokenizer

WORKERS = 2
VOCABULARY = 16_000


def main() -> None:
    command(figures, __doc__)


def figures(folder: Path, *, megabytes: int = 200) -> Iterator[Figure]:
    """All figures of this file.

    Args:
        folder: empty, on the disk that is to be measured.
        megabytes: of ftdp and of jsonl; the ftdp once more with four times as much.
    """
    tokenizer = train_bpe((text for pair in islice(conversations(), 5000) for text in pair), vocabulary=VOCABULARY)
    write_tokenizer(tokenizer, folder / "tokenizer")
    ftdp = partial(write_ftdp, vocabulary=tokenizer.get_vocab_size())
    _measured(folder, ftdp, megabytes // 20)  # compiles
    small, large = _measured(folder, ftdp, megabytes), _measured(folder, ftdp, 4 * megabytes)
    few, many = _measured(folder, write_short, 25), _measured(folder, write_short, 100)
    for name, one in (("ftdp", small), ("ftdp", large), ("jsonl", _measured(folder, write_jsonl, megabytes))):
        what = f"prep of {one.size / 1e6:,.0f} MB {name}, {WORKERS} processes"
        yield Figure(what, one.cost.seconds, "s", "copy of the data, synced", one.copied)
        yield Figure("  most memory of all processes", one.cost.memory / 1e6, "MB")
        yield Figure("  with pages of files", one.cost.pages / 1e6, "MB", "size of the data", one.size / 1e6)
    growth = max(many.cost.memory - few.cost.memory, 0) / (many.samples - few.samples)
    yield Figure(f"memory from {few.samples:,} samples to {many.samples:,}", growth, "bytes a sample")
    # The large one has a full shard in both processes: with more data, only what is known of each sample grows.
    needed = large.cost.memory + growth * large.samples / large.size * 100e9
    yield Figure(
        "memory that 100 GB of ftdp in samples as long as these would take", needed / 1e9, "GB", "data", 100, "<= 8"
    )


@dataclass(frozen=True)
class _Run:
    size: int
    samples: int
    copied: float
    """Seconds that copying the data takes."""
    cost: Cost


def _measured(folder: Path, write_data: Callable[..., int], megabytes: int) -> _Run:
    data = folder / "data"
    data.mkdir()
    samples = write_data(data, megabytes=megabytes)
    files = list(data.iterdir())
    began = time.perf_counter()
    for path in files:
        with (folder / "copy").open("wb") as copy:
            copy.write(path.read_bytes())
            os.fsync(copy.fileno())
    copied = time.perf_counter() - began
    run = _Run(sum(path.stat().st_size for path in files), samples, copied, _prep(folder, files[0].suffix))
    for made in (data, folder / "work"):
        shutil.rmtree(made)
    (folder / "data_order.txt").unlink()
    return run


def write_ftdp(folder: Path, *, megabytes: int, vocabulary: int) -> int:
    """A file of the lengths that fine-tuning has; how many samples it has."""
    return write(folder / "data.bin", megabytes=megabytes, vocabulary=vocabulary)


def write_short(folder: Path, *, megabytes: int) -> int:
    """A file of samples of two tokens, so that memory is what samples take and not what tokens do; how many."""
    line = b'{"tokens": [-7, 8]}\n'
    count = megabytes * 1_000_000 // len(line)
    (folder / "data.bin").write_bytes(line * count)
    places = np.arange(count)
    with (folder / "data.bin.meta").open("wb") as file:
        np.save(file, np.stack([places * len(line), np.full(count, 2)], 1))
    return count


def conversations() -> Iterator[tuple[str, str]]:
    """Questions and answers without end, the same ones each time."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    words = ["".join(random.choice(letters[:20], size)) for size in random.integers(2, 10, 30_000)]
    while True:
        ranks = (random.zipf(1.2, 40_000) - 1) % len(words)
        sizes = random.lognormal(4.0, 0.8, 100).clip(4, 800).astype(int)
        text = iter(ranks.tolist())
        for question, answer in zip(sizes[::2] // 2, sizes[1::2] * 2, strict=True):
            yield tuple(" ".join(words[rank] for rank in islice(text, size)) for size in (question, answer))  # type: ignore[misc]


def write_jsonl(folder: Path, *, megabytes: int) -> int:
    """A file of conversations; how many it has."""
    with (folder / "data.jsonl").open("wb") as file:
        for count, (question, answer) in enumerate(conversations()):
            if file.tell() >= megabytes * 1_000_000:
                return count
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}).encode() + b"\n")
    raise AssertionError("conversations have no end")


def _prep(folder: Path, suffix: str) -> Cost:
    pipeline = folder / "pipeline.toml"
    pipeline.write_text(
        f"""schema_version = 1
[run]
name = "bench"
work_dir = "work"
[model.scratch]
model_type = "llama"
vocab_size = {VOCABULARY}
[tokenizer]
name_or_path = "tokenizer"
[prep]
max_length = 4096
overlength = "truncate_right"
[prep.pack]
capacity = 4096
[[prep.source]]
name = "data"
path = "data"
map = "{"openai" if suffix == ".jsonl" else "none"}"
"""
    )
    packtrain = str(Path(sys.executable).with_name("packtrain"))
    subprocess.run([packtrain, "order", "write", str(pipeline)], check=True, capture_output=True)
    return cost([packtrain, "prep", str(pipeline), "--workers", str(WORKERS)])


if __name__ == "__main__":
    main()
