"""What a safetensors file says of its tensors: formats, shapes and places, without reading a number."""

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipelines.errors import CheckError

_WIDTH = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
LONGEST = 100 << 20
"""Bytes of a header, as the format has it."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    dtype: str
    """As the file has it, such as BF16."""
    shape: tuple[int, ...]
    first: int
    """Byte of the file that it begins at."""
    size: int
    """Bytes."""


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name.

    Raises:
        CheckError: if it is not a whole safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LONGEST, size - 8):
                raise ValueError("no header where one has to be")
            header = json.loads(file.read(length), object_pairs_hook=_once_each)
            header.pop("__metadata__", None)
            found = {name: _entry(name, one, 8 + length, size) for name, one in header.items()}
            _refuse_overlap(found)
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckError(f"{path}: cannot be read ({error}); it is no whole safetensors file, copy it again") from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice} is there twice")
    return found


def _entry(name: str, said: Any, begin: int, size: int) -> Entry:
    first, last = _whole_numbers(name, said["data_offsets"])
    shape = tuple(_whole_numbers(name, said["shape"]))
    entry = Entry(str(said["dtype"]), shape, begin + first, last - first)
    width = _WIDTH.get(entry.dtype)
    if width is not None and last - first != width * prod(entry.shape):
        raise ValueError(f"{name} has {last - first} bytes, its shape asks for {width * prod(entry.shape)}")
    if not first <= last <= size - begin:
        raise ValueError(f"{name} ends at byte {begin + last}, the file at {size}")
    return entry


def _whole_numbers(name: str, said: Any) -> list[int]:
    if not isinstance(said, list) or not all(type(one) is int and one >= 0 for one in said):
        raise ValueError(f"{name} has a shape or a place of something else than whole numbers")
    return said


def _refuse_overlap(entries: dict[str, Entry]) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].first, item[1].size)):
        if entry.size and entry.first < end:
            raise ValueError(f"{name} begins at byte {entry.first}, within another tensor")
        end = max(end, entry.first + entry.size)
