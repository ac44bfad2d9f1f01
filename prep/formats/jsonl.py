"""JSON lines: one object per line, UTF-8; blank lines are skipped but keep their number.

What JSON allows and data must not have is a fault: a key that stands twice in one object, and nesting deeper than
`repeated_keys.DEEPEST`. A byte order mark at the beginning of the file is passed over.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from prep.formats.encoding import not_utf8
from prep.formats.fault import Outcome, RecordFault
from prep.formats.lines import blocks, chunks, too_long
from prep.formats.repeated_keys import ALIKE, DEEP, DEEPEST, judge, repeated_key

__all__ = ["chunks", "parse_all", "records"]


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, Outcome]]:
    """Every line that begins in begin..end: its number within the chunk, and its object or None if it is blank.

    A line that is not one JSON object in UTF-8 of at most max_bytes is a fault.
    """
    number = 0
    for block in blocks(path, begin, end, max_bytes=max_bytes):
        for outcome in parse_all(block, number, max_bytes=max_bytes):
            yield number, outcome
            number += 1


def parse_all(texts: Sequence[bytes], number: int, *, max_bytes: int) -> Iterator[Outcome]:
    """The objects of consecutive texts, of which the first is record `number`; None for a blank one."""
    for one, verdict in zip(texts, judge(texts), strict=True):
        if len(one) > max_bytes and len(one.removesuffix(b"\r")) > max_bytes:
            yield too_long(number, max_bytes)
        else:
            yield _parse(one, number, verdict) if one.strip() else None
        number += 1


def _parse(text: bytes, number: int, verdict: int) -> dict[str, Any] | RecordFault:
    """The object of record `number`, or what is wrong with it and at which byte."""
    if verdict == DEEP:
        return RecordFault(number, f"nested deeper than {DEEPEST} objects and arrays; flatten it")
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return _invalid(text, number, error)
    if not isinstance(record, dict):
        return RecordFault(number, f"expected a JSON object, found {_kind(record)}", 1)
    if verdict == ALIKE and (repeated := repeated_key(text)):
        return RecordFault(
            number,
            f"the key {orjson.dumps(repeated.key).decode()} stands twice in one object, at byte {repeated.first + 1} "
            "already; keep one",
            repeated.byte + 1,
        )
    return record


def _invalid(text: bytes, number: int, error: orjson.JSONDecodeError) -> RecordFault:
    # orjson counts characters where the text is UTF-8, and gives 0 where it is not.
    try:
        characters = text.decode("utf-8")
    except UnicodeDecodeError as found:
        return RecordFault(number, not_utf8(text), found.start + 1)
    byte = len(characters[: error.pos].encode("utf-8")) + 1
    return RecordFault(number, f"not valid JSON: {error.msg}", byte)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
