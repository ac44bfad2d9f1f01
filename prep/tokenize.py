"""Records to tokenized samples on disk, chunk by chunk, on any number of processes.

A chunk is a pure function of its input file and `Rules`, and its directory appears by rename. So worker count and
scheduling change no byte, and a run that was killed tokenizes only the chunks it had not finished.
"""

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines.errors import DataError, MachineError
from prep.chunk import Chunk, Rules, tokenize_chunk
from prep.formats.fault import RecordFault
from prep.store import Samples


@dataclass(frozen=True)
class Tokenized:
    """What became of all records."""

    samples: Samples
    dropped: Counter[str]
    """Records or pieces left out, and records cut, by reason."""
    rejects: Sequence[Mapping[str, Any]]
    """Faulty records that were skipped: source, path, record, byte and reason."""
    records: int


def tokenize(chunks: Sequence[Chunk], rules: Rules, folder: Path, *, workers: int) -> Tokenized:
    """Tokenize what is not in `folder` yet, and return all samples.

    Raises:
        DataError: for the first faulty record in data order, whatever the number of workers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"chunk-{number:06d}" for number in range(len(chunks))]
    missing = [(chunk, target) for chunk, target in zip(chunks, targets, strict=True) if not target.is_dir()]
    with tqdm(
        total=len(chunks), initial=len(chunks) - len(missing), desc="tokenize", unit="chunk", disable=None, leave=False
    ) as progress:
        for fault, (chunk, _) in zip(_tokenize_each(missing, rules, workers), missing, strict=True):
            if fault is not None:
                raise _located(fault, chunk, chunks, targets)
            progress.update()
    return _gather(chunks, targets)


def _tokenize_each(work: Sequence[tuple[Chunk, Path]], rules: Rules, workers: int) -> Iterator[RecordFault | None]:
    # In data order, so that the fault reported is the first one and not the fastest one.
    if workers == 1 or len(work) <= 1:
        yield from (tokenize_chunk(chunk, target, rules) for chunk, target in work)
        return
    pool = ProcessPoolExecutor(min(workers, len(work)), multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(tokenize_chunk, *zip(*work, strict=True), [rules] * len(work))
    except BrokenProcessPool as error:
        raise MachineError(
            "a worker process died while tokenizing, probably out of memory; lower prep.workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _located(fault: RecordFault, chunk: Chunk, chunks: Sequence[Chunk], targets: Sequence[Path]) -> DataError:
    # Results come in data order, so what lies before the fault has been tokenized and counted.
    before = sum(
        _counts(target)["records"]
        for other, target in zip(chunks, targets, strict=True)
        if other.file == chunk.file and other.begin < chunk.begin
    )
    place = f"{chunk.input.where}:{before + fault.record + 1}"
    return DataError(f"{place}:{fault.byte}: {fault.message}" if fault.byte else f"{place}: {fault.message}")


def _counts(target: Path) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((target / "counts.json").read_bytes())
    return counts


def _gather(chunks: Sequence[Chunk], targets: Sequence[Path]) -> Tokenized:
    dropped: Counter[str] = Counter()
    rejects: list[Mapping[str, Any]] = []
    tables, files, numbers, offsets = [], [], [], []
    records = dict.fromkeys((chunk.file for chunk in chunks), 0)
    for number, (chunk, target) in enumerate(zip(chunks, targets, strict=True)):
        counts = _counts(target)
        dropped.update(counts["dropped"])
        before = records[chunk.file]
        place = {"source": chunk.input.name, "path": chunk.input.path}
        rejects += [{**place, **reject, "record": before + reject["record"]} for reject in counts["rejects"]]
        table = np.load(target / "samples.npy")
        table[:, 0] += before
        records[chunk.file] += counts["records"]
        tables.append(table)
        files.append(np.full(len(table), chunk.file, np.uint32))
        numbers.append(np.full(len(table), number, np.int32))
        offsets.append(np.cumsum(table[:, 2]) - table[:, 2])
    rows = np.concatenate([np.zeros((0, 4), np.int64), *tables])
    samples = Samples(
        lengths=rows[:, 2].astype(np.int32),
        loss_tokens=rows[:, 3].astype(np.int32),
        file=np.concatenate([np.zeros(0, np.uint32), *files]),
        record=rows[:, 0].astype(np.uint32),
        start=rows[:, 1].astype(np.uint32),
        chunk=np.concatenate([np.zeros(0, np.int32), *numbers]),
        offset=np.concatenate([np.zeros(0, np.int64), *offsets]),
        token_files=[target / "tokens.u32" for target in targets],
        records=np.array([records.get(file, 0) for file in range(1 + max(records, default=-1))], np.int64),
    )
    return Tokenized(samples, dropped, rejects, sum(records.values()))
