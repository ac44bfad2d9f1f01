"""Tokenized samples on disk: what `prep` keeps between tokenizing and packing.

A chunk is a run of records of one input file. It is tokenized alone, as a pure function of the frozen plan and the
input, into a directory that appears by rename:

    tokens.u32    every sample's tokens end to end, little-endian uint32, bit 31 set where the token carries loss
    samples.npy   int64[samples, 4]: record in its file, start within the record's tokens, tokens, tokens with loss

Lengths stay in memory, tokens on disk, so memory does not grow with the data's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

LOSS_BIT = np.uint32(1 << 31)


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
