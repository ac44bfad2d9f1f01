"""Weights of 4 bits in TurboMind's order: the same codes, with the columns of its matrices, eight in an int32."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.cast import Bits
from export.sources.awq import GROUP, Codes
from export.sources.foreign import Foreign
from export.turbomind.geometry import Geometry, Unservable
from export.turbomind.layout import interleave
from export.turbomind.matrices import Matrix, Run, bands, matrices
from export.turbomind.pieces import new_files, spread
from pipelines.schema import TurbomindExport

KINDS = ("qweight", "scales", "zeros")
"""Endings of the files that a matrix of 4 bits is."""
_BAND = 1 << 25  # codes unpacked at once


def refuse_packed(source: object, geometry: Geometry, table: TurbomindExport) -> None:
    """Whether the numbers of what is exported are packed as the pipeline says.

    Raises:
        Unservable: if not, naming the key.
    """
    key = "export.turbomind.model_format"
    packed = isinstance(source, Foreign) and source.is_packed
    if table.model_format == "hf":
        if packed:
            raise Unservable('the checkpoint holds weights in 4 bits; set it to "awq", which passes them on', key=key)
        return
    if not packed:
        raise Unservable(
            "the checkpoint holds no weights of AutoAWQ; name a directory of them, or set it to hf", key=key
        )
    if table.weight_type != "float16":
        raise Unservable("the engine computes with 4-bit weights in float16; set it to that", key=_WEIGHT_TYPE)
    for matrix in matrices(geometry):
        name = next((run.tensor for run in matrix.runs if run.tensor and not _is_packed(source, run.tensor)), None)
        if in_four_bits(matrix) and name:
            raise Unservable(f"{name} is not in 4 bits, and the engine has all of attention and MLP so", key=key)


_WEIGHT_TYPE = "export.turbomind.weight_type"


def in_four_bits(matrix: Matrix) -> bool:
    """Whether the engine has a matrix in 4 bits, in a folder of such weights."""
    return matrix.kind == "weight" and matrix.split in ("columns", "rows")


def write_packed(folder: Path, source: Foreign, matrix: Matrix, tp: int, progress: Callable[[int], object]) -> None:
    """Write the files of a matrix: codes, scales and zeros, as they are."""
    inputs = next(source.shapes[run.tensor][1] for run in matrix.runs if run.tensor)
    rows, columns = matrix.file_shape(tp)
    for kind in KINDS:
        shape = (rows, columns // 8) if kind == "qweight" else (rows // GROUP, columns)
        names = replace(matrix, kind=kind).files(tp)
        with new_files(folder, names, shape[0] * shape[1] * (4 if kind == "qweight" else 2)) as files:
            first = 0
            for runs in bands(matrix.runs, max(8, _BAND // inputs // 8 * 8)):
                band = _gathered(source, runs, inputs, kind)
                spread(files, band, first, split=matrix.split, shape=shape)
                first += len(band)
                progress(band.nbytes)


def _gathered(source: Foreign, runs: Sequence[Run], inputs: int, kind: str) -> Bits:
    """[rows, inputs] of one kind, of several tensors below each other, in the engine's order."""
    parts: list[Bits] = []
    for run in runs:
        packed = source.packed(run.tensor) if run.tensor else None
        if packed is None:
            width, number = (inputs, np.uint8) if kind == "qweight" else (inputs // GROUP, np.uint16)
            part: Bits = np.zeros((run.stop - run.start, width), number)
        elif kind == "qweight":
            part = packed[0].read_codes(packed[1], run.start, run.stop)
        else:
            zeros, scales = packed[0].read_groups(packed[1], run.start, run.stop)
            part = scales.view(np.uint16) if kind == "scales" else zeros.astype(np.float16).view(np.uint16)
        parts.append(interleave(part, run.head_size) if run.head_size else part)
    band = np.concatenate(parts)
    return pack(band) if kind == "qweight" else band


def _is_packed(source: object, name: str) -> bool:
    return isinstance(source, Foreign) and name in source.shapes and source.packed(name) is not None


def pack(codes: Codes) -> npt.NDArray[np.uint32]:
    """[outputs, in] -> [outputs / 8, in]: eight neighbours in one number, the first in its lowest bits."""
    packed = np.zeros((len(codes) // 8, codes.shape[1]), np.uint32)
    for place in range(8):
        packed |= codes[place::8].astype(np.uint32) << np.uint32(4 * place)
    return packed


def unpack(packed: npt.NDArray[np.uint32]) -> Codes:
    """Undo `pack`."""
    codes = np.empty((len(packed), 8, packed.shape[1]), np.uint8)
    for place in range(8):
        codes[:, place] = (packed >> np.uint32(4 * place)) & np.uint32(15)
    return codes.reshape(-1, packed.shape[1])
