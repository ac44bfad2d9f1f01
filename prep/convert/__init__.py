"""Finished packs in the forms that other trainers read, made from the shards alone.

Every form has a folder for each part: `train` and, where samples are held out, `eval`.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.artifacts import FileRecord, Json, Manifest, commit_directory, exclusive, identity, sync_file
from pipelines.errors import ConfigError, MachineError
from pipelines.failing_disk import storage_error
from pipelines.shards import ShardReader
from prep.convert import ftdp, hf_dataset, xtuner_preset
from prep.convert.part import Part, parts_of

log = logging.getLogger(__name__)

Form = Literal["hf", "ftdp", "xtuner"]


@dataclass(frozen=True)
class Writer:
    """How one form is written."""

    version: int
    """Raised whenever the same shards give other bytes."""
    write: Callable[[Mapping[str, Part], Path], dict[str, Json]]
    """Writes all parts below a folder and returns what each holds, in numbers."""
    place: Callable[[Path, Path], None] = lambda _folder, _final: None
    """Writes into the folder what has to name the place where it finally lies, which is no part of the artefact."""


FORMS: Mapping[Form, Writer] = {
    "hf": Writer(hf_dataset.VERSION, hf_dataset.write),
    "ftdp": Writer(ftdp.VERSION, ftdp.write),
    "xtuner": Writer(xtuner_preset.VERSION, xtuner_preset.write, xtuner_preset.place),
}


def convert(folder: Path, out: Path, *, form: Form) -> Json:
    """Write the packs of a prep directory in another form; does nothing when `out` is current.

    Memory holds some packs at a time, and `out` appears by rename, with a manifest that names the shards it is of.

    Args:
        folder: a finished prep directory.
        out: new, empty, or what an earlier call wrote.
    Returns:
        The manifest's facts.
    Raises:
        DataError: if `folder` holds no finished shards.
        CheckError: if they are damaged.
        ConfigError: if `out` holds anything else.
        MachineError: if `out` cannot be written.
    """
    manifest = ShardReader(folder).manifest
    writer = FORMS[form]
    stage = identity("converted", form, writer.version, manifest.identity)
    out = out.absolute()
    _ours(out, folder)
    work = out.with_name(f".{out.name}.partial")
    _make(work)
    with exclusive(work):
        try:
            done = Manifest.read(out)
            if done is not None and done.identity == stage and _whole(done, out):
                writer.place(out, out)
                log.info("prep convert: nothing to do, %s is current", out)
                return dict(done.facts)
            seen = manifest.stamps(folder)
            manifest.verify(folder)
            parts = parts_of(folder, seen)
            facts = _write(parts, work / "new", out, form=form, stage=stage)
            for part in parts.values():
                part.reader.refuse_changed()
            commit_directory(work / "new", out)
            return facts
        except OSError as error:
            if found := storage_error(error, out):
                raise found from error
            raise MachineError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def summary(facts: Mapping[str, Any]) -> str:
    """What was converted, a line for each part."""
    told = ("packs", "segments", "tokens", "targets")
    return "\n".join(
        f"{name}: "
        + ", ".join(f"{counts[what]:,} {what.replace('_', ' ')}" for what in (*told, *sorted(counts.keys() - {*told})))
        for name, counts in sorted(facts["parts"].items(), reverse=True)
    )


def _ours(out: Path, folder: Path) -> None:
    """Refuse a place that holds what no earlier call wrote."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--out {out}: lies within the shards' own directory; choose one outside of {folder}")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; choose a directory")
    done = Manifest.read(out)
    if done is not None and done.kind != "converted":
        raise ConfigError(f"--out {out}: holds another artefact ({done.kind}); choose a directory of its own")
    if done is None and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: holds files that are not from `packtrain prep convert`; choose another")


def _make(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{work}: cannot be made ({error.strerror}); choose another --out") from error


def _whole(done: Manifest, out: Path) -> bool:
    files = ((out / record.path, record.size) for record in done.files)
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def _write(parts: Mapping[str, Part], new: Path, out: Path, *, form: Form, stage: str) -> Json:
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    manifest = parts["train"].reader.manifest
    facts = {
        "form": form,
        "parts": FORMS[form].write(parts, new),
        **{name: manifest.facts[name] for name in ("capacity", "vocab_size", "tokenizer")},
    }
    records = [FileRecord.of(new, path) for path in sorted(new.rglob("*")) if path.is_file()]
    FORMS[form].place(new, out)
    for path in new.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                sync_file(file.fileno())
    records.sort(key=lambda record: record.path)
    Manifest("converted", FORMS[form].version, stage, {"prep": manifest.identity}, records, facts).write(new)
    return facts
