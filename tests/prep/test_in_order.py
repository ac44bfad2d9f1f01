"""Packing in order agrees with its slow reference and keeps packs mixed."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.in_order import RUN, in_order, in_order_reference

CAPACITY = 130  # more than two words of the bit set


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    lengths = draw(st.lists(st.integers(1, CAPACITY), max_size=60))
    cuts = sorted(draw(st.lists(st.integers(0, len(lengths)), max_size=3)))
    return lengths, [0, *cuts, len(lengths)]


@given(groups())
def test_kernel_agrees_with_reference(group: tuple[list[int], list[int]]) -> None:
    lengths, bounds = np.array(group[0], np.int32), np.array(group[1], np.int64)
    for found, expected in zip(
        in_order(lengths, bounds, CAPACITY), in_order_reference(lengths, bounds, CAPACITY), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@given(groups(), st.integers(1, 30))
def test_kernel_agrees_with_reference_where_runs_are_packed_by_length(
    group: tuple[list[int], list[int]], run: int
) -> None:
    # Lengths of which two or three share a pack, so that many groups are packed poorly in turn.
    lengths = np.array([CAPACITY // 4 + 1 + length // 4 for length in group[0]], np.int32)
    bounds = np.array(group[1], np.int64)
    with patch("prep.in_order.RUN", run):
        for found, expected in zip(
            in_order(lengths, bounds, CAPACITY), in_order_reference(lengths, bounds, CAPACITY), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


@given(groups())
def test_no_pack_overflows_or_crosses_a_group(group: tuple[list[int], list[int]]) -> None:
    lengths, bounds = np.array(group[0], np.int32), np.array(group[1], np.int64)
    pack_of, segments, _, bound = in_order(lengths, bounds, CAPACITY)
    assert np.all(np.bincount(pack_of, weights=lengths, minlength=segments.size) <= CAPACITY)
    groups_of = np.repeat(np.arange(bounds.size - 1), np.diff(bounds))
    assert all(np.unique(groups_of[pack_of == pack]).size == 1 for pack in range(segments.size))
    assert segments.size >= bound


def test_the_fullest_pack_that_fits_wins() -> None:  # 2 fits beside the 8 and beside the 5; the 8 has less to spare
    pack_of, *_ = in_order(np.array([8, 5, 2], np.int32), np.array([0, 3]), 10)
    assert pack_of.tolist() == [0, 1, 0]


def test_packs_of_short_samples_are_runs_of_the_order() -> None:
    lengths = np.tile(np.array([8, 60, 20, 40], np.int32), 1000)
    pack_of, segments, _, bound = in_order(lengths, np.array([0, 4000]), 1024)
    assert segments.size <= bound + 2
    spread = [np.ptp(np.flatnonzero(pack_of == pack)) for pack in range(segments.size - 1)]
    assert np.median(spread) < 64


def test_where_pairs_and_triples_compete_packs_are_95_percent_full_and_as_mixed_as_runs() -> None:
    lengths = np.random.default_rng(0).integers(1025, 2049, 40_000).astype(np.int32)
    pack_of, segments, stands, _ = in_order(lengths, np.array([0, lengths.size]), 4096)
    assert lengths.sum() / segments.size / 4096 >= 0.95
    run_of = np.full(segments.size, -1)
    run_of[pack_of] = np.arange(lengths.size) // RUN
    assert np.array_equal(run_of[pack_of], np.arange(lengths.size) // RUN)
    assert np.array_equal(np.sort(pack_of[stands]), np.arange(segments.size))
    assert np.array_equal(stands, np.sort(stands))


def test_a_plan_by_length_that_is_no_better_is_not_taken() -> None:
    lengths = np.full(100, 600, np.int32)  # one a pack, whatever the plan
    pack_of, *_ = in_order(lengths, np.array([0, 100]), 1024)
    assert pack_of.tolist() == list(range(100))


def test_a_sample_above_the_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"samples have 3\.\.11 tokens, but a pack takes 1\.\.10"):
        in_order(np.array([3, 11], np.int32), np.array([0, 2]), 10)
