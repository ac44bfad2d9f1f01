"""Sources spread evenly through one order, each item placed by its own source alone.

Every source runs along the same clock from 0 to 1 and gives tokens (or samples) at a steady rate: an item comes when
half of it is due. That depends on its own source alone, so a source that is added or removed moves no two items of the
others. At any time each source is within half an item of what is due.

Counted in items instead of time, with k sources that have shares p, a source is within (1 + p * (k - 2)) / 2 items of
its share of the first m items, for every m: within one item for up to three sources, and for more where none has above
1 / (k - 2). A stable order cannot keep many small sources and a large one so close: of sources with one item each, the
items of any two would have to lie on either side of the middle.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import numpy as np
import numpy.typing as npt
from numba import njit

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_LARGEST = 2**47
"""The sizes of a source's items add up to less than this."""
_DENOMINATOR = 2**46
"""A source's rate, the reciprocal of its span, is a fraction with at most this denominator."""
_BLOCK = 2**20
"""Items renumbered at once, so that it takes no memory to speak of."""


def interleave(sizes: Sequence[Int32], spans: Sequence[Fraction], names: Sequence[str]) -> Int64:
    """Merge the items of several sources; each source's items stay in their order.

    Args:
        sizes: for each source int32[items], above 0: what an item takes of the source's share, its tokens or 1.
        spans: for each source what it gives while the clock runs from 0 to 1: its items' sizes together, or the exact
            share that they were rounded from. Where all spans grow by one factor the order goes on and does not change.
        names: the sources' names, all different; items of the same time are in the order of the names.
    Returns:
        int64[all items], indices into the sources' items laid end to end.
    """
    counts = np.array([size.size for size in sizes], np.int64)
    by_name = sorted(range(len(names)), key=names.__getitem__)
    ends = np.cumsum(counts[by_name])
    times = np.empty(counts.sum(), np.uint64)
    for source, end in zip(by_name, ends, strict=True):
        times[end - counts[source] : end] = item_times(sizes[source], spans[source])
    # A stable sort by merging: each source is in order already.
    order = np.argsort(times, kind="stable")
    del times
    shift = (np.cumsum(counts) - counts)[by_name] - (ends - counts[by_name])
    for begin in range(0, order.size, _BLOCK):
        block = order[begin : begin + _BLOCK]
        block += shift[np.searchsorted(ends, block, side="right")]
    return order


def item_times(sizes: Int32, span: Fraction) -> UInt64:
    """uint64[items], rising: when each comes, in units of 2^-63.

    That is floor(2^62 * (2 * sizes before the item + its size) / span), and at most 2^64 - 1. The span's reciprocal is
    exact while its denominator is at most 2^46, and otherwise the nearest such fraction.
    """
    total = int(sizes.sum(dtype=np.int64))
    if total >= _LARGEST or span < Fraction(1, 2):
        raise ValueError(f"items of {total} in a span of {span}; expected less than {_LARGEST}, and at least 1/2")
    rate = (1 / span).limit_denominator(_DENOMINATOR)
    times = np.empty(sizes.size, np.uint64)
    _item_times(sizes, np.uint64(rate.numerator), np.uint64(rate.denominator), times)
    return times


def item_times_reference(sizes: Int32, span: Fraction) -> list[int]:
    """`item_times` in numbers of any size."""
    rate = (1 / span).limit_denominator(_DENOMINATOR)
    times, before = [], 0
    for size in sizes.tolist():
        times.append(min(floor(2**62 * (2 * before + size) * rate), 2**64 - 1))
        before += size
    return times


@njit(cache=True)
def _item_times(sizes: Int32, numerator: np.uint64, denominator: np.uint64, times: UInt64) -> None:
    # Multiplied and divided with digits of 16 bits: the numerator is at most 2^47, so all fits 64.
    before = np.int64(0)
    for item in range(sizes.size):
        place = np.uint64(2 * before + sizes[item])
        time = rest = np.uint64(0)
        for shift in (32, 16, 0):
            digit = place >> np.uint64(shift) & np.uint64(0xFFFF)
            value = (rest << np.uint64(16)) + digit * numerator
            time = (time << np.uint64(16)) + value // denominator
            rest = value % denominator
        if time >= 4:
            times[item:] = np.uint64(2**64 - 1)
            return
        for bits in (16, 16, 16, 14):
            value = rest << np.uint64(bits)
            time = time << np.uint64(bits) | value // denominator
            rest = value % denominator
        times[item] = time
        before += sizes[item]
