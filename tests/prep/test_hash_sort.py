import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prep.hash_sort import hash_order, hash_order_reference

ANY = hnp.arrays(np.uint64, st.integers(0, 200), elements=st.integers(0, 2**64 - 1))
CROWDED = hnp.arrays(np.uint64, st.integers(0, 200), elements=st.integers(2**63 - 3, 2**63 + 3))


@given(st.one_of(ANY, CROWDED))
def test_kernel_agrees_with_reference(keys: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
    before = keys.copy()
    assert hash_order(keys).tolist() == hash_order_reference(keys)
    assert np.array_equal(keys, before)


@pytest.mark.parametrize("count", [1000, 1024, 70_001])
def test_many_hashes_with_some_equal_ones_are_sorted(count: int) -> None:
    keys = np.random.default_rng(count).integers(0, 2**64, count, dtype=np.uint64)
    keys[::7] = keys[0]
    assert np.array_equal(hash_order(keys), np.argsort(keys, kind="stable"))


def test_equal_keys_keep_their_order() -> None:
    assert hash_order(np.array([5, 2, 5, 2, 5], np.uint64)).tolist() == [1, 3, 0, 2, 4]
