"""A layer's MLP over a stretch of the tokens after the other, so that its wide activations never exist for all of them.

The MLP's own forward pass is called for each stretch, and once more in the backward pass, so any MLP will do whose rows
do not see each other. That is not believed but tried, before the first step.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from pipelines.errors import ConfigError
from pipelines.schema import Pipeline
from train.activations import decoder_layers, nothing_kept

NAMES = ("mlp", "block_sparse_moe")
"""What Transformers' decoder layers call their MLP."""
FEWEST_TOKENS = 1024
"""Shorter stretches keep no GPU busy."""
PROBE_ROWS = (7, 12)
"""Rows of the probe: those that stay, and those that others take the place of."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Accepted difference over the largest element."""


def tile_mlps(model: Any, pipeline: Pipeline) -> list["TiledMlp"]:
    """Let every decoder layer's MLP run in stretches.

    Raises:
        ConfigError: naming a model without a module to be called in stretches.
    """
    config = model.config.get_text_config()
    tiled = []
    for layer in decoder_layers(model):
        modules = dict(layer.named_children())
        mlp = next((modules[name] for name in NAMES if name in modules), None)
        if mlp is None:
            raise _refusal(pipeline, config, f"their {type(layer).__name__} has no module that is an MLP")
        if len(inspect.signature(mlp.forward).parameters) != 1:
            raise _refusal(pipeline, config, f"their {type(mlp).__name__} takes more than hidden states")
        tiled.append(TiledMlp(mlp, stretch(config)))
    if not tiled:
        raise _refusal(pipeline, config, "they have no decoder layers that Transformers would know")
    return tiled


def stretch(config: Any) -> int:
    """Tokens of a stretch: as many as the model is wide, so what an MLP makes of them is as large as its weights."""
    return max(FEWEST_TOKENS, int(config.hidden_size))


def check_rows(model: Any, tiled: list["TiledMlp"], pipeline: Pipeline) -> None:
    """Refuse a model whose MLPs compute something else when tokens are taken apart. Called on all ranks alike."""
    config = model.config.get_text_config()
    was_training = model.training
    model.eval()
    for one in tiled:
        if finding := one.finding(config.hidden_size):
            raise _refusal(pipeline, config, f"in their {type(one.mlp).__name__} {finding}")
    model.train(was_training)


class TiledMlp:
    """In place of an MLP's forward pass.

    The module itself is called once, so that ZeRO gathers its weights once, and each weight has one gradient, the sum
    over all stretches in float32.

    Args:
        mlp: a module that takes and gives [1, tokens, width].
        tokens: of a stretch.
    """

    def __init__(self, mlp: nn.Module, tokens: int) -> None:
        self.mlp = mlp
        self._tokens = tokens
        self._whole: Callable[[Tensor], Tensor] = mlp.forward
        mlp.forward = self._in_stretches

    def finding(self, width: int) -> str | None:
        """What keeps the MLP from being run in stretches, by random rows; None if nothing does.

        A row has to give the same beside other rows, and in another place. The number of rows stays as it is: another
        one may round otherwise, which would send a token to another expert now and then.
        """
        from deepspeed.runtime.zero import GatheredParameters

        weights = list(self.mlp.parameters())
        with GatheredParameters(weights), torch.no_grad():
            dtype = next(weight.dtype for weight in weights if weight.dtype in TOLERANCE)
            stay, leave = PROBE_ROWS
            random = torch.randn(1, stay + 2 * leave, width, generator=torch.Generator().manual_seed(0))
            kept, one, other = torch.split(random.to(weights[0].device, dtype), [stay, leave, leave], dim=1)
            rows = torch.cat([kept, one], dim=1)
            whole = self._whole(rows)
            if not isinstance(whole, Tensor) or whole.shape != rows.shape:
                return "the output is something else than a row for each token"
            among_others = self._whole(torch.cat([kept, other], dim=1))[:, :stay]
            turned = self._whole(rows.flip(1)).flip(1)
        apart = torch.maximum((among_others - whole[:, :stay]).abs().max(), (turned - whole).abs().max())
        share = float(apart / whole.abs().max().clamp(min=1e-6))
        return None if share <= TOLERANCE[dtype] else f"tokens depend on each other (by {share:.2g} of the output)"

    def _in_stretches(self, hidden: Tensor) -> Tensor:
        if hidden.shape[1] <= self._tokens:
            return self._whole(hidden)
        if not torch.is_grad_enabled():
            return torch.cat([self._whole(part) for part in torch.split(hidden, self._tokens, dim=1)], dim=1)
        assert hidden.requires_grad, "the input of an MLP needs no gradient"
        weights = [weight for weight in self.mlp.parameters() if weight.requires_grad]
        kept = cast(Tensor, _Keep.apply(hidden))  # type: ignore[no-untyped-call]
        return cast(Tensor, _Stretches.apply(kept, kept.grad_fn, self._whole, self._tokens, *weights))  # type: ignore[no-untyped-call]


class _Keep(torch.autograd.Function):
    """Keeps the input for `_Stretches`, before that runs: where a checkpointed layer is computed again for the sake of
    what it kept, and nothing after the MLP kept anything, the MLP is not."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Stretches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, keeper: Any, run: Callable[[Tensor], Tensor], tokens: int, *weights: Tensor
    ) -> Tensor:
        ctx.keeper, ctx.run, ctx.tokens, ctx.weights = keeper, run, tokens, weights
        ctx.random = _Random(hidden)
        with nothing_kept():
            return torch.cat([run(part) for part in torch.split(hidden, tokens, dim=1)], dim=1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.keeper.saved_tensors
        to_hidden = torch.empty_like(hidden)
        sums: list[Tensor | None] = [None for _ in ctx.weights]
        stretches = [torch.split(tensor, ctx.tokens, dim=1) for tensor in (hidden, upstream, to_hidden)]
        with ctx.random.as_in_forward(), torch.enable_grad():
            for part, of_output, of_part in zip(*stretches, strict=True):
                part = part.detach().requires_grad_()
                found = torch.autograd.grad(ctx.run(part), [part, *ctx.weights], of_output, allow_unused=True)
                of_part.copy_(found[0])
                for at, gradient in enumerate(found[1:]):
                    sums[at] = _added(sums[at], gradient)
        of_weights = [
            None if total is None else total.to(weight) for total, weight in zip(sums, ctx.weights, strict=True)
        ]
        return to_hidden, None, None, None, *of_weights


def _added(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    # In float32, as one product over all tokens would be summed. An expert may have no token in a stretch.
    if gradient is None:
        return total
    return gradient.float() if total is None else total.add_(gradient)


class _Random:
    """The state of the random numbers when it is made, for dropout inside an MLP."""

    def __init__(self, tensor: Tensor) -> None:
        self._cpu = torch.get_rng_state()
        self._device = tensor.device.type
        self._devices, self._states = get_device_states(tensor)

    @contextmanager
    def as_in_forward(self) -> Iterator[None]:
        """Draw the same random numbers inside the block, and outside as if there had been no block."""
        with torch.random.fork_rng(self._devices, device_type=self._device, enabled=True):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states, device_type=self._device)
            yield


def _refusal(pipeline: Pipeline, config: Any, finding: str) -> ConfigError:
    return ConfigError(f"{pipeline.cite('train.tiled_mlp')}: {config.model_type} models: {finding}; set it to false")
