"""One mean over the targets of all ranks, with its exact gradient."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def reduce_sequence_parallel_loss(loss: Tensor, targets: Tensor | int) -> Tensor:
    """The mean loss over all targets of all ranks, the same number on every rank.

    Its gradient is exact when the gradients of all ranks are averaged afterwards, as DistributedDataParallel, FSDP and
    DeepSpeed do. A mean over the means of ranks would be neither: their shares of the targets differ.

    Args:
        loss: [] summed over this rank's targets; 0 where it has none.
        targets: how many this rank has, in all micro-batches whose gradients are added up before they are averaged.
    """
    count = torch.as_tensor(targets, dtype=torch.int64, device=loss.device)
    return cast(Tensor, _Reduced.apply(loss, count.clone()))  # type: ignore[no-untyped-call]  # torch gives it no type


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, targets: Tensor) -> Tensor:
        total = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(total)
            dist.all_reduce(targets)
        targets = targets.clamp(min=1)
        ctx.scale = (dist.get_world_size() if dist.is_initialized() else 1) / targets
        return total / targets

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None
