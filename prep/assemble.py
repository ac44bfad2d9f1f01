"""Packs into shards: gathers the packed samples' tokens from the chunks and writes them as Arrow files.

A shard is a pure function of the plan and the chunks, so any process may write any of them in any order.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.artifacts import FileRecord, sync_directory
from pipelines.shards import Packs, Tokens, token_dtype, write_shard
from prep.packing import Packing
from prep.store import Samples


@dataclass(frozen=True)
class ShardFacts:
    """A shard that is on disk."""

    record: FileRecord
    """Path relative to the prep directory, size and digest."""
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

    Args:
        sequence: int64[samples in order], the number of the sample at each position that `packing` speaks of.
        folder: for this plan alone: a shard that is found there is taken for this plan's.
        vocabulary: ids are below it; up to 65,536 they take 16 bits.
        shard_tokens: a shard ends with the pack that reaches so many tokens.
        workers: processes, each holding one shard in memory. Any number gives the same bytes.
    """
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    jobs = _jobs(samples, sequence, packing, folder, token_dtype(vocabulary), shard_tokens)
    if workers == 1:
        yield from map(_write, jobs)
        return
    # Spawned, because a fork of a process whose libraries run threads can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running: deque[Future[ShardFacts]] = deque()
        try:
            for job in jobs:
                running.append(pool.submit(_write, job))
                if len(running) > workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Job:
    """One shard's part of the plan."""

    folder: Path
    number: int
    dtype: npt.DTypeLike
    token_files: list[Path]
    """The chunks it reads."""
    chunk: npt.NDArray[np.int32]
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
    dtype: npt.DTypeLike,
    shard_tokens: int,
) -> Iterator[_Job]:
    segment_ends = np.cumsum(packing.segments_per_pack, dtype=np.int64)
    token_ends = np.cumsum(packing.length, dtype=np.int64)[segment_ends - 1]
    first_pack = first_segment = number = 0
    written = 0
    while first_pack < packing.packs:
        end_pack = min(int(np.searchsorted(token_ends, written + shard_tokens)) + 1, packing.packs)
        end_segment = int(segment_ends[end_pack - 1])
        segments = slice(first_segment, end_segment)
        which = sequence[packing.sample[segments]]
        start = packing.start[segments]
        chunks, chunk = np.unique(samples.chunk[which], return_inverse=True)
        yield _Job(
            folder,
            number,
            dtype,
            [samples.token_files[i] for i in chunks],
            chunk.astype(np.int32),
            samples.offset[which] + start,
            packing.length[segments],
            packing.segments_per_pack[first_pack:end_pack],
            samples.file[which],
            samples.record[which],
            samples.start[which] + start.astype(np.uint32),
        )
        number += 1
        first_pack, first_segment, written = end_pack, end_segment, int(token_ends[end_pack - 1])


def _write(job: _Job) -> ShardFacts:
    path = job.folder / "shards" / f"shard-{job.number:05}.arrow"
    tokens, loss = _gather_all(job)
    temporary = path.with_name(f".{path.name}.tmp")
    packs = Packs(tokens, loss, job.lengths, job.segments_per_pack, job.file, job.record, job.start)
    write_shard(temporary, packs)
    temporary.replace(path)
    sync_directory(path.parent)
    return ShardFacts(
        FileRecord.of(job.folder, path),
        packs=job.segments_per_pack.size,
        segments=job.lengths.size,
        tokens=tokens.size,
        loss_tokens=int(np.count_nonzero(loss)),
        max_token_id=int(tokens.max(initial=0)),
    )


def _gather_all(job: _Job) -> tuple[Tokens, npt.NDArray[np.bool_]]:
    ends = np.cumsum(job.lengths, dtype=np.int64)
    tokens = np.empty(ends[-1], job.dtype)
    loss = np.empty(ends[-1], np.bool_)
    # Chunk by chunk and from front to back, so that a disk reads forward.
    order = np.lexsort((job.offset, job.chunk))
    bounds = np.searchsorted(job.chunk[order], np.arange(len(job.token_files) + 1))
    for chunk, path in enumerate(job.token_files):
        segments = order[bounds[chunk] : bounds[chunk + 1]]
        source = np.memmap(path, np.uint32, "r")
        _gather(
            source, job.offset[segments], job.lengths[segments], ends[segments] - job.lengths[segments], tokens, loss
        )
    return tokens, loss


@njit(cache=True)
def _gather(
    source: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    targets: npt.NDArray[np.int64],
    tokens: Tokens,
    loss: npt.NDArray[np.bool_],
) -> None:
    for segment in range(offsets.size):
        offset, target = offsets[segment], targets[segment]
        for i in range(lengths[segment]):
            token = source[offset + i]
            tokens[target + i] = token & 0x7FFFFFFF
            loss[target + i] = token >> 31
        loss[target] = False
