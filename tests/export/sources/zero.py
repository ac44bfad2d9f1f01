"""DeepSpeed's checkpoints written the obvious way, from whole tensors, for as many ranks as wanted."""

from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.export.tiny import Tensors

Groups = list[list[str]]


def write_zero(folder: Path, tensors: Tensors, *, stage: int, ranks: int = 2, step: int = 7, **how: Any) -> Path:
    """Write global_step<step> below `folder` and the file `latest`; returns the former.

    Args:
        how: `prefix` of the optimizer's files, `groups` of names, `shared` (other name -> name), `frozen` names.
    """
    inner = folder / f"global_step{step}"
    inner.mkdir(parents=True)
    (folder / "latest").write_text(inner.name)
    frozen = how.get("frozen", [])
    groups: Groups = how.get("groups") or [[name for name in tensors if name not in frozen]]
    whole = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    for rank in range(ranks if stage == 3 else 1):
        module = {
            name: torch.empty(0, dtype=torch.bfloat16) if stage == 3 else tensor.bfloat16()
            for name, tensor in whole.items()
        }
        state = {
            "module": OrderedDict(whole if stage == 0 else module),
            "buffer_names": [],
            "param_shapes": [OrderedDict((name, whole[name].shape) for name in group) for group in groups],
            "frozen_param_shapes": {name: whole[name].shape for name in frozen},
            "frozen_param_fragments": {name: _part(whole[name], rank, ranks, stage) for name in frozen},
            "shared_params": how.get("shared", {}) if rank == 0 else {},
            "global_steps": step,
            "ds_version": "0.19.8",
        }
        if stage == 0:
            state["param_shapes"] = None
        name = f"zero_pp_rank_{rank}_" if stage == 3 else ""
        torch.save(state, inner / f"{name}mp_rank_00_model_states.pt")
    for rank in range(ranks if stage else 0):
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        flat = [_flat([whole[name] for name in group], rank, ranks, stage) for group in groups]
        moments = {index: {"step": torch.tensor(float(step)), "exp_avg": part * 0.5} for index, part in enumerate(flat)}
        base = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
        optimizer = {"zero_stage": stage, "partition_count": ranks, key: flat, base: {"state": moments}}
        name = f"{how.get('prefix', '')}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer, "ds_version": "0.19.8"}, inner / name)
    return inner


def _flat(tensors: list[torch.Tensor], rank: int, ranks: int, stage: int) -> torch.Tensor:
    if stage == 3:
        return torch.cat([_share(tensor, rank, ranks) for tensor in tensors])
    line = torch.cat([tensor.reshape(-1) for tensor in tensors])
    padded = -(-line.numel() // (2 * ranks)) * 2 * ranks
    begin = padded // ranks * rank
    return line[begin : begin + padded // ranks].clone()  # the last rank's padding is not saved


def _share(tensor: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    size = -(-tensor.numel() // ranks)
    padded = torch.cat([tensor.reshape(-1), torch.zeros(size * ranks - tensor.numel(), dtype=tensor.dtype)])
    return padded[rank * size : (rank + 1) * size].clone()


def _part(tensor: torch.Tensor, rank: int, ranks: int, stage: int) -> torch.Tensor:
    return _share(tensor, rank, ranks) if stage == 3 else tensor


def small_tensors(count: int = 3, seed: int = 0) -> Tensors:
    """A few tensors whose sizes no number of ranks divides."""
    made = np.random.default_rng(seed)
    shapes = {"a.weight": (5, 7), "b.weight": (11,), "c.weight": (3, 13)}
    return {
        name: made.standard_normal(prod(shape)).astype(np.float32).reshape(shape)
        for name, shape in list(shapes.items())[:count]
    }
