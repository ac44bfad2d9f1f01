"""Models without their numbers, and putting those in: one tensor at a time, as much of it as this rank keeps."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipelines.progress import progress_bar
from train.initial import Initial

CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""The formats that are trained in, by train.precision."""


def hollow(model: PreTrainedModel) -> None:
    """Make a model on the meta device one on the CPU whose parameters are shells: of their shape, and of 4 bytes.

    Buffers that no file holds, such as the frequencies of rotary positions, are computed as Transformers computes them
    while it loads a model.
    """
    shells: dict[int, nn.Parameter] = {}
    for module in model.modules():
        module._is_hf_initialized = False  # Transformers' mark: done with
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in shells:
                    shells[id(parameter)] = nn.Parameter(_shell(parameter), requires_grad=parameter.requires_grad)
                    shells[id(parameter)]._is_hf_initialized = True  # type: ignore[attr-defined]
                module._parameters[name] = shells[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    model.initialize_weights()
    model.eval()


def empty_again(model: nn.Module, initial: Initial) -> None:
    """Make shells again of parameters that were copied or given numbers on the way, if their values are known."""
    for name, parameter in model.named_parameters():
        if name in initial:
            parameter.data = _shell(parameter)


@torch.no_grad()
def fill_buffers(model: nn.Module, initial: Initial) -> None:
    """Give the model's stored buffers their values, in the model's order: all ranks ask for the same."""
    kept = model.state_dict().keys()
    for name, _ in model.named_buffers():
        if name in kept and name in initial:
            buffer = model.get_buffer(name)
            buffer.copy_(initial.read(name, 0, buffer.numel()).view(buffer.shape))


@torch.no_grad()
def fill(
    model: nn.Module,
    initial: Initial,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device = CPU,
    zero_init: Any = None,
) -> None:
    """Give every parameter its values in the format that is trained in, one after the other.

    With another format than float32, those that are trained are left at zero: their values come by way of the float32
    master weights, in `fragments.set_masters`.

    Args:
        device: where they are to be.
        zero_init: DeepSpeed's `zero.Init` where parameters are to be shared out among the ranks at once (ZeRO 3); each
            rank then reads its own share of them.
    """
    room = None if zero_init is None else _room(model, dtype, device)
    parameters = list(model.named_parameters())
    with progress_bar("loading the model", len(parameters), "tensor") as progress:
        for name, parameter in parameters:
            later = parameter.requires_grad and dtype != torch.float32
            if name not in initial:  # an adapter's, or packed in four bits: it has its numbers already
                if later:
                    initial.replace(name, parameter.data)
                parameter.data = parameter.data.to(device, dtype if parameter.is_floating_point() else None)
            elif room is not None:
                start, stop = _share(parameter)
                if not later:
                    room[start:stop] = initial.read(name, start, stop)
                parameter.data = room[: parameter.numel()].view(parameter.shape)
            elif later:
                parameter.data = torch.zeros(parameter.shape, dtype=dtype, device=device)
            else:
                values = initial.read(name, 0, parameter.numel())
                parameter.data = values.to(device, dtype).view(parameter.shape)
            if zero_init is not None:
                _share_out(parameter, zero_init)
            progress()


def _room(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for any one parameter, used for each in turn: DeepSpeed takes this rank's share out of a whole tensor.

    Room of its own for each would leave holes between the shares, of which nothing could be made any more.
    """
    return torch.zeros(max(parameter.numel() for parameter in model.parameters()), dtype=dtype, device=device)


def _share(parameter: Tensor) -> tuple[int, int]:
    """Elements of a parameter that ZeRO 3 gives this rank."""
    size = -(-parameter.numel() // dist.get_world_size())
    start = min(dist.get_rank() * size, parameter.numel())
    return start, min(start + size, parameter.numel())


def _share_out(parameter: Any, zero_init: Any) -> None:
    # Its public way sends every tensor whole from the first rank to the others before each keeps its share.
    zero_init._convert_to_deepspeed_param(parameter)
    parameter.partition()


def _shell(parameter: Tensor) -> Tensor:
    return torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
