"""Loading checkpoints of InternLM, InternLM2 and Baichuan, as they were published, into Transformers' Llama."""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from pipelines.errors import ConfigError, DataError
from pipelines.llama_layouts import KEY, MODEL_TYPES, layout_of, llama_config
from pipelines.schema import Pipeline
from train.attention import NAME

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")
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


def load_original(pipeline: Pipeline, config: PretrainedConfig) -> PreTrainedModel:
    """The model of a directory, float32, each number as it is stored there; no code of the directory runs.

    Raises:
        ConfigError: if an adapter is asked for: it is merged later into tensors that its base has not by that name.
        DataError: if a tensor is missing, too many, of another shape, or cannot be read.
    """
    for table in ("lora", "quantization"):
        if getattr(pipeline.model, table) is not None:
            kind = getattr(config, KEY)["model_type"]
            raise ConfigError(
                f"{pipeline.cite(f'model.{table}')}: an {kind} model in its own layout is trained whole; remove the "
                "table, or name a copy in Llama's layout, such as an export of this model"
            )
    folder = pipeline.model.name_or_path
    assert folder is not None  # a scratch model has no original
    state = _llama_tensors(folder, getattr(config, KEY))
    model, info = LlamaForCausalLM.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=torch.float32,
        attn_implementation=NAME,
        output_loading_info=True,
    )
    assert not any(info.values()), info  # the layout holds every row once
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return cast(PreTrainedModel, model)


def _llama_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    layout = layout_of(config)
    rows = {part.name: 0 for parts in layout.tensors.values() for part in parts}
    for parts in layout.tensors.values():
        for part in parts:
            rows[part.name] = max(rows[part.name], part.stop)
    state: dict[str, Tensor] = {}
    missing = set(layout.tensors)
    for path, name, tensor in _stored(folder):
        if name.endswith(_RECOMPUTED):
            continue
        if name not in missing:
            raise DataError(f"{path}: holds {name}, which a {config['model_type']} model of this config.json has not")
        missing.remove(name)
        parts = layout.tensors[name]
        expected = sum(part.stop - part.start for part in parts)
        if tensor.shape[0] != expected:
            raise DataError(f"{path}: {name} has {tensor.shape[0]} rows, its config.json asks for {expected}")
        position = 0
        for part in parts:
            piece = tensor[position : position + part.stop - part.start]
            position += len(piece)
            if part.name not in state:
                state[part.name] = tensor.new_empty((rows[part.name], *tensor.shape[1:]))
            state[part.name][part.start : part.stop] = piece
    if missing:
        raise DataError(f"{folder}: {min(missing)} is in none of its weight files; download the model again")
    if layout.norm_head:
        state["lm_head.weight"] = nn.functional.normalize(state["lm_head.weight"].float())
    return state


def _stored(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor of a directory with its file and name; safetensors where there are any."""
    for path in _files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a mapping)
                        yield path, name, file.get_tensor(name)
            else:
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                yield from ((path, name, tensor) for name, tensor in tensors.items())
        except pickle.UnpicklingError as error:
            raise DataError(
                f"{path}: holds more than weights, which is never run; convert it to safetensors"
            ) from error
        except (OSError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); download it again") from error


def _files(folder: Path) -> list[Path]:
    for index, single in zip(_INDEXES, _SINGLES, strict=True):
        if (folder / index).is_file():
            try:
                names = set(json.loads((folder / index).read_bytes())["weight_map"].values())
            except (ValueError, KeyError, AttributeError) as error:
                raise DataError(f"{folder / index}: no index of weight files; download it again") from error
            if strange := next((name for name in sorted(names) if Path(name).name != name), None):
                raise DataError(f"{folder / index}: names {strange}, which is not beside it; download it again")
            return [folder / name for name in sorted(names)]
        if (folder / single).is_file():
            return [folder / single]
    raise DataError(f"{folder}: no {_SINGLES[0]} and no {_SINGLES[1]}, nor an index of several; download the model")
