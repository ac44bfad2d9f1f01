"""Tiny models as checkpoints, written fragment by fragment in the documented format, and pipelines that export them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from pipelines.artifacts import MANIFEST, FileRecord, Manifest, identity
from pipelines.checkpoints import FORMAT_VERSION, fragment_key, step_folder
from pipelines.probes import Probe, Probes
from pipelines.schema import Pipeline

Tensors = dict[str, npt.NDArray[np.float32]]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 128,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "dtype": "float32",
    "transformers_version": "5.23.0",
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a Llama-style model, in the model's order."""
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    query, kv = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for layer in range(config["num_hidden_layers"]):
        attention = f"model.layers.{layer}.self_attn"
        for name, size in (("q", query), ("k", kv), ("v", kv)):
            found[f"{attention}.{name}_proj.weight"] = (size, hidden)
            if config["model_type"] == "qwen2" or config["attention_bias"]:
                found[f"{attention}.{name}_proj.bias"] = (size,)
        found[f"{attention}.o_proj.weight"] = (hidden, query)
        if config["attention_bias"]:
            found[f"{attention}.o_proj.bias"] = (hidden,)
        mlp = f"model.layers.{layer}.mlp"
        found |= {f"{mlp}.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found[f"{mlp}.down_proj.weight"] = (hidden, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (rows, hidden)
    return found


def random_tensors(config: dict[str, Any], seed: int = 7) -> Tensors:
    """Weights of a Llama-style model that depend on the seed alone."""
    return filled(shapes(config), seed)


def filled(shapes_: dict[str, tuple[int, ...]], seed: int = 7) -> Tensors:
    """Tensors of those shapes that depend on the seed alone: integer arithmetic, so that digests of them last."""
    tensors: Tensors = {}
    for index, (name, shape) in enumerate(shapes_.items()):
        count = int(np.prod(shape))
        mixed = (np.arange(count, dtype=np.uint64) + np.uint64((seed * 1000 + index) << 32)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        unit = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)  # in [0, 1), exactly
        around = np.float32(1.0) if "norm" in name else np.float32(0.0)
        tensors[name] = (around + (unit - np.float32(0.5)) * np.float32(0.25)).reshape(shape)
    return tensors


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    tensors: Tensors,
    *,
    ranks: int = 1,
    generation: dict[str, Any] | None = None,
    probes: Probes | None = None,
    buffers: dict[str, npt.NDArray[Any]] | None = None,
) -> Path:
    """Write a checkpoint as `ranks` ranks would: all parameters end to end, cut into equal shares wherever it falls."""
    folder.mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "model" / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(folder / "tokenizer")
    (PROBES if probes is None else probes).write(folder / "tokenizer")
    total = sum(tensor.size for tensor in tensors.values())
    borders = [total * rank // ranks for rank in range(ranks + 1)]
    for rank in range(ranks):
        state: dict[str, npt.NDArray[np.float32]] = {}
        position = 0
        for name, tensor in tensors.items():
            first = max(borders[rank] - position, 0)
            last = min(borders[rank + 1] - position, tensor.size)
            if first < last:
                piece = tensor.reshape(-1)[first:last].copy()
                state[fragment_key("parameter", name, first)] = piece
                state[fragment_key("exp_avg", name, first)] = piece * np.float32(0.125)
            position += tensor.size
        if rank == 0:
            state |= {fragment_key("buffer", name, 0): values.reshape(-1) for name, values in (buffers or {}).items()}
        save_file(state, folder / f"state-{rank:05d}-of-{ranks:05d}.safetensors")
    complete(folder, tensors, buffers=buffers)
    return folder


def complete(folder: Path, tensors: Tensors, step: int = 3, buffers: dict[str, npt.NDArray[Any]] | None = None) -> None:
    """Write the manifest of what is in a checkpoint's directory."""
    files = [
        FileRecord.of(folder, path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST
    ]
    facts = {
        "step": step,
        "packs_consumed": 8 * step,
        "loss": {"first": 5.5, "last": 2.25},
        "tied": {},
        "buffers": {name: list(values.shape) for name, values in (buffers or {}).items()},
        "parameters": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    stage = identity([vars(record) for record in files], facts)
    Manifest("checkpoint", FORMAT_VERSION, stage, {"prep": "0" * 64}, files, facts).write(folder)


def pipeline(folder: Path, **export: Any) -> Pipeline:
    """A pipeline whose run is below `folder`, with that [export] table."""
    return Pipeline.model_validate(
        {
            "schema_version": 1,
            "run": {"name": "tiny", "work_dir": "work"},
            "model": {"scratch": {"model_type": "llama"}},
            "tokenizer": {"name_or_path": "tokenizer"},
            "prep": {"source": [{"name": "s", "path": "s.jsonl"}], "pack": {"capacity": 512}},
            "export": export,
        },
        context={"base": folder},
    )


def write_run(
    folder: Path, config: dict[str, Any] = LLAMA, *, step: int = 3, seed: int = 7, **how: Any
) -> tuple[Path, Tensors]:
    """A run below `folder` with one checkpoint of `config`; returns the checkpoint's directory and its weights."""
    tensors = random_tensors(config, seed)
    checkpoint = step_folder(folder / "work" / "tiny" / "train" / "checkpoints", step)
    return write_checkpoint(checkpoint, config, tensors, **how), tensors


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes: 0 to 2 are special, then the byte b is 3 + b; with the template of the probes below."""
    folder.mkdir()
    alphabet = sorted(ByteLevel.alphabet(), key=_byte)
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {text: id_ for id_, text in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "TokenizersBackend", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _byte(character: str) -> int:
    # Byte-level tokenizers show printable bytes as themselves and the others, in order, from U+0100 on.
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    code = ord(character)
    return hidden[code - 256] if code >= 256 else code


def encode(text: str) -> list[int]:
    """Ids of plain text."""
    return [3 + byte for byte in text.encode("utf-8")]


TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
PROBES = Probes(
    [2],
    [
        Probe(
            [{"role": "user", "content": "hi"}],
            [1, *encode("user\nhi"), 2, 13, 1, *encode("assistant\n")],
        ),
        Probe(
            [{"role": "system", "content": "短"}, {"role": "user", "content": "  é\n"}],
            [1, *encode("system\n短"), 2, 13, 1, *encode("user\n  é\n"), 2, 13, 1, *encode("assistant\n")],
        ),
    ],
)
"""What the template and the tokenizer have to give, spelled out; 13 is a line feed."""
