"""JSON lines: one object per line, UTF-8; blank lines are skipped but keep their number."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from prep.formats.fault import Outcome, RecordFault
from prep.formats.lines import chunks, lines

__all__ = ["chunks", "parse", "records"]


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, Outcome]]:
    """Every line that begins in begin..end: its number within the chunk, and its object or None if it is blank.

    A line that is not one JSON object in UTF-8 of at most max_bytes is a fault.
    """
    for number, line in enumerate(lines(path, begin, end, max_bytes=max_bytes)):
        if isinstance(line, RecordFault):
            yield number, line
        else:
            yield number, parse(line, number) if line.strip() else None


def parse(text: bytes, number: int) -> dict[str, Any] | RecordFault:
    """The object of record `number`, or the byte at which the text stops being one."""
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return RecordFault(number, f"not valid JSON: {error.msg}", _byte(text, error.pos))
    if not isinstance(record, dict):
        return RecordFault(number, f"expected a JSON object, found {_kind(record)}", 1)
    return record


def _byte(text: bytes, characters: int) -> int:
    # orjson counts characters where the text is UTF-8, and gives 0 where it is not.
    try:
        return len(text.decode("utf-8")[:characters].encode("utf-8")) + 1
    except UnicodeDecodeError as error:
        return error.start + 1


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
