"""Samples into packs: which sample, cut where, goes into which pack, and in which order.

A plan is made from lengths alone, in milliseconds, and is a pure function of them.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.schema import PackTable
from pipelines.shards import Attention
from prep.best_fit import best_fit
from prep.concat_split import concat_split
from prep.in_order import in_order

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Packs in training order, each a run of segments; a segment is a sample or a cut from one.

    A pack stands where its first sample stood, or with best_fit its longest (the first of equally long ones), so packs
    of long and of short samples, and of all groups, stay as mixed as the samples were. Its segments are in the
    samples' order.
    """

    capacity: int
    """Tokens a pack takes."""
    sample: Int32
    """[segments] position of the sample in the order that was packed."""
    start: Int32
    """[segments] the segment's first token within the sample."""
    length: Int32
    """[segments] tokens."""
    segments_per_pack: Int32
    """[packs]"""
    lower_bound: int
    """A number of packs that no other plan for the same strategy and scope can undercut."""

    @property
    def packs(self) -> int:
        return self.segments_per_pack.size

    @cached_property
    def tokens(self) -> int:
        return int(self.length.sum(dtype=np.int64))

    @property
    def fill(self) -> float:
        """Share of the packs' capacity that holds tokens."""
        return self.tokens / (self.packs * self.capacity) if self.packs else 1.0

    def longest_document(self, attention: Attention) -> int:
        """Tokens of the longest run that attends to itself."""
        longest = self.length
        if attention.across_samples:
            longest = np.add.reduceat(longest, np.cumsum(self.segments_per_pack) - self.segments_per_pack)
        return min(int(longest.max(initial=0)), attention.window or self.capacity)


def pack(lengths: Int32, table: PackTable, groups: Int32 | None = None) -> Packing:
    """Plan the packs for samples in the given order.

    Args:
        lengths: int32[samples], tokens of each, at least 1; at most table.capacity unless the strategy cuts.
        groups: int32[samples], for scope "source" or "file" the source or file of each sample: samples of different
            groups never share a pack, and each group's packs are what they would be without the others.
    """
    samples = lengths.size
    if table.strategy == "none":
        return _one_by_one(lengths, table)
    if table.scope in ("source", "file"):
        assert groups is not None
        members, bounds = _by_group(groups)
    else:
        members = None
        step = table.window if table.scope == "window" else max(samples, 1)
        bounds = np.append(np.arange(0, samples, step), samples)
    grouped = lengths if members is None else lengths[members]

    if table.strategy == "concat_split":
        plan = _split(grouped, bounds, table)
        del grouped
        return plan if members is None else _ungrouped(plan, members)
    plan_packs = best_fit if table.strategy == "best_fit" else in_order
    pack_of, segments, longest, lower_bound = plan_packs(grouped, bounds, table.capacity)
    del grouped  # what samples take adds up: with many of them this is near the peak
    if members is not None:
        pack_of[members] = pack_of.copy()
        longest = np.sort(members[longest])
        del members
    return Packing(table.capacity, *_by_pack(lengths, pack_of, segments, pack_of[longest]), lower_bound)


def _one_by_one(lengths: Int32, table: PackTable) -> Packing:
    if lengths.size and lengths.max() > table.capacity:
        raise ValueError(f"a sample has {lengths.max()} tokens, but a pack takes {table.capacity}")
    sample = np.arange(lengths.size, dtype=np.int32)
    return Packing(table.capacity, sample, _zeros(sample.size), lengths, np.ones_like(sample), lengths.size)


def _split(lengths: Int32, bounds: Int64, table: PackTable) -> Packing:
    segments = concat_split(lengths, bounds, table.capacity, drop_last=table.drop_last)
    return Packing(table.capacity, *segments, lower_bound=segments[-1].size)


def _ungrouped(plan: Packing, members: Int32) -> Packing:
    """A plan for samples in the order of `members`, its packs moved to where their first samples stood before."""
    ends = np.cumsum(plan.segments_per_pack)
    order = np.argsort(members[plan.sample[ends - plan.segments_per_pack]], kind="stable")
    segments = np.empty((3, plan.sample.size), np.int32)
    _move(plan.sample, plan.start, plan.length, members, ends, order, segments)
    sample, start, length = segments
    return replace(plan, sample=sample, start=start, length=length, segments_per_pack=plan.segments_per_pack[order])


@njit(cache=True)
def _move(
    sample: Int32, start: Int32, length: Int32, members: Int32, ends: Int64, order: Int64, segments: Int32
) -> None:
    # Packs one by one, so that nothing but the new table takes memory.
    to = 0
    for pack in order:
        for segment in range(ends[pack - 1] if pack else 0, ends[pack]):
            segments[0, to] = members[sample[segment]]
            segments[1, to] = start[segment]
            segments[2, to] = length[segment]
            to += 1


def _by_group(groups: Int32) -> tuple[Int32 | None, Int64]:
    """The samples, group by group and each group in order, or None if they are so already; and the groups' bounds."""
    ends = np.cumsum(np.bincount(groups))
    bounds = np.append(0, ends)
    if bool((groups[1:] >= groups[:-1]).all()):
        return None, bounds
    members = np.empty(groups.size, np.int32)
    _members(groups, bounds[:-1].copy(), members)
    return members, bounds


@njit(cache=True)
def _members(groups: Int32, cursor: Int64, members: Int32) -> None:
    for sample in range(groups.size):
        group = np.uintp(groups[sample])
        members[np.uintp(cursor[group])] = sample
        cursor[group] += 1


def _by_pack(lengths: Int32, pack_of: Int32, segments: Int32, packs: Int32) -> tuple[Int32, Int32, Int32, Int32]:
    """The segments of whole samples, pack after pack in the order of `packs`."""
    segments_per_pack = segments[packs]
    cursor = np.empty_like(segments)  # where the next sample of each pack goes
    cursor[packs] = np.cumsum(segments_per_pack) - segments_per_pack
    segment = np.empty((lengths.size, 2), np.int32)  # sample and length side by side: they are written at random
    _scatter(lengths, pack_of, cursor, segment)
    sample, length = segment.T
    return sample, _zeros(lengths.size), length, segments_per_pack


@njit(cache=True)
def _scatter(lengths: Int32, pack_of: Int32, cursor: Int32, segment: Int32) -> None:
    for sample in range(pack_of.size):
        pack = np.uintp(pack_of[sample])  # unsigned indices spare the check for negative ones
        place = np.uintp(cursor[pack])
        cursor[pack] += 1
        segment[place, 0] = sample
        segment[place, 1] = lengths[sample]


def _zeros(size: int) -> Int32:
    return np.broadcast_to(np.int32(0), size)  # without memory
