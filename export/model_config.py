"""config.json and generation_config.json, spelled for every generation of Transformers.

Transformers 5 renamed `torch_dtype` to `dtype` and moved `rope_theta`, `rope_scaling` and `partial_rotary_factor` into
`rope_parameters`. Each generation skips the other's names without a word, so both are written.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from export.cast import WIDTH, Dtype
from export.source import Source
from pipelines.errors import CheckError, ConfigError
from pipelines.llama_layouts import KEY as ORIGINAL
from pipelines.tokenizer_files import SpecialTokens

_OF_A_MACHINE = ("_name_or_path", "transformers_version", "_attn_implementation", "_attn_implementation_autoset")
_ROPE_PLACES = ("rope_theta", "partial_rotary_factor")
_TRAINED_LENGTH = "original_max_position_embeddings"
_OLD_SCALING = {"olmo": ("factor",), "olmo2": ("factor",), "phi3": ("short_factor", "long_factor")}
"""Fields of `rope_scaling` beside its type in classes that once took no others."""
_TWO_KINDS = ("gemma3_text", "gemma3n_text")
"""Types that had an old key for the layers with a window."""


def read_config(model: Path) -> dict[str, Any]:
    """config.json of a directory, as the trainer saved it beside a checkpoint.

    Raises:
        CheckError: if it is missing or incomplete.
    """
    return _read(model / "config.json")


def stored_dtype(model: Path, origin: Path | None = None) -> Dtype:
    """The number format that a model was stored in by its directory's config.json, or float32 where nothing says.

    Args:
        origin: what to name in an error, if `model` is a copy.
    """
    config = _read(model / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype") or "float32"
    if stored not in WIDTH:
        raise ConfigError(
            f"{origin or model}: by its config.json in {stored!r}, which cannot be exported; set export.hf.dtype to "
            "bfloat16, float16 or float32"
        )
    return cast(Dtype, stored)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise CheckError(f"{path}: cannot be read ({error}); use another checkpoint") from error
    for key in ("model_type", "architectures", "vocab_size"):
        if not config.get(key):
            raise CheckError(f"{path}: {key} is missing; use a checkpoint that this version wrote")
    return config


def exported_config(
    config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], dtype: str, special: SpecialTokens
) -> dict[str, Any]:
    """config.json for weights of `dtype`."""
    exported = {key: value for key, value in config.items() if key not in (*_OF_A_MACHINE, ORIGINAL)}
    exported |= special.as_config()
    exported |= {"dtype": dtype, "torch_dtype": dtype}
    exported["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", "lm_head.weight" not in shapes))
    return exported | rope_spellings(config)


def exported_generation_config(checkpoint: Source, special: SpecialTokens) -> dict[str, Any]:
    """generation_config.json: what the model brought, with the special tokens of the template trained on."""
    path = checkpoint.model / "generation_config.json"
    brought: dict[str, Any] = {}
    if path.is_file():
        try:
            brought = dict(json.loads(path.read_bytes()))
        except ValueError as error:
            raise CheckError(f"{path}: not JSON ({error}); use another checkpoint") from error
    kept = {key: value for key, value in brought.items() if key not in ("_from_model_config", "transformers_version")}
    return kept | special.as_config()


def rope_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary embedding, old keys and new, from whichever `config` has; empty for a model without.

    Kinds of layers with settings of their own (`rope_parameters` nested by layer type) have an old spelling only in
    classes that had two kinds then, and that with one scaling.
    """
    new = config.get("rope_parameters")
    if isinstance(new, dict) and any(isinstance(value, dict) for value in new.values()):
        return _old_spelling_of_two(config.get("model_type"), new)
    if not new:
        old = config.get("rope_scaling") or {}
        new = {**old, "rope_type": old.get("rope_type", old.get("type", "default"))}
        new.pop("type", None)
        new |= {key: config[key] for key in _ROPE_PLACES if config.get(key) is not None}
        if "rope_theta" not in new:
            return {}
    new = _with_attention_factor(new)
    return {"rope_parameters": new, **_old_spelling(config.get("model_type"), new)}


def _with_attention_factor(new: dict[str, Any]) -> dict[str, Any]:
    """What follows from the `factor` of longrope is said: Transformers before 5 took it from the positions."""
    if (
        new.get("rope_type") != "longrope"
        or new.get("attention_factor")
        or not {"factor", _TRAINED_LENGTH} <= new.keys()
    ):
        return new
    larger = math.log(max(new["factor"], 1.0)) / math.log(new[_TRAINED_LENGTH])
    return {**new, "attention_factor": math.sqrt(1 + larger)}


def _old_spelling(model_type: str | None, new: Mapping[str, Any]) -> dict[str, Any]:
    scaling = {key: value for key, value in new.items() if key not in _ROPE_PLACES}
    kind = scaling.get("rope_type", "default")
    places: dict[str, Any] = {key: new[key] for key in _ROPE_PLACES if key in new}
    if kind == "longrope" and _TRAINED_LENGTH in new:
        places[_TRAINED_LENGTH] = new[_TRAINED_LENGTH]
    fields = _OLD_SCALING.get(model_type or "")
    if fields and scaling.keys() == {"rope_type", *fields, _TRAINED_LENGTH} & scaling.keys():
        scaling = {"type": kind, **{key: scaling[key] for key in fields if key in scaling}}
    return {"rope_scaling": scaling if kind != "default" else None, **places}


def _old_spelling_of_two(model_type: str | None, new: Mapping[str, Any]) -> dict[str, Any]:
    if model_type not in _TWO_KINDS or not {"full_attention", "sliding_attention"} <= new.keys():
        return {}
    of_window = new["sliding_attention"]["rope_theta"]
    return {**_old_spelling(model_type, new["full_attention"]), "rope_local_base_freq": of_window}
