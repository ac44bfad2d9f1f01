"""The weights of a model with its adapter merged into it, range by range, every number rounded once.

A merged number is `W + scaling * (B @ A)`, or with DoRA that times `magnitude / length of its row`. It is computed in
float64 together with a bound on how far off it may be. Where the bound leaves open which number of the exported format
is nearest, it is computed again: without DoRA exactly, in fractions; with DoRA, which takes a root, in longer floats.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from export.cast import Bits, Dtype, cast, cast_float64, cast_within
from export.source import Source
from export.sources.torch_file import TensorPlace, load
from pipelines.checkpoints import base_files, digest_base
from pipelines.errors import CheckError, ConfigError, DataError
from pipelines.llama_layouts import MODEL_TYPES, layout_of, unit_rows

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

ROUGHLY = 1 << 19
"""Elements computed at once: 4 MiB of float64."""
UNIT = 2.0**-53
"""Largest relative error of one float64 operation."""
_WIDTH = {"F32": 4, "F16": 2, "BF16": 2}


class Base:
    """The weight files of the model below an adapter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[Path, str, int]] = {}
        """Of every tensor: its file, its format and its first byte."""
        for path in base_files(folder):
            for name, dtype, shape, first in (_in_bin if path.suffix == ".bin" else _in_safetensors)(path):
                if dtype not in _WIDTH:
                    raise ConfigError(
                        f"{path}: {name} is stored as {dtype}, which an adapter cannot be merged into; use "
                        "the original model, or the target adapter"
                    )
                self.shapes[name] = shape
                self._places[name] = (path, dtype, first)

    def read(self, name: str, start: int, stop: int) -> Float32:
        """Elements start..stop of a flattened tensor; every format read here fits float32."""
        path, dtype, first = self._places[name]
        kind: Any = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[dtype]
        with path.open("rb") as file:
            file.seek(first + start * _WIDTH[dtype])
            values = np.fromfile(file, kind, stop - start)
        if values.size != stop - start:
            raise CheckError(f"{path}: ends inside {name}; restore the base model")
        if dtype == "BF16":
            return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.asarray(values, np.float32)

    def whole(self, name: str) -> Float32:
        """A tensor in its shape."""
        shape = self.shapes[name]
        return self.read(name, 0, int(np.prod(shape, dtype=np.int64))).reshape(shape)


_Entry = tuple[str, str, tuple[int, ...], int]
"""Name, format, shape and first byte of a tensor."""
_FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _in_safetensors(path: Path) -> Iterator[_Entry]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: not a safetensors file ({error}); restore the base model") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        yield name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]


def _in_bin(path: Path) -> Iterator[_Entry]:
    """Of a pickle, whose code is not run."""
    content = load(path)
    for name, place in content.items() if isinstance(content, dict) else ():
        if isinstance(place, TensorPlace):
            if not place.is_contiguous:
                raise DataError(f"{path}: {name} does not lie there in one piece; convert the model to safetensors")
            yield name, _FORMATS.get(place.dtype, place.dtype), place.shape, place.first


class OriginalBase(Base):
    """The same of a model in the layout of InternLM, InternLM2 or Baichuan, read as the Llama that was trained."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder)
        self.config = config
        """config.json of the directory."""
        layout = layout_of(config)
        self._stored = dict(self.shapes)
        self._normalized = layout.normalized
        self._rows = layout.places()
        self.shapes = {
            name: (places[-1].stop, *self._stored[places[0].original][1:]) for name, places in self._rows.items()
        }

    def read(self, name: str, start: int, stop: int) -> Float32:
        """Elements start..stop of one of Llama's tensors, flattened."""
        if name not in self._normalized:
            return self._joined(name, start, stop)
        width = int(np.prod(self.shapes[name][1:], dtype=np.int64))
        first, last = start // width * width, -(-stop // width) * width
        rows = self._joined(name, first, last).reshape(-1, width)
        return unit_rows(rows).reshape(-1)[start - first : stop - first]

    def _joined(self, name: str, start: int, stop: int) -> Float32:
        width = int(np.prod(self.shapes[name][1:], dtype=np.int64))
        ranges = [(place.original, *place.within(start, stop, width)) for place in self._rows[name]]
        found = [super(OriginalBase, self).read(*one) for one in ranges if one[1] < one[2]]
        return np.concatenate(found) if found else np.empty(0, np.float32)


def open_base(folder: Path) -> Base:
    """The files of the model below an adapter, under the names that it was trained by."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        config = None
    if isinstance(config, dict) and config.get("model_type") in MODEL_TYPES:
        return OriginalBase(folder, config)
    return Base(folder)


@dataclass(frozen=True)
class Addition:
    """What an adapter does to one matrix of `rows` x `columns`, as it is stored."""

    left: Float64
    """[rows, rank]"""
    right: Float64
    """[rank, columns]"""
    scaling: float
    magnitude: Float64 | None
    """DoRA: the length each output's weights are brought to."""
    transposed: bool
    """Whether outputs are columns."""

    @cached_property
    def reach(self) -> Float64:
        """[columns] length of each column of `right`."""
        return np.asarray(np.linalg.norm(self.right, axis=0))


class Merged:
    """The base's tensors under their names in its files, with the adapter of a checkpoint in them."""

    def __init__(self, checkpoint: Source, base: Path | Base) -> None:
        """Put the checkpoint's adapter on a base: a model's directory, or one opened already."""
        self.folder = checkpoint.folder
        self._checkpoint = checkpoint
        self._base = base if isinstance(base, Base) else open_base(base)
        self._layers: Mapping[str, Any] = {f"{name}.weight": how for name, how in checkpoint.adapter["layers"].items()}
        self._whole = dict(_trained_whole(checkpoint))
        """Tensor of the base -> trained tensor that takes its place."""
        for name in self._whole:
            if name not in self._base.shapes:
                raise ConfigError(
                    f"{self._base.folder}: stores {name}, which was trained whole, in another form, and merging does "
                    "not support that; use the target adapter, or train without it among model.lora.modules_to_save"
                )
        for name in self._layers:
            if name not in self._base.shapes:
                raise ConfigError(
                    f"{self._base.folder}: has no tensor {name}, so it is stored in another layout than it was trained "
                    "in, which merging does not support; load and save it with Transformers first, or use the target "
                    "adapter"
                )
        stale = self._stale_copy()
        # What was trained whole may have grown: there are more rows where tokens were added.
        grown = {name: checkpoint.shapes[trained] for name, trained in self._whole.items()}
        self.shapes = {name: grown.get(name, shape) for name, shape in self._base.shapes.items() if name != stale}
        self._additions = lru_cache(maxsize=2)(self._read_addition)
        self._all_lengths = lru_cache(maxsize=2)(self._measure_lengths)
        self._preparing = RLock()

    def read(self, name: str, start: int, stop: int, dtype: Dtype) -> tuple[npt.NDArray[Any], Bits]:
        """Elements start..stop of a flattened tensor, as computed and as rounded."""
        if name in self._whole:
            values = self._checkpoint.read("parameter", self._whole[name], start, stop)
            return values, cast(values, dtype)
        if name not in self._layers:
            values = self._base.read(name, start, stop)
            return values, cast(values, dtype)
        merged, bits = np.empty(stop - start, np.float64), []
        for first, last in self._row_blocks(name, start, stop):
            columns = self.shapes[name][1]
            rows, error = self._rows(name, first, last)
            inside = slice(max(start - first * columns, 0), min(stop, last * columns) - first * columns)
            at = first * columns + inside.start - start
            flat, bound = rows.reshape(-1)[inside], error.reshape(-1)[inside]
            merged[at : at + flat.size] = flat
            bits.append(self._rounded(name, first * columns + inside.start, flat, bound, dtype))
        return merged, np.concatenate(bits)

    def _rounded(self, name: str, start: int, values: Float64, error: Float64, dtype: Dtype) -> Bits:
        bits, unsure = cast_within(values, error, dtype)
        places = np.flatnonzero(unsure & np.isfinite(values))
        if places.size:
            again = [self._again(name, *divmod(start + int(place), self.shapes[name][1])) for place in places]
            bits[places] = cast_float64(np.array(again), dtype)
        return bits

    def _rows(self, name: str, first: int, last: int) -> tuple[Float64, Float64]:
        """Rows first..last of a merged matrix and the largest error of each of their numbers."""
        addition = self._addition(name)
        values, error = self._sum(name, addition, first, last)
        if addition.magnitude is None:
            return values, error
        factor = addition.magnitude / self._lengths(name)
        # A sum of n squares is off by less than 2 sqrt(n) units nearly always; four times that is taken.
        inputs = self.shapes[name][0 if addition.transposed else 1]
        rank = addition.left.shape[1]
        share = (8 * np.sqrt(inputs) + 4 * rank + 16) * UNIT
        factor = factor if addition.transposed else factor[first:last]
        _scale(values, error, factor, share, addition.transposed)
        return values, error

    def _sum(self, name: str, addition: Addition, first: int, last: int) -> tuple[Float64, Float64]:
        columns = self.shapes[name][1]
        before = self._base.read(name, first * columns, last * columns).reshape(-1, columns)
        values, error = np.empty(before.shape), np.empty(before.shape)
        left, right = addition.left[first:last], addition.right
        _add(before, left, right, addition.scaling, addition.reach, values, error)
        return values, error

    def _again(self, name: str, row: int, column: int) -> float:
        """One number again, as a float64 that rounds to any shorter format as the number itself does."""
        addition = self._addition(name)
        if addition.magnitude is None:
            products = zip(addition.left[row].tolist(), addition.right[:, column].tolist(), strict=True)
            total = sum((Fraction(one) * Fraction(other) for one, other in products), Fraction(0))
            place = row * self.shapes[name][1] + column
            before = Fraction(float(self._base.read(name, place, place + 1)[0]))
            return odd(before + Fraction(addition.scaling) * total)
        output = column if addition.transposed else row
        weights = self._output(name, addition, output)
        length = np.sqrt((weights**2).sum())
        merged = np.longdouble(addition.magnitude[output]) * weights[row if addition.transposed else column] / length
        numerator, denominator = merged.as_integer_ratio()
        return odd(Fraction(numerator, denominator))

    def _output(self, name: str, addition: Addition, output: int) -> npt.NDArray[np.longdouble]:
        """The weights of one output before they are brought to their length, in the longest floats there are."""
        rows, columns = self.shapes[name]
        if addition.transposed:
            before = self._base.read(name, 0, rows * columns).reshape(rows, columns)[:, output]
            factors, other = addition.right[:, output], addition.left.T
        else:
            before = self._base.read(name, output * columns, (output + 1) * columns)
            factors, other = addition.left[output], addition.right
        added = factors.astype(np.longdouble) @ other.astype(np.longdouble)
        return np.asarray(before.astype(np.longdouble) + np.longdouble(addition.scaling) * added)

    def _addition(self, name: str) -> Addition:
        with self._preparing:  # once for all threads that read the tensor
            return self._additions(name)

    def _lengths(self, name: str) -> Float64:
        with self._preparing:
            return self._all_lengths(name)

    def _measure_lengths(self, name: str) -> Float64:
        """Of each output's weights with the addition."""
        addition = self._addition(name)
        rows, columns = self.shapes[name]
        squares = np.zeros(columns if addition.transposed else rows)
        for first, last in self._row_blocks(name, 0, rows * columns):
            values, _ = self._sum(name, addition, first, last)
            if addition.transposed:
                squares += (values**2).sum(axis=0)
            else:
                squares[first:last] = (values**2).sum(axis=1)
        return np.asarray(np.sqrt(squares))

    def _read_addition(self, name: str) -> Addition:
        module, how = name.removesuffix(".weight"), self._layers[name]
        found = {}
        for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"):
            for trained in (f"{module}.{part}.default.weight", f"{module}.{part}.default"):
                if trained in self._checkpoint.shapes:
                    values = self._checkpoint.read("parameter", trained).astype(np.float64)
                    found[part.replace("_embedding", "")] = values.reshape(self._checkpoint.shapes[trained])
        left, right = found["lora_B"], found["lora_A"]
        if how["transposed"]:
            left, right = np.ascontiguousarray(right.T), np.ascontiguousarray(left.T)
        magnitude = found["lora_magnitude_vector"].reshape(-1) if how["dora"] else None
        return Addition(left, right, float(how["scaling"]), magnitude, bool(how["transposed"]))

    def _row_blocks(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Rows that hold elements start..stop, a few at a time; the same ones wherever `start` is."""
        columns = self.shapes[name][1]
        rows = max(1, ROUGHLY // columns)
        end = -(-stop // columns)
        first = start // columns
        while first < end:
            last = min(end, (first // rows + 1) * rows)
            yield first, last
            first = last

    def _stale_copy(self) -> str | None:
        """A second copy of the embedding in the base's files, of a model that has one matrix for both ends."""
        ties = dict(self._checkpoint.manifest.facts["tied"])
        both = {plain_name(name) for pair in ties.items() for name in pair} - set(self._whole)
        return next((name for name in both if name in self._base.shapes), None)


@njit(cache=True, nogil=True)
def _add(
    before: Float32,
    left: Float64,
    right: Float64,
    scaling: float,
    columns: Float64,
    values: Float64,
    error: Float64,
) -> None:
    # Sums of one number run in one order, whatever the number of threads. |row| |column| bounds the sum of the sizes of
    # its products; there is an error for each of those, and for scaling and adding. What no product reaches is exact,
    # however small the scaling is.
    rank = left.shape[1]
    for i in range(values.shape[0]):
        row, length = values[i], 0.0
        row[:] = 0.0
        for k in range(rank):
            factor = left[i, k]
            length += factor * factor
            other = right[k]
            for j in range(row.size):
                row[j] += factor * other[j]
        length = np.sqrt(length) * (1.0 + 1e-9)
        for j in range(row.size):
            reach = length * columns[j]
            row[j] = np.float64(before[i, j]) + scaling * row[j]
            bound = (abs(row[j]) + reach * abs(scaling) * (rank + 4)) * (UNIT * 1.01)
            error[i, j] = bound if reach != 0.0 else 0.0


@njit(cache=True, nogil=True)
def _scale(values: Float64, error: Float64, factor: Float64, share: float, by_column: bool) -> None:
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            own = factor[j] if by_column else factor[i]
            values[i, j] *= own
            error[i, j] = error[i, j] * abs(own) + abs(values[i, j]) * share


def check_base(checkpoint: Source, base: Path) -> None:
    """Refuse another model than the adapter was trained on.

    Raises:
        CheckError: if it is another.
        DataError: if there is none.
    """
    there, here = checkpoint.adapter["base"]["sha256"], digest_base(base)
    if here != there:
        raise CheckError(
            f"{base}: not the model that the adapter in {checkpoint.folder} was trained on (digest {here[:12]}, "
            f"trained on {there[:12]}); restore its files"
        )


def odd(value: Fraction) -> float:
    """The float64 on either side of a number whose last bit is 1, or the number itself where it is a float64.

    Rounded on to a format of at least two bits less, it gives what the number itself would.
    """
    near = float(value)
    if Fraction(near) == value or np.float64(near).view(np.uint64) & np.uint64(1):
        return near
    return float(np.nextafter(near, np.inf if value > Fraction(near) else -np.inf))


def plain_name(trained: str) -> str:
    """The name that a tensor trained whole has in the model without the adapter."""
    return re.sub(r"\.(modules_to_save\.default|base_layer)\.", ".", trained)


def _trained_whole(checkpoint: Source) -> Iterator[tuple[str, str]]:
    for name in checkpoint.shapes:
        if ".original_module." not in name and not re.search(r"\.lora_\w+\.default(\.weight)?$", name):
            yield plain_name(name), name
