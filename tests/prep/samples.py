"""Samples and inputs that tests make up: a few files of each source, with lengths that tell nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prep.inputs import Input
from prep.store import Samples


def made_up(files: Sequence[tuple[str, str, int]], *, longest: int = 50, seed: int = 0) -> tuple[Samples, list[Input]]:
    """Samples of the given files, each (source, path, samples), source by source; lengths depend on source and path."""
    names = list(dict.fromkeys(source for source, _, _ in files))
    inputs = [
        Input(names.index(source), source, path, Path(source, path), "jsonl", "openai") for source, path, _ in files
    ]
    lengths = [
        np.random.default_rng([seed, *f"{source}/{path}".encode()]).integers(1, longest + 1, count)
        for source, path, count in files
    ]
    counts = [count for _, _, count in files]
    total = sum(counts)
    samples = Samples(
        lengths=np.concatenate([np.zeros(0), *lengths]).astype(np.int32),
        loss_tokens=np.ones(total, np.int32),
        file=np.repeat(np.arange(len(files), dtype=np.uint32), counts),
        record=np.concatenate([np.zeros(0, np.uint32), *(np.arange(count, dtype=np.uint32) for count in counts)]),
        start=np.zeros(total, np.uint32),
        chunk=np.zeros(total, np.int32),
        offset=np.zeros(total, np.int64),
        token_files=[],
        records=np.array(counts, np.int64),
    )
    return samples, inputs


def identities(samples: Samples, inputs: Sequence[Input], numbers: Sequence[int]) -> list[tuple[str, str, int, int]]:
    """What the numbered samples are, whatever else is in the mix: source, path, record and first token."""
    return [
        (inputs[file].name, inputs[file].path, record, start)
        for file, record, start in zip(
            samples.file[numbers].tolist(),
            samples.record[numbers].tolist(),
            samples.start[numbers].tolist(),
            strict=True,
        )
    ]
