"""Concat and split: samples end to end as one stream, cut every `capacity` tokens."""

from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from numba import njit

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def concat_split(lengths: Int32, bounds: Int64, capacity: int, *, drop_last: bool) -> tuple[Int32, Int32, Int32, Int32]:
    """Cut every group's stream of samples into packs.

    Args:
        lengths: int32[samples], tokens of each, at least 1.
        bounds: int64[groups + 1], rising from 0 to samples; each group is a stream of its own.
        capacity: tokens per pack.
        drop_last: leave out what is left of a group after its last full pack.
    Returns:
        int32[segments] the sample, the first token within the sample and the tokens of each segment, in the order of
        the stream; int32[packs] segments per pack.
    """
    if lengths.size and lengths.min() < 1:
        raise ValueError(f"a sample has {lengths.min()} tokens; a stream is made of samples of 1 token and more")
    groups = bounds.size - 1
    segments = lengths.size + int(lengths.sum(dtype=np.int64)) // capacity
    table = np.empty((3, segments), np.int32)
    segments_per_pack = np.empty(segments - lengths.size + groups, np.int32)
    segments, packs = _concat_split(lengths, bounds, capacity, drop_last, table, segments_per_pack)
    sample, start, length = table[:, :segments]
    return sample, start, length, segments_per_pack[:packs]


@njit(cache=True)
def _concat_split(
    lengths: Int32, bounds: Int64, capacity: int, drop_last: bool, table: Int32, segments_per_pack: Int32
) -> tuple[int, int]:
    sample_of, start_of, length_of = table
    segments = packs = 0
    for group in range(bounds.size - 1):
        first_segment = segments  # of the pack being filled
        room = capacity
        for sample in range(bounds[group], bounds[group + 1]):
            start = 0
            while start < lengths[sample]:
                length = min(lengths[sample] - start, room)
                sample_of[segments], start_of[segments], length_of[segments] = sample, start, length
                segments += 1
                start += length
                room -= length
                if room == 0:
                    segments_per_pack[packs] = segments - first_segment
                    packs += 1
                    first_segment = segments
                    room = capacity
        if segments > first_segment:
            if drop_last:
                segments = first_segment
            else:
                segments_per_pack[packs] = segments - first_segment
                packs += 1
    return segments, packs


def concat_split_reference(
    lengths: Int32, bounds: Int64, capacity: int, *, drop_last: bool
) -> tuple[Int32, Int32, Int32, Int32]:
    """`concat_split` written the obvious way: slow, and right. The tests compare the two."""
    segments: list[tuple[int, int, int]] = []
    segments_per_pack: list[int] = []
    for first, end in pairwise(bounds.tolist()):
        stream = [(sample, token) for sample in range(first, end) for token in range(lengths[sample])]
        for begin in range(0, len(stream), capacity):
            pack = stream[begin : begin + capacity]
            if len(pack) < capacity and drop_last:
                continue
            parts = [list(part) for _, part in groupby(pack, key=itemgetter(0))]
            segments += [(*part[0], len(part)) for part in parts]
            segments_per_pack.append(len(parts))
    sample, start, length = np.array(segments, np.int32).reshape(-1, 3).T
    return sample, start, length, np.array(segments_per_pack, np.int32)
