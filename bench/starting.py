"""From the command to the first step: seconds until `packtrain train` has written its first row.

    python -m bench.starting [--json]

Most of it is the import of the libraries, which is measured in the same run.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.table import Figure, command
from pipelines.artifacts import FileRecord, Manifest, identity
from pipelines.shards import FORMAT_VERSION, Packs, loss_bits, write_shard

LIBRARIES = "import torch, deepspeed, transformers.models.llama.modeling_llama"
TOML = """schema_version = 1
[run]
name = "start"
[model.scratch]
model_type = "llama"
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
[tokenizer]
name_or_path = "tokenizer"
[[prep.source]]
name = "s"
path = "s.jsonl"
[prep.pack]
capacity = 64
[train]
global_batch_size = 2
max_steps = 1
{ranks}
[train.optimizer]
lr = 0.001
"""


def figures(folder: Path) -> Iterator[Figure]:
    """One rank, in the process of the command, and two that it starts; the second start of each counts."""
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", LIBRARIES], check=True, capture_output=True, env=environment())
        libraries = time.perf_counter() - began
    for ranks in (1, 2):
        for attempt in range(2):
            seconds = first_row(folder / f"{ranks}-{attempt}", ranks)
        yield Figure(f"start to first step, {ranks} rank(s)", seconds, "s", "importing the libraries alone", libraries)


def first_row(folder: Path, ranks: int) -> float:
    """Seconds from the start of `packtrain train` to its first row in metrics.jsonl."""
    made_up_prep(folder / "work/start/prep")
    path = folder / "start.toml"
    path.write_text(TOML.format(ranks=f"nproc_per_node = {ranks}"))
    metrics = folder / "work/start/train/metrics.jsonl"
    began = time.perf_counter()
    program = str(Path(sys.executable).with_name("packtrain"))
    with subprocess.Popen([program, "train", str(path)], env=environment(), stderr=subprocess.PIPE, text=True) as run:
        while not (metrics.exists() and metrics.stat().st_size) and run.poll() is None:
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        _, said = run.communicate()
    if run.returncode:
        raise RuntimeError(said.strip()[-200:])
    return seconds


def made_up_prep(folder: Path) -> None:
    """A finished prep directory of two packs."""
    (folder / "shards").mkdir(parents=True)
    lengths, segments = np.full(4, 32, np.int32), np.full(2, 2, np.int32)
    tokens = np.arange(128, dtype=np.uint16)
    nothing = np.zeros(4, np.uint32)
    mask = loss_bits(np.ones(128, np.bool_), lengths, segments)
    path = folder / "shards" / "shard-00000.arrow"
    write_shard(path, Packs(tokens, mask, lengths, segments, nothing, nothing, nothing))
    facts = {
        "packs_per_shard": [2],
        "packs": 2,
        "capacity": 64,
        "vocab_size": 128,
        "max_token_id": 127,
        "sources": [{"name": "s"}],
        "files": [{"source": "s", "path": "s.jsonl"}],
    }
    records = [FileRecord.of(folder, path)]
    Manifest("prep", FORMAT_VERSION, identity("prep", "start"), {}, records, facts).write(folder)


def environment() -> dict[str, str]:
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    command(figures, __doc__)
