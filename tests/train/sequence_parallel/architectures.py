"""Tiny random models of many architectures: those that train exactly, and those that are refused by name."""

from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 48
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2,
    "max_position_embeddings": 64, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
EVERY_HEAD = {**SMALL, "num_attention_heads": 6}
"""One key and value head for each query head. Of 4 ranks that share a sequence, 2 share the 6 heads."""
GROUPED = {**EVERY_HEAD, "num_key_value_heads": 2, "head_dim": 8}
"""One key and value head for three query heads."""
SLIDING = {**GROUPED, "sliding_window": 5}
BOTH = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
MLA = {
    **EVERY_HEAD, "num_key_value_heads": 6, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 6,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 64}


@dataclass(frozen=True)
class Architecture:
    keys: dict[str, Any] = field(default_factory=lambda: GROUPED)
    """Of its config."""
    known_as: str = ""
    """Well-known models of it, where its own name does not say."""
    special: str = ""
    """What its attention has that not every model's has."""


ARCHITECTURES: dict[str, Architecture] = {
    "afmoe": Architecture({**BOTH, **EXPERTS}, "Trinity", "window"),
    "apertus": Architecture(),
    "arcee": Architecture(),
    "bitnet": Architecture(),
    "cohere": Architecture(known_as="Command R"),
    "cohere2": Architecture(BOTH, "Command R7B", "window"),
    "cohere2_moe": Architecture({**BOTH, **EXPERTS}, special="window"),
    "cwm": Architecture({**BOTH, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, special="window"),
    "deepseek_v2": Architecture({**MLA, **EXPERTS}, special="MLA"),
    "deepseek_v3": Architecture({**MLA, **EXPERTS}, "DeepSeek V3, R1", "MLA"),
    "dots1": Architecture({**BOTH, **EXPERTS, "num_key_value_heads": 2}, special="window"),
    "ernie4_5": Architecture(),
    "ernie4_5_moe": Architecture(
        {**GROUPED, **EXPERTS, "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1,
         "moe_layer_start_index": 1}
    ),
    "exaone4": Architecture(BOTH, special="window"),
    "exaone_moe": Architecture({**BOTH, **EXPERTS}, special="window"),
    "flex_olmo": Architecture({**GROUPED, **EXPERTS}),
    "gemma": Architecture(),
    "gemma2": Architecture({**BOTH, "query_pre_attn_scalar": 8}, special="window, soft cap"),
    "gemma3_text": Architecture({**BOTH, "query_pre_attn_scalar": 8}, "Gemma 3", "window"),
    "gemma4_text": Architecture(
        {**BOTH, "hidden_size_per_layer_input": 0, "global_head_dim": 16, "num_global_key_value_heads": 2,
         "num_kv_shared_layers": 0},
        "Gemma 4", "window, head size by layer",
    ),
    "glm": Architecture(),
    "glm4": Architecture(),
    "glm4_moe": Architecture({**GROUPED, **EXPERTS}, "GLM 4.5"),
    "glm4_moe_lite": Architecture({**MLA, **EXPERTS}, "GLM 4.7 Flash", "MLA"),
    "gpt2": Architecture(GPT),
    "gpt_bigcode": Architecture(GPT, "StarCoder", "one key and value head"),
    "gpt_neox": Architecture(EVERY_HEAD, "Pythia"),
    "gpt_oss": Architecture({**BOTH, **EXPERTS}, special="window, sinks"),
    "granite": Architecture(),
    "granite_swa": Architecture(BOTH, special="window, sinks"),
    "granitemoe": Architecture({**GROUPED, **EXPERTS}),
    "granitemoeshared": Architecture({**GROUPED, **EXPERTS}),
    "helium": Architecture(),
    "hunyuan_v1_dense": Architecture(),
    "hunyuan_v1_moe": Architecture({**GROUPED, "num_experts": 4, "moe_topk": [2, 2]}),
    "hy_v3": Architecture({**GROUPED, **EXPERTS}, "Hunyuan 3"),
    "internlm3": Architecture(),
    "jais2": Architecture(),
    "jetmoe": Architecture({**GROUPED, **EXPERTS, "kv_channels": 8}),
    "llama": Architecture(known_as="Llama 1 to 3, Yi, DeepSeek LLM and Coder"),
    "mimo_v2_flash": Architecture(
        {**BOTH, **EXPERTS, "num_key_value_heads": 1, "v_head_dim": 6}, special="window, sinks, heads by layer"
    ),
    "minicpm3": Architecture(MLA, special="MLA"),
    "minimax_m2": Architecture({**GROUPED, **EXPERTS}),
    "ministral": Architecture(BOTH, special="window"),
    "ministral3": Architecture(SLIDING, special="window"),
    "mistral": Architecture(SLIDING, "Mistral 7B, Zephyr", "window"),
    "mixtral": Architecture({**SLIDING, **EXPERTS}, special="window"),
    "nanochat": Architecture(),
    "nemotron": Architecture(),
    "olmo": Architecture(),
    "olmo2": Architecture(),
    "olmo3": Architecture(BOTH, special="window"),
    "olmoe": Architecture({**GROUPED, **EXPERTS}),
    "opt": Architecture({**EVERY_HEAD, "ffn_dim": 32, "word_embed_proj_dim": 48}),
    "persimmon": Architecture(EVERY_HEAD),
    "phi": Architecture(known_as="Phi 1 to 2"),
    "phi3": Architecture(SLIDING, "Phi 3 to 4", "window"),
    "phimoe": Architecture({**GROUPED, **EXPERTS}, "Phi 3.5 MoE"),
    "qwen2": Architecture(known_as="Qwen 1.5 to 2.5"),
    "qwen2_moe": Architecture({**GROUPED, **EXPERTS}),
    "qwen3": Architecture(),
    "qwen3_moe": Architecture({**GROUPED, **EXPERTS}),
    "seed_oss": Architecture(),
    "smollm3": Architecture(),
    "solar_open": Architecture({**GROUPED, **EXPERTS}),
    "stablelm": Architecture(),
    "starcoder2": Architecture(SLIDING, special="window"),
    "vaultgemma": Architecture({**BOTH, "query_pre_attn_scalar": 8}, special="window"),
    "youtu": Architecture({**MLA, **EXPERTS}, special="MLA"),
}  # fmt: skip


def config_keys(model_type: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Those of the keys that configs of this type have."""
    from transformers import AutoConfig

    known = AutoConfig.for_model(model_type).to_dict()
    return {"model_type": model_type, **{key: value for key, value in keys.items() if key in known}}


LINEAR = {
    "num_hidden_layers": 4, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": (
        {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 6},
        "0 of 2 layers attend through the attention that keeps documents apart",
    ),
    "deepseek_v32": ({**MLA, **EXPERTS}, "layers of the kind indexed_attention"),
    "falcon": (EVERY_HEAD, "an attention of their own"),
    "gptj": ({**GPT, "rotary_dim": 4}, "an attention of their own"),
    "jamba": (
        {**GROUPED, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "num_experts": 2},
        "1 of 2 layers attend|layers of the kind (linear_attention|mamba)",
    ),
    "lfm2": ({**GROUPED, "layer_types": ["conv", "full_attention"]}, "layers of the kind conv"),
    "llama4_text": (GROUPED, "attends in chunks of 8192 tokens"),
    "mamba": ({"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2}, "mamba"),
    "minimax": (
        {**GROUPED, **EXPERTS, "layer_types": ["linear_attention", "full_attention"]},
        "layers of the kind linear_attention",
    ),
    "phimoe": (
        {**SLIDING, **EXPERTS},
        "0 of 2 layers with a sliding window say so where attention is computed",
    ),
    "qwen3_5_text": ({**GROUPED, **LINEAR}, "layers of the kind linear_attention"),
    "qwen3_next": ({**GROUPED, **EXPERTS, **LINEAR}, "layers of the kind linear_attention"),
    "xglm": (
        {"vocab_size": VOCABULARY, "d_model": 48, "ffn_dim": 32, "num_layers": 2, "attention_heads": 6},
        "0 of 2 layers attend through the attention that keeps documents apart",
    ),
}
"""Keys of the config, and a pattern of what is said about it."""
