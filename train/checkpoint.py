"""Saving and loading the training state in the format of `pipelines.checkpoints`, on any number of ranks."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.artifacts import (
    FileRecord,
    Json,
    Manifest,
    commit_directory,
    identity,
    make_directory,
    sync_directory,
    sync_file,
    write_atomic,
)
from pipelines.checkpoints import FORMAT_VERSION, Checkpoint, finished, fragment_key, step_folder
from pipelines.errors import CheckError, MachineError, PacktrainError
from train.adapters import adapter_facts, check_base, is_adapted
from train.engine import Engine
from train.fragments import buffers, create_state, kinds_and_scalars, own_pieces, pieces, shapes, tied
from train.model import exported_config
from train.plan import Plan

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "deepspeed")


def save(engine: Engine, plan: Plan, *, step: int, loss: Mapping[str, float]) -> Path:
    """Write the checkpoint after `step` optimizer steps; it appears complete, by rename, or not at all.

    Returns:
        Its directory.
    Raises:
        MachineError: if it cannot be written.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    folder = step_folder(plan.checkpoints, step)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            make_directory(partial)
        dist.barrier()
        path = partial / f"state-{rank:05d}-of-{ranks:05d}.safetensors"
        record = write_safetensors(path, _fragments(engine, rank))
        records: list[Any] = [None] * ranks
        dist.all_gather_object(records, record)
        if rank == 0:
            records += _write_model_and_tokenizer(engine, plan, partial)
            _manifest(engine, plan, records, step, loss).write(partial)
            commit_directory(partial, folder)
            _remove_old(plan)
        dist.barrier()
    except OSError as error:
        raise MachineError(f"{partial}: cannot be written ({error.strerror}); free space, then run again") from error
    return folder


def load_newest(engine: Engine, plan: Plan) -> Checkpoint | None:
    """Continue from the newest undamaged checkpoint of this run: all ranks the same one, or None.

    Raises:
        CheckError: if there are checkpoints and all of them are damaged.
    """
    if dist.get_rank() == 0:
        for partial in plan.checkpoints.glob(".step-*.partial"):  # of a run killed while saving
            shutil.rmtree(partial)
    candidates = plan.own_checkpoints()
    for folder in reversed(candidates):
        damage = _agree(lambda folder=folder: _verify_share(folder))  # type: ignore[misc]  # a default binds the loop's
        if damage is None:
            checkpoint = Checkpoint(folder)
            if is_adapted(engine.model):
                check_base(engine.model, checkpoint)
            load(engine, checkpoint)
            return checkpoint
        log.warning("%s; trying the checkpoint before it", damage)
    if candidates:
        raise CheckError(f"{plan.checkpoints}: every checkpoint is damaged; train with --no-resume to start over")
    return None


def load(engine: Engine, checkpoint: Checkpoint) -> None:
    """Fill this rank's part of the training state, whatever layout wrote the checkpoint."""
    facts = checkpoint.manifest.facts
    _check_same_model(engine, checkpoint)
    create_state(engine, facts["kinds"], facts["optimizer"])
    for piece in pieces(engine):
        for kind, tensor in piece.tensors.items():
            tensor.copy_(torch.from_numpy(checkpoint.read(kind, piece.name, piece.start, piece.stop)))
    for name, values in checkpoint.buffers():
        engine.model.get_buffer(name).copy_(torch.from_numpy(values))
    engine.refresh_parameters()
    engine.load_scaler(facts["scaler"])
    engine.skipped_steps = facts["skipped_steps"]


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write and digest tensors in one pass, one at a time in memory.

    Args:
        tensors: [elements] each, float32 or int64, on any device; the file has them in this order.
    """
    names = {torch.float32: "F32", torch.int64: "I64"}
    header: dict[str, Json] = {}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def put(content: bytes) -> None:
            digest.update(content)
            file.write(content)

        put(len(text).to_bytes(8, "little"))
        put(text)
        for tensor in tensors.values():
            put(tensor.detach().cpu().contiguous().numpy().tobytes())
        file.flush()
        sync_file(file.fileno())
        size = file.tell()
    return FileRecord(path.name, size, digest.hexdigest())


def _fragments(engine: Engine, rank: int) -> dict[str, Tensor]:
    fragments = {
        fragment_key(kind, piece.name, piece.start): tensor
        for piece in own_pieces(engine)
        for kind, tensor in piece.tensors.items()
    }
    if rank == 0:
        fragments |= {fragment_key("buffer", name, 0): buffer for name, buffer in buffers(engine.model).items()}
    return fragments


def _write_model_and_tokenizer(engine: Engine, plan: Plan, partial: Path) -> list[FileRecord]:
    """What the exporter needs besides weights."""
    model: Any = engine.model
    write_atomic(make_directory(partial / "model") / "config.json", exported_config(model))
    if model.generation_config is not None:
        model.generation_config.save_pretrained(partial / "model")
    if (plan.shards / "tokenizer").is_dir():
        shutil.copytree(plan.shards / "tokenizer", partial / "tokenizer")
    written = [path for kind in ("model", "tokenizer") for path in sorted((partial / kind).glob("*")) if path.is_file()]
    for path in written:
        with path.open("rb") as file:
            sync_file(file.fileno())
        sync_directory(path.parent)
    return [FileRecord.of(partial, path) for path in written]


def _manifest(
    engine: Engine, plan: Plan, records: Sequence[FileRecord], step: int, loss: Mapping[str, float]
) -> Manifest:
    kinds, scalars = kinds_and_scalars(engine)
    consumed = step * plan.train.global_batch_size
    facts = {
        "run": plan.identity,
        "parameters": {name: list(shape) for name, shape in shapes(engine.model).items()},
        "tied": tied(engine.model),
        "buffers": {name: list(buffer.shape) for name, buffer in buffers(engine.model).items()},
        "kinds": kinds,
        "optimizer": scalars,
        "scaler": engine.scaler(),
        "skipped_steps": engine.skipped_steps,
        "step": step,
        "total_steps": plan.total_steps,
        "packs_consumed": consumed,
        "epoch": consumed / plan.packs,
        "loss": dict(loss),
        "settings": plan.settings,
        "layout": {
            "world_size": engine.ranks,
            "sequence_parallel_size": engine.parallel.size,
            "zero_stage": engine.zero_stage,
            "precision": engine.precision,
        },
        "versions": {name: version(name) for name in LIBRARIES},
    }
    if is_adapted(engine.model):
        facts["adapter"] = adapter_facts(engine.model)
    files = sorted(records, key=lambda record: record.path)
    # Of its bytes, not only of what they were computed from: GPU kernels need not repeat themselves.
    mine = identity("checkpoint", plan.identity, step, [record.sha256 for record in files])
    return Manifest("checkpoint", FORMAT_VERSION, mine, {"prep": plan.prep.identity}, files, facts)


def _remove_old(plan: Plan) -> None:
    limit = plan.train.checkpoint.save_total_limit
    if limit > 0:
        for folder in finished(plan.checkpoints)[:-limit]:
            (folder / "manifest.json").unlink()  # first, so that a kill leaves no half of a checkpoint
            shutil.rmtree(folder)


def _check_same_model(engine: Engine, checkpoint: Checkpoint) -> None:
    here, there = shapes(engine.model), dict(checkpoint.shapes)
    if here != there:
        name = next(name for name in [*here, *there] if here.get(name) != there.get(name))
        raise CheckError(
            f"{checkpoint.folder}: a checkpoint of another model: {name} is {there.get(name)} there, {here.get(name)} "
            "here; train with --no-resume to start over"
        )


def _verify_share(folder: Path) -> None:
    """Check sizes everywhere and digests of this rank's share of the files."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    manifest = Manifest.read(folder)
    if manifest is None:
        raise CheckError(f"{folder}: gone")
    manifest.verify(folder, hashes=False)
    share = Manifest(**{**vars(manifest), "files": list(manifest.files)[rank::ranks]})
    share.verify(folder)


def _agree(check: Callable[[], None]) -> str | None:
    """Run a check on every rank; what the first rank that failed says, on all of them."""
    try:
        check()
        finding = None
    except PacktrainError as error:
        finding = str(error)
    findings: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(findings, finding)
    return next((found for found in findings if found is not None), None)
