"""Checkpoints that compute what Llama computes under other names: InternLM, InternLM2 and Baichuan.

Their rows of numbers are the same, stored otherwise: an original tensor is runs of rows of Llama's tensors end to end.
That one description serves to load them, to write them back, and to prove that nothing was lost.

    internlm    Llama's names; the four projections of attention may have biases
    internlm2   names of its own; `wqkv` holds for every K/V head its query heads, its key head and its value head
    baichuan    Llama's names, with `W_pack` holding all queries, then all keys, then all values

Baichuan2 divides every row of its output by the row's length (NormHead). Llama has no such step, so the division is
done once when such a model is loaded: it then computes the same, and trains as a Llama. It has no way back, as the
original's code would divide again by lengths that training changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ConfigError

MODEL_TYPES = ("internlm", "internlm2", "baichuan")
KEY = "original_config"
"""Where a Llama config keeps the config.json that the model came with."""

_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_PLAIN_HEAD, _NORM_HEAD = "BaiChuanForCausalLM", "BaichuanForCausalLM"  # of Baichuan-7B and of Baichuan2
_OWN_NAMES = {
    "embed_tokens": "tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
}
"""InternLM2's names by Llama's."""


@dataclass(frozen=True)
class Rows:
    """Rows start..stop of one of Llama's tensors."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Place:
    """Where rows start..stop of one of Llama's tensors are stored."""

    original: str
    first: int
    """The first of them within the original tensor."""
    start: int
    stop: int

    def within(self, start: int, stop: int, width: int) -> tuple[int, int]:
        """Elements of the original tensor that are among Llama's elements start..stop, for rows of `width`."""
        begin, end = max(start, self.start * width), min(stop, self.stop * width)
        offset = (self.first - self.start) * width
        return (begin + offset, max(begin, end) + offset)


@dataclass(frozen=True)
class Layout:
    """Where every row of a checkpoint in its original form is in Llama's."""

    tensors: Mapping[str, tuple[Rows, ...]]
    """Original name -> what it holds, end to end. Together they hold every row of Llama's tensors once."""
    norm_head: bool
    """Whether rows of `lm_head.weight` are divided by their length when loaded, so that there is no way back."""

    @property
    def rows(self) -> dict[str, int]:
        """Rows of every original tensor."""
        return {name: sum(part.stop - part.start for part in parts) for name, parts in self.tensors.items()}

    @property
    def normalized(self) -> set[str]:
        """Llama's tensors whose rows are divided by their length when loaded."""
        return {"lm_head.weight"} if self.norm_head else set()

    def places(self) -> dict[str, list["Place"]]:
        """Llama's name -> where its rows are, in their order and without gaps."""
        found: dict[str, list[Place]] = {}
        for original, parts in self.tensors.items():
            first = 0
            for part in parts:
                found.setdefault(part.name, []).append(Place(original, first, part.start, part.stop))
                first += part.stop - part.start
        return {name: sorted(places, key=lambda place: place.start) for name, places in found.items()}


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout that an original config.json describes.

    Raises:
        ConfigError: if its model is not a Llama under other names; without a place, which the caller adds.
    """
    llama = llama_config(config)
    queries, heads = llama["num_attention_heads"], llama["num_key_value_heads"]
    wide = llama["hidden_size"] // queries
    tensors: dict[str, tuple[Rows, ...]] = {}

    def hold(name: str, *parts: Rows) -> None:
        tensors[name] = parts

    def whole(name: str, rows: int) -> None:
        hold(_own_name(name) if config["model_type"] == "internlm2" else name, Rows(name, 0, rows))

    whole("model.embed_tokens.weight", llama["vocab_size"])
    for layer in range(llama["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        for kind in ("weight", "bias") if llama["attention_bias"] else ("weight",):
            q, k, v = (f"{place}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            if config["model_type"] == "internlm2":
                hold(f"{place}.attention.wqkv.{kind}", *_grouped(q, k, v, queries // heads * wide, wide, heads))
            elif config["model_type"] == "baichuan":
                hold(f"{place}.self_attn.W_pack.{kind}", *(Rows(name, 0, queries * wide) for name in (q, k, v)))
            else:
                for name in (q, k, v):
                    whole(name, queries * wide)
            whole(f"{place}.self_attn.o_proj.{kind}", llama["hidden_size"])
        whole(f"{place}.mlp.gate_proj.weight", llama["intermediate_size"])
        whole(f"{place}.mlp.up_proj.weight", llama["intermediate_size"])
        whole(f"{place}.mlp.down_proj.weight", llama["hidden_size"])
        whole(f"{place}.input_layernorm.weight", llama["hidden_size"])
        whole(f"{place}.post_attention_layernorm.weight", llama["hidden_size"])
    whole("model.norm.weight", llama["hidden_size"])
    if not llama["tie_word_embeddings"]:
        whole("lm_head.weight", llama["vocab_size"])
    return Layout(tensors, norm_head=_has_norm_head(config))


def llama_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the Llama that computes what the original does; it keeps the original below `KEY`.

    Raises:
        ConfigError: if there is none; without a place, which the caller adds.
    """
    kind = config["model_type"]
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(config.get(key), int):
            raise ConfigError(f"{key} is missing from its config.json; download the model again")
    if kind == "baichuan" and "max_position_embeddings" not in config:
        raise ConfigError(
            "Baichuan models of 13B place tokens by ALiBi, which Llama has not; use Baichuan-7B or Baichuan2-7B"
        )
    if kind == "baichuan" and not {_NORM_HEAD, _PLAIN_HEAD} & set(config.get("architectures") or ()):
        raise ConfigError(
            f"architectures in its config.json names neither {_PLAIN_HEAD} (Baichuan-7B) nor {_NORM_HEAD} (Baichuan2), "
            "which end differently; add the one it is"
        )
    if config.get("quantization_config"):
        raise ConfigError(f"{kind} models with quantized weights cannot be taken apart; use the unquantized one")
    llama = {key: config[key] for key in _KEPT if key in config}
    llama["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
    if llama["tie_word_embeddings"] and _has_norm_head(config):
        raise ConfigError("a head whose rows are divided by their length cannot be tied to the embedding")
    llama["num_key_value_heads"] = (kind == "internlm2" and config.get("num_key_value_heads")) or config[
        "num_attention_heads"
    ]
    llama["attention_bias"] = kind != "baichuan" and bool(config.get("bias", True))
    llama["rope_parameters"] = _rope(config)
    if dtype := config.get("dtype") or config.get("torch_dtype"):
        llama["dtype"] = dtype
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **llama, KEY: dict(config)}


def unit_rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows divided by their length, as NormHead does it: [rows, width], each row by itself, rounded once."""
    exact = values.astype(np.float64)
    lengths = np.sqrt((exact**2).sum(axis=1, keepdims=True))
    return np.asarray(exact / np.maximum(lengths, 1e-12), np.float32)


def original_config(llama: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The original config.json of a trained Llama, for weights of `dtype`.

    Args:
        llama: its whole config.json, also where it is as Llama has it by default.
    Raises:
        ConfigError: if the model came with no other layout, or training left what the layout can hold.
    """
    original = llama.get(KEY)
    if original is None:
        raise ConfigError("the model has no layout other than that of Transformers; use auto")
    if _has_norm_head(original):
        raise ConfigError(
            "Baichuan2 divides every row of lm_head by its length, and training changed those lengths, so it would "
            "compute something else; use auto"
        )
    before = llama_config(original)
    rope = {key: llama["rope_parameters"].get(key) for key in before["rope_parameters"]}
    same = ("max_position_embeddings", "num_key_value_heads", "attention_bias", "hidden_size")
    if rope != before["rope_parameters"] or any(key in before and llama.get(key) != before[key] for key in same):
        raise ConfigError("positions were extended in training, which the original code may not know; use auto")
    changed = {key: llama[key] for key in ("vocab_size",) if key in llama}
    return {**original, **changed, "torch_dtype": dtype}


def _grouped(q: str, k: str, v: str, query_rows: int, head_rows: int, heads: int) -> list[Rows]:
    return [
        Rows(name, head * rows, (head + 1) * rows)
        for head in range(heads)
        for name, rows in ((q, query_rows), (k, head_rows), (v, head_rows))
    ]


def _own_name(name: str) -> str:
    for llama, own in _OWN_NAMES.items():
        if f".{llama}." in f".{name}":
            own_name = f".{name}".replace(f".{llama}.", f".{own}.")
            return own_name[1:]
    return name


def _has_norm_head(config: Mapping[str, Any]) -> bool:
    return config["model_type"] == "baichuan" and _NORM_HEAD in config["architectures"]


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    # InternLM keeps both in `rotary`. All scale as Llama does: nothing up to max_position_embeddings if dynamic.
    rotary = config.get("rotary") or {}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.get("base", config.get("rope_theta", 10000.0))}
    scaling = config.get("rope_scaling") or ({} if rotary.get("type", "origin") == "origin" else rotary)
    if scaling:
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind not in ("linear", "dynamic"):
            raise ConfigError(f"positions scaled by {kind!r} are not known of {config['model_type']} models")
        rope |= {"rope_type": kind, "factor": float(scaling.get("factor", scaling.get("scaling_factor", 1.0)))}
    return rope
