"""Cross entropy of a model's output without the logits of all targets at once: a stretch of targets after the other."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

LOGITS_AT_ONCE = 2**26
"""Logits of a stretch on a GPU: 256 MiB in float32, and rows enough to keep it busy whatever the vocabulary."""
ROWS_ON_A_CPU = 512
"""Targets of a stretch on a CPU: fewer read the weight too often, the logits of more leave its caches."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    finish: Callable[[Tensor], Tensor] = lambda logits: logits,
    chunk: int | None = None,
    each: Tensor | None = None,
) -> Tensor:
    """Cross entropy of `finish(hidden @ weight.T + bias)` summed over all targets, float32[].

    Gradients are computed along with the loss, so that logits are made once and never kept: as many operations as the
    plain way, in memory of two gradients of the weight. Zero, with zero gradients, where there is no target.

    Args:
        hidden: [targets, width]
        weight: [vocabulary, width]
        targets: int64[targets]
        finish: what the model does to its logits, each row by itself.
        chunk: targets at once; by default what suits the device.
        each: float32[targets], to be filled with the loss of each target; those have no gradient.
    """
    fitting = max(1, LOGITS_AT_ONCE // weight.shape[0]) if hidden.is_cuda else ROWS_ON_A_CPU
    if not torch.is_grad_enabled():  # autograd tells a function what could need a gradient, not whether one is wanted
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    return cast(Tensor, _Chunked.apply(hidden, weight, bias, targets, finish, chunk or fitting, each))  # type: ignore[no-untyped-call]


def cross_entropy_sum(logits: Tensor, targets: Tensor, each: Tensor | None = None) -> Tensor:
    """Cross entropy of float32[targets, vocabulary] summed over the targets, as PyTorch's `cross_entropy` has it.

    Args:
        each: float32[targets], to be filled with the loss of each target; those have no gradient.
    """
    logarithms = F.log_softmax(logits, -1)
    if each is not None:
        each.copy_(F.nll_loss(logarithms.detach(), targets, reduction="none"))
    return F.nll_loss(logarithms, targets, reduction="sum")


class ChunkedHead:
    """A model's output layer that, where asked to, gives the loss instead of logits.

    The layer itself is called, once, so that ZeRO gathers its weight and sees its gradient as ever.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take over the output layer of a Transformers causal LM.

        Raises:
            ValueError: if its logits are made in another way than by a linear layer and what `finish` repeats.
        """
        self._head, self._finish = _head_and_finish(model)
        self._forward = self._head.forward
        self._head.forward = self._loss_or_logits
        self._asked: tuple[Tensor, Tensor | None, Tensor | None] | None = None
        self._loss: Tensor | None = None
        self._catch: Any = None

    def loss_sum(
        self, call: Callable[[], object], targets: Tensor, rows: Tensor | None, each: Tensor | None = None
    ) -> Tensor:
        """Cross entropy summed over the targets, float32[], while `call` runs the model's forward pass.

        Args:
            rows: int64[targets]: whose output predicts each target; None where the model computes just those.
            each: float32[targets], to be filled with the loss of each target.
        """
        with self._asking(targets, rows, each):
            call()
        loss, self._loss = self._loss, None
        assert loss is not None, "the output layer was not called"
        return loss

    @contextmanager
    def _asking(self, targets: Tensor, rows: Tensor | None, each: Tensor | None) -> Iterator[None]:
        if self._catch is None:
            # The last hook of all: DeepSpeed's wrap what the layer gives, to know when its backward pass begins.
            self._catch = self._head.register_forward_hook(self._keep)
        self._asked = targets, rows, each
        try:
            yield
        finally:
            self._asked = None

    def _loss_or_logits(self, hidden: Tensor) -> Tensor:
        if self._asked is None:
            logits: Tensor = self._forward(hidden)
            return logits
        targets, rows, each = self._asked
        chosen = hidden[0] if rows is None else hidden[0, rows]
        return chunked_cross_entropy(
            chosen, self._head.weight, self._head.bias, targets, finish=self._finish, each=each
        )

    def _keep(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._asked is None:
            return output
        self._loss = output
        return output.new_zeros(1, 0, self._head.out_features)  # whatever the model does to logits, it does to none


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        finish: Callable[[Tensor], Tensor],
        rows: int,
        each: Tensor | None,
    ) -> Tensor:
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        needed = to_hidden or to_weight or to_bias
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        ctx.hidden = torch.empty_like(hidden) if to_hidden else None
        # Summed in float32, as one product over all targets would be.
        ctx.weight = torch.zeros_like(weight, dtype=torch.float32) if to_weight else None
        ctx.bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and to_bias else None
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        for first in range(0, targets.numel(), rows):
            here = slice(first, first + rows)
            logits = F.linear(hidden[here], weight, bias)
            each_here = None if each is None else each[here]
            loss, gradient = _loss_and_gradient(logits, targets[here], finish, each_here, needed=needed)
            total += loss
            if ctx.hidden is not None:
                torch.mm(gradient, weight, out=ctx.hidden[here])
            if ctx.weight is not None:
                ctx.weight += gradient.T @ hidden[here]
            if ctx.bias is not None:
                ctx.bias += gradient.sum(0, dtype=torch.float32)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.hidden, ctx.weight, ctx.bias
        found = [
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(kept, ctx.dtypes, strict=True)
        ]
        ctx.hidden = ctx.weight = ctx.bias = None
        return *found, None, None, None, None


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, finish: Callable[[Tensor], Tensor], each: Tensor | None, *, needed: bool
) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(needed):
        logits = logits.detach().requires_grad_(needed)
        loss = cross_entropy_sum(finish(logits).float(), targets, each)
        gradient = torch.autograd.grad(loss, logits)[0] if needed else logits
    return loss.detach(), gradient


def _head_and_finish(model: nn.Module) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A causal LM's output layer, and what its forward pass does to the logits after that."""
    causal: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    head = causal.get_output_embeddings()
    names = [name for name, module in causal._modules.items() if module is head]
    body = causal.base_model_prefix
    if type(head) is not nn.Linear or not names or body not in causal._modules:
        raise ValueError("its output layer is no plain linear layer")
    trial = _small(head)
    tail, finish = _after_body(causal, body, names[0], trial), _after_body(causal, body, names[0], nn.Identity())
    try:
        _check(trial, tail, finish)
    except (AttributeError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise ValueError(f"its output layer cannot be run by itself ({error})") from error
    return head, finish


def _after_body(causal: Any, body: str, name: str, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a causal LM's own forward pass does after its body: [rows, width] to [rows, vocabulary], through `head`."""
    shell = copy.copy(causal)
    given = _Given()
    shell.__dict__["_modules"] = {body: given, name: head}
    forward = type(causal).forward

    def run(rows: Tensor) -> Tensor:
        given.rows = rows[None]
        try:
            tokens = torch.zeros(1, len(rows), dtype=torch.int64, device=rows.device)
            logits: Tensor = forward(shell, input_ids=tokens, use_cache=False).logits[0]
        finally:
            given.rows = None
        return logits

    return run


class _Given(nn.Module):
    """In place of a model's body: gives what it was given."""

    rows: Tensor | None = None

    @property
    def decoder(self) -> "_Given":
        """What a few models call, such as OPT, instead of their body."""
        return self

    def forward(self, *_: Any, **__: Any) -> "_Output":
        return _Output(last_hidden_state=cast(Any, self.rows))


class _Output(BaseModelOutput):  # type: ignore[misc]  # Transformers gives it no type
    """What a body gives, without anything but its last hidden state."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _small(head: nn.Linear) -> nn.Linear:
    """A layer to try in the place of an output layer, whose own weight may not be here yet."""
    generator = torch.Generator().manual_seed(1)
    trial = nn.Linear(head.in_features, 64, bias=head.bias is not None, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in trial.parameters():
            parameter.normal_(generator=generator)
    return trial


def _check(head: nn.Linear, tail: Callable[[Tensor], Tensor], finish: Callable[[Tensor], Tensor]) -> None:
    """Refuse a model that does more before its output layer: that would be in `finish` as well, and be done twice."""
    seen: list[Tensor] = []
    watch = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, head.in_features, generator=generator)
    try:
        with torch.no_grad():
            whole = tail(rows)
            parts = finish(F.linear(seen[0][0], head.weight, head.bias))
    finally:
        watch.remove()
    if not torch.equal(whole, parts):
        raise ValueError("it changes what its output layer is given")
