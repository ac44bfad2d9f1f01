"""Ids of many texts in one array: made of lists or arrays, and back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prep.encoded import Encoded

LISTS = st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), max_size=6)


@given(LISTS)
def test_lists_come_back(lists: list[list[int]]) -> None:
    encoded = Encoded.of_lists(lists)
    assert encoded.lists() == [part.tolist() for part in encoded.parts()] == lists
    assert len(encoded) == len(lists)
    assert Encoded.of_parts(np.array(ids, np.uint32) for ids in lists).lists() == lists


@given(LISTS, LISTS)
def test_the_first_difference_is_the_first_text_with_other_ids(one: list[list[int]], two: list[list[int]]) -> None:
    texts = min(len(one), len(two))
    expected = next((index for index in range(texts) if one[index] != two[index]), None)
    assert Encoded.of_lists(one[:texts]).first_difference(Encoded.of_lists(two[:texts])) == expected
