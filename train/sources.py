"""The sources of the data, for the loss of each: which one a target is from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.artifacts import Json
from pipelines.shards import Pack

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sources:
    """prep's sources, by number."""

    names: list[str]
    """[sources]"""
    of_file: Int64
    """int64[files]: the source of each input file."""

    @classmethod
    def of(cls, facts: Mapping[str, Json]) -> "Sources":
        """Those that a prep manifest lists."""
        numbers = {source["name"]: number for number, source in enumerate(facts["sources"])}
        return cls(list(numbers), np.array([numbers[file["source"]] for file in facts["files"]], np.int64))

    def of_tokens(self, pack: Pack, tokens: Int64) -> Int64:
        """int64[tokens]: the source of each of a pack's tokens, given by their places in it."""
        return self.of_file[pack.file[np.searchsorted(pack.segments, tokens, side="right") - 1]]

    def count_targets(self, pack: Pack) -> Int64:
        """int64[sources]: how many of a pack's targets are of each source."""
        return np.bincount(self.of_tokens(pack, np.flatnonzero(pack.loss)), minlength=len(self.names))


def means(sums: Sequence[float], targets: Mapping[str, int]) -> dict[str, float]:
    """The mean loss of every source that has a target.

    Args:
        sums: [sources] of the losses of each source's targets.
        targets: [sources] how many those are, in the same order.
    """
    return {name: total / count for total, (name, count) in zip(sums, targets.items(), strict=True) if count}
