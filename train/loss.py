"""The loss of a micro-batch: exact for the global batch, whatever the ranks and the accumulation."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from train.batches import MicroBatch
from train.chunked_loss import ChunkedHead, cross_entropy_sum


def loss_sum(
    model: nn.Module,
    batch: MicroBatch,
    *,
    keeps_logits: bool,
    head: ChunkedHead | None = None,
    each: Tensor | None = None,
) -> Tensor:
    """Cross entropy summed over the targets of a micro-batch, float32[].

    Zero, with zero gradients for every parameter, where the micro-batch has no target.

    Args:
        model: called like a Transformers causal LM.
        keeps_logits: whether it computes logits only where asked (`computes_chosen_logits`).
        head: its output layer, if that can give the loss without all logits.
        each: float32[targets], to be filled with the loss of each target.
    """
    if head is not None:
        call = _call(model, batch, keeps_logits=keeps_logits)
        return head.loss_sum(call, batch.targets, None if keeps_logits else batch.predictors, each)
    logits = chosen_logits(model, batch, keeps_logits=keeps_logits)
    return cross_entropy_sum(logits.float(), batch.targets, each)


def chosen_logits(model: nn.Module, batch: MicroBatch, *, keeps_logits: bool) -> Tensor:
    """What the predictors of a micro-batch say of their next tokens, [predictors, vocabulary]."""
    logits: Tensor = _call(model, batch, keeps_logits=keeps_logits)().logits[0]
    return logits if keeps_logits else logits[batch.predictors]


def _call(model: nn.Module, batch: MicroBatch, *, keeps_logits: bool) -> Callable[[], Any]:
    chosen: dict[str, Any] = {"logits_to_keep": batch.predictors} if keeps_logits else {}
    return partial(model, input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **chosen)


def computes_chosen_logits(model: nn.Module) -> bool:
    """Whether the model takes `logits_to_keep`: most targets are few, and logits are the largest activation."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
