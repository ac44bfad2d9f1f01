"""ftdp, the token files of InternEvo and XTuner: `X.bin` of JSON lines and `X.bin.meta` of their offsets.

A line is `{"tokens": [...]}`; a token without loss is written negated, so id 0 never carries loss. The meta file is
a NumPy array with a row per line: byte offset of the line first, number of tokens last (int32 or int64; an empty one
is float64 of shape (0,)). A symlinked X.bin has its meta beside the target.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.errors import DataError
from prep.formats.fault import RecordFault

CHUNK_BYTES = 16 << 20
"""Bytes per chunk, rounded up to a whole line."""

Bytes = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Marked = npt.NDArray[np.uint32]
"""Token ids, bit 31 set where the token carries loss."""


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


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of a .bin file."""

    text: Bytes
    """[bytes], a memory map."""
    starts: Int64
    """[lines] first byte of each."""
    ends: Int64
    """[lines] byte behind each."""
    counts: Int64
    """[lines] tokens of each, as the meta file says."""


def lines(path: Path, begin: int, end: int) -> Lines:
    """The lines begin..end of a .bin file, not parsed yet."""
    offsets, counts = read_meta(path)
    if begin == 0 and offsets[0] != 0:
        raise DataError(f"{meta_path(path)}: puts the first line at byte {offsets[0]}, not 0; make the meta file again")
    first = int(offsets[begin])
    last = int(offsets[end]) if end < offsets.size else path.stat().st_size
    text: Bytes = np.memmap(path, np.uint8, "r", offset=first, shape=(last - first,))
    starts = offsets[begin:end] - first
    return Lines(text, starts, np.append(starts[1:], last - first), counts[begin:end])


def samples(path: Path, begin: int, end: int, *, vocab_size: int) -> Iterator[tuple[int, Marked | RecordFault]]:
    """The lines begin..end, each with its number within the chunk and its tokens, bit 31 set where loss is taken.

    A line that is not `{"tokens": [...]}`, has another count than the meta file says, or an id outside the vocabulary
    is a fault.
    """
    part = lines(path, begin, end)
    row = 0
    while row < part.counts.size:
        tokens, good, byte, found = _parse_from(part, row, vocab_size)
        bounds = np.cumsum(part.counts[row : row + good])[:-1]
        for sample in np.split(tokens[: part.counts[row : row + good].sum()], bounds) if good else []:
            yield row, sample
            row += 1
        if row < part.counts.size:
            yield row, RecordFault(row, _finding(found, int(part.counts[row]), vocab_size), byte + 1)
            row += 1


def all_samples(path: Path, begin: int, end: int, *, vocab_size: int) -> tuple[Marked, Int64] | None:
    """The tokens of the lines begin..end, end to end, and how many each line has; None if any line is faulty."""
    part = lines(path, begin, end)
    tokens, good, _, _ = _parse_from(part, 0, vocab_size)
    return (tokens, part.counts) if good == part.counts.size else None


def _parse_from(part: Lines, row: int, vocab_size: int) -> tuple[Marked, int, int, int]:
    # A line of n tokens has at least 2n characters, so a meta file cannot make this allocate more than the file.
    sizes = part.ends[row:] - part.starts[row:]
    counts = np.where(part.counts[row:] * 2 > sizes, 0, part.counts[row:])
    tokens = np.empty(int(counts.sum()), np.uint32)
    return (tokens, *parse(part.text, part.starts[row:], part.ends[row:], counts, vocab_size, tokens))


_SYNTAX, _ID, _LINE = -1, -2, -3


def _finding(found: int, expected: int, vocab_size: int) -> str:
    if found == _SYNTAX:
        return 'expected {"tokens": [integers]}'
    if found == _ID:
        return f"a token id above {vocab_size - 1}, the end of the vocabulary; it was made with another tokenizer"
    if found == _LINE:
        return "the line does not end where the meta file's next offset is; make the meta file again"
    return f"{found} tokens, the meta file says {expected}; make the meta file again"


@njit(cache=True)
def parse(
    text: Bytes, starts: Int64, ends: Int64, counts: Int64, vocab_size: int, tokens: Marked
) -> tuple[int, int, int]:
    """Parse ftdp lines into one array of ids with bit 31 for loss, up to the first faulty line.

    Args:
        text: [bytes] the lines.
        starts: [lines] first byte of each line.
        ends: [lines] byte behind each line.
        counts: [lines] tokens of each line.
        vocab_size: absolute ids are below it.
        tokens: [sum of counts] is filled.
    Returns:
        Lines parsed; and where that is not all, the byte in the faulty line and the tokens found, or a negative code.
    """
    at = 0
    key = np.array([34, 116, 111, 107, 101, 110, 115, 34], np.uint8)  # "tokens"
    for line in range(starts.size):
        begin, end = starts[line], ends[line]
        if end < text.size and text[end - 1] != 10:
            return line, 0, -3
        i = _skip(text, begin, end)
        if i >= end or text[i] != 123:
            return line, i - begin, -1
        i = _skip(text, i + 1, end)
        for k in range(key.size):
            if i >= end or text[i] != key[k]:
                return line, i - begin, -1
            i += 1
        i = _skip(text, i, end)
        if i >= end or text[i] != 58:
            return line, i - begin, -1
        i = _skip(text, i + 1, end)
        if i >= end or text[i] != 91:
            return line, i - begin, -1
        i = _skip(text, i + 1, end)
        found = 0
        expected = counts[line]
        while i < end and text[i] != 93:
            if found:
                if text[i] != 44:
                    return line, i - begin, -1
                i = _skip(text, i + 1, end)
            negative = i < end and text[i] == 45
            if negative:
                i += 1
            value = np.int64(0)
            first = i
            while i < end:
                digit = np.int64(text[i]) - 48
                if digit < 0 or digit > 9:
                    break
                value = value * 10 + digit
                i += 1
            if i == first or (text[first] == 48 and i > first + 1):
                return line, i - begin, -1
            if value >= vocab_size or i > first + 10:
                return line, first - begin, -2
            if found < expected:
                tokens[at + found] = value if negative or value == 0 else value | 0x80000000
            found += 1
            i = _skip(text, i, end)
        if i >= end:
            return line, i - begin, -1
        i = _skip(text, i + 1, end)
        if i >= end or text[i] != 125:
            return line, i - begin, -1
        i += 1
        while i < end:
            if text[i] != 32 and text[i] != 9 and text[i] != 10 and text[i] != 13:
                return line, i - begin, -1
            i += 1
        if found != expected:
            return line, 0, found
        at += found
    return starts.size, 0, 0


@njit(cache=True, inline="always")
def _skip(text: Bytes, i: int, end: int) -> int:
    while i < end and (text[i] == 32 or text[i] == 9):
        i += 1
    return i
