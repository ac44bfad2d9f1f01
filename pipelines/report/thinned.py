"""A long series in few points: means with the least and the most value around them, made while it is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

POINTS = 240
"""At most, and never less than half of them once there were as many values."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Buckets:
    """Consecutive values of a series, [buckets] each, in order."""

    first: Numbers
    """Step of its first value."""
    last: Numbers
    count: Numbers
    """Values in it."""
    total: Numbers
    """Their sum."""
    least: Numbers
    most: Numbers

    @property
    def mean(self) -> Numbers:
        # Between the least and the most, also where rounding of the sum says otherwise.
        return np.clip(self.total / self.count, self.least, self.most)

    @property
    def middle(self) -> Numbers:
        """Where on the axis of steps it stands."""
        return (self.first + self.last) / 2


class Thinned:
    """A series of any length in at most `points` buckets of equally many values; only the last may hold fewer.

    Every minimum and maximum stays, as that of its bucket. Memory does not grow with the length.
    """

    def __init__(self, points: int = POINTS) -> None:
        assert points > 1
        self._points = points
        self.width = 1
        """Values in a bucket."""
        nothing = np.empty(0)
        self.buckets = Buckets(nothing, nothing, nothing, nothing, nothing, nothing)

    def extend(self, steps: Sequence[float] | Numbers, values: Sequence[float | None] | Numbers) -> None:
        """Add values with their steps, in order; None and what is no number are left out."""
        at, found = np.asarray(steps, np.float64), np.asarray(values, np.float64)
        known = np.isfinite(found)
        at, found = at[known], found[known]
        if not found.size:
            return
        here = self.buckets
        joined = Buckets(
            first=np.append(here.first, at),
            last=np.append(here.last, at),
            count=np.append(here.count, np.ones(at.size)),
            total=np.append(here.total, found),
            least=np.append(here.least, found),
            most=np.append(here.most, found),
        )
        whole = int(joined.count.sum())
        while -(-whole // self.width) > self._points:
            self.width *= 2
        self.buckets = _merged(joined, self.width)

    def __len__(self) -> int:
        """Values so far."""
        return int(self.buckets.count.sum())


def _merged(buckets: Buckets, width: int) -> Buckets:
    """Buckets of `width` values each, from ones whose borders they share."""
    before = np.cumsum(buckets.count) - buckets.count
    starts = np.flatnonzero(np.diff(before // width, prepend=-1))
    ends = np.append(starts[1:], before.size) - 1
    return Buckets(
        first=buckets.first[starts],
        last=buckets.last[ends],
        count=np.add.reduceat(buckets.count, starts),
        total=np.add.reduceat(buckets.total, starts),
        least=np.minimum.reduceat(buckets.least, starts),
        most=np.maximum.reduceat(buckets.most, starts),
    )
