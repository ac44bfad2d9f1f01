"""The order of numbers, worked by hand, and the way back for any numbers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.turbomind import layout


def numbered(rows: int, columns: int) -> Any:
    return np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)


def test_rotary_halves_become_pairs_within_each_head() -> None:
    assert layout.interleave(numbered(1, 8), 4).tolist() == [[0, 2, 1, 3, 4, 6, 5, 7]]


def test_repeated_heads_stand_next_to_each_other() -> None:
    assert layout.repeat_heads(numbered(1, 4), 2, 2).tolist() == [[0, 1, 0, 1, 2, 3, 2, 3]]


def test_a_rank_has_its_queries_then_keys_then_values() -> None:
    query, key, value = numbered(1, 4), 10 + numbered(1, 2), 20 + numbered(1, 2)
    assert [part.tolist() for part in layout.fuse_qkv(query, key, value, 2)] == [[[0, 1, 10, 20]], [[2, 3, 11, 21]]]


@given(rows=st.integers(1, 3), heads=st.integers(1, 4), half=st.integers(1, 4), times=st.integers(1, 4))
def test_every_step_has_its_way_back(rows: int, heads: int, half: int, times: int) -> None:
    size = 2 * half
    matrix = numbered(rows, heads * size)
    np.testing.assert_array_equal(layout.deinterleave(layout.interleave(matrix, size), size), matrix)
    repeated = layout.repeat_heads(matrix, size, times)
    np.testing.assert_array_equal(layout.unrepeat_heads(repeated, size, times), matrix)
    padded = layout.pad_columns(matrix, matrix.shape[1] + times)
    np.testing.assert_array_equal(layout.unpad_columns(padded, matrix.shape[1]), matrix)
    parts = layout.fuse_qkv(repeated, matrix, matrix + 1, heads)
    back = layout.unfuse_qkv(parts, size * times, size)
    for found, expected in zip(back, (repeated, matrix, matrix + 1), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_copies_that_differ_are_not_taken_for_copies() -> None:
    repeated = layout.repeat_heads(numbered(2, 4), 2, 2)
    repeated[1, 3] += 1
    with pytest.raises(ValueError, match="repeated heads differ"):
        layout.unrepeat_heads(repeated, 2, 2)


def test_padding_that_is_not_zero_is_seen() -> None:
    padded = layout.pad_columns(numbered(2, 4), 6)
    padded[0, 5] = 1
    with pytest.raises(ValueError, match="the padding is not zero"):
        layout.unpad_columns(padded, 4)
