"""Decoder layers compiled by PyTorch: each kind of layer once, for packs of every length."""

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from pipelines.errors import ConfigError, MachineError
from pipelines.schema import Pipeline
from train.activations import Prepare
from train.attention import NAME, PackedAttention
from train.tiled_mlp import TiledMlp

BACKEND: Any = "inductor"
"""Of torch.compile."""


def layer_compiler(pipeline: Pipeline, attention: PackedAttention, tiled: Sequence[TiledMlp] = ()) -> Prepare:
    """What compiles a layer's forward function when it is first called.

    Attention stays outside of what is compiled: which documents it runs over is not for a graph to know. So do
    MLPs that run in stretches.

    Raises:
        ConfigError: if the model is one that cannot be compiled.
        MachineError: if there is no C++ compiler.
    """
    if pipeline.model.quantization is not None:
        raise ConfigError(
            f"{pipeline.cite('train.compile')}: layers of 4-bit weights are not compiled; set it to false, or remove "
            "[model.quantization]"
        )
    if BACKEND == "inductor" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise MachineError(
            "train.compile needs a C++ compiler, which is not installed here; apt-get install g++, point the "
            "environment variable CXX at yours, or set train.compile = false"
        )
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, torch.compiler.disable(attention))  # type: ignore[no-untyped-call]
    for one in tiled:
        one.mlp.forward = torch.compiler.disable(one.mlp.forward)  # type: ignore[no-untyped-call]
    return _Compiler()


class _Compiler:
    """Layers of a class share their forward function, so they share what is compiled as well."""

    def __init__(self) -> None:
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __call__(self, run: partial[Any]) -> partial[Any]:
        if run.func not in self._compiled:
            # Lengths are variables from the start: packs differ in length, and no length is compiled by itself.
            self._compiled[run.func] = torch.compile(run.func, dynamic=True, backend=BACKEND)
        return partial(self._compiled[run.func], *run.args, **run.keywords)
