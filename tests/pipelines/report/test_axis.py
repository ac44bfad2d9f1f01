"""Axes: everything is on them, and their ticks are round, few and told apart."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.report.axis import Axis

NUMBERS = st.lists(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e9, 1e9)), min_size=1)


@given(NUMBERS, st.sampled_from([None, True, False]))
@example([5e-324], True)
def test_every_value_is_on_the_axis_and_ticks_are_few_and_rising(values: list[float], logarithmic: bool | None) -> None:
    axis = Axis.over(values, logarithmic=logarithmic)
    if not axis.logarithmic:
        assert axis.low <= min(max(min(values), -1e300), 1e300) <= max(min(max(values), 1e300), -1e300) <= axis.high
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 7
    assert ticks == sorted(ticks)
    assert all(0 <= float(axis.place(tick)) <= 1 for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "labels"),
    [
        (0, 572, False, ["0", "100", "200", "300", "400", "500"]),
        (836, 1024, False, ["850", "900", "950", "1,000"]),
        (0, 14_000, False, ["0", "5k", "10k"]),
        (0, 0.0015, False, ["0", "5e-4", "1e-3", "1.5e-3"]),
        (0, 2e-5, False, ["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]),
        (0.13, 6.5, True, ["0.2", "0.5", "1", "2", "5"]),
        (1e-3, 1e6, True, ["0.001", "0.1", "10", "1k", "100k"]),
        (1_000_000, 1_000_004, False, ["1,000,000", "1,000,001", "1,000,002", "1,000,003", "1,000,004"]),
    ],
)
def test_ticks_are_round_numbers_written_shortly(low: float, high: float, logarithmic: bool, labels: list[str]) -> None:
    assert [label for _, label in Axis(low, high, logarithmic).labels()] == labels


def test_no_tick_stands_between_two_whole_numbers() -> None:
    assert Axis.over([1, 3], counts=True).ticks() == [1, 2, 3]
    assert Axis(0, 1.04, counts=True).ticks() == [0, 1]


def test_a_logarithmic_axis_is_chosen_for_what_spans_decades_and_is_positive() -> None:
    assert Axis.over([0.1, 9.0], logarithmic=None).logarithmic
    assert not Axis.over([1.0, 9.0], logarithmic=None).logarithmic
    assert not Axis.over([0.0, 9.0], logarithmic=None).logarithmic
    axis = Axis.over([0.1, 1.0, 10.0], logarithmic=True)
    assert math.isclose(float(axis.place(1.0)), 0.5)
