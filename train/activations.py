"""What of a decoder layer waits for the backward pass: everything, its input alone, or what is dear to compute again.

Transformers' decoder layers ask a function for how they are run in training (`GradientCheckpointingLayer`);
`LayerRunner` is that function. Nothing of a model is patched, and nothing here changes a number: what is computed again
is computed from the same inputs, with the same random numbers.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn
from transformers.modeling_layers import GradientCheckpointingLayer

from pipelines.errors import ConfigError
from pipelines.schema import Pipeline

Run = Callable[..., Any]
"""A layer's forward function, with all arguments but its input."""
Prepare = Callable[[partial[Any]], Run]
"""What else is done to that function before it is called."""
Keep = Literal["none", "selective", "full"]
"""Of train.activation_checkpointing: what is computed again."""

DEAR = {
    "aten::mm",
    "aten::addmm",
    "aten::_grouped_mm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_varlen_forward",
}
"""Operations whose results "selective" keeps: many operations for each number kept, whose count grows with the tokens.

Batched products are not among them: they are the scores of an attention spelt out, which grow with the square."""


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers that a model repeats, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def run_layers(model: Any, pipeline: Pipeline, *, prepare: Prepare | None = None) -> None:
    """Let a model run its layers in training as train.activation_checkpointing and activation_offload say.

    Args:
        prepare: what else is done to each layer's forward function before it is called.
    Raises:
        ConfigError: if the model's layers cannot be run so.
    """
    train = pipeline.train
    assert train is not None
    layers = decoder_layers(model)
    keep = train.activation_checkpointing
    if not layers or (keep != "none" and not model.supports_gradient_checkpointing):
        key, off = ("activation_checkpointing", '"none"') if keep != "none" else ("compile", "false")
        raise ConfigError(
            f"{pipeline.cite(f'train.{key}')}: Transformers has no way to run the layers of {model.config.model_type} "
            f"models so; set it to {off}"
        )
    run = LayerRunner(keep, offload=train.activation_offload == "cpu", prepare=prepare)
    for layer in layers:
        layer._gradient_checkpointing_func = run
        layer.gradient_checkpointing = True


class LayerRunner:
    """Runs a layer in training, called by the layer itself.

    Args:
        keep: what is computed again in the backward pass.
        offload: layers' inputs wait in CPU memory; for keep = "full".
        prepare: what else is done to a layer's forward function before it is called.
    """

    def __init__(self, keep: Keep, *, offload: bool = False, prepare: Prepare | None = None) -> None:
        self._keep = keep
        self._waiting = WaitingInputs() if offload else None
        self._prepare = prepare

    def __call__(self, run: partial[Any], *inputs: Any) -> Any:
        called: Run = run if self._prepare is None else self._prepare(run)
        if self._keep == "none":
            return called(*inputs)
        with self._waiting.hooks() if self._waiting else nullcontext():
            contexts = _dear_contexts if self._keep == "selective" else noop_context_fn
            return checkpoint(called, *inputs, use_reentrant=False, context_fn=contexts)


def _dear_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For the forward pass, and for computing again what it did not keep."""
    keeping, giving = create_selective_checkpoint_contexts(lambda *_, **__: CheckpointPolicy.MUST_SAVE)  # type: ignore[no-untyped-call]
    return _Only(keeping), _Only(giving)


class _Only(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands what is dear to another mode.

    That one would compare all operations of both passes, but those by which ZeRO 3 gathers parameters differ.
    """

    def __init__(self, mode: TorchDispatchMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in DEAR and _KEEPS.get() and not _draws(func, args, kwargs or {}):
            return self._mode.__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


_KEEPS: ContextVar[bool] = ContextVar("keeps", default=True)


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Keep no results of what is computed inside the block, in both passes: it is computed again by itself."""
    token = _KEEPS.set(False)
    try:
        yield
    finally:
        _KEEPS.reset(token)


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers: if it were not done again, those after it would be others."""
    for at, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return bool(args[at] if at < len(args) else kwargs.get("dropout_p", 0.0))
    return False


class WaitingInputs:
    """Inputs of layers that wait for the backward pass in CPU memory.

    On a GPU both ways are on a stream of their own, beside the computation: out while the layer is computed, and back
    while the layer after it is computed again. On a CPU the same copies are made, one after the other.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._newest: Callable[[], _Waiting | None] = lambda: None

    def hooks(self) -> saved_tensors_hooks:
        """Around the call of `checkpoint`, whose saved inputs are then sent here."""
        return saved_tensors_hooks(self._send, self._take)

    def _send(self, tensor: Tensor) -> "Tensor | _Waiting":
        if not tensor.is_floating_point():
            return tensor  # of positions and the like, which all layers share
        waiting = _Waiting(tensor.detach(), self._stream(tensor.device), self._newest())
        self._newest = weakref.ref(waiting)
        return waiting

    def _take(self, sent: "Tensor | _Waiting") -> Tensor:
        if isinstance(sent, Tensor):
            return sent
        sent.fetch()
        if sent.before is not None:
            sent.before.fetch()  # it is asked for next
        return sent.take()

    def _stream(self, device: torch.device) -> "torch.cuda.Stream | None":
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]


class _Waiting:
    """A tensor in CPU memory, and for a while its copy on the device."""

    def __init__(self, tensor: Tensor, stream: "torch.cuda.Stream | None", before: "_Waiting | None") -> None:
        self.before = before
        self._device = tensor.device
        self._stream = stream
        self._back: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        self._taken = False
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=stream is not None)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with _on(stream):
            self._host.copy_(tensor, non_blocking=True)
        if stream is not None:
            tensor.record_stream(stream)

    def fetch(self) -> None:
        """Begin to copy it back, unless that has begun."""
        if self._back is not None or self._taken:
            return
        with _on(self._stream):
            self._back = torch.empty_like(self._host, device=self._device)
            self._back.copy_(self._host, non_blocking=True)
            self._arrived = self._stream.record_event() if self._stream is not None else None

    def take(self) -> Tensor:
        """The copy on the device, for whatever is computed from here on."""
        tensor, self._back, self._taken = self._back, None, True
        assert tensor is not None, "the inputs of a layer were asked for twice"
        if self._arrived is not None:
            # Not for the whole stream: it is already copying the next.
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._arrived)
            tensor.record_stream(current)
        return tensor


def _on(stream: "torch.cuda.Stream | None") -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
