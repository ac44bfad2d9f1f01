from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.gather import gather, gather_reference
from prep.store import LOSS_BIT


@st.composite
def segments(draw: st.DrawFn) -> dict[str, Any]:
    """Segments out of random tokens, end to end in some order, their bits with gaps between them."""
    random = np.random.default_rng(draw(st.integers(0, 9)))
    source = random.integers(0, 60_000, draw(st.integers(1, 60))).astype(np.uint32)
    source[random.random(source.size) < 0.5] |= LOSS_BIT
    begins = draw(st.lists(st.integers(0, source.size - 1), max_size=8))
    lengths = np.array([draw(st.integers(1, source.size - begin)) for begin in begins], np.int32)
    gaps = np.array([draw(st.integers(0, 9)) for _ in begins], np.int64)
    ends = np.cumsum(lengths, dtype=np.int64)
    return {
        "source": source,
        "offsets": np.array(begins, np.int64),
        "lengths": lengths,
        "places": ends - lengths,
        "bits": ends - lengths + np.cumsum(gaps),
    }


def gathered(function: Any, case: dict[str, Any], dtype: Any) -> tuple[Any, Any, int]:
    source, offsets, lengths, places, bits = case.values()
    tokens = np.zeros(lengths.sum(), dtype)
    loss_mask = np.zeros((bits + lengths).max(initial=0) // 8 + 1, np.uint8)
    largest = function(source, offsets, lengths, places=places, bits=bits, tokens=tokens, loss_mask=loss_mask)
    return tokens, loss_mask, largest


@given(segments(), st.sampled_from([np.uint16, np.uint32]))
def test_kernel_agrees_with_reference(case: dict[str, Any], dtype: Any) -> None:
    found, expected = (gathered(function, case, dtype) for function in (gather, gather_reference))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[2] == expected[2]


def test_the_first_token_of_a_segment_is_no_target() -> None:
    source = np.array([5, 6, 7, 8], np.uint32) | LOSS_BIT
    case = {
        "source": source,
        "offsets": np.array([2, 0]),
        "lengths": np.array([2, 2], np.int32),
        "places": np.array([0, 2]),
        "bits": np.array([0, 2]),
    }
    tokens, loss_mask, largest = gathered(gather, case, np.uint16)
    assert (tokens.tolist(), loss_mask.tolist(), largest) == ([7, 8, 5, 6], [0b1010], 8)


@pytest.mark.parametrize(
    ("name", "value"), [("offsets", 3), ("offsets", -1), ("places", 1), ("places", -1), ("bits", 7), ("bits", -1)]
)
def test_a_segment_outside_is_refused(name: str, value: int) -> None:
    case = {
        "source": np.zeros(4, np.uint32),
        "offsets": np.array([0]),
        "lengths": np.array([2], np.int32),
        "places": np.array([0]),
        "bits": np.array([0]),
    }
    case[name] = np.array([value])
    with pytest.raises(ValueError, match="segments reach beyond"):
        gather(**case, tokens=np.zeros(2, np.uint32), loss_mask=np.zeros(1, np.uint8))
