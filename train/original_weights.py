"""Loading checkpoints of InternLM, InternLM2 and Baichuan, as they were published, into Transformers' Llama."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from pipelines.errors import DataError
from pipelines.llama_layouts import MODEL_TYPES, layout_of, llama_config
from train.initial import InOriginalRows
from train.stored_tensors import StoredTensors

_RECOMPUTED = "rotary_emb.inv_freq"
"""Positions that old versions stored beside the weights."""


def original_llama_config(folder: Path) -> LlamaConfig | None:
    """The config of the Llama that a directory's model is under another name; None for any other model.

    Raises:
        ConfigError: if only the model's type is one of those; without a place, which the caller adds.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None  # Transformers says what is wrong with it
    if not isinstance(config, dict) or config.get("model_type") not in MODEL_TYPES:
        return None
    return LlamaConfig(**llama_config(config))


def original_rows(stored: StoredTensors, config: Mapping[str, Any]) -> InOriginalRows:
    """Llama's tensors in the weight files of such a directory; no code of the directory runs.

    Args:
        config: the directory's config.json.
    Raises:
        DataError: if a tensor is missing, too many, or of another height.
    """
    layout = layout_of(config)
    for name, shape in stored.shapes.items():
        if name.endswith(_RECOMPUTED):
            continue
        if name not in layout.rows:
            raise DataError(
                f"{stored.path(name)}: holds {name}, which a {config['model_type']} model of this config.json has not"
            )
        if not shape or shape[0] != layout.rows[name]:
            raise DataError(
                f"{stored.path(name)}: {name} has {shape[0] if shape else 0} rows, its config.json asks for "
                f"{layout.rows[name]}"
            )
    if missing := sorted(layout.rows.keys() - stored.shapes.keys()):
        raise DataError(f"{stored.folder}: {missing[0]} is in none of its weight files; download the model again")
    return InOriginalRows(stored, layout)
