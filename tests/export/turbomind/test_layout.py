"""The order of numbers, worked by hand, and the way back for any numbers."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from export.turbomind import layout


def numbered(rows: int, columns: int) -> Any:
    return np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)


def test_rotary_halves_become_pairs_within_each_head() -> None:
    assert layout.interleave(numbered(8, 1), 4).T.tolist() == [[0, 2, 1, 3, 4, 6, 5, 7]]


def test_repeated_heads_stand_next_to_each_other() -> None:
    assert layout.repeat_heads(numbered(4, 1), 2, 2).T.tolist() == [[0, 1, 0, 1, 2, 3, 2, 3]]


@given(heads=st.integers(1, 4), half=st.integers(1, 4), width=st.integers(1, 3))
def test_interleaving_has_its_way_back(heads: int, half: int, width: int) -> None:
    rows = numbered(heads * 2 * half, width)
    np.testing.assert_array_equal(layout.deinterleave(layout.interleave(rows, 2 * half), 2 * half), rows)


@given(rows=st.integers(1, 70), columns=st.integers(1, 70), of=st.integers(0, 5))
def test_the_transposing_kernel_agrees_with_numpy(rows: int, columns: int, of: int) -> None:
    part = numbered(rows, columns + of)[:, of:]  # a part, whose rows do not follow each other
    np.testing.assert_array_equal(layout.transposed(part), part.T)
