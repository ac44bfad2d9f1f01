"""Best fit in the samples' order: every sample whole, and packs as mixed as the samples are.

`best_fit` plans by length, so its packs hold equally long samples: one pack of short questions, another of long
essays. That fills a little better, but a step of few packs then sees few kinds of samples. Here samples go into packs
as they come, so a pack is a run of the order, with its gaps filled by later samples.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numba import njit

from prep.best_fit import best_fit, best_fit_reference

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


SLACK = 64
"""A plan is poor if it is more than lower bound / SLACK packs, and more than two, above the lower bound."""
RUN = 16_384
"""Then runs of so many samples are packed by length, each by itself."""


def in_order(lengths: Int32, bounds: Int64, capacity: int) -> tuple[Int32, Int32, Int32, int]:
    """Choose a pack for every sample in turn, cutting none: the fullest open pack that it fits into, else a new one.

    Among equally full packs the most recently touched wins. Where few samples share a pack, as with all lengths in
    (capacity / 4, capacity / 2], that wastes a lot. So a group that it packs poorly is cut into runs of RUN samples,
    each packed by `best_fit`, and the plan with fewer packs is taken: packs are mixed then as the runs are.

    Args:
        lengths: int32[samples], tokens of each, in 1..capacity.
        bounds: int64[groups + 1], rising from 0 to samples; each group is packed by itself.
        capacity: tokens per pack.
    Returns:
        As `best_fit`: int32[samples] the pack of each sample; int32[packs] samples in each pack; int32[packs] the
        samples where the packs stand, those that open them or else are their longest, in rising order; a number of
        packs that no way of packing can undercut.
    """
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"samples have {lengths.min()}..{lengths.max()} tokens, but a pack takes 1..{capacity} without a cut"
        )
    pack_of, segments, stands = np.empty((3, lengths.size), np.int32)
    words = np.zeros(capacity // 64 + 1, np.uint64)
    top = np.full(64 * words.size, -1, np.int32)
    under = np.empty(int(np.diff(bounds).max(initial=0)), np.int32)
    packs = bound = 0
    for first, end in pairwise(bounds.tolist()):
        group = lengths[first:end]
        tokens, opened = _in_order(
            group, capacity, top, under, words, pack_of[first:end], segments[packs:], stands[packs:]
        )
        fewest = -(-tokens // capacity)
        if opened > fewest + max(2, fewest // SLACK):
            found, sizes, longest, _ = best_fit(group, np.append(np.arange(0, group.size, RUN), group.size), capacity)
            if sizes.size < opened:
                opened = sizes.size
                pack_of[first:end] = found
                segments[packs : packs + opened], stands[packs : packs + opened] = sizes, longest
        pack_of[first:end] += packs
        stands[packs : packs + opened] += first
        packs += opened
        bound += fewest
    return pack_of, segments[:packs], stands[:packs], bound


@njit(cache=True)
def _in_order(
    lengths: Int32,
    capacity: int,
    top: Int32,
    under: Int32,
    words: Words,
    pack_of: Int32,
    segments: Int32,
    opens: Int32,
) -> tuple[int, int]:
    # The tokens and the packs. One stack of packs per amount of room: top[r] is the pack with r tokens free that was
    # touched last, under[p] the pack beneath p, -1 ends a stack. `words` has a bit per amount whose stack is not empty,
    # so the tightest fit is the next bit up from the sample's length. Both are left as they were, without a pack.
    # Unsigned indices spare the check for negative ones.
    tokens = packs = 0
    for sample in range(lengths.size):
        length = np.uint64(lengths[sample])
        tokens += lengths[sample]
        room = _next_bit(words, length)
        if room <= capacity:
            chosen = np.uint64(top[room])
            top[room] = under[chosen]
            if top[room] < 0:
                words[room >> SIX] &= ~(ONE << (room & LAST_SIX))
            segments[chosen] += 1
        else:
            room = np.uint64(capacity)
            chosen = np.uint64(packs)
            opens[packs] = sample
            segments[packs] = 1
            packs += 1
        left = room - length
        if left > 0:
            under[chosen] = top[left]
            top[left] = chosen
            words[left >> SIX] |= ONE << (left & LAST_SIX)
        pack_of[sample] = chosen
    for at in range(words.size):
        if words[at]:
            top[64 * at : 64 * at + 64] = -1
            words[at] = 0
    return tokens, packs


ONE, SIX, LAST_SIX = np.uint64(1), np.uint64(6), np.uint64(63)


@njit(cache=True)
def _next_bit(words: Words, first: np.uint64) -> np.uint64:
    # The first bit set from `first` up, or one beyond all words.
    at = first >> SIX
    word = words[at] >> (first & LAST_SIX)
    while word == 0:
        at += ONE
        first = at << SIX
        if at == words.size:
            return first
        word = words[at]
    return first + np.uint64(_trailing_zeros(word))


@njit(cache=True)
def _trailing_zeros(word: np.uint64) -> np.uint64:
    # The bits below the lowest one set, counted in pairs, fours, bytes and together: without a branch to guess wrong.
    below = ~word & (word - ONE)
    below -= below >> ONE & np.uint64(0x5555555555555555)
    below = (below & np.uint64(0x3333333333333333)) + (below >> np.uint64(2) & np.uint64(0x3333333333333333))
    below = below + (below >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return below * np.uint64(0x0101010101010101) >> np.uint64(56)


def in_order_reference(lengths: Int32, bounds: Int64, capacity: int) -> tuple[Int32, Int32, Int32, int]:
    """`in_order` written the obvious way: slow, and right. The tests compare the two."""
    pack_of: list[int] = []
    segments: list[int] = []
    stands: list[int] = []
    bound = 0
    for first, end in pairwise(bounds.tolist()):
        group = lengths[first:end]
        fewest = -(-int(group.sum()) // capacity)
        packed, sizes, opens = _in_turn(group.tolist(), capacity)
        if len(sizes) > fewest + max(2, fewest // SLACK):
            runs = np.array([*range(0, group.size, RUN), group.size])
            found, found_sizes, longest, _ = best_fit_reference(group, runs, capacity)
            if found_sizes.size < len(sizes):
                packed, sizes, opens = found.tolist(), found_sizes.tolist(), longest.tolist()
        pack_of += [len(segments) + pack for pack in packed]
        segments += sizes
        stands += [first + sample for sample in opens]
        bound += fewest
    return np.array(pack_of, np.int32), np.array(segments, np.int32), np.array(stands, np.int32), bound


def _in_turn(lengths: Sequence[int], capacity: int) -> tuple[list[int], list[int], list[int]]:
    pack_of: list[int] = []
    opens: list[int] = []
    free: dict[int, int] = {}  # room of each pack, most recently touched last
    for sample, length in enumerate(lengths):
        fitting = [pack for pack in reversed(free) if length <= free[pack]]
        chosen = min(fitting, key=free.__getitem__, default=len(opens))
        if chosen == len(opens):
            opens.append(sample)
        free[chosen] = free.pop(chosen, capacity) - length
        pack_of.append(chosen)
    return pack_of, [pack_of.count(pack) for pack in range(len(opens))], opens
