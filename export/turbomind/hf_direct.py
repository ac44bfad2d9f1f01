"""A Hugging Face directory for LMDeploy 0.10 and newer, which make the engine's weights of it themselves."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from export.cast import Dtype
from export.hf import Model
from export.model_config import rope_spellings
from export.safetensors_stream import INDEX, SINGLE
from export.turbomind.geometry import Unservable, architecture_of, refuse_tp
from export.turbomind.releases import LOADED_FROM_HF
from pipelines.artifacts import Json
from pipelines.errors import CheckError
from pipelines.schema import TurbomindExport

_HEAD_SIZES = (64, 128)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def refuse_unready(model: Model, dtype: Dtype, table: TurbomindExport) -> None:
    """What is known before anything is written.

    Args:
        dtype: of the hf export.
    Raises:
        Unservable: if the TurboMind engine would not serve the hf export, with the reason.
    """
    architecture = architecture_of(model.config)
    if architecture not in LOADED_FROM_HF:
        raise Unservable(
            f"the TurboMind engine of LMDeploy 0.10 and newer does not know {architecture}; remove it and serve the hf "
            "export with LMDeploy's PyTorch engine, which is told by --backend pytorch, or another server",
            key="export.turbomind.mode",
        )
    size = _head_size(model.config)
    if size is not None and size not in _HEAD_SIZES:
        raise Unservable(
            f"TurboMind has kernels for heads of 64 and 128 numbers, this {architecture} has {size}; remove it and "
            "serve the hf export with another engine",
            key="export.turbomind.mode",
        )
    heads = int(model.config["num_attention_heads"])
    refuse_tp(heads, int(model.config.get("num_key_value_heads") or heads), table.tp)
    if table.model_format != "hf":
        raise Unservable(
            "passes 4-bit weights into a workspace alone; set it to hf", key="export.turbomind.model_format"
        )
    if dtype != table.weight_type:
        raise Unservable(
            f"the hf export is {dtype}, and the engine would round it again; set export.hf.dtype to the same",
            key="export.turbomind.weight_type",
        )


def check_ready(model: Model, hf: Path, table: TurbomindExport) -> dict[str, Json]:
    """Look at everything in an hf export that decides whether and how the engine serves it; returns what was looked at.

    Raises:
        CheckError: naming everything that is not as it has to be.
    """
    findings: list[str] = []
    config = _read(hf / "config.json")
    settings: dict[str, Iterator[str]] = {
        "architecture": _architecture(config),
        "dtype": _dtype(config, table),
        "tied": _tied(config, hf),
        "rope": _rope(config),
        "weights": _weights(model, hf),
        "quantization": _quantization(config),
        "tokenizer": _tokenizer(model, hf),
        "stop": _stop(model, hf),
    }
    for found in settings.values():
        findings += found
    if findings:
        raise CheckError(f"{hf}: TurboMind would not serve it right: {'; '.join(findings)}; export again")
    return {"ready": sorted(settings)}


def _head_size(config: Mapping[str, Any]) -> int | None:
    if config.get("kv_lora_rank"):
        return None  # latent attention, which has kernels of its own
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _architecture(config: Mapping[str, Any]) -> Iterator[str]:
    architecture = next(iter(config.get("architectures") or ()), None)
    if architecture not in LOADED_FROM_HF:
        yield f"architectures in config.json names {architecture}, which the engine does not know"
    elif (size := _head_size(config)) is not None and size not in _HEAD_SIZES:
        yield f"config.json means heads of {size} numbers, and the engine has kernels for 64 and 128"


def _dtype(config: Mapping[str, Any], table: TurbomindExport) -> Iterator[str]:
    for key in ("dtype", "torch_dtype"):  # each generation of Transformers reads one of them
        if config.get(key) != table.weight_type:
            yield f"{key} in config.json is {config.get(key)!r}, not {table.weight_type!r}"


def _quantization(config: Mapping[str, Any]) -> Iterator[str]:
    if "quantization_config" in config:
        yield "config.json still has the quantization_config of training"


def _tied(config: Mapping[str, Any], hf: Path) -> Iterator[str]:
    tied = config.get("tie_word_embeddings")
    if not isinstance(tied, bool):
        yield "config.json does not say tie_word_embeddings, and the default is not the same everywhere"
    elif not tied and "lm_head.weight" not in _places(hf):
        yield "tie_word_embeddings is false, and there is no lm_head.weight"


def _rope(config: Mapping[str, Any]) -> Iterator[str]:
    new = config.get("rope_parameters")
    if new is None:
        yield "config.json has no rope_parameters"
        return
    if any(isinstance(value, dict) for value in new.values()):
        return  # one for each kind of layer, which has no older spelling
    older = {key: value for key, value in config.items() if key != "rope_parameters"}
    if rope_spellings(older).get("rope_parameters") != {"rope_type": "default", **new}:
        yield "rope_parameters and the older rope_theta and rope_scaling in config.json differ"


def _weights(model: Model, hf: Path) -> Iterator[str]:
    places = _places(hf)
    if not places:
        yield "it has no safetensors"
    elif unlisted := sorted(set(model.weights.shapes) - set(places)):
        yield f"no file has {unlisted[0]}"
    for file in sorted(set(places.values())):
        try:
            with safe_open(hf / file, framework="numpy") as opened:
                there = set(opened.keys())
        except (OSError, SafetensorError) as error:
            yield f"{file} cannot be read ({error})"
            continue
        if missing := sorted(name for name, place in places.items() if place == file and name not in there):
            yield f"{file} has no {missing[0]}"


def _places(hf: Path) -> dict[str, str]:
    """File of every tensor."""
    if (hf / INDEX).is_file():
        return dict(_read(hf / INDEX)["weight_map"])
    if not (hf / SINGLE).is_file():
        return {}
    with safe_open(hf / SINGLE, framework="numpy") as opened:
        return dict.fromkeys(opened.keys(), SINGLE)


def _tokenizer(model: Model, hf: Path) -> Iterator[str]:
    missing = [name for name in _TOKENIZER if not (hf / name).is_file()]
    if missing:
        yield f"{missing[0]} is missing"
        return
    settings = _read(hf / "tokenizer_config.json")
    if settings.get("tokenizer_class") == "TokenizersBackend":
        yield "tokenizer_config.json names a class that Transformers before 5 does not have"
    if model.chats and not (settings.get("chat_template") and (hf / "chat_template.jinja").is_file()):
        yield "the chat template is missing"


def _stop(model: Model, hf: Path) -> Iterator[str]:
    stop = _read(hf / "generation_config.json").get("eos_token_id")
    ids = {stop} if isinstance(stop, int) else set(stop or ())
    if missing := sorted(set(model.special.stop) - ids):
        yield f"eos_token_id in generation_config.json lacks {missing[0]}, which ends an answer"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckError(f"{path}: cannot be read ({error}); export again") from error
