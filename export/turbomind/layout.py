"""The order of numbers in TurboMind's matrices, and the way back.

A Hugging Face matrix is [out, in]; the engine's is [in, out], with the rows of query and key heads in another order.
Everything moves bit patterns; nothing is computed.
"""

import numpy as np
from numba import njit

from export.cast import Bits

_TILE = 32  # numbers along each side of a square that both orders find in the processor's nearest memory


def interleave(rows: Bits, head_size: int) -> Bits:
    """Rotary pairs next to each other: out[2j] = in[j], out[2j + 1] = in[j + head_size / 2] within each head.

    Args:
        rows: [heads * head_size, in].
    """
    halves = rows.reshape(-1, 2, head_size // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def deinterleave(rows: Bits, head_size: int) -> Bits:
    """Undo `interleave`."""
    pairs = rows.reshape(-1, head_size // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def repeat_heads(rows: Bits, head_size: int, times: int) -> Bits:
    """Each head `times` times in a row: [heads * head_size, in] -> [times * heads * head_size, in]."""
    width = rows.shape[1]
    return np.repeat(rows.reshape(-1, head_size, width), times, axis=0).reshape(-1, width)


def transposed(rows: Bits) -> Bits:
    """[out, in] -> [in, out], in a new array."""
    result = np.empty(rows.shape[::-1], rows.dtype)
    transpose(rows, result)
    return result


@njit(cache=True)
def transpose(rows: Bits, result: Bits) -> None:
    """Put rows [out, in] into a result [in, out]; both may be parts of larger arrays."""
    # Square by square: NumPy goes along one of the two orders and misses every cache in the other.
    height, width = rows.shape
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            for column in range(left, min(left + _TILE, width)):
                for row in range(top, min(top + _TILE, height)):
                    result[column, row] = rows[row, column]
