"""The model that is trained: built from a config or read from a directory, and checked against the data."""

import difflib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from pipelines.artifacts import Json, commit_directory, make_directory, write_atomic
from pipelines.checkpoints import base_folder, digest_base
from pipelines.errors import ConfigError, DataError
from pipelines.schema import Pipeline
from train.adapters import add_adapter
from train.attention import NAME
from train.filling import fill, fill_buffers, hollow
from train.initial import Drawn, Initial
from train.loading import load
from train.original_weights import original_llama_config
from train.quantize import check_quantization
from train.remote_code import read_config
from train.rope import extend_positions
from train.vocabulary import grow_vocabulary, padded


def build_model(pipeline: Pipeline, prep: Mapping[str, Json]) -> PreTrainedModel:
    """The model with its initial weights, float32, whole on this rank.

    Raises:
        ConfigError, DataError: as `hollow_model`.
    """
    model, initial = hollow_model(pipeline, prep)
    fill(model, initial)
    return model


def hollow_model(pipeline: Pipeline, prep: Mapping[str, Json]) -> tuple[PreTrainedModel, Initial]:
    """The model without its weights, attending through `train.attention`, and where they are read from.

    Random weights depend on the seed and the config alone: every rank and every ZeRO stage starts from the same.

    Args:
        prep: facts of the prep manifest.
    Raises:
        ConfigError: if Transformers has no such model, or it cannot take our attention or these documents.
        DataError: if its files lack a tensor or are damaged, or the shards hold tokens that it has no embedding for.
    """
    config = model_config(pipeline, prep)
    extend_positions(pipeline, config)
    _check_positions(pipeline, config)
    _check_longrope(pipeline, config)
    _check_attention(pipeline, config)
    _check_weights(pipeline, config)
    check_quantization(pipeline)
    try:
        bare = _on_meta(config, trusted=pipeline.model.trust_remote_code)
        if pipeline.model.scratch is not None:
            model, initial = _drawn(pipeline, bare)
        else:
            model, initial = load(pipeline, bare)
    except KeyError as error:  # it looked for our attention among its own
        raise ConfigError(
            f"{_cite(pipeline)}: {config.model_type} models cannot be trained on packed documents: they have an "
            "attention of their own; use another model"
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{_cite(pipeline)}: {config.model_type}: {_finding(error)}") from error
    grow_vocabulary(pipeline, model, initial, prep)
    _check_vocabulary(pipeline, model, prep)
    _make_generation_greedy_by_default(model)
    if pipeline.model.lora is not None:
        add_adapter(pipeline, model, initial)
    return model, initial


def exported_config(model: PreTrainedModel) -> bytes:
    """config.json as a user of the model wants it: without what only training sets."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    for key in ("_attn_implementation", "attn_implementation", "quantization_config"):
        config.pop(key, None)
    config["use_cache"] = True
    config["architectures"] = [type(model).__name__]  # Transformers sets it only when it saves a model itself
    return json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def model_config(pipeline: Pipeline, prep: Mapping[str, Json]) -> PretrainedConfig:
    """The model's config; a scratch model that names no vocab_size gets the tokenizer's.

    Raises:
        ConfigError: naming the key that the model type does not have.
    """
    if pipeline.model.scratch is None:
        try:
            assert pipeline.model.name_or_path is not None  # the schema wants one of the two
            original = original_llama_config(pipeline.model.name_or_path)
            return original or read_config(pipeline, pipeline.model.name_or_path)
        except (ValueError, OSError, ConfigError, StrictDataclassError) as error:
            raise ConfigError(f"{_cite(pipeline)}: {_finding(error)}") from error
    rows = padded(prep["vocab_size"], pipeline.tokenizer.pad_vocab_multiple)
    keys = {"vocab_size": rows, **pipeline.model.scratch}
    model_type = keys.pop("model_type", None)
    if model_type is None:
        raise ConfigError(f'{pipeline.cite("model.scratch")}: no model_type; add one such as "llama"')
    try:
        known = AutoConfig.for_model(model_type).to_dict()
    except ValueError as error:
        raise ConfigError(
            f'{_cite(pipeline)}: this Transformers has no such model; use one that it has, such as "llama"'
        ) from error
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            advice = f"did you mean {close[0]!r}?" if close else "remove it"
            raise ConfigError(
                f"{pipeline.cite(f'model.scratch.{key}')}: {model_type} models have no such key; {advice}"
            )
    try:
        return AutoConfig.for_model(model_type, **keys)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(f"{_cite(pipeline)}: {_finding(error)}") from error


def _on_meta(config: PretrainedConfig, *, trusted: bool) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=NAME, trust_remote_code=trusted
        )
    return model


def _drawn(pipeline: Pipeline, bare: PreTrainedModel) -> tuple[PreTrainedModel, Initial]:
    """A model from scratch: the first rank draws it whole. An adapter's is written to files, and then one of those."""
    model = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.manual_seed(pipeline.run.seed)
        model = type(bare)._from_config(bare.config, dtype=torch.float32, attn_implementation=NAME)
    if pipeline.model.lora is not None:
        if model is not None:
            _make_generation_greedy_by_default(model)
            _write_base(base_folder(pipeline), model)
        if dist.is_initialized():
            dist.barrier()
        return load(pipeline, bare)
    initial = Initial(Drawn(bare, model))
    hollow(bare)
    fill_buffers(bare, initial)
    return bare, initial


def _write_base(folder: Path, model: PreTrainedModel) -> None:
    """Give a model from scratch the files that an adapter on it needs later."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(make_directory(partial))
    write_atomic(partial / "config.json", exported_config(model))
    if (folder / "config.json").is_file() and digest_base(folder) == digest_base(partial):
        shutil.rmtree(partial)
    else:
        commit_directory(partial, folder)


def _check_positions(pipeline: Pipeline, config: PretrainedConfig) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    capacity = pipeline.prep.pack.capacity
    longest = min(capacity, pipeline.prep.max_length or capacity)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"{pipeline.cite('prep.pack.capacity')}: documents may have {longest} tokens, but the model has "
            f"max_position_embeddings = {limit}; set prep.max_length = {limit}, or raise model.max_position_embeddings"
        )


def _check_longrope(pipeline: Pipeline, config: PretrainedConfig) -> None:
    # Transformers takes the long factors for everything in a forward pass as soon as one document in it is long: what a
    # document computes would depend on the others in its pack, and on which rank has which part of it.
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    capacity = pipeline.prep.pack.capacity
    longest = min(capacity, pipeline.prep.max_length or capacity)
    for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        limit = one.get("original_max_position_embeddings")
        if one.get("rope_type") == "longrope" and limit and longest > limit:
            raise ConfigError(
                f"{pipeline.cite('prep.pack.capacity')}: documents may have {longest} tokens, but the position factors "
                f"(longrope) of {config.model_type} depend on whether a document passes {limit}, which packs mix; set "
                f"prep.max_length = {limit}, or take a model with another kind of positions"
            )


def _check_attention(pipeline: Pipeline, config: PretrainedConfig) -> None:
    # Such models say which tokens see each other in the mask alone, which is never built here; no probe as short as
    # the audit's could tell.
    text = config.get_text_config()
    if getattr(text, "attention_chunk_size", None):
        raise ConfigError(
            f"{_cite(pipeline)}: {config.model_type} attends in chunks of {text.attention_chunk_size} tokens, which "
            "packed training does not support; use another model"
        )


def _check_weights(pipeline: Pipeline, config: PretrainedConfig) -> None:
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = quantization.get("quant_method", "an unnamed method")
        raise ConfigError(
            f"{_cite(pipeline)}: its weights are quantized ({method}), which cannot be trained; use the unquantized "
            "model, with [model.quantization] where it is to be small"
        )


def _check_vocabulary(pipeline: Pipeline, model: nn.Module, prep: Mapping[str, Json]) -> None:
    embedding = model.get_input_embeddings()  # type: ignore[operator]  # a PreTrainedModel has it
    rows = int(embedding.weight.shape[0])
    if prep["max_token_id"] >= rows:
        raise DataError(
            f"{pipeline.home / 'prep'}: the shards hold token id {prep['max_token_id']} (a tokenizer of "
            f"{prep['vocab_size']} tokens), but the model embeds {rows}; prepare the data with the model's tokenizer"
        )


def _make_generation_greedy_by_default(model: PreTrainedModel) -> None:
    # A config with sampling parameters but do_sample off is refused by Transformers when it is saved.
    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    if any(getattr(model.generation_config, key) not in (None, 1.0, 50) for key in ("temperature", "top_p", "top_k")):
        model.generation_config.do_sample = True


def _cite(pipeline: Pipeline) -> str:
    return pipeline.cite("model.scratch.model_type" if pipeline.model.scratch is not None else "model.name_or_path")


def _finding(error: Exception) -> str:
    # What wraps a finding (a strict dataclass names its validator) only gets in the way.
    return str(error.__cause__ or error).strip().splitlines()[0]
