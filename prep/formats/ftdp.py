"""ftdp, the token files of InternEvo and XTuner: `X.bin` of JSON lines and `X.bin.meta` of their offsets.

A line is `{"tokens": [...]}`; a token without loss is written negated, so id 0 never carries loss. The meta file is
a NumPy array with a row per line: byte offset of the line first, number of tokens last (int32 or int64; an empty one
is float64 of shape (0,)). A symlinked X.bin has its meta beside the target.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import intrinsic

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


def read_meta(path: Path, begin: int = 0, end: int | None = None) -> tuple[Int64, Int64]:
    """Byte offset and number of tokens of the lines begin..end of a .bin file, or of all.

    Only those rows are read and checked, so that a chunk costs the same in a small file and in a large one.

    Raises:
        DataError: if the meta file is missing, not an array of rows, or cannot belong to this .bin.
    """
    where = meta_path(path)
    try:
        rows = np.lib.format.open_memmap(where, mode="r")
    except FileNotFoundError as error:
        raise DataError(f"{where}: missing; an ftdp .bin file needs its .meta beside it") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{where}: not a NumPy array ({error}); make it again with the tool that wrote {path}"
        ) from error
    if rows.size == 0:
        if size := path.stat().st_size:
            raise DataError(f"{where}: has no row, but {path.name} has {size} bytes; make the meta file again")
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected integer rows of (byte offset, tokens), found {rows.dtype} of shape {rows.shape}"
        )
    offsets, tokens = rows[begin:end, 0].astype(np.int64), rows[begin:end, -1].astype(np.int64)
    size = path.stat().st_size
    wrong = np.flatnonzero((np.diff(offsets, prepend=-1) <= 0) | (offsets < 0) | (offsets >= size) | (tokens < 0))
    if wrong.size:
        row = int(wrong[0])
        raise DataError(
            f"{where}: row {begin + row} is (offset {offsets[row]}, {tokens[row]} tokens); expected rising offsets "
            f"below the {size} bytes of {path.name}"
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
    offsets, counts = read_meta(path, begin, end + 1)  # the row behind the last line says where it ends
    if begin == 0 and offsets[0] != 0:
        raise DataError(f"{meta_path(path)}: puts the first line at byte {offsets[0]}, not 0; make the meta file again")
    first = int(offsets[0])
    last = int(offsets[end - begin]) if end - begin < offsets.size else path.stat().st_size
    text: Bytes = np.memmap(path, np.uint8, "r", offset=first, shape=(last - first,))
    starts = offsets[: end - begin] - first
    return Lines(text, starts, np.append(starts[1:], last - first), counts[: end - begin])


def samples(path: Path, begin: int, end: int, *, vocab_size: int) -> Iterator[tuple[int, Marked | RecordFault]]:
    """The lines begin..end, each with its number within the chunk and its tokens, bit 31 set where loss is taken.

    A line that is not `{"tokens": [...]}`, has another count than the meta file says, or an id outside the vocabulary
    is a fault.
    """
    part = lines(path, begin, end)
    room, tokens = _room(part)
    bounds = [0, *np.cumsum(room).tolist()]
    row = 0
    while row < part.counts.size:
        good, byte, found = parse(
            part.text, part.starts[row:], part.ends[row:], room[row:], vocab_size, tokens[bounds[row] :]
        )
        for sample in range(row, row + good):
            yield sample, tokens[bounds[sample] : bounds[sample + 1]]
        row += good
        if row < part.counts.size:
            yield row, RecordFault(row, _finding(found, int(part.counts[row]), vocab_size), byte + 1)
            row += 1


def all_samples(path: Path, begin: int, end: int, *, vocab_size: int) -> tuple[Marked, Int64] | None:
    """The tokens of the lines begin..end, end to end, and how many each line has; None if any line is faulty."""
    part = lines(path, begin, end)
    room, tokens = _room(part)
    good, _, _ = parse(part.text, part.starts, part.ends, room, vocab_size, tokens)
    return (tokens, part.counts) if good == part.counts.size else None


def _room(part: Lines) -> tuple[Int64, Marked]:
    """Tokens to expect of each line, and an array for all of them.

    A line of n tokens has at least 2n characters, so a meta file cannot make this allocate more than the file.
    """
    room = np.where(part.counts * 2 > part.ends - part.starts, 0, part.counts)
    return room, np.empty(int(room.sum()), np.uint32)


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
    gap = 1  # spaces behind a comma, as the line before had them
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
        while i < end and (found > 0 or text[i] != 93):  # at the first byte of a token
            i, filled = _plain_tokens(text, i, end, gap, vocab_size, tokens, at + found, at + expected)
            found = filled - at
            i = _skip(text, i, end)
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
            if i >= end or text[i] == 93:
                break
            if text[i] != 44:
                return line, i - begin, -1
            after = _skip(text, i + 1, end)
            gap = min(after - i - 1, 1)
            i = after
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


@njit(cache=True)
def _plain_tokens(
    text: Bytes, begin: int, end: int, gap: int, vocab_size: int, tokens: Marked, place: int, stop: int
) -> tuple[int, int]:
    """Parse tokens as json.dumps writes them, `-?[1-9][0-9]{0,6},` and `gap` spaces, as long as they look so.

    Nothing here is a fault: `parse` reads on where this stops. Eight bytes at a time and a branch only where it stops,
    since signs and numbers of digits are not to be predicted.

    Args:
        begin: first byte of a token.
        end: byte behind the line; its last ten bytes are left to `parse`, so that no load reaches behind it.
        gap: 0 or 1.
        place: where in `tokens` the first one goes.
        stop: where in `tokens` the line's room ends.
    Returns:
        The byte behind the last separator taken, and the place behind the last token.
    """
    i, to, behind = np.uint64(begin), np.uint64(place), np.uint64(max(stop, 0))  # unsigned: no index counts from behind
    last = np.uint64(max(end - 10, 0))
    step, vocabulary = np.uint64(1 + gap), np.uint64(vocab_size)
    separator = np.uint64(0x202C if gap else 0x2C)
    compared = np.uint64(0xFFFF if gap else 0xFF)
    while to < behind and i <= last and end >= 10:
        word = _eight_bytes(text, i)
        # Digits have bit 4, a comma has not; the first byte is a digit or the sign.
        size = _trailing_zeros(~word & np.uint64(0x1010101010101000)) >> np.uint64(3)
        negative = np.uint64((word & np.uint64(0xFF)) == np.uint64(45))
        digits = (word ^ np.uint64(0x3030303030303030)) & ~(negative * np.uint64(0xFF))
        digits <<= (np.uint64(64) - (size << np.uint64(3))) & np.uint64(63)  # the last one on top, zeros below
        if ((digits + np.uint64(0x0606060606060606)) | digits) & np.uint64(0xF0F0F0F0F0F0F0F0):
            break
        if (word >> (negative << np.uint64(3))) & np.uint64(0xFF) < np.uint64(49):
            break  # 0, which has rules of its own, or a sign alone
        # Pairs of digits, then fours, then eight: each product adds a lane to ten, a hundred, ten thousand of the next.
        value = (digits * np.uint64(10 << 8 | 1)) >> np.uint64(8)
        value = ((value & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(100 << 16 | 1)) >> np.uint64(16)
        value = ((value & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(10_000 << 32 | 1)) >> np.uint64(32)
        if value >= vocabulary:
            break
        comma = i + size
        if _two_bytes(text, comma) & compared != separator:
            break
        tokens[to] = np.uint32(value | ((negative ^ np.uint64(1)) << np.uint64(31)))
        to += np.uint64(1)
        i = comma + step
    return np.int64(i), np.int64(to)  # type: ignore[return-value]  # numba's int


@intrinsic
def _eight_bytes(_: Any, text: Any, i: Any) -> Any:
    """Little-endian, from anywhere: of eight loads of a byte numba makes one load only now and then."""
    return types.uint64(text, i), partial(_load, types.uint64)


@intrinsic
def _two_bytes(_: Any, text: Any, i: Any) -> Any:
    return types.uint64(text, i), partial(_load, types.uint16)


def _load(kind: Any, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    place = builder.bitcast(builder.gep(data, [arguments[1]]), context.get_value_type(kind).as_pointer())
    return context.cast(builder, builder.load(place, align=1), kind, types.uint64)


@intrinsic
def _trailing_zeros(_: Any, word: Any) -> Any:
    """64 for 0."""

    def count(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], context.get_constant(types.boolean, 0))

    return types.uint64(word), count


def parse_reference(line: bytes, count: int, vocab_size: int) -> list[int] | tuple[int, int]:
    """One line of `parse` written the obvious way: its marked ids, or the byte and the finding of its fault."""
    at = 0

    def spaces() -> None:
        nonlocal at
        while line[at : at + 1] in (b" ", b"\t"):
            at += 1

    def take(expected: bytes) -> bool:
        nonlocal at
        for byte in expected:
            if line[at : at + 1] != bytes([byte]):
                return False
            at += 1
        return True

    for part in (b"{", b'"tokens"', b":", b"["):
        spaces()
        if not take(part):
            return at, _SYNTAX
    spaces()
    ids: list[int] = []
    while not take(b"]"):
        if ids:
            if not take(b","):
                return at, _SYNTAX
            spaces()
        negative = take(b"-")
        digits = re.compile(rb"[0-9]*").match(line, at)
        assert digits is not None
        written = digits[0].decode()
        if not written or (written[0] == "0" and len(written) > 1):
            return digits.end(), _SYNTAX
        if int(written) >= vocab_size:
            return at, _ID
        at = digits.end()
        ids.append(int(written) | (0 if negative or not int(written) else 1 << 31))
        spaces()
    spaces()
    if not take(b"}"):
        return at, _SYNTAX
    rest = line[at:].lstrip(b" \t\n\r")
    if rest:
        return len(line) - len(rest), _SYNTAX
    return ids if len(ids) == count else (0, len(ids))
