"""Segments are found by number, and chosen from all over the data."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.segments import Segments, UInt32, choose
from prep.store import LOSS_BIT
from tests.prep.convert.made_up import Shards, shards, write_prep


@settings(max_examples=50)
@given(shards, shards)
def test_every_segment_is_found_by_its_number(train: Shards, held_out: Shards) -> None:
    expected = [
        (prefix + f"shards/shard-{shard:05}.arrow", row, number, one)
        for prefix, part in (("", train), ("eval/", held_out))
        for shard, packs in enumerate(part)
        for row, pack in enumerate(packs)
        for number, one in enumerate(pack)
    ]
    with TemporaryDirectory() as place:
        found = Segments(write_prep(Path(place, "prep"), train, held_out))
        assert found.file.tolist() == [one.file for *_, one in expected]
        every = list(found.at(np.arange(len(expected))))
        for segment, (shard, row, number, one) in zip(every, expected, strict=True):
            assert (segment.shard, segment.row, segment.number, segment.file) == (shard, row, number, one.file)
            tokens = segment.tokens()
            assert (tokens & ~LOSS_BIT).tolist() == list(one.tokens)
            assert (tokens >= LOSS_BIT).tolist() == list(one.loss)
        last = {(shard, row): number for shard, row, number, _ in expected}
        assert [one.is_last for one in every] == [one.number == last[one.shard, one.row] for one in every]


some_files = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(lambda files: np.array(files, np.uint32))
SOURCES = ["a", "a", "b", "a", "c", "b"]


@given(some_files, st.integers(1, 70), st.integers(0, 2**64 - 1))
def test_sources_and_files_take_turns(file: UInt32, count: int, key: int) -> None:
    chosen = choose(file, SOURCES, count=count, key=key).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, file.size)
    # None has another turn before every other that is left has had as many: sources first, then a source's files.
    turns(Counter(SOURCES[file[one]] for one in chosen), Counter(SOURCES[one] for one in file))
    for source in set(SOURCES):
        mine = [int(file[one]) for one in chosen if SOURCES[file[one]] == source]
        turns(Counter(mine), Counter(int(one) for one in file if SOURCES[one] == source))


def turns(taken: Counter[Any], there: Counter[Any]) -> None:
    most = max(taken.values(), default=0)
    assert all(taken[one] >= min(there[one], most - 1) for one in there)


def test_the_choice_goes_by_the_key_alone() -> None:
    file = np.zeros(1000, np.uint32)
    first, again, other = (choose(file, ["a"], count=20, key=key).tolist() for key in (1, 1, 2))
    assert first == again != other


def test_more_than_there_are_is_all() -> None:
    assert choose(np.zeros(3, np.uint32), ["a"], count=9, key=0).tolist() == [0, 1, 2]
