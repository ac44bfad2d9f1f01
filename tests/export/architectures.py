"""Tiny models of many architectures, settings that their files spell in two ways, and checkpoints of them."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.export.tiny import write_checkpoint
from tests.train.sequence_parallel.architectures import ARCHITECTURES, GROUPED, Architecture, config_keys

ROWS = {"vocab_size": 264, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
"""Of the tokenizer that the checkpoints here have, and some to spare."""
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.25],
    "long_factor": [2.0, 3.0],
}
HALF = {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}
BY_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
SPELLED_IN_TWO_WAYS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    "gemma3_text": {"rope_parameters": BY_KIND},
    "glm4": {"rope_parameters": HALF},
    "gpt_oss": {"rope_parameters": {**YARN, "truncate": False}},
    "llama": {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "olmo2": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16, "num_attention_heads": 6},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"rope_parameters": YARN},
}
"""Settings beside those of the tiny models, by type."""


def build(model_type: str, **settings: Any) -> Any:
    """A model with random weights, float32, in which no tensor is constant."""
    torch.manual_seed(11)
    keys = config_keys(model_type, ARCHITECTURES.get(model_type, Architecture(GROUPED)).keys)
    config = AutoConfig.for_model(**{**keys, **ROWS, **SPELLED_IN_TWO_WAYS.get(model_type, {}), **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stored = model.state_dict().keys()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in stored:
                tensor.add_(torch.randn_like(tensor) * 0.05)
    return model.eval()


def save(model: Any, folder: Path, **how: Any) -> Path:
    """A checkpoint of a model as the trainer writes it."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    config["architectures"] = [type(model).__name__]
    stored = model.state_dict().keys()
    parameters = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    buffers: dict[str, Any] = {name: buffer.numpy() for name, buffer in model.named_buffers() if name in stored}
    return write_checkpoint(folder, config, parameters, buffers=buffers, **how)
