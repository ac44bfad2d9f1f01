"""Reading a TurboMind folder back, from its files alone: the Hugging Face tensors and config they came from.

The sizes come from config.yaml, as they do for the engine, and a file of another length is an error, which the engine
would not notice.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from export.cast import Bits
from export.turbomind import layout
from export.turbomind.folder import CONFIG, WEIGHTS
from export.turbomind.llama import EMBEDDING, FINAL_NORM, OUTPUT
from pipelines.errors import CheckError

_MODEL_TYPES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2"}
_ROPE_KEYS = {
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("attention_factor", "beta_fast", "beta_slow"),
}


class TurbomindReader:
    """An opened folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / WEIGHTS
        """Where the weight files are."""
        settings = yaml.safe_load((self.folder / CONFIG).read_bytes())
        self.model: dict[str, Any] = settings["model_config"]
        """The `model_config` map of config.yaml."""
        self.attention: dict[str, Any] = settings["attention_config"]
        """The `attention_config` map."""
        self._read: set[str] = set()

    def hf_config(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """A config.json for the tensors, from config.yaml alone but for what tensor parallelism changed.

        Args:
            shapes: of the tensors before heads were repeated and the MLP was padded.
        """
        model, attention = self.model, self.attention
        rope = {"rope_type": attention["rope_scaling_type"] or "default", "rope_theta": attention["rope_theta"]}
        if attention["rope_scaling_type"]:
            rope["factor"] = attention["rope_scaling_factor"]
            rope |= {key: attention[key] for key in _ROPE_KEYS.get(attention["rope_scaling_type"], ())}
        return {
            "model_type": _MODEL_TYPES[model["model_arch"]],
            "architectures": [model["model_arch"]],
            "hidden_size": model["hidden_units"],
            "num_hidden_layers": model["num_layer"],
            "num_attention_heads": model["head_num"],
            "num_key_value_heads": shapes["model.layers.0.self_attn.k_proj.weight"][0] // model["size_per_head"],
            "head_dim": model["size_per_head"],
            "intermediate_size": shapes["model.layers.0.mlp.up_proj.weight"][0],
            "vocab_size": model["vocab_size"],
            "rms_norm_eps": model["norm_eps"],
            "max_position_embeddings": attention["max_position_embeddings"],
            "attention_bias": bool(model["attn_bias"]),
            "rope_parameters": rope,
            "sliding_window": None,
            "tie_word_embeddings": OUTPUT not in shapes,
        }

    def tensors(self) -> Iterator[tuple[str, Bits]]:
        """Every tensor under its Hugging Face name, one at a time; a tied output comes as a tensor of its own.

        Raises:
            CheckError: if a file is missing, too many, of the wrong length, or not what its neighbours imply.
        """
        self._read = {CONFIG}
        try:
            yield from self._all()
        except ValueError as error:
            raise CheckError(f"{self.folder}: {error}; export again") from error
        extra = sorted({path.name for path in self.folder.iterdir()} - self._read)
        if extra:
            raise CheckError(f"{self.folder / extra[0]}: no weight of this model; export again")

    def _all(self) -> Iterator[tuple[str, Bits]]:
        model = self.model
        hidden, tp, rows = model["hidden_units"], model["tp"], model["embedding_size"]
        padded = -(-rows // tp) * tp
        embedding = [self._file(f"tok_embeddings.{rank}.weight", padded, hidden // tp) for rank in range(tp)]
        yield EMBEDDING, self._unpadded_rows(np.concatenate(embedding, axis=1), rows)
        output = [self._file(f"output.{rank}.weight", padded // tp, hidden) for rank in range(tp)]
        yield OUTPUT, self._unpadded_rows(np.concatenate(output), model["vocab_size"])
        yield FINAL_NORM, self._file("norm.weight", hidden)
        for layer in range(model["num_layer"]):
            for name, tensor in self._layer(layer):
                yield f"model.layers.{layer}.{name}", tensor

    def _layer(self, layer: int) -> Iterator[tuple[str, Bits]]:
        hidden = self.model["hidden_units"]
        yield "input_layernorm.weight", self._file(f"layers.{layer}.attention_norm.weight", hidden)
        yield "post_attention_layernorm.weight", self._file(f"layers.{layer}.ffn_norm.weight", hidden)
        heads = self.model["head_num"] * self.model["size_per_head"]
        output = self._by_rank(layer, "attention.wo", "weight", heads // self.model["tp"], hidden)
        yield "self_attn.o_proj.weight", np.concatenate(output).T
        for name, matrix in zip("qkv", self._qkv(layer, "weight", hidden), strict=True):
            yield f"self_attn.{name}_proj.weight", matrix.T
        if self.model["attn_bias"]:
            for name, row in zip("qkv", self._qkv(layer, "bias", 1), strict=True):
                yield f"self_attn.{name}_proj.bias", row[0]
            copies = np.stack(self._by_rank(layer, "attention.wo", "bias", hidden))
            if not (copies == copies[:1]).all():
                raise ValueError(f"the ranks' output biases of layer {layer} differ")
            yield "self_attn.o_proj.bias", copies[0]
        yield from self._mlp(layer, hidden)

    def _mlp(self, layer: int, hidden: int) -> Iterator[tuple[str, Bits]]:
        inner = self.model["inter_size"][layer]
        columns = inner // self.model["tp"]
        for file, name in (("w1", "gate_proj"), ("w3", "up_proj")):
            parts = self._by_rank(layer, f"feed_forward.{file}", "weight", hidden, columns)
            yield f"mlp.{name}.weight", np.concatenate(parts, axis=1).T
        parts = self._by_rank(layer, "feed_forward.w2", "weight", columns, hidden)
        yield "mlp.down_proj.weight", np.concatenate(parts).T

    def _qkv(self, layer: int, kind: str, rows: int) -> tuple[Bits, Bits, Bits]:
        size, tp = self.model["size_per_head"], self.model["tp"]
        query, kv = self.model["head_num"] * size // tp, self.model["kv_head_num"] * size // tp
        by_rank = self._by_rank(layer, "attention.w_qkv", kind, rows, query + 2 * kv)
        q, k, v = layout.unfuse_qkv(by_rank, query, kv)
        return layout.deinterleave(q, size), layout.deinterleave(k, size), v

    def _by_rank(self, layer: int, name: str, kind: str, *shape: int) -> list[Bits]:
        return [self._file(f"layers.{layer}.{name}.{rank}.{kind}", *shape) for rank in range(self.model["tp"])]

    def _unpadded_rows(self, matrix: Bits, rows: int) -> Bits:
        return layout.unpad_columns(matrix.T, rows).T

    def _file(self, name: str, *shape: int) -> Bits:
        path = self.folder / name
        expected = int(np.prod(shape)) * 2
        if not path.is_file() or path.stat().st_size != expected:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
            raise CheckError(f"{path}: {found}, config.yaml implies {expected} bytes; export again")
        self._read.add(name)
        return np.fromfile(path, np.uint16).reshape(shape)
