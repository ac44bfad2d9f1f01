from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.concat_split import concat_split, concat_split_reference


@st.composite
def streams(draw: st.DrawFn) -> tuple[Any, Any, int, bool]:
    lengths = draw(st.lists(st.integers(1, 30), max_size=20))
    cuts = draw(st.lists(st.integers(0, len(lengths)), max_size=3))
    bounds = np.array([0, *sorted(cuts), len(lengths)], np.int64)
    return np.array(lengths, np.int32), bounds, draw(st.integers(1, 20)), draw(st.booleans())


@given(streams())
def test_kernel_agrees_with_reference(case: tuple[Any, Any, int, bool]) -> None:
    lengths, bounds, capacity, drop_last = case
    found = concat_split(lengths, bounds, capacity, drop_last=drop_last)
    expected = concat_split_reference(lengths, bounds, capacity, drop_last=drop_last)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@given(streams())
def test_every_token_is_in_one_pack_and_every_pack_but_a_groups_last_is_full(
    case: tuple[Any, Any, int, bool],
) -> None:
    lengths, bounds, capacity, _ = case
    sample, start, length, segments_per_pack = concat_split(lengths, bounds, capacity, drop_last=False)
    tokens = [(i, j) for i, n in enumerate(lengths) for j in range(n)]
    assert tokens == [(i, j) for i, s, n in zip(sample, start, length, strict=True) for j in range(s, s + n)]
    ends = np.cumsum(segments_per_pack)
    full = [length[end - n : end].sum() == capacity for end, n in zip(ends, segments_per_pack, strict=True)]
    assert full.count(False) == sum(1 for a, b in pairwise(bounds) if lengths[a:b].sum() % capacity)


def test_a_sample_is_cut_where_the_pack_ends() -> None:
    sample, start, length, segments_per_pack = concat_split(
        np.array([3, 9, 2], np.int32), np.array([0, 3]), 5, drop_last=False
    )
    assert sample.tolist() == [0, 1, 1, 1, 2]
    assert start.tolist() == [0, 0, 2, 7, 0]
    assert length.tolist() == [3, 2, 5, 2, 2]
    assert segments_per_pack.tolist() == [2, 1, 2]


def test_drop_last_leaves_out_what_does_not_fill_a_pack() -> None:
    lengths = np.array([3, 3, 4], np.int32)
    sample, start, length, segments_per_pack = concat_split(lengths, np.array([0, 2, 3]), 4, drop_last=True)
    assert (sample.tolist(), start.tolist(), length.tolist()) == ([0, 1, 2], [0, 0, 0], [3, 1, 4])
    assert segments_per_pack.tolist() == [2, 1]


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="a sample has 0 tokens"):
        concat_split(np.array([3, 0], np.int32), np.array([0, 2]), 4, drop_last=False)
