"""The tensors in a model directory, read range by range; what is missing or damaged is named before they are read."""

import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import CheckError, ConfigError, DataError
from pipelines.safetensors_header import read_header
from pipelines.schema import Pipeline
from pipelines.weight_index import read_index

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_BIN = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""One file, or the index of several; the first that is there is taken, as Transformers does."""
_FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Place:
    """Where a tensor is."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    first: int
    """Its first byte in a safetensors file."""
    mapped: Tensor | None = None
    """Of a .bin file: the tensor itself, whose numbers are read from the file as they are used."""


class StoredTensors:
    """A model directory's weight files.

    Only headers are read at first. A .bin file is a pickle: of it only tensors are taken, and no code in it runs.
    """

    def __init__(self, folder: Path, files: Mapping[Path, set[str] | None]) -> None:
        """Open weight files.

        Args:
            files: those to read, and what the index says each of them holds; None where there is no index.
        Raises:
            DataError: if one is missing, cut off, no weight file, or lacks a tensor that the index promises.
        """
        self.folder = folder
        self._places: dict[str, _Place] = {}
        for path, promised in files.items():
            if not path.is_file():
                raise DataError(f"{path}: not there, though {folder.name}'s index names it; download it again")
            found = dict(_in_safetensors(path) if path.suffix == ".safetensors" else _in_bin(path))
            if absent := sorted((promised or set()) - found.keys()):
                raise DataError(f"{path}: holds no {absent[0]}, though the index says so; download it again")
            if twice := sorted(found.keys() & self._places.keys()):
                raise DataError(f"{path}: holds {twice[0]}, which {self._places[twice[0]].path.name} holds as well")
            self._places |= found
        self.shapes: Mapping[str, tuple[int, ...]] = {name: place.shape for name, place in self._places.items()}
        """Of every tensor by name."""

    @classmethod
    def of(cls, pipeline: Pipeline, folder: Path) -> "StoredTensors":
        """A model directory's weights, in the formats that model.weights_format allows.

        Raises:
            ConfigError: if there are only .bin files, and they are not allowed.
            DataError: if there are none, or they are not whole.
        """
        for names in (_SAFETENSORS, _BIN):
            files = _files(folder, *names)
            if files and names is _BIN and pipeline.model.weights_format == "safetensors":
                raise ConfigError(
                    f"{pipeline.cite('model.name_or_path')}: its weights are .bin files only; set "
                    'model.weights_format = "safetensors_or_bin" to read them (no code in them runs), or convert them '
                    "to safetensors"
                )
            if files:
                return cls(folder, files)
        raise DataError(f"{folder}: no {_SAFETENSORS[0]}, nor an index of several; download the model's weights")

    def path(self, name: str) -> Path:
        """The file that a tensor is in."""
        return self._places[name].path

    def on_meta(self, name: str) -> Tensor:
        """A tensor's shape and number format, without its numbers."""
        place = self._places[name]
        return torch.empty(place.shape, dtype=place.dtype, device="meta")

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of a flattened tensor, as they are stored.

        Raises:
            DataError: if the file ends before.
        """
        place = self._places[name]
        if start == stop:
            return torch.empty(0, dtype=place.dtype)  # NumPy's own empty array has no stride that torch would view
        if place.mapped is not None:
            return place.mapped.reshape(-1)[start:stop].clone()
        width = place.dtype.itemsize
        try:
            with place.path.open("rb") as file:
                file.seek(place.first + start * width)
                content = np.fromfile(file, np.uint8, (stop - start) * width)
        except OSError as error:
            raise DataError(f"{place.path}: cannot be read ({error.strerror}); download it again") from error
        if content.size != (stop - start) * width:
            raise DataError(f"{place.path}: ends inside {name}; download it again")
        return torch.from_numpy(content).view(place.dtype)

    def whole(self, name: str) -> Tensor:
        """A tensor in its shape, as it is stored."""
        shape = self._places[name].shape
        return self.read(name, 0, math.prod(shape)).view(shape)


def _files(folder: Path, single: str, index: str) -> dict[Path, set[str] | None]:
    """Weight files of one format; empty if there are none."""
    if (folder / single).is_file():
        return {folder / single: None}
    if not (folder / index).is_file():
        return {}
    try:
        weight_map = read_index(folder / index)
    except ValueError as error:
        raise DataError(f"{folder / index}: {error}; download it again") from error
    names = sorted(set(weight_map.values()))
    return {folder / name: {key for key, file in weight_map.items() if file == name} for name in names}


def _in_safetensors(path: Path) -> Iterator[tuple[str, _Place]]:
    try:
        entries = read_header(path)
    except CheckError as error:
        raise DataError(str(error)) from error
    for name, entry in entries.items():
        if entry.dtype not in _FORMATS:
            raise DataError(
                f"{path}: {name} is stored as {entry.dtype}, which cannot be trained; use the unquantized model"
            )
        yield name, _Place(path, entry.shape, _FORMATS[entry.dtype], entry.first)


def _in_bin(path: Path) -> Iterator[tuple[str, _Place]]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: holds more than weights, which is never run; convert it to safetensors") from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        finding = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read ({finding}); download it again, or convert it") from error
    if not isinstance(tensors, dict):
        raise DataError(f"{path}: holds no tensors by name; download it again")
    for name, tensor in tensors.items():
        if torch.is_tensor(tensor):
            yield name, _Place(path, tuple(tensor.shape), tensor.dtype, 0, tensor.detach())
