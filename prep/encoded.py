"""Token ids of many texts in one array."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids, end to end."""

    ids: npt.NDArray[np.uint32]
    bounds: npt.NDArray[np.int64]
    """[texts + 1] where each text begins; it ends where the next one begins."""

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]]) -> "Encoded":
        """One list of ids for each text."""
        bounds = np.zeros(len(lists) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, lists), np.int64, len(lists)), out=bounds[1:])
        return cls(np.fromiter(chain.from_iterable(lists), np.uint32, int(bounds[-1])), bounds)

    @classmethod
    def of_parts(cls, parts: Iterable[npt.NDArray[np.uint32]]) -> "Encoded":
        """One array of ids for each text."""
        parts = list(parts)
        bounds = np.zeros(len(parts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)), out=bounds[1:])
        return cls(np.concatenate([np.zeros(0, np.uint32), *parts]), bounds)

    def __len__(self) -> int:
        return self.bounds.size - 1

    def parts(self) -> list[npt.NDArray[np.uint32]]:
        """The ids of each text, as views."""
        ids, bounds = self.ids, self.bounds.tolist()
        return [ids[begin:end] for begin, end in pairwise(bounds)]

    def lists(self) -> list[list[int]]:
        """The ids of each text, as Python numbers."""
        ids, bounds = self.ids.tolist(), self.bounds.tolist()
        return [ids[begin:end] for begin, end in pairwise(bounds)]

    def first_difference(self, other: "Encoded") -> int | None:
        """Index of the first text that has other ids there, or None; both hold the same texts."""
        if np.array_equal(self.bounds, other.bounds) and np.array_equal(self.ids, other.ids):
            return None
        pairs = zip(self.parts(), other.parts(), strict=True)
        return next((index for index, (one, two) in enumerate(pairs) if not np.array_equal(one, two)), None)
