"""What the end of a Parquet file says of its columns, read without Arrow.

Arrow ends the process where Python asks it for a column of a damaged footer, so it is not asked.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.errors import DataError

_DEEPEST = 32  # lists and structs in one another; a footer has 8


class Column(NamedTuple):
    """A column of one row group."""

    path: str
    """In the schema, with a dot before each part of a list or struct."""
    full: int
    """Bytes uncompressed."""
    packed: int
    """Bytes compressed."""
    dictionary: int | None
    """Byte of the file that its dictionary begins at."""


def columns(path: Path) -> list[list[Column]]:
    """[row groups][columns]

    Raises:
        DataError: if the footer is damaged.
    """
    state = path.stat()
    return _columns(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _columns(path: Path, size: int, modified_ns: int) -> list[list[Column]]:
    del modified_ns
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        file.seek(max(0, size - 8 - length))
        footer = file.read(length)
    try:
        groups = _Thrift(footer).struct(0)[4]
        return [[_column(one[3]) for one in group[1]] for group in groups]
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise DataError(f"{path}: its footer is damaged ({type(error).__name__}); fetch the file again") from error


def _column(about: Mapping[int, Any]) -> Column:
    parts, full, packed, dictionary = about[3], about[6], about[7], about.get(11)
    if not all(isinstance(number, int) and 0 <= number < 1 << 63 for number in (full, packed, dictionary or 0)):
        raise ValueError("no size")
    return Column(".".join(part.decode("utf-8") for part in parts), full, packed, dictionary or None)


class _Thrift:
    """Values of the compact protocol, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Fields by number."""
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._whole()
            kind = head & 15
            found[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        match kind:
            case 1 | 2 | 3:  # a boolean in a list has a byte
                return self._byte()
            case 4 | 5 | 6:
                return self._whole()
            case 7:
                return struct.unpack("<d", self._bytes(8))[0]
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                head = self._byte()
                count = self._varint() if head >> 4 == 15 else head >> 4
                return [self._value(head & 15, depth + 1) for _ in range(self._bounded(count))]
            case 11:
                count = self._bounded(self._varint())
                kinds = self._byte() if count else 0
                return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(count)]
            case 12:
                return self.struct(depth + 1)
        raise ValueError(f"type {kind}")

    def _bounded(self, count: int) -> int:
        if count > len(self._data) - self._at:
            raise ValueError("more elements than bytes")
        return count

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, size: int) -> bytes:
        self._at += self._bounded(size)
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a number of more than 64 bits")

    def _whole(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
