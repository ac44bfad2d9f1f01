"""The shard format: packs of token ids with their loss masks, in memory-mapped Arrow IPC files.

One row is one pack. Columns, without schema metadata (its bytes would depend on the Arrow version):

    input_ids   list<uint16>, or list<uint32> when the vocabulary exceeds 65,536
    loss_mask   binary, one bit a token, least significant first: set where the token is trained as a target
    cu_seqlens  list<int32>, 0, then the end of each segment; the last is the pack's length
    file        list<uint32>, per segment: index into the manifest's list of input files
    record      list<uint32>, per segment: record in that file, from 0
    start       list<uint32>, per segment: its first token within the sample (above 0 only where samples are cut)

Position ids and labels are derived. A bit of `loss_mask` belongs to the token itself, so the trainer shifts: the
first token of a segment is never a target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.artifacts import Manifest, sync_file
from pipelines.errors import DataError

FORMAT_VERSION = 1
"""Raised whenever the same inputs give other bytes."""

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def token_dtype(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    """The type of ids below `vocabulary`."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class Packs:
    """Consecutive packs, end to end: what one shard holds."""

    tokens: Tokens
    """[tokens]"""
    loss: npt.NDArray[np.bool_]
    """[tokens] whether the token is a target."""
    lengths: npt.NDArray[np.int32]
    """[segments] tokens of each segment."""
    segments_per_pack: npt.NDArray[np.int32]
    """[packs]"""
    file: npt.NDArray[np.uint32]
    """[segments]"""
    record: npt.NDArray[np.uint32]
    """[segments]"""
    start: npt.NDArray[np.uint32]
    """[segments]"""


@dataclass(frozen=True)
class Pack:
    """One pack: segments end to end."""

    tokens: Tokens
    """[tokens], a view of the memory map."""
    loss: npt.NDArray[np.bool_]
    """[tokens] whether the token is a target."""
    cu_seqlens: npt.NDArray[np.int32]
    """[segments + 1], strictly rising from 0."""
    file: npt.NDArray[np.uint32]
    record: npt.NDArray[np.uint32]
    start: npt.NDArray[np.uint32]


def write_shard(path: Path, packs: Packs) -> None:
    """Write one shard and flush it to disk. Equal packs give equal bytes on every machine and Arrow version."""
    token_ends = np.concatenate(([0], np.cumsum(packs.lengths, dtype=np.int64)))
    segment_ends = np.concatenate(([0], np.cumsum(packs.segments_per_pack, dtype=np.int64)))
    pack_ends = token_ends[segment_ends]
    columns = {
        "input_ids": _lists(pack_ends, packs.tokens),
        "loss_mask": _bits(pack_ends, packs.loss),
        "cu_seqlens": _boundaries(segment_ends, token_ends, pack_ends),
        "file": _lists(segment_ends, packs.file),
        "record": _lists(segment_ends, packs.record),
        "start": _lists(segment_ends, packs.start),
    }
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with path.open("wb") as file:
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        sync_file(file.fileno())


class ShardReader:
    """All packs of a prep directory, by index, read from memory maps without a copy."""

    def __init__(self, folder: Path) -> None:
        manifest = Manifest.read(folder)
        if manifest is None:
            raise DataError(f"{folder}: no finished prep output here; run `packtrain prep` first")
        if manifest.kind != "prep" or manifest.format_version != FORMAT_VERSION:
            raise DataError(
                f"{folder}: {manifest.kind} of format {manifest.format_version}, this version reads prep of format "
                f"{FORMAT_VERSION}; run `packtrain prep` again"
            )
        self.manifest = manifest
        self._paths = [folder / record.path for record in manifest.files if record.path.startswith("shards/")]
        self._ends = np.cumsum([0, *manifest.facts["packs_per_shard"]])
        self._open: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Pack:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right")) - 1
        if shard not in self._open:
            self._open[shard] = _Shard(self._paths[shard])
        return self._open[shard][index - int(self._ends[shard])]

    def __iter__(self) -> Iterator[Pack]:
        return (self[index] for index in range(len(self)))


class _Shard:
    """One memory-mapped shard."""

    def __init__(self, path: Path) -> None:
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: not a shard ({error}); run `packtrain prep` again") from error
        self._columns: Sequence[tuple[Any, Any]] = [_offsets_and_values(column) for column in batch.columns]

    def __getitem__(self, row: int) -> Pack:
        parts = [values[offsets[row] : offsets[row + 1]] for offsets, values in self._columns]
        tokens, bits, *rest = parts
        loss = np.unpackbits(bits, count=tokens.size, bitorder="little").view(np.bool_)
        return Pack(tokens, loss, *rest)


def _offsets_and_values(column: Any) -> tuple[Any, Any]:
    if pa.types.is_binary(column.type):
        _, offsets, data = column.buffers()
        return np.frombuffer(offsets, np.int32), np.frombuffer(data, np.uint8)
    return column.offsets.to_numpy(), column.values.to_numpy()


def _lists(ends: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> Any:
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(values))


def _boundaries(segment_ends: Any, token_ends: Any, pack_ends: Any) -> Any:
    # Each pack has one boundary more than segments, counted from its own first token.
    packs = segment_ends.size - 1
    pack_of_end = np.repeat(np.arange(packs), np.diff(segment_ends))
    ends = np.zeros(segment_ends[-1] + packs, np.int32)
    ends[np.arange(pack_of_end.size) + pack_of_end + 1] = token_ends[1:] - pack_ends[pack_of_end]
    return _lists(segment_ends + np.arange(packs + 1), ends)


def _bits(ends: npt.NDArray[np.int64], loss: npt.NDArray[np.bool_]) -> Any:
    # Each pack's bits start on a byte of their own, so that a row can be read alone.
    rows = [np.packbits(loss[begin:end], bitorder="little") for begin, end in pairwise(ends)]
    offsets = np.cumsum([0, *(row.size for row in rows)]).astype(np.int32)
    data = np.concatenate(rows) if rows else np.zeros(0, np.uint8)
    return pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
