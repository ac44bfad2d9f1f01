"""How large the record batches of an Arrow file are once they are decompressed, by what their messages say.

pyarrow decompresses a batch as soon as it is asked for one, so this is looked up before, in the messages' FlatBuffers.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

_FILE = 8
"""Bytes of a file's beginning, behind which it is a stream."""


def decompressed(path: Path) -> Iterator[tuple[int, int]]:
    """Of every batch and dictionary that is compressed, the bytes it has and those that it says it becomes.

    Raises:
        pyarrow.ArrowException: if the file is damaged.
    """
    with pa.memory_map(str(path)) as file:
        file.seek(_FILE if file.read(6) == b"ARROW1" else 0)
        messages = pa.ipc.MessageReader.open_stream(file)
        while True:
            try:
                message = messages.read_next_message()
            except (StopIteration, EOFError):
                return
            if message.type not in ("record batch", "dictionary"):
                continue
            try:
                full = _full_size(bytes(message.metadata), message.body, is_dictionary=message.type == "dictionary")
            except (struct.error, IndexError) as error:
                raise pa.ArrowInvalid(f"a message that does not fit together: {error}") from error
            if full is not None:
                yield message.body.size, full


def _full_size(metadata: bytes, body: Any, *, is_dictionary: bool) -> int | None:
    """Bytes of a batch's buffers; None where they are not compressed."""
    # Field numbers as in Arrow's Message.fbs: Message.header, DictionaryBatch.data, RecordBatch.compression, .buffers.
    table = _child(metadata, struct.unpack_from("<I", metadata)[0], 2)
    if is_dictionary and table is not None:
        table = _child(metadata, table, 1)
    if table is None or _field(metadata, table, 3) is None:
        return None
    vector = _child(metadata, table, 2)
    if vector is None:
        return 0
    (count,) = struct.unpack_from("<I", metadata, vector)
    full = 0
    for at in range(vector + 4, vector + 4 + 16 * count, 16):
        offset, length = struct.unpack_from("<qq", metadata, at)
        if length >= 8:  # of which the first say how long the rest becomes, or -1
            (size,) = struct.unpack_from("<q", body, offset)
            full += length if size < 0 else size
    return full


def _field(content: bytes, table: int, number: int) -> int | None:
    """Where a table has a field; None where it has none."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    (size,) = struct.unpack_from("<H", content, vtable)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", content, vtable + 4 + 2 * number)
    return table + offset if offset else None


def _child(content: bytes, table: int, number: int) -> int | None:
    """Where the table or vector is that a field refers to."""
    place = _field(content, table, number)
    return None if place is None else place + struct.unpack_from("<I", content, place)[0]
