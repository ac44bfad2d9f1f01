"""Where in the bytes of a file's line a character of its record stands."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prep.formats.files import is_compressed, open_bytes, pass_byte_order_mark
from prep.provenance import Field

_DECODER = json.JSONDecoder(strict=False)
_NUMBER = re.compile(rb"-?\d+")


def line_of(path: Path, begin: int, number: int) -> tuple[int, bytes]:
    """The byte at which a line begins, and the line; of a compressed file in its content.

    Args:
        begin: of the chunk.
        number: of the line, from the first that begins in the chunk.
    """
    with open_bytes(path) as file:
        at = 0
        if begin and not is_compressed(path):
            file.seek(begin - 1)
            at = begin - 1 + len(file.readline())
        else:
            at = pass_byte_order_mark(file)
        for _ in range(number):
            at += len(file.readline())
        return at, file.readline()


def in_json(line: bytes, field: Field) -> tuple[int, int] | None:
    """Begin and end within a JSON text, in bytes, of characters of one of its strings; None where it has it not."""
    try:
        text = line.decode("utf-8")
        at = _value(text, _skipped(text, 0), field.keys)
    except (ValueError, IndexError, UnicodeDecodeError):
        return None
    if text[at] != '"':
        return None
    at += 1
    places = []  # of each character of the string, and of its end
    while text[at] != '"':
        places.append(at)
        if text[at] != "\\":
            at += 1
        elif text[at + 1] != "u":
            at += 2
        else:
            pair = text[at + 2 : at + 4].lower() in ("d8", "d9", "da", "db") and text[at + 6 : at + 8] == "\\u"
            at += 12 if pair else 6
    places.append(at)
    if field.end >= len(places):
        return None
    begin, end = (len(text[: places[one]].encode()) for one in (field.begin, field.end))
    return begin, end


def in_tokens(line: bytes, token: int) -> tuple[int, int] | None:
    """Begin and end within a line of ftdp of one of its numbers."""
    found = list(_NUMBER.finditer(line))
    return found[token].span() if token < len(found) else None


def _value(text: str, at: int, keys: Sequence[str | int]) -> int:
    """Where the value that keys lead to begins."""
    for key in keys:
        at = _member(text, at, key) if isinstance(key, str) else _element(text, at, key)
    return at


def _member(text: str, at: int, key: str) -> int:
    at = _skipped(text, at + 1)
    while True:
        name, at = _DECODER.raw_decode(text, at)
        at = _skipped(text, _skipped(text, at) + 1)  # behind the colon
        if name == key:
            return at
        at = _skipped(text, _skipped(text, _end(text, at)) + 1)  # behind the comma


def _element(text: str, at: int, index: int) -> int:
    at = _skipped(text, at + 1)
    for _ in range(index):
        at = _skipped(text, _skipped(text, _end(text, at)) + 1)
    return at


def _end(text: str, at: int) -> int:
    end: Any
    _, end = _DECODER.raw_decode(text, at)
    return int(end)


def _skipped(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at
