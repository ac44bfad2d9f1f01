"""The pieces of the training state that this rank holds, under every ZeRO stage: the same list serves save and load."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.errors import ConfigError
from train.adapters import is_adapted
from train.engine import Engine
from train.initial import Initial
from train.optimizers import scalar_like


@dataclass(frozen=True)
class Piece:
    """A flat run of one parameter's elements, with everything the optimizer keeps for them."""

    name: str
    start: int
    """First element within the flattened parameter."""
    tensors: Mapping[str, Tensor]
    """[elements] each, views of the live state: `parameter` is the float32 master weight, the rest the optimizer's."""

    @property
    def stop(self) -> int:
        return self.start + self.tensors["parameter"].numel()

    def part(self, start: int, stop: int) -> "Piece":
        """Elements start..stop of the parameter, which must be inside."""
        first, last = start - self.start, stop - self.start
        return Piece(self.name, start, {kind: tensor[first:last] for kind, tensor in self.tensors.items()})


def pieces(engine: Engine) -> list[Piece]:
    """Everything this rank holds, in the model's order. Under ZeRO 0 that is everything, on every rank."""
    held = {0: _whole, 1: _partitioned_state, 2: _partitioned_state, 3: _partitioned_parameters}[engine.zero_stage]
    return [piece for piece in held(engine) if piece.stop > piece.start]


def own_pieces(engine: Engine) -> list[Piece]:
    """What this rank has to save, so that all ranks together save each element once."""
    if engine.zero_stage:
        return pieces(engine)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return [
        piece.part(piece.stop * rank // ranks, piece.stop * (rank + 1) // ranks)
        for piece in pieces(engine)
        if piece.stop * rank // ranks < piece.stop * (rank + 1) // ranks
    ]


def set_masters(engine: Engine, initial: Initial) -> None:
    """Start the master weights; DeepSpeed makes them from the half-precision copy, which has lost bits.

    Args:
        initial: what the engine was made with.
    """
    if engine.precision == "fp32":
        return
    held = {piece.name: piece for piece in pieces(engine)}
    for name, _ in _trained(engine):
        piece = held.get(name)  # every rank asks for every name, in this order
        start, stop = (piece.start, piece.stop) if piece else (0, 0)
        values = initial.read(name, start, stop)
        if piece:
            piece.tensors["parameter"].copy_(values)
    engine.refresh_parameters()


def create_state(engine: Engine, kinds: list[str], scalars: Mapping[str, float]) -> None:
    """Give the optimizer the state that its first step would create, to be filled in place.

    Args:
        kinds: what it keeps for each element.
        scalars: what it keeps once a tensor, such as the number of steps.
    """
    for flat in _stepped(engine):
        state: dict[str, Any] = {kind: torch.zeros_like(flat) for kind in kinds}
        state |= {key: scalar_like(engine.optimizer, key, value, flat) for key, value in scalars.items()}
        engine.optimizer.state[flat] = state


def kinds_and_scalars(engine: Engine) -> tuple[list[str], dict[str, float]]:
    """What the optimizer keeps for each element, and what once a tensor. Nothing before its first step."""
    for flat in _stepped(engine):
        state = engine.optimizer.state.get(flat, {})
        kinds = sorted(key for key, value in state.items() if torch.is_tensor(value) and value.shape == flat.shape)
        return kinds, {key: float(value) for key, value in state.items() if key not in kinds and value is not None}
    raise ConfigError("the model has no parameter to train")


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Trained parameters by name, in the model's order; a tied one once, by its first name."""
    return {name: _shape(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}


def tied(model: nn.Module) -> dict[str, str]:
    """Other names of parameters to the one in `shapes`."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = [item for item in model.named_parameters(remove_duplicate=False) if item[1].requires_grad]
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are part of the model's weights, float32 or int64; below an adapter they stay as they are."""
    if is_adapted(model):
        return {}
    kept = model.state_dict().keys()
    return {
        name: buffer.to(torch.float32 if buffer.is_floating_point() else torch.int64)
        for name, buffer in model.named_buffers()
        if name in kept
    }


def _whole(engine: Engine) -> Iterator[Piece]:
    for name, parameter in _trained(engine):
        yield Piece(name, 0, _with_state(engine, parameter, 0, parameter.numel()))


def _partitioned_state(engine: Engine) -> Iterator[Piece]:
    # ZeRO 1 and 2 flatten each parameter group and give every rank one stretch of it; `_hp_mapping` says which
    # elements of a parameter lie where in this rank's stretch.
    groups = engine.optimizer.param_groups
    for name, parameter in _trained(engine):
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed puts it there
        if mapping is not None:
            (flat,) = groups[mapping.param_group_index]["params"]
            place = mapping.get_hp_fragment_address()
            start = mapping.lp_fragment_address.start
            yield Piece(name, start, _with_state(engine, flat, place.start, place.numel))


def _partitioned_parameters(engine: Engine) -> Iterator[Piece]:
    # ZeRO 3 cuts every parameter into equal stretches, one a rank, the last padded.
    zero = engine.deepspeed.optimizer
    for name, parameter in _trained(engine):
        group, place, length = zero.grad_position[zero.get_param_id(parameter)]
        start = dist.get_rank() * length
        size = max(0, min(length, parameter.ds_numel - start))  # type: ignore[attr-defined]  # DeepSpeed puts it there
        yield Piece(name, start, _with_state(engine, zero.fp32_partitioned_groups_flat[group], place, size))


def _with_state(engine: Engine, flat: Tensor, start: int, size: int) -> dict[str, Tensor]:
    state = engine.optimizer.state.get(flat, {})
    whole = {"parameter": flat} | {
        kind: value for kind, value in state.items() if torch.is_tensor(value) and value.shape == flat.shape
    }
    return {kind: tensor.detach().view(-1)[start : start + size] for kind, tensor in whole.items()}


def _stepped(engine: Engine) -> list[Tensor]:
    """The tensors that the optimizer really steps."""
    if engine.zero_stage == 3:
        # Its parameter groups are only filled during a step.
        found: list[Tensor] = engine.deepspeed.optimizer.fp32_partitioned_groups_flat
        return found
    return [tensor for group in engine.optimizer.param_groups for tensor in group["params"]]


def _trained(engine: Engine) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in engine.model.named_parameters() if parameter.requires_grad)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO 3 leaves an empty shell behind
