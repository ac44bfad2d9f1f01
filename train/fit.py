"""Whether a training fits: its batch its ranks, its memory a GPU, its weights their files, its files the disk."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.artifacts import Json, Manifest
from pipelines.checkpoints import finished
from pipelines.errors import CheckError, ConfigError, DataError, MachineError
from pipelines.findings import Finding, Report, of_error
from pipelines.gpus import visible_gpus
from pipelines.layouts import gb
from pipelines.safetensors_header import LONGEST
from pipelines.schema import Pipeline
from pipelines.shards import PREPARED_BYTES
from pipelines.terminal import plural
from pipelines.weight_index import read_index
from train.forecast import Assumed, forecast
from train.forecast_text import count
from train.plan import Plan, checkpoint_identity, packs_left


def fit(pipeline: Pipeline, assumed: Assumed, *, input_bytes: int) -> Report:
    """Batch and layout arithmetic, memory and disk of a pipeline's training; nothing where it has none.

    Args:
        pipeline: without problems of its own; see `preflight`.
        assumed: ranks, GPUs and packs that the command line says.
        input_bytes: of the files that prep reads; 0 if they are not known.
    """
    report = Report()
    if pipeline.train is None:
        return report
    folder = pipeline.model.name_or_path
    if "model" not in pipeline.origins and folder is not None and folder.is_dir():  # else `preflight` says so
        for problem in weight_problems(folder):
            text = f"{pipeline.cite('model.name_or_path')}: {problem}"
            report.findings.append(Finding("weights", text, ConfigError.exit_code))
    report.findings += _checkpoints(pipeline)
    guessed = assumed.ranks is None and pipeline.train.nproc_per_node == "auto" and not visible_gpus()
    if guessed:  # the least that can share packs as asked for
        assumed = replace(assumed, ranks=pipeline.train.parallel.sequence_parallel_size)
    try:
        found = forecast(pipeline, assumed)
    except (ConfigError, MachineError) as error:
        report.findings += of_error(error)
        return report
    except ModuleNotFoundError as error:  # a model whose sizes only its modules tell
        report.facts["training"] = f"its sizes are not known without {error.name}, which is not installed here"
        return report
    if guessed:
        found["ranks"]["from"] = "no GPU here; --ranks says how many there will be"
    report.facts |= _facts(found)
    report.findings += [*_batch(pipeline, found), *_steps(pipeline, found), *_memory(pipeline, found)]
    needs, words = _disk(pipeline, found, input_bytes)
    free = shutil.disk_usage(_existing(pipeline.run.work_dir)).free
    report.facts["disk"] = f"about {gb(needs)} ({words}), {gb(free)} are free"
    if needs > free:
        report.findings.append(
            Finding(
                "disk",
                f"{pipeline.cite('run.work_dir')}: about {gb(needs)} are needed ({words}), and {gb(free)} are free; "
                "free some, name another disk, or lower train.checkpoint.save_total_limit",
                MachineError.exit_code,
            )
        )
    return report


def _checkpoints(pipeline: Pipeline) -> list[Finding]:
    """What training would refuse of checkpoints: the one it starts from, and those of another run in its directory."""
    train = pipeline.train
    assert train is not None
    try:
        if train.load_from is not None:
            checkpoint_identity(train.load_from, pipeline)
        is_local = pipeline.model.scratch is not None or pipeline.model.source == "local"
        if train.resume == "auto" and is_local and finished(pipeline.home / "train" / "checkpoints"):
            Plan.of(pipeline).own_checkpoints()
    except (ConfigError, DataError, CheckError) as error:
        return of_error(error)
    return []


def weight_problems(folder: Path) -> Iterator[str]:
    """What is wrong with the weight files of a model directory, as far as their sizes and headers tell."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        try:
            named = sorted(set(read_index(index).values()))
        except ValueError as error:
            yield f"its {index.name} is damaged ({error}); fetch it again"
            return
        yield from (f"{name} is missing, which {index.name} names" for name in named if not (folder / name).is_file())
        files = [folder / name for name in named if (folder / name).is_file()]
    elif not files and not any(folder.glob("pytorch_model*.bin")):
        yield "no weights in it (*.safetensors); is the download complete?"
    for path in files:
        if finding := _cut_off(path):
            yield f"{path.name} {finding}; fetch it again"


def _cut_off(path: Path) -> str:
    """What is wrong with one safetensors file by its header, which says how long it is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LONGEST, size - 8):
            return "is no safetensors file, or cut off"
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "has a damaged header"
    return "" if size == whole else f"has {size:,} bytes, its header says {whole:,}"


def _facts(found: dict[str, Json]) -> dict[str, str]:
    model, ranks, batch, steps, memory = (found[key] for key in ("model", "ranks", "batch", "steps", "memory"))
    shared = f", {ranks['sequence_parallel_size']} to a pack" if ranks["sequence_parallel_size"] > 1 else ""
    trained = f", {count(model['trained'])} trained" if model["trained"] != model["parameters"] else ""
    return {
        "model": f"{model['model_type']}, {count(model['parameters'])} parameters{trained}",
        "batch": (
            f"{plural(batch['packs'], 'pack')} a step, at most {batch['tokens']:,} tokens: "
            f"{plural(ranks['total'], 'rank')} ({ranks['from']}){shared}, "
            f"{plural(ranks['micro_batches'], 'micro-batch', 'micro-batches')} each"
        ),
        "steps": "unknown until prep has finished" if steps["total"] is None else f"{steps['total']:,}",
        "memory": f"{gb(memory['total'])} of a rank at its peak ({memory['error']})",
    }


def _batch(pipeline: Pipeline, found: dict[str, Json]) -> Iterator[Finding]:
    packs, groups = found["batch"]["packs"], found["ranks"]["groups"]
    place = pipeline.cite("train.global_batch_size")
    if packs < groups:
        yield Finding.warning(
            "ranks-idle",
            f"{place}: {groups} groups of ranks share {packs} packs, so {groups - packs} of them have nothing to do in "
            "any step; raise it, use fewer ranks, or raise train.parallel.sequence_parallel_size",
        )
    elif packs % groups:
        yield Finding.warning(
            "batch-uneven",
            f"{place}: is not a multiple of the {groups} groups of ranks, so {groups - packs % groups} of them wait in "
            f"the last micro-batch of every step; {packs - packs % groups} or {packs + groups - packs % groups} would "
            "be one (the loss is exact either way)",
        )


def _steps(pipeline: Pipeline, found: dict[str, Json]) -> Iterator[Finding]:
    packs, steps = found["data"]["packs"], found["steps"]["total"]
    if packs and steps and (text := packs_left(pipeline, packs, steps)):
        yield Finding.warning("packs-left", text)


def _memory(pipeline: Pipeline, found: dict[str, Json]) -> Iterator[Finding]:
    memory = found["memory"]
    if memory["fits"] is False:
        yield Finding.warning(
            "memory",
            f"{pipeline.cite('train.parallel.sequence_parallel_size')}: {gb(memory['total'])} of a rank do not fit the "
            f"{gb(memory['gpu_memory'])} of its GPU ({memory['error']}); packtrain plan --layouts lists what does",
        )


def _disk(pipeline: Pipeline, found: dict[str, Json], input_bytes: int) -> tuple[int, str]:
    """Bytes that the run will still write, and what they are."""
    parts = {}
    if Manifest.read(pipeline.home / "prep") is None and input_bytes:
        parts["shards, and tokens while they are prepared"] = PREPARED_BYTES * input_bytes
    checkpoint = found["checkpoint"]
    kept = checkpoint["disk"] if checkpoint["disk"] is not None else checkpoint["bytes"]
    parts["checkpoints, one more while saving"] = kept + checkpoint["bytes"]
    if whole := [target for target in pipeline.export.targets if target != "adapter"]:
        parts["exports"] = 2 * found["model"]["parameters"] * len(whole)
    return sum(parts.values()), ", ".join(f"{name} {gb(size)}" for name, size in parts.items())


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
