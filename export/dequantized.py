"""The model below an adapter as it was in 4 bits: the numbers that training multiplied with, made of its files again.

bitsandbytes cuts a matrix into blocks of 64 numbers, row by row. A block has a scale, the largest size in it, and each
number becomes the nearest of 16 levels times that scale. With double quantization the scales themselves become, less
their mean, one of 256 levels times the scale of 256 of them. A product with the matrix unpacks it to the number format
that is computed in.

Everything but the scales' own rounding is plain arithmetic on float32, done here range by range. That rounding differs
between devices and versions of bitsandbytes, so it is left to the library, and a digest of what training had says
whether the same came out.
"""

import hashlib
import logging
from collections.abc import Mapping
from functools import lru_cache
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from export.cast import cast, numbers
from export.merge import Base, Float32
from pipelines.artifacts import Json
from pipelines.errors import CheckError, MachineError

log = logging.getLogger(__name__)

STEP = 1 << 20
"""Elements unpacked at once, whole blocks of them."""
LEVELS: Mapping[str, Float32] = {
    "nf4": np.array(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
            -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
            0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ],
        np.float32,
    ),
    "fp4": np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32)
    / np.float32(12),
}  # fmt: skip
"""What the 16 codes stand for."""
_SMALLEST = np.float32(1e-38)  # a scale is at least this where a number is divided by it


class Dequantized(Base):
    """The tensors of a base under its names: those that were in 4 bits as they were unpacked, the others as they are.

    Args:
        base: the model's files.
        facts: `four_bits` of a checkpoint.
        device: where the scales are rounded.
    """

    def __init__(self, base: Base, facts: Json, device: str = "cpu") -> None:
        self.folder, self.shapes = base.folder, base.shapes
        self.packed: Mapping[str, Json] = facts["matrices"]
        """What is known of every matrix that was in 4 bits, by name."""
        self._base = base
        self._facts = facts
        self._device = device
        levels = LEVELS[facts["type"]]
        self._order = np.argsort(levels, kind="stable").astype(np.uint8)
        self._sorted = levels[self._order]
        self._bounds = (self._sorted[:-1] + self._sorted[1:]) / np.float32(2)
        self._all_scales = lru_cache(maxsize=2)(self._read_scales)
        self._turned = lru_cache(maxsize=2)(self._turn)
        self._all_turned_back = lru_cache(maxsize=2)(self._turn_back)
        self._preparing = RLock()

    @classmethod
    def of(cls, base: Base, facts: Json) -> "tuple[Dequantized, str | None]":
        """The base on the first device here that gives the numbers of training, or else on the CPU.

        Returns:
            The base, and the first matrix that does not come out as it was trained on; None where all do.
        Raises:
            MachineError: if bitsandbytes is missing, or the base's matrices cannot be packed.
        """
        differing = None
        for device in _devices():
            found = cls(base, facts, device)
            name = next((name for name in found.packed if not found.agrees(name)), None)
            if name is None:
                return found, None
            differing = differing or name
        return cls(base, facts), differing

    def read(self, name: str, start: int, stop: int) -> Float32:
        """Elements start..stop of a flattened tensor."""
        if name not in self.packed:
            return self._base.read(name, start, stop)
        if self.packed[name]["transposed"]:
            with self._preparing:  # once for all threads that read the tensor
                return self._all_turned_back(name).reshape(-1)[start:stop]
        return self._unpacked(name, start, stop)

    def agrees(self, name: str) -> bool:
        """Whether the packed bytes and the scales of a matrix are those of training."""
        digest, (_, rounded, twice) = hashlib.sha256(), self._scales(name)
        size, pending = self._size(name), np.empty(0, np.uint8)
        for first in range(0, size, STEP):
            codes = np.concatenate([pending, self._codes(name, first, min(first + STEP, size))])
            pending = codes[codes.size // 2 * 2 :]
            if first + STEP >= size and pending.size:
                nothing = self._order[np.searchsorted(self._bounds, np.float32(0))]
                codes, pending = np.append(codes, nothing), pending[:0]
            digest.update(((codes[: codes.size // 2 * 2 : 2] << np.uint8(4)) | codes[1::2]).data)
        digest.update(rounded.data)
        digest.update(twice.data)
        return bool(digest.hexdigest() == self.packed[name]["sha256"])

    def _unpacked(self, name: str, start: int, stop: int) -> Float32:
        """Elements in the order they were packed in."""
        block, dtype = self._facts["block"], self._facts["compute_dtype"]
        scales, _, _ = self._scales(name)
        first, last = start // block * block, min(-(-stop // block) * block, self._size(name))
        found = np.empty(last - first, np.float32)
        for begin in range(first, last, STEP):
            end = min(begin + STEP, last)
            codes = self._codes(name, begin, end)
            _multiply(codes, LEVELS[self._facts["type"]], scales[begin // block :], block, found[begin - first :])
        found = found[start - first : stop - first]
        return numbers(cast(found, dtype), dtype)

    def _codes(self, name: str, first: int, last: int) -> npt.NDArray[np.uint8]:
        """The 4-bit codes of whole blocks."""
        values = self._in_packed_order(name, first, last)
        codes = np.empty(values.size, np.uint8)
        _quantize(values, self._bounds, self._order, self._facts["block"], codes)
        return codes

    def _scales(self, name: str) -> tuple[Float32, npt.NDArray[Any], Float32]:
        with self._preparing:
            return self._all_scales(name)

    def _read_scales(self, name: str) -> tuple[Float32, npt.NDArray[Any], Float32]:
        """The scale of every block as it multiplies; as it is stored; and the scales of those, if they have some."""
        block, size, facts = self._facts["block"], self._size(name), self.packed[name]
        largest = np.empty(-(-size // block), np.float32)
        for first in range(0, size, STEP):
            values = np.abs(self._in_packed_order(name, first, min(first + STEP, size)))
            largest[first // block : first // block + -(-values.size // block)] = np.maximum.reduceat(
                values, np.arange(0, values.size, block)
            )
        if size % block:
            largest[-1] = max(largest[-1], _SMALLEST)
        if self._facts["scale_block"] is None:
            return largest, largest, np.empty(0, np.float32)
        offset = np.float32(facts["offset"])
        rounded, twice, unpacked = _round_scales(largest - offset, self._facts["scale_block"], self._device)
        return unpacked + offset, rounded, twice

    def _in_packed_order(self, name: str, first: int, last: int) -> Float32:
        if self.packed[name]["transposed"]:
            return self._turned(name)[first:last]
        return self._base.read(name, first, last)

    def _turn(self, name: str) -> Float32:
        # Whole, since a block of its columns lies in all of its rows; such models are small.
        whole = self._base.read(name, 0, self._size(name)).reshape(self.shapes[name])
        return np.ascontiguousarray(whole.T).reshape(-1)

    def _turn_back(self, name: str) -> Float32:
        columns, rows = self.shapes[name]
        return np.ascontiguousarray(self._unpacked(name, 0, rows * columns).reshape(rows, columns).T)

    def _size(self, name: str) -> int:
        return int(np.prod(self.shapes[name], dtype=np.int64))


def refuse_other_numbers(base: Dequantized, differing: str | None) -> None:
    """Raises CheckError where the 4-bit numbers are not those of training."""
    if differing is not None:
        raise CheckError(
            f"{base.folder}: {differing} comes out otherwise in 4 bits than in training, whose device or version of "
            "bitsandbytes rounds scales differently; export on a machine like that, or set "
            'export.merge_base = "original"'
        )


def _devices() -> list[str]:
    import torch

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _round_scales(scales: Float32, block: int, device: str) -> tuple[npt.NDArray[np.uint8], Float32, Float32]:
    """Scales as 8-bit codes, the scales of those, and what they come to."""
    import torch

    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise MachineError(
            "the 4-bit numbers of training need bitsandbytes, which is not installed here; pip install bitsandbytes, "
            'or set export.merge_base = "original"'
        ) from error
    codes, state = functional.quantize_blockwise(torch.from_numpy(scales).to(device), blocksize=block)
    unpacked = functional.dequantize_blockwise(codes, state)
    return codes.cpu().numpy(), state.absmax.cpu().numpy(), unpacked.cpu().numpy()


@njit(cache=True, nogil=True)
def _quantize(
    values: Float32,
    bounds: Float32,
    order: npt.NDArray[np.uint8],
    block: int,
    codes: npt.NDArray[np.uint8],
) -> None:
    scaled = np.empty(block, np.float32)
    for first in range(0, values.size, block):
        count = min(block, values.size - first)
        own = values[first : first + count]
        places = codes[first : first + count]
        largest = max(np.abs(own).max(), _SMALLEST)
        inverse = np.float32(1) / largest
        for i in range(count):
            # A block that is not full is divided by its scale, which is not always the same.
            scaled[i] = own[i] * inverse if count == block else own[i] / largest
            places[i] = 0
        for bound in bounds:  # outside, so that the inner loop is one comparison of many numbers at once
            for i in range(count):
                places[i] += np.uint8(scaled[i] > bound)
        for i in range(count):
            places[i] = order[places[i]]


@njit(cache=True, nogil=True)
def _multiply(codes: npt.NDArray[np.uint8], levels: Float32, scales: Float32, block: int, found: Float32) -> None:
    for i in range(codes.size):
        found[i] = levels[codes[i]] * scales[i // block]
