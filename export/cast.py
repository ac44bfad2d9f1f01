"""Rounding float32 weights, once, to the number format they are exported in.

Results are bit patterns (unsigned integers of the format's width): NumPy has no bfloat16, and from here on weights
are only moved, never computed with.
"""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numba import njit

Float32 = npt.NDArray[np.float32]
Bits = npt.NDArray[Any]
"""uint16 for bfloat16 and float16, uint32 for float32."""
Dtype = Literal["bfloat16", "float16", "float32"]

WIDTH: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes a number."""
_EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}


def cast(values: Float32, dtype: Dtype) -> Bits:
    """Round to nearest, ties to even; what is too large becomes infinite.

    Args:
        values: [n] numbers.
    Returns:
        [n] bit patterns.
    """
    if dtype == "float32":
        return values.view(np.uint32)
    if dtype == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = np.empty(values.size, np.uint16)
    _to_bfloat16(values.view(np.uint32), bits)
    return bits


def rounded(values: Float32, dtype: Dtype) -> tuple[Bits, bool, int]:
    """`cast`, and what is to be known of the result, in one pass over the numbers.

    Returns:
        [n] bit patterns; whether all are finite; how many numbers other than zero were rounded to zero.
    """
    if dtype == "float16":
        bits = cast(values, dtype)
        return bits, all_finite(bits, dtype), vanished(values, bits)
    words = values.view(np.uint32)
    if dtype == "float32":
        return words, not bool(_has_infinite(words)), 0
    bits = np.empty(values.size, np.uint16)
    infinite, lost = _to_bfloat16_counted(words, bits)
    return bits, not infinite, lost


@njit(cache=True, nogil=True)
def _has_infinite(words: npt.NDArray[np.uint32]) -> bool:
    found = np.uint32(0)
    for i in range(words.size):
        found |= np.uint32((words[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    return bool(found)


@njit(cache=True, nogil=True)
def _to_bfloat16_counted(words: npt.NDArray[np.uint32], bits: npt.NDArray[np.uint16]) -> tuple[bool, int]:
    infinite, lost = np.uint32(0), np.uint32(0)  # of as many bits as the words, so that vectors hold both
    for i in range(words.size):
        word = words[i]
        result = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        size = word & np.uint32(0x7FFFFFFF)
        result = np.uint32(0x7FC0) if size > np.uint32(0x7F800000) else result
        bits[i] = np.uint16(result)
        infinite |= np.uint32((result & np.uint32(0x7F80)) == np.uint32(0x7F80))
        lost += np.uint32((result & np.uint32(0x7FFF)) == 0) & np.uint32(size != 0)
    return infinite != 0, int(lost)


@njit(cache=True, nogil=True)
def _to_bfloat16(words: npt.NDArray[np.uint32], bits: npt.NDArray[np.uint16]) -> None:
    for i in range(words.size):
        word = words[i]
        # Adding just under half of the last place kept carries into it where more than half is cut off, and
        # exactly half where it is odd. The carry would turn some NaN into infinity, so those are set apart.
        rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        is_nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        bits[i] = np.uint16(0x7FC0) if is_nan else np.uint16(rounded)


def cast_float64(values: npt.NDArray[np.float64], dtype: Dtype) -> Bits:
    """`cast` of float64 numbers: rounded once, not to float32 and then again."""
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "float16":
            return values.astype(np.float16).view(np.uint16)
        near = values.astype(np.float32)
    if dtype == "float32":
        return near.view(np.uint32)
    _to_odd(values, near, near.view(np.uint32))
    return cast(near, dtype)


def cast_within(
    values: npt.NDArray[np.float64], errors: npt.NDArray[np.float64], dtype: Dtype
) -> tuple[Bits, npt.NDArray[np.bool_]]:
    """`cast_float64` of numbers that are known within a bound, in one pass over them.

    Args:
        values: [n] numbers.
        errors: [n] how far off each may be.
    Returns:
        [n] bit patterns, and [n] where another number may be the nearest; that there is none is certain elsewhere.
    """
    kept, bias, least, most = _FRACTIONS[dtype]
    bits = np.empty(values.size, np.uint32 if dtype == "float32" else np.uint16)
    unsure = np.empty(values.size, np.uint8)
    values = np.ascontiguousarray(values)
    _round_within(values, values.view(np.uint64), errors, 52 - kept, (1023 - bias) << kept, least, most, bits, unsure)
    places = np.flatnonzero(unsure == _ELSEWHERE)
    if places.size:
        few, off = values[places], errors[places]
        bits[places] = cast_float64(few, dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            unsure[places] = cast_float64(few - off, dtype) != cast_float64(few + off, dtype)
    return bits, unsure.view(np.bool_)


_FRACTIONS: dict[Dtype, tuple[int, int, float, float]] = {
    "bfloat16": (7, 127, 2.0**-126, 3.3e38),
    "float16": (10, 15, 2.0**-14, 65000.0),
    "float32": (23, 127, 2.0**-126, 3.4e38),
}
"""Bits of a fraction, bias of the exponent, and between which sizes a number has as many bits and is not infinite."""
_ELSEWHERE = 2
"""Marks a number that is not of those sizes."""
_LAST_PLACE = np.ldexp(1.0, np.arange(2048) - 1075)
"""What the last bit of a float64 counts, by its exponent."""


@njit(cache=True, nogil=True)
def _round_within(
    values: npt.NDArray[np.float64],
    words: npt.NDArray[np.uint64],
    errors: npt.NDArray[np.float64],
    cut: int,
    rebias: int,
    least: float,
    most: float,
    bits: Bits,
    unsure: npt.NDArray[np.uint8],
) -> None:
    half = np.uint64(1) << np.uint64(cut - 1)
    rest = (half << np.uint64(1)) - np.uint64(1)
    sign = np.uint64(8 * bits.itemsize - 1)
    for i in range(words.size):
        size = words[i] & np.uint64(0x7FFFFFFFFFFFFFFF)
        odd = (size >> np.uint64(cut)) & np.uint64(1)
        near = ((size + half - np.uint64(1) + odd) >> np.uint64(cut)) - np.uint64(rebias)
        bits[i] = near | ((words[i] >> np.uint64(63)) << sign)
        # Half of the last place kept is where rounding turns; below a power of two, the places are half as large.
        low = size & rest
        away = min(low - half if low > half else half - low, half >> np.uint64(1))
        room = np.float64(away) * _LAST_PLACE[size >> np.uint64(52)]
        inside = least <= abs(values[i]) <= most
        unsure[i] = (errors[i] > 0.0 and not errors[i] < room) if inside else _ELSEWHERE


@njit(cache=True)
def _to_odd(values: npt.NDArray[np.float64], near: Float32, words: npt.NDArray[np.uint32]) -> None:
    # Of the two float32 around a number the one whose last bit is 1 rounds on as the number itself would. Where the
    # nearest is the other one, its neighbour towards the number is a step of the word up or down.
    for i in range(values.size):
        size, found = abs(values[i]), abs(np.float64(near[i]))
        if found != size and words[i] & np.uint32(1) == 0:
            if found < size:
                words[i] += np.uint32(1)
            elif found > size:
                words[i] -= np.uint32(1)


def numbers(bits: Bits, dtype: Dtype) -> Float32:
    """The numbers that bit patterns are, which every format here shares with float32."""
    if dtype == "float32":
        return bits.view(np.float32)
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def cast_reference(value: float, dtype: Literal["bfloat16", "float16"]) -> int:
    """`cast` of one finite number, by its distance to every number of the format. The tests compare the two."""
    infinity = _EXPONENT[dtype]
    magnitudes = np.arange(infinity, dtype=np.uint32)  # the finite ones, in rising order
    if dtype == "bfloat16":
        numbers = (magnitudes << np.uint32(16)).view(np.float32).astype(np.float64)
        beyond = 2.0**128
    else:
        numbers = magnitudes.astype(np.uint16).view(np.float16).astype(np.float64)
        beyond = 2.0**16
    distances = np.abs(
        np.append(numbers, beyond) - min(abs(value), beyond)
    )  # infinity is where the next number would be
    nearest = np.flatnonzero(distances == distances.min())
    magnitude = next(int(pattern) for pattern in nearest if len(nearest) == 1 or pattern % 2 == 0)
    return magnitude | (0x8000 if math.copysign(1.0, value) < 0 else 0)


def all_finite(bits: Bits, dtype: Dtype) -> bool:
    """Whether no pattern is infinite or NaN."""
    exponent = bits.dtype.type(_EXPONENT[dtype])
    return not bool(((bits & exponent) == exponent).any())


def vanished(values: Float32 | npt.NDArray[np.float64], bits: Bits) -> int:
    """How many numbers other than zero were rounded to zero."""
    magnitude = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    return int(np.count_nonzero(values)) - int(np.count_nonzero(bits & magnitude))
