"""A model's tensors under the names it was published with, where Transformers 5 trains it under others.

Transformers 5 joins the experts of a layer into one tensor and gives some modules new names. What it loads, and every
earlier version, are the names that the model came with. Its own conversion runs here backwards, as `save_pretrained`
runs it, on descriptions of tensors instead of tensors; the numbers follow range by range as they are written.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.core_model_loading import revert_weight_conversion

from export.cast import Bits, Dtype
from export.language_model import model_class
from export.weights import Weights
from pipelines.errors import ConfigError

Shape = tuple[int, ...]


class Form:
    """What the class of a model says about its files: names, and what stays float32.

    Args:
        config: config.json as the trainer saved it.
        origin: what the config is of, for messages.
    Raises:
        ConfigError: if Transformers has no such language model.
    """

    def __init__(self, config: Mapping[str, Any], origin: Path) -> None:
        settings, architecture = model_class(config, str(origin))
        self.settings = _every_setting(settings)
        """config.json with what this Transformers has by default, each setting under all names that it has."""
        with torch.device("meta"):
            self._model = architecture._from_config(settings, dtype=torch.float32)
        self._origin = origin

    def float32(self, dtype: Dtype) -> re.Pattern[str] | None:
        """What is found in the names of tensors that are computed in float32 whatever format the others have."""
        plan = self._model._get_dtype_plan(getattr(torch, dtype))
        return re.compile("|".join(pattern.replace("*", ".*") for pattern in plan)) if plan else None

    def published(self, weights: Weights) -> Weights:
        """The weights under the names of the model's files; themselves, if they have those already.

        Raises:
            ConfigError: if a tensor of the files cannot be put together range by range.
        """
        if not weights.shapes.keys() <= self._model.state_dict().keys():
            return weights  # under the names of files already
        state = {name: Region.whole(name, shape) for name, shape in weights.shapes.items()}
        try:
            found = revert_weight_conversion(self._model, state)
        except NotImplementedError as error:
            raise ConfigError(
                f"{self._origin}: {self.settings['model_type']} models are stored in a form that export cannot write "
                f"({error}); use a model of another type"
            ) from error
        tensors = {name: found[name] if isinstance(found[name], Joined) else Joined((found[name],)) for name in found}
        if all(tensor.parts == (state.get(name),) for name, tensor in tensors.items()):
            return weights
        place = {name: index for index, name in enumerate(weights.shapes)}
        order = sorted(tensors, key=lambda name: (place[(first := tensors[name].parts[0]).name], first.offset))
        return PublishedWeights(weights, {name: tensors[name] for name in order})


class PublishedWeights(Weights):
    """Weights under the names of the model's files; no number changes.

    Args:
        trained: the same weights under the names they were trained by.
        tensors: of which parts of those each tensor of the files is made.
    """

    def __init__(self, trained: Weights, tensors: Mapping[str, "Joined"]) -> None:
        self.dtype = trained.dtype
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._trained = trained
        self._tensors = tensors

    @property
    def trained(self) -> Weights:
        """The weights under the names they were trained by."""
        return self._trained

    @property
    def vanished(self) -> int:  # type: ignore[override]  # counted where the numbers are rounded
        """Numbers read so far that are not zero and too small for the format."""
        return self._trained.vanished

    def dtype_of(self, name: str) -> Dtype:
        """Number format of a tensor."""
        return self._trained.dtype_of(self._tensors[name].parts[0].name)

    def read(self, name: str, start: int, stop: int) -> Bits:
        """Elements start..stop of the flattened tensor."""
        found = [self._trained.read(*run) for run in self._tensors[name].runs(start, stop)]
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True)
class Region:
    """A part of a trained tensor, addressed as PyTorch addresses a view: what operations on tensors make of it."""

    name: str
    shape: Shape
    strides: Shape
    offset: int = 0
    """First element within the flattened tensor."""

    @classmethod
    def whole(cls, name: str, shape: Shape) -> "Region":
        """All of a tensor."""
        return cls(name, shape, tuple(prod(shape[dim + 1 :]) for dim in range(len(shape))))

    def runs(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Ranges of the trained tensor that together are elements start..stop of this one, flattened."""
        while start < stop:
            index, within = divmod(start, self._run)
            length = min(self._run - within, stop - start)
            place = self.offset + within
            for size, stride in zip(reversed(self._outer[0]), reversed(self._outer[1]), strict=True):
                index, at = divmod(index, size)
                place += at * stride
            yield self.name, place, place + length
            start += length

    @cached_property
    def _dims(self) -> int:
        """Dimensions that change from one run of consecutive elements to the next."""
        dims = len(self.shape)
        while dims and (self.shape[dims - 1] == 1 or self.strides[dims - 1] == prod(self.shape[dims:])):
            dims -= 1
        return dims

    @cached_property
    def _run(self) -> int:
        """Elements that lie one after the other."""
        return prod(self.shape[self._dims :])

    @cached_property
    def _outer(self) -> tuple[Shape, Shape]:
        return self.shape[: self._dims], self.strides[: self._dims]

    # What follows is what Transformers does with a tensor when it saves a model.

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function not in _OPERATIONS:
            raise NotImplementedError(f"{getattr(function, '__name__', function)} of tensors")
        return _OPERATIONS[function](*args, **(kwargs or {}))

    def size(self, dim: int) -> int:
        return self.shape[dim]

    def contiguous(self) -> "Region":
        return self

    def squeeze(self, dim: int) -> "Region":
        assert self.shape[dim] == 1
        return self._with(_without(self.shape, dim), _without(self.strides, dim))

    def _with(self, shape: Shape, strides: Shape, offset: int = 0) -> "Region":
        return Region(self.name, shape, strides, self.offset + offset)

    def narrow(self, dim: int, start: int, length: int) -> "Region":
        """Those of `length` indices of a dimension from `start` on."""
        shape = (*self.shape[:dim], length, *self.shape[dim + 1 :])
        return self._with(shape, self.strides, start * self.strides[dim])


@dataclass(frozen=True)
class Joined:
    """Parts of trained tensors, one after the other along the first dimension."""

    parts: tuple[Region, ...]

    @property
    def shape(self) -> Shape:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]) if self.parts[0].shape else ()

    def runs(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Ranges of the trained tensors that together are elements start..stop of this one, flattened."""
        position = 0
        for part in self.parts:
            size = prod(part.shape)
            yield from part.runs(max(start - position, 0), min(stop - position, size))
            position += size


def _every_setting(config: Any) -> dict[str, Any]:
    # The difference is to what any model has by default, not to the defaults of its class.
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    # A class that says `num_experts` in one version may say `num_local_experts` in another, and read the first as well.
    for other, name in type(config).attribute_map.items():
        if name in found:
            found.setdefault(other, found[name])
    return found


def _chunk(region: Region, chunks: int, dim: int = 0) -> list[Region]:
    length = -(-region.shape[dim] // chunks)
    return _split(region, [length] * (region.shape[dim] // length), dim)


def _split(region: Region, sizes: Sequence[int], dim: int = 0) -> list[Region]:
    if sum(sizes) != region.shape[dim]:
        raise NotImplementedError(f"{region.name} in parts that are not equal")
    starts = accumulate(sizes, initial=0)
    return [region.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=False)]


def _transpose(region: Region, dim0: int, dim1: int) -> Region:
    order = list(range(len(region.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return region._with(tuple(region.shape[i] for i in order), tuple(region.strides[i] for i in order))


def _cat(regions: Sequence[Region], dim: int = 0) -> Joined:
    if dim:
        raise NotImplementedError("tensors side by side")
    return Joined(tuple(regions))


def _without(shape: Shape, dim: int) -> Shape:
    return (*shape[:dim], *shape[dim + 1 :])


_OPERATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.cat: _cat,
    torch.chunk: _chunk,
    torch.split: _split,
    torch.transpose: _transpose,
}
