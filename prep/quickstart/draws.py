"""Random choices that are a pure function of a key, the same on every machine and in every version."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Choices without end: SHA-256 of the key and a counter, read as 64-bit integers."""

    def __init__(self, *key: str | int) -> None:
        self._key = "/".join(map(str, key))
        self._integers = self._stream()

    def _stream(self) -> Iterator[int]:
        for block in count():
            digest = hashlib.sha256(f"{self._key}/{block}".encode()).digest()
            for start in range(0, len(digest), 8):
                yield int.from_bytes(digest[start : start + 8], "little")

    def below(self, limit: int) -> int:
        """An integer in 0..limit-1, as good as uniform: limit is tiny beside 2**64."""
        return next(self._integers) % limit

    def choose(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], number: int) -> tuple[T, ...]:
        """`number` different places of the options, in random order."""
        left = list(options)
        return tuple(left.pop(self.below(len(left))) for _ in range(number))
