"""Matrices of 4 bits as AutoAWQ stores them (`gemm`): read as the numbers they stand for, or as the codes themselves.

A linear layer [out, in] is three tensors: `qweight` int32 [in, out / 8], `qzeros` int32 [in / group, out / 8] and
`scales` float16 [in / group, out]. A number is (code - zero) * scale.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.sources.stored import Float32, Run, StoredTensor
from pipelines.errors import ConfigError, DataError
from pipelines.file_ranges import FileRanges
from pipelines.safetensors_header import Entry

GROUP = 128
"""Inputs that share a scale and a zero, the only number that TurboMind has kernels for."""
_NIBBLES = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32) * 4  # bit of each of eight neighbours within an int32
_WORDS = 1 << 22  # read at once

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class AwqTensor(StoredTensor):
    """A matrix [out, in] of 4 bits; its pieces are all that is stored of it."""

    codes: Run
    zeros: Run
    scales: Run

    @classmethod
    def of(cls, parts: Mapping[str, tuple[Path, Entry]]) -> "AwqTensor":
        """One whose parts lie in files."""
        runs = {kind: Run(path, entry.first, "float16", 0, entry.size // 2) for kind, (path, entry) in parts.items()}
        shape = (parts["scales"][1].shape[1], parts["qweight"][1].shape[0])
        return cls(shape, list(runs.values()), runs["qweight"], runs["qzeros"], runs["scales"])

    def read(self, ranges: FileRanges, start: int, stop: int) -> Float32:
        """Elements start..stop of the flattened matrix, as the numbers that they stand for."""
        inputs = self.shape[1]
        first, last = start // inputs, -(-stop // inputs)
        begin, end = first // 8 * 8, -(-last // 8) * 8
        codes = self.read_codes(ranges, begin, end).astype(np.float32)
        zeros, scales = self.read_groups(ranges, begin, end)
        groups = codes.reshape(end - begin, -1, GROUP)
        groups -= zeros[:, :, None]
        groups *= scales.astype(np.float32)[:, :, None]
        return codes.reshape(-1)[start - begin * inputs : stop - begin * inputs]

    def read_codes(self, ranges: FileRanges, begin: int, end: int) -> Codes:
        """[end - begin, in] codes of outputs begin..end, multiples of 8."""
        return _unpacked(ranges, self.codes, self.shape[1], self.shape[0] // 8, begin // 8, end // 8)

    def read_groups(self, ranges: FileRanges, begin: int, end: int) -> tuple[Codes, npt.NDArray[np.float16]]:
        """[end - begin, in / group] zeros and scales of outputs begin..end, multiples of 8."""
        groups = self.shape[1] // GROUP
        zeros = _unpacked(ranges, self.zeros, groups, self.shape[0] // 8, begin // 8, end // 8)
        scales = np.empty((groups, self.shape[0]), np.float16)
        ranges.read_bytes(self.scales.path, self.scales.first, scales)
        return zeros, np.ascontiguousarray(scales[:, begin:end].T)


def _unpacked(ranges: FileRanges, run: Run, rows: int, words: int, begin: int, end: int) -> Codes:
    """[8 * (end - begin), rows] codes of words begin..end of every row."""
    found = np.empty((end - begin, 8, rows), np.uint8)
    step = max(1, _WORDS // words)
    for row in range(0, rows, step):
        packed = np.empty((min(step, rows - row), words), np.uint32)
        ranges.read_bytes(run.path, run.first + row * words * 4, packed)
        part = packed[:, begin:end].T
        for place, bit in enumerate(_NIBBLES):
            found[:, place, row : row + len(packed)] = (part >> bit) & np.uint32(15)
    return found.reshape(-1, rows)


def is_read(folder: Path) -> bool:
    """Whether a directory's config.json says of its integers that they are 4 bits as they are read here.

    Raises:
        ConfigError: if it says that they are quantized in another way, naming it.
    """
    try:
        found = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return False  # whoever reads it says so
    if not found:
        return False
    method, version = found.get("quant_method"), str(found.get("version", "gemm")).lower()
    bits, group = found.get("bits"), found.get("group_size")
    if (method, version, bits, group) == ("awq", "gemm", 4, GROUP) and found.get("zero_point", True):
        return True
    about = f"{bits} bits, group_size {group}" + (f", version {version!r}" if method == "awq" else "")
    raise ConfigError(
        f"{folder}: holds weights quantized with {method} ({about}); of quantized models only AWQ of 4 bits with "
        f"version 'gemm', zero points and group_size {GROUP} is exported, start from the model before it was quantized"
    )


def joined(entries: Mapping[str, tuple[Path, Entry]]) -> dict[str, AwqTensor]:
    """The matrices of 4 bits in a directory, by the names that they have unpacked.

    Raises:
        DataError: if a part of one is missing or has another shape.
    """
    found = {}
    for name, (path, codes) in entries.items():
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        inputs, words = codes.shape
        wanted = {
            "qweight": ("I32", (inputs, words)),
            "qzeros": ("I32", (inputs // GROUP, words)),
            "scales": ("F16", (inputs // GROUP, words * 8)),
        }
        parts = {kind: entries[f"{module}.{kind}"] for kind in wanted if f"{module}.{kind}" in entries}
        for kind, expected in wanted.items():
            shown = (parts[kind][1].dtype, parts[kind][1].shape) if kind in parts else "missing"
            if shown != expected or inputs % GROUP:
                raise DataError(f"{path}: {module}.{kind} is {shown}, for AWQ it has to be {expected}; copy it again")
        found[f"{module}.weight"] = AwqTensor.of(parts)
    return found


PARTS = (".qweight", ".qzeros", ".scales")
"""Endings of what is stored of a matrix."""
