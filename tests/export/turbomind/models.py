"""Tiny models of every kind that has a TurboMind folder, by name: config.json as the trainer keeps it, and weights."""

from typing import Any

from pipelines.llama_layouts import llama_config
from tests.export.tiny import LLAMA, MISTRAL, QWEN2, Tensors, filled, shapes

EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64, "num_hidden_layers": 2}
"""Heads for any tensor-parallel size; the MLP of 88 and the vocabulary of 259 do not divide and are padded."""
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_ORIGINAL = {
    "vocab_size": 259,
    "hidden_size": 512,
    "intermediate_size": 90,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
INTERNLM2 = _ORIGINAL | {
    "model_type": "internlm2",
    "architectures": ["InternLM2ForCausalLM"],
    "num_key_value_heads": 2,
    "bias": False,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
}
INTERNLM = _ORIGINAL | {"model_type": "internlm", "architectures": ["InternLMForCausalLM"], "bias": True}
BAICHUAN = _ORIGINAL | {"model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"]}
MIXTRAL = (
    LLAMA
    | EIGHT
    | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": 50,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
)
GLM = LLAMA | {
    "architectures": ["GlmForCausalLM"],
    "model_type": "glm",
    "hidden_size": 512,
    "intermediate_size": 52,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "attention_bias": True,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.5},
}
"""Of two layers, where the engine's has forty."""
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA | EIGHT | {"intermediate_size": 90},
    "llama_tied": LLAMA | EIGHT | {"tie_word_embeddings": True},
    "llama3": LLAMA | EIGHT | {"rope_parameters": LLAMA3},
    "llama_biased": LLAMA | EIGHT | {"attention_bias": True},
    "linear": LLAMA | EIGHT | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4}},
    "dynamic": LLAMA | EIGHT | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    "yarn": LLAMA | EIGHT | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
    "mistral": MISTRAL | EIGHT | {"head_dim": 128},
    "qwen2": QWEN2 | EIGHT | {"hidden_size": 512, "num_hidden_layers": 1},
    "qwen2_tied": QWEN2 | EIGHT | {"hidden_size": 512, "num_hidden_layers": 1, "tie_word_embeddings": True},
}
MORE: dict[str, dict[str, Any]] = {
    "internlm2": llama_config(INTERNLM2),
    "internlm": llama_config(INTERNLM),
    "baichuan": llama_config(BAICHUAN),
    "baichuan2": llama_config(BAICHUAN | {"architectures": ["BaichuanForCausalLM"]}),
    "mixtral": MIXTRAL,
    "mixtral_tied": MIXTRAL | {"tie_word_embeddings": True},
    "glm": GLM,
}
EVERY = MODELS | MORE
CASES = [(name, dtype, tp) for name in MODELS for dtype in ("bfloat16", "float16") for tp in (1, 2, 4, 8)] + [
    ("internlm2", "bfloat16", 1),
    ("internlm2", "float16", 4),
    ("internlm", "float16", 2),
    ("baichuan", "bfloat16", 2),
    ("baichuan2", "bfloat16", 4),
    ("mixtral", "bfloat16", 1),
    ("mixtral", "float16", 2),
    ("mixtral", "float16", 8),
    ("mixtral_tied", "bfloat16", 4),
    ("glm", "bfloat16", 1),
    ("glm", "float16", 2),
    ("glm", "bfloat16", 4),
]
UNLIKE_LMDEPLOY = ("llama_biased", "internlm", "baichuan2")
"""LMDeploy's converter writes biases but not that there are any, and divides rows by their length once again."""


def model_tensors(config: dict[str, Any]) -> Tensors:
    """Weights as they are trained; of a Mixtral already under the names of its files."""
    config = {"head_dim": config["hidden_size"] // config["num_attention_heads"], **config}
    found = shapes(config)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    if config["model_type"] == "glm":
        found = {_fused(name): shape for name, shape in found.items() if ".o_proj.bias" not in name}
        found |= {name: (2 * inner, hidden) for name in found if ".gate_up_proj." in name}
    if config["model_type"] == "mixtral":
        found = {name: shape for name, shape in found.items() if ".mlp." not in name}
        for layer in range(config["num_hidden_layers"]):
            place = f"model.layers.{layer}.block_sparse_moe"
            found[f"{place}.gate.weight"] = (config["num_local_experts"], hidden)
            for expert in range(config["num_local_experts"]):
                found |= {f"{place}.experts.{expert}.{name}.weight": (inner, hidden) for name in ("w1", "w3")}
                found[f"{place}.experts.{expert}.w2.weight"] = (hidden, inner)
    return filled(found)


def _fused(name: str) -> str:
    return name.replace(".gate_proj.", ".gate_up_proj.").replace(".up_proj.", ".gate_up_proj.")
