"""Writing the weight files of a TurboMind folder: bands of columns that fit memory, each put at its place.

A matrix of the engine is a Hugging Face matrix transposed, and so written in pieces: rows of the tensors are read up
to `BAND` numbers, and each row of the files gets its piece of them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from export.cast import Bits
from export.sources.foreign import Foreign
from export.turbomind.geometry import Geometry
from export.turbomind.layout import interleave
from export.turbomind.matrices import EMBEDDING, OUTPUT, Matrix, Run, bands, matrices
from export.turbomind.packed import in_four_bits, write_packed
from export.turbomind.pieces import new_files, spread, write_at
from export.weights import BLOCK, Weights

BAND = 1 << 25
"""Numbers of a matrix in memory at once: 64 MiB, pieces of 4 KiB and more for matrices up to 16,384 rows."""

Progress = Callable[[int], object]


def write_weights(
    folder: Path, weights: Weights, geometry: Geometry, progress: Progress, packed: Foreign | None = None
) -> None:
    """Write every weight file; memory holds a band and a block, whatever the size of a matrix.

    Args:
        progress: told the bytes written since it was told last.
        packed: what holds the matrices in 4 bits, where they are passed on so.
    """
    _write_embedding(folder, weights, geometry, progress)
    _write_output(folder, weights, geometry, progress)
    for matrix in matrices(geometry):
        if packed is not None and in_four_bits(matrix):
            write_packed(folder, packed, matrix, geometry.tp, progress)
        else:
            _write_matrix(folder, weights, matrix, geometry.tp, progress)


def _write_matrix(folder: Path, weights: Weights, matrix: Matrix, tp: int, progress: Progress) -> None:
    rows, columns = matrix.file_shape(tp)
    tensor = next((run.tensor for run in matrix.runs if run.tensor), None)
    with new_files(folder, matrix.files(tp), rows * columns * 2) as files:
        if tensor is None:
            return  # zeros, which a file is from the start
        inputs = _inputs(weights, tensor)
        first = 0
        for runs in bands(matrix.runs, max(1, BAND // inputs)):
            band = _gathered(weights, runs, inputs)
            spread(files, band, first, split=matrix.split, shape=(rows, columns))
            first += len(band)
            progress(band.nbytes)


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


def _inputs(weights: Weights, tensor: str) -> int:
    return int(np.prod(weights.shapes[tensor][1:], dtype=np.int64))


def _write_embedding(folder: Path, weights: Weights, geometry: Geometry, progress: Progress) -> None:
    """Each rank has its share of every row."""
    share = geometry.hidden // geometry.tp
    names = [f"tok_embeddings.{rank}.weight" for rank in range(geometry.tp)]
    with new_files(folder, names, geometry.padded_rows * share * 2) as files:
        for row, rows in _row_blocks(weights, EMBEDDING, geometry):
            for rank, file in enumerate(files):
                write_at(file, np.ascontiguousarray(rows[:, rank * share : (rank + 1) * share]), row * share)
            progress(rows.nbytes)


def _write_output(folder: Path, weights: Weights, geometry: Geometry, progress: Progress) -> None:
    """Each rank has its share of the rows."""
    share = geometry.padded_rows // geometry.tp
    names = [f"output.{rank}.weight" for rank in range(geometry.tp)]
    with new_files(folder, names, share * geometry.hidden * 2) as files:
        for row, rows in _row_blocks(weights, EMBEDDING if geometry.tied else OUTPUT, geometry):
            for rank, file in enumerate(files):
                begin, end = max(rank * share, row), min((rank + 1) * share, row + len(rows))
                if begin < end:
                    write_at(file, rows[begin - row : end - row], (begin - rank * share) * geometry.hidden)
            progress(rows.nbytes)


def _row_blocks(weights: Weights, name: str, geometry: Geometry) -> Iterator[tuple[int, Bits]]:
    """A [rows, hidden] matrix in blocks of whole rows, each with the number of its first."""
    hidden = geometry.hidden
    step = max(1, BLOCK // hidden)
    for row in range(0, geometry.rows, step):
        end = min(row + step, geometry.rows)
        yield row, weights.read(name, row * hidden, end * hidden).reshape(-1, hidden)
