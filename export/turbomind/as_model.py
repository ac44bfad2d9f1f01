"""A TurboMind folder as a model of Transformers: the numbers and settings that the engine would work with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from export.cast import Bits, Dtype
from export.language_model import load_tensors
from export.turbomind.geometry import GLM
from export.turbomind.matrices import EMBEDDING, OUTPUT
from export.turbomind.reader import Stored, TurbomindReader

_BIAS = ".self_attn.o_proj.bias"
"""The engine has it wherever queries have one; most models do not, and it is zeros."""


def load_workspace(folder: Path) -> Any:
    """The model of a weight folder, of its files and its config.yaml alone.

    Repeated heads and padding stay as they are, which changes no product.

    Raises:
        CheckError: if a file is missing or of the wrong length.
    """
    reader = TurbomindReader(folder)
    stored = _stored(reader)
    config = reader.hf_config({name: one.shape for name, one in stored.items()})
    dtype: Dtype = "bfloat16" if reader.model["weight_type"] == "bfloat16" else "float16"
    return load_tensors(config, _tensors(reader, stored), dtype, str(folder))


def _stored(reader: TurbomindReader) -> dict[str, Stored]:
    """What a model of these settings has."""
    biases = [name for name in reader.stored if name.endswith(_BIAS)]
    if any(reader.tensor(name).any() for name in biases):
        biases = []
    return {name: one for name, one in reader.stored.items() if name not in biases}


def _tensors(reader: TurbomindReader, stored: dict[str, Stored]) -> Iterator[tuple[str, Bits]]:
    fused = reader.model["model_arch"] == GLM
    for name, one in stored.items():
        if fused and name.endswith(".up_proj.weight"):
            continue
        values = reader.tensor(name)
        if name in (EMBEDDING, OUTPUT):
            values = values[: reader.model["vocab_size"]]
        if fused and name.endswith(".gate_proj.weight"):
            up = reader.tensor(name.replace("gate_proj", "up_proj"))
            yield name.replace("gate_proj", "gate_up_proj"), np.concatenate([values, up])
        else:
            yield name, values if one.shape[1] > 1 or name in (EMBEDDING, OUTPUT) else values.reshape(-1)
