"""The model below an adapter in 4 bits (QLoRA), packed by bitsandbytes while its files are read."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from pipelines.errors import ConfigError, MachineError
from pipelines.schema import Pipeline
from train.attention import NAME
from train.engine import choose_precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_quantized(pipeline: Pipeline, folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model of a directory, its linear layers in 4 bits, the rest float32.

    Four bits are kept in elements of the format that is trained in: DeepSpeed casts a model to that format, which
    leaves such elements alone, and ZeRO 3 shares them out like any other parameter.

    Raises:
        ConfigError: if the table asks for what is not offered.
        MachineError: if bitsandbytes is missing.
    """
    table = pipeline.model.quantization
    assert table is not None
    assert pipeline.train is not None
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
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        quantization_config=settings,
        device_map={"": device},
        attn_implementation=NAME,
        local_files_only=True,
    )
    for module in model.modules():
        # In evaluation on some CPUs, such as in the audit, it would pack the weights anew and keep fewer bits of their
        # scales for good.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
