"""Rounding float32 once, against a search through all patterns and against PyTorch."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.cast import Dtype, all_finite, cast, cast_float64, cast_reference, cast_within, rounded, vanished

LOW: tuple[Dtype, Dtype] = ("bfloat16", "float16")


@pytest.mark.parametrize("dtype", LOW)
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_cast_finds_the_nearest_pattern(dtype: Dtype, value: float) -> None:
    assert dtype != "float32"
    assert int(cast(np.array([value], np.float32), dtype)[0]) == cast_reference(value, dtype)


@pytest.mark.parametrize("dtype", LOW)
def test_cast_agrees_with_torch_on_every_border(dtype: Dtype) -> None:
    # Every number of the format, the midpoints between neighbours, and what is just beside both; signs, subnormals
    # and infinities included.
    if dtype == "bfloat16":
        exact = np.arange(0x10000, dtype=np.uint32) << np.uint32(16)
        steps = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    else:
        exact = np.arange(0x10000, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
        steps = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF], np.uint32)
    words = (exact[:, None] | steps).reshape(-1)
    values = words.view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.uint16).numpy()
    np.testing.assert_array_equal(cast(values, dtype), expected)


@pytest.mark.parametrize("dtype", LOW)
def test_subnormals_of_float32_round_as_in_torch(dtype: Dtype) -> None:
    values = np.arange(1, 0x800000, 0x3FF, dtype=np.uint32).view(np.float32)
    expected = torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.uint16).numpy()
    np.testing.assert_array_equal(cast(values, dtype), expected)


@pytest.mark.parametrize("word", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF])
@pytest.mark.parametrize("dtype", LOW)
def test_nan_stays_nan(word: int, dtype: Dtype) -> None:
    bits = cast(np.array([word], np.uint32).view(np.float32), dtype)
    assert torch.from_numpy(bits).view(getattr(torch, dtype)).isnan().all()


def test_float32_is_kept_bit_for_bit() -> None:
    values = np.array([0.1, -0.0, 3e38], np.float32)
    assert cast(values, "float32").tobytes() == struct.pack("<3f", *values.tolist())


@pytest.mark.parametrize(
    ("value", "dtype", "finite"),
    [
        (65519.0, "float16", True),
        (65520.0, "float16", False),
        (3.38e38, "bfloat16", True),
        (3.4e38, "bfloat16", False),
        (3.4e38, "float32", True),
        (float("-inf"), "float32", False),
        (float("nan"), "bfloat16", False),
    ],
)
def test_overflow_is_seen(value: float, dtype: Dtype, finite: bool) -> None:
    assert all_finite(cast(np.array([1.0, value], np.float32), dtype), dtype) is finite


def test_numbers_too_small_for_the_format_are_counted() -> None:
    values = np.array([0.0, -0.0, 1e-9, -1e-9, 6e-8, 1.0], np.float32)
    assert vanished(values, cast(values, "float16")) == 2
    assert vanished(values, cast(values, "bfloat16")) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@settings(deadline=None)  # the first call compiles
@given(
    st.lists(
        st.floats(width=64) | st.floats(-70000, 70000) | st.sampled_from([0.0, 1.0, 65504.0, 2.0**-14, 2.0**-126])
    ),
    st.sampled_from([0.0, 2.0**-52, 2.0**-40, 2.0**-9, 0.3]),
    st.integers(-2, 2),
)
def test_rounding_within_a_bound_agrees_with_rounding_both_ends(
    dtype: Dtype, drawn: list[float], places: int, steps: int
) -> None:
    values = np.array(drawn, np.float64)
    kept = {"bfloat16": 45, "float16": 42, "float32": 29}[dtype]
    ties = (values.view(np.uint64) >> np.uint64(kept) << np.uint64(kept)) | np.uint64(1 << (kept - 1))
    values = np.concatenate([values, (ties.view(np.int64) + steps).view(np.float64)])
    with np.errstate(all="ignore"):
        errors = np.abs(np.spacing(values)) * places  # so that both ends are numbers themselves
        bits, unsure = cast_within(values, errors, dtype)
        ends = cast_float64(values - errors, dtype) != cast_float64(values + errors, dtype)
        ends &= errors > 0  # -0.0 + 0.0 is 0.0, and its rounding is not in doubt
        known = np.isfinite(values)
        np.testing.assert_array_equal(bits[known], cast_float64(values, dtype)[known])
    assert not (ends & ~unsure)[known].any()
    if places == 0:
        assert not unsure[known].any()


def test_a_bound_that_excludes_every_other_number_leaves_none_unsure() -> None:
    values = np.random.default_rng(3).standard_normal(10_000)
    for dtype in ("bfloat16", "float16"):
        _, unsure = cast_within(values, np.abs(values) * 2.0**-50, dtype)
        assert unsure.sum() < 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rounding_in_one_pass_says_what_three_say(dtype: Dtype) -> None:
    words = np.arange(0, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32)  # NaN, infinity and the smallest among them
    for part in (words, words[:5], words[(words & 0x7F800000) != 0x7F800000], words[:0]):
        values = part.view(np.float32)
        bits, finite, lost = rounded(values, dtype)
        np.testing.assert_array_equal(bits, cast(values, dtype))
        assert (finite, lost) == (all_finite(bits, dtype), vanished(values, bits))
