"""A JSON file that holds one array of objects; a .json file of JSON lines is read as such.

The array is never parsed as a whole: a scan for the commas between its elements cuts it, and each element is parsed
alone, so memory is bounded by the longest element. A byte order mark before the array is passed over.
"""

from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from numba import njit

from prep.formats import jsonl, lines
from prep.formats.fault import Outcome, RecordFault
from prep.formats.files import is_compressed, open_bytes

CHUNK_BYTES = 4 << 20
"""Bytes per chunk, rounded up to a whole element."""

_READ_BYTES = 1 << 20
_SPACE = b" \t\r\n"

State = npt.NDArray[np.int64]
"""int64[3]: depth (0 before the array, -1 after it), inside a string, after a backslash."""


def chunks(path: Path) -> list[tuple[int, int]]:
    """Byte ranges of whole elements that cover the array. A compressed file is one chunk."""
    size = path.stat().st_size
    if is_compressed(path) or not _is_array(path):
        return lines.chunks(path)
    bounds = [0]
    state, position = np.zeros(3, np.int64), 0
    with open_bytes(path) as file:
        while piece := file.read(_READ_BYTES):
            for place in _boundaries(np.frombuffer(piece, np.uint8), state).tolist():
                after = position + place + 1
                if piece[place] == _COMMA and after - bounds[-1] >= CHUNK_BYTES:
                    bounds.append(after)
            position += len(piece)
    return list(pairwise([*bounds, size]))


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, Outcome]]:
    """Every element in begin..end: its number within the chunk, and its object, or a fault if it is not an object.

    An element longer than max_bytes is a fault as well, and so is one that is missing between two commas.

    Raises:
        RecordFault: on text around the array, or an array that is not closed.
    """
    if not _is_array(path):
        yield from jsonl.records(path, begin, end, max_bytes=max_bytes)
        return
    number = 0
    with open_bytes(path) as file:
        if is_compressed(path):
            found = _elements(file, None, first=True, last=True, max_bytes=max_bytes)
        else:
            file.seek(begin)
            last = end == path.stat().st_size
            found = _elements(file, end - begin, first=begin == 0, last=last, max_bytes=max_bytes)
        for elements in found:
            for outcome in jsonl.parse_all(elements, number, max_bytes=max_bytes):
                yield number, outcome or _faulty(outcome, number)
                number += 1


def _faulty(outcome: Outcome, number: int) -> Outcome:
    missing = RecordFault(number, "not valid JSON: a comma without an element; remove it")
    return missing if outcome is None else outcome


def _is_array(path: Path) -> bool:
    with open_bytes(path) as file:
        return file.read(4096).removeprefix(BOM_UTF8).lstrip(_SPACE).startswith(b"[")


def _elements(file: BinaryIO, left: int | None, *, first: bool, last: bool, max_bytes: int) -> Iterator[list[bytes]]:
    """The texts between the boundaries of an array's elements, some at a time, from a file positioned at a boundary.

    Of one longer than max_bytes little more than that is held, and it comes longer than max_bytes.
    """
    state = np.array([0 if first else 1, 0, 0], np.int64)
    pending = bytearray()
    number = 0
    after_comma = not first
    while piece := file.read(_READ_BYTES if left is None else min(left, _READ_BYTES)):
        left = None if left is None else left - len(piece)
        begin = 0
        found = []
        for place in _boundaries(np.frombuffer(piece, np.uint8), state).tolist():
            _append(pending, piece[begin:place], max_bytes)
            begin = place + 1
            empty_array = piece[place] == _CLOSE and not after_comma and not number
            if piece[place] != _OPEN and not (empty_array and not pending.strip(_SPACE)):
                found.append(bytes(pending if len(pending) > max_bytes else pending.strip(_SPACE)))
                number += 1
            after_comma = piece[place] == _COMMA
            pending.clear()
        _append(pending, piece[begin:], max_bytes)
        if found:
            yield found
    if state[0] == -1 and pending:
        raise RecordFault(number, "not valid JSON: text follows the array; one file holds one array, or JSON lines")
    if last and state[0] != -1:
        raise RecordFault(number, "not valid JSON: the array is not closed; is the file complete?")


def _append(pending: bytearray, piece: bytes, max_bytes: int) -> None:
    """Add to an element, but no space before it, and of what exceeds max_bytes only as much as shows that it does."""
    pending += piece if pending else piece.lstrip(_SPACE)
    del pending[max_bytes + 1 :]


_OPEN, _CLOSE, _COMMA = ord("["), ord("]"), ord(",")


@njit(cache=True)
def _boundaries(text: npt.NDArray[np.uint8], state: State) -> npt.NDArray[np.int64]:
    """Places of the outermost array's brackets and of the commas between its elements; `state` carries over."""
    depth, in_string, escaped = state
    places = np.empty(text.size, np.int64)
    found = 0
    for place in range(text.size):
        character = text[place]
        if escaped:
            escaped = 0
        elif in_string:
            if character == 92:  # backslash
                escaped = 1
            elif character == 34:  # quote
                in_string = 0
        elif depth < 0:
            break
        elif character == 34:
            in_string = 1
        elif character == 91 or character == 123:  # [ {
            if depth == 0:
                places[found] = place
                found += 1
            depth += 1
        elif character == 93 or character == 125:  # ] }
            depth -= 1
            if depth == 0:
                places[found] = place
                found += 1
                depth = -1
        elif character == 44 and depth == 1:  # comma
            places[found] = place
            found += 1
    state[0], state[1], state[2] = depth, in_string, escaped
    return places[:found].copy()
