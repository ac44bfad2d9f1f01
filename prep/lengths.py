"""The lengths of all samples, kept beside the shards so that packs can be planned again without tokenizing.

`lengths.npz` holds what `Samples` holds except where the tokens are, and which records each chunk of the inputs has, so
that one of them is found again without reading all before it. It is no part of the artefact: a run without it gives the
same bytes, later.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from pipelines.artifacts import sync_directory, sync_file
from prep.job import Job
from prep.store import Samples
from prep.tokenize import Tokenized

FILE = "lengths.npz"
_KEPT = ("lengths", "loss_tokens", "file", "record", "start", "records")


def keep(folder: Path, tokenized: Tokenized, job: Job) -> None:
    """Write the lengths of the job's samples below `folder`."""
    arrays = {f"of_{name}": getattr(tokenized.samples, name) for name in _KEPT}
    counts = {"dropped": tokenized.dropped, "rejects": list(tokenized.rejects), "records": tokenized.records}
    told = json.dumps({"tokens": job.tokens, "of_records": job.records, **counts}).encode()
    temporary = folder / f".{FILE}.tmp"
    with temporary.open("wb") as file:
        np.savez(file, told=np.frombuffer(told, np.uint8), chunks=tokenized.chunks, **arrays)
        sync_file(file.fileno())
    temporary.replace(folder / FILE)
    sync_directory(folder)


def chunk_of(folder: Path, file: int, record: int) -> tuple[int, int, int] | None:
    """Begin and end of the chunk that holds a record of an input file, and the records before it; None if unknown.

    Args:
        folder: of the shards.
        file: index of the input file in the manifest.
        record: from 0.
    """
    try:
        with np.load(folder / FILE, allow_pickle=False) as arrays:
            chunks = arrays["chunks"]
    except (OSError, ValueError, KeyError):
        return None
    own = chunks[chunks[:, 0] == file]
    before = np.cumsum(own[:, 3]) - own[:, 3]
    number = int(np.searchsorted(before, record, side="right")) - 1
    if number < 0 or record >= before[number] + own[number, 3]:
        return None
    return int(own[number, 1]), int(own[number, 2]), int(before[number])


def kept(job: Job) -> Tokenized | None:
    """The job's samples without their tokens, or None where they are not known.

    Another limit on lengths leaves them as they are if none was or is above it.
    """
    try:
        with np.load(job.folder / FILE, allow_pickle=False) as arrays:
            told = json.loads(arrays["told"].tobytes())
            found = {name: arrays[f"of_{name}"] for name in _KEPT}
            uncut = told["of_records"] == job.records and not any(why.startswith("overlong") for why in told["dropped"])
            longest = int(found["lengths"].max(initial=0))
            if told["tokens"] != job.tokens and not (uncut and longest <= job.rules.max_length):
                return None
    except (OSError, ValueError, KeyError):
        return None
    count = found["lengths"].size
    samples = Samples(**found, chunk=np.zeros(count, np.int32), offset=np.zeros(count, np.int64), token_files=[])
    return Tokenized(samples, Counter(told["dropped"]), told["rejects"], told["records"])
