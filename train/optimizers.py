"""Optimizers by name, and what each must be for ZeRO to step it in parts and a checkpoint to hold it."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adagrad import adagrad

from pipelines.errors import ConfigError, MachineError
from pipelines.schema import Optimizer, Pipeline
from train.muon import Muon, hidden_matrices

WITH_BETAS = {
    "adamw": "AdamW",
    "adam": "Adam",
    "adamax": "Adamax",
    "nadam": "NAdam",
    "radam": "RAdam",
}
"""Of torch.optim: those that our betas and eps are for."""
OTHERS = {
    "sgd": "SGD",
    "rmsprop": "RMSprop",
    "adadelta": "Adadelta",
    "asgd": "ASGD",
    "rprop": "Rprop",
    "adafactor": "Adafactor",
}
"""Of torch.optim: those with defaults of their own, which `train.optimizer.options` may change."""
BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
    "lion_8bit": "Lion8bit",
    "paged_lion_8bit": "PagedLion8bit",
    "paged_lion_32bit": "PagedLion32bit",
}
"""Of bitsandbytes, which is an extra; our betas and eps are for them, too."""
STATE_DTYPES = (torch.float32, torch.int64, torch.uint8)
"""Of tensors that a checkpoint can hold."""


class Lion(torch.optim.Optimizer):
    """Steps by the sign of the gradient mixed with its running mean, after https://arxiv.org/abs/2302.06675."""

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # noqa: ARG002 (torch's)
        for group in self.param_groups:
            mixed, kept = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(parameter.grad.lerp(mean, mixed).sign_(), alpha=group["lr"])
                mean.lerp_(parameter.grad, 1 - kept)
        return None


class Adagrad(torch.optim.Optimizer):
    """PyTorch's Adagrad, but its state is made at its first step.

    ZeRO puts flattened parts in the place of parameters before that; PyTorch's own has its state by then, and DeepSpeed
    would replace it with one that knows no groups.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        start = initial_accumulator_value
        super().__init__(
            params, {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "start": start}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # noqa: ARG002 (torch's)
        for group in self.param_groups:
            stepped = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in stepped:
                if not self.state[parameter]:
                    self.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "sum": torch.full_like(parameter, group["start"]),
                    }
            adagrad(
                stepped,
                [parameter.grad for parameter in stepped],
                [self.state[parameter]["sum"] for parameter in stepped],
                [self.state[parameter]["step"] for parameter in stepped],
                has_sparse_grad=False,
                maximize=False,
                **{key: group[key] for key in ("lr", "weight_decay", "lr_decay", "eps")},
            )
        return None


OURS: Mapping[str, type[torch.optim.Optimizer]] = {"adagrad": Adagrad, "lion": Lion, "muon": Muon}


def make_optimizer(
    groups: list[dict[str, Any]], settings: Optimizer, pipeline: Pipeline, *, zero_stage: int
) -> torch.optim.Optimizer:
    """The optimizer that [train.optimizer] names, over these parameter groups.

    It is tried on a few numbers first: ZeRO steps flattened parts of the parameters, which must come out as in the
    whole. Muon is not: it knows where its matrices are cut.

    Raises:
        ConfigError: if there is no such optimizer, or it is not made for this ZeRO stage, these settings, or resuming.
        MachineError: if it is of a package that is not installed.
    """
    kind = _class(settings, pipeline)
    keys = _keys(kind, settings, pipeline)
    cited = pipeline.cite("train.optimizer.type")
    try:
        whole, parts, large = _tried(kind, keys), _tried(kind, keys, parts=2), _tried(kind, keys, scale=32)
        optimizer = kind(groups, **keys)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{cited}: {' '.join(str(error).split())}; see train.optimizer.options") from error
    for key, value in large.state.items():
        if not _is_number(value) and not (torch.is_tensor(value) and value.dtype in STATE_DTYPES):
            raise ConfigError(f"{cited}: keeps {key}, a {type(value).__name__} that no checkpoint can hold")
    by_element = torch.allclose(whole.weight.view(-1), parts.weight.view(-1), rtol=1e-5, atol=1e-7)
    if zero_stage and kind is not Muon and not by_element:
        raise ConfigError(
            f"{cited}: does not go by element, and ZeRO {zero_stage} steps flattened parts of the parameters; use "
            'zero_stage = 0 with precision = "fp32", or another optimizer'
        )
    optimizer.scalars = {key: value for key, value in large.state.items() if _is_number(value)}
    optimizer.in_blocks = not all(
        _is_number(value) or (value.shape == large.weight.shape and value.dtype == torch.float32)
        for value in large.state.values()
    )
    made: torch.optim.Optimizer = optimizer
    return made


def keeps_blocks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether state is not one float32 number an element: it fits only beside the tensor that it was made for."""
    return bool(optimizer.in_blocks)  # type: ignore[attr-defined]  # `make_optimizer` put it there


def empty_state(
    optimizer: torch.optim.Optimizer, flat: Tensor, group: dict[str, Any], kinds: Iterable[str]
) -> dict[str, Any]:
    """State for a stepped tensor as its first step would make it, to be filled in place.

    Args:
        kinds: names of the tensors that are like `flat`.
    """
    if not _is_of_bitsandbytes(optimizer):
        return {kind: torch.zeros_like(flat) for kind in kinds}
    # It decides itself where its state lies: on the GPU, or in memory paged between GPU and host.
    former, group["params"] = group["params"], [flat]  # ZeRO 3 fills the groups only during a step
    place = next(at for at, each in enumerate(optimizer.param_groups) if each is group)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.init_state(group, flat, place, 0)  # type: ignore[attr-defined]  # a method of all of theirs
    group["params"] = former
    return dict(optimizer.state[flat])


def scalar_like(optimizer: torch.optim.Optimizer, key: str, value: float, beside: Tensor) -> Any:
    """A number that an optimizer keeps once a tensor, as it would have made it itself for the tensor `beside`."""
    like = getattr(optimizer, "scalars", {}).get(key)
    if like is not None and not torch.is_tensor(like):
        return type(like)(value)
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    dtype = torch.float32 if like is None else like.dtype
    return torch.tensor(value, dtype=dtype, device=beside.device if on_device else "cpu")


def _class(settings: Optimizer, pipeline: Pipeline) -> type[Any]:
    name = settings.type
    if name in OURS:
        return OURS[name]
    if name in BITSANDBYTES:
        try:
            module = import_module("bitsandbytes.optim")
        except ImportError as error:
            raise MachineError(
                f"{pipeline.cite('train.optimizer.type')}: needs bitsandbytes; pip install bitsandbytes"
            ) from error
        return _named(module, BITSANDBYTES[name])
    if name.startswith("python:"):
        _, path, attribute = name.split(":")
        try:
            return _named(import_module(path), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{pipeline.cite('train.optimizer.type')}: cannot be imported ({error})") from error
    return _named(torch.optim, {**WITH_BETAS, **OTHERS}[name])


def _named(module: Any, name: str) -> type[Any]:
    found: type[Any] = getattr(module, name)
    return found


def _keys(kind: type[Any], settings: Optimizer, pipeline: Pipeline) -> dict[str, Any]:
    """What the optimizer is made with: our keys where it has them, then its options."""
    accepted = inspect.signature(kind).parameters
    ours = settings.type in (*WITH_BETAS, *BITSANDBYTES, "lion", "muon")
    keys: dict[str, Any] = {"lr": settings.lr}
    if "fused" in accepted:
        keys["fused"] = True
    for key in ("betas", "eps", "weight_decay"):
        value = getattr(settings, key)
        asked = value != Optimizer.model_fields[key].default
        if asked and key not in accepted:
            raise ConfigError(
                f"{pipeline.cite(f'train.optimizer.{key}')}: {settings.type} has no such setting; remove it"
            )
        if key != "weight_decay" and key in accepted and (asked or ours):
            keys[key] = value
    for key, value in settings.options.items():
        cited = pipeline.cite(f"train.optimizer.options.{key}")
        if key in ("lr", "betas", "eps", "weight_decay", "params"):
            raise ConfigError(f"{cited}: this file sets it by train.optimizer.{key}; remove it here")
        if key not in accepted:
            known = ", ".join(name for name in accepted if name not in ("params", "lr", "weight_decay"))
            raise ConfigError(f"{cited}: {settings.type} has no such setting; it has {known}")
        keys[key] = value
    return keys


@dataclass(frozen=True)
class _Tried:
    """A small weight after a few steps, and what was kept for it."""

    weight: Tensor
    state: Mapping[str, Any]


def _tried(kind: type[Any], keys: Mapping[str, Any], *, parts: int = 1, scale: int = 1) -> _Tried:
    """Step a matrix three times, as it is or flattened and cut in parts."""
    generator = torch.Generator().manual_seed(0)
    shape = (4 * scale, 6 * scale)
    weight = torch.randn(shape, generator=generator)
    pieces = [weight] if parts == 1 else list(weight.view(-1).chunk(parts))
    stepped = [nn.Parameter(piece.clone()) for piece in pieces]
    optimizer = kind(stepped, **keys)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CPU is not what they will step on
        for _ in range(3):
            gradient = torch.randn(shape, generator=generator)
            cut = [gradient] if parts == 1 else list(gradient.view(-1).chunk(parts))
            for parameter, part in zip(stepped, cut, strict=True):
                parameter.grad = part.clone()
            optimizer.step()
    state = {key: value for key, value in optimizer.state[stepped[0]].items() if value is not None}
    return _Tried(torch.cat([parameter.detach().view(-1) for parameter in stepped]).view(shape), state)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or (torch.is_tensor(value) and value.dim() == 0)


def _is_of_bitsandbytes(optimizer: torch.optim.Optimizer) -> bool:
    return any(base.__module__.startswith("bitsandbytes.") for base in type(optimizer).__mro__)


def parameter_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Trained parameters: those that are decayed, the others, and of both first the matrices that only Muon sets apart.

    Without decay there is one group of each.
    """
    matrices = hidden_matrices(model) if optimizer.type == "muon" else set()
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (matrix, decayed): [] for matrix in (True, False) for decayed in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = any(part in name for part in optimizer.no_decay) or not optimizer.weight_decay
            found[name in matrices, not spared].append(parameter)
    return [
        {"params": parameters, "weight_decay": optimizer.weight_decay if decayed else 0.0}
        | ({"matrices": True} if matrix else {})
        for (matrix, decayed), parameters in found.items()
        if parameters
    ]
