from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.schema import PackTable
from pipelines.shards import Attention
from prep.packing import Packing, pack

CAPACITY = 16
STRATEGIES = ["in_order", "best_fit", "concat_split", "none"]


def table(**keys: Any) -> PackTable:
    return PackTable(**{"capacity": CAPACITY, "scope": "global", **keys})


def lists(packing: Packing) -> list[list[tuple[int, int, int]]]:
    """(sample, start, length) of every segment, pack by pack."""
    segments = list(zip(packing.sample.tolist(), packing.start.tolist(), packing.length.tolist(), strict=True))
    ends = np.cumsum(packing.segments_per_pack)
    return [segments[end - n : end] for end, n in zip(ends, packing.segments_per_pack, strict=True)]


some_lengths = st.lists(st.integers(1, CAPACITY), max_size=60).map(lambda xs: np.array(xs, np.int32))


@given(some_lengths, st.sampled_from(STRATEGIES), st.sampled_from(["source", "file", "window", "global"]), st.data())
def test_every_token_is_in_exactly_one_pack_of_its_group(
    lengths: Any, strategy: str, scope: str, data: st.DataObject
) -> None:
    if scope == "window" and strategy not in ("in_order", "best_fit"):
        return
    groups = np.array(data.draw(st.lists(st.integers(0, 4), min_size=lengths.size, max_size=lengths.size)), np.int32)
    keys = {"window": 5} if scope == "window" else {}
    packing = pack(lengths, table(strategy=strategy, scope=scope, **keys), groups)
    tokens = sorted((i, j) for segments in lists(packing) for i, start, n in segments for j in range(start, start + n))
    assert tokens == [(i, j) for i, n in enumerate(lengths) for j in range(n)]
    assert packing.tokens == len(tokens)
    assert packing.packs == len(lists(packing)) >= packing.lower_bound
    for segments in lists(packing):
        assert 0 < sum(n for _, _, n in segments) <= CAPACITY
        if scope in ("source", "file"):
            assert len({groups[i] for i, _, _ in segments}) == 1
        if scope == "window":
            assert len({i // 5 for i, _, _ in segments}) == 1


@given(some_lengths)
def test_packs_stand_where_their_first_longest_sample_stood_and_their_samples_in_order(lengths: Any) -> None:
    packs = [[i for i, _, _ in segments] for segments in lists(pack(lengths, table(strategy="best_fit")))]
    assert all(samples == sorted(samples) for samples in packs)
    stands = [max(samples, key=lambda i: (lengths[i], -i)) for samples in packs]
    assert stands == sorted(stands)


@given(some_lengths, st.sampled_from(["best_fit", "in_order", "concat_split"]), st.data())
def test_a_source_is_packed_as_if_it_were_alone(lengths: Any, strategy: str, data: st.DataObject) -> None:
    source = np.array(data.draw(st.lists(st.integers(0, 2), min_size=lengths.size, max_size=lengths.size)), np.int32)
    together = lists(pack(lengths, table(strategy=strategy, scope="source"), source))
    for number in range(3):
        members = np.flatnonzero(source == number)
        alone = lists(pack(lengths[members], table(strategy=strategy)))
        mine = [segments for segments in together if source[segments[0][0]] == number]
        assert mine == [[(members[i], start, n) for i, start, n in segments] for segments in alone]


def test_packs_of_interleaved_sources_stay_interleaved() -> None:
    lengths, source = np.full(8, 8, np.int32), np.array([0, 1] * 4, np.int32)
    for strategy in ("best_fit", "concat_split"):
        packing = pack(lengths, table(strategy=strategy, scope="source"), source)
        assert packing.sample.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_windows_keep_the_order_of_the_data_beyond_them() -> None:
    lengths = np.random.default_rng(0).integers(1, CAPACITY, 1000).astype(np.int32)
    packs = lists(pack(lengths, table(scope="window", window=100)))
    windows = [segments[0][0] // 100 for segments in packs]
    assert windows == sorted(windows)


def test_concat_split_cuts_the_stream_every_capacity_tokens() -> None:
    packing = pack(np.array([10, 10, 10], np.int32), table(strategy="concat_split"))
    assert lists(packing) == [[(0, 0, 10), (1, 0, 6)], [(1, 6, 4), (2, 0, 10)]]
    dropped = pack(np.array([10, 10, 10], np.int32), table(strategy="concat_split", drop_last=True))
    assert lists(dropped) == lists(packing)[:1]
    assert (dropped.tokens, dropped.fill, packing.fill) == (16, 1.0, 30 / 32)


@pytest.mark.parametrize(
    ("attention", "longest"),
    [(Attention(), 10), (Attention(across_samples=True), 16), (Attention(window=4), 4), (Attention(True, 15), 15)],
)
def test_the_longest_document_is_what_attends_to_itself(attention: Attention, longest: int) -> None:
    packing = pack(np.array([10, 10, 10], np.int32), table(strategy="concat_split"))
    assert packing.longest_document(attention) == longest
    nothing = pack(np.zeros(0, np.int32), table(strategy="concat_split"))
    assert nothing.longest_document(attention) == 0


def test_none_puts_every_sample_into_a_pack_of_its_own() -> None:
    assert lists(pack(np.array([5, 16], np.int32), table(strategy="none"))) == [[(0, 0, 5)], [(1, 0, 16)]]
    with pytest.raises(ValueError, match="17 tokens, but a pack takes 16"):
        pack(np.array([5, 17], np.int32), table(strategy="none"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_makes_no_packs(strategy: str) -> None:
    packing = pack(np.zeros(0, np.int32), table(strategy=strategy))
    assert (packing.packs, packing.tokens, packing.lower_bound, packing.fill) == (0, 0, 0, 1.0)


@pytest.mark.parametrize(
    ("keys", "finding"),
    [
        ({"scope": "window", "strategy": "concat_split"}, 'is for strategy = "in_order" or "best_fit"'),
        ({"scope": "global", "window": 100}, 'has no effect with scope = "global"'),
        ({"drop_last": True}, 'is for strategy = "concat_split"'),
        ({"attention_window": 8}, 'is for strategy = "concat_split"'),
        ({"attention_window": 16, "strategy": "concat_split"}, "has no effect, since a pack takes 16 tokens"),
    ],
)
def test_a_key_without_effect_is_refused(keys: dict[str, Any], finding: str) -> None:
    with pytest.raises(ValidationError, match=finding):
        table(**keys)
