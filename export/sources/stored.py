"""Where the elements of a tensor lie: runs of it, or blocks of its rows and columns, in one file or in many."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.errors import CheckError
from pipelines.file_ranges import WIDTH, FileRanges, Stored

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """Consecutive elements of a flattened tensor in a file."""

    path: Path
    first: int
    """Byte of the file that they begin at."""
    stored: Stored
    """Their number format."""
    start: int
    """Of the first element within the tensor."""
    size: int
    """Elements."""

    @property
    def nbytes(self) -> int:
        return self.size * WIDTH[self.stored]


@dataclass(frozen=True)
class Block:
    """A rectangle of a matrix in a file, row after row. A tensor of more dimensions is a matrix of its first by the
    others."""

    path: Path
    first: int
    stored: Stored
    row: int
    """Of its first row within the tensor."""
    rows: int
    column: int
    columns: int

    @property
    def nbytes(self) -> int:
        return self.rows * self.columns * WIDTH[self.stored]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as all the pieces that it was cut into."""

    shape: tuple[int, ...]
    pieces: Sequence[Run] | Sequence[Block]
    """Runs in order, each ending where the next begins; or blocks."""

    @classmethod
    def whole(cls, shape: tuple[int, ...], path: Path, first: int, stored: Stored) -> "StoredTensor":
        """One that lies in one piece."""
        return cls(shape, [Run(path, first, stored, 0, prod(shape))])

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    def read(self, ranges: FileRanges, start: int, stop: int) -> Float32:
        """Elements start..stop of the flattened tensor."""
        assert 0 <= start <= stop <= self.size
        if self.pieces and isinstance(self.pieces[0], Block):
            return self._read_blocks(ranges, start, stop)
        out = np.empty(stop - start, np.float32)
        # Of thousands of ranks a block of a large tensor is on few.
        before, beyond = max(0, bisect_right(self._starts, start) - 1), bisect_left(self._starts, stop)
        for run in self.pieces[before:beyond]:
            assert isinstance(run, Run)
            begin, end = max(start, run.start), min(stop, run.start + run.size)
            if begin < end:
                first = run.first + (begin - run.start) * WIDTH[run.stored]
                ranges.read_numbers(run.path, first, run.stored, out[begin - start : end - start])
        return out

    @cached_property
    def _starts(self) -> list[int]:
        return [piece.start for piece in self.pieces if isinstance(piece, Run)]

    def _read_blocks(self, ranges: FileRanges, start: int, stop: int) -> Float32:
        width = prod(self.shape[1:])
        above, below = start // width, -(-stop // width)
        out = np.empty((below - above, width), np.float32)
        for block in self.pieces:
            assert isinstance(block, Block)
            begin, end = max(above, block.row), min(below, block.row + block.rows)
            if begin < end:
                first = block.first + (begin - block.row) * block.columns * WIDTH[block.stored]
                rows = np.empty((end - begin, block.columns), np.float32)
                ranges.read_numbers(block.path, first, block.stored, rows)
                out[begin - above : end - above, block.column : block.column + block.columns] = rows
        return out.reshape(-1)[start - above * width : stop - above * width]


def check_cover(folder: Path, name: str, tensor: StoredTensor) -> None:
    """Make sure that the pieces are the whole tensor, each element once.

    Raises:
        CheckError: if an element is in none of them, or in two.
    """
    held = _overlap_free(tensor)
    if held != tensor.size:
        finding = "overlap" if held is None else f"hold {held:,} of its {tensor.size:,} elements"
        raise CheckError(f"{folder}: the pieces of {name} {finding}; the checkpoint is incomplete, copy it again")


def _overlap_free(tensor: StoredTensor) -> int | None:
    """Elements in all pieces, None where two have the same."""
    runs = [piece for piece in tensor.pieces if isinstance(piece, Run)]
    if runs:
        position = 0
        for run in runs:
            if run.start < position:
                return None
            position = run.start + run.size
        beyond = position > tensor.size
        return None if beyond else sum(run.size for run in runs)
    blocks = [piece for piece in tensor.pieces if isinstance(piece, Block)]
    width = prod(tensor.shape[1:])
    for index, one in enumerate(blocks):
        if one.row + one.rows > tensor.shape[0] or one.column + one.columns > width:
            return None
        if any(_meet(one, other) for other in blocks[:index]):
            return None
    return sum(block.rows * block.columns for block in blocks)


def _meet(one: Block, other: Block) -> bool:
    rows = one.row < other.row + other.rows and other.row < one.row + one.rows
    return rows and one.column < other.column + other.columns and other.column < one.column + one.columns


def files_of(tensors: Iterable[StoredTensor]) -> dict[Path, list[tuple[int, int]]]:
    """The byte ranges that are read of every file, each once, in order."""
    found: dict[Path, set[tuple[int, int]]] = {}
    for tensor in tensors:
        for piece in tensor.pieces:
            if piece.nbytes:
                found.setdefault(piece.path, set()).add((piece.first, piece.nbytes))
    return {path: sorted(found[path]) for path in sorted(found)}
