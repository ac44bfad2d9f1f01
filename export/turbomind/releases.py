"""Which releases of LMDeploy can serve what is exported."""

from pipelines.artifacts import Json

FOLDER = "0.6.0 to 0.7.3"
"""Releases that read a weight folder of this form; from 0.8 on they load it without weights, and without an error."""
HF_DIRECT = "0.10.0 and newer"
"""Releases that read a Hugging Face directory alone, and make the engine's weights of it themselves."""
LOADED_FROM_HF = (
    "LlamaForCausalLM",
    "InternLM2ForCausalLM",
    "InternLM3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "Glm4MoeLiteForCausalLM",
)
"""Language models that their TurboMind engine knows; others run in the PyTorch engine of the same releases."""


def served_by(mode: str) -> Json:
    """For a manifest: the releases that serve what `mode` writes."""
    return {"lmdeploy": FOLDER if mode == "workspace" else HF_DIRECT, "engine": "turbomind", "mode": mode}
