"""`packtrain verify`: walk export -> checkpoint -> prep -> inputs by digest."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.artifacts import MANIFEST, Manifest, digest_file
from pipelines.errors import CheckError, DataError
from pipelines.progress import progress_bar


@dataclass(frozen=True)
class Verified:
    """One artefact whose files are as its manifest says, and which of its parents was found."""

    path: Path
    kind: str
    identity: str
    files: int
    parents: dict[str, str]
    """By kind: the parent's directory, or `not here`."""


def verify(path: Path) -> list[Verified]:
    """Check every artefact at or below `path` and the artefacts and inputs it was made from.

    Raises:
        DataError: if there is no artefact.
        CheckError: at the first file or parent that differs.
    """
    found = list(artefacts(path))
    if not found:
        raise DataError(f"{path}: no {MANIFEST} here or below; name a run, a stage's output or a checkpoint")
    seen: dict[Path, Verified] = {}
    for folder in found:
        _verify(folder.resolve(), seen)
    return list(seen.values())


def artefacts(path: Path) -> Iterator[Path]:
    """The finished artefacts at or below a place; none within another."""
    if (path / MANIFEST).is_file():
        yield path
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from artefacts(child)


def find_artefact(folder: Path, kind: str, identity: str) -> Path | None:
    """The artefact of that kind and identity in the run that `folder` belongs to."""
    for home in folder.parents[:4]:
        candidates = [home / "prep"] if kind == "prep" else sorted((home / "train" / "checkpoints").glob("step-*"))
        for candidate in candidates:
            manifest = Manifest.read(candidate)
            if manifest and manifest.kind == kind and manifest.identity == identity:
                return candidate
    return None


def _verify(folder: Path, seen: dict[Path, Verified]) -> None:
    if folder in seen:
        return
    manifest = Manifest.read(folder)
    assert manifest is not None
    manifest.verify(folder)
    parents: dict[str, str] = {}
    for kind, identity in sorted(manifest.parents.items()):
        parent = find_artefact(folder, kind, identity)
        parents[kind] = str(parent) if parent else "not here"
        if parent:
            _verify(parent.resolve(), seen)
        elif kind == "prep":
            _refuse_another_prep(folder, identity)
    if manifest.kind == "prep":
        parents["inputs"] = _verify_inputs(folder, manifest)
    seen[folder] = Verified(folder, manifest.kind, manifest.identity, len(manifest.files), parents)


def _refuse_another_prep(folder: Path, identity: str) -> None:
    """Refuse a checkpoint beside shards that it was not trained on: a run has those of one prep alone."""
    for home in folder.parents[:4]:
        found = Manifest.read(home / "prep")
        if found is not None and found.kind == "prep":
            raise CheckError(
                f"{folder}: was made from the shards {identity[:12]}, and those in {home / 'prep'} are "
                f"{found.identity[:12]}: they were prepared again since, or are another run's; restore them, or train "
                "again"
            )


def _verify_inputs(folder: Path, manifest: Manifest) -> str:
    # Where the inputs were is in run.json, since a path is no part of what they are.
    try:
        places = [Path(one["where"]) for one in json.loads((folder / "run.json").read_bytes())["inputs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "places unknown (no run.json)"
    if len(places) != len(manifest.facts["files"]):
        return "places unknown (run.json is of another prep)"
    missing = 0
    with progress_bar("reading inputs", sum(record["size"] for record in manifest.facts["files"]), "B") as progress:
        for record, where in zip(manifest.facts["files"], places, strict=True):
            if not where.is_file():
                missing += 1
            elif digest_file(where) != record["sha256"]:
                raise CheckError(f"{where}: changed since prep read it; run prep again, or restore the file")
            progress(record["size"])
    return f"{len(places) - missing} unchanged, {missing} not here"
