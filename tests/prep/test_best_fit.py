from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.best_fit import best_fit, best_fit_reference, lower_bound_reference


@st.composite
def groups_of_lengths(draw: st.DrawFn) -> tuple[Any, Any, int]:
    """Lengths from all of 1..capacity or a part of it, cut into groups, some empty."""
    capacity = draw(st.integers(1, 60))
    shortest = draw(st.integers(1, capacity))
    lengths = draw(st.lists(st.integers(shortest, draw(st.integers(shortest, capacity))), max_size=40))
    cuts = draw(st.lists(st.integers(0, len(lengths)), max_size=3))
    return np.array(lengths, np.int32), np.array([0, *sorted(cuts), len(lengths)], np.int64), capacity


def one_group(lengths: Any) -> tuple[Any, Any]:
    return np.array(lengths, np.int32), np.array([0, len(lengths)], np.int64)


def packs_of(lengths: Any, capacity: int) -> list[list[int]]:
    """The lengths in each pack, in their order."""
    pack_of, segments, _, _ = best_fit(*one_group(lengths), capacity)
    return [[lengths[i] for i in np.flatnonzero(pack_of == pack)] for pack in range(segments.size)]


@settings(max_examples=400)
@given(groups_of_lengths())
def test_kernel_agrees_with_reference(case: tuple[Any, Any, int]) -> None:
    for found, expected in zip(best_fit(*case), best_fit_reference(*case), strict=True):
        np.testing.assert_array_equal(found, expected)


@given(groups_of_lengths())
def test_no_pack_overflows_or_crosses_groups_and_none_is_empty(case: tuple[Any, Any, int]) -> None:
    lengths, bounds, capacity = case
    pack_of, segments, _, lower_bound = best_fit(lengths, bounds, capacity)
    tokens = np.bincount(pack_of, lengths, minlength=segments.size)
    assert np.all((tokens > 0) & (tokens <= capacity))
    np.testing.assert_array_equal(np.bincount(pack_of, minlength=segments.size), segments)
    packs_of_groups = [set(pack_of[first:end].tolist()) for first, end in pairwise(bounds)]
    assert sum(map(len, packs_of_groups)) == segments.size >= lower_bound


@given(groups_of_lengths())
def test_the_longest_are_the_first_of_the_longest_samples_of_each_pack(case: tuple[Any, Any, int]) -> None:
    lengths, bounds, capacity = case
    pack_of, segments, longest, _ = best_fit(lengths, bounds, capacity)
    members = [np.flatnonzero(pack_of == pack) for pack in range(segments.size)]
    assert longest.tolist() == sorted(samples[np.argmax(lengths[samples])] for samples in members)


def test_tightest_gap_wins() -> None:  # 2 fits beside the 8 and beside the 5; the 8 has less to spare
    assert packs_of([8, 5, 2], 10) == [[8, 2], [5]]


def test_among_equal_gaps_the_one_that_waits_longest_wins() -> None:
    assert packs_of([7, 2, 7], 10) == [[7, 2], [7]]


def test_equally_long_samples_are_taken_in_their_order() -> None:
    assert best_fit(*one_group([5, 5, 5, 5, 5]), 10)[0].tolist() == [0, 0, 1, 1, 2]


def test_a_pack_filled_at_once_leaves_nothing_or_room_for_another() -> None:
    # Best fit takes 8 + 3, where 1 is lost, then 6 + 3 + 2 and 2.
    assert packs_of([8, 6, 3, 3, 2, 2], 12) == [[8, 2, 2], [6, 3, 3]]


def test_packs_are_95_percent_full_where_pairs_and_triples_compete() -> None:
    lengths = np.random.default_rng(0).integers(1025, 2049, 20_000)
    _, segments, _, _ = best_fit(*one_group(lengths), 4096)
    assert lengths.sum() / (segments.size * 4096) >= 0.95


@pytest.mark.parametrize("shortest", [1, 16, 64])
@pytest.mark.parametrize(("mean", "sigma"), [(5.5, 1.0), (5.0, 1.2), (6.0, 0.8)])
def test_a_mix_like_fine_tuning_data_is_packed_within_two_of_the_lower_bound(
    shortest: int, mean: float, sigma: float
) -> None:
    lengths = np.random.default_rng(0).lognormal(mean, sigma, 100_000).clip(shortest, 4096)
    _, segments, _, lower_bound = best_fit(*one_group(lengths), 4096)
    assert segments.size <= lower_bound + 2


@given(st.lists(st.integers(1, 12), max_size=7))
def test_the_lower_bound_is_one(lengths: list[int]) -> None:
    """No packing at all of so few samples, tried one after another, takes fewer packs."""

    def fewest(left: list[int], rooms: list[int]) -> int:
        if not left:
            return len(rooms)
        first, *rest = left
        tried = {room: i for i, room in enumerate(rooms) if room >= first}
        options = [fewest(rest, [*rooms[:i], room - first, *rooms[i + 1 :]]) for room, i in tried.items()]
        return min([*options, fewest(rest, [*rooms, 12 - first])])

    assert lower_bound_reference(lengths, 12) == best_fit(*one_group(lengths), 12)[3] <= fewest(lengths, [])


@pytest.mark.parametrize("lengths", [[0, 3], [3, 11]])
def test_a_sample_that_no_pack_takes_whole_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"a pack takes 1\.\.10 without a cut"):
        best_fit(*one_group(lengths), 10)
