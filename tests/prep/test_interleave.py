from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.interleave import interleave, item_times, item_times_reference, phase

Int32 = npt.NDArray[np.int32]
Item = tuple[str, int]
"""Its source's name, and its place within the source."""

SOURCES = st.dictionaries(
    st.text("abcde", min_size=1, max_size=3), st.lists(st.integers(1, 1000), min_size=1, max_size=40), min_size=1
)
"""Sizes of the items of each source."""


def merged(sources: dict[str, list[int]], *, seed: int = 1, spans: dict[str, Fraction] | None = None) -> list[Item]:
    """The items in their order, with the sources given in the order of the dictionary."""
    spans = spans or {name: Fraction(sum(sizes)) for name, sizes in sources.items()}
    items = [(name, place) for name, sizes in sources.items() for place in range(len(sizes))]
    arrays = [np.array(sizes, np.int32) for sizes in sources.values()]
    order = interleave(arrays, [spans[name] for name in sources], list(sources), seed=seed)
    return [items[index] for index in order.tolist()]


@given(
    sizes=st.lists(st.integers(1, 2**31 - 1), max_size=30),
    phase=st.integers(0, 2**16 - 1),
    stretch=st.fractions(Fraction(1, 2), 3, max_denominator=10**9),
)
def test_kernel_agrees_with_reference(sizes: list[int], phase: int, stretch: Fraction) -> None:
    array, span = np.array(sizes, np.int32), max(sum(sizes) * stretch, Fraction(1, 2))
    assert item_times(array, span, phase).tolist() == item_times_reference(array, span, phase)


def test_arithmetic_is_exact_up_to_the_largest_source() -> None:
    sizes = np.full(2**15, 2**31 - 1, np.int32)
    sizes[0] -= 1
    for span in (Fraction(int(sizes.sum(dtype=np.int64))), Fraction(2**40 - 87, 3)):
        found = item_times(sizes, span, 0xFFFF)
        assert [found[0], found[-1]] == [item_times_reference(sizes, span, 0xFFFF)[i] for i in (0, -1)]
    with pytest.raises(ValueError, match="expected less than 70368744177664"):
        item_times(np.full(2**15 + 1, 2**31 - 1, np.int32), Fraction(2**46), 0)


def test_the_order_never_changes() -> None:
    assert [phase("chat", 1024), phase("数据", 7)] == [12421, 39824]
    sources = {"chat": [3, 1, 4, 1, 5], "code": [9, 2, 6], "math": [5, 3]}
    assert merged(sources, seed=1024) == [
        ("chat", 0),
        ("math", 0),
        ("chat", 1),
        ("chat", 2),
        ("code", 0),
        ("chat", 3),
        ("code", 1),
        ("chat", 4),
        ("math", 1),
        ("code", 2),
    ]


@given(SOURCES, st.integers(0, 2**64))
def test_every_item_stands_once_and_sources_keep_their_order(sources: dict[str, list[int]], seed: int) -> None:
    order = merged(sources, seed=seed)
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
def test_at_every_prefix_each_source_is_within_one_item_of_the_clock(sources: dict[str, list[int]]) -> None:
    times = {
        name: item_times(np.array(sizes, np.int32), Fraction(sum(sizes)), phase(name, 1)).tolist()
        for name, sizes in sources.items()
    }
    given_so_far = dict.fromkeys(sources, 0)
    for name, place in merged(sources):
        given_so_far[name] += sources[name][place]
        # Sources whose next item has this very time are due together, so the clock may stand anywhere in its tick.
        now = times[name][place]
        for other, sizes in sources.items():
            early, late = (Fraction(tick * sum(sizes), 2**63) for tick in (now, now + 1))
            assert early - max(sizes) <= given_so_far[other] <= late + max(sizes)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.integers(0, 1000))
def test_shares_of_every_prefix_are_within_the_stated_bound(counts: list[int], seed: int) -> None:
    sources = {f"s{number}": [1] * count for number, count in enumerate(counts)}
    shares = {name: Fraction(len(sizes), sum(counts)) for name, sizes in sources.items()}
    assert_within(sources, seed, {name: 1 + share * max(len(counts) - 2, 0) for name, share in shares.items()})


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 1000))
def test_two_sources_are_within_one_sample_at_every_prefix(first: int, second: int, seed: int) -> None:
    assert_within({"a": [1] * first, "b": [1] * second}, seed, {"a": Fraction(1), "b": Fraction(1)})


def assert_within(sources: dict[str, list[int]], seed: int, bound: dict[str, Fraction]) -> None:
    total = sum(map(len, sources.values()))
    so_far = dict.fromkeys(sources, 0)
    for count, (name, _) in enumerate(merged(sources, seed=seed), 1):
        so_far[name] += 1
        for source, sizes in sources.items():
            assert abs(so_far[source] - Fraction(count * len(sizes), total)) <= bound[source]


@given(
    weights=st.lists(st.integers(1, 99), min_size=2, max_size=5),
    sizes=st.lists(st.integers(1, 1000), min_size=60, max_size=60),
    scales=st.tuples(st.fractions(20, 3000, max_denominator=1000), st.fractions(20, 3000, max_denominator=1000)),
)
def test_a_smaller_mix_of_the_same_weights_is_the_beginning_of_a_larger_one(
    weights: list[int], sizes: list[int], scales: tuple[Fraction, Fraction]
) -> None:
    orders = []
    for scale in sorted(scales):
        spans = {f"s{number}": scale * weight for number, weight in enumerate(weights)}
        items = {name: sizes[: 1 + int(np.searchsorted(np.cumsum(sizes), int(span)))] for name, span in spans.items()}
        orders.append(merged({name: taken for name, taken in items.items() if taken}, spans=spans))
    small, large = orders
    assert small == [item for item in large if item in set(small)]


def test_equal_times_are_in_the_order_of_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prep.interleave.phase", lambda name, seed: 0)
    sources: dict[str, list[int]] = {"b": [1, 1], "c": [1, 1], "a": [1, 1]}
    assert [name for name, _ in merged(sources)] == ["a", "b", "c", "a", "b", "c"]


def test_many_sources_stay_near_their_shares() -> None:
    random = np.random.default_rng(5)
    counts = [int(count) for count in random.integers(20, 2000, 30)]
    spans = [Fraction(count) for count in counts]
    names = [f"source-{number}" for number in range(30)]
    order = interleave([np.ones(count, np.int32) for count in counts], spans, names, seed=3)
    source = np.repeat(np.arange(30, dtype=np.int32), counts)[order]
    assert worst_deviation(source, counts) < 2.5


def worst_deviation(source: Int32, counts: Sequence[int]) -> float:
    """Largest distance in samples between what a prefix has of a source and its share of the prefix."""
    place = np.arange(1, source.size + 1)
    return max(
        float(np.abs(np.cumsum(source == number) - place * (count / source.size)).max())
        for number, count in enumerate(counts)
    )


def test_a_span_too_short_for_one_item_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1/2"):
        item_times(np.ones(1, np.int32), Fraction(1, 3), 0)
