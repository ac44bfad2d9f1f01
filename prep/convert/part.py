"""One part of the shards, to be written in another form: its packs, shard by shard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.artifacts import Stamps
from pipelines.progress import progress_bar
from pipelines.shards import Pack, ShardReader


@dataclass(frozen=True)
class Part:
    """The packs of `train` or `eval`."""

    name: str
    reader: ShardReader
    packs_per_shard: Sequence[int]
    capacity: int
    """Tokens of a full pack."""
    sources: Sequence[str]
    """[files] the source that each input file is of."""

    def shards(self) -> Iterator[Iterator[Pack]]:
        """The packs of each shard; each has to be used up before the next is asked for."""
        first = 0
        with progress_bar(f"converting {self.name}", len(self.reader), "pack") as progress:
            for packs in self.packs_per_shard:
                yield (self.reader[index] for index in range(first, first + packs))
                first += packs
                progress(packs)


def parts_of(folder: Path, seen: Stamps | None = None) -> dict[str, Part]:
    """The parts that a prep directory has; `seen` as a `ShardReader` takes it."""
    train = ShardReader(folder, seen=seen)
    facts = train.manifest.facts
    sources = [one["source"] for one in facts["files"]]
    parts = {"train": Part("train", train, facts["packs_per_shard"], facts["capacity"], sources)}
    if "eval" in facts:
        packs = facts["eval"]["packs_per_shard"]
        parts["eval"] = Part("eval", ShardReader(folder, "eval", seen=seen), packs, facts["capacity"], sources)
    return parts


def counts(pack: Pack) -> dict[str, int]:
    """What one pack adds to the numbers that every form reports."""
    targets = int(np.count_nonzero(pack.loss))
    return {"packs": 1, "segments": pack.file.size, "tokens": pack.tokens.size, "targets": targets}
