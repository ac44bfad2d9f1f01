from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.inputs import Input
from prep.shuffle import file_key, sample_key, sample_keys, sample_order
from prep.store import Samples
from tests.prep.samples import identities, made_up

FILES = [("a", "x.jsonl", 40), ("a", "y/z.jsonl", 25), ("b", "x.jsonl", 30)]


def order(samples: Samples, inputs: Sequence[Input], part: range, shuffle: str = "hash", **of: Any) -> list[int]:
    numbers: list[int] = sample_order(samples, inputs, part, shuffle=shuffle, **{"seed": 1, "turn": 0, **of}).tolist()
    return numbers


@given(
    seed=st.integers(0, 2**64),
    turn=st.integers(0, 100),
    rows=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=20),
)
def test_kernel_agrees_with_reference(seed: int, turn: int, rows: list[tuple[int, int]]) -> None:
    samples, inputs = made_up([("a", "x", 0), ("s", "日本/y.bin", len(rows))])
    samples = replace(
        samples,
        record=np.array([record for record, _ in rows], np.uint32),
        start=np.array([start for _, start in rows], np.uint32),
    )
    keys = sample_keys(samples, inputs, range(len(rows)), seed=seed, turn=turn)
    of_file = file_key(seed, "s", "日本/y.bin", turn)
    assert keys.tolist() == [sample_key(of_file, record, start) for record, start in rows]


def test_records_number_the_outputs_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [sample_key(1234567, record, 0) for record in range(4)] == published


def test_keys_never_change() -> None:
    assert file_key(1024, "chat", "cn/数据.jsonl", 0) == 0x870B406E0B454AD7
    keys = [sample_key(0x0123456789ABCDEF, *sample) for sample in ((0, 0), (1, 0), (2**32 - 1, 0), (1, 4096))]
    assert keys == [0x157A3807A48FAA9D, 0xD573529B34A1D093, 0x4061D376BFF2CADB, 0x46682DAA015BEC9E]


def test_the_order_of_a_source_never_changes() -> None:
    samples, inputs = made_up([("a", "x.jsonl", 5), ("a", "y.jsonl", 5)])
    assert order(samples, inputs, range(10), seed=1024) == [8, 7, 5, 2, 3, 9, 1, 0, 6, 4]


def test_every_sample_of_the_part_stands_once() -> None:
    samples, inputs = made_up(FILES)
    for shuffle in ("hash", "none", "xtuner"):
        assert sorted(order(samples, inputs, range(65), shuffle)) == list(range(65))
        assert sorted(order(samples, inputs, range(65, 95), shuffle)) == list(range(65, 95))
        assert order(samples, inputs, range(95, 95), shuffle) == []


def test_the_order_depends_on_seed_pass_source_and_path() -> None:
    samples, inputs = made_up(FILES)
    usual = order(samples, inputs, range(65))
    renamed = [replace(one, path=f"{one.path}2") for one in inputs]
    moved = [replace(one, name="c") for one in inputs]
    others = [
        order(samples, inputs, range(65), seed=2),
        order(samples, inputs, range(65), turn=1),
        order(samples, renamed, range(65)),
        order(samples, moved, range(65)),
    ]
    assert all(other != usual for other in others)


def test_files_that_come_or_go_move_no_others() -> None:
    samples, inputs = made_up(FILES)
    all_of_a = identities(samples, inputs, order(samples, inputs, range(65)))
    fewer, fewer_inputs = made_up([FILES[1]])
    rest = identities(fewer, fewer_inputs, order(fewer, fewer_inputs, range(25)))
    assert rest == [one for one in all_of_a if one[1] == "y/z.jsonl"]


def test_records_that_are_dropped_move_no_others() -> None:
    samples, inputs = made_up(FILES)
    before = identities(samples, inputs, order(samples, inputs, range(40)))
    kept = np.flatnonzero(np.arange(40) % 3)
    fewer = replace(samples, file=samples.file[kept], record=samples.record[kept], start=samples.start[kept])
    after = identities(fewer, inputs, order(fewer, inputs, range(kept.size)))
    assert after == [one for one in before if one[2] % 3]


def test_pieces_of_a_record_are_spread_like_other_samples() -> None:
    samples, inputs = made_up([("a", "x", 300)])
    pieces = replace(
        samples, record=np.repeat(np.arange(3, dtype=np.uint32), 100), start=np.tile(samples.record[:100], 3)
    )
    keys = sample_keys(pieces, inputs, range(300), seed=1, turn=0)
    assert np.unique(keys).size == 300
    place = np.argsort(np.argsort(keys))
    assert np.abs(np.corrcoef(place, np.arange(300))[0, 1]) < 0.2


def test_a_hashed_order_has_no_pattern() -> None:
    samples, inputs = made_up([("a", f"{file}", 1000) for file in range(100)])
    found = np.array(order(samples, inputs, range(100_000)))
    assert abs(np.corrcoef(found, np.arange(found.size))[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    early = np.bincount(samples.file[found[:10_000]], minlength=100)
    assert 50 < early.min() <= early.max() < 150  # of 100 expected; the deviation is 9.5


def test_without_a_shuffle_samples_stay_as_in_the_files() -> None:
    samples, inputs = made_up(FILES)
    assert order(samples, inputs, range(65, 95), "none") == list(range(65, 95))


def test_equal_keys_stay_as_in_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prep.shuffle.sample_keys", lambda samples, inputs, part, **of: np.zeros(len(part), np.uint64))
    samples, inputs = made_up(FILES)
    assert order(samples, inputs, range(65)) == list(range(65))


@pytest.mark.parametrize("seed", [0, 1024, 2**32 - 1])
def test_xtuner_shuffles_each_file_by_itself(seed: int) -> None:
    samples, inputs = made_up(FILES)
    expected = []
    for first, count in ((0, 40), (40, 25)):
        indices = list(range(count))  # what XTuner shuffles is a list
        np.random.RandomState(seed=seed).shuffle(indices)
        expected += [first + index for index in indices]
    assert order(samples, inputs, range(65), "xtuner", seed=seed) == expected


def test_in_xtuners_order_a_record_without_a_sample_takes_its_turn() -> None:
    samples, inputs = made_up([("a", "x.bin", 3), ("a", "y.bin", 20)])
    whole = order(samples, inputs, range(3, 23), "xtuner")
    kept = np.flatnonzero(~np.isin(np.arange(23), [5, 9, 22]))
    fewer = samples.taken(kept)
    after = order(fewer, inputs, range(3, 20), "xtuner")
    assert kept[after].tolist() == [number for number in whole if number not in (5, 9, 22)]
    others_alone, _ = made_up([("a", "x.bin", 3), ("a", "y.bin", 17)])
    assert order(fewer, inputs, range(3, 20), "xtuner", every_record=False) == order(
        others_alone, inputs, range(3, 20), "xtuner"
    )


def test_in_xtuners_order_the_pieces_of_a_record_stay_together() -> None:
    samples, inputs = made_up([("a", "x.bin", 12)])
    pieces = replace(
        samples,
        record=np.repeat(np.arange(4, dtype=np.uint32), 3),
        start=np.tile(np.arange(3, dtype=np.uint32), 4),
        records=np.array([4]),
    )
    whole, inputs = made_up([("a", "x.bin", 4)])
    expected = [3 * record + piece for record in order(whole, inputs, range(4), "xtuner") for piece in range(3)]
    for every_record in (True, False):
        found = sample_order(pieces, inputs, range(12), shuffle="xtuner", seed=1, turn=0, every_record=every_record)
        assert found.tolist() == expected


def test_xtuners_order_never_changes() -> None:
    samples, inputs = made_up([("a", "x.bin", 10)])
    assert order(samples, inputs, range(10), "xtuner", seed=1024) == [2, 3, 7, 0, 6, 8, 5, 4, 9, 1]
    assert order(samples, inputs, range(10), "xtuner", seed=1024, turn=1) == order(
        samples, inputs, range(10), "xtuner", seed=1025
    )
