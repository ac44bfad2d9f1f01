"""Tiny runs whose checkpoint is an adapter's: a base directory, PEFT's layers with random weights, a pipeline."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.artifacts import Manifest
from pipelines.checkpoints import step_folder
from pipelines.schema import Pipeline
from tests.export.tiny import LLAMA, write_checkpoint
from train.adapters import adapter_facts, add_adapter
from train.fragments import shapes, tied
from train.quantize import keep_packed, packed_facts, packing


def adapted_pipeline(
    folder: Path, lora: dict[str, Any], quantization: dict[str, Any] | None = None, **export: Any
) -> Pipeline:
    """A pipeline whose base is `folder`/base."""
    packed = {} if quantization is None else {"quantization": quantization}
    return Pipeline.model_validate(
        {
            "schema_version": 1,
            "run": {"name": "tiny", "work_dir": "work"},
            "model": {"name_or_path": "base", "lora": lora, **packed},
            "tokenizer": {"name_or_path": "tokenizer"},
            "prep": {"source": [{"name": "s", "path": "s.jsonl"}], "pack": {"capacity": 512}},
            "train": {"global_batch_size": 1, "precision": "fp32", "optimizer": {"lr": Decimal("0.01")}},
            "export": export,
        },
        context={"base": folder},
    )


def write_adapted_run(
    folder: Path,
    lora: dict[str, Any],
    config: dict[str, Any] = LLAMA,
    *,
    dtype: torch.dtype = torch.bfloat16,
    quantization: dict[str, Any] | None = None,
) -> tuple[Path, Any]:
    """A base below `folder`, stored in `dtype`, and a run with one checkpoint of an adapter on it.

    Args:
        quantization: [model.quantization], for a base in 4 bits.

    Returns:
        The checkpoint, and the adapted model as the trainer has it, in float32.
    """
    torch.manual_seed(3)
    keys = {
        key: value for key, value in config.items() if key not in ("architectures", "dtype", "transformers_version")
    }
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**keys), dtype=torch.float32)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    base.to(dtype).save_pretrained(folder / "base", max_shard_size="200KB")
    settings = adapted_pipeline(folder, lora, quantization)
    how = {} if quantization is None else packing(settings)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32, **how)
    if quantization is not None:
        keep_packed(model)
        model.four_bits = packed_facts(model)
    add_adapter(settings, model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    named = dict(model.named_parameters())
    tensors = {name: named[name].detach().float().numpy() for name in shapes(model)}
    checkpoint = step_folder(folder / "work" / "tiny" / "train" / "checkpoints", 3)
    write_checkpoint(checkpoint, config, tensors, ranks=2)
    manifest = Manifest.read(checkpoint)
    assert manifest is not None
    facts = {**manifest.facts, "adapter": adapter_facts(model), "tied": tied(model)}
    Manifest(**{**vars(manifest), "facts": facts}).write(checkpoint)
    return checkpoint, model.eval()
