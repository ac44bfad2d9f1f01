"""The lengths of all samples, kept beside the shards so that packs can be planned again without tokenizing.

`lengths.npz` holds what `Samples` holds except where the tokens are. It is no part of the artefact: a run without it
gives the same bytes, later.
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
        np.savez(file, told=np.frombuffer(told, np.uint8), **arrays)
        sync_file(file.fileno())
    temporary.replace(folder / FILE)
    sync_directory(folder)


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
