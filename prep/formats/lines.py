"""Lines of a text file, cut into chunks by bytes: what JSON lines and plain text are made of.

A line ends with LF or CR LF. A byte order mark at the beginning of the file is no part of its first line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from prep.formats.fault import RecordFault
from prep.formats.files import is_compressed, open_bytes, pass_byte_order_mark

CHUNK_BYTES = 4 << 20
"""Bytes per chunk: small enough to spread over workers, large enough to batch."""

_READ_BYTES = 1 << 17


def chunks(path: Path) -> list[tuple[int, int]]:
    """Byte ranges that cover the file; a range holds the lines that begin in it. A compressed file is one chunk."""
    size = path.stat().st_size
    if is_compressed(path):
        return [(0, size)]
    return [(begin, min(begin + CHUNK_BYTES, size)) for begin in range(0, size, CHUNK_BYTES)]


def lines(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[bytes | RecordFault]:
    """The lines that begin in begin..end, without their ends; a fault for one longer than max_bytes.

    Of a longer line little more than max_bytes are held.
    """
    number = 0
    for block in blocks(path, begin, end, max_bytes=max_bytes):
        for line in block:
            text = line.removesuffix(b"\r")
            yield text if len(text) <= max_bytes else too_long(number, max_bytes)
            number += 1


def blocks(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[list[bytes]]:
    """The lines that begin in begin..end, some at a time and without their line feeds.

    Of a line above max_bytes the end may be missing; it is passed over when the next lines are asked for, so nobody
    who stops there waits for it.
    """
    whole = is_compressed(path)
    with open_bytes(path) as file:
        position = begin
        if begin and not whole:
            # A line belongs to the chunk it begins in, so what runs over from the one before is passed over,
            # in bounded pieces: it may be longer than this chunk.
            file.seek(begin - 1)
            position = begin - 1 + _pass_over(file, end - begin + 1)
        elif not begin:
            position += pass_byte_order_mark(file)
        while whole or position < end:
            block = file.read(_READ_BYTES if whole else min(_READ_BYTES, end - position))
            if not block:
                return
            if not block.endswith(b"\n"):
                block += file.readline(min(max_bytes, _MOST) + 2)
            position += len(block)
            yield block.removesuffix(b"\n").split(b"\n")
            if not block.endswith(b"\n"):
                position += _pass_over(file, None)


_MOST = 1 << 40


def too_long(number: int, max_bytes: int) -> RecordFault:
    """The fault of a record above the limit."""
    return RecordFault(number, f"longer than prep.max_record_bytes = {max_bytes}; raise it if this is meant")


def _pass_over(file: BinaryIO, limit: int | None) -> int:
    """Read to the end of the line, or a little beyond `limit` bytes, and return the bytes read."""
    passed = 0
    while piece := file.readline(_READ_BYTES):
        passed += len(piece)
        if piece.endswith(b"\n") or (limit is not None and passed >= limit):
            break
    return passed
