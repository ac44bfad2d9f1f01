"""Bytes of the tensors that live at each moment, as PyTorch's operations make them and let them go."""

import gc
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages made inside the block; those that were there before do not count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and not thing.is_meta:  # isinstance would wake deprecated names
                self._add(thing.untyped_storage(), counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for thing in tree_iter(out):
            if isinstance(thing, torch.Tensor) and not thing.is_meta:
                self._add(thing.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage, *, counts: bool = True) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if counts else 0
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
