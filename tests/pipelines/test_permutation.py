from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.permutation import Permutation

KEYS = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(st.characters(exclude_characters="\0", codec="utf-8"))))


@pytest.mark.parametrize("count", range(140))
def test_every_number_has_one_position(count: int) -> None:
    for seed in range(20):
        assert sorted(Permutation(count, seed).slice(0, count).tolist()) == list(range(count))


@given(st.integers(1, 5000), KEYS)
def test_larger_counts_and_any_keys_are_permutations_too(count: int, key: list[str | int]) -> None:
    assert np.array_equal(np.sort(Permutation(count, *key).slice(0, count)), np.arange(count))


@given(st.integers(1, 2**62 - 1), st.data())
def test_a_slice_is_its_positions_one_by_one(count: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, count))
    end = data.draw(st.integers(begin, min(begin + 20, count)))
    permutation = Permutation(count, "packs", 7)
    assert permutation.slice(begin, end).tolist() == [permutation.at(position) for position in range(begin, end)]
    assert all(0 <= number < count for number in permutation.slice(begin, end).tolist())


def test_numbers_do_not_meet_across_a_large_count() -> None:
    numbers = Permutation(2**62 - 1, 3).slice(10**18, 10**18 + 100_000)
    assert np.unique(numbers).size == numbers.size


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_numbers_come_in_every_order_equally_often(count: int) -> None:
    orders = Counter(tuple(Permutation(count, seed).slice(0, count).tolist()) for seed in range(12_000))
    possible = int(np.prod(range(1, count + 1)))
    assert len(orders) == possible
    expected = 12_000 / possible
    chi_squared = sum((found - expected) ** 2 / expected for found in orders.values())
    # Its mean is possible - 1 and its variance twice that; six standard deviations above happen once in 10^7 draws.
    assert chi_squared < possible - 1 + 6 * (2 * (possible - 1)) ** 0.5


def test_large_orders_have_no_pattern() -> None:
    count = 100_000
    for key in range(3):
        numbers = Permutation(count, key).slice(0, count)
        neighbours = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
        drift = np.corrcoef(numbers, np.arange(count))[0, 1]
        assert max(abs(neighbours), abs(drift)) < 5 / count**0.5
        assert (numbers == np.arange(count)).sum() < 10  # one fixed point is expected


def test_keys_differ_when_a_part_does() -> None:
    keys: list[tuple[str | int, ...]] = [
        (),
        ("",),
        (0,),
        (1,),
        (1, 0),
        (10,),
        (0, 1),
        ("a",),
        ("a", 1),
        ("a1",),
        ("A", 1),
    ]
    orders = {tuple(Permutation(1000, *key).slice(0, 1000).tolist()) for key in keys}
    assert len(orders) == len(keys)


def test_the_order_never_changes() -> None:
    assert Permutation(10, "packs", 1024, 0).slice(0, 10).tolist() == [7, 8, 4, 3, 1, 6, 9, 0, 2, 5]
    assert [Permutation(10**12, "packs", 1024, 3).at(position) for position in (0, 1, 10**12 - 1)] == [
        62197673992,
        475033378810,
        665836750649,
    ]


@pytest.mark.parametrize(("count", "position"), [*product([5], [-1, 5, 6]), (0, 0)])
def test_a_position_outside_is_refused(count: int, position: int) -> None:
    with pytest.raises(IndexError, match=f"position {position} of a permutation of {count} numbers"):
        Permutation(count).at(position)
    with pytest.raises(IndexError, match="of a permutation"):
        Permutation(count).slice(position, position + 1)


@pytest.mark.parametrize("count", [-1, 2**62])
def test_a_count_beyond_the_arithmetic_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0 to 2\^62 - 1"):
        Permutation(count)
