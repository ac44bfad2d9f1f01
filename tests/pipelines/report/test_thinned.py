"""A thinned series keeps what a reader must not miss, whatever its length."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.thinned import Thinned

VALUES = st.lists(st.one_of(st.none(), st.integers(-1_000, 1_000), st.just(float("nan"))), max_size=200)


@given(VALUES, st.integers(2, 12), st.integers(1, 50))
def test_minima_maxima_and_means_stay_and_buckets_are_few(values: list[float | None], points: int, chunk: int) -> None:
    series = Thinned(points)
    steps = list(range(10, 10 + len(values)))
    for first in range(0, len(values), chunk):
        series.extend(steps[first : first + chunk], values[first : first + chunk])
    known = [(step, one) for step, one in zip(steps, values, strict=True) if one is not None and one == one]
    found = series.buckets
    assert len(series) == len(known)
    assert found.first.size <= points
    assert found.first.size == -(-len(known) // series.width)
    for at in range(found.first.size):  # each bucket is about its own values, and no value is in two
        inside = known[at * series.width : (at + 1) * series.width]
        own = [one for _, one in inside]
        assert (found.first[at], found.last[at]) == (inside[0][0], inside[-1][0])
        assert (found.least[at], found.most[at], found.count[at]) == (min(own), max(own), len(own))
        assert found.mean[at] == sum(own) / len(own)


@given(VALUES, st.integers(1, 50))
def test_a_series_is_the_same_however_it_came(values: list[float | None], chunk: int) -> None:
    steps = np.arange(len(values), dtype=np.float64)
    at_once, in_parts = Thinned(8), Thinned(8)
    at_once.extend(steps, values)
    for first in range(0, len(values), chunk):
        in_parts.extend(steps[first : first + chunk], values[first : first + chunk])
    assert at_once.width == in_parts.width
    for one, other in zip(vars(at_once.buckets).values(), vars(in_parts.buckets).values(), strict=True):
        np.testing.assert_array_equal(one, other)
