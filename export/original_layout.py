"""Weights in the layout that the model came in, gathered from Llama's tensors range by range as they are written."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from export.cast import WIDTH, Bits, Dtype
from export.weights import Weights
from pipelines.llama_layouts import KEY, Layout, Rows, layout_of, original_config


class OriginalWeights(Weights):
    """Llama's weights under the original's names and in its order; no number changes.

    Args:
        llama: the same weights as they were trained.
    """

    def __init__(self, llama: Weights, layout: Layout) -> None:
        self.dtype = llama.dtype
        self.llama = llama
        self.layout = layout
        self.shapes = {
            name: (sum(part.stop - part.start for part in parts), *llama.shapes[parts[0].name][1:])
            for name, parts in layout.tensors.items()
        }

    @property
    def trained(self) -> Weights:
        """Llama's weights."""
        return self.llama

    @property
    def vanished(self) -> int:  # type: ignore[override]  # counted where the numbers are rounded
        """Numbers read so far that are not zero and too small for the format."""
        return self.llama.vanished

    def dtype_of(self, name: str) -> Dtype:
        """Number format of a tensor."""
        return self.llama.dtype_of(self.layout.tensors[name][0].name)

    def read(self, name: str, start: int, stop: int) -> Bits:
        """Elements start..stop of the flattened tensor."""
        found, position = [], 0
        for part in self.layout.tensors[name]:
            width = self._width(part)
            first, size = part.start * width, (part.stop - part.start) * width
            begin, end = max(start - position, 0), min(stop - position, size)
            if begin < end:
                found.append(self.llama.read(part.name, first + begin, first + end))
            position += size
        return found[0] if len(found) == 1 else np.concatenate(found)

    def read_back(self, folder: Path) -> dict[str, Bits]:
        """Llama's tensors, put together from a directory in the original layout."""
        import torch  # which an export that is current need not wait for

        bits = torch.uint16 if WIDTH[self.dtype] == 2 else torch.uint32
        state: dict[str, Bits] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    tensor, position = file.get_tensor(name).view(bits).numpy(), 0
                    for part in self.layout.tensors[name]:
                        whole = state.setdefault(part.name, np.empty(self.llama.shapes[part.name], tensor.dtype))
                        whole[part.start : part.stop] = tensor[position : position + part.stop - part.start]
                        position += part.stop - part.start
        return state

    def _width(self, part: Rows) -> int:
        return int(np.prod(self.llama.shapes[part.name][1:], dtype=np.int64))


def originally(trained: dict[str, Any], llama: Weights) -> tuple[OriginalWeights, dict[str, Any]]:
    """The weights and the config.json in the layout that the model came in.

    Args:
        trained: config.json of the checkpoint.
    Raises:
        ConfigError: if there is no other layout, or it cannot hold what was trained; without a place.
    """
    from transformers import LlamaConfig  # imports torch

    whole = LlamaConfig(**trained).to_dict() if KEY in trained else trained  # what is as always is left out of it
    config = original_config(whole, llama.dtype)
    return OriginalWeights(llama, layout_of(config)), config
