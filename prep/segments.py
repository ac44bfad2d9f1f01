"""The segments of finished shards by number, and a choice of them that is spread over the data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.artifacts import MANIFEST, Stamps
from pipelines.errors import DataError
from pipelines.shards import ShardReader, read_shard
from prep.shuffle import record_keys
from prep.store import LOSS_BIT

Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Segment:
    """Where one segment is, and where it is from."""

    reader: ShardReader
    pack: int
    """Its pack, as the reader counts."""
    number: int
    """Its place within the pack."""
    shard: str
    """Its shard, as the manifest lists it."""
    row: int
    """Its pack, as the shard counts."""
    file: int
    record: int
    start: int

    def tokens(self) -> UInt32:
        """[tokens], bit 31 set where one is a target."""
        pack = self.reader[self.pack]
        begin, end = pack.segments[self.number : self.number + 2]
        loss = pack.loss[begin:end]
        return pack.tokens[begin:end].astype(np.uint32) | np.where(loss, LOSS_BIT, np.uint32(0))

    @property
    def is_last(self) -> bool:
        """Whether its pack ends with it."""
        return self.number == self.reader[self.pack].file.size - 1


class Segments:
    """The segments of all shards of a prep directory, those held out at the end.

    Raises:
        DataError: if there are no finished shards, or one does not hold together.
        CheckError: if one has another digest.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = ShardReader(folder).manifest
        seen = self.manifest.stamps(folder)
        self.manifest.below("shards/", "eval/shards/").verify(folder)
        self._shards: list[tuple[str, ShardReader, int]] = []  # with the first pack's number in the reader
        files: list[UInt32] = []
        sizes = [np.zeros(1, np.int64)]
        for path, reader, first in _shards(folder, self.manifest.facts, seen):
            packs = read_shard(folder / path)
            if packs.file.max(initial=0) >= len(self.manifest.facts["files"]):
                raise DataError(
                    f"{folder / path}: names an input that {MANIFEST} does not list; it was changed or damaged, run "
                    "`packtrain prep` again"
                )
            self._shards.append((path, reader, first))
            files.append(packs.file)
            sizes.append(packs.segments_per_pack.astype(np.int64))
        self.file: UInt32 = np.concatenate(files)
        """[segments] the input file of each."""
        self._firsts: Int64 = np.cumsum(np.concatenate(sizes))  # of every pack, and the end
        self._packs: Int64 = np.cumsum([part.size for part in sizes]) - 1  # the first of every shard, and the end

    def at(self, numbers: Int64) -> Iterator[Segment]:
        """The segments with these numbers."""
        packs = np.searchsorted(self._firsts, numbers, side="right") - 1
        shards = np.searchsorted(self._packs, packs, side="right") - 1
        for segment, pack, shard in zip(numbers.tolist(), packs.tolist(), shards.tolist(), strict=True):
            path, reader, first = self._shards[shard]
            row, number = pack - int(self._packs[shard]), segment - int(self._firsts[pack])
            trace = reader[first + row]
            origin = int(trace.file[number]), int(trace.record[number]), int(trace.start[number])
            yield Segment(reader, first + row, number, path, row, *origin)


def choose(file: UInt32, sources: Sequence[str], *, count: int, key: int) -> Int64:
    """The numbers of `count` segments, rising: every source has its turn, and within it every file, before any again.

    Args:
        file: uint32[segments], the input file of each.
        sources: [files] the source of each input file.
        key: any 64 bits; what comes first within a file or a source goes by a hash with it.
    """
    if count >= file.size:
        return np.arange(file.size)
    numbers = np.arange(file.size, dtype=np.uint32)
    hashes = record_keys(np.array([key], np.uint64), np.zeros_like(numbers), numbers)
    names = {name: number for number, name in enumerate(dict.fromkeys(sources))}
    source = np.array([names[name] for name in sources], np.uint32)[file]
    turn = _rank(source, hashes, _rank(file, hashes))
    return np.sort(np.lexsort((hashes, turn))[:count])


def _rank(group: UInt32, *keys: npt.NDArray[Any]) -> Int64:
    """[segments] the place of each within its group by the keys, the last of which counts most."""
    sizes = np.bincount(group)
    rank = np.empty(group.size, np.int64)
    rank[np.lexsort((*keys, group))] = np.arange(group.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def _shards(folder: Path, facts: Any, seen: Stamps) -> Iterator[tuple[str, ShardReader, int]]:
    """Every shard's path, what reads its part, and its first pack there."""
    train = ShardReader(folder, seen=seen)
    parts = {"shards/": (train, facts["packs_per_shard"])}
    if "eval" in facts:
        parts["eval/shards/"] = (ShardReader(folder, "eval", seen=seen), facts["eval"]["packs_per_shard"])
    for prefix, (reader, packs_per_shard) in parts.items():
        paths = [record.path for record in train.manifest.files if record.path.startswith(prefix)]
        firsts = np.cumsum([0, *packs_per_shard]).tolist()
        yield from ((path, reader, first) for path, (first, _) in zip(paths, pairwise(firsts), strict=True))
