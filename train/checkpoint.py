"""Saving and loading the training state in the format of `pipelines.checkpoints`, on any number of ranks."""

import json
import logging
import shutil
import socket
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.artifacts import (
    MANIFEST,
    DigestedFile,
    FileRecord,
    Json,
    Manifest,
    commit_directory,
    digest_file,
    identity,
    make_directory,
    other_digest,
    sync_directory,
    sync_file,
    write_atomic,
)
from pipelines.checkpoints import FORMAT_VERSION, Checkpoint, finished, fragment_key, step_folder
from pipelines.errors import CheckError, ConfigError, MachineError
from pipelines.failing_disk import is_storage_error
from pipelines.progress import progress_bar
from train.adapters import adapter_facts, check_base, is_adapted
from train.agreement import OF_THE_USER, on_every_rank, on_rank_0
from train.engine import Engine
from train.fragments import buffers, create_state, kinds_and_scalars, own_blocks, own_pieces, pieces, shapes, tied
from train.model import exported_config
from train.plan import Plan
from train.remote_code import copy_code

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "deepspeed")
RESUMED_FROM = ".resumed-from"
"""File beside the checkpoints with the digest and the place of the named one that the newest follow from."""


def save(engine: Engine, plan: Plan, *, step: int, loss: Mapping[str, float]) -> Path:
    """Write the checkpoint after `step` optimizer steps; it appears complete, by rename, or not at all.

    Returns:
        Its directory.
    Raises:
        OSError or MachineError: on every rank, if one of them cannot write its part.
    """
    folder = step_folder(plan.checkpoints, step)
    partial = folder.with_name(f".{folder.name}.partial")

    def complete() -> None:
        whole, beginnings = zip(*states, strict=True)
        records = [*whole, *_write_model_and_tokenizer(engine, plan, partial)]
        _manifest(engine, plan, records, beginnings, step, loss).write(partial)
        commit_directory(partial, folder)
        _remove_old(plan, folder)

    try:
        on_rank_0(lambda: _make_anew(partial))
        states = on_every_rank(lambda: _write_state(engine, plan, partial))
        on_rank_0(complete)
    except OSError as error:
        if is_storage_error(error):
            raise OSError(error.errno, error.strerror, str(partial)) from error  # each rank's, and none knows it all
        raise MachineError(f"{partial}: cannot be written ({error.strerror}); free space, then run again") from error
    return folder


def resume_newest(engine: Engine, plan: Plan) -> Checkpoint | None:
    """Continue from the newest undamaged checkpoint of this run: all ranks the same one, or None.

    Raises:
        ConfigError: if there are checkpoints, but of another run, or of weights alone.
        CheckError: if there are checkpoints and all of them are damaged.
    """
    on_rank_0(lambda: (plan.home / RESUMED_FROM).unlink(missing_ok=True))
    return _resume_newest(engine, plan)


def resume_from(engine: Engine, plan: Plan, folder: Path) -> Checkpoint | None:
    """Continue from this checkpoint of this run, and remove the run's later ones: they would not follow from it.

    Once that was done, the newest that follows from it is what to continue from: the same command goes on.

    Raises:
        ConfigError: if it is no checkpoint, of another run, or of weights alone.
        CheckError: if it is damaged.
    """

    def check() -> str | None:
        manifest = Manifest.read(folder)
        if manifest is None and _went_on_from(plan, folder):
            return None
        if manifest is None or manifest.kind != "checkpoint":
            cited = plan.pipeline.cite("train.resume")
            raise ConfigError(f"{cited}: not a finished checkpoint; name a step-* directory that holds {MANIFEST}")
        plan.check_own(folder, manifest)
        plan.own_checkpoints()  # which refuses those of another run, before any is removed
        return digest_file(folder / MANIFEST)

    digest = on_rank_0(check)
    if digest is None or on_rank_0(lambda: _goes_on_from(plan, folder, digest)):
        return _resume_newest(engine, plan)
    checkpoint = _open(folder, digest)
    if not checkpoint.is_resumable:
        raise ConfigError(_no_optimizer(checkpoint))
    load(engine, checkpoint)

    def begin() -> None:
        _remove_after(plan, checkpoint.step)
        write_atomic(
            plan.home / RESUMED_FROM, f"{digest} {folder}".encode()
        )  # last: until then, later ones are of before

    on_rank_0(begin)
    return checkpoint


def start_from(engine: Engine, folder: Path) -> None:
    """Take the weights of a checkpoint, of any run of the same model, and nothing else of it.

    Raises:
        CheckError: if it is damaged, or of another model.
    """
    checkpoint = _open(folder, on_rank_0(lambda: digest_file(folder / MANIFEST)))
    _check_same_model(engine, checkpoint)
    _fill(engine, checkpoint)
    log.info("starting from the weights of %s", folder)


def load(engine: Engine, checkpoint: Checkpoint) -> None:
    """Fill this rank's part of the training state, whatever layout wrote the checkpoint."""
    facts = checkpoint.manifest.facts
    _check_same_model(engine, checkpoint)
    if facts["optimizer"] or facts["kinds"] or checkpoint.has_blocks:  # else it never stepped

        def block(stretches: str) -> Mapping[str, Tensor]:
            return {name: torch.from_numpy(values) for name, values in checkpoint.block(stretches).items()}

        on_every_rank(lambda: create_state(engine, checkpoint.kinds_of, facts["optimizer"], block=block))
    _fill(engine, checkpoint)
    engine.load_scaler(facts["scaler"])
    engine.skipped_steps = facts["skipped_steps"]


def start_over(plan: Plan) -> None:
    """Remove what former runs left: the user asked for it."""

    def remove() -> None:
        _remove_after(plan, -1)
        (plan.home / RESUMED_FROM).unlink(missing_ok=True)

    on_rank_0(remove)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], behind: Mapping[str, Tensor] | None = None
) -> tuple[FileRecord, FileRecord]:
    """Write and digest tensors in one pass, some of them at a time in memory.

    Args:
        tensors: float32, int64 or uint8, on any device; the file has them in this order.
        behind: more of them, which come last.
    Returns:
        The file, and its beginning: as far as `tensors` go.
    """
    behind = behind or {}
    names = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
    header: dict[str, Json] = {}
    end = 0
    for key, tensor in [*tensors.items(), *behind.items()]:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with (
        path.open("wb") as file,
        DigestedFile(file) as digested,
        progress_bar("saving", len(text) + end, "B") as progress,
    ):

        def put(tensor: Tensor) -> None:
            content = tensor.detach().cpu().contiguous().numpy().reshape(-1).view(np.uint8).data
            digested.write(content)
            progress(len(content))

        digested.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            put(tensor)
        beginning = FileRecord(path.name, file.tell(), digested.sha256())
        for tensor in behind.values():
            put(tensor)
        file.flush()
        sync_file(file.fileno())
        return FileRecord(path.name, file.tell(), digested.sha256()), beginning


def _resume_newest(engine: Engine, plan: Plan) -> Checkpoint | None:
    weights_only = None
    candidates, unreadable = on_rank_0(lambda: _candidates(plan))
    for name, digest in reversed(candidates):
        try:
            checkpoint = _open(plan.checkpoints / name, digest)
        except OF_THE_USER as damage:
            log.warning("%s; trying the checkpoint before it", damage)
            continue
        if checkpoint.is_resumable:
            load(engine, checkpoint)
            return checkpoint
        weights_only = weights_only or checkpoint
    if weights_only:
        raise ConfigError(_no_optimizer(weights_only))
    if candidates or unreadable:
        raise CheckError(f"{plan.checkpoints}: every checkpoint is damaged; train with --no-resume to start over")
    return None


def _make_anew(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    make_directory(partial)


def _write_state(engine: Engine, plan: Plan, partial: Path) -> tuple[FileRecord, FileRecord]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if not partial.is_dir():
        raise MachineError(
            f"{partial}: made by rank 0, but {_this_rank()} does not see it; all nodes have to share run.work_dir"
        )
    state = _optimizer_state(engine) if plan.train.checkpoint.save_optimizer else {}
    return write_safetensors(
        partial / f"state-{rank:05d}-of-{ranks:05d}.safetensors", _weights(engine, rank), behind=state
    )


def _weights(engine: Engine, rank: int) -> dict[str, Tensor]:
    """What this rank saves of the model: views of the live state, so that only what is being written is copied."""
    weights = {
        fragment_key("parameter", piece.name, piece.start): piece.tensors["parameter"] for piece in own_pieces(engine)
    }
    if rank == 0:
        weights |= {fragment_key("buffer", name, 0): buffer for name, buffer in buffers(engine.model).items()}
    return weights


def _optimizer_state(engine: Engine) -> dict[str, Tensor]:
    """The rest that this rank saves, as views too."""
    state = {
        fragment_key(kind, piece.name, piece.start): tensor
        for piece in own_pieces(engine)
        for kind, tensor in piece.tensors.items()
        if kind != "parameter"
    }
    return state | {fragment_key("block", name, 0): block for name, block in own_blocks(engine).items()}


def _write_model_and_tokenizer(engine: Engine, plan: Plan, partial: Path) -> list[FileRecord]:
    """What the exporter needs besides weights."""
    model: Any = engine.model
    write_atomic(make_directory(partial / "model") / "config.json", exported_config(model))
    if model.generation_config is not None:
        model.generation_config.save_pretrained(partial / "model")
    if plan.pipeline.model.trust_remote_code:
        assert plan.pipeline.model.name_or_path is not None  # the schema: a scratch model has no code
        copy_code(plan.pipeline.model.name_or_path, partial / "model")
    tokenizer = plan.prep.below("tokenizer/")
    tokenizer.verify(plan.shards, hashes=False)
    _copy_files(tokenizer, plan.shards, partial)
    found = [path for kind in ("model", "tokenizer") for path in sorted((partial / kind).rglob("*"))]
    written = [path for path in found if path.is_file()]
    for path in written:
        with path.open("rb") as file:
            sync_file(file.fileno())
        sync_directory(path.parent)
    records = [FileRecord.of(partial, path) for path in written]
    for record in tokenizer.files:
        if record not in records:
            raise other_digest(plan.shards / record.path)  # it changed since the training began
    return records


def _copy_files(manifest: Manifest, source: Path, target: Path) -> None:
    """The files of a manifest, and nothing that somebody left beside them."""
    for record in manifest.files:
        copy = target / record.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / record.path, copy)


def _manifest(
    engine: Engine,
    plan: Plan,
    records: Sequence[FileRecord],
    weights: Sequence[FileRecord],
    step: int,
    loss: Mapping[str, float],
) -> Manifest:
    kept = plan.train.checkpoint.save_optimizer
    kinds, scalars = kinds_and_scalars(engine) if kept else ([], {})
    consumed = step * plan.train.global_batch_size
    facts: dict[str, Json] = {
        "run": plan.identity,
        "parameters": {name: list(shape) for name, shape in shapes(engine.model).items()},
        "tied": tied(engine.model),
        "weights": [vars(one) for one in weights],
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
        **({"origins": plan.pipeline.origins} if plan.pipeline.origins else {}),
        "layout": {
            "world_size": engine.ranks,
            "sequence_parallel_size": engine.parallel.size,
            "zero_stage": engine.zero_stage,
            "precision": engine.precision,
        },
        "versions": {name: version(name) for name in LIBRARIES},
    }
    if not kept:
        facts["weights_only"] = True
    if is_adapted(engine.model):
        facts["adapter"] = adapter_facts(engine.model)
    files = sorted(records, key=lambda record: record.path)
    # Of its bytes, not only of what they were computed from: GPU kernels need not repeat themselves.
    mine = identity("checkpoint", plan.identity, step, [record.sha256 for record in files])
    return Manifest("checkpoint", FORMAT_VERSION, mine, {"prep": plan.prep.identity}, files, facts)


def _remove_old(plan: Plan, newest: Path) -> None:
    # Later ones are damaged, or of weights alone: the run went on from one before them, and must not lose it to them.
    limit = plan.train.checkpoint.save_total_limit
    if limit > 0:
        for folder in [each for each in finished(plan.checkpoints) if each <= newest][:-limit]:
            _remove(folder)


def _remove_after(plan: Plan, step: int) -> None:
    for folder in finished(plan.checkpoints):
        if folder > step_folder(plan.checkpoints, step) or step < 0:
            log.info("not resuming from it: removing %s", folder)
            _remove(folder)


def _goes_on_from(plan: Plan, folder: Path, digest: str) -> bool:
    """Whether this run began again from that checkpoint before, and has saved since."""
    newest = finished(plan.checkpoints)[-1:]
    has_gone_on = newest and newest[0] > step_folder(plan.checkpoints, Checkpoint(folder).step)
    return bool(has_gone_on) and _resumed_from(plan)[0] == digest


def _went_on_from(plan: Plan, folder: Path) -> bool:
    """Whether this run began again from the checkpoint that was there, and has saved since: it may have been too old to
    be kept."""
    return _resumed_from(plan)[1] == str(folder) and bool(finished(plan.checkpoints))


def _resumed_from(plan: Plan) -> tuple[str, str]:
    """Digest and place of the checkpoint that was named."""
    marker = plan.home / RESUMED_FROM
    digest, _, place = (marker.read_text() if marker.is_file() else "").partition(" ")
    return digest, place


def _remove(folder: Path) -> None:
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)  # first, so that a kill leaves no half of a checkpoint
    shutil.rmtree(hidden)


def _candidates(plan: Plan) -> tuple[list[tuple[str, str]], int]:
    """Names of this run's checkpoints, oldest first, with their manifests' digests; and how many cannot be read."""
    for left in plan.checkpoints.glob(".step-*"):  # by a run killed while saving or removing
        shutil.rmtree(left)
    own = plan.own_checkpoints()
    return [(folder.name, digest_file(folder / MANIFEST)) for folder in own], len(finished(plan.checkpoints)) - len(own)


def _open(folder: Path, digest: str) -> Checkpoint:
    """The checkpoint whose manifest has this digest, once every rank sees it whole.

    Raises:
        CheckError: on every rank, if one of them finds it damaged, or does not see it.
    """
    found: list[Checkpoint] = []

    def look() -> None:
        _verify_share(folder, digest)
        found.append(Checkpoint(folder))  # which opens every file

    on_every_rank(look)
    return found[0]


def _verify_share(folder: Path, digest: str) -> None:
    """Check sizes everywhere and digests of this rank's share of the files."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if not (folder / MANIFEST).is_file():
        raise CheckError(f"{folder}: {_this_rank()} does not see it; all nodes have to share it")
    if digest_file(folder / MANIFEST) != digest:
        raise CheckError(f"{folder / MANIFEST}: {_this_rank()} reads another one than rank 0")
    manifest = Manifest.read(folder)
    assert manifest is not None
    manifest.verify(folder, hashes=False)
    share = Manifest(**{**vars(manifest), "files": list(manifest.files)[rank::ranks]})
    share.verify(folder)


def _this_rank() -> str:
    return f"rank {dist.get_rank()} on {socket.gethostname()}"


def _no_optimizer(checkpoint: Checkpoint) -> str:
    return (
        f"{checkpoint.folder}: holds weights alone (train.checkpoint.save_optimizer = false), so the run cannot "
        "continue; train with --no-resume to start over, or start another run from it with train.load_from"
    )


def _check_same_model(engine: Engine, checkpoint: Checkpoint) -> None:
    if is_adapted(engine.model) != bool(checkpoint.adapter):
        kinds = ("a whole model", "an adapter")
        its, mine = kinds[bool(checkpoint.adapter)], kinds[is_adapted(engine.model)]
        raise CheckError(f"{checkpoint.folder}: of {its}, but this run trains {mine}; change [model.lora]")
    if is_adapted(engine.model):
        check_base(engine.model, checkpoint)
    here, there = shapes(engine.model), dict(checkpoint.shapes)
    if here != there:
        name = next(name for name in [*here, *there] if here.get(name) != there.get(name))
        both = name in here and name in there
        of = "vocabulary" if both and here[name][1:] == there[name][1:] and _is_embedding(engine, name) else "model"
        raise CheckError(
            f"{checkpoint.folder}: a checkpoint of another {of}: {name} is {there.get(name)} there, {here.get(name)} "
            "here; train the model that it is of, or name another checkpoint"
        )


def _is_embedding(engine: Engine, name: str) -> bool:
    model: Any = engine.model
    both = [module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module]
    return any(model.get_parameter(name) is weight for weight in both)


def _fill(engine: Engine, checkpoint: Checkpoint) -> None:
    """Read this rank's stretches of the weights, and of what the optimizer has for each element, one at a time."""
    held = pieces(engine)
    size = sum(tensor.nbytes for piece in held for tensor in piece.tensors.values())
    with progress_bar("loading the checkpoint", size, "B") as progress:
        for piece in held:
            for kind, tensor in piece.tensors.items():
                tensor.copy_(torch.from_numpy(checkpoint.read(kind, piece.name, piece.start, piece.stop)))
                progress(tensor.nbytes)
    for name, values in checkpoint.buffers():
        engine.model.get_buffer(name).copy_(torch.from_numpy(values))
    engine.refresh_parameters()
