"""Keys that stand twice in one object of a JSON text, which parsers drop in silence.

Nearly every text is cleared by a kernel that reads it about as fast as memory gives it; the few in which two keys look
alike are looked at again in Python, which also finds the place.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

DEEPEST = 100
"""Objects and arrays around a value at most; a fixed number, so that no stack of any machine decides."""

FINE, ALIKE, DEEP = 0, 1, 2

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

_MANY = 256
"""Keys of one object above which it is looked at again in Python: comparing each with each would take too long."""


def judge(texts: Sequence[bytes]) -> list[int]:
    """Look for repeated keys and deep nesting in many JSON texts, which need not be valid.

    Returns:
        [texts] FINE: no object has a key twice; ALIKE: `repeated_key` has to look; DEEP: nested above DEEPEST. Of a
        text that is not valid JSON any of them.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(sizes + 1) - 1
    joined = np.frombuffer(b"\n".join([*texts, bytes(8)]), np.uint8)  # whole words reach beyond the last text
    words = joined[: joined.size // 8 * 8].view("<u8")
    verdicts: list[int] = _judge(joined, words, ends - sizes, ends).tolist()
    return verdicts


@dataclass(frozen=True)
class Repeated:
    """A key's second place in an object."""

    key: str
    byte: int
    """Of the second place, from 0."""
    first: int
    """Byte of the first place, from 0."""


_TOKEN = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"(?:[ \t\r\n]*+(:))?|[{}\[\]]', re.DOTALL)


def repeated_key(text: bytes) -> Repeated | None:
    """The first key of a valid JSON text that its object has already; keys are compared as their characters."""
    around: list[dict[str, int]] = []
    for token in _TOKEN.finditer(text):
        character = text[token.start()]
        if character in b"{[":
            around.append({})
        elif character in b"}]":
            around.pop()
        elif token[2]:
            key: str = json.loads(f'"{token[1].decode("utf-8")}"', strict=False)
            first = around[-1].setdefault(key, token.start())
            if first != token.start():
                return Repeated(key, token.start(), first)
    return None


_BYTES = np.uint64(0x0101010101010101)
_LOW = np.uint64(0x7F7F7F7F7F7F7F7F)
_SPACES = np.uint64(32) * _BYTES
_QUOTES = np.uint64(34) * _BYTES
_BACKSLASHES = np.uint64(92) * _BYTES
_OPENING = np.uint64(123) * _BYTES
_CLOSING = np.uint64(125) * _BYTES
_ONE = np.uint64(1)


@njit(cache=True)
def _judge(text: Bytes, words: Words, starts: Int64, ends: Int64) -> npt.NDArray[np.uint8]:
    # Quotes, backslashes and brackets are found eight bytes at a time; no other byte is looked at alone.
    verdicts = np.zeros(starts.size, np.uint8)
    hashes = np.empty((DEEPEST + 1) * _MANY, np.uint64)  # of the keys of every open object, one after the other
    first = np.zeros(DEEPEST + 1, np.int64)  # where those of each begin
    for number in range(starts.size):
        start, end = starts[number], ends[number]
        depth = top = 0
        begin = np.int64(-1)  # of the string that is open
        literal = np.int64(-1)  # the byte behind a backslash
        escaped = False
        for at in range(start >> 3, (end + 7) >> 3):
            found = _special(words[at])
            while found:
                lowest = found & (~found + _ONE)
                found ^= lowest
                place = (at << 3) - 1 + np.int64((((lowest - _ONE) & _BYTES) * _BYTES) >> np.uint64(56))
                if place < start or place >= end or place == literal:
                    continue
                character = text[place]
                if begin >= 0:
                    if character == 92:  # backslash
                        literal = place + 1
                        escaped = True
                    elif character == 34:  # quote
                        if _is_key(text, place + 1, end):
                            key = _hash(text, begin, place)
                            alike = escaped or top - first[depth] >= _MANY
                            for other in range(first[depth], top):
                                alike |= hashes[other] == key
                            if alike:  # depth still counts: nobody looks again at what is refused anyway
                                verdicts[number] = ALIKE
                                top = first[depth]
                            hashes[top] = key
                            top += 1
                        begin = np.int64(-1)
                        escaped = False
                elif character == 34:
                    begin = place + 1
                elif character == 123 or character == 91:  # { [
                    depth += 1
                    if depth > DEEPEST:
                        break
                    first[depth] = top
                elif depth and character != 92:  # } ]
                    top = first[depth]
                    depth -= 1
            if depth > DEEPEST:
                verdicts[number] = DEEP
                break
    return verdicts


@njit(cache=True, inline="always")
def _special(word: Any) -> Any:
    """The highest bit of every byte that is a quote, a backslash or a bracket of an object or an array."""
    folded = word | _SPACES  # makes { of [ and } of ], and a brace of nothing else
    return _zero(word ^ _QUOTES) | _zero(word ^ _BACKSLASHES) | _zero(folded ^ _OPENING) | _zero(folded ^ _CLOSING)


@njit(cache=True, inline="always")
def _zero(word: Any) -> Any:
    """The highest bit of every byte that is zero."""
    return ~(((word & _LOW) + _LOW) | word | _LOW)


@njit(cache=True, inline="always")
def _is_key(text: Bytes, place: int, end: int) -> bool:
    """Whether a colon follows a string that ends before `place`."""
    while place < end and (text[place] == 32 or text[place] == 9 or text[place] == 10 or text[place] == 13):
        place += 1
    return place < end and text[place] == 58


@njit(cache=True, inline="always")
def _hash(text: Bytes, begin: int, end: int) -> Any:
    key = np.uint64(14695981039346656037)
    for place in range(begin, end):
        key = (key ^ np.uint64(text[place])) * np.uint64(1099511628211)
    return key
