"""Tiny runs for the train tests: packs written as prep writes them, and the pipeline that trains on them."""

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.artifacts import FileRecord, Manifest, identity
from pipelines.checkpoints import Checkpoint, finished
from pipelines.schema import Pipeline
from pipelines.shards import FORMAT_VERSION, Packs, loss_bits, write_shard
from tests.least import least

VOCABULARY = 48
CAPACITY = 40
SOURCES = ("s", "t")
"""The first has two files, so that a file's number is not its source's."""
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def write_prep(
    folder: Path, *, packs: int = 10, seed: int = 0, vocabulary: int = VOCABULARY, shards: int = 2, held_out: int = 0
) -> None:
    """A finished prep directory with random documents of learnable counting sequences."""
    random = np.random.default_rng(seed)
    (folder / "shards").mkdir(parents=True)
    per_shard = [len(part) for part in np.array_split(np.arange(packs), shards)]
    records = []
    for index, count in enumerate(per_shard):
        path = folder / "shards" / f"shard-{index:05d}.arrow"
        write_shard(path, _packs(random, count, vocabulary))
        records.append(FileRecord.of(folder, path))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    records.append(FileRecord.of(folder, folder / "tokenizer" / "tokenizer.json"))
    facts: dict[str, Any] = {
        "packs_per_shard": per_shard,
        "packs": packs,
        "capacity": CAPACITY,
        "vocab_size": vocabulary,
        "max_token_id": vocabulary - 1,
        "sources": [{"name": name} for name in SOURCES],
        "files": [{"source": name, "path": "data.jsonl"} for name in (SOURCES[0], *SOURCES)],
    }
    if held_out:
        path = folder / "eval" / "shards" / "shard-00000.arrow"
        path.parent.mkdir(parents=True)
        write_shard(path, _packs(random, held_out, vocabulary))
        records.append(FileRecord.of(folder, path))
        facts["eval"] = {"packs_per_shard": [held_out], "packs": held_out}
    Manifest("prep", FORMAT_VERSION, identity("prep", seed, packs, vocabulary), {}, records, facts).write(folder)


def _packs(random: np.random.Generator, packs: int, vocabulary: int) -> Packs:
    lengths: list[int] = []
    segments: list[int] = []
    tokens: list[int] = []
    loss: list[bool] = []
    for _ in range(packs):
        room, before = CAPACITY - int(random.integers(0, 5)), len(lengths)
        while room:
            length = min(room, int(random.integers(1, 16)))
            first, prompt = int(random.integers(0, vocabulary)), int(random.integers(0, length + 1))
            tokens += [(first + at) % vocabulary for at in range(length)]
            loss += [at >= prompt for at in range(length)]
            lengths.append(length)
            room -= length
        segments.append(len(lengths) - before)
    tokens[-1], loss[-1] = vocabulary - 1, True
    numbers = np.arange(len(lengths), dtype=np.uint32)
    return Packs(
        tokens=np.array(tokens, np.uint16),
        loss_mask=loss_bits(np.array(loss), np.array(lengths), np.array(segments)),
        lengths=np.array(lengths, np.int32),
        segments_per_pack=np.array(segments, np.int32),
        file=numbers % 3,
        record=numbers,
        start=np.zeros_like(numbers),
    )


def share(shards: Path, folder: Path) -> Path:
    """Make `folder` a work directory whose prep output is `shards`, and return it."""
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "prep").symlink_to(shards)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run."""
    return [json.loads(line) for line in (folder / "tiny" / "train" / "metrics.jsonl").read_text().splitlines()]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run."""
    return finished(folder / "tiny" / "train" / "checkpoints")


def state(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The whole training state in a run's last checkpoint."""
    last = Checkpoint(checkpoints(folder)[-1])
    return {f"{kind}/{name}": values for kind in last.kinds() for name, values in last.tensors(kind)}


def same(one: Path, other: Path) -> bool:
    """Whether two runs computed the same, bit for bit."""
    mine, theirs = state(one), state(other)
    losses = [[row["loss"] for row in rows(folder)] for folder in (one, other)]
    return (
        losses[0] == losses[1]
        and mine.keys() == theirs.keys()
        and all(np.array_equal(mine[key], theirs[key]) for key in mine)
    )


def pipeline(folder: Path, *, model: dict[str, Any] | None = None, **train: Any) -> Pipeline:
    """A pipeline whose work directory is `folder`; keyword arguments are keys of its [train] table."""
    table = {
        "schema_version": 1,
        "run": {"name": "tiny", "work_dir": str(folder), "seed": 7},
        "model": model or {"scratch": LLAMA},
        "tokenizer": {"name_or_path": "tokenizer"},
        "prep": {"source": [{"name": "s", "path": "s.jsonl"}], "pack": {"capacity": CAPACITY}},
        "train": {"global_batch_size": 4, "optimizer": {"lr": Decimal("0.01")}, **train},
    }
    return Pipeline.model_validate(table, context={"base": folder})


def write_toml(folder: Path, lines: Sequence[str] = ()) -> Path:
    """A pipeline file for the command line; `lines` are keys of its [train] table."""
    sizes = "\n".join(f"{key} = {_toml(value)}" for key, value in LLAMA.items())
    path = folder / "tiny.toml"
    path.write_text(
        f"""{least(CAPACITY, run="seed = 7")}
[model.scratch]
{sizes}
[tokenizer]
name_or_path = "tokenizer"
[train]
global_batch_size = 4
{chr(10).join(lines)}
[train.optimizer]
lr = 0.01
"""
    )
    return path


def _toml(value: object) -> str:
    return {True: "true", False: "false"}.get(value, "") if isinstance(value, bool) else f"{value!r}".replace("'", '"')
