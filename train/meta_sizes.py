"""A model's sizes from Transformers' own modules on the meta device, for models without a closed form."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.errors import ConfigError
from pipelines.model_sizes import Kind, Layer, ModelSizes, Weight

_NUMBER = re.compile(r"\.(\d+)\.")


def meta_sizes(config: Mapping[str, Any]) -> ModelSizes:
    """The tensors of a causal language model, none of which takes memory.

    Args:
        config: a config.json.
    Raises:
        ConfigError: if Transformers cannot build it; without a place, which the caller adds.
    """
    try:
        built = AutoConfig.for_model(**config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(built)
    except (ValueError, KeyError, TypeError, ImportError) as error:
        finding = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{config.get('model_type')}: Transformers cannot build it: {finding}") from error
    text = built.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 0) or 1)
    hidden = int(text.hidden_size)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    outside: list[Weight] = []
    layers: dict[int, list[Weight]] = {}
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        weight = Weight(_end(name), tuple(parameter.shape), _kind(name, parameter, module, embedding, head))
        number = _NUMBER.search(name)
        if number is None:
            outside.append(weight)
        else:
            layers.setdefault(int(number[1]), []).append(weight)
    if not layers:
        raise ConfigError(f"{config.get('model_type')}: it has no layers that could be counted")
    size = int(getattr(text, "head_dim", 0) or hidden // heads)
    keys = int(getattr(text, "num_key_value_heads", 0) or heads) * size
    counted: dict[tuple[Weight, ...], int] = {}
    for weights in layers.values():
        counted[tuple(weights)] = counted.get(tuple(weights), 0) + 1
    return ModelSizes(
        model_type=str(config.get("model_type")),
        source="meta device",
        vocabulary=int(embedding.weight.shape[0]),
        hidden=hidden,
        heads=heads,
        experts_per_token=int(getattr(text, "num_experts_per_tok", 0) or 0),
        outside=tuple(outside),
        layers=tuple(_layer(weights, count, heads * size, keys, hidden) for weights, count in counted.items()),
        tied=head is not None and head.weight is embedding.weight,
    )


def _layer(weights: tuple[Weight, ...], count: int, queries: int, keys: int, hidden: int) -> Layer:
    norms = sum("norm" in weight.name and weight.shape == (hidden,) for weight in weights)
    dense = [max(weight.shape) for weight in weights if weight.name in ("down_proj", "fc2", "c_proj", "w2")]
    experts = [weight for weight in weights if weight.kind == "experts" and weight.name.endswith("down_proj")]
    routed = max((min(weight.shape[1:]) for weight in experts), default=0)
    return Layer(weights, count, queries, keys, keys, norms=norms, mlp=max(dense, default=0), routed=routed)


def _end(name: str) -> str:
    module, _, tensor = name.rpartition(".")
    return module.rpartition(".")[2] if tensor == "weight" else f"{module.rpartition('.')[2]}.{tensor}"


def _kind(name: str, parameter: nn.Parameter, module: nn.Module, embedding: nn.Module, head: Any) -> Kind:
    if module is embedding:
        return "embedding"
    if module is head:
        return "head"
    if ".experts." in name and parameter.dim() == 3:
        return "experts"
    return "linear" if isinstance(module, nn.Linear) and name.endswith("weight") else "vector"
