"""Exchanges between ranks with their gradients: NCCL or gloo, the whole world or a group of it.

Each rank's loss is one addend of the loss of all ranks, so the gradient of what was sent to several ranks is the sum of
theirs. Tensors are made contiguous before they are exchanged: the gradient of a permuted tensor often is not, and
`empty_like` would copy its strides, which scrambles the result without an error.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.sequence_parallel.groups import Axis

# torch 2.13 renamed the two and warns at the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_to_all(tensor: Tensor, axis: Axis) -> Tensor:
    """Send part i of the first dimension to rank i, and put what comes from rank i there.

    Args:
        tensor: [ranks, ...], of the same shape on every rank.
    """
    if axis.size == 1:
        return tensor
    return cast(Tensor, _AllToAll.apply(tensor, axis))  # type: ignore[no-untyped-call]  # torch gives it no type


def all_gather(tensor: Tensor, axis: Axis) -> Tensor:
    """The tensors of all ranks, one after another in the first dimension.

    Args:
        tensor: [n, ...], of the same shape on every rank.
    """
    if axis.size == 1:
        return tensor
    return cast(Tensor, _AllGather.apply(tensor, axis))  # type: ignore[no-untyped-call]  # torch gives it no type


def gathered(tensor: Tensor, axis: Axis) -> Tensor:
    """`all_gather` for tensors without a gradient."""
    tensor = tensor.contiguous()
    whole = tensor.new_empty((axis.size * tensor.shape[0], *tensor.shape[1:]))
    _all_gather(whole, tensor, group=axis.group)
    return whole


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _exchanged(tensor, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _exchanged(gradient, ctx.axis), None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return gathered(tensor, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        mine = gradient.new_empty((gradient.shape[0] // ctx.axis.size, *gradient.shape[1:]))
        _reduce_scatter(mine, gradient, group=ctx.axis.group)
        return mine, None


def _exchanged(tensor: Tensor, axis: Axis) -> Tensor:
    tensor = tensor.contiguous()
    found = torch.empty_like(tensor)
    dist.all_to_all_single(found, tensor, group=axis.group)
    return found
