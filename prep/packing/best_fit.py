"""Best fit: every sample whole, in the pack that it fills most tightly.

Lengths are small integers, so the plan is made on their histogram: a run of equally long samples goes into a run of
equally full packs in one step. A plan takes some thousand steps, however many samples there are.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]

THRESHOLDS = 128
"""Thresholds are tried at multiples of capacity / THRESHOLDS, up to half a pack."""
SLACK = 256
"""A plan is good enough at lower bound + lower bound / SLACK packs, or + 2 if that is more."""


def best_fit(lengths: Int32, bounds: Int64, capacity: int) -> tuple[Int32, int, int]:
    """Choose a pack for every sample, cutting none.

    The longest sample goes first, each where it leaves the least room; among equally full packs into the one that has
    been so for longest; equally long samples in their order. Where nothing small is left to fill the gaps, that wastes
    much, and a second rule competes: a new pack opened by a sample up to some threshold is filled at once with as many
    samples as can fit, each as long as leaves room for the rest. Thresholds are tried from low to high until a plan is
    good enough; the fewest packs win, the lowest threshold among equals. With all lengths in (capacity / 4,
    capacity / 2], where pairs and triples compete, the first rule alone fills 90 %, both together 95 %.

    Args:
        lengths: int32[samples], tokens of each, in 1..capacity.
        bounds: int64[groups + 1], rising from 0 to samples; each group is packed by itself.
        capacity: tokens per pack.
    Returns:
        int32[samples] the pack of each sample, a group's packs numbered after those of the group before it; the
        number of packs; a number of packs that no way of packing these groups can undercut.
    """
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"samples have {lengths.min()}..{lengths.max()} tokens, but a pack takes 1..{capacity} without a cut"
        )
    pack_of, packs, bound = _best_fit(lengths, bounds, capacity)
    return pack_of, int(packs), int(bound)


class _Space(NamedTuple):
    """What `_plan` works on, kept from one plan to the next: as it was, but for `steps`."""

    left: Any
    """int64[capacity + 1] samples of each length not yet in a pack."""
    unpacked: Any
    """Set of the lengths that are left."""
    gaps: Any
    """Set of the amounts of room that some open pack has."""
    first_run: Any
    """int32[capacity + 1] the packs with so much room, as a queue of runs; -1 where there is none."""
    last_run: Any
    """int32[capacity + 1]"""
    runs: Any
    """int32[runs, 3] first pack, packs, next run in the queue."""
    steps: Any
    """int32[steps, 4] what was done: length, first pack, packs, samples of this length in each of them."""


@njit(cache=True)
def _best_fit(lengths: Int32, bounds: Int64, capacity: int) -> tuple[Int32, int, int]:
    leaves = 1
    while leaves <= capacity:
        leaves *= 2
    largest = 0
    for group in range(bounds.size - 1):
        largest = max(largest, bounds[group + 1] - bounds[group])
    space = _Space(
        np.zeros(capacity + 1, np.int64),
        np.zeros(2 * leaves, np.uint8),
        np.zeros(2 * leaves, np.uint8),
        np.full(capacity + 1, -1, np.int32),
        np.empty(capacity + 1, np.int32),
        np.empty((largest, 3), np.int32),
        np.empty((largest, 4), np.int32),
    )
    count = np.zeros(capacity + 1, np.int64)
    cursor = np.empty(capacity + 1, np.int64)
    pack_of = np.empty(lengths.size, np.int32)
    pack_of_sorted = np.empty(largest, np.int32)  # of the group's samples, longest first
    packs = 0
    bound = 0
    for group in range(bounds.size - 1):
        first, end = bounds[group], bounds[group + 1]
        distinct = _histogram(lengths[first:end], capacity, count, space.unpacked)
        fewest = _lower_bound(distinct, count, capacity)
        best, steps = _best_plan(distinct, count, capacity, fewest, space)
        before = 0
        for length in distinct:
            cursor[length] = before
            before += count[length]
        for step in range(steps):
            length, pack, many, each = space.steps[step]
            sample = cursor[length]
            for i in range(packs + pack, packs + pack + many):
                for _ in range(each):
                    pack_of_sorted[sample] = i
                    sample += 1
            cursor[length] = sample
        for length in distinct:
            cursor[length] -= count[length]
            count[length] = 0
        for sample in range(first, end):
            length = lengths[sample]
            pack_of[sample] = pack_of_sorted[cursor[length]]
            cursor[length] += 1
        packs += best
        bound += fewest
    return pack_of, packs, bound


@njit(cache=True)
def _histogram(lengths: Int32, capacity: int, count: Int64, present: Bits) -> Int32:
    # Counts the samples of each length; returns the lengths that occur, longest first.
    kinds = 0
    for length in lengths:
        if count[length] == 0:
            _mark(present, length, 1)
            kinds += 1
        count[length] += 1
    distinct = np.empty(kinds, np.int32)
    length = capacity
    for kind in range(kinds):
        length = _at_most(present, length)
        distinct[kind] = length
        _mark(present, length, 0)
    return distinct


@njit(cache=True)
def _best_plan(distinct: Int32, count: Int64, capacity: int, fewest: int, space: _Space) -> tuple[int, int]:
    best, steps = _plan(distinct, count, capacity, 0, space)
    enough = fewest + max(2, fewest // SLACK)
    if best <= enough:
        return best, steps
    best_threshold = 0
    threshold = 0
    for part in range(1, THRESHOLDS // 2 + 1):
        threshold = capacity * part // THRESHOLDS
        if threshold < distinct[-1]:
            continue
        packs, steps = _plan(distinct, count, capacity, threshold, space)
        if packs < best:
            best, best_threshold = packs, threshold
        if best <= enough:
            return best, steps
    best, steps = _plan(distinct, count, capacity, best_threshold, space)
    return best, steps


@njit(cache=True)
def _plan(distinct: Int32, count: Int64, capacity: int, threshold: int, space: _Space) -> tuple[int, int]:
    # The packs and the number of steps it takes to fill them.
    left, unpacked, gaps, first_run, last_run, runs, steps = space
    for length in distinct:
        left[length] = count[length]
        _mark(unpacked, length, 1)
    packs = done = made = 0
    for length in distinct:
        while left[length] > 0:
            room = _at_least(gaps, length)
            if room < 0 and length <= threshold:
                many, done = _fill(length, capacity, packs, done, space)
                packs += many
                continue
            if room < 0:
                room = capacity
                each = min(room // length, left[length])
                many = left[length] // each
                pack = packs
                packs += many
            else:
                each = min(room // length, left[length])
                run = first_run[room]
                many = min(left[length] // each, runs[run, 1])
                pack = runs[run, 0]
                runs[run, 0] += many
                runs[run, 1] -= many
                if runs[run, 1] == 0:
                    first_run[room] = runs[run, 2]
                    if first_run[room] < 0:
                        _mark(gaps, room, 0)
            steps[done, 0] = length
            steps[done, 1] = pack
            steps[done, 2] = many
            steps[done, 3] = each
            done += 1
            left[length] -= many * each
            room -= each * length
            runs[made, 0] = pack
            runs[made, 1] = many
            runs[made, 2] = -1
            if first_run[room] < 0:
                first_run[room] = made
                _mark(gaps, room, 1)
            else:
                runs[last_run[room], 2] = made
            last_run[room] = made
            made += 1
        _mark(unpacked, length, 0)
    room = _at_least(gaps, 0)
    while room >= 0:
        first_run[room] = -1
        _mark(gaps, room, 0)
        room = _at_least(gaps, room)
    return packs, done


@njit(cache=True)
def _fill(length: int, capacity: int, pack: int, done: int, space: _Space) -> tuple[int, int]:
    # Fills a pack with `length` and as many samples as can join it, each as long as leaves room for the rest, and
    # further packs with the same lengths while there are any. Returns the packs and the new number of steps.
    left, unpacked, steps = space.left, space.unpacked, space.steps
    first = done
    room = capacity
    while length > 0:
        if done > first and steps[done - 1, 0] == length:
            steps[done - 1, 3] += 1
        else:
            steps[done, 0] = length
            steps[done, 1] = pack
            steps[done, 3] = 1
            done += 1
        room -= length
        left[length] -= 1
        if left[length] == 0:
            _mark(unpacked, length, 0)
        shortest = _at_least(unpacked, 1)
        if shortest < 0 or shortest > room:
            break
        length = _at_most(unpacked, room - (room // shortest - 1) * shortest)
    more = left[steps[first, 0]]
    for step in range(first, done):
        more = min(more, left[steps[step, 0]] // steps[step, 3])
    for step in range(first, done):
        length, each = steps[step, 0], steps[step, 3]
        steps[step, 2] = 1 + more
        left[length] -= more * each
        if left[length] == 0:
            _mark(unpacked, length, 0)
    return 1 + more, done


@njit(cache=True)
def _lower_bound(distinct: Int32, count: Int64, capacity: int) -> int:
    # Martello and Toth's L2: for any cut-off, samples above capacity - cut-off stand alone, those above capacity / 2
    # take a pack each, and those from the cut-off to capacity / 2 can at best fill what these leave.
    total = over_half = kinds_over_half = 0
    for length in distinct:
        total += length * count[length]
        if 2 * length > capacity:
            over_half += count[length]
            kinds_over_half += 1
    best = max(over_half, -(-total // capacity))
    alone = kinds_over_half
    tokens = room = 0  # of the samples from the cut-off to half; left beside those over half that can be joined
    for cutoff in distinct[kinds_over_half:]:
        tokens += cutoff * count[cutoff]
        while alone > 0 and distinct[alone - 1] <= capacity - cutoff:
            alone -= 1
            room += count[distinct[alone]] * (capacity - distinct[alone])
        best = max(best, over_half - ((room - tokens) // capacity))
    return best


@njit(cache=True)
def _mark(tree: Bits, leaf: int, present: int) -> None:
    # A set of integers as a binary tree in an array: a node is 1 where some leaf below it is in the set.
    node = leaf + tree.size // 2
    tree[node] = present
    while node > 1:
        node //= 2
        present = tree[2 * node] | tree[2 * node + 1]
        if tree[node] == present:
            return
        tree[node] = present


@njit(cache=True)
def _at_least(tree: Bits, leaf: int) -> int:
    # The smallest member from `leaf` up, or -1.
    leaves = tree.size // 2
    node = leaf + leaves
    if tree[node]:
        return leaf
    while node > 1:
        if node % 2 == 0 and tree[node + 1]:
            node += 1
            while node < leaves:
                node = 2 * node if tree[2 * node] else 2 * node + 1
            return node - leaves
        node //= 2
    return -1


@njit(cache=True)
def _at_most(tree: Bits, leaf: int) -> int:
    # The largest member up to `leaf`, or -1.
    leaves = tree.size // 2
    node = leaf + leaves
    if tree[node]:
        return leaf
    while node > 1:
        if node % 2 == 1 and tree[node - 1]:
            node -= 1
            while node < leaves:
                node = 2 * node + 1 if tree[2 * node + 1] else 2 * node
            return node - leaves
        node //= 2
    return -1
