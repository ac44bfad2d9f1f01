"""A checkpoint's weights as bit patterns of the exported format, range by range, so that no model has to fit memory."""

import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.cast import WIDTH, Bits, Dtype, all_finite, rounded, vanished
from export.merge import Base, Merged
from export.source import Source
from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError, ConfigError

BLOCK = 1 << 20
"""Elements read, rounded and written at once: 4 MiB of float32, which processors have a cache for."""


class Weights:
    """The parameters of a checkpoint, each number rounded once to `dtype`.

    Args:
        base: the model that the checkpoint's adapter is merged into; without it, parameters are what was trained.
        float32: found in the names of tensors that stay float32 whatever `dtype` is.
    Raises:
        ConfigError: if the model keeps something that is not a number beside its parameters.
    """

    def __init__(
        self, checkpoint: Source, dtype: Dtype, base: Path | Base | None = None, float32: re.Pattern[str] | None = None
    ) -> None:
        self.dtype = dtype
        self._float32 = float32
        self._merged = None if base is None else Merged(checkpoint, base)
        self._buffers = _buffers(checkpoint) if base is None else {}
        self.shapes: Mapping[str, tuple[int, ...]] = (
            self._merged.shapes
            if self._merged
            else {**checkpoint.shapes, **{name: values.shape for name, values in self._buffers.items()}}
        )
        """Of every tensor by name: parameters, then what the model stores beside them (persistent buffers)."""
        self.vanished = 0
        """Numbers read so far that are not zero and too small for the format."""
        self._counting = threading.Lock()
        self._checkpoint = checkpoint

    def size(self, name: str) -> int:
        """Elements of a tensor."""
        return int(np.prod(self.shapes[name], dtype=np.int64))

    @property
    def trained(self) -> "Weights":
        """The same weights under the names they were trained by."""
        return self

    def dtype_of(self, name: str) -> Dtype:
        """Number format of a tensor: `dtype`, or float32 where the model computes with that alone."""
        return "float32" if self._float32 is not None and self._float32.search(name) else self.dtype

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(self.size(name) for name in self.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.size(name) * WIDTH[self.dtype_of(name)] for name in self.shapes)

    def read(self, name: str, start: int, stop: int) -> Bits:
        """Elements start..stop of the flattened tensor, for any thread.

        Raises:
            CheckError: if a number is not finite, or not in the exported format.
        """
        values: npt.NDArray[Any]
        dtype = self.dtype_of(name)
        if self._merged is not None:
            values, bits = self._merged.read(name, start, stop, dtype)
            finite, lost = all_finite(bits, dtype), vanished(values, bits)
        else:
            buffer = self._buffers.get(name)
            values = (
                self._checkpoint.read("parameter", name, start, stop)
                if buffer is None
                else buffer.reshape(-1)[start:stop]
            )
            bits, finite, lost = rounded(values, dtype)
        if not finite:
            if not np.isfinite(values).all():
                raise CheckError(
                    f"{self._checkpoint.folder}: {name} holds NaN or infinity, so training diverged; "
                    "set export.checkpoint to an earlier step"
                )
            raise CheckError(
                f"{self._checkpoint.folder}: {name} holds {float(np.abs(values).max()):g}, beyond the range of "
                f"{dtype}; export bfloat16 or float32"
            )
        if lost:
            with self._counting:
                self.vanished += lost
        return bits

    def blocks(self, name: str) -> Iterator[Bits]:
        """The flattened tensor in consecutive blocks."""
        size = self.size(name)
        for start in range(0, size, BLOCK):
            yield self.read(name, start, min(start + BLOCK, size))

    def tensor(self, name: str) -> Bits:
        """A whole tensor in its shape."""
        whole = np.empty(self.size(name), np.uint16 if WIDTH[self.dtype_of(name)] == 2 else np.uint32)
        for index, block in enumerate(self.blocks(name)):
            whole[index * BLOCK : index * BLOCK + block.size] = block
        return whole.reshape(self.shapes[name])


def _buffers(source: Source) -> dict[str, npt.NDArray[np.float32]]:
    """What a checkpoint of ours keeps apart; in other files it is among the tensors."""
    found = dict(source.buffers()) if isinstance(source, Checkpoint) else {}
    for name, values in found.items():
        if values.dtype != np.float32:
            raise ConfigError(
                f"{source.folder}: the model keeps {name} beside its parameters as {values.dtype}, which export does "
                "not write; use a model of another type"
            )
    return found
