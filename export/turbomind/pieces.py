"""Bands of a matrix into the files of its ranks, each piece at its place."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from export.cast import Bits
from export.turbomind.layout import transposed

_TILE = 1 << 19  # numbers transposed at once


def spread(files: Sequence[int], band: Bits, first: int, *, split: str, shape: tuple[int, int]) -> None:
    """Put a band, whose rows are columns of a matrix from `first` on, into the files.

    Args:
        files: by rank.
        band: [columns, rows] of the matrix.
        split: as `Matrix` has it.
        shape: rows and columns of each file.
    """
    rows, columns = shape
    for rank, file in enumerate(files):
        if split == "columns":
            begin, end = max(rank * columns - first, 0), min((rank + 1) * columns - first, len(band))
            if begin < end:
                _put(file, band[begin:end], first + begin - rank * columns, columns)
        elif split == "rows":
            _put(file, band[:, rank * rows : (rank + 1) * rows], first, columns)
        else:
            _put(file, band, first, columns)


def _put(file: int, band: Bits, column: int, columns: int) -> None:
    """Rows of a band as columns of a file that has `columns`, from `column` on."""
    step = max(1, _TILE // len(band))
    for first in range(0, band.shape[1], step):
        tile = transposed(band[:, first : first + step])
        if len(band) == columns:
            write_at(file, tile, first * columns)
        else:
            for row, piece in enumerate(tile, first):
                write_at(file, piece, row * columns + column)


def write_at(file: int, numbers: Bits, place: int) -> None:
    """Put contiguous numbers at the place of the first of them, counted in numbers."""
    content, offset = numbers.data.cast("B"), numbers.itemsize * place
    while content:  # a disk that is nearly full takes a part, and says so at the next
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


@contextmanager
def new_files(folder: Path, names: Sequence[str], size: int) -> Iterator[list[int]]:
    """New files of `size` zeros, open for writing at any place."""
    with ExitStack() as open_files:
        files = [open_files.enter_context((folder / name).open("wb")) for name in names]
        for file in files:
            file.truncate(size)
        yield [file.fileno() for file in files]
