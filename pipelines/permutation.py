"""A keyed permutation of 0..count-1 that needs no array: from position to number in constant time and memory.

An unbalanced Feistel network over the bits of count - 1: the two halves of the bits change in turn, each by adding a
keyed hash of the other, which can be undone, so no two numbers meet. A number of `count` or above goes through again
until it falls below ("cycle walking"), on average less than once, since 2 * count bounds the domain.
"""

import hashlib

import numpy as np
import numpy.typing as npt
from numba import njit

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

ROUNDS = 16
"""So many that also five or six numbers come in all their orders equally often; large counts would need fewer."""


class Permutation:
    """The numbers 0..count-1 in an order that is a pure function of `count` and the key."""

    def __init__(self, count: int, *key: str | int) -> None:
        """The key's parts are integers, or text without NUL; keys of different parts are different keys."""
        if not 0 <= count < 2**62:
            raise ValueError(f"a permutation of {count} numbers; expected 0 to 2^62 - 1")
        self._count = count
        digest = hashlib.shake_256("\0".join(["permutation", *map(str, key)]).encode("utf-8")).digest(8 * ROUNDS)
        self._round_keys: UInt64 = np.frombuffer(digest, ">u8").astype(np.uint64)

    def __len__(self) -> int:
        return self._count

    def at(self, position: int) -> int:
        """The number at `position`."""
        if not 0 <= position < self._count:
            raise IndexError(f"position {position} of a permutation of {self._count} numbers")
        left_bits, right_bits = _halves(self._count)
        keys = self._round_keys.tolist()
        number = position
        while True:
            left, right = number >> right_bits, number & ((1 << right_bits) - 1)
            for turn in range(0, ROUNDS, 2):
                left = (left + _hash(right + keys[turn])) & ((1 << left_bits) - 1)
                right = (right + _hash(left + keys[turn + 1])) & ((1 << right_bits) - 1)
            number = left << right_bits | right
            if number < self._count:
                return number

    def slice(self, begin: int, end: int) -> Int64:
        """int64[end - begin]: the numbers at the positions begin..end-1, as `at` gives them one by one."""
        if not 0 <= begin <= end <= self._count:
            raise IndexError(f"positions {begin}..{end} of a permutation of {self._count} numbers")
        numbers = np.empty(end - begin, np.int64)
        _permute(begin, self._count, *_halves(self._count), self._round_keys, numbers)
        return numbers


def _halves(count: int) -> tuple[int, int]:
    """Bits of the left and of the right half; together they hold 0..count-1."""
    bits = max(count - 1, 0).bit_length()
    return bits // 2, bits - bits // 2


def _hash(value: int) -> int:
    # One step of SplitMix64: every bit of the result depends on every bit of the value.
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) % 2**64
    return value ^ value >> 31


@njit(cache=True)
def _permute(begin: int, count: int, left_bits: int, right_bits: int, round_keys: UInt64, numbers: Int64) -> None:
    shift = np.uint64(right_bits)
    left_mask = (np.uint64(1) << np.uint64(left_bits)) - np.uint64(1)
    right_mask = (np.uint64(1) << shift) - np.uint64(1)
    for i in range(numbers.size):
        number = np.uint64(begin + i)
        while True:
            left, right = number >> shift, number & right_mask
            for turn in range(0, round_keys.size, 2):
                left = (left + _hash_64(right + round_keys[turn])) & left_mask
                right = (right + _hash_64(left + round_keys[turn + 1])) & right_mask
            number = left << shift | right
            if number < np.uint64(count):
                break
        numbers[i] = number


@njit(cache=True, inline="always")
def _hash_64(value: np.uint64) -> np.uint64:
    value += np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)
