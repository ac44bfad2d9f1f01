"""Writing the weight files of a TurboMind folder: bands of columns that fit memory, each put at its place.

A matrix of the engine is a Hugging Face matrix transposed, and so written in pieces: rows of the tensors are read up
to `BAND` numbers, and each row of the files gets its piece of them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from export.cast import Bits
from export.turbomind.geometry import Geometry
from export.turbomind.layout import interleave, transposed
from export.turbomind.matrices import EMBEDDING, OUTPUT, Matrix, Run, matrices
from export.weights import BLOCK, Weights

BAND = 1 << 25
"""Numbers of a matrix in memory at once: 64 MiB, pieces of 4 KiB and more for matrices up to 16,384 rows."""
_TILE = 1 << 19  # numbers transposed at once

Progress = Callable[[int], object]


def write_weights(folder: Path, weights: Weights, geometry: Geometry, progress: Progress) -> None:
    """Write every weight file; memory holds a band and a block, whatever the size of a matrix.

    Args:
        progress: told the bytes written since it was told last.
    """
    _write_embedding(folder, weights, geometry, progress)
    _write_output(folder, weights, geometry, progress)
    for matrix in matrices(geometry):
        _write_matrix(folder, weights, matrix, geometry.tp, progress)


def _write_matrix(folder: Path, weights: Weights, matrix: Matrix, tp: int, progress: Progress) -> None:
    rows, columns = matrix.file_shape(tp)
    tensor = next((run.tensor for run in matrix.runs if run.tensor), None)
    with _files(folder, matrix.files(tp), rows * columns * 2) as files:
        if tensor is None:
            return  # zeros, which a file is from the start
        inputs = _inputs(weights, tensor)
        first = 0
        for runs in bands(matrix.runs, max(1, BAND // inputs)):
            band = _gathered(weights, runs, inputs)
            for rank, file in enumerate(files):
                if matrix.split == "columns":
                    begin, end = max(rank * columns - first, 0), min((rank + 1) * columns - first, len(band))
                    if begin < end:
                        _put(file, band[begin:end], first + begin - rank * columns, columns)
                elif matrix.split == "rows":
                    _put(file, band[:, rank * rows : (rank + 1) * rows], first, columns)
                else:
                    _put(file, band, first, columns)
            first += len(band)
            progress(band.nbytes)


def bands(runs: Sequence[Run], limit: int) -> Iterator[list[Run]]:
    """The same rows in lists of about `limit` rows, cutting no head whose order changes."""
    band: list[Run] = []
    room = limit
    for run in runs:
        unit, start = run.head_size or 1, run.start
        while start < run.stop:
            if room < unit and band:
                yield band
                band, room = [], limit
            stop = min(run.stop, start + max(unit, room // unit * unit))
            band.append(replace(run, start=start, stop=stop))
            room -= stop - start
            start = stop
    if band:
        yield band


def _gathered(weights: Weights, runs: Sequence[Run], inputs: int) -> Bits:
    """[rows, inputs] of several tensors, below each other, in the engine's order."""
    band = np.zeros((sum(run.stop - run.start for run in runs), inputs), np.uint16)
    at = 0
    for run in runs:
        unit = run.head_size or 1
        step = max(1, BLOCK // (unit * inputs)) * unit
        for start in range(run.start, run.stop, step):
            stop = min(start + step, run.stop)
            if run.tensor:
                rows = weights.read(run.tensor, start * inputs, stop * inputs).reshape(-1, inputs)
                band[at : at + stop - start] = interleave(rows, run.head_size) if run.head_size else rows
            at += stop - start
    return band


def _put(file: int, band: Bits, column: int, columns: int) -> None:
    """Rows of a band as columns of a file that has `columns`, from `column` on."""
    step = max(1, _TILE // len(band))
    for first in range(0, band.shape[1], step):
        tile = transposed(band[:, first : first + step])
        if len(band) == columns:
            _write_at(file, tile, first * columns)
        else:
            for row, piece in enumerate(tile, first):
                _write_at(file, piece, row * columns + column)


def _write_at(file: int, numbers: Bits, place: int) -> None:
    content, offset = numbers.data.cast("B"), 2 * place
    while content:  # a disk that is nearly full takes a part, and says so at the next
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


@contextmanager
def _files(folder: Path, names: Sequence[str], size: int) -> Iterator[list[int]]:
    """New files of `size` zeros, open for writing at any place."""
    with ExitStack() as open_files:
        files = [open_files.enter_context((folder / name).open("wb")) for name in names]
        for file in files:
            file.truncate(size)
        yield [file.fileno() for file in files]


def _inputs(weights: Weights, tensor: str) -> int:
    return int(np.prod(weights.shapes[tensor][1:], dtype=np.int64))


def _write_embedding(folder: Path, weights: Weights, geometry: Geometry, progress: Progress) -> None:
    """Each rank has its share of every row."""
    share = geometry.hidden // geometry.tp
    names = [f"tok_embeddings.{rank}.weight" for rank in range(geometry.tp)]
    with _files(folder, names, geometry.padded_rows * share * 2) as files:
        for row, rows in _row_blocks(weights, EMBEDDING, geometry):
            for rank, file in enumerate(files):
                _write_at(file, np.ascontiguousarray(rows[:, rank * share : (rank + 1) * share]), row * share)
            progress(rows.nbytes)


def _write_output(folder: Path, weights: Weights, geometry: Geometry, progress: Progress) -> None:
    """Each rank has its share of the rows."""
    share = geometry.padded_rows // geometry.tp
    names = [f"output.{rank}.weight" for rank in range(geometry.tp)]
    with _files(folder, names, share * geometry.hidden * 2) as files:
        for row, rows in _row_blocks(weights, EMBEDDING if geometry.tied else OUTPUT, geometry):
            for rank, file in enumerate(files):
                begin, end = max(rank * share, row), min((rank + 1) * share, row + len(rows))
                if begin < end:
                    _write_at(file, rows[begin - row : end - row], (begin - rank * share) * geometry.hidden)
            progress(rows.nbytes)


def _row_blocks(weights: Weights, name: str, geometry: Geometry) -> Iterator[tuple[int, Bits]]:
    """A [rows, hidden] matrix in blocks of whole rows, each with the number of its first."""
    hidden = geometry.hidden
    step = max(1, BLOCK // hidden)
    for row in range(0, geometry.rows, step):
        end = min(row + step, geometry.rows)
        yield row, weights.read(name, row * hidden, end * hidden).reshape(-1, hidden)
