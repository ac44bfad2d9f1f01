"""Muon: hidden matrices step along the orthogonalized momentum of their gradients, everything else by AdamW.

After K. Jordan's post (https://kellerjordan.github.io/posts/muon/), with the scale of "Muon is Scalable for LLM
Training" (https://arxiv.org/abs/2502.16982), at which learning rate and weight decay are AdamW's. On whole matrices it
is `torch.optim.Muon`, bit for bit; where ZeRO cuts a matrix, the ranks bring its parts together first, so that they
step as the whole does. A parameter of three dimensions is a stack of matrices, such as those of a layer's experts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that drives singular values towards 1: the steepest at 0 that stays bounded."""
SMALLEST_NORM = 1e-7


@dataclass(frozen=True)
class Part:
    """What this rank holds of one matrix, within the tensor that it steps."""

    shape: tuple[int, ...]
    """Of the whole matrix, or of the stack of them."""
    start: int
    """First element within the flattened matrix."""
    place: int
    """First element within the stepped tensor."""
    size: int
    """Elements; 0 where other ranks have them all."""
    shared: bool = False
    """Whether no rank has it whole, so that all ranks bring it together."""


class Muon(torch.optim.Optimizer):
    """Groups with `matrices = True` step by Muon, the others by AdamW; all at the same learning rate."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
    ) -> None:
        """Set up; `betas` and `eps` are AdamW's, the rest as of torch.optim.Muon.

        Raises:
            ValueError: if a setting is of no use.
        """
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum = {momentum}: expected 0 <= momentum < 1")
        if not 1 <= ns_steps < 100:
            raise ValueError(f"ns_steps = {ns_steps}: expected 1 to 99")
        if adjust_lr_fn not in ("match_rms_adamw", "original"):
            raise ValueError(f'adjust_lr_fn = "{adjust_lr_fn}": expected "match_rms_adamw" or "original"')
        own = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "matrices": False, **own}
        )
        self._parts: Mapping[Tensor, Sequence[Part]] = {}
        self._device: torch.device | None = None

    def lay_out(self, parts: Mapping[Tensor, Sequence[Part]], device: torch.device) -> None:
        """Say which parts of which matrices lie in the tensors that are stepped, where those are no matrices.

        Args:
            parts: by stepped tensor, in an order that all ranks share.
            device: where to compute, and to meet the other ranks.
        """
        self._parts, self._device = parts, device

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's)
        for group in self.param_groups:
            stepped = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in stepped:
                state = self.state[parameter]
                if not state:
                    kinds = ("momentum_buffer",) if group["matrices"] else ("exp_avg", "exp_avg_sq")
                    state["step"] = torch.tensor(0.0)
                    state |= {kind: torch.zeros_like(parameter) for kind in kinds}
            if not group["matrices"]:
                self._adamw(stepped, group)
                continue
            for parameter in stepped:
                self._muon(parameter, group)

    def _adamw(self, stepped: list[Tensor], group: Mapping[str, Any]) -> None:
        states = [self.state[parameter] for parameter in stepped]
        adamw(
            stepped,
            [parameter.grad for parameter in stepped],  # type: ignore[misc]  # those without are not among them
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            maximize=False,
            **{key: group[key] for key in ("lr", "weight_decay", "eps")},
        )

    def _muon(self, stepped: Tensor, group: Mapping[str, Any]) -> None:
        state, gradient = self.state[stepped], stepped.grad
        assert gradient is not None
        state["step"] += 1
        state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        means: Tensor = state["momentum_buffer"]
        update = (gradient.lerp(means, group["momentum"]) if group["nesterov"] else means).view(-1)
        stepped.mul_(1 - group["lr"] * group["weight_decay"])
        weights = stepped.view(-1)
        for part in self._parts.get(stepped, [Part(tuple(stepped.shape), 0, 0, stepped.numel())]):
            whole = self._whole(update[part.place : part.place + part.size], part)
            if whole is not None:
                step = orthogonal(whole, group["ns_steps"]).reshape(-1)[part.start : part.start + part.size]
                scale = _scale(group["adjust_lr_fn"], part.shape)
                weights[part.place : part.place + part.size].add_(step.to(weights.device), alpha=-group["lr"] * scale)

    def _whole(self, mine: Tensor, part: Part) -> Tensor | None:
        """The matrix that `mine` is a part of, bfloat16; None where this rank has nothing of it."""
        mine = mine.to(self._device or mine.device, torch.bfloat16)
        if part.shared:
            whole = mine.new_zeros(math.prod(part.shape))
            whole[part.start : part.start + part.size] = mine
            dist.all_reduce(whole)  # exact: all but one of the ranks add 0
            mine = whole
        return mine.view(part.shape) if part.size else None


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns, by Newton and Schulz's iteration.

    Args:
        matrix: bfloat16[..., rows, columns]; singular values come out near 1, small ones below.
    """
    a, b, c = COEFFICIENTS
    product = torch.addmm if matrix.dim() == 2 else torch.baddbmm
    tall = matrix.shape[-2] > matrix.shape[-1]
    found = matrix.mT if tall else matrix
    norm = found.norm() if matrix.dim() == 2 else found.norm(dim=(-2, -1), keepdim=True)
    found = found / norm.clamp(min=SMALLEST_NORM)
    for _ in range(steps):
        gram = found @ found.mT
        found = product(found, product(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if tall else found


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the parameters that Muon is for: matrices between the embedding and the output."""
    found = {name for name, parameter in model.named_parameters() if parameter.dim() in (2, 3)}
    head = model.get_output_embeddings()  # type: ignore[operator]  # a PreTrainedModel has it
    outside = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.modules.conv._ConvNd)]
    both = {id(parameter) for module in (*outside, *([head] if head else [])) for parameter in module.parameters()}
    return {
        name
        for name, parameter in model.named_parameters()
        if name in found and id(parameter) not in both and "lora_embedding_" not in name
    }


def mark_shared(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Find out which matrices no rank has whole; all ranks call this, with the same names."""
    sizes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, [part.size for part in parts.values()])
    most = [max(held) for held in zip(*sizes, strict=True)]
    return {
        name: replace(part, shared=largest < math.prod(part.shape))
        for (name, part), largest in zip(parts.items(), most, strict=True)
    }


def _scale(how: str, shape: Sequence[int]) -> float:
    """What the learning rate is multiplied with, so that entries change as much as AdamW's, or as in the post."""
    rows, columns = shape[-2:]
    return 0.2 * math.sqrt(max(rows, columns)) if how == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
