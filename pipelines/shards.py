"""The shard format: packs of token ids with their loss masks, in memory-mapped Arrow IPC files.

One row is one pack. Columns, without schema metadata (its bytes would depend on the Arrow version):

    input_ids   list<uint16>, or list<uint32> when the vocabulary exceeds 65,536
    loss_mask   binary, one bit a token, least significant first: set where the token is trained as a target
    cu_seqlens  list<int32>, 0, then the end of each segment; the last is the pack's length
    file        list<uint32>, per segment: index into the manifest's list of input files
    record      list<uint32>, per segment: record in that file, from 0
    start       list<uint32>, per segment: its first token within the sample (above 0 only where samples are cut)

Position ids and labels are derived. A bit of `loss_mask` belongs to the token itself, so the trainer shifts. The first
token of a segment is never a target, as nothing in its segment predicts it: its bit is always clear.

Attention ends where segments do, unless the manifest's fact `attention` says otherwise; see `Attention`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.artifacts import DigestedFile, FileRecord, Manifest, Stamps, digest_file, other_digest, stamp, sync_file
from pipelines.errors import DataError
from pipelines.failing_disk import is_storage_error

FORMAT_VERSION = 1
"""Raised whenever the same inputs give other bytes."""

PREPARED_BYTES = 2
"""Times the bytes of the inputs: tokens while they are prepared, and the shards. Text has about a token in 4 bytes, and
4 bytes a token, each time."""

IGNORE = -100
"""The label of a token that is not a target, as PyTorch and Transformers know it."""

_COLUMNS = ("input_ids", "loss_mask", "cu_seqlens", "file", "record", "start")
_SAME_FILE = 2
"""Of a stamp: device and inode."""

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def token_dtype(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    """The type of ids below `vocabulary`."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class Packs:
    """Consecutive packs, end to end: what one shard holds."""

    tokens: Tokens
    """[tokens]"""
    loss_mask: npt.NDArray[np.uint8]
    """[bytes] of `loss_bits`."""
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
class Attention:
    """What a document is: tokens that attend to each other, those before them alone, and count their positions.

    Without either key every segment is one.
    """

    across_samples: bool = False
    """A pack is one document. Where samples meet there is no target all the same."""
    window: int | None = None
    """Documents end after so many tokens and the next begins. Here the next document's first token can be a target,
    which the last one before it predicts: both are of one segment."""

    def documents(self, segments: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The documents' boundaries, int32[documents + 1], in a pack whose segments have these, int32[segments + 1]."""
        bounds = segments[[0, -1]] if self.across_samples else segments
        if self.window is None:
            return bounds
        pieces = -(-np.diff(bounds) // self.window)
        within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = np.repeat(bounds[:-1], pieces) + self.window * within
        return np.append(starts, bounds[-1]).astype(np.int32)


@dataclass(frozen=True)
class Pack:
    """One pack: segments end to end. All but `loss` are views of the memory map."""

    tokens: Tokens
    """[tokens]"""
    loss: npt.NDArray[np.bool_]
    """[tokens] whether the token is a target; a segment's first never is."""
    cu_seqlens: npt.NDArray[np.int32]
    """[documents + 1], strictly rising from 0: attention stays, and positions count, within a document."""
    segments: npt.NDArray[np.int32]
    """[segments + 1], strictly rising from 0: what `file`, `record` and `start` are about. Each is a document where
    the manifest does not say otherwise."""
    file: npt.NDArray[np.uint32]
    """[segments]"""
    record: npt.NDArray[np.uint32]
    """[segments]"""
    start: npt.NDArray[np.uint32]
    """[segments]"""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """[tokens] the token where it is a target, else IGNORE; not shifted."""
        labels = np.full(self.tokens.size, IGNORE, np.int64)
        np.copyto(labels, self.tokens, where=self.loss)
        return labels

    @property
    def positions(self) -> npt.NDArray[np.int32]:
        """[tokens] from 0 in every document."""
        return np.arange(self.tokens.size, dtype=np.int32) - np.repeat(self.cu_seqlens[:-1], np.diff(self.cu_seqlens))


def pack_ends(lengths: npt.NDArray[np.int32], segments_per_pack: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """int64[packs + 1]: 0, then the end of each pack in tokens."""
    return _ends(lengths)[_ends(segments_per_pack)]


def mask_ends(pack_ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64[packs + 1]: 0, then the end of each pack's loss mask in bytes; each begins on a byte of its own."""
    return _ends((np.diff(pack_ends) + 7) // 8)


def loss_bits(
    loss: npt.NDArray[np.bool_], lengths: npt.NDArray[np.int32], segments_per_pack: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    """The loss masks of consecutive packs, from one bool a token; first tokens of segments are left out."""
    loss = loss.copy()
    loss[np.cumsum(lengths) - lengths] = False
    packs = np.split(loss, pack_ends(lengths, segments_per_pack)[1:-1])
    return np.concatenate([np.packbits(pack, bitorder="little") for pack in packs])


def fill_pack(cu_seqlens: npt.NDArray[np.int32], tokens: int) -> bool:
    """Whether boundaries are those of segments end to end: 0, strictly rising, and the last at the pack's end.

    Kernels are launched with what this holds of, and read outside of their arrays with anything else.

    Args:
        cu_seqlens: int32[any].
    """
    return bool(
        cu_seqlens.size > 1
        and cu_seqlens[0] == 0
        and cu_seqlens[-1] == tokens
        and (cu_seqlens[1:] > cu_seqlens[:-1]).all()
    )


def fill_pack_reference(cu_seqlens: npt.NDArray[np.int32], tokens: int) -> bool:
    """`fill_pack` written the obvious way: slow, and right. The tests compare the two."""
    position = 0
    for place, boundary in enumerate(cu_seqlens.tolist()):
        if boundary != 0 if place == 0 else boundary <= position:
            return False
        position = boundary
    return cu_seqlens.size > 1 and position == tokens


def write_shard(path: Path, packs: Packs) -> str:
    """Write one shard and flush it to disk. Equal packs give equal bytes on every machine and Arrow version.

    Returns:
        The SHA-256 of the file.
    """
    token_ends, segment_ends = _ends(packs.lengths), _ends(packs.segments_per_pack)
    ends = token_ends[segment_ends]
    columns = [
        _lists(ends, packs.tokens),
        _binaries(mask_ends(ends), packs.loss_mask),
        _boundaries(segment_ends, token_ends, ends),
        _lists(segment_ends, packs.file),
        _lists(segment_ends, packs.record),
        _lists(segment_ends, packs.start),
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=list(_COLUMNS))
    with path.open("wb") as file, DigestedFile(file) as digester:
        with pa.ipc.new_file(digester, batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        sync_file(file.fileno())
        return digester.sha256()


def read_shard(path: Path) -> Packs:
    """What `write_shard` was given, as views of the memory map; of what holds together, not of its digest.

    Raises:
        DataError: if it is not a shard, or its columns do not belong together.
    """
    columns = _columns(path)
    (_, tokens), (_, loss_mask), (boundaries, cu_seqlens), (_, file), (_, record), (_, start) = columns
    if not all(_follow(offsets) for offsets, _ in columns) or not _fill_packs(columns):
        raise _damaged(path, "its packs do not follow each other")
    if any(values.size != cu_seqlens.size - boundaries.size + 1 for values in (file, record, start)):
        raise _damaged(path, "its columns do not belong together")
    return Packs(
        tokens=tokens,
        loss_mask=loss_mask,
        lengths=np.delete(np.diff(cu_seqlens), boundaries[1:-1] - 1),
        segments_per_pack=np.diff(boundaries) - 1,
        file=file,
        record=record,
        start=start,
    )


class ShardReader:
    """All packs of a prep directory, by index, read from memory maps without a copy.

    Part "train" is what is trained on, "eval" what prep.eval holds out.

    Opening takes the same time for any number of packs, and so does reaching any of them. A shard is compared with its
    digest before the first of its packs is given out.

    Args:
        seen: `Manifest.stamps` from before `Manifest.verify` looked at the files, which spares looking at them again
            unless they changed since.
    Raises:
        DataError: if there are no finished shards. Of reading: if a shard does not hold together.
        CheckError: of reading: if a shard's digest differs.
    """

    def __init__(self, folder: Path, part: Literal["train", "eval"] = "train", *, seen: Stamps | None = None) -> None:
        manifest = Manifest.read(folder)
        if manifest is None:
            raise DataError(f"{folder}: no finished prep output here; run `packtrain prep` first")
        if manifest.kind != "prep" or manifest.format_version != FORMAT_VERSION:
            raise DataError(
                f"{folder}: {manifest.kind or 'nothing'} of format {manifest.format_version}, this version reads "
                f"prep of format {FORMAT_VERSION}; run `packtrain prep` again"
            )
        facts = manifest.facts if part == "train" else manifest.facts.get("eval")
        if facts is None:
            raise DataError(f"{folder}: holds no samples back; set prep.eval.fraction and run `packtrain prep` again")
        self.manifest = manifest
        self._folder = folder
        shards = "shards/" if part == "train" else f"{part}/shards/"
        self._files = [record for record in manifest.files if record.path.startswith(shards)]
        if not _describes(manifest.facts, facts) or len(facts["packs_per_shard"]) != len(self._files):
            raise DataError(f"{folder}: its manifest does not say what its shards hold; run `packtrain prep` again")
        self._attention = Attention(**manifest.facts.get("attention", {}))
        self._firsts: list[int] = [0, *accumulate(facts["packs_per_shard"])]
        self._most: tuple[int, int] = manifest.facts["capacity"], manifest.facts["max_token_id"]
        self._seen: dict[str, tuple[int, ...] | None] = dict(seen or {})
        self._shards: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> Pack:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._firsts, index) - 1
        first, end = self._firsts[number : number + 2]
        if number not in self._shards:
            self._shards[number] = self._opened(self._files[number], packs=end - first)
        return self._shards[number][index - first]

    def refuse_changed(self) -> None:
        """Look again at shards whose files were written to since, also those that only other readers have opened.

        One that was replaced or removed is as it was where it is mapped, and looked at when it is opened.

        Raises:
            CheckError: naming a shard of which other bytes may have been read than its digest is of.
        """
        for record in self._files:
            seen = self._seen.get(record.path)
            now = stamp(self._folder / record.path) if seen else None
            if seen and now and now != seen and now[:_SAME_FILE] == seen[:_SAME_FILE]:
                self._look_at(record)

    def _opened(self, record: FileRecord, *, packs: int) -> "_Shard":
        path = self._folder / record.path
        while True:
            before = stamp(path)
            shard = _Shard(path, packs=packs, most=self._most, attention=self._attention)
            if before is None or before != self._seen.get(record.path):
                self._look_at(record)
            if self._seen[record.path] == before:
                return shard  # else another file has that name since it was mapped

    def _look_at(self, record: FileRecord) -> None:
        path = self._folder / record.path
        found = stamp(path)  # before the bytes: what changes during this is looked at again
        if path.stat().st_size != record.size or digest_file(path) != record.sha256:
            raise other_digest(path)
        self._seen[record.path] = found

    def place(self, index: int) -> tuple[str, int]:
        """The shard of a pack, as the manifest lists it, and which of its packs it is, from 0."""
        number = bisect_right(self._firsts, index) - 1
        return self._files[number].path, index - self._firsts[number]

    @property
    def shards(self) -> Sequence[FileRecord]:
        """[shards] the file of each, as the manifest lists it."""
        return self._files

    @property
    def packs_per_shard(self) -> list[int]:
        """[shards] packs of each."""
        return [end - first for first, end in pairwise(self._firsts)]

    def __iter__(self) -> Iterator[Pack]:
        return (self[index] for index in range(len(self)))


class _Shard:
    """One memory-mapped shard. Reading finds a damaged structure; a damaged token shows only in the file's digest."""

    def __init__(self, path: Path, *, packs: int, most: tuple[int, int], attention: Attention) -> None:
        self._path = path
        self._attention = attention
        self._most = most
        self._columns = _columns(self._path)
        (_, _, (_, boundaries), *origin) = self._columns
        rows = self._columns[0][0].size - 1
        if rows != packs:
            raise _damaged(self._path, f"{rows} packs, the manifest says {packs}")
        if any(values.size != boundaries.size - rows for _, values in origin):
            raise _damaged(self._path, "its columns do not belong together")

    def __getitem__(self, row: int) -> Pack:
        (token_ends, tokens), (mask_ends, masks), (ends, boundaries), (_, file), (_, record), (_, start) = self._columns
        tokens = tokens[token_ends[row] : token_ends[row + 1]]
        mask = masks[mask_ends[row] : mask_ends[row + 1]]
        segments = boundaries[ends[row] : ends[row + 1]]
        here = slice(ends[row] - row, ends[row + 1] - row - 1)  # a pack has one boundary more than segments
        if not (
            ends[row] >= row
            and token_ends[row] >= 0
            and fill_pack(segments, tokens.size)
            and mask.size == (tokens.size + 7) // 8
            and file[here].size == segments.size - 1
        ):
            raise _damaged(self._path, f"pack {row} does not hold together")
        capacity, largest = self._most
        if tokens.size > capacity:
            raise _damaged(self._path, f"pack {row} has {tokens.size} tokens, the manifest says {capacity} at most")
        if (found := int(tokens.max())) > largest:
            raise _damaged(self._path, f"pack {row} has the token id {found}, the manifest says {largest} at most")
        loss = np.unpackbits(mask, count=tokens.size, bitorder="little").view(np.bool_)
        documents = self._attention.documents(segments)
        return Pack(tokens, loss, documents, segments, file[here], record[here], start[here])


def _columns(path: Path) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[Any]]]:
    """Offsets and values of a shard's columns, memory-mapped.

    Raises:
        DataError: if it is not a shard, or only the beginning of one.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not _is_shard(reader.schema) or reader.num_record_batches != 1:
            raise _damaged(path, "not the columns of a shard")
        return [_offsets_and_values(column) for column in reader.get_batch(0).columns]
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        if isinstance(error, OSError) and is_storage_error(error):  # no fault of the shard
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise _damaged(path, f"not a shard ({error})") from error


def _follow(offsets: npt.NDArray[np.int32]) -> bool:
    """Whether each row of a column is some values behind those of the row before."""
    return bool(offsets[0] == 0 and (offsets[1:] > offsets[:-1]).all())


def _fill_packs(columns: list[tuple[npt.NDArray[np.int32], npt.NDArray[Any]]]) -> bool:
    """`fill_pack` of all packs of a shard, and whether the loss masks are theirs."""
    (token_ends, _), (mask_ends, _), (ends, boundaries), *_ = columns
    if not token_ends.size == mask_ends.size == ends.size:
        return False
    lengths = np.diff(token_ends)
    rising = boundaries[1:] > boundaries[:-1]
    rising[ends[1:-1] - 1] = True  # where a pack ends the next begins from 0
    return bool(
        (np.diff(ends) > 1).all()
        and (boundaries[ends[:-1]] == 0).all()
        and (boundaries[ends[1:] - 1] == lengths).all()
        and rising.all()
        and (np.diff(mask_ends) == (lengths + 7) // 8).all()
    )


def _describes(facts: Mapping[str, Any], part: Any) -> bool:
    """Whether facts are of the kinds that a reader takes apart: those of all packs, and those of a part of them."""
    attention, counts = facts.get("attention", {}), part.get("packs_per_shard") if isinstance(part, dict) else None
    numbers = [facts.get("capacity"), facts.get("max_token_id"), *(counts if isinstance(counts, list) else [None])]
    if not isinstance(attention, dict) or not attention.keys() <= {"across_samples", "window"}:
        return False
    window = attention.get("window")
    return (
        all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        and isinstance(attention.get("across_samples", False), bool)
        and (window is None or (type(window) is int and window > 0))
    )


def _damaged(path: Path, finding: str) -> DataError:
    return DataError(f"{path}: {finding}; it was changed or damaged, run `packtrain prep` again")


def _is_shard(schema: Any) -> bool:
    def lists(value: Any) -> Any:
        return pa.list_(value)

    ids, *rest = schema.types
    expected = [pa.binary(), lists(pa.int32()), *[lists(pa.uint32())] * 3]
    return tuple(schema.names) == _COLUMNS and rest == expected and ids in (lists(pa.uint16()), lists(pa.uint32()))


def _offsets_and_values(column: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    # From the buffers, since Arrow's own accessors trust a damaged file and read outside of it.
    dtype = np.dtype("uint8" if pa.types.is_binary(column.type) else str(column.type.value_type))
    buffers = column.buffers()
    offsets = np.frombuffer(buffers[1], np.int32, count=len(column) + 1)
    return offsets, np.frombuffer(buffers[-1], dtype, count=max(0, offsets[-1]))


def _ends(sizes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def _lists(ends: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> Any:
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(values))


def _binaries(ends: npt.NDArray[np.int64], values: npt.NDArray[np.uint8]) -> Any:
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), ends.size - 1, [None, offsets, pa.py_buffer(values)])


def _boundaries(
    segment_ends: npt.NDArray[np.int64], token_ends: npt.NDArray[np.int64], pack_ends: npt.NDArray[np.int64]
) -> Any:
    # Each pack has one boundary more than segments, counted from its own first token.
    packs = segment_ends.size - 1
    pack_of_end = np.repeat(np.arange(packs), np.diff(segment_ends))
    ends = np.zeros(pack_of_end.size + packs, np.int32)
    ends[np.arange(pack_of_end.size) + pack_of_end + 1] = token_ends[1:] - pack_ends[pack_of_end]
    return _lists(segment_ends + np.arange(packs + 1), ends)
