"""config.yaml of a TurboMind folder, key by key as LMDeploy 0.7.3 reads it."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import yaml

from export.turbomind.geometry import GLM, Geometry, Unservable
from pipelines.schema import TurbomindExport

log = logging.getLogger(__name__)

FROM_TEMPLATE = "from_template"
"""Instead of a built-in template's name: a file says it, made of the template that was trained with."""

_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)


def config_yaml(geometry: Geometry, config: Mapping[str, Any], table: TurbomindExport, model_name: str) -> bytes:
    """The file for a model with that config.json.

    Raises:
        Unservable: if the engine of 0.7.3 would compute something else than the model.
    """
    content = {
        "attention_config": _attention(geometry, config),
        "lora_config": {
            "lora_max_wo_r": 0,
            "lora_policy": "",
            "lora_r": 0,
            "lora_rank_pattern": "",
            "lora_scale": 0.0,
            "lora_scale_pattern": "",
        },
        "model_config": _model(geometry, config, table, model_name),
    }
    return yaml.safe_dump(content, sort_keys=True, default_flow_style=False).encode("utf-8")


def _model(geometry: Geometry, config: Mapping[str, Any], table: TurbomindExport, model_name: str) -> dict[str, Any]:
    experts = geometry.experts
    return {
        "attn_bias": int(geometry.qkv_bias),
        "chat_template": built_in_template(table),
        "embedding_size": geometry.rows,
        "expert_inter_size": geometry.padded_mlp if experts else 0,
        "expert_num": [experts] * geometry.layers if experts else [],
        "experts_per_token": geometry.experts_per_token,
        "group_size": geometry.group,
        "head_num": geometry.heads,
        "hidden_units": geometry.hidden,
        "inter_size": [0 if experts else geometry.padded_mlp] * geometry.layers,
        "kv_head_num": geometry.kv_heads * geometry.kv_repeat,
        "kv_lora_rank": 0,
        "model_arch": geometry.architecture,
        "model_format": table.model_format,
        "model_name": model_name,
        "moe_group_num": 1,
        "moe_shared_gate": False,
        "norm_eps": float(config["rms_norm_eps"]),
        "norm_topk_prob": experts > 0,
        "num_layer": geometry.layers,
        "q_lora_rank": 0,
        "qk_norm": False,
        "qk_rope_dim": 0,
        "routed_scale": 1.0,
        "session_len": session_len(config, table),
        "size_per_head": geometry.head_size,
        "topk_group": 1,
        "topk_method": "greedy",
        "tp": geometry.tp,
        "tune_layer_num": 1,
        "v_head_dim": 0,
        "vocab_size": geometry.rows,
        "weight_type": "int4" if geometry.group else table.weight_type,
    }


def built_in_template(table: TurbomindExport) -> str:
    """LMDeploy's name of the chat template, where a file beside the weights does not say it."""
    return "base" if table.chat_template == FROM_TEMPLATE else table.chat_template


def session_len(config: Mapping[str, Any], table: TurbomindExport) -> int:
    """Longest text in tokens that is served.

    Raises:
        Unservable: if a longer one is asked for than the model was made for.
    """
    length = min(int(config[key]) for key in _CONTEXT_KEYS if config.get(key))
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window is not None and window < length:
        # The engine attends to everything, which is the same thing only as long as the window covers it.
        log.info("turbomind: session_len is at most %d, the model's sliding window, which the engine lacks", window)
        length = int(window)
    if table.session_len is None:
        return length
    if table.session_len > length and config["rope_parameters"].get("rope_type") != "dynamic":
        raise Unservable(
            f"the model was made for {length:,} tokens; use {length} or less", key="export.turbomind.session_len"
        )
    return table.session_len


def _attention(geometry: Geometry, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention_factor": None if geometry.architecture == GLM else -1.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "cache_block_seq_len": 64,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "max_position_embeddings": int(config["max_position_embeddings"]),
        "original_max_position_embeddings": 0,
        "rope_scaling_factor": 0.0,
        "rope_scaling_type": "",
        "rope_theta": float(config["rope_parameters"]["rope_theta"]),
        "rotary_embedding": geometry.rotary,
        "softmax_scale": 0.0,
        "use_dynamic_ntk": 0,
        "use_logn_attn": 0,
    } | _rope_scaling(config)


def _rope_scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {}
    scaling: dict[str, Any] = {"rope_scaling_type": kind, "rope_scaling_factor": float(rope["factor"])}
    positions = config["max_position_embeddings"]
    original = rope.get("original_max_position_embeddings", positions)
    match kind:
        case "linear":
            return scaling
        case "dynamic" if original == positions:
            return scaling | {"use_dynamic_ntk": 1}
        case "llama3":
            return scaling | {
                "low_freq_factor": float(rope["low_freq_factor"]),
                "high_freq_factor": float(rope["high_freq_factor"]),
                "original_max_position_embeddings": int(rope["original_max_position_embeddings"]),
            }
        case "yarn" if original == positions and not any(rope.get(key) for key in ("mscale", "mscale_all_dim")):
            factor = rope.get("attention_factor")
            return scaling | {
                "attention_factor": float(0.1 * math.log(rope["factor"]) + 1.0 if factor is None else factor),
                "beta_fast": float(rope.get("beta_fast") or 32.0),
                "beta_slow": float(rope.get("beta_slow") or 1.0),
            }
        case _:
            raise Unservable(
                f"LMDeploy 0.7.3 cannot compute rope_type {kind!r}, {original} original positions and "
                f"max_position_embeddings = {positions} as this model does"
            )
