"""Packs into shards: gathers the packed samples' tokens from the chunks and writes them as Arrow files.

A shard is a pure function of the plan and the chunks, so any process may write any of them in any order.
"""

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.artifacts import FileRecord, digest_file, write_atomic
from pipelines.errors import DataError, MachineError
from pipelines.shards import Packs, mask_ends, pack_ends, read_shard, token_dtype, write_shard
from prep.gather import Marked, gather
from prep.packing import Packing
from prep.pool import pool
from prep.store import Samples

MAPPED_CHUNKS = 16_384
"""Chunks a process keeps mapped; Linux allows 65,530 mappings."""


@dataclass(frozen=True)
class ShardFacts:
    """A shard that is on disk."""

    record: FileRecord
    """Path relative to the folder that was given, size and digest."""
    packs: int
    segments: int
    tokens: int
    loss_tokens: int
    """Tokens that are targets; a segment's first token never is."""
    max_token_id: int


def assemble(
    samples: Samples,
    sequence: npt.NDArray[np.int64],
    packing: Packing,
    folder: Path,
    *,
    vocabulary: int,
    shard_tokens: int,
    workers: int,
) -> Iterator[ShardFacts]:
    """Write folder/shards/shard-00000.arrow and the following, and yield each as it is finished, in order.

    A shard has its name only once it is whole and on disk, and none is written twice: what an interrupted call has
    finished, the next one takes over, if it is as it was written.

    Args:
        sequence: int64[samples in order], the number of the sample at each position that `packing` speaks of.
        folder: for this plan and these samples alone.
        vocabulary: ids are below it; up to 65,536 they take 16 bits.
        shard_tokens: a shard ends with the pack that reaches so many tokens.
        workers: processes, each holding one shard in memory. Any number gives the same bytes.
    Raises:
        DataError: for a chunk that is shorter than its samples.
        MachineError: when the disk is full or a process was killed.
    """
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    jobs = _jobs(samples, sequence, packing, folder, token_dtype(vocabulary), shard_tokens)
    if workers <= 1:
        try:
            yield from map(_write, jobs)
        finally:
            _chunk.cache_clear()
        return
    try:
        with pool(workers) as processes:
            # Only as many as are at work: a job holds its shard's part of the plan.
            yield from processes.in_order(_write, jobs, ahead=workers)
    except BrokenProcessPool as error:
        raise MachineError(
            "a worker process died while writing shards, probably out of memory; lower prep.workers or "
            "prep.output.shard_tokens"
        ) from error


def forget_digests(*folders: Path) -> None:
    """Take away what `assemble` noted beside its shards, once a manifest has it."""
    for folder in folders:
        for noted in (folder / "shards").glob(".*.sha256"):
            noted.unlink()


@dataclass(frozen=True)
class _Job:
    """One shard's part of the plan."""

    folder: Path
    number: int
    dtype: type[np.uint16] | type[np.uint32]
    token_files: list[Path]
    """The chunks it reads."""
    chunk: npt.NDArray[np.int64]
    """[segments] index into token_files."""
    offset: npt.NDArray[np.int64]
    """[segments] first token within the chunk."""
    lengths: npt.NDArray[np.int32]
    segments_per_pack: npt.NDArray[np.int32]
    file: npt.NDArray[np.uint32]
    record: npt.NDArray[np.uint32]
    start: npt.NDArray[np.uint32]
    """[segments] first token within the record."""


def _jobs(
    samples: Samples,
    sequence: npt.NDArray[np.int64],
    packing: Packing,
    folder: Path,
    dtype: type[np.uint16] | type[np.uint32],
    shard_tokens: int,
) -> Iterator[_Job]:
    segment_ends = np.cumsum(packing.segments_per_pack, dtype=np.int64)
    token_ends = np.cumsum(np.add.reduceat(packing.length, segment_ends - packing.segments_per_pack, dtype=np.int64))
    first_pack = first_segment = number = written = 0
    while first_pack < packing.packs:
        end_pack = min(int(np.searchsorted(token_ends, written + shard_tokens)) + 1, packing.packs)
        end_segment = int(segment_ends[end_pack - 1])
        segments = slice(first_segment, end_segment)
        which = sequence[packing.sample[segments]]
        start = packing.start[segments]
        chunk = samples.chunk[which]
        chunks = np.unique(chunk)
        yield _Job(
            folder,
            number,
            dtype,
            token_files=[samples.token_files[i] for i in chunks],
            chunk=np.searchsorted(chunks, chunk),
            offset=samples.offset[which] + start,
            lengths=packing.length[segments],
            segments_per_pack=packing.segments_per_pack[first_pack:end_pack],
            file=samples.file[which],
            record=samples.record[which],
            start=samples.start[which] + start.astype(np.uint32),
        )
        number += 1
        first_pack, first_segment, written = end_pack, end_segment, int(token_ends[end_pack - 1])


def _write(job: _Job) -> ShardFacts:
    path = job.folder / "shards" / f"shard-{job.number:05}.arrow"
    beside = _digest_of(path)
    finished = _finished(job, path)
    if finished is not None and beside.is_file() and (sha256 := digest_file(path)) == beside.read_text():
        return _facts(job, path, finished, sha256, largest=int(finished.tokens.max()))
    packs, largest = _gather(job)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        sha256 = write_shard(temporary, packs)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # in another process, which tells where
    temporary.replace(path)
    write_atomic(beside, sha256.encode())
    return _facts(job, path, packs, sha256, largest=largest)


def _digest_of(path: Path) -> Path:
    """Where the digest of a shard is noted, as it was written, until all of them are there."""
    return path.with_name(f".{path.name}.sha256")


def _finished(job: _Job, path: Path) -> Packs | None:
    """The shard's packs, if an interrupted call has written them."""
    try:
        packs = read_shard(path)
    except DataError:
        return None
    traces = ("lengths", "segments_per_pack", "file", "record", "start")
    return packs if all(np.array_equal(getattr(packs, name), getattr(job, name)) for name in traces) else None


def _facts(job: _Job, path: Path, packs: Packs, sha256: str, *, largest: int) -> ShardFacts:
    return ShardFacts(
        FileRecord(path.relative_to(job.folder).as_posix(), path.stat().st_size, sha256),
        packs=packs.segments_per_pack.size,
        segments=packs.lengths.size,
        tokens=packs.tokens.size,
        loss_tokens=int(np.bitwise_count(packs.loss_mask).sum()),
        max_token_id=largest,
    )


def _gather(job: _Job) -> tuple[Packs, int]:
    """The shard's packs, and the largest token id in them."""
    places = np.cumsum(job.lengths, dtype=np.int64) - job.lengths
    ends = pack_ends(job.lengths, job.segments_per_pack)
    masks = mask_ends(ends)
    bits = places + np.repeat(8 * masks[:-1] - ends[:-1], job.segments_per_pack)
    tokens = np.empty(ends[-1], job.dtype)
    loss_mask = np.zeros(masks[-1], np.uint8)
    # Chunk by chunk and each from front to back, so that a disk is read forward.
    order = np.argsort(job.chunk << 40 | job.offset)
    offset, lengths, places, bits = job.offset[order], job.lengths[order], places[order], bits[order]
    bounds = np.searchsorted(job.chunk[order], np.arange(len(job.token_files) + 1)).tolist()
    largest = 0
    for chunk, path in enumerate(job.token_files):
        here = slice(bounds[chunk], bounds[chunk + 1])
        try:
            found = gather(
                _chunk(path),
                offset[here],
                lengths[here],
                places=places[here],
                bits=bits[here],
                tokens=tokens,
                loss_mask=loss_mask,
            )
        except ValueError as error:
            raise DataError(f"{path}: {error}; delete {path.parent} and run `packtrain prep` again") from error
        largest = max(largest, found)
    packs = Packs(tokens, loss_mask, job.lengths, job.segments_per_pack, job.file, job.record, job.start)
    return packs, largest


@lru_cache(MAPPED_CHUNKS)
def _chunk(path: Path) -> Marked:
    # A plain array: a slice of a np.memmap costs as much as copying the segment.
    return np.memmap(path, np.uint32, "r").view(np.ndarray)
