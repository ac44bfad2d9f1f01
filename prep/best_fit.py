"""Best fit: every sample whole, in the pack that it fills most tightly.

Lengths are small integers, so the plan is made on their histogram: a run of equally long samples goes into a run of
equally full packs in one step. A plan takes some thousand steps, however many samples there are.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
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
"""They are tried only while the best plan is more than lower bound / SLACK packs above the lower bound."""

ZERO: Any = np.int64(0)
"""Where numba, given a plain 0, would compile another version for this one value."""


def best_fit(lengths: Int32, bounds: Int64, capacity: int) -> tuple[Int32, Int32, Int32, int]:
    """Choose a pack for every sample, cutting none.

    The longest sample goes first, each where it leaves the least room; among equally full packs into the one that has
    been so for longest; equally long samples in their order. That wastes room where too few small samples are left to
    fill the gaps, so a second rule competes: a pack opened by a sample up to some threshold is filled at once, each
    time with the longest sample that leaves nothing or room for another; and so are the next packs, with the same
    lengths while there are any. Thresholds of nothing, all, and then ever more of half a pack are tried until a plan
    is good enough; the fewest packs win, the first plan among equals. With all lengths in (capacity / 4,
    capacity / 2], where pairs and triples compete, the first rule alone fills 90 % and both 95 %, of 96.4 % possible.

    Args:
        lengths: int32[samples], tokens of each, in 1..capacity.
        bounds: int64[groups + 1], rising from 0 to samples; each group is packed by itself.
        capacity: tokens per pack.
    Returns:
        int32[samples] the pack of each sample, a group's packs numbered after those of the group before it;
        int32[packs] samples in each pack; int32[packs] the samples that are the first of the longest in their pack,
        in rising order; a number of packs that no way of packing these groups can undercut.
    """
    if lengths.size and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(
            f"samples have {lengths.min()}..{lengths.max()} tokens, but a pack takes 1..{capacity} without a cut"
        )
    pack_of, segments, longest = np.empty((3, lengths.size), np.int32)
    count = np.zeros(capacity + 1, np.int64)
    space = _Space.of(capacity, largest_group=int(np.diff(bounds).max(initial=0)))
    packs = bound = 0
    for first, end in pairwise(bounds.tolist()):
        _count(lengths[first:end], count)
        distinct = np.flatnonzero(count)[::-1].copy()
        fewest = lower_bound(distinct, count[distinct], capacity)
        steps = _best_plan(distinct, count, capacity, fewest, space)
        steps[:, PACK] += packs
        opened = _carry_out(steps, lengths[first:end], space.places, pack_of[first:end], segments, longest[packs:])
        longest[packs : packs + opened] += first
        count[distinct] = 0
        packs += opened
        bound += fewest
    return pack_of, segments[:packs], longest[:packs], bound


def lower_bound(lengths: Int64, count: Int64, capacity: int) -> int:
    """Packs that samples need at least, however they are packed.

    Martello and Toth's L2: for any cut-off, samples above capacity - cut-off stand alone, those above capacity / 2
    take a pack each, and those from the cut-off to capacity / 2 can at best fill what these leave.

    Args:
        lengths: int64[lengths], falling.
        count: int64[lengths], samples of each.
    """
    tokens = lengths * count
    over_half = int(np.count_nonzero(2 * lengths > capacity))
    halves = count[:over_half].sum()
    left = (capacity - lengths[:over_half]) * count[:over_half]
    cutoffs = lengths[over_half:]
    alone = np.searchsorted(-lengths[:over_half], cutoffs - capacity)
    room = left.sum() - np.append(0, np.cumsum(left))[alone]
    bounds = halves - (room - np.cumsum(tokens[over_half:])) // capacity
    return int(max(halves, -(-tokens.sum() // capacity), bounds.max(initial=0)))


def _best_plan(distinct: Int64, count: Int64, capacity: int, fewest: int, space: "_Space") -> Int32:
    """The steps of the best plan: int32[steps, 6], see below."""
    parts = (capacity * part // THRESHOLDS for part in range(1, THRESHOLDS // 2 + 1))
    best_threshold = threshold = 0
    best, done = _plan(distinct, count, capacity, threshold, space)
    for following, slack in chain([(capacity, 0)], ((part, fewest // SLACK) for part in parts)):
        if best <= fewest + slack:
            break
        if following >= distinct[-1]:
            threshold = following
            packs, done = _plan(distinct, count, capacity, threshold, space)
            if packs < best:
                best, best_threshold = packs, threshold
    if threshold != best_threshold:
        _, done = _plan(distinct, count, capacity, best_threshold, space)
    steps: Int32 = space.steps[:done]
    return steps


LENGTH, PACK, PACKS, EACH, OPENS, NEXT = range(6)
"""A step of a plan: the samples' length, the first of the packs they go into, the packs, samples in each of them,
whether they are the packs' first; and the next step with the same length."""


class _Space(NamedTuple):
    """What the kernels work on. Each leaves it as it was, but for `runs` and `steps`."""

    left: Any
    """int64[capacity + 1] samples of each length not yet in a pack."""
    unpacked: Any
    """The lengths that are left, as a set; see `_add`."""
    gaps: Any
    """The amounts of room that some open pack has, as a set."""
    first_run: Any
    """int32[capacity + 1] the packs with so much room, as a queue of runs; -1 where there is none."""
    last_run: Any
    """int32[capacity + 1]"""
    runs: Any
    """int32[runs, 3] first pack, packs, next run in the queue."""
    steps: Any
    """int32[steps, 6], see above."""
    places: Any
    """int32[capacity + 1, 4] where the next sample of each length goes: the pack, or ~pack if as its first; samples
    still to go into it; packs still to get some; the step that says so, -1 where there is none."""

    @classmethod
    def of(cls, capacity: int, *, largest_group: int) -> "_Space":
        leaves = 1 << capacity.bit_length()
        return cls(
            left=np.zeros(capacity + 1, np.int64),
            unpacked=np.zeros(2 * leaves, np.uint8),
            gaps=np.zeros(2 * leaves, np.uint8),
            first_run=np.full(capacity + 1, -1, np.int32),
            last_run=np.empty(capacity + 1, np.int32),
            runs=_reserve(largest_group, 3),
            steps=_reserve(largest_group, 6),
            places=np.full((capacity + 1, 4), -1, np.int32),
        )


def _reserve(rows: int, columns: int) -> Int32:
    """int32[rows, columns] that takes memory only where it is written, and none of what others could use again."""
    pages = mmap(-1, max(1, 4 * rows * columns), MAP_PRIVATE | MAP_ANONYMOUS)
    return np.frombuffer(pages, np.int32, rows * columns).reshape(rows, columns)


@njit(cache=True)
def _count(lengths: Int32, count: Int64) -> None:
    for sample in range(lengths.size):
        count[np.uintp(lengths[sample])] += 1  # unsigned indices spare the check for negative ones


@njit(cache=True)
def _plan(distinct: Int64, count: Int64, capacity: int, threshold: int, space: _Space) -> tuple[int, int]:
    # The packs and the steps that fill them.
    left, unpacked, gaps, first_run, last_run, runs, steps, _ = space
    for length in distinct:
        left[length] = count[length]
        _add(unpacked, length)
    packs = done = made = ZERO
    for length in distinct:
        while left[length] > 0:
            room = _at_least(gaps, length)
            if room < 0 and length <= threshold:
                many, done = _fill(length, capacity, packs, done, space)
                packs += many
                continue
            opens = room < 0
            if opens:
                room = capacity
            each = min(room // length, left[length])
            many = left[length] // each
            pack = packs
            if opens:
                packs += many
            else:
                run = first_run[room]
                pack = ZERO + runs[run, 0]
                many = min(many, runs[run, 1])
                runs[run, 0] += many
                runs[run, 1] -= many
                if runs[run, 1] == 0:
                    first_run[room] = runs[run, 2]
                    if first_run[room] < 0:
                        _remove(gaps, room)
            steps[done, LENGTH] = length
            steps[done, PACK] = pack
            steps[done, PACKS] = many
            steps[done, EACH] = each
            steps[done, OPENS] = opens
            done += 1
            left[length] -= many * each
            room -= each * length
            runs[made, 0] = pack
            runs[made, 1] = many
            runs[made, 2] = -1
            if first_run[room] < 0:
                first_run[room] = made
                _add(gaps, room)
            else:
                runs[last_run[room], 2] = made
            last_run[room] = made
            made += 1
        _remove(unpacked, length)
    room = _at_least(gaps, ZERO)
    while room >= 0:
        first_run[room] = -1
        _remove(gaps, room)
        room = _at_least(gaps, room)
    return packs, done


@njit(cache=True)
def _fill(length: int, capacity: int, pack: int, done: int, space: _Space) -> tuple[int, int]:
    # Fills one pack, beginning with `length`, and as many more as there are samples for. Returns the packs and the
    # steps done by now. Lengths never rise within a pack, so equal ones make one step.
    left, unpacked, steps = space.left, space.unpacked, space.steps
    first = done
    room = capacity
    shortest = _at_least(unpacked, ZERO)
    while True:
        if done > first and steps[done - 1, LENGTH] == length:
            steps[done - 1, EACH] += 1
        else:
            steps[done, LENGTH] = length
            steps[done, PACK] = pack
            steps[done, EACH] = 1
            steps[done, OPENS] = done == first
            done += 1
        room -= length
        left[length] -= 1
        if left[length] == 0:
            _remove(unpacked, length)
            if length == shortest:
                shortest = _at_least(unpacked, length)
        if shortest < 0 or shortest > room:
            break
        most = room if left[room] > 0 or room < 2 * shortest else room - shortest
        if length > most or left[length] == 0:
            length = _at_most(unpacked, most)
    more = left[steps[first, LENGTH]]
    for step in range(first, done):
        more = min(more, left[steps[step, LENGTH]] // steps[step, EACH])
    for step in range(first, done):
        steps[step, PACKS] = 1 + more
        length = ZERO + steps[step, LENGTH]
        left[length] -= more * steps[step, EACH]
        if left[length] == 0:
            _remove(unpacked, length)
    return 1 + more, done


@njit(cache=True)
def _carry_out(steps: Int32, lengths: Int32, places: Int32, pack_of: Int32, segments: Int32, longest: Int32) -> int:
    # Hands the steps' places out to the samples in their order.
    last = np.empty(places.shape[0], np.int32)
    for step in range(steps.shape[0]):
        length = steps[step, LENGTH]
        steps[step, NEXT] = -1
        if places[length, 3] < 0:
            _begin(step, steps, places[length])
        else:
            steps[last[length], NEXT] = step
        last[length] = step
        each, keep = steps[step, EACH], 1 - steps[step, OPENS]
        for pack in range(steps[step, PACK], steps[step, PACK] + steps[step, PACKS]):
            segments[pack] = keep * segments[pack] + each
    opened = 0
    for sample in range(lengths.size):
        place = places[np.uintp(lengths[sample])]
        pack = place[0]
        if pack < 0:
            pack = ~pack
            longest[opened] = sample
            opened += 1
        pack_of[sample] = pack
        if place[1] > 1:
            place[0] = pack
            place[1] -= 1
        elif place[2] > 1:
            at_work = np.uintp(place[3])
            place[0] = ~(pack + 1) if steps[at_work, OPENS] else pack + 1
            place[1] = steps[at_work, EACH]
            place[2] -= 1
        else:
            _begin(ZERO + steps[np.uintp(place[3]), NEXT], steps, place)
    return opened


@njit(cache=True)
def _begin(step: int, steps: Int32, place: Int32) -> None:
    place[3] = step
    if step >= 0:
        pack = steps[step, PACK]
        place[0] = ~pack if steps[step, OPENS] else pack
        place[1] = steps[step, EACH]
        place[2] = steps[step, PACKS]


@njit(cache=True)
def _add(tree: Bits, leaf: int) -> None:
    # A set of integers is a binary tree in an array: a node is 1 where some leaf below it is in the set.
    node = leaf + tree.size // 2
    while node > 0 and tree[node] == 0:
        tree[node] = 1
        node //= 2


@njit(cache=True)
def _remove(tree: Bits, leaf: int) -> None:
    node = leaf + tree.size // 2
    tree[node] = 0
    while node > 1 and tree[node ^ 1] == 0:
        node //= 2
        tree[node] = 0


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


def best_fit_reference(lengths: Int32, bounds: Int64, capacity: int) -> tuple[Int32, Int32, Int32, int]:
    """`best_fit` written the obvious way: slow, and right. The tests compare the two."""
    pack_of = np.empty_like(lengths)
    segments: list[int] = []
    longest: list[int] = []
    bound = 0
    for first, end in pairwise(bounds.tolist()):
        group = lengths[first:end].tolist()
        fewest = lower_bound_reference(group, capacity)
        parts = [capacity * part // THRESHOLDS for part in range(1, THRESHOLDS // 2 + 1)]
        best = _plan_reference(group, capacity, threshold=0)
        for threshold, enough in [(capacity, fewest), *((part, fewest + fewest // SLACK) for part in parts)]:
            if len(best) > enough:
                best = min(best, _plan_reference(group, capacity, threshold), key=len)
        for pack in best:
            pack_of[[first + sample for sample in pack]] = len(segments)
            segments.append(len(pack))
            longest.append(first + pack[0])
        bound += fewest
    return pack_of, np.array(segments, np.int32), np.array(sorted(longest), np.int32), bound


def _plan_reference(lengths: Sequence[int], capacity: int, threshold: int) -> list[list[int]]:
    left = sorted(range(len(lengths)), key=lambda sample: -lengths[sample])
    packs: list[list[int]] = []
    touched: list[list[int]] = []  # open packs, the longest untouched first
    recipe: list[int] = []

    def room(pack: list[int]) -> int:
        return capacity - sum(lengths[sample] for sample in pack)

    while left:
        length = lengths[left[0]]
        fitting = [pack for pack in touched if room(pack) >= length]
        if fitting or length > threshold:
            pack = min(fitting, key=room, default=[])
            if pack:
                touched = [other for other in touched if other is not pack]
            else:
                packs.append(pack)
            pack.append(left.pop(0))
            touched.append(pack)
            continue
        if not recipe or Counter(recipe) - Counter(lengths[sample] for sample in left):
            recipe = _fill_reference([lengths[sample] for sample in left], capacity)
        pack = []
        for length in recipe:
            pack.append(next(sample for sample in left if lengths[sample] == length))
            left.remove(pack[-1])
        packs.append(pack)
    return packs


def _fill_reference(left: list[int], capacity: int) -> list[int]:
    """Lengths that fill a pack, given those left, longest first."""
    recipe = [left.pop(0)]
    while left and left[-1] <= (room := capacity - sum(recipe)):
        whole = [length for length in left if length == room]
        shared = [length for length in left if length <= room - left[-1]]
        recipe.append((whole or shared or [length for length in left if length <= room])[0])
        left.remove(recipe[-1])
    return recipe


def lower_bound_reference(lengths: Sequence[int], capacity: int) -> int:
    """Packs that are needed at least."""
    best = -(-sum(lengths) // capacity)
    for cutoff in range(1, capacity // 2 + 1):
        alone = [length for length in lengths if length > capacity - cutoff]
        above = [length for length in lengths if capacity / 2 < length <= capacity - cutoff]
        below = [length for length in lengths if cutoff <= length <= capacity / 2]
        more = -(-(sum(below) - (len(above) * capacity - sum(above))) // capacity)
        best = max(best, len(alone) + len(above) + max(0, more))
    return best
