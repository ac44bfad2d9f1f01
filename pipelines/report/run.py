"""A run as its files tell it: manifests, metrics, and the records of when and where."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.artifacts import Json, Manifest
from pipelines.checkpoints import finished
from pipelines.errors import DataError
from pipelines.report.lengths import Lengths
from pipelines.report.metrics import Metrics

STAGES = ("prep", "train", "export")


@dataclass(frozen=True)
class Artefact:
    """A finished artefact of the run."""

    path: str
    """Relative to the run's directory."""
    manifest: Manifest
    missing: tuple[str, ...]
    """Its files that are not there, or have another size than when they were written."""

    @property
    def facts(self) -> Mapping[str, Json]:
        return self.manifest.facts


@dataclass(frozen=True)
class Run:
    """What a run's directory holds. Reading it changes nothing there, and the run may be going on."""

    folder: Path
    model: str = ""
    """Name of the model, where it is known from elsewhere: manifests tell what it holds, not where it was."""

    @classmethod
    def open(cls, folder: Path, model: str = "") -> "Run":
        """The run of a directory.

        Raises:
            DataError: if no stage has written there.
        """
        if not any(_begun(folder / stage) for stage in STAGES):
            parent = folder.resolve().parent
            inside = folder.name in STAGES or (parent.parent.name == "train" and parent.name == "checkpoints")
            hint = "name the run's directory above it" if inside else "run `packtrain prep FILE` first"
            raise DataError(f"{folder}: no run here, none of {', '.join(f'{stage}/' for stage in STAGES)}; {hint}")
        return cls(folder, model)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def prep(self) -> Artefact | None:
        return self._artefact("prep")

    @cached_property
    def checkpoints(self) -> list[Artefact]:
        """Complete ones, oldest first."""
        paths = finished(self.folder / "train" / "checkpoints")
        found = [self._artefact(f"train/checkpoints/{path.name}") for path in paths]
        return [one for one in found if one is not None]  # one may have been removed for a newer one since

    @cached_property
    def model_config(self) -> Mapping[str, Json]:
        """config.json of the model as the newest checkpoint has it; empty without one."""
        found = _json(self.folder / self.checkpoints[-1].path / "model" / "config.json") if self.checkpoints else None
        return found if isinstance(found, dict) else {}

    @cached_property
    def export(self) -> Artefact | None:
        """All targets, where the stage has come to its end."""
        return self._artefact("export")

    @cached_property
    def targets(self) -> dict[str, Artefact]:
        """What was exported, by target."""
        home = self.folder / "export"
        names = sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
        found = {name: self._artefact(f"export/{name}") for name in names if not name.startswith(".")}
        return {name: one for name, one in found.items() if one is not None}

    @property
    def artefacts(self) -> list[Artefact]:
        """Export and its targets, checkpoints from the newest on, prep."""
        exports = [*([self.export] if self.export else []), *self.targets.values()]
        return [*exports, *reversed(self.checkpoints), *([self.prep] if self.prep else [])]

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics.read(self.folder / "train" / "metrics.jsonl")

    @cached_property
    def lengths(self) -> Lengths:
        return Lengths.of(self.folder / "prep", self.prep.manifest) if self.prep else Lengths()

    @cached_property
    def answers(self) -> Json:
        """What the exported model answered in its evaluation; null where it was asked nothing."""
        return _json(self.folder / "export" / "eval.json")

    def record(self, stage: str) -> Mapping[str, Json]:
        """run.json of a stage: when and where it ran. Empty where there is none."""
        found = _json(self.folder / stage / "run.json")
        return found if isinstance(found, dict) else {}

    def has(self, stage: str) -> bool:
        """Whether a stage has begun."""
        return _begun(self.folder / stage)

    def _artefact(self, path: str) -> Artefact | None:
        folder = self.folder / path
        manifest = Manifest.read(folder)
        if manifest is None:
            return None
        missing = tuple(record.path for record in manifest.files if _size(folder / record.path) != record.size)
        return Artefact(path, manifest, missing)


def _begun(folder: Path) -> bool:
    """Whether anything is there but the lock of a command that was refused."""
    return folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())


def _json(path: Path) -> Json:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
