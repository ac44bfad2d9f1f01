"""A JSON file that holds one array of objects; a .json file of JSON lines is read as such.

The array is never parsed as a whole: a scan for the commas between its elements cuts it, and each element is parsed
alone, so memory is bounded by the longest element.
"""

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

    Raises:
        RecordFault: on an element longer than max_bytes, text around the array, or an array that is not closed.
    """
    if not _is_array(path):
        yield from jsonl.records(path, begin, end, max_bytes=max_bytes)
        return
    with open_bytes(path) as file:
        if is_compressed(path):
            elements = _elements(file, None, first=True, last=True, max_bytes=max_bytes)
        else:
            file.seek(begin)
            last = end == path.stat().st_size
            elements = _elements(file, end - begin, first=begin == 0, last=last, max_bytes=max_bytes)
        for number, element in enumerate(elements):
            yield number, jsonl.parse(element, number)


def _is_array(path: Path) -> bool:
    with open_bytes(path) as file:
        return file.read(4096).lstrip(_SPACE).startswith(b"[")


def _elements(file: BinaryIO, left: int | None, *, first: bool, last: bool, max_bytes: int) -> Iterator[bytes]:
    """The texts between the boundaries of an array's elements, from a file positioned at a boundary."""
    state = np.array([0 if first else 1, 0, 0], np.int64)
    pending = bytearray()
    number = 0
    after_comma = not first
    while piece := file.read(_READ_BYTES if left is None else min(left, _READ_BYTES)):
        left = None if left is None else left - len(piece)
        begin = 0
        for place in _boundaries(np.frombuffer(piece, np.uint8), state).tolist():
            pending += piece[begin:place]
            begin = place + 1
            empty_array = piece[place] == _CLOSE and not after_comma and not number
            if piece[place] != _OPEN and not (empty_array and not pending.strip(_SPACE)):
                yield _within(pending, number, max_bytes).strip(_SPACE)
                number += 1
            after_comma = piece[place] == _COMMA
            pending.clear()
        pending += piece[begin:]
        if len(pending) > max_bytes:
            _within(pending, number, max_bytes)
    if state[0] == -1 and pending.strip(_SPACE):
        raise RecordFault(number, "not valid JSON: text follows the array; one file holds one array, or JSON lines")
    if last and state[0] != -1:
        raise RecordFault(number, "not valid JSON: the array is not closed; is the file complete?")


def _within(pending: bytearray, number: int, max_bytes: int) -> bytes:
    if len(pending) > max_bytes:
        raise lines.too_long(number, max_bytes)
    return bytes(pending)


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
