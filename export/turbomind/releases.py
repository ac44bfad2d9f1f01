"""Which releases of LMDeploy can serve what is exported."""

from pipelines.artifacts import Json

FOLDER = "0.6.0 to 0.7.3"
"""Releases that read a weight folder of this form; from 0.8 on they load it without weights, and without an error."""
_HF_DIRECT = "0.10.0 and newer"
"""Releases that read a Hugging Face directory alone, and make the engine's weights of it themselves."""
_LATER = {"Glm4MoeLiteForCausalLM": "0.14.0 and newer"}
"""Models that their engine learnt of later: the earliest of the releases that were looked at."""
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


def releases(mode: str, architecture: str) -> str:
    """The releases of LMDeploy that serve what `mode` writes of a model, in words."""
    return FOLDER if mode == "workspace" else _LATER.get(architecture, _HF_DIRECT)


def served_by(mode: str, architecture: str) -> Json:
    """The same for a manifest."""
    return {"lmdeploy": releases(mode, architecture), "engine": "turbomind", "mode": mode}
