"""The order of hashed keys: a sort that uses that hashes are spread evenly over all 64 bits."""

import numpy as np
import numpy.typing as npt
from numba import njit

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_BUCKET_BITS = 10
"""Keys are first dealt to 2^10 buckets, so that each write stream stays in the cache and so does each bucket."""


def hash_order(keys: UInt64) -> Int64:
    """int64[keys]: where the keys are, lowest first, equal keys in their order.

    Right for any keys, and several times as fast as a comparison sort for hashes; slow for keys that share their
    highest bits. `hash_order_reference` says the same.
    """
    if keys.size >= 2**32:
        raise ValueError(f"{keys.size} keys; their places are counted in 32 bits")
    order = np.empty(keys.size, np.uint32)
    _hash_order(keys, np.empty_like(keys), order)
    return order.astype(np.int64)


def hash_order_reference(keys: UInt64) -> list[int]:
    """`hash_order` by a comparison sort."""
    return sorted(range(keys.size), key=keys.tolist().__getitem__)


@njit(cache=True)
def _hash_order(keys: UInt64, dealt: UInt64, order: npt.NDArray[np.uint32]) -> None:
    shift = np.uint64(64 - _BUCKET_BITS)
    ends = np.zeros(1 << _BUCKET_BITS, np.int64)
    for key in keys:
        ends[key >> shift] += 1
    largest = ends.max()
    ends[:] = np.cumsum(ends) - ends
    for i in range(keys.size):
        bucket = keys[i] >> shift
        dealt[ends[bucket]] = keys[i]
        order[ends[bucket]] = i
        ends[bucket] += 1
    bucket_keys = np.empty(largest, np.uint64)
    bucket_order = np.empty(largest, np.uint32)
    begin = np.int64(0)
    for end in ends:
        _sort_bucket(dealt[begin:end], order[begin:end], bucket_keys, bucket_order)
        begin = end


@njit(cache=True)
def _sort_bucket(
    keys: UInt64, order: npt.NDArray[np.uint32], keys_before: UInt64, order_before: npt.NDArray[np.uint32]
) -> None:
    # Dealt once more, to about one key a place, the keys stand almost right, and insertion sorts them in few moves.
    bits = 1
    while 1 << bits < keys.size:
        bits += 1
    shift, mask = np.uint64(64 - _BUCKET_BITS - bits), np.uint64((1 << bits) - 1)
    places = np.zeros(1 << bits, np.int64)
    for i in range(keys.size):
        keys_before[i], order_before[i] = keys[i], order[i]
        places[keys[i] >> shift & mask] += 1
    places[:] = np.cumsum(places) - places
    for i in range(keys.size):
        place = keys_before[i] >> shift & mask
        keys[places[place]] = keys_before[i]
        order[places[place]] = order_before[i]
        places[place] += 1
    for i in range(1, keys.size):
        key, index = keys[i], order[i]
        to = i
        while to > 0 and keys[to - 1] > key:
            keys[to], order[to] = keys[to - 1], order[to - 1]
            to -= 1
        keys[to], order[to] = key, index
