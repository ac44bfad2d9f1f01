from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.interleave import interleave, item_times, item_times_reference

Int32 = npt.NDArray[np.int32]
Item = tuple[str, int]
"""Its source's name, and its place within the source."""

SOURCES = st.dictionaries(
    st.text("abcde", min_size=1, max_size=3), st.lists(st.integers(1, 1000), min_size=1, max_size=40), min_size=1
)
"""Sizes of the items of each source."""


def merged(sources: dict[str, list[int]], *, spans: dict[str, Fraction] | None = None) -> list[Item]:
    """The items in their order, with the sources given in the order of the dictionary."""
    spans = spans or {name: Fraction(sum(sizes)) for name, sizes in sources.items()}
    items = [(name, place) for name, sizes in sources.items() for place in range(len(sizes))]
    arrays = [np.array(sizes, np.int32) for sizes in sources.values()]
    order = interleave(arrays, [spans[name] for name in sources], list(sources))
    return [items[index] for index in order.tolist()]


@given(
    sizes=st.lists(st.integers(1, 2**31 - 1), max_size=30),
    stretch=st.fractions(Fraction(1, 2), 3, max_denominator=10**9),
)
def test_kernel_agrees_with_reference(sizes: list[int], stretch: Fraction) -> None:
    array, span = np.array(sizes, np.int32), max(sum(sizes) * stretch, Fraction(1, 2))
    assert item_times(array, span).tolist() == item_times_reference(array, span)


def test_arithmetic_is_exact_up_to_the_largest_source() -> None:
    sizes = np.full(2**16, 2**31 - 1, np.int32)
    for span in (Fraction(int(sizes.sum(dtype=np.int64))), Fraction(2**46 - 21), Fraction(2**47 - 115, 3)):
        assert item_times(sizes, span).tolist() == item_times_reference(sizes, span)
    with pytest.raises(ValueError, match="expected less than 140737488355328"):
        item_times(np.full(2**16 + 1, 2**31 - 1, np.int32), Fraction(2**46))


def test_the_order_never_changes() -> None:
    sources = {"chat": [3, 1, 4, 1, 5], "code": [9, 2, 6], "math": [5, 3]}
    assert merged(sources) == [
        ("chat", 0),
        ("chat", 1),
        ("code", 0),
        ("math", 0),
        ("chat", 2),
        ("code", 1),
        ("chat", 3),
        ("math", 1),
        ("chat", 4),
        ("code", 2),
    ]
    times = item_times(np.array([3, 1, 4], np.int32), Fraction(10**9, 7))
    assert times.tolist() == [96845406386, 225972614902, 387381625547]


@given(SOURCES)
def test_every_item_stands_once_and_sources_keep_their_order(sources: dict[str, list[int]]) -> None:
    order = merged(sources)
    for name, sizes in sources.items():
        assert [place for source, place in order if source == name] == list(range(len(sizes)))
    assert len(order) == sum(map(len, sources.values()))


@given(SOURCES, st.data())
def test_a_source_that_comes_or_goes_moves_no_two_others(sources: dict[str, list[int]], data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.sampled_from(sorted(sources)), min_size=1))
    fewer = {name: sizes for name, sizes in sources.items() if name in kept}
    assert merged(fewer) == [item for item in merged(sources) if item[0] in kept]


@given(SOURCES, st.randoms())
def test_the_order_of_the_tables_in_the_toml_does_not_matter(sources: dict[str, list[int]], random: object) -> None:
    names = sorted(sources, reverse=True)
    assert merged({name: sources[name] for name in names}) == merged(sources)


@given(SOURCES)
def test_at_any_time_each_source_is_within_half_an_item_of_what_is_due(sources: dict[str, list[int]]) -> None:
    times = {name: item_times(np.array(sizes, np.int32), Fraction(sum(sizes))) for name, sizes in sources.items()}
    so_far = dict.fromkeys(sources, 0)
    order = merged(sources)
    for (name, place), (next_name, next_place) in zip(order, [*order[1:], order[-1]], strict=True):
        so_far[name] += sources[name][place]
        now, then = int(times[name][place]), int(times[next_name][next_place])
        if then == now and (name, place) != order[-1]:
            continue  # more is due at this time
        for other, sizes in sources.items():
            # The clock shows `now`, so its true time is in [now, now + 1) / 2^63; it stays so until the next item.
            assert so_far[other] + Fraction(max(sizes), 2) >= Fraction(now * sum(sizes), 2**63)
            assert so_far[other] - Fraction(max(sizes), 2) <= Fraction((now + 1) * sum(sizes), 2**63)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_shares_of_every_prefix_are_within_the_stated_bound(counts: list[int]) -> None:
    shares = [Fraction(count, sum(counts)) for count in counts]
    assert_within(counts, [(1 + share * max(len(counts) - 2, 0)) / 2 for share in shares])


@given(st.lists(st.integers(1, 200), min_size=2, max_size=3))
def test_two_or_three_sources_are_within_one_sample_at_every_prefix(counts: list[int]) -> None:
    assert_within(counts, [Fraction(1)] * len(counts))


@given(st.integers(1, 12), st.integers(1, 60))
def test_equal_sources_are_within_one_sample_at_every_prefix(sources: int, count: int) -> None:
    assert_within([count] * sources, [Fraction(1)] * sources)


def assert_within(counts: list[int], bounds: list[Fraction]) -> None:
    """Bounds on the distance between what any prefix has of each source and its share of the prefix, in samples."""
    names = [f"s{number}" for number in range(len(counts))]
    so_far = dict.fromkeys(names, 0)
    for length, (name, _) in enumerate(merged(dict(zip(names, ([1] * count for count in counts), strict=True))), 1):
        so_far[name] += 1
        for other, count, bound in zip(names, counts, bounds, strict=True):
            assert abs(so_far[other] - Fraction(length * count, sum(counts))) <= bound


@given(SOURCES)
def test_shares_of_two_sources_in_tokens_are_within_one_sample(sources: dict[str, list[int]]) -> None:
    two = {name: sources[name] for name in sorted(sources)[:2]}
    total = sum(map(sum, two.values()))
    so_far = dict.fromkeys(two, 0)
    for name, place in merged(two):
        so_far[name] += two[name][place]
        for other, sizes in two.items():
            due = Fraction(sum(so_far.values()) * sum(sizes), total)
            assert abs(so_far[other] - due) <= max(map(max, two.values()))


@given(
    weights=st.lists(st.integers(1, 99), min_size=2, max_size=5),
    sizes=st.lists(st.integers(1, 1000), min_size=60, max_size=60),
    scales=st.tuples(st.fractions(20, 3000, max_denominator=1000), st.fractions(20, 3000, max_denominator=1000)),
)
def test_a_smaller_mix_of_the_same_weights_is_the_beginning_of_a_larger_one(
    weights: list[int], sizes: list[int], scales: tuple[Fraction, Fraction]
) -> None:
    middles = [Fraction(sum(sizes[:item]) * 2 + sizes[item], 2) for item in range(60)]
    orders = []
    for scale in sorted(scales):
        spans = {f"s{number}": scale * weight for number, weight in enumerate(weights)}
        taken = {name: sizes[: sum(middle < span for middle in middles)] for name, span in spans.items()}
        orders.append(merged(taken, spans=spans))
    small, large = orders
    assert small == [item for item in large if item in set(small)]


def test_equal_times_are_in_the_order_of_the_names() -> None:
    sources: dict[str, list[int]] = {"b": [1, 1], "c": [1, 1], "a": [1, 1]}
    assert [name for name, _ in merged(sources)] == ["a", "b", "c", "a", "b", "c"]


def test_a_span_too_short_for_one_item_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1/2"):
        item_times(np.ones(1, np.int32), Fraction(1, 3))


def test_an_item_beyond_the_clock_comes_last() -> None:
    assert item_times(np.array([1, 9], np.int32), Fraction(1)).tolist() == [2**62, 2**64 - 1]
