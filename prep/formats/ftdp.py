"""ftdp, the token files of InternEvo and XTuner: `X.bin` of JSON lines and `X.bin.meta` of their offsets.

A line is `{"tokens": [...]}`; a token without loss is written negated, so id 0 never carries loss. The meta file is
a NumPy array with a row per line: byte offset of the line first, number of tokens last (int32 or int64; an empty one
is float64 of shape (0,)). A symlinked X.bin has its meta beside the target.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.errors import DataError
from prep.formats.fault import RecordFault
from prep.store import LOSS_BIT

CHUNK_BYTES = 16 << 20
"""Bytes per chunk, rounded up to a whole line."""

Bytes = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


def chunks(path: Path) -> list[tuple[int, int]]:
    """Row ranges that cover the file, about CHUNK_BYTES each."""
    offsets, _ = read_meta(path)
    if not offsets.size:
        return []
    first = np.searchsorted(offsets, np.arange(0, offsets[-1] + 1, CHUNK_BYTES), side="left")
    bounds = [*np.unique(first).tolist(), offsets.size]
    return list(pairwise(bounds))


def meta_path(path: Path) -> Path:
    """Where the offsets of a .bin file are."""
    beside = path.with_name(path.name + ".meta")
    if beside.exists() or not path.is_symlink():
        return beside
    target = path.resolve()
    return target.with_name(target.name + ".meta")


def read_meta(path: Path) -> tuple[Int64, Int64]:
    """Byte offset and number of tokens of every line of a .bin file.

    Raises:
        DataError: if the meta file is missing, not an array of rows, or cannot belong to this .bin.
    """
    where = meta_path(path)
    try:
        rows = np.load(where, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{where}: missing; an ftdp .bin file needs its .meta beside it") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{where}: not a NumPy array ({error}); make it again with the tool that wrote {path}"
        ) from error
    if rows.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected integer rows of (byte offset, tokens), found {rows.dtype} of shape {rows.shape}"
        )
    offsets, tokens = rows[:, 0].astype(np.int64), rows[:, -1].astype(np.int64)
    size = path.stat().st_size
    wrong = np.flatnonzero((np.diff(offsets, prepend=-1) <= 0) | (offsets < 0) | (offsets >= size) | (tokens < 0))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(
            f"{where}: row {row} is (offset {offsets[row]}, {tokens[row]} tokens); expected rising offsets below the "
            f"{size} bytes of {path.name}"
            + ("; int32 offsets overflow past 2 GiB, write them as int64" if rows.dtype == np.int32 else "")
        )
    return offsets, tokens


def samples(path: Path, begin: int, end: int, *, vocab_size: int) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """The lines begin..end, each with its number within the chunk and its tokens, bit 31 set where loss is taken.

    Raises:
        RecordFault: on a line that is not `{"tokens": [...]}`, has another count than the meta file says, or an id
            outside the vocabulary.
    """
    offsets, counts = read_meta(path)
    size = path.stat().st_size
    content: Bytes = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    ends = np.append(offsets[1:], size)
    first, last = int(offsets[begin]), int(ends[end - 1])
    if begin == 0 and first != 0:
        raise RecordFault(0, f"the meta file puts the first line at byte {first}, not 0; make the meta file again", 1)
    tokens = np.empty(int(counts[begin:end].sum()), np.uint32)
    row, byte, found = parse(content[first:last], offsets[begin:end] - first, counts[begin:end], tokens)
    if row >= 0:
        raise RecordFault(row, _finding(int(found), int(counts[begin + row])), int(byte) + 1)
    position = 0
    for number, length in enumerate(counts[begin:end].tolist()):
        part = tokens[position : position + length]
        position += length
        ids = part & ~LOSS_BIT
        if length and int(ids.max()) >= vocab_size:
            at = int(np.argmax(ids >= vocab_size))
            raise RecordFault(
                number,
                f"token {at} has id {ids[at]}, the tokenizer's vocabulary ends at {vocab_size - 1}; "
                "the file was made with another tokenizer",
            )
        yield number, part


_SYNTAX, _COUNT, _HUGE, _LINE = -1, -2, -3, -4


def _finding(found: int, expected: int) -> str:
    if found == _SYNTAX:
        return 'expected {"tokens": [integers]}'
    if found == _HUGE:
        return "a token id of more than 30 bits; ids are 0 to 1073741823 in absolute value"
    if found == _LINE:
        return "the meta file's offset is not the beginning of a line; make the meta file again"
    return f"{found} tokens, the meta file says {expected}; make the meta file again"


@njit(cache=True)
def parse(content: Bytes, offsets: Int64, counts: Int64, tokens: npt.NDArray[np.uint32]) -> tuple[int, int, int]:
    """Parse consecutive ftdp lines into one array of ids with bit 31 for loss.

    Args:
        content: [bytes] the lines, and nothing after them.
        offsets: [lines] first byte of each line.
        counts: [lines] tokens of each line.
        tokens: [sum of counts] is filled.
    Returns:
        (-1, 0, 0), or the first faulty line, the byte within it, and the tokens found or a negative code.
    """
    at = 0
    key = np.array([34, 116, 111, 107, 101, 110, 115, 34], np.uint8)  # "tokens"
    for line in range(offsets.size):
        begin = offsets[line]
        end = offsets[line + 1] if line + 1 < offsets.size else content.size
        if line + 1 < offsets.size and content[end - 1] != 10:
            return line + 1, 0, -4
        i = _skip(content, begin, end)
        if i >= end or content[i] != 123:
            return line, i - begin, -1
        i = _skip(content, i + 1, end)
        for k in range(key.size):
            if i >= end or content[i] != key[k]:
                return line, i - begin, -1
            i += 1
        i = _skip(content, i, end)
        if i >= end or content[i] != 58:
            return line, i - begin, -1
        i = _skip(content, i + 1, end)
        if i >= end or content[i] != 91:
            return line, i - begin, -1
        i = _skip(content, i + 1, end)
        found = 0
        expected = counts[line]
        while i < end and content[i] != 93:
            if found:
                if content[i] != 44:
                    return line, i - begin, -1
                i = _skip(content, i + 1, end)
            negative = i < end and content[i] == 45
            if negative:
                i += 1
            value = np.int64(0)
            first = i
            while i < end and 48 <= content[i] <= 57:
                value = value * 10 + (content[i] - 48)
                i += 1
                if value >= 1 << 30:
                    return line, first - begin, -3
            if i == first or (content[first] == 48 and i > first + 1):
                return line, i - begin, -1
            if found < expected:
                tokens[at + found] = np.uint32(value) | (np.uint32(0) if negative or value == 0 else np.uint32(1 << 31))
            found += 1
            i = _skip(content, i, end)
        if i >= end:
            return line, i - begin, -1
        i = _skip(content, i + 1, end)
        if i >= end or content[i] != 125:
            return line, i - begin, -1
        i += 1
        while i < end:
            if content[i] != 32 and content[i] != 9 and content[i] != 10 and content[i] != 13:
                return line, i - begin, -1
            i += 1
        if found != expected:
            return line, 0, found
        at += found
    return -1, 0, 0


@njit(cache=True, inline="always")
def _skip(content: Bytes, i: int, end: int) -> int:
    while i < end and (content[i] == 32 or content[i] == 9):
        i += 1
    return i
