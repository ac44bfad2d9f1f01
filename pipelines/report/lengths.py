"""How long samples are and how full packs, counted from the shards one at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.artifacts import Json, Manifest
from pipelines.errors import DataError
from pipelines.progress import progress_bar

Counts = npt.NDArray[np.int64]
"""[longest + 1] how many have each length."""


@dataclass
class Lengths:
    """Of what is trained on. Memory grows with the longest sample and the sources, not with the samples."""

    by_source: dict[str, Counts] = field(default_factory=dict)
    """Segments of packs by their tokens: samples, or what is left of them where the strategy cuts."""
    packs: Counts = field(default_factory=lambda: np.zeros(1, np.int64))
    """Packs by their tokens."""
    why_not: str = ""
    """What kept a shard from being read; what is counted then is not all."""

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "Lengths":
        """Count what the shards of a prep directory hold, as far as they are there."""
        from pipelines.shards import read_shard

        found = cls()
        names = [source["name"] for source in manifest.facts.get("sources", ())]
        numbers = {name: number for number, name in enumerate(names)}
        source_of_file = np.array([numbers[one["source"]] for one in manifest.facts.get("files", ())], np.int64)
        shards = [record.path for record in manifest.files if record.path.startswith("shards/")]
        for path, count in _one_by_one(shards, manifest.facts["packs_per_shard"]):
            try:
                packs = read_shard(folder / path)
            except DataError:
                found.why_not = f"{path} is missing or damaged"
                continue
            if packs.segments_per_pack.size != count:
                found.why_not = f"{path} holds other packs than the manifest says"
                continue
            if packs.file.max() >= source_of_file.size:
                found.why_not = f"{path} is of files that the manifest does not list"
                continue
            ends = np.cumsum(packs.segments_per_pack)
            tokens = np.add.reduceat(packs.lengths, ends - packs.segments_per_pack)
            found.packs = _added(found.packs, np.bincount(tokens))
            sources = source_of_file[packs.file]
            for number in np.unique(sources).tolist():
                name, counts = names[number], np.bincount(packs.lengths[sources == number])
                found.by_source[name] = _added(found.by_source.get(name, np.zeros(1, np.int64)), counts)
        found.by_source = {name: found.by_source[name] for name in names if name in found.by_source}
        return found

    @property
    def all(self) -> Counts:
        """Segments of all sources."""
        whole: Counts = np.zeros(1, np.int64)
        for counts in self.by_source.values():
            whole = _added(whole, counts)
        return whole


def _one_by_one(shards: Sequence[str], packs: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Each shard and its packs, with a bar where that takes long."""
    with progress_bar("reading shards", len(shards), "shard") as progress:
        for one in zip(shards, packs, strict=False):
            yield one
            progress()


def summary(counts: Counts) -> Mapping[str, Json]:
    """Percentiles and the mean of lengths; nothing where there are none."""
    whole = int(counts.sum())
    if not whole:
        return {}
    below = np.cumsum(counts)
    ranks = {"shortest": 0.0, "5 %": 0.05, "half": 0.5, "95 %": 0.95, "longest": 1.0}
    found: dict[str, Json] = {
        name: int(np.searchsorted(below, int(share * (whole - 1)), side="right")) for name, share in ranks.items()
    }
    mean = float(np.dot(np.arange(counts.size, dtype=np.float64), counts)) / whole
    return {"count": whole, "mean": mean, **found}


def binned(counts: Sequence[Counts], borders: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64[series, bins]: how many lengths lie in borders[i] <= length < borders[i + 1]."""
    return np.array([_between(one, borders) for one in counts], np.int64).reshape(len(counts), borders.size - 1)


def edges(low: int, high: int, *, logarithmic: bool, most: int = 40) -> npt.NDArray[np.int64]:
    """int64[bins + 1]: borders of bins over the lengths low..high; equally wide, or by equal factors."""
    if logarithmic:
        borders = np.geomspace(low, high + 1, most + 1)
        return np.unique(np.rint(borders)).astype(np.int64)
    width = max(1, -(-(high + 1 - low) // most))
    return np.arange(low, high + 1 + width, width, dtype=np.int64)


def _between(counts: Counts, borders: npt.NDArray[np.int64]) -> Any:
    below = np.concatenate(([0], np.cumsum(counts)))
    return np.diff(below[np.minimum(borders, counts.size)])


def _added(one: Counts, other: Counts) -> Counts:
    longer, shorter = (one, other) if one.size >= other.size else (other, one)
    whole = longer.copy()
    whole[: shorter.size] += shorter
    return whole
