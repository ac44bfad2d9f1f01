"""Best fit in the samples' order: every sample whole, and packs as mixed as the samples are.

`best_fit` plans by length, so its packs hold equally long samples: one pack of short questions, another of long
essays. That fills a little better, but a step of few packs then sees few kinds of samples. Here samples go into packs
as they come, so a pack is a run of the order, with its gaps filled by later samples.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def in_order(lengths: Int32, bounds: Int64, capacity: int) -> tuple[Int32, Int32, Int32, int]:
    """Choose a pack for every sample in turn, cutting none: the fullest open pack that it fits into, else a new one.

    Among equally full packs the most recently touched wins.

    Args:
        lengths: int32[samples], tokens of each, in 1..capacity.
        bounds: int64[groups + 1], rising from 0 to samples; each group is packed by itself.
        capacity: tokens per pack.
    Returns:
        As `best_fit`: int32[samples] the pack of each sample; int32[packs] samples in each pack; int32[packs] the
        samples that open the packs, in rising order; a number of packs that no way of packing can undercut.
    """
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"samples have {lengths.min()}..{lengths.max()} tokens, but a pack takes 1..{capacity} without a cut"
        )
    pack_of = np.empty(lengths.size, np.int32)
    opens = np.empty(lengths.size, np.int32)
    packs = int(_in_order(lengths, bounds, capacity, pack_of, opens))
    tokens = np.diff(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))[bounds])
    return (
        pack_of,
        np.bincount(pack_of, minlength=packs).astype(np.int32),
        opens[:packs],
        int((-(-tokens // capacity)).sum()),
    )


@njit(cache=True)
def _in_order(lengths: Int32, bounds: Int64, capacity: int, pack_of: Int32, opens: Int32) -> int:
    # One stack of packs per amount of room: top[r] is the pack with r tokens free that was touched last, under[p] the
    # pack beneath p, -1 ends a stack. `words` has a bit per amount whose stack is not empty, so the tightest fit is
    # the next bit up from the sample's length.
    top = np.full(capacity + 1, -1, np.int32)
    under = np.full(lengths.size, -1, np.int32)
    words = np.zeros(capacity // 64 + 2, np.uint64)
    packs = 0
    for group in range(bounds.size - 1):
        for sample in range(bounds[group], bounds[group + 1]):
            length = int(lengths[sample])
            room = _next_bit(words, length)
            if room < 0:
                room = capacity
                chosen = packs
                opens[packs] = sample
                packs += 1
            else:
                chosen = int(top[room])
                top[room] = under[chosen]
                if top[room] < 0:
                    words[room >> 6] &= ~(np.uint64(1) << np.uint64(room & 63))
            left = room - length
            if left > 0:
                under[chosen] = top[left]
                top[left] = chosen
                words[left >> 6] |= np.uint64(1) << np.uint64(left & 63)
            pack_of[sample] = chosen
        for room in range(capacity + 1):
            top[room] = -1
        words[:] = 0
    return packs


@njit(cache=True)
def _next_bit(words: npt.NDArray[np.uint64], first: int) -> int:
    # The smallest amount of room from `first` up that some pack has, or -1.
    at = first >> 6
    word = words[at] >> np.uint64(first & 63)
    if word:
        room = first
    else:
        at += 1
        while at < words.size and words[at] == 0:
            at += 1
        if at == words.size:
            return -1
        word = words[at]
        room = at << 6
    while word & np.uint64(0xFF) == 0:
        word >>= np.uint64(8)
        room += 8
    while word & np.uint64(1) == 0:
        word >>= np.uint64(1)
        room += 1
    return room


def in_order_reference(lengths: Int32, bounds: Int64, capacity: int) -> tuple[Int32, Int32, Int32, int]:
    """`in_order` written the obvious way: slow, and right. The tests compare the two."""
    pack_of: list[int] = []
    opens: list[int] = []
    bound = 0
    for first, end in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        free: dict[int, int] = {}  # room of each pack of the group, most recently touched last
        for sample in range(first, end):
            length = int(lengths[sample])
            fitting = [pack for pack in reversed(free) if length <= free[pack]]
            chosen = min(fitting, key=free.__getitem__, default=len(opens))
            if chosen == len(opens):
                opens.append(sample)
            free[chosen] = free.pop(chosen, capacity) - length
            pack_of.append(chosen)
        bound += -(-int(lengths[first:end].sum()) // capacity)
    segments = [pack_of.count(pack) for pack in range(len(opens))]
    return np.array(pack_of, np.int32), np.array(segments, np.int32), np.array(opens, np.int32), bound
