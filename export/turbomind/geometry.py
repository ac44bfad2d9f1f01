"""The sizes of a Llama-style model that decide its TurboMind files, and which models have a TurboMind folder at all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SERVED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_NOT_READ_BACK = {
    "Qwen3ForCausalLM": "its query and key norms",
    "Qwen3MoeForCausalLM": "its query and key norms",
    "Qwen2MoeForCausalLM": "its shared expert",
    "DeepseekV2ForCausalLM": "its latent attention",
}
_NOT_WRITTEN_YET = (
    "MixtralForCausalLM",
    "InternLM2ForCausalLM",
    "InternLM3ForCausalLM",
    "ChatGLMModel",
    "BaichuanForCausalLM",
)
_HEAD_SIZES = (64, 128)
_REMEDY = 'take "turbomind" out of export.targets; LMDeploy 0.10 and newer loads the hf export itself'


class Unservable(ValueError):  # noqa: N818 (a fact about the model)
    """No engine would serve a folder of this model right; holds the key of the TOML to change."""

    def __init__(self, reason: str, key: str = "export.targets") -> None:
        self.key = key
        super().__init__(reason if key != "export.targets" else f"{reason}; {_REMEDY}")


@dataclass(frozen=True)
class Geometry:
    """Sizes of the matrices, as they are before padding and repetition."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    """Inner size of the MLP."""
    rows: int
    """Of the embedding: the vocabulary."""
    qkv_bias: bool
    output_bias: bool
    """Of the attention."""
    tied: bool
    """The output is the embedding again."""
    tp: int
    """Tensor-parallel size."""

    @property
    def kv_repeat(self) -> int:
        """Copies of each key and value head, so that every rank has one."""
        return self.tp // self.kv_heads if self.tp > self.kv_heads else 1

    @property
    def padded_mlp(self) -> int:
        return math.ceil(self.mlp / self.tp) * self.tp

    @property
    def padded_rows(self) -> int:
        return math.ceil(self.rows / self.tp) * self.tp

    @classmethod
    def of(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], tp: int) -> "Geometry":
        """The geometry of a model with that config.json and those tensors.

        Raises:
            Unservable: if no TurboMind folder of it can be served at `tp`, with the reason.
        """
        architecture = str(config["architectures"][0])
        _refuse_architecture(architecture)
        heads = int(config["num_attention_heads"])
        geometry = cls(
            architecture=architecture,
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            mlp=int(config["intermediate_size"]),
            rows=int(config["vocab_size"]),
            qkv_bias="model.layers.0.self_attn.q_proj.bias" in shapes,
            output_bias="model.layers.0.self_attn.o_proj.bias" in shapes,
            tied=bool(config["tie_word_embeddings"]),
            tp=tp,
        )
        geometry._refuse_sizes()
        geometry._refuse_features(config, shapes)
        return geometry

    def _refuse_sizes(self) -> None:
        if self.head_size not in _HEAD_SIZES:
            raise Unservable(
                f"TurboMind has kernels for heads of 64 and 128 numbers, this {self.architecture} has {self.head_size}"
            )
        fits = self.heads % self.tp == 0 and (self.kv_heads % self.tp == 0 or self.tp % self.kv_heads == 0)
        if not fits:
            possible = [
                str(tp)
                for tp in (1, 2, 4, 8)
                if self.heads % tp == 0 and (self.kv_heads % tp == 0 or tp % self.kv_heads == 0)
            ]
            raise Unservable(
                f"does not divide {self.heads} attention heads ({self.kv_heads} key-value heads); "
                f"use {' or '.join(possible)}",
                key="export.turbomind.tp",
            )

    def _refuse_features(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        if "model.layers.0.mlp.gate_proj.bias" in shapes:
            raise Unservable("a TurboMind folder has no place for biases of the MLP")
        if config.get("hidden_act", "silu") != "silu":
            raise Unservable(f"TurboMind has an MLP with silu, this model with {config['hidden_act']}")


def _refuse_architecture(architecture: str) -> None:
    if architecture in SERVED:
        return
    if part := _NOT_READ_BACK.get(architecture):
        reason = f"no LMDeploy release reads {part} back from a folder"
    elif architecture in _NOT_WRITTEN_YET:
        reason = "packtrain does not write its TurboMind folder yet"
    else:
        reason = "LMDeploy 0.7.3, the last release that serves from a folder, does not know it"
    raise Unservable(f"no TurboMind folder for {architecture}: {reason}")
