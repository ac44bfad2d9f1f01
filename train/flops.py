"""How many floating point operations a step takes, and how many a device can do: what MFU is made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.gpus import peak_of
from train.batches import StepBatch
from train.sources import Int64

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk")
"""What configs of models call them."""


@dataclass(frozen=True)
class Layer:
    """What attention costs in one layer."""

    width: int
    """Elements of all heads' queries and values for one token."""
    window: int | None
    """Tokens that one sees at most, itself included."""
    passes: int
    """3 of forward and backward, or 1 where no gradient goes."""


@dataclass(frozen=True)
class Work:
    """Operations of a step's forward and backward passes, as far as the data decides; recomputation is not counted.

    A weight is multiplied with an activation going forward, with the activation's gradient going backward, and its own
    gradient is a third product, which a frozen weight does without. Nothing goes backward below the first weight that
    is trained.
    """

    per_token: float
    """Of weights that every token is multiplied with; of experts, those that a token goes through."""
    per_target: float
    """Of the output layer, which only targets need."""
    layers: list[Layer]

    @classmethod
    def of(cls, model: nn.Module) -> "Work | None":
        """Count a Transformers causal LM before its weights are shared out.

        Returns:
            None where its config does not say how large its attention is or how many experts a token goes through.
        """
        text: Any = model.config.get_text_config()  # type: ignore[union-attr,operator]  # a PreTrainedModel has it
        head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}  # type: ignore[operator]
        share = _expert_share(model, text)
        backward, first, per_token, per_target = False, 0, 0.0, 0.0
        for name, parameter, size in _multiplied(model, head):
            if parameter.requires_grad and not backward:
                backward, first = True, _layer_of(name, default=text.num_hidden_layers if per_token else 0)
            operations = 2.0 * size * (1 + backward + parameter.requires_grad)
            if id(parameter) in head:
                per_target += operations
            elif _is_of_expert(name):
                if share is None:
                    return None
                per_token += operations * share
            else:
                per_token += operations
        layers = _layers(text, first)
        return cls(per_token, per_target, layers) if layers and share is not None else None

    def flops(self, batch: StepBatch) -> float:
        """Operations of all ranks for a global batch."""
        # A product of a query with a key, or of a weight with a value, is 2 operations an element.
        attention = sum(2.0 * layer.passes * layer.width * _attended(batch.documents, layer) for layer in self.layers)
        return self.per_token * batch.tokens + self.per_target * batch.loss_tokens + attention


def peak_flops(device: torch.device) -> float | None:
    """Operations a second that a device can do at most in half precision, if known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _multiplied(model: nn.Module, head: set[int]) -> Iterator[tuple[str, nn.Parameter, int]]:
    """The weights that are multiplied with, in the model's order, and how many elements each has, unpacked.

    What is looked up (an embedding that is not the output matrix as well) or stands unused below a copy that is
    trained in its place (PEFT's modules_to_save) is none.
    """
    seen = set()
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(path, recurse=False):
            looked_up = (isinstance(module, nn.Embedding) or "lora_embedding_A" in path) and id(parameter) not in head
            if id(parameter) in seen or looked_up or "original_module" in path.split("."):
                continue
            seen.add(id(parameter))
            whole = isinstance(module, nn.Linear) and parameter is module.weight  # 4 bits are packed
            yield own, parameter, module.in_features * module.out_features if whole else parameter.numel()


def _expert_share(model: nn.Module, text: Any) -> float | None:
    """The share of its experts that a token goes through; 1 where there are none, None where it is not known."""
    has_experts = any(_is_of_expert(name) for name, _ in model.named_parameters())
    experts, used = _first_number(text, EXPERTS), _first_number(text, EXPERTS_PER_TOKEN)
    if not has_experts:
        return None if experts and experts > 1 else 1.0  # it has some, under another name
    return used / experts if experts and used else None


def _is_of_expert(name: str) -> bool:
    return "experts" in name.split(".")


def _first_number(text: Any, keys: tuple[str, ...]) -> int | None:
    return next((value for key in keys if isinstance(value := getattr(text, key, None), int)), None)


def _layer_of(name: str, *, default: int) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), default)


def _layers(text: Any, first: int) -> list[Layer] | None:
    """Attention by layer, of which those from `first` on have a backward pass."""
    width, count = _width(text), text.num_hidden_layers
    if width is None:
        return None
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * count
    return [
        Layer(width, window if kind == "sliding_attention" else None, passes=3 if number >= first else 1)
        for number, kind in enumerate(kinds)
    ]


def _width(text: Any) -> int | None:
    heads = getattr(text, "num_attention_heads", None)  # a state space model has none
    if not isinstance(heads, int) or getattr(text, "global_head_dim", None):
        return None  # layers differ
    if getattr(text, "qk_nope_head_dim", None):
        return heads * int(text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim)
    return heads * 2 * int(getattr(text, "head_dim", None) or text.hidden_size // heads)


def _attended(documents: Int64, layer: Layer) -> float:
    """Pairs of a token with one that it sees, half of the square where nothing slides."""
    seen = documents if layer.window is None else np.minimum(documents, layer.window)
    return float((seen * documents - seen * seen / 2).sum())
