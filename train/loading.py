"""Models of a directory: laid out as Transformers loads them, every tensor accounted for, their numbers read later."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from pipelines.checkpoints import base_folder
from pipelines.errors import ConfigError, DataError
from pipelines.llama_layouts import KEY as ORIGINAL
from pipelines.schema import Pipeline
from train.attention import NAME
from train.filling import fill_buffers, hollow
from train.initial import InFiles, Initial, Source
from train.original_weights import original_llama_config, original_rows
from train.quantize import keep_packed, packed_facts, packing, refuse_wrong_products
from train.stored_tensors import StoredTensors

log = logging.getLogger(__name__)

BLOCK = 1 << 22
"""Elements compared at once."""


def load(pipeline: Pipeline, bare: PreTrainedModel) -> tuple[PreTrainedModel, Initial]:
    """The model of a directory, and where its weights are read from; one in 4 bits has them already.

    Args:
        bare: the model on the meta device, untouched.
    Raises:
        ConfigError: if its weights may not be read, or not be packed as asked for.
        DataError: if a tensor is missing, of another shape, or its file is damaged.
    """
    folder = base_folder(pipeline)
    stored = StoredTensors.of(pipeline, folder)
    original = original_llama_config(folder)
    rows = original_rows(stored, getattr(original, ORIGINAL)) if original else None
    if rows is not None:
        state: dict[str, Any] = {name: torch.empty(rows.shape(name), device="meta") for name in sorted(rows.names())}
    else:
        state = {name: stored.on_meta(name) for name in stored.shapes}
    if pipeline.model.quantization is not None:
        numbers = {name: _Read(rows or stored, name, tensor.shape) for name, tensor in state.items()}
        model = _loaded(stored, bare, numbers, **packing(pipeline))
        keep_packed(model)
        refuse_wrong_products(model)
        if not dist.is_initialized() or dist.get_rank() == 0:  # which writes the manifest of a checkpoint
            model.four_bits = packed_facts(model)
        initial = Initial(None)
    else:
        model = _loaded(stored, bare, state, device_map={"": "meta"})
        initial = Initial(rows or InFiles(stored, model))
        _tie(model, initial, folder)
        hollow(model)
        fill_buffers(model, initial)
    _read_generation_config(model, folder, original=original is not None)
    return model, initial


class _Read:
    """A stored tensor as Transformers takes it apart and reads it when its turn comes."""

    def __init__(self, source: Source | StoredTensors, name: str, shape: torch.Size) -> None:
        self._source, self._name, self._shape = source, name, shape

    def __getitem__(self, _: Any) -> Tensor:
        return self._source.read(self._name, 0, math.prod(self._shape)).view(self._shape)


def _loaded(stored: StoredTensors, bare: PreTrainedModel, state: Mapping[str, Any], **how: Any) -> PreTrainedModel:
    """The model as Transformers loads it from `state`, which has to hold it all."""
    try:
        model, info = type(bare).from_pretrained(
            None,
            config=bare.config,
            state_dict=dict(state),
            dtype=torch.float32,
            attn_implementation=NAME,
            ignore_mismatched_sizes=True,  # it would raise; which tensor it is, is said below
            output_loading_info=True,
            **how,
        )
    except RuntimeError as error:
        finding = str(error).strip().splitlines()[0]
        raise DataError(f"{stored.folder}: its weights do not go together ({finding}); download it again") from error
    if missing := sorted(info["missing_keys"]):
        raise DataError(
            f"{stored.folder}: {missing[0]}{_more(missing)} is in none of its weight files, and nothing is made up; "
            "download the model again, or correct its config.json"
        )
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise DataError(
            f"{stored.folder}: {name} has shape {list(found)} in its weight files, its config.json asks for "
            f"{list(expected)}; download the model again"
        )
    if unexpected := sorted(info["unexpected_keys"]):
        log.warning(
            "%s: %s%s is in its weight files, but not of a %s; it is left out",
            stored.folder, unexpected[0], _more(unexpected), type(model).__name__,
        )  # fmt: skip
    loaded: PreTrainedModel = model
    return loaded


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _tie(model: PreTrainedModel, initial: Initial, folder: Path) -> None:
    """Make tensors one that the config says are one, but that the files hold each.

    Transformers compares their numbers, which it is not given here.
    """
    both = [pair for pair in model.all_tied_weights_keys.items() if all(name in initial for name in pair)]
    for one, other in both:
        size = model.get_parameter(one).numel()
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            if not torch.equal(initial.read(one, start, stop), initial.read(other, start, stop)):
                raise ConfigError(
                    f"{folder}: its config.json says that {one} is {other}, but its files hold them with different "
                    "numbers; set tie_word_embeddings = false there"
                )
    if both:
        model.tie_weights()


def _read_generation_config(model: PreTrainedModel, folder: Path, *, original: bool) -> None:
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    elif not original and model.generation_config is not None:
        # Old models have those settings in config.json, where their config has no place for them.
        model.generation_config = GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
        )
