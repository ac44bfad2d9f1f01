"""What a safetensors file says of its tensors: formats, shapes and places, without reading a number."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipelines.errors import CheckError

_WIDTH = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_LONGEST = 100 << 20  # bytes of a header, as the format has it


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
            if not 2 <= length <= min(_LONGEST, size - 8):
                raise ValueError("no header where one has to be")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            return {name: _entry(name, one, 8 + length, size) for name, one in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckError(f"{path}: cannot be read ({error}); it is no whole safetensors file, copy it again") from error


def _entry(name: str, said: Any, begin: int, size: int) -> Entry:
    first, last = (int(one) for one in said["data_offsets"])
    entry = Entry(str(said["dtype"]), tuple(int(one) for one in said["shape"]), begin + first, last - first)
    width = _WIDTH.get(entry.dtype)
    if width is not None and last - first != width * prod(entry.shape):
        raise ValueError(f"{name} has {last - first} bytes, its shape asks for {width * prod(entry.shape)}")
    if not 0 <= first <= last <= size - begin:
        raise ValueError(f"{name} ends at byte {begin + last}, the file at {size}")
    return entry
