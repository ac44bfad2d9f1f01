"""What can be known to be wrong before any work: files that are not there, and sizes that do not go together."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.model_source import Which, missing_directory
from pipelines.schema import Pipeline

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def preflight(pipeline: Pipeline) -> list[str]:
    """Every problem that needs neither data nor a model in memory, in the order of the stages, one line each."""
    return [
        *_run(pipeline),
        *tokenizer_problems(pipeline),
        *prep_problems(pipeline),
        *model_problems(pipeline),
        *_export(pipeline),
    ]


def _run(pipeline: Pipeline) -> Iterator[str]:
    folder = pipeline.run.work_dir
    while not folder.exists() and not folder.is_symlink():
        folder = folder.parent
    if not folder.is_dir():
        yield f"{pipeline.cite('run.work_dir')}: {folder} is a file; name a directory"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"{pipeline.cite('run.work_dir')}: {folder} is not writable; name a directory that is"


def tokenizer_problems(pipeline: Pipeline) -> Iterator[str]:
    """What is wrong with the tokenizer's directory, or the file of the template."""
    key = "tokenizer.name_or_path" if pipeline.tokenizer.name_or_path else "model.name_or_path"
    folder = pipeline.tokenizer_dir
    if not folder.is_dir():
        if key == "tokenizer.name_or_path" or pipeline.train is None:  # otherwise it is said of the model
            table: Which = "tokenizer" if pipeline.tokenizer.name_or_path else "model"
            yield f"{pipeline.cite(key)}: {missing_directory(pipeline, table)}"
    elif not any((folder / name).is_file() for name in TOKENIZER_FILES):
        yield f"{pipeline.cite(key)}: neither {' nor '.join(TOKENIZER_FILES)} in it; name a tokenizer's directory"
    if pipeline.template.file is not None and not pipeline.template.file.is_file():
        yield f"{pipeline.cite('template.file')}: no such file"


def prep_problems(pipeline: Pipeline) -> Iterator[str]:
    """What is wrong with the paths of the data."""
    for index, source in enumerate(pipeline.prep.source):
        where = f"prep.source.{index}"
        if not source.path.exists():
            yield f"{pipeline.cite(f'{where}.path')}: no such file or directory"
        elif source.path.is_dir() and source.files and not any(_matches(source.path, one) for one in source.files):
            yield f"{pipeline.cite(f'{where}.files')}: no file in {source.path} matches"
    if pipeline.prep.order.mode == "locked" and not pipeline.prep.order.file.is_file():
        yield f"{pipeline.cite('prep.order.file')}: no such file; write it with `packtrain order write`, then keep it"


def model_problems(pipeline: Pipeline) -> Iterator[str]:
    """What is wrong with the model, or does not go together with the packs."""
    if pipeline.train is None:
        return
    config, problem = model_config(pipeline)
    if problem:
        yield f"{pipeline.cite(_model_key(pipeline))}: {problem}"
    if pipeline.tokenizer.add_special_tokens and pipeline.model.lora and not pipeline.model.lora.modules_to_save:
        yield (
            f"{pipeline.cite('model.lora.modules_to_save')}: the embedding has to be trained whole for the rows of "
            'tokenizer.add_special_tokens; name its module and the output\'s, usually ["embed_tokens", "lm_head"]'
        )
    if pipeline.model.quantization is not None and pipeline.model.lora is None:
        yield (
            f"{pipeline.cite('model.quantization')}: weights of 4 bits cannot be trained; add [model.lora], or remove "
            "the table"
        )
    limit = pipeline.model.max_position_embeddings or _size(config, "max_position_embeddings")
    longest = min(pipeline.prep.max_length or pipeline.prep.pack.capacity, pipeline.prep.pack.capacity)
    if limit is not None and longest > limit:
        key = "prep.max_length" if pipeline.prep.max_length else "prep.pack.capacity"
        yield (
            f"{pipeline.cite(key)}: a document may have {longest} tokens, but the model's max_position_embeddings is "
            f"{limit}; set prep.max_length = {limit}, or raise model.max_position_embeddings"
        )


def _export(pipeline: Pipeline) -> Iterator[str]:
    table = pipeline.export
    if table.eval is not None and not table.eval.file.is_file():
        yield f"{pipeline.cite('export.eval.file')}: no such file"
    if pipeline.train is None or "turbomind" not in table.targets:
        return
    config, _ = model_config(pipeline)
    heads = _size(config, "num_attention_heads")
    shared = _size(config, "num_key_value_heads") or heads
    if heads is None or shared is None:
        return
    possible = [tp for tp in (1, 2, 4, 8) if heads % tp == 0 and (shared % tp == 0 or tp % shared == 0)]
    if table.turbomind.tp not in possible:
        yield (
            f"{pipeline.cite('export.turbomind.tp')}: does not divide {heads} attention heads ({shared} key-value "
            f"heads); use {' or '.join(map(str, possible))}"
        )


def _model_key(pipeline: Pipeline) -> str:
    return "model.scratch" if pipeline.model.scratch is not None else "model.name_or_path"


def model_config(pipeline: Pipeline) -> tuple[Mapping[str, Any], str]:
    """The model's config.json, empty where it is not to be had, and what is wrong with it."""
    if pipeline.model.scratch is not None:
        scratch = pipeline.model.scratch
        return scratch, "" if "model_type" in scratch else 'no model_type; add one, such as model_type = "llama"'
    folder = pipeline.model.name_or_path
    assert folder is not None  # the schema wants one of the two
    if not folder.is_dir():
        return {}, missing_directory(pipeline, "model")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        return {}, "no config.json in it; name a Hugging Face model directory"
    except (OSError, ValueError) as error:
        return {}, f"its config.json cannot be read ({error})"
    return (config, "") if isinstance(config, dict) else ({}, "its config.json is no JSON object")


def _matches(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _size(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else None
