"""What is held out stays held out, and a source's first samples stay the first."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import DataError
from pipelines.schema import Prep
from prep.held_out import divide, is_held_out
from prep.shuffle import file_key, sample_key
from tests.prep.samples import identities, made_up

FILES = [("a", "x.jsonl", 40), ("a", "y.jsonl", 25), ("b", "x.jsonl", 30)]


def prep(sources: int = 2, **keys: Any) -> Prep:
    source = [{"name": name, "path": name} for name in "abc"[:sources]]
    return Prep.model_validate({"source": source, "pack": {"capacity": 64}, **keys})


def held_out(files: list[tuple[str, str, int]], fraction: str) -> set[tuple[str, str, int, int]]:
    samples, inputs = made_up(files)
    found = np.flatnonzero(is_held_out(samples, inputs, Decimal(fraction)))
    return set(identities(samples, inputs, found.tolist()))


@given(fraction=st.decimals(0, Decimal("0.99"), places=2), more=st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_a_record_stays_on_its_side_whatever_comes_beside_it(fraction: Decimal, more: int) -> None:
    before = held_out(FILES, str(fraction))
    grown = [("a", "w.jsonl", more), *FILES[:1], ("a", "y.jsonl", 25 + more), FILES[2], ("c", "x.jsonl", more)]
    kept = {(name, path, record) for name, path, count in FILES for record in range(count)}
    assert {one for one in held_out(grown, str(fraction)) if one[:3] in kept} == before


def test_a_larger_fraction_holds_out_the_same_records_and_more() -> None:
    assert held_out(FILES, "0.1") < held_out(FILES, "0.3") < held_out(FILES, "0.7")


def test_the_share_held_out_is_the_fraction() -> None:
    found = len(held_out([("a", "x.jsonl", 100_000)], "0.05"))
    assert found == pytest.approx(5000, abs=5 * np.sqrt(100_000 * 0.05 * 0.95))  # five standard deviations


def test_the_pieces_of_a_record_are_on_one_side() -> None:
    samples, inputs = made_up([("a", "x.jsonl", 300)])
    samples.record[:] = np.arange(300) // 3
    samples.start[:] = np.arange(300) % 3 * 8
    sides = is_held_out(samples, inputs, Decimal("0.5")).reshape(-1, 3)
    assert (sides == sides[:, :1]).all()
    assert 0 < sides.sum() < sides.size


def test_the_sides_are_everything_once() -> None:
    samples, inputs = made_up(FILES)
    trained, left = divide(samples, inputs, prep(eval={"fraction": Decimal("0.2")}), seed=1)
    assert sorted([*trained, *left]) == list(range(95))


@pytest.mark.parametrize(("fraction", "remedy"), [("0.000001", "none of 95 samples; raise it")])
def test_a_fraction_that_holds_nothing_out_is_an_error(fraction: str, remedy: str) -> None:
    samples, inputs = made_up(FILES)
    with pytest.raises(DataError, match=remedy):
        divide(samples, inputs, prep(eval={"fraction": Decimal(fraction)}), seed=1)


def test_a_fraction_that_leaves_nothing_is_an_error() -> None:
    samples, inputs = made_up([("a", "x.jsonl", 1)])
    with pytest.raises(DataError, match="all of 1 samples; lower it"):
        divide(samples, inputs, prep(1, eval={"fraction": Decimal("0.999999")}), seed=1)


def test_the_first_samples_of_a_source_are_those_of_its_hash_order() -> None:
    samples, inputs = made_up(FILES)
    few, _ = divide(samples, inputs, prep(max_samples=5), seed=1)
    more, _ = divide(samples, inputs, prep(max_samples=20), seed=1)
    assert few.size == 10
    assert more.size == 40
    assert set(few) < set(more)
    source = np.array([one.source for one in inputs])[samples.file[few]]
    assert np.bincount(source).tolist() == [5, 5]


def test_the_first_samples_have_the_smallest_keys() -> None:
    samples, inputs = made_up([("a", "x.jsonl", 60)])
    few, _ = divide(samples, inputs, prep(1, max_samples=9), seed=7)
    key = file_key(7, "a", "x.jsonl", 0)
    by_key = sorted(range(60), key=lambda record: sample_key(key, record, 0))
    assert few.tolist() == sorted(by_key[:9])


def test_another_source_or_a_smaller_one_changes_no_first_sample() -> None:
    def first(files: list[tuple[str, str, int]], sources: int) -> set[tuple[str, str, int, int]]:
        samples, inputs = made_up(files)
        chosen, _ = divide(samples, inputs, prep(sources, max_samples=10), seed=1)
        return {one for one in identities(samples, inputs, chosen.tolist()) if one[0] == "a"}

    assert first(FILES, 2) == first([*FILES[:2], ("b", "x.jsonl", 3), ("c", "z.jsonl", 50)], 3)


def test_held_out_records_are_not_among_the_first() -> None:
    samples, inputs = made_up(FILES)
    trained, left = divide(samples, inputs, prep(max_samples=30, eval={"fraction": Decimal("0.5")}), seed=1)
    assert not set(trained) & set(left)
