"""Gathering: segments' tokens out of the chunks into packs, ids on one side and bits of loss on the other."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.shards import Tokens
from prep.store import LOSS_BIT

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Marked = npt.NDArray[np.uint32]
"""Token ids, bit 31 set where the token carries loss."""


def gather(
    source: Marked,
    offsets: Int64,
    lengths: Int32,
    *,
    places: Int64,
    bits: Int64,
    tokens: Tokens,
    loss_mask: Bytes,
) -> int:
    """Copy segments out of `source`.

    The first token of a segment is never a target, since nothing in its segment predicts it: its bit stays clear.

    Args:
        offsets: int64[segments], the first token of each in `source`.
        lengths: int32[segments], tokens of each.
        places: int64[segments], where its first token goes in `tokens`.
        bits: int64[segments], where its first token's bit goes in `loss_mask`, least significant first in each byte.
        tokens: is written; of a type that holds every id.
        loss_mask: is written; clear where the segments go.
    Returns:
        The largest id copied.
    """
    ends = lengths.astype(np.int64)
    if lengths.size and not (
        lengths.min() > 0
        and offsets.min() >= 0
        and places.min() >= 0
        and bits.min() >= 0
        and (offsets + ends).max() <= source.size
        and (places + ends).max() <= tokens.size
        and (bits + ends).max() <= 8 * loss_mask.size
    ):
        raise ValueError(f"segments reach beyond the {source.size} tokens they come from or the place they go to")
    return int(_gather(source, offsets, lengths, places, bits, tokens, loss_mask))


@njit(cache=True)
def _gather(
    source: Marked, offsets: Int64, lengths: Int32, places: Int64, bits: Int64, tokens: Tokens, loss_mask: Bytes
) -> int:
    # Loops over slices from 0 run eight tokens and more at a time; the bits are set byte by byte where they can be.
    largest: Any = np.uint32(0)
    for segment in range(offsets.size):
        length = np.int64(lengths[segment])
        marked = source[offsets[segment] : offsets[segment] + length]
        target = tokens[places[segment] : places[segment] + length]
        for i in range(length):
            token = marked[i] & np.uint32(0x7FFFFFFF)
            target[i] = token
            largest = max(largest, token)
        i = 1
        bit = bits[segment] + 1
        while i < length and bit & 7:
            _set_bit(loss_mask, bit, marked[i])
            i += 1
            bit += 1
        while i + 8 <= length:
            byte = np.uint32(0)
            for k in range(8):
                byte |= (marked[i + k] >> np.uint32(31)) << np.uint32(k)
            loss_mask[bit >> 3] = byte
            i += 8
            bit += 8
        while i < length:
            _set_bit(loss_mask, bit, marked[i])
            i += 1
            bit += 1
    return int(largest)


@njit(cache=True)
def _set_bit(loss_mask: Bytes, bit: int, marked: int) -> None:
    loss_mask[bit >> 3] |= np.uint8((marked >> np.uint32(31)) << np.uint32(bit & 7))


def gather_reference(
    source: Marked, offsets: Int64, lengths: Int32, *, places: Int64, bits: Int64, tokens: Tokens, loss_mask: Bytes
) -> int:
    """`gather` written the obvious way: slow, and right. The tests compare the two."""
    largest = 0
    for offset, length, place, bit in np.stack([offsets, lengths, places, bits], 1).tolist():
        for i, marked in enumerate(source[offset : offset + length].tolist()):
            token = marked & ~int(LOSS_BIT)
            tokens[place + i] = token
            largest = max(largest, token)
            if i > 0 and marked & int(LOSS_BIT):
                loss_mask[(bit + i) // 8] |= 1 << (bit + i) % 8
    return int(largest)
