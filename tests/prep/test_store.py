"""Tokenized samples on disk, and how many of their tokens carry loss."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.store import (
    ChunkWriter,
    count_loss_tokens,
    count_loss_tokens_reference,
    counts_of,
    rows_of,
    tokens_of,
)

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=12)


@given(st.lists(TOKENS, min_size=1))
@settings(deadline=None)
def test_loss_tokens_are_those_with_the_bit(samples: list[list[int]]) -> None:
    tokens = np.array([token for sample in samples for token in sample], np.uint32)
    lengths = np.array([len(sample) for sample in samples], np.int64)
    np.testing.assert_array_equal(count_loss_tokens(tokens, lengths), count_loss_tokens_reference(tokens, lengths))


def test_samples_that_are_not_all_the_tokens_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="samples of 3 tokens, but there are 2"):
        count_loss_tokens(np.zeros(2, np.uint32), np.array([1, 2]))


def test_samples_are_on_disk_as_they_come(tmp_path: Path) -> None:
    with ChunkWriter(tmp_path) as writer:
        for number in range(3):
            writer.add(np.full((2, 4), number), np.full(50_000, number, np.uint32))
            assert tokens_of(tmp_path).stat().st_size == (number + 1) * 200_000
        writer.records = 6
    writer.finish(backend={})
    assert rows_of(tmp_path)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert counts_of(tmp_path) == {"records": 6, "dropped": {}, "rejects": [], "backend": {}}
    assert json.loads((tmp_path / "counts.json").read_text())


def test_a_chunk_that_is_begun_again_is_written_from_its_start(tmp_path: Path) -> None:
    for count in (3, 1):
        with ChunkWriter(tmp_path) as writer:
            writer.add(np.zeros((count, 4), np.int64), np.zeros(count * 7, np.uint32))
        writer.finish()
    assert rows_of(tmp_path).shape == (1, 4)
    assert tokens_of(tmp_path).stat().st_size == 28
