"""JSON lines: one object per line, UTF-8; blank lines are skipped but keep their number."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from prep.formats.fault import RecordFault

CHUNK_BYTES = 4 << 20
"""Bytes per chunk: small enough to spread over workers, large enough to batch."""

_READ_BYTES = 1 << 20


def chunks(path: Path) -> list[tuple[int, int]]:
    """Byte ranges that cover the file; a range holds the lines that begin in it."""
    size = path.stat().st_size
    return [(begin, min(begin + CHUNK_BYTES, size)) for begin in range(0, size, CHUNK_BYTES)]


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of the lines that begin in begin..end, each with its line number within the chunk, from 0.

    Raises:
        RecordFault: on a line that is not one JSON object in UTF-8 of at most max_bytes.
    """
    for number, line in enumerate(lines(path, begin, end, max_bytes=max_bytes)):
        if line.isspace() or not line:
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise RecordFault(number, f"not valid JSON: {error.msg}", _byte(line, error.pos)) from error
        if not isinstance(record, dict):
            raise RecordFault(number, f"expected a JSON object, found {_kind(record)}", 1)
        yield number, record


def lines(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[bytes]:
    """The lines that begin in begin..end, without their line feeds."""
    with path.open("rb") as file:
        position = begin
        if begin:
            # A line belongs to the chunk it begins in, so what runs over from the one before is passed over,
            # in bounded pieces: it may be longer than this chunk.
            file.seek(begin - 1)
            position = begin - 1
            while piece := file.readline(_READ_BYTES):
                position += len(piece)
                if piece.endswith(b"\n") or position >= end:
                    break
        number = 0
        while position < end:
            line = file.readline(max_bytes + 2)
            if not line:
                return
            text = line.removesuffix(b"\n").removesuffix(b"\r")
            if len(text) > max_bytes:
                raise RecordFault(number, f"longer than prep.max_record_bytes = {max_bytes}; raise it if this is meant")
            position += len(line)
            number += 1
            yield text


def count(path: Path, begin: int, end: int) -> int:
    """Lines that begin in begin..end."""
    if begin >= end:
        return 0
    feeds = 0
    with path.open("rb") as file:
        file.seek(max(begin - 1, 0))
        left = end - max(begin - 1, 0) - 1  # a line feed at the last byte begins a line of the next chunk
        while left > 0 and (piece := file.read(min(left, _READ_BYTES))):
            feeds += piece.count(b"\n")
            left -= len(piece)
    return feeds + (begin == 0)


def _byte(line: bytes, characters: int) -> int:
    # orjson counts characters where the text is UTF-8, and gives 0 where it is not.
    try:
        return len(line.decode("utf-8")[:characters].encode("utf-8")) + 1
    except UnicodeDecodeError as error:
        return error.start + 1


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
