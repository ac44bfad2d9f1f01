"""The model below an adapter in 4 bits (QLoRA), packed by bitsandbytes while its files are read."""

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from pipelines.errors import ConfigError, MachineError
from pipelines.schema import Pipeline
from train.engine import choose_precision
from train.filling import DTYPES


def check_quantization(pipeline: Pipeline) -> None:
    """Refuse what cannot be packed or trained, before any weight is read.

    Raises:
        ConfigError: if the table asks for what is not offered.
        MachineError: if bitsandbytes is missing.
    """
    table = pipeline.model.quantization
    if table is None:
        return
    if pipeline.model.lora is None:
        raise ConfigError(
            f"{pipeline.cite('model.quantization')}: weights of 4 bits cannot be trained; add [model.lora], or remove "
            "the table"
        )
    if not table.load_in_4bit:
        raise ConfigError(f"{pipeline.cite('model.quantization.load_in_4bit')}: has no effect; remove the table")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(
            "model.quantization needs bitsandbytes, which is not installed here; pip install bitsandbytes"
        )


def packing(pipeline: Pipeline) -> dict[str, Any]:
    """How Transformers has to load a model for its linear layers to be in 4 bits, the rest float32.

    Four bits are kept in elements of the format that is trained in: DeepSpeed casts a model to that format, which
    leaves such elements alone, and ZeRO 3 shares them out like any other parameter.
    """
    table = pipeline.model.quantization
    assert table is not None
    assert pipeline.train is not None
    precision = DTYPES[choose_precision(pipeline.train.precision)]
    compute = table.bnb_4bit_compute_dtype
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=table.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=table.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=precision if compute == "auto" else getattr(torch, compute),
        bnb_4bit_quant_storage=precision,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": settings, "device_map": {"": device}}


def keep_packed(model: nn.Module) -> None:
    """Leave the packed weights as they are in evaluation, such as in the audit."""
    for module in model.modules():
        # On some CPUs it would pack them anew then, and keep fewer bits of their scales for good.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # of a Linear4bit
