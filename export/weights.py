"""A checkpoint's weights as bit patterns of the exported format, range by range, so that no model has to fit memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.cast import WIDTH, Bits, Dtype, all_finite, cast, vanished
from export.merge import Merged
from export.source import Source
from pipelines.errors import CheckError

BLOCK = 1 << 22
"""Elements read, rounded and written at once: 16 MiB of float32."""


class Weights:
    """The parameters of a checkpoint, each number rounded once to `dtype`.

    Args:
        base: the model that the checkpoint's adapter is merged into; without it, parameters are what was trained.
    """

    def __init__(self, checkpoint: Source, dtype: Dtype, base: Path | None = None) -> None:
        self.dtype = dtype
        self._merged = None if base is None else Merged(checkpoint, base)
        self.shapes: Mapping[str, tuple[int, ...]] = self._merged.shapes if self._merged else checkpoint.shapes
        """Of every tensor by name."""
        self.vanished = 0
        """Numbers read so far that are not zero and too small for the format."""
        self._checkpoint = checkpoint

    def size(self, name: str) -> int:
        """Elements of a tensor."""
        return int(np.prod(self.shapes[name], dtype=np.int64))

    def dtype_of(self, name: str) -> Dtype:  # noqa: ARG002 (which some override by name)
        """Number format of a tensor, which is `dtype` where a checkpoint does not hold several."""
        return self.dtype

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(self.size(name) for name in self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.size(name) * WIDTH[self.dtype_of(name)] for name in self.shapes)

    def read(self, name: str, start: int, stop: int) -> Bits:
        """Elements start..stop of the flattened tensor.

        Raises:
            CheckError: if a number is not finite, or not in the exported format.
        """
        values: npt.NDArray[Any]
        if self._merged is None:
            values = self._checkpoint.read("parameter", name, start, stop)
            bits = cast(values, self.dtype)
        else:
            values, bits = self._merged.read(name, start, stop, self.dtype)
        if not all_finite(bits, self.dtype):
            if not np.isfinite(values).all():
                raise CheckError(
                    f"{self._checkpoint.folder}: {name} holds NaN or infinity, so training diverged; "
                    "set export.checkpoint to an earlier step"
                )
            raise CheckError(
                f"{self._checkpoint.folder}: {name} holds {float(np.abs(values).max()):g}, beyond the range of "
                f"{self.dtype}; export bfloat16 or float32"
            )
        self.vanished += vanished(values, bits)
        return bits

    def blocks(self, name: str) -> Iterator[Bits]:
        """The flattened tensor in consecutive blocks."""
        size = self.size(name)
        for start in range(0, size, BLOCK):
            yield self.read(name, start, min(start + BLOCK, size))

    def tensor(self, name: str) -> Bits:
        """A whole tensor in its shape."""
        whole = np.empty(self.size(name), np.uint16 if WIDTH[self.dtype] == 2 else np.uint32)
        for index, block in enumerate(self.blocks(name)):
            whole[index * BLOCK : index * BLOCK + block.size] = block
        return whole.reshape(self.shapes[name])
