"""Records to tokenized samples on disk, chunk by chunk, on any number of processes and machines.

A chunk is a pure function of its input file and `Rules`, and its directory appears by rename. So worker count and
scheduling change no byte, and a run that was killed tokenizes only the chunks it had not finished.
"""

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import DataError, MachineError
from pipelines.failing_disk import is_storage_error
from pipelines.progress import progress_bar
from prep.backend import Backend
from prep.chunk import Chunk, Rules, count_records
from prep.executors import Execute
from prep.formats.fault import RecordFault
from prep.gate import distrusted, settled
from prep.store import Samples, counts_of, rows_of, tokens_of


@dataclass(frozen=True)
class Tokenized:
    """What became of all records."""

    samples: Samples
    dropped: Counter[str]
    """Records or pieces left out, and records cut, by reason."""
    rejects: Sequence[Mapping[str, Any]]
    """Faulty records that were skipped: source, path, record, byte and reason."""
    records: int
    backend: Mapping[str, str] = field(default_factory=dict)
    """Which library made the ids; they would be the same by another."""
    chunks: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    """[chunks, 4] of each its file, its begin and end in bounds of the format, and its records."""


def tokenize(chunks: Sequence[Chunk], rules: Rules, folder: Path, *, execute: Execute) -> Tokenized:
    """Tokenize what is not in `folder` yet, and return all samples.

    Raises:
        DataError: for the first faulty record in data order, whatever the executor.
        MachineError: if a disk, memory or a machine gives out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for half_written in folder.glob(".chunk-*"):  # a run that was killed left them
        shutil.rmtree(half_written, ignore_errors=True)
    targets = [folder / chunk_name(number) for number in range(len(chunks))]
    while True:
        tokenize_chunks(chunks, missing(folder, len(chunks)), rules, folder, execute=execute)
        if not distrusted(folder, targets):
            return _gather(chunks, targets)


def tokenize_chunks(
    chunks: Sequence[Chunk], numbers: Sequence[int], rules: Rules, folder: Path, *, execute: Execute
) -> None:
    """Tokenize the chunks with these rising numbers into `folder`.

    Raises:
        DataError: for the first faulty record of theirs in data order.
        MachineError: if a disk, memory or a machine gives out.
    """
    work = [(chunks[number], folder / chunk_name(number)) for number in numbers]
    try:
        if work:
            rules = settled(rules, chunks, folder)
        with (
            closing(execute(work, rules)) as faults,
            progress_bar("tokenizing", len(work), "chunk") as progress,
        ):
            for number, fault in zip(numbers, faults, strict=True):
                if fault is not None:
                    raise _located(fault, number, chunks, rules, folder)
                progress()
    except OSError as error:
        if is_storage_error(error):
            raise
        raise MachineError(
            f"{error.filename or folder}: {error.strerror or error} while tokenizing; on every machine that works "
            "here the inputs have to stay readable and run.work_dir writable, at the same path"
        ) from error
    except MemoryError as error:
        raise MachineError("out of memory while tokenizing; lower prep.workers") from error


def missing(folder: Path, chunks: int) -> list[int]:
    """Numbers of the chunks that are not tokenized yet."""
    # One look at the folder: a shared file system may remember for a while that a single name was not there.
    there = {entry.name for entry in os.scandir(folder)}
    return [number for number in range(chunks) if chunk_name(number) not in there]


def chunk_name(number: int) -> str:
    """What a tokenized chunk is called."""
    return f"chunk-{number:06d}"


def _located(fault: RecordFault, number: int, chunks: Sequence[Chunk], rules: Rules, folder: Path) -> DataError:
    chunk, before = chunks[number], 0
    for other in range(number):
        if chunks[other].file == chunk.file:
            try:
                before += _records(chunks[other], rules, folder / chunk_name(other))
            except RecordFault as earlier:  # a part meets a later fault first where others work on the chunks before it
                fault = earlier
                break
    place = f"{chunk.input.where}:{before + fault.record + 1}"
    place = f"{place} (source {chunk.input.name!r})" if fault.fatal else place
    return DataError(f"{place}:{fault.byte}: {fault.message}" if fault.byte else f"{place}: {fault.message}")


def _records(chunk: Chunk, rules: Rules, target: Path) -> int:
    """Records of a chunk, read again where it is not tokenized."""
    try:
        return int(counts_of(target)["records"])
    except FileNotFoundError:
        return count_records(chunk, rules)


def _gather(chunks: Sequence[Chunk], targets: Sequence[Path]) -> Tokenized:
    dropped: Counter[str] = Counter()
    rejects: list[Mapping[str, Any]] = []
    backends: list[Mapping[str, str]] = []
    records = np.zeros(1 + max((chunk.file for chunk in chunks), default=-1), np.int64)
    bounds_of = np.array([(chunk.file, chunk.begin, chunk.end, 0) for chunk in chunks], np.int64).reshape(-1, 4)
    # Columns of their final size, filled chunk by chunk: these are all that grows with the samples.
    bounds = np.cumsum([0, *(rows_of(target).shape[0] for target in targets)])
    samples = _columns(int(bounds[-1]), [tokens_of(target) for target in targets], records)
    with progress_bar("gathering", len(targets), "chunk") as progress:
        for number, (chunk, target) in enumerate(zip(chunks, targets, strict=True)):
            counts = counts_of(target)
            dropped.update(counts["dropped"])
            backends.append(counts["backend"])
            before = int(records[chunk.file])
            place = {"source": chunk.input.name, "path": chunk.input.path}
            rejects += [{**place, **reject, "record": before + reject["record"]} for reject in counts["rejects"]]
            records[chunk.file] += counts["records"]
            bounds_of[number, 3] = counts["records"]
            rows, here = rows_of(target), slice(bounds[number], bounds[number + 1])
            samples.record[here] = rows[:, 0] + before
            samples.start[here] = rows[:, 1]
            samples.lengths[here] = rows[:, 2]
            samples.loss_tokens[here] = rows[:, 3]
            samples.file[here] = chunk.file
            samples.chunk[here] = number
            samples.offset[here] = np.cumsum(rows[:, 2]) - rows[:, 2]
            progress()
    fast = (one for one in backends if one and Backend(**one).fast)
    backend = next(fast, backends[0] if backends else {})  # which made any of them, if one did
    return Tokenized(samples, dropped, rejects, int(records.sum()), backend, bounds_of)


def _columns(count: int, token_files: Sequence[Path], records: npt.NDArray[np.int64]) -> Samples:
    return Samples(
        lengths=np.empty(count, np.int32),
        loss_tokens=np.empty(count, np.int32),
        file=np.empty(count, np.uint32),
        record=np.empty(count, np.uint32),
        start=np.empty(count, np.uint32),
        chunk=np.empty(count, np.int32),
        offset=np.empty(count, np.int64),
        token_files=token_files,
        records=records,
    )
