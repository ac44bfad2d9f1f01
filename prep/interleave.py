"""Sources spread evenly through one order, each item placed by its own source alone.

Every source runs along the same clock from 0 to 1, at a constant rate of tokens (or samples). An item's time depends on
its own source's items and on nothing else, so a source that comes or goes moves no two items of the others. At any
time on the clock every source is within the size of one item of its share. (No order can be stable in this way and also
keep many sources within one item of their shares of every *count* of items: sources of one item each would all have to
come in the middle. The count's own error is bounded by the sum of what the sources are ahead or behind.)
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_LARGEST = 2**47
"""Tokens of a source that the arithmetic below can take."""


def interleave(sizes: Sequence[Int32], names: Sequence[str], *, seed: int) -> Int64:
    """Merge the items of several sources, each in the order it has.

    Args:
        sizes: for each source int32[items], what each item takes of its source's share: its tokens, or 1. Above 0.
        names: the sources' names, all different; equal times are in the order of the names.
    Returns:
        int64[all items], indices into the sources' items laid end to end.
    """
    counts = np.array([size.size for size in sizes], np.int64)
    firsts = np.cumsum(counts) - counts
    by_name = sorted(range(len(names)), key=names.__getitem__)
    times = np.empty(int(counts.sum()), np.uint64)
    filled = 0
    for source in by_name:
        times[filled : filled + counts[source]] = item_times(sizes[source], phase(names[source], seed))
        filled += counts[source]
    order = np.argsort(times, kind="stable")  # sees that each source is sorted already, and merges
    del times
    shift = np.repeat((firsts[by_name] - (np.cumsum(counts[by_name]) - counts[by_name])), counts[by_name])
    order += shift[order]
    return order


def phase(name: str, seed: int) -> int:
    """At which 65,536th of an item its time is, so that sources of equal counts do not march in step."""
    return int.from_bytes(hashlib.sha256(f"phase\0{seed}\0{name}".encode()).digest()[:2], "big")


def item_times(sizes: Int32, phase: int) -> UInt64:
    """uint64[items] in rising order: floor(2^64 * (size before the item + phase / 2^16 * its size) / size of all)."""
    total = int(sizes.sum(dtype=np.int64))
    if total >= _LARGEST:
        raise ValueError(f"a source of {total} tokens; the order is exact below {_LARGEST}")
    times = np.empty(sizes.size, np.uint64)
    _item_times(sizes, phase, total, times)
    return times


def item_times_reference(sizes: Int32, phase: int) -> list[int]:
    """`item_times` in integers of any size."""
    listed = sizes.tolist()
    return [2**48 * (2**16 * sum(listed[:i]) + phase * size) // sum(listed) for i, size in enumerate(listed)]


@njit(cache=True)
def _item_times(sizes: Int32, phase: int, total: int, times: UInt64) -> None:
    # Long division with digits of 16 bits: nothing exceeds 63.
    before = np.int64(0)
    for item in range(sizes.size):
        rest = (before << 16) + phase * sizes[item]
        time = np.uint64(0)
        for _ in range(4):
            time = time << np.uint64(16) | np.uint64(rest // total)
            rest = rest % total << 16
        times[item] = time
        before += sizes[item]
