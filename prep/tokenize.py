"""Records to tokenized samples on disk, chunk by chunk, on any number of processes.

A chunk is a pure function of its input file and `Rules`, and its directory appears by rename. So worker count and
scheduling change no byte, and a run that was killed tokenizes only the chunks it had not finished.
"""

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipelines.artifacts import write_atomic
from pipelines.errors import DataError, MachineError
from pipelines.schema import Template
from prep.encoder import Encoder
from prep.formats import FORMATS, ftdp
from prep.formats.fault import RecordFault
from prep.inputs import Input
from prep.store import LOSS_BIT, Samples

_BATCH = 256
"""Records rendered and tokenized together."""

Marked = npt.NDArray[np.uint32]
"""Token ids of one sample, bit 31 set where the token carries loss."""


@dataclass(frozen=True)
class Rules:
    """All that decides a sample's tokens beside its record."""

    tokenizer: Path
    template: Template
    vocab_size: int
    max_length: int
    min_length: int
    overlength: str
    max_record_bytes: int


@dataclass(frozen=True)
class Chunk:
    """A run of one file's records, in bounds of the file's format."""

    input: Input
    file: int
    """Index of the input in the data order."""
    begin: int
    end: int

    @property
    def weight(self) -> int:
        """Bytes or rows, to show progress by."""
        return self.end - self.begin


def plan(inputs: Sequence[Input]) -> list[Chunk]:
    """Cut every input into chunks; depends on the files alone."""
    found = []
    for file, one in enumerate(inputs):
        cut = ftdp.chunks if one.format == "ftdp" else FORMATS[one.format].chunks
        found += [Chunk(one, file, begin, end) for begin, end in cut(one.where)]
    return found


def tokenize(chunks: Sequence[Chunk], rules: Rules, folder: Path, *, workers: int) -> tuple[Samples, Counter[str]]:
    """Tokenize what is not in `folder` yet and return all samples, with a count of dropped ones by reason.

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


def tokenize_chunk(chunk: Chunk, target: Path, rules: Rules) -> RecordFault | None:
    """Tokenize one chunk into `target`; a fault is returned, since the caller knows what came before the chunk."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    rows: list[tuple[int, int, int, int]] = []
    dropped: Counter[str] = Counter()
    parts: list[Marked] = []
    records = 0
    try:
        for record, tokens in _samples(chunk, rules):
            records = record + 1
            reason, kept = _fit(tokens, rules, record) if tokens is not None else ("left out by its map", None)
            if reason:
                dropped[reason] += 1
            if kept is not None:
                rows.append((record, 0, kept.size, int(np.count_nonzero(kept & LOSS_BIT))))
                parts.append(kept)
    except RecordFault as fault:
        return fault
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tokens = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
    tokens.astype("<u4", copy=False).tofile(temporary / "tokens.u32")
    np.save(temporary / "samples.npy", np.array(rows, np.int64).reshape(-1, 4))
    write_atomic(temporary / "counts.json", json.dumps({"dropped": dropped, "records": records}).encode())
    temporary.rename(target)
    return None


def _samples(chunk: Chunk, rules: Rules) -> Iterator[tuple[int, Marked | None]]:
    """Every record number of the chunk with its sample, or with None where there is none."""
    where, begin, end = chunk.input.where, chunk.begin, chunk.end
    if chunk.input.format == "ftdp":
        yield from ftdp.samples(where, begin, end, vocab_size=rules.vocab_size)
        return
    encoder = _encoder(rules.tokenizer, rules.template.model_dump_json(), chunk.input.map)
    records = FORMATS[chunk.input.format].records(where, begin, end, max_bytes=rules.max_record_bytes)
    while batch := list(islice(records, _BATCH)):
        yield from encoder.encode((number, record) for number, record in batch if record is not None)
        if batch[-1][1] is None:
            yield batch[-1][0], None


def _fit(tokens: Marked, rules: Rules, record: int) -> tuple[str, Marked | None]:
    """Why a sample was dropped or changed ("" if it was not), and what is left of it."""
    reason = ""
    if tokens.size > rules.max_length:
        if rules.overlength == "error":
            raise RecordFault(
                record,
                f"{tokens.size} tokens exceed prep.max_length = {rules.max_length}; raise it, or set "
                'prep.overlength to "truncate_right" or "drop"',
            )
        if rules.overlength == "drop":
            return "overlength", None
        reason, tokens = "truncated", tokens[: rules.max_length]
    if tokens.size < rules.min_length:
        return "short", None
    if tokens.size:
        tokens[0] &= ~LOSS_BIT  # nothing comes before it that could predict it
    if not np.any(tokens & LOSS_BIT):
        if rules.template.loss.on_empty == "error":
            raise RecordFault(record, _no_loss(tokens, reason))
        return "no loss token", None
    return reason, tokens


def _no_loss(tokens: Marked, reason: str) -> str:
    cut = " after truncation" if reason else ""
    return (
        f"none of its {tokens.size} tokens carries loss{cut}; is a role missing from template.loss.roles, is the "
        'trained text empty, or was the record cut before it? template.loss.on_empty = "drop" leaves such records out'
    )


@lru_cache(maxsize=8)
def _encoder(tokenizer: Path, template: str, map_name: str) -> Encoder:
    # One per process: loading a tokenizer takes longer than a chunk does.
    return Encoder(tokenizer, Template.model_validate_json(template), map_name)


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


def _gather(chunks: Sequence[Chunk], targets: Sequence[Path]) -> tuple[Samples, Counter[str]]:
    dropped: Counter[str] = Counter()
    tables, files, numbers, offsets = [], [], [], []
    first_record = dict.fromkeys((chunk.file for chunk in chunks), 0)
    for number, (chunk, target) in enumerate(zip(chunks, targets, strict=True)):
        counts = _counts(target)
        dropped.update(counts["dropped"])
        table = np.load(target / "samples.npy")
        table[:, 0] += first_record[chunk.file]
        first_record[chunk.file] += counts["records"]
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
    )
    return samples, dropped
