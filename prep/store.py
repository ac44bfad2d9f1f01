"""Tokenized samples on disk: what `prep` keeps between tokenizing and packing.

A chunk is a run of records of one input file. It is tokenized alone, as a pure function of the frozen plan and the
input, into a directory that appears by rename:

    tokens.u32    every sample's tokens end to end, little-endian uint32, bit 31 set where the token carries loss
    samples.i64   int64[samples, 4]: record in the chunk, start within the record's tokens, tokens, tokens with loss
    counts.json   records, those dropped and rejected, and the library that tokenized them

Lengths stay in memory, tokens on disk, so memory does not grow with the data's tokens.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipelines.artifacts import Json

LOSS_BIT = np.uint32(1 << 31)
_TOKENS, _SAMPLES, _COUNTS = "tokens.u32", "samples.i64", "counts.json"

Marked = npt.NDArray[np.uint32]
"""Token ids, bit 31 set where the token carries loss."""
Rows = npt.NDArray[np.int64]
"""[samples, 4] as samples.i64 holds them."""


class ChunkWriter:
    """Writes a chunk's samples as they come, since a compressed file is one chunk whatever it holds.

    Args:
        folder: is there; what an earlier writer left in it is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens = (folder / _TOKENS).open("wb")
        self._rows = (folder / _SAMPLES).open("wb")
        self.dropped: Counter[str] = Counter()
        self.rejects: list[dict[str, Any]] = []
        self.records = 0

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._rows.close()

    def add(self, rows: Rows, tokens: Marked) -> None:
        """Append samples, and their tokens end to end."""
        self._rows.write(np.ascontiguousarray(rows, "<i8").data)
        self._tokens.write(np.ascontiguousarray(tokens, "<u4").data)

    def finish(self, **told: Json) -> None:
        """Write the counts, with what else is to be told of the chunk."""
        counts = {"dropped": self.dropped, "rejects": self.rejects, "records": self.records, **told}
        (self._folder / _COUNTS).write_text(json.dumps(counts), encoding="utf-8")


def tokens_of(folder: Path) -> Path:
    """Where a chunk's tokens are."""
    return folder / _TOKENS


def rows_of(folder: Path) -> Rows:
    """A chunk's samples."""
    return np.fromfile(folder / _SAMPLES, "<i8").reshape(-1, 4)


def counts_of(folder: Path) -> Mapping[str, Any]:
    """What is told of a chunk: records, dropped, rejects, backend and differs."""
    counts: dict[str, Any] = json.loads((folder / _COUNTS).read_bytes())
    return counts


@dataclass(frozen=True)
class Samples:
    """All samples of all chunks, in the order of the inputs: source, then file, then record."""

    lengths: npt.NDArray[np.int32]
    """[samples] tokens."""
    loss_tokens: npt.NDArray[np.int32]
    """[samples] tokens that carry loss."""
    file: npt.NDArray[np.uint32]
    """[samples] index into the manifest's list of input files."""
    record: npt.NDArray[np.uint32]
    """[samples] record in that file, from 0."""
    start: npt.NDArray[np.uint32]
    """[samples] first token within the record (above 0 only where a record was split)."""
    chunk: npt.NDArray[np.int32]
    """[samples] index into `token_files`."""
    offset: npt.NDArray[np.int64]
    """[samples] first token within the chunk's token file."""
    token_files: Sequence[Path]
    """One `tokens.u32` per chunk."""
    records: npt.NDArray[np.int64]
    """[files] records of each input file, those included that gave no sample; files at the end may be missing."""

    def taken(self, numbers: npt.NDArray[np.int64]) -> "Samples":
        """The samples with these numbers alone."""
        if numbers.size == self.lengths.size:
            return self
        rows = ("lengths", "loss_tokens", "file", "record", "start", "chunk", "offset")
        return replace(self, **{name: getattr(self, name)[numbers] for name in rows})

    def tokens(self, chunk: int) -> npt.NDArray[np.uint32]:
        """A chunk's tokens as a memory map, loss in bit 31."""
        path = self.token_files[chunk]
        return np.memmap(path, np.uint32, "r") if path.stat().st_size else np.zeros(0, np.uint32)


def count_loss_tokens(tokens: Marked, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64[samples], tokens with loss of each of the samples that `tokens` holds end to end.

    Args:
        lengths: int64[samples], tokens of each; together all of `tokens`.
    """
    if lengths.size and (lengths.min() < 0 or lengths.sum() != tokens.size):
        raise ValueError(f"samples of {lengths.sum()} tokens, but there are {tokens.size}")
    return np.asarray(_count_loss_tokens(tokens, lengths))


@njit(cache=True)
def _count_loss_tokens(tokens: Marked, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    found = np.zeros(lengths.size, np.int64)
    at = 0
    for sample in range(lengths.size):
        count = np.uint32(0)
        for token in tokens[at : at + lengths[sample]]:
            count += token >> np.uint32(31)
        found[sample] = count
        at += lengths[sample]
    return found


def count_loss_tokens_reference(tokens: Marked, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`count_loss_tokens` written the obvious way: slow, and right. The tests compare the two."""
    samples = np.split(tokens, np.cumsum(lengths)[:-1])
    return np.array([sum(bool(token & LOSS_BIT) for token in sample) for sample in samples], np.int64)
