"""A ZeRO 3 checkpoint as DeepSpeed writes it, of any size, without training: what exports are measured with."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

VERSION = "0.19.8"
"""DeepSpeed's, whose format this is; a test compares it with what that version saves."""
STEP = 10
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
"""492 million parameters: 2 GB of float32, 6 GB with the optimizer's moments."""


def write_zero3(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], *, ranks: int = 2, config: dict[str, Any] | None = None
) -> Path:
    """Write `latest` and the step's directory below `folder`, with random numbers; returns the directory.

    Args:
        config: written as config.json beside them.
    """
    inner = folder / f"global_step{STEP}"
    inner.mkdir(parents=True)
    (folder / "latest").write_text(inner.name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    share = sum(-(-torch.Size(shape).numel() // ranks) for shape in shapes.values())
    for rank in range(ranks):
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save(_optimizer(share, rank, ranks), inner / f"bf16_{name}_optim_states.pt")
        torch.save(_model(shapes, ranks), inner / f"{name}_model_states.pt")
    return inner


def _optimizer(share: int, rank: int, ranks: int) -> dict[str, Any]:
    flat = torch.empty(share).normal_(std=0.02, generator=torch.Generator().manual_seed(rank))
    moments = {"step": torch.tensor(float(STEP)), "exp_avg": torch.zeros(share), "exp_avg_sq": torch.ones(share)}
    group = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    state = {
        "zero_stage": ZeroStageEnum.weights,
        "loss_scaler": None,
        "dynamic_loss_scale": False,
        "overflow": False,
        "partition_count": ranks,
        "optimizer_state_dict": {"state": {0: moments}, "param_groups": [group]},
        "fp32_flat_groups": [flat],
    }
    return {"optimizer_state_dict": state, "ds_config": {}, "ds_version": VERSION}


def _model(shapes: Mapping[str, tuple[int, ...]], ranks: int) -> dict[str, Any]:
    return {
        "module": OrderedDict((name, torch.empty(0, dtype=torch.bfloat16)) for name in shapes),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, torch.Size(shape)) for name, shape in shapes.items())],
        "frozen_param_shapes": {},
        "shared_params": {},
        "frozen_param_fragments": {},
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": STEP,
        "global_samples": STEP * ranks,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "ds_config": {},
        "ds_version": VERSION,
        "checkpoint_parallel_dimensions": {"tp_degree": 1, "pp_degree": 1},
    }
