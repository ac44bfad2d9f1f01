"""Where the first value of every parameter comes from, read when it is wanted and as far as it is wanted.

A model is laid out without its numbers first. They are read once their place is known, so that no rank ever holds more
of them than it keeps, and one tensor.
"""

import math
import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from pipelines.llama_layouts import Layout, unit_rows
from train.stored_tensors import StoredTensors

_OF_AN_ADAPTER = re.compile(r"\.(modules_to_save\.default|original_module|base_layer)\.")
"""What PEFT puts into the names of a model's own parameters."""


class Source(Protocol):
    """Anything that has the values of a model's parameters and persistent buffers."""

    def names(self) -> set[str]:
        """Those it has."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """[stop - start] elements of a flattened tensor, in any number format; the caller may keep and change them.

        Every rank asks for the same names in the same order, each for a stretch of its own.
        """


class Initial:
    """The first value of every parameter by its name in the model, an adapter's included."""

    def __init__(self, source: Source | None) -> None:
        """Take them from a source, or from none where the model has them already."""
        self._source = source
        self._names = source.names() if source else set()
        self._replaced: dict[str, Tensor] = {}

    def replace(self, name: str, values: Tensor) -> None:
        """From now on, a tensor begins as these values, such as those of an adapter's own matrices."""
        self._replaced[name] = values.detach()

    def change(self, by: Callable[[Source], Source]) -> None:
        """From now on, read through another source that this makes of the one there is, if there is one."""
        if self._source is not None:
            self._source = by(self._source)

    def __contains__(self, name: str) -> bool:
        return name in self._replaced or _OF_AN_ADAPTER.sub(".", name) in self._names

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """[stop - start] elements of a flattened parameter or buffer, in the format they are kept in.

        Every rank has to ask for the same names in the same order, each for a stretch of its own, which may be empty.
        """
        for known in (name, _OF_AN_ADAPTER.sub(".", name)):
            if known in self._replaced:
                return self._replaced[known].reshape(-1)[start:stop].clone()
        assert self._source is not None
        values: Tensor = self._source.read(_OF_AN_ADAPTER.sub(".", name), start, stop)
        return values

    def whole(self, name: str, shape: torch.Size) -> Tensor:
        """A parameter in its shape, float32."""
        return self.read(name, 0, math.prod(shape)).float().view(shape)


class Drawn:
    """Random weights: drawn by the first rank, which sends the others each tensor when it is its turn.

    They are those of the model made whole by Transformers, so that they depend on the seed and the config alone.
    """

    def __init__(self, bare: nn.Module, drawn: nn.Module | None) -> None:
        """Take over a drawn model.

        Args:
            bare: the same on the meta device, for shapes and formats.
            drawn: the model on the first rank, None on the others.
        """
        self._bare = bare.state_dict()
        self._tensors = {} if drawn is None else drawn.state_dict()

    def names(self) -> set[str]:
        return set(self._bare)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        alone = not dist.is_initialized() or dist.get_world_size() == 1
        tensor = self._tensors.get(name)
        if not alone:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            whole = torch.empty_like(self._bare[name], device="cpu") if tensor is None else tensor
            tensor = whole.to(device).contiguous()
            dist.broadcast(tensor, src=0)
        assert tensor is not None
        flat: Tensor = tensor.view(-1)[start:stop]
        # A whole one is handed over as it is: it is asked for once, and a copy would be a second model.
        return flat if flat.numel() == tensor.numel() else flat.clone()


class InFiles:
    """The weights of a directory in the names and forms that Transformers gives them while loading.

    Most are stored as they are used, and any stretch of them is read alone. Those that Transformers makes of several,
    such as the experts of a layer, are made whole, one such group at a time.
    """

    def __init__(self, stored: StoredTensors, model: PreTrainedModel) -> None:
        """Find every tensor of a model.

        Args:
            model: as Transformers loaded it from tensors of these names and shapes, on the meta device.
        """
        self._stored = stored
        self._model = model
        self._plain: dict[str, str] = {}
        self._groups: dict[str, list[tuple[str, str]]] = {}
        """First of the tensors made together -> (stored name, the pattern it matched) of what they are made of."""
        self._converters: dict[str, WeightConverter] = {}
        self._made: tuple[str, dict[str, Tensor]] = ("", {})
        """The group made last; the next tensor asked for is often of the same one."""
        self._find()
        self._group_of = {target: group for group in self._groups for target in self._make(group, meta=True)}

    def names(self) -> set[str]:
        return self._plain.keys() | self._group_of.keys()

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if name in self._plain:
            return self._stored.read(self._plain[name], start, stop)
        group = self._group_of[name]
        if self._made[0] != group:
            self._made = ("", {})
            self._made = (group, self._make(group))
        return self._made[1][name].reshape(-1)[start:stop].clone()

    def _find(self) -> None:
        # As `convert_and_load_state_dict_in_model` of Transformers goes about it.
        steps = self._model._weight_conversions or []
        renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        converters = [step for step in steps if isinstance(step, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        known, prefix = self._model.state_dict(), self._model.base_model_prefix
        for stored in sorted(self._stored.shapes, key=dot_natural_key):
            name, pattern = rename_source_key(stored, renamings, converters, prefix, known)
            if name not in known and stored in known:
                name, pattern = rename_source_key(stored, [], [], base_model_prefix=prefix, meta_state_dict=known)
            if name not in known:
                continue
            if pattern is None:
                self._plain[name] = stored
            else:
                self._groups.setdefault(name, []).append((stored, pattern))
                self._converters.setdefault(name, by_pattern[pattern])

    def _make(self, group: str, *, meta: bool = False) -> dict[str, Tensor]:
        """The tensors that Transformers makes of a group of stored ones, float32."""
        converter = deepcopy(self._converters[group])
        for stored, pattern in self._groups[group]:
            tensor = self._stored.on_meta(stored) if meta else self._stored.whole(stored)
            converter.add_tensor(group, stored, pattern, tensor.float())
        made: dict[str, Any] = converter.convert(group, model=self._model, config=self._model.config)
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


class InOriginalRows:
    """Llama's tensors in the files of InternLM, InternLM2 or Baichuan, where their rows are stored otherwise."""

    def __init__(self, stored: StoredTensors, layout: Layout) -> None:
        self._stored = stored
        self._places = layout.places()
        self._normalized = layout.normalized

    def names(self) -> set[str]:
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one of Llama's tensors."""
        places = self._places[name]
        return (places[-1].stop, *self._stored.shapes[places[0].original][1:])

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if start == stop:
            return torch.empty(0)
        if name not in self._normalized:
            return self._joined(name, start, stop)
        width = math.prod(self.shape(name)[1:])
        first, last = start // width * width, -(-stop // width) * width
        rows = self._joined(name, first, last).float().view(-1, width)
        return torch.from_numpy(unit_rows(rows.numpy())).view(-1)[start - first : stop - first].clone()

    def _joined(self, name: str, start: int, stop: int) -> Tensor:
        width = math.prod(self.shape(name)[1:])
        ranges = [(place.original, *place.within(start, stop, width)) for place in self._places[name]]
        found = [self._stored.read(original, first, last) for original, first, last in ranges if first < last]
        return found[0] if len(found) == 1 else torch.cat(found)
