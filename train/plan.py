"""What a training run will do, known before torch is imported: its data, its steps, its identity, where it stands."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.artifacts import Json, Manifest, Stamps, digest_file, identity
from pipelines.checkpoints import FORMAT_VERSION, finished
from pipelines.errors import CheckError, ConfigError, DataError
from pipelines.model_source import code_digest, with_model
from pipelines.schema import Pipeline, Train
from pipelines.shards import ShardReader
from train.order import epoch_packs

log = logging.getLogger(__name__)

COST_ONLY = {
    "model": {"torch_dtype", "attn_implementation", "weights_format"},
    "train": {
        "nproc_per_node",
        "activation_checkpointing",
        "activation_offload",
        "tiled_mlp",
        "compile",
        "fused_loss",
        "on_nonfinite",
        "error_if_nonfinite",
        "resume",
        "parallel",
        "deepspeed",
        "checkpoint",
        "eval",
        "log",
        "profile",
        "runtime",
    },
}
"""Keys that change how a run is computed, saved or exported, but not what it computes."""
DEEPSPEED_COST_ONLY = {
    "aio",
    "allgather_bucket_size",
    "allgather_partitions",
    "comms_logger",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "offload_optimizer",
    "offload_param",
    "reduce_bucket_size",
    "reduce_scatter",
    "round_robin_gradients",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "steps_per_print",
    "sub_group_size",
    "wall_clock_breakdown",
    "zero_hpz_partition_size",
}
"""Of train.deepspeed.extra the same, wherever they stand there. What else it has may change numbers, such as the format
that gradients are sent in."""
_WHERE = {"source", "revision", "source_args"}
"""Keys that say where a model is, which its digests tell better."""


@dataclass(frozen=True)
class Plan:
    """One training run."""

    pipeline: Pipeline
    train: Train
    prep: Manifest
    """The shards that are trained on."""
    packs: int
    """Packs of one epoch: the shards', or with XTuner's order what it rounds them up to."""
    total_steps: int
    """Optimizer steps of the whole run."""
    settings: Json
    """Everything the computed numbers depend on, beside the shards."""
    seen: Stamps
    """Of the shards' directory, from before any of its digests was looked at."""

    @classmethod
    def of(cls, pipeline: Pipeline) -> "Plan":
        """Lay out the run of a pipeline whose prep is finished.

        Raises:
            ConfigError: if there is no [train] table, or one optimizer step needs more packs than there are.
            DataError: if prep has no finished output.
        """
        train = pipeline.train
        if train is None:
            raise ConfigError(
                "the pipeline has no [train] table; add one with global_batch_size and train.optimizer.lr"
            )
        reader = ShardReader(pipeline.home / "prep")
        check_evaluation(pipeline, train, reader.manifest)
        packs = epoch_packs(len(reader), train.shuffle, train.global_batch_size)
        pipeline = with_model(pipeline)
        return cls(
            pipeline=pipeline,
            train=train,
            prep=reader.manifest,
            packs=packs,
            total_steps=total_steps(train, packs),
            settings=_settings(pipeline, train),
            seen=reader.manifest.stamps(pipeline.home / "prep"),
        )

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of ranks that cannot share packs as asked for."""
        size = self.train.parallel.sequence_parallel_size
        if ranks % size:
            *most, last = [str(number) for number in range(1, ranks + 1) if ranks % number == 0]
            raise ConfigError(
                f"{self.pipeline.cite('train.parallel.sequence_parallel_size')}: does not divide the {ranks} ranks of "
                f"this run; use {', '.join(most)}{' or ' if most else ''}{last}, or another number of ranks"
            )

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows `step` steps: every train.eval.steps, and after the last."""
        table = self.train.eval
        return table is not None and (step == self.total_steps or step % table.steps == 0)

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out packs to evaluate."""
        return self.train.eval is not None and "eval" in self.prep.facts

    @property
    def identity(self) -> str:
        """The same for every run that computes the same numbers."""
        return identity("train", FORMAT_VERSION, self.prep.identity, self.settings)

    @property
    def shards(self) -> Path:
        return self.pipeline.home / "prep"

    @property
    def home(self) -> Path:
        return self.pipeline.home / "train"

    @property
    def checkpoints(self) -> Path:
        return self.home / "checkpoints"

    def own_checkpoints(self) -> list[Path]:
        """Complete checkpoints of this very run, oldest first. One whose manifest is damaged is passed over.

        Raises:
            ConfigError: if the directory holds checkpoints of other settings or data, naming what differs.
        """
        own = []
        for folder in finished(self.checkpoints):
            try:
                manifest = Manifest.read(folder)
            except CheckError as error:
                log.warning("%s", error)
                continue
            assert manifest is not None
            self.check_own(folder, manifest)
            own.append(folder)
        return own

    def check_own(self, folder: Path, manifest: Manifest) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            ConfigError: saying what differs.
        """
        if manifest.facts.get("run") != self.identity:
            raise ConfigError(
                f"{folder}: from a run with other settings ({self._difference(manifest)}); "
                "train with --no-resume to start over, or under another run.name"
            )

    def is_finished(self) -> bool:
        """Whether the last step's checkpoint is there, with all of its files in their sizes."""
        own = self.own_checkpoints()
        manifest = Manifest.read(own[-1]) if own else None
        if manifest is None or manifest.facts["step"] < self.total_steps:
            return False
        try:
            manifest.verify(own[-1], hashes=False)
        except CheckError:
            return False  # what is damaged is told of, and trained again, when the run resumes
        return True

    def say_finished(self) -> None:
        """Say that there is nothing to do."""
        log.info("train: nothing to do, %s has all %d steps", self.checkpoints, self.total_steps)

    def _difference(self, other: Manifest) -> str:
        if other.format_version != FORMAT_VERSION:
            return f"checkpoint format {other.format_version}, not {FORMAT_VERSION}"
        if (there := other.parents.get("prep")) != self.prep.identity:
            return f"other data: prep output {str(there)[:12]} there, {self.prep.identity[:12]} here"
        found = _leaves({**self.settings, "origins": self.pipeline.origins})
        former = _leaves({**other.facts["settings"], "origins": other.facts.get("origins", {})})
        keys = sorted(found.keys() | former.keys())
        pairs = {key: (former.get(key, _UNKNOWN), found.get(key, _UNKNOWN)) for key in keys}
        changed = [_changed(key, *pair) for key, pair in pairs.items() if pair[0] != pair[1]]
        return ", ".join(changed) or "as another version of packtrain counts them"


_UNKNOWN = "not known"
"""What is said of a key that a version has not."""


def _changed(key: str, there: object, here: object) -> str:
    what = {"model.name_or_path": "another model: ", "model.scratch.vocab_size": "another vocabulary: "}.get(key, "")
    return f"{what}{key}: {_short(there)} there, {_short(here)} here"


def _short(value: object) -> str:
    is_digest = isinstance(value, str) and len(value) == 64
    return str(value)[:12] if is_digest else str(value)


def check_evaluation(pipeline: Pipeline, train: Train, prep: Manifest) -> None:
    """Refuse to evaluate on what prep did not hold out."""
    if train.eval is not None and not train.eval.prompts and "eval" not in prep.facts:
        raise ConfigError(
            f"{pipeline.cite('train.eval.steps')}: prep held nothing out to evaluate on; set prep.eval.fraction "
            "and run `packtrain prep` again, give train.eval.prompts, or remove [train.eval]"
        )


def total_steps(train: Train, packs: int) -> int:
    """Optimizer steps of a run over so many packs an epoch.

    Raises:
        ConfigError: if they do not fill one.
    """
    # Epochs follow each other without a border, so only the run's very end can leave packs over; taking the floor
    # means that no pack is seen more often than max_epochs.
    if train.max_steps and packs:
        return train.max_steps
    steps = train.max_epochs * packs // train.global_batch_size
    if steps == 0:
        raise ConfigError(
            f"train.global_batch_size = {train.global_batch_size}: {train.max_epochs} epochs of {packs} packs do not "
            "fill one optimizer step; use a smaller global_batch_size, more max_epochs, or set max_steps"
        )
    return steps


def packs_left(pipeline: Pipeline, packs: int, steps: int) -> str:
    """What to say where the last full step leaves more than a quarter of the packs untrained; empty where it does not.

    Args:
        packs: of an epoch.
    """
    train = pipeline.train
    assert train is not None
    every = packs * train.max_epochs
    left = every - steps * train.global_batch_size
    if train.max_steps or left * 4 <= every:
        return ""
    return (
        f"{pipeline.cite('train.global_batch_size')}: {every:,} packs give {steps:,} step{'s' if steps > 1 else ''}, "
        f"and the last {left:,} packs ({left / every:.0%}) are trained in none; lower it, or raise train.max_epochs"
    )


def _settings(pipeline: Pipeline, train: Train) -> Json:
    model = pipeline.model.model_dump(mode="json", exclude=COST_ONLY["model"] | _WHERE)
    if pipeline.model.name_or_path is not None:
        model["name_or_path"] = _weights_fingerprint(pipeline)
        if pipeline.model.trust_remote_code:
            model["code"] = code_digest(pipeline.model.name_or_path)
    table = train.model_dump(mode="json", exclude=COST_ONLY["train"] | {"load_from"})
    if train.shuffle_seed is None:  # runs begun before there was such a key go on
        del table["shuffle_seed"]
    if train.load_from is not None:
        table["load_from"] = checkpoint_identity(train.load_from, pipeline)
    if extra := _without(train.deepspeed.extra, DEEPSPEED_COST_ONLY):
        table["deepspeed"] = {"extra": extra}
    tokenizer = {"pad_vocab_multiple": pipeline.tokenizer.pad_vocab_multiple}
    return {"seed": pipeline.run.seed, "model": model, "tokenizer": tokenizer, "train": table}


def checkpoint_identity(folder: Path, pipeline: Pipeline) -> str:
    """What train.load_from starts from; where a checkpoint lies is no part of it.

    Raises:
        ConfigError: if there is no finished checkpoint, or it is in the directory of this very run.
    """
    if folder.resolve().is_relative_to((pipeline.home / "train").resolve()):
        raise ConfigError(
            f"{pipeline.cite('train.load_from')}: in the directory of this very run, which removes its checkpoints "
            "when it starts over, and old ones; choose another run.name"
        )
    manifest = Manifest.read(folder)
    if manifest is None or manifest.kind != "checkpoint":
        remedy = (
            "name a model directory in model.name_or_path"
            if (folder / "config.json").is_file()
            else "name a step-* directory that a run has finished"
        )
        raise ConfigError(f"{pipeline.cite('train.load_from')}: not a finished checkpoint; {remedy}")
    return manifest.identity


def _weights_fingerprint(pipeline: Pipeline) -> str:
    # Where a model lies is no part of what it is. Its weights go in by size: hashing them would cost more than a
    # start should. Hubs' caches name each by its digest, or else the revision is what tells it.
    folder, origin = pipeline.model.name_or_path, pipeline.origins.get("model")
    assert folder is not None
    config = folder / "config.json"
    if not config.is_file():
        raise DataError(f"model.name_or_path = {folder}: no config.json there; name a model directory")
    digest = hashlib.sha256(digest_file(config).encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        stored = path.resolve()
        told = stored.name if stored.parent.name == "blobs" else origin["revision"] if origin else ""
        digest.update(f"{path.name} {path.stat().st_size} {told}".strip().encode() + b"\n")
    return digest.hexdigest()


def _without(table: Json, keys: set[str]) -> Json:
    """A table without some keys on all its levels, and without tables that are empty then."""
    if not isinstance(table, dict):
        return table
    kept = {key: _without(value, keys) for key, value in table.items() if key not in keys}
    return {key: value for key, value in kept.items() if value != {}}


def _leaves(value: Json, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, child in value.items()
        for name, leaf in _leaves(child, f"{prefix}.{key}".strip(".")).items()
    }
