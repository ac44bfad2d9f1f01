"""What an export is going to be, decided from manifests and the TOML alone, without loading anything large."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from export.cast import Dtype
from export.hand_off import VERSION as HAND_OFF
from export.model_config import stored_dtype
from export.source import Source, open_source
from export.sources.foreign import Beside
from pipelines.artifacts import Json, Manifest, digest_file, identity
from pipelines.checkpoints import base_folder, finished, step_folder
from pipelines.errors import ConfigError, DataError, MachineError
from pipelines.model_source import with_model, with_small_files
from pipelines.schema import Pipeline

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Raised whenever the bytes written for the same checkpoint and settings change."""
_LIBRARIES = ("tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Plan:
    """One checkpoint, what becomes of it, and under which identities."""

    source: Source
    """Opened."""
    parent: str
    """Identity of the checkpoint."""
    base: Path | None
    """The model below the checkpoint's adapter, if it is one's."""
    home: Path
    """The stage's directory."""
    dtype: Dtype
    """Of the Hugging Face directory."""
    targets: Mapping[str, str]
    """Identity by target, in the order they are written."""
    identity: str
    """Of the whole stage's output."""
    versions: Mapping[str, str]
    """Of the libraries that the checks run on."""

    @property
    def checkpoint(self) -> Path:
        """Where it is."""
        return self.source.folder

    @classmethod
    def of(cls, pipeline: Pipeline) -> "Plan":
        """Choose the checkpoint and name what it becomes.

        Raises:
            ConfigError: if the evaluation has nothing to ask, or a target needs an adapter or a whole model.
            DataError: if there is no such checkpoint, or no such evaluation file.
            CheckError: if the checkpoint is incomplete.
            MachineError: if a library is missing.
        """
        table = pipeline.export
        if table.eval and "hf" not in table.targets:
            raise ConfigError(f'{pipeline.cite("export.targets")}: export.eval asks the exported model; add "hf"')
        source = open_source(_choose(pipeline), _beside(pipeline))
        manifest = source.manifest
        adapted = manifest.facts.get("adapter") is not None
        _refuse_targets(pipeline, manifest, adapted=adapted)
        base = base_folder(with_model(pipeline)) if adapted else None
        dtype = _dtype(pipeline, source, base)
        versions = _versions()
        shared = {"format": FORMAT_VERSION, "parent": manifest.identity, "versions": versions}
        settings: dict[str, Json] = {
            "hf": {**table.hf.model_dump(mode="json"), "dtype": dtype},
            "turbomind": {**table.turbomind.model_dump(mode="json"), "model_name": model_name(pipeline)},
            "adapter": {"base": str(base and base.resolve())},
        }
        if adapted and table.merge_base != "original":
            settings["hf"]["merge_base"] = settings["turbomind"]["merge_base"] = table.merge_base
        if table.turbomind.mode == "hf_direct":
            settings["turbomind"]["hf"] = settings["hf"]  # which it is about
        verify = table.verify.model_dump(mode="json")
        targets: dict[str, str] = {
            target: identity(target, shared, settings[target], verify)
            for target in sorted(table.targets, key="turbomind".__eq__)  # last, as it may be about the others
        }
        evaluation: Json = None
        if table.eval:
            if not table.eval.file.is_file():
                raise DataError(f"{pipeline.cite('export.eval.file')}: no such file")
            evaluation = {**table.eval.model_dump(mode="json", exclude={"file"}), "file": digest_file(table.eval.file)}
        return cls(
            source=source,
            parent=manifest.identity,
            base=base,
            home=pipeline.home / "export",
            dtype=dtype,
            targets=targets,
            identity=identity("export", shared, targets, evaluation, HAND_OFF),
            versions=versions,
        )

    def is_done(self, target: str | None = None) -> bool:
        """Whether a target, or by default the whole export, is there as planned; sizes are compared."""
        folder = self.home / target if target else self.home
        manifest = Manifest.read(folder)
        if manifest is None or manifest.identity != (self.targets[target] if target else self.identity):
            return False
        return all(
            (path := folder / record.path).is_file() and path.stat().st_size == record.size for record in manifest.files
        )


def model_name(pipeline: Pipeline) -> str:
    """Name that the model is served under."""
    return pipeline.export.turbomind.model_name or pipeline.run.name


def _choose(pipeline: Pipeline) -> Path:
    """The directory of what is exported."""
    wanted = pipeline.export.checkpoint
    if isinstance(wanted, Path):
        if not wanted.is_dir():
            raise DataError(
                f'{pipeline.cite("export.checkpoint")}: no such directory; name one, a step, "latest" or "best"'
            )
        return wanted
    checkpoints = pipeline.home / "train" / "checkpoints"
    there = finished(checkpoints)
    if not there:
        raise DataError(f"{checkpoints}: no finished checkpoint; run `packtrain train` with this file first")
    if wanted == "latest":
        return there[-1]
    folder = _best(pipeline, there) if wanted == "best" else step_folder(checkpoints, wanted)
    if folder not in there:
        steps = ", ".join(str(_step(path)) for path in there)
        raise DataError(f"{pipeline.cite('export.checkpoint')}: no such step; the finished ones are {steps}")
    return folder


def _best(pipeline: Pipeline, there: list[Path]) -> Path:
    """The finished checkpoint of lowest held-out loss, the earliest of equals."""
    path = pipeline.home / "train" / "metrics.jsonl"
    losses = _held_out_losses(path)
    rated = [folder for folder in there if _step(folder) in losses]
    if not rated:
        raise DataError(
            f"{pipeline.cite('export.checkpoint')}: {path} has no held-out loss at the step of any finished "
            "checkpoint; set prep.eval and train.eval.steps, or name a step"
        )
    best = min(rated, key=lambda folder: losses[_step(folder)])
    lowest = min(losses, key=lambda step: losses[step])
    log.info("export: the best checkpoint is step %d, held-out loss %.4f", _step(best), losses[_step(best)])
    if losses[lowest] < losses[_step(best)]:
        log.info("export: step %d had %.4f, and no checkpoint is left of it", lowest, losses[lowest])
    return best


def _held_out_losses(path: Path) -> dict[int, float]:
    """By step; a step that was evaluated again, after a restart, counts as it was last."""
    losses: dict[int, float] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off by a kill
        if row.get("kind") == "eval" and row.get("loss") is not None:
            losses[int(row["step"])] = float(row["loss"])
    return losses


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _beside(pipeline: Pipeline) -> Beside:
    """Where what a checkpoint of another trainer lacks is looked for."""
    prep = pipeline.home / "prep"
    finished_prep = Manifest.read(prep) is not None and (prep / "tokenizer" / "tokenizer.json").is_file()
    return Beside(
        model=lambda: with_small_files(pipeline).model.name_or_path,
        tokenizer=lambda: with_small_files(pipeline).tokenizer_dir,
        prep=prep / "tokenizer" if finished_prep else None,
        code=pipeline.model.trust_remote_code,
        cache=pipeline.home / "export" / ".digests.json",
    )


def _refuse_targets(pipeline: Pipeline, checkpoint: Manifest, *, adapted: bool) -> None:
    table = pipeline.export
    if "turbomind" in table.targets and table.turbomind.mode == "hf_direct":
        where = pipeline.cite("export.turbomind.mode")
        if "hf" not in table.targets:
            raise ConfigError(f'{where}: what is served is the hf export; add "hf" to export.targets')
        if table.hf.layout != "auto":
            raise ConfigError(f"{where}: what is served has Transformers' names; set export.hf.layout to auto")
    if "adapter" in table.targets and not adapted:
        raise ConfigError(
            f"{pipeline.cite('export.targets')}: the checkpoint is of a whole model, not of an adapter; remove "
            '"adapter", or train with [model.lora]'
        )
    trained = checkpoint.facts.get("settings", {}).get("model", {})
    changed = next((key for key in ("max_position_embeddings", "rope_scaling") if trained.get(key) is not None), None)
    if "adapter" in table.targets and changed:
        raise ConfigError(
            f"{pipeline.cite('export.targets')}: the adapter was trained with model.{changed}, which the base's own "
            'config does not have; export "hf", where it is merged, instead of "adapter"'
        )
    if adapted and not table.hf.merge_lora and "hf" in table.targets:
        raise ConfigError(
            f"{pipeline.cite('export.hf.merge_lora')}: without merging, the model below the adapter is all there is to "
            'write; set export.targets = ["adapter"]'
        )


def _dtype(pipeline: Pipeline, source: Source, base: Path | None) -> Dtype:
    for chosen in (pipeline.export.hf.dtype, pipeline.model.torch_dtype):
        if chosen != "auto":
            return chosen
    return stored_dtype(base or source.model, base or source.folder)


def _versions() -> dict[str, str]:
    try:
        return {name: version(name) for name in _LIBRARIES}
    except PackageNotFoundError as error:
        raise MachineError(
            f"export needs {error.name}, which is not installed here; pip install 'packtrain[train]'"
        ) from error
