"""The order of numbers in TurboMind's matrices, and the way back.

A matrix here is [in, out] (a Hugging Face weight transposed); a bias is a matrix with one row. Everything moves bit
patterns; nothing is computed. Each function has its inverse below it, and the inverse refuses what the function
cannot have made.
"""

import numpy as np

from export.cast import Bits


def interleave(matrix: Bits, head_size: int) -> Bits:
    """Rotary pairs next to each other: out[2j] = in[j], out[2j + 1] = in[j + head_size / 2] within each head.

    Args:
        matrix: [in, heads * head_size].
    """
    rows, columns = matrix.shape
    halves = matrix.reshape(rows, columns // head_size, 2, head_size // 2)
    return halves.swapaxes(2, 3).reshape(rows, columns)


def deinterleave(matrix: Bits, head_size: int) -> Bits:
    """Undo `interleave`."""
    rows, columns = matrix.shape
    pairs = matrix.reshape(rows, columns // head_size, head_size // 2, 2)
    return pairs.swapaxes(2, 3).reshape(rows, columns)


def repeat_heads(matrix: Bits, head_size: int, times: int) -> Bits:
    """Each head `times` times in a row: [in, heads * head_size] -> [in, times * heads * head_size]."""
    rows = matrix.shape[0]
    return np.repeat(matrix.reshape(rows, -1, head_size), times, axis=1).reshape(rows, -1)


def unrepeat_heads(matrix: Bits, head_size: int, times: int) -> Bits:
    """Undo `repeat_heads`."""
    rows = matrix.shape[0]
    copies = matrix.reshape(rows, -1, times, head_size)
    if not (copies == copies[:, :, :1]).all():
        raise ValueError("repeated heads differ")
    return copies[:, :, 0].reshape(rows, -1)


def split_columns(matrix: Bits, tp: int) -> list[Bits]:
    """Equal contiguous slices of the columns, by rank."""
    return np.split(matrix, tp, axis=1)


def split_rows(matrix: Bits, tp: int) -> list[Bits]:
    """Equal contiguous slices of the rows, by rank."""
    return np.split(matrix, tp, axis=0)


def fuse_qkv(query: Bits, key: Bits, value: Bits, tp: int) -> list[Bits]:
    """By rank: its slice of the query columns, then of the key's, then of the value's."""
    parts = (split_columns(matrix, tp) for matrix in (query, key, value))
    return [np.concatenate(slices, axis=1) for slices in zip(*parts, strict=True)]


def unfuse_qkv(by_rank: list[Bits], query_columns: int, kv_columns: int) -> tuple[Bits, Bits, Bits]:
    """Undo `fuse_qkv`.

    Args:
        query_columns: of one rank.
        kv_columns: of one rank, of the key or the value.
    """
    ends = [query_columns, query_columns + kv_columns]
    query, key, value = (
        np.concatenate(slices, axis=1)
        for slices in zip(*(np.split(matrix, ends, axis=1) for matrix in by_rank), strict=True)
    )
    return query, key, value


def pad_columns(matrix: Bits, columns: int) -> Bits:
    """Zeros on the right up to `columns`."""
    return np.pad(matrix, ((0, 0), (0, columns - matrix.shape[1])))


def unpad_columns(matrix: Bits, columns: int) -> Bits:
    """Undo `pad_columns`."""
    if matrix[:, columns:].any():
        raise ValueError("the padding is not zero")
    return matrix[:, :columns]
