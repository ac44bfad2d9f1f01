"""The frozen plan of tokenizing: the inputs with their digests, how they are cut, and what is left to do.

It is written before the first chunk is tokenized, and from then on any number of processes and machines work on it
without looking at the sources again. Beside the tokenized chunks lie

    chunks.npy   int64[chunks, 3]: index of the input, begin and end in bounds of its format
    left.npy     int64[left]: the chunks that were missing when it was frozen last, which parts share out
"""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from pipelines.artifacts import write_atomic
from pipelines.errors import ConfigError
from pipelines.schema import Pipeline
from prep.chunk import Chunk, chunks_of
from prep.inputs import Input
from prep.job import Job, job_of
from prep.tokenize import missing
from prep.tokenizer import open_tokenizer

Int64 = npt.NDArray[np.int64]

_FILE, _CHUNKS, _LEFT = "frozen.json", "chunks.npy", "left.npy"
_INPUTS = TypeAdapter(list[Input])
_FREEZE = "run 'packtrain prep' with prep.executor = \"slurm\" and without a part first"


def freeze(job: Job) -> list[Chunk]:
    """The chunks of a job that has begun, as they were cut when it began first; written for parts to work on."""
    write_atomic(job.folder / ".partial" / _FILE, _INPUTS.dump_json(list(map(_anywhere, job.inputs))))
    try:
        bounds: Int64 = np.load(job.chunks / _CHUNKS, allow_pickle=False)
    except FileNotFoundError:
        found = [(chunk.file, chunk.begin, chunk.end) for chunk in chunks_of(job.inputs)]
        bounds = np.array(found, np.int64).reshape(-1, 3)
        _write(job.chunks / _CHUNKS, bounds)
    _write(job.chunks / _LEFT, np.array(missing(job.chunks, len(bounds)), np.int64))
    return _chunks(job, bounds)


def frozen(pipeline: Pipeline) -> tuple[Job, list[Chunk], list[int]]:
    """The job that was frozen for this pipeline, all its chunks, and the numbers of those that were left to do.

    Raises:
        ConfigError: if none is frozen, or one with other settings.
    """
    path = pipeline.home / "prep" / ".partial" / _FILE
    try:
        inputs = _INPUTS.validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise ConfigError(f"{path}: no plan is frozen here; {_FREEZE}") from error
    job = job_of(pipeline, open_tokenizer(pipeline), inputs)
    try:
        chunks = _chunks(job, np.load(job.chunks / _CHUNKS, allow_pickle=False))
        left: list[int] = np.load(job.chunks / _LEFT, allow_pickle=False).tolist()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: frozen with other settings, another tokenizer or other libraries than here; {_FREEZE}"
        ) from error
    return job, chunks, left


def _anywhere(one: Input) -> Input:
    return replace(one, where=one.where.absolute())


def _chunks(job: Job, bounds: Int64) -> list[Chunk]:
    return [Chunk(job.inputs[file], file, begin, end) for file, begin, end in bounds.tolist()]


def _write(path: Path, numbers: Int64) -> None:
    content = BytesIO()
    np.save(content, numbers)
    write_atomic(path, content.getvalue())
