"""The sizes of a model that decide its TurboMind files, and which models have a TurboMind folder at all."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from export.turbomind.releases import LOADED_FROM_HF
from pipelines.llama_layouts import KEY as ORIGINAL

GLM = "ChatGLMModel"
"""LMDeploy's name of glm-4-9b, which Transformers has as GlmForCausalLM."""
MIXTRAL = "MixtralForCausalLM"
SERVED = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "InternLMForCausalLM",
    "InternLM2ForCausalLM",
    "InternLM3ForCausalLM",
    "BaiChuanForCausalLM",
    "BaichuanForCausalLM",
    MIXTRAL,
    GLM,
)
_NOT_READ_BACK = {
    "Qwen3ForCausalLM": "query and key norms",
    "Qwen3MoeForCausalLM": "query and key norms",
    "Qwen2MoeForCausalLM": "a shared expert",
    "DeepseekV2ForCausalLM": "latent attention",
}
_NEWER = (
    "DeepseekV3ForCausalLM",
    "GlmMoeForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "GptOssForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3NextForCausalLM",
)
_HEAD_SIZES = (64, 128)
_GLM_HEAD_SIZE = 128
GLM_LAYERS = 40
_GLM_ROTARY = 64


class Unservable(ValueError):  # noqa: N818 (a fact about the model)
    """No engine would serve a folder of this model right; holds the key of the TOML to change."""

    def __init__(self, reason: str, key: str = "export.targets", architecture: str | None = None) -> None:
        self.key = key
        super().__init__(reason if key != "export.targets" else f"{reason}; {_remedy(architecture)}")


def _remedy(architecture: str | None) -> str:
    if architecture is None or architecture in LOADED_FROM_HF:
        return (
            'set export.turbomind.mode = "hf_direct", or take "turbomind" out of export.targets; LMDeploy 0.10 and '
            "newer loads the hf export itself"
        )
    return (
        'take "turbomind" out of export.targets; LMDeploy\'s PyTorch engine and others load the hf export, where they '
        "know the model"
    )


def architecture_of(config: Mapping[str, Any]) -> str:
    """LMDeploy's name of a model with that config.json: what it came as, of one that is trained as a Llama."""
    came_as = config.get(ORIGINAL, config)
    architecture = str(came_as["architectures"][0])
    return GLM if architecture == "GlmForCausalLM" else architecture


@dataclass(frozen=True)
class Geometry:
    """Sizes of the matrices, as they are before padding and repetition."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    rotary: int
    """Numbers of a head that its place rotates."""
    interleaved: bool
    """Whether the engine has the rows of query and key heads in another order than the model."""
    mlp: int
    """Inner size of the MLP, or of an expert."""
    fused_mlp: bool
    """The gate's rows and the up projection's are one tensor."""
    experts: int
    """0 where the MLP is dense."""
    experts_per_token: int
    rows: int
    """Of the embedding: the vocabulary."""
    qkv_bias: bool
    output_bias: bool
    """Of the attention."""
    tied: bool
    """The output is the embedding again."""
    tp: int
    """Tensor-parallel size."""
    group: int = 0
    """Inputs that share a scale, of 4-bit weights; 0 for others."""

    @property
    def kv_repeat(self) -> int:
        """Copies of each key and value head, so that every rank has one."""
        return self.tp // self.kv_heads if self.tp > self.kv_heads else 1

    @property
    def padded_mlp(self) -> int:
        group = max(1, self.group)
        return math.ceil(math.ceil(self.mlp / group) / self.tp) * group * self.tp

    @property
    def padded_rows(self) -> int:
        return math.ceil(self.rows / self.tp) * self.tp

    @classmethod
    def of(
        cls,
        architecture: str,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        tp: int,
        group: int = 0,
    ) -> "Geometry":
        """The geometry of a model with that config.json and those tensors.

        Args:
            architecture: LMDeploy's name of it.
            group: inputs that share a scale, of 4-bit weights.
        Raises:
            Unservable: if no TurboMind folder of it can be served at `tp`, with the reason.
        """
        _refuse_architecture(architecture)
        heads = int(config["num_attention_heads"])
        head_size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        geometry = cls(
            architecture=architecture,
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=head_size,
            rotary=int(head_size * config["rope_parameters"].get("partial_rotary_factor", 1.0)),
            interleaved=architecture != GLM,
            mlp=int(config["intermediate_size"]),
            fused_mlp="model.layers.0.mlp.gate_up_proj.weight" in shapes,
            experts=int(config["num_local_experts"]) if architecture == MIXTRAL else 0,
            experts_per_token=int(config["num_experts_per_tok"]) if architecture == MIXTRAL else 0,
            rows=int(config["vocab_size"]),
            qkv_bias="model.layers.0.self_attn.q_proj.bias" in shapes,
            output_bias="model.layers.0.self_attn.o_proj.bias" in shapes,
            tied=bool(config["tie_word_embeddings"]),
            tp=tp,
            group=group,
        )
        geometry._refuse_sizes()
        geometry._refuse_features(config, shapes)
        return geometry

    def _refuse_sizes(self) -> None:
        sizes = (_GLM_HEAD_SIZE,) if self.architecture == GLM else _HEAD_SIZES
        if self.head_size not in sizes:
            wanted = " and ".join(map(str, sizes))
            raise self._unservable(
                f"TurboMind has kernels for heads of {wanted} numbers, this {self.architecture} has {self.head_size}"
            )
        if self.architecture == GLM and self.layers != GLM_LAYERS:
            raise self._unservable(
                f"LMDeploy 0.7.3 knows {GLM} models of {GLM_LAYERS} layers alone, this one has {self.layers}"
            )
        if self.rotary != (_GLM_ROTARY if self.architecture == GLM else self.head_size):
            expected = f"{_GLM_ROTARY} numbers of each" if self.architecture == GLM else "whole heads"
            raise self._unservable(f"LMDeploy 0.7.3 rotates {expected}, this model {self.rotary} of {self.head_size}")
        refuse_tp(self.heads, self.kv_heads, self.tp, fits=self._fits)

    def _fits(self, tp: int) -> bool:
        """Whether it divides what is cut beside heads: the embedding, and the groups of the attention's output."""
        return self.hidden % tp == 0 and self.heads * self.head_size % (tp * max(1, self.group)) == 0

    def _refuse_features(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        if any(f"model.layers.0.mlp.{part}_proj.bias" in shapes for part in ("gate", "down", "gate_up")):
            raise self._unservable("a TurboMind folder has no place for biases of the MLP")
        if config.get("hidden_act", "silu") != "silu":
            raise self._unservable(f"TurboMind has an MLP with silu, this model with {config['hidden_act']}")
        if "model.layers.0.self_attn.q_norm.weight" in shapes:
            raise self._unservable("no LMDeploy release reads query and key norms back from a folder")

    def _unservable(self, reason: str) -> Unservable:
        return Unservable(reason, architecture=self.architecture)


def refuse_tp(heads: int, kv_heads: int, tp: int, *, fits: Callable[[int], bool] = lambda _: True) -> None:
    """Raises Unservable where ranks would not have whole heads, or `fits` says no, naming what is possible."""

    def possible(size: int) -> bool:
        return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0) and fits(size)

    if not possible(tp):
        sizes = " or ".join(str(size) for size in (1, 2, 4, 8) if possible(size))
        raise Unservable(
            f"does not divide {heads} attention heads ({kv_heads} key-value heads); use {sizes}",
            key="export.turbomind.tp",
        )


def _refuse_architecture(architecture: str) -> None:
    if architecture in SERVED:
        return
    if part := _NOT_READ_BACK.get(architecture):
        reason = f"it has {part}, which no LMDeploy release reads back from a folder"
    elif architecture in _NEWER:
        reason = "it is newer than LMDeploy 0.7.3, the last release that serves from a folder"
    else:
        reason = "the TurboMind engine of LMDeploy 0.7.3, the last release that serves from a folder, does not know it"
    raise Unservable(f"no TurboMind folder for {architecture}: {reason}", architecture=architecture)
