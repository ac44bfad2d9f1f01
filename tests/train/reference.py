"""Training written the obvious way: every document alone, one after the other, in plain PyTorch."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.schema import Pipeline
from pipelines.shards import ShardReader
from train.optimizers import make_optimizer, parameter_groups
from train.order import PackOrder
from train.schedule import learning_rate


@dataclass(frozen=True)
class Trained:
    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, Tensor]


def train_alone(pipeline: Pipeline, steps: int, model: Any = None) -> Trained:
    """The first steps of a run, without packing, ranks, accumulation, DeepSpeed or our attention.

    Args:
        model: instead of the pipeline's.
    """
    train = pipeline.train
    assert train is not None
    assert pipeline.model.scratch is not None
    packs = ShardReader(pipeline.home / "prep")
    order = PackOrder(len(packs), shuffle=train.shuffle, seed=pipeline.run.seed)
    if model is None:
        keys = dict(pipeline.model.scratch)
        torch.manual_seed(pipeline.run.seed)
        config = AutoConfig.for_model(keys.pop("model_type"), **keys)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.train()
    settings = train.optimizer
    groups = parameter_groups(model, settings)
    if settings.type == "adamw" and not settings.options:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            groups, lr=settings.lr, betas=settings.betas, eps=settings.eps
        )
    else:
        optimizer = make_optimizer(groups, settings, pipeline, zero_stage=0)
    losses, norms = [], []
    for step in range(steps):
        first = step * train.global_batch_size
        total, targets = torch.zeros(()), 0
        for position in range(first, first + train.global_batch_size):
            pack = packs[order[position]]
            for begin, end in zip(pack.cu_seqlens[:-1], pack.cu_seqlens[1:], strict=True):
                tokens = torch.from_numpy(pack.tokens[begin:end].astype("int64"))
                labels = tokens.masked_fill(~torch.from_numpy(pack.loss[begin:end].copy()), -100)[1:]
                logits = model(input_ids=tokens[None]).logits[0, :-1]
                total = total + F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
                targets += int((labels >= 0).sum())
        optimizer.zero_grad()
        (total / targets).backward()  # type: ignore[no-untyped-call]
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, step, steps, len(packs))
        optimizer.step()
        losses.append(float(total.detach() / targets))
    return Trained(
        losses, norms, {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    )
