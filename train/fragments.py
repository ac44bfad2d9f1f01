"""The pieces of the training state that this rank holds, under every ZeRO stage: the same list serves save and load."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.artifacts import identity
from pipelines.errors import ConfigError
from pipelines.progress import progress_bar
from train.adapters import is_adapted
from train.engine import Engine
from train.initial import Initial
from train.muon import Muon, Part, mark_shared
from train.optimizers import empty_state, keeps_blocks, scalar_like


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
    return [_with_state(engine, place) for place in _places(engine)]


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
    names = [name for name, _ in _trained(engine)]
    with progress_bar("loading master weights", len(names), "tensor") as progress:
        for name in names:
            piece = held.get(name)  # every rank asks for every name, in this order
            start, stop = (piece.start, piece.stop) if piece else (0, 0)
            values = initial.read(name, start, stop)
            if piece:
                piece.tensors["parameter"].copy_(values)
            progress()
    engine.refresh_parameters()


def create_state(
    engine: Engine,
    kinds: Callable[[str], Sequence[str]],
    scalars: Mapping[str, float],
    *,
    block: Callable[[str], Mapping[str, Tensor]],
) -> None:
    """Give the optimizer the state of a checkpoint; what it keeps for each element is to be filled in place.

    Args:
        kinds: what it keeps for each element of a parameter, by the parameter's name.
        scalars: what it keeps once a tensor, such as the number of steps.
        block: other state, by the name that `own_blocks` gave it.
    """
    stepped = [(flat, group, held) for flat, group, held in _stepped(engine) if held]  # the rest is padding
    by_element = any(kinds(held[0].name) for _, _, held in stepped)
    for flat, group, held in stepped:
        own = kinds(held[0].name)
        if by_element and not own:
            continue  # it never had a gradient, so it starts when it has
        state = empty_state(engine.optimizer, flat, group, own)
        if keeps_blocks(engine.optimizer):
            for key, value in block(_block_name(held)).items():
                # Copied where the optimizer itself made room: its memory may be of a special kind.
                state[key] = state[key].copy_(value) if key in state else value.to(flat.device)
        state |= {key: scalar_like(engine.optimizer, key, value, flat) for key, value in scalars.items()}
        engine.optimizer.state[flat] = state


def kinds_and_scalars(engine: Engine) -> tuple[list[str], dict[str, float]]:
    """What the optimizer keeps for each element, and what once a tensor. Nothing before its first step."""
    kinds: set[str] = set()
    scalars: dict[str, float] = {}
    stepped = _stepped(engine)
    if not stepped:
        raise ConfigError("the model has no parameter to train")
    for flat, _, _ in stepped:
        kinds |= _by_element(engine, flat).keys()
        for key, value in engine.optimizer.state.get(flat, {}).items():
            if isinstance(value, int | float) or (torch.is_tensor(value) and value.dim() == 0):
                scalars.setdefault(key, float(value))
    return sorted(kinds), scalars


def own_blocks(engine: Engine) -> dict[str, Tensor]:
    """State that fits only beside the very tensor it was made for, by names that say which stretches that has.

    Returns:
        `name.key` -> tensor, of what this rank has to save: all ranks together save each once.
    """
    if not keeps_blocks(engine.optimizer):
        return {}
    found: dict[str, Tensor] = {}
    for number, (flat, _, held) in enumerate(_stepped(engine)):
        if held and (engine.zero_stage or number % dist.get_world_size() == dist.get_rank()):
            for key, value in engine.optimizer.state.get(flat, {}).items():
                if torch.is_tensor(value) and value.dim():
                    found[f"{_block_name(held)}.{key}"] = value
    return found


def lay_out_matrices(engine: Engine) -> None:
    """Tell Muon where ZeRO put the parts of its matrices. All ranks call this."""
    if not isinstance(engine.optimizer, Muon) or not engine.zero_stage:
        return
    held = {place.name: place for place in _places(engine)}
    of_shape = shapes(engine.model)
    parts: dict[Tensor, dict[str, Part]] = {}
    for flat, group, names in _zero_groups(engine):
        if group["matrices"]:
            mine = {name: held.get(name, _Place(name, flat, 0, 0, 0)) for name in names}
            parts[flat] = {
                name: Part(of_shape[name], place.start, place.place, place.size) for name, place in mine.items()
            }
    shared = mark_shared({name: part for own in parts.values() for name, part in own.items()})
    by_tensor = {flat: [shared[name] for name in own] for flat, own in parts.items()}
    engine.optimizer.lay_out(by_tensor, engine.device)


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


@dataclass(frozen=True)
class _Place:
    """Where a run of a parameter's elements lies."""

    name: str
    flat: Tensor
    """The tensor that the optimizer steps."""
    place: int
    """First element within it."""
    start: int
    """First element within the flattened parameter."""
    size: int


def _places(engine: Engine) -> list[_Place]:
    held = {0: _whole, 1: _partitioned_state, 2: _partitioned_state, 3: _partitioned_parameters}[engine.zero_stage]
    return [place for place in held(engine) if place.size]


def _whole(engine: Engine) -> Iterator[_Place]:
    for name, parameter in _trained(engine):
        yield _Place(name, parameter, 0, 0, parameter.numel())


def _partitioned_state(engine: Engine) -> Iterator[_Place]:
    # ZeRO 1 and 2 flatten each parameter group and give every rank one stretch of it; `_hp_mapping` says which
    # elements of a parameter lie where in this rank's stretch.
    groups = engine.optimizer.param_groups
    for name, parameter in _trained(engine):
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed puts it there
        if mapping is not None:
            (flat,) = groups[mapping.param_group_index]["params"]
            place = mapping.get_hp_fragment_address()
            yield _Place(name, flat, place.start, mapping.lp_fragment_address.start, place.numel)


def _partitioned_parameters(engine: Engine) -> Iterator[_Place]:
    # ZeRO 3 cuts every parameter into equal stretches, one a rank, the last padded.
    zero = engine.deepspeed.optimizer
    for name, parameter in _trained(engine):
        group, place, length = zero.grad_position[zero.get_param_id(parameter)]
        start = dist.get_rank() * length
        size = max(0, min(length, parameter.ds_numel - start))  # type: ignore[attr-defined]  # DeepSpeed puts it there
        yield _Place(name, zero.fp32_partitioned_groups_flat[group], place, start, size)


def _with_state(engine: Engine, place: _Place) -> Piece:
    whole = {"parameter": place.flat} | _by_element(engine, place.flat)
    first, last = place.place, place.place + place.size
    return Piece(
        place.name, place.start, {kind: tensor.detach().view(-1)[first:last] for kind, tensor in whole.items()}
    )


def _by_element(engine: Engine, flat: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps for each element of a tensor that it steps."""
    if keeps_blocks(engine.optimizer):
        return {}
    state = engine.optimizer.state.get(flat, {})
    return {
        kind: value
        for kind, value in state.items()
        if torch.is_tensor(value) and value.dim() and value.shape == flat.shape
    }


def _stepped(engine: Engine) -> list[tuple[Tensor, dict[str, Any], list[_Place]]]:
    """The tensors that the optimizer really steps, each with its group and with what of the parameters is in it."""
    held: defaultdict[int, list[_Place]] = defaultdict(list)
    for place in _places(engine):
        held[id(place.flat)].append(place)
    if engine.zero_stage:
        return [(flat, group, held[id(flat)]) for flat, group, _ in _zero_groups(engine)]
    groups = engine.optimizer.param_groups
    return [(tensor, group, held[id(tensor)]) for group in groups for tensor in group["params"]]


def _zero_groups(engine: Engine) -> Iterator[tuple[Tensor, dict[str, Any], list[str]]]:
    """The tensors that are stepped under ZeRO, each with its group and the names of all parameters cut for it."""
    zero, groups = engine.deepspeed.optimizer, engine.optimizer.param_groups
    name_of = {id(parameter): name for name, parameter in _trained(engine)}
    if engine.zero_stage == 3:  # whose groups are only filled during a step
        for number, (flat, members) in enumerate(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)):
            yield flat, groups[zero.sub_group_to_group_id[number]], [name_of[id(member)] for member in members]
    else:
        for group, members in zip(groups, zero.bit16_groups, strict=True):
            (flat,) = group["params"]
            yield flat, group, [name_of[id(member)] for member in members]


def _block_name(held: Iterable[_Place]) -> str:
    """The same wherever the optimizer steps a tensor of the same stretches of the same parameters."""
    return identity([[place.name, place.place, place.start, place.size] for place in held])[:20]


def _trained(engine: Engine) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in engine.model.named_parameters() if parameter.requires_grad)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO 3 leaves an empty shell behind
