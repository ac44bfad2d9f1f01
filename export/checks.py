"""The checks of an export: as it is written, and again at any time later."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from export.hf import Model
from export.job import Job
from export.merge import check_base
from export.plan import Plan
from export.safetensors_stream import Digests
from export.source import open_source
from pipelines.artifacts import Json, Manifest, canonical_json, shared, write_atomic
from pipelines.errors import CheckError, DataError
from pipelines.schema import Pipeline

log = logging.getLogger(__name__)

RECORD = "run.json"
"""Beside the targets: which pipeline wrote them. A path is no part of an export's identity."""


def check_target(job: Job, target: str, model: Model, folder: Path, written: Digests | None = None) -> dict[str, Json]:
    """Compare what is in a target's directory with the checkpoint; returns what was compared.

    Args:
        model: what it was written of.
        written: digests of files as they were computed; what is in others is computed again.
    Raises:
        CheckError: at the first difference, naming it.
    """
    from export.turbomind.hf_direct import check_ready
    from export.turbomind.verify import verify_turbomind
    from export.verify import verify_adapter, verify_hf

    table = job.pipeline.export.verify
    if target == "hf":
        return dict(verify_hf(model, folder, table, written))
    if target == "adapter":
        assert job.plan.base is not None  # Plan.of refuses the target without
        return dict(verify_adapter(model, job.plan.base, folder, table))
    turbomind = job.pipeline.export.turbomind
    if turbomind.mode == "hf_direct":
        return check_ready(model, job.plan.home / "hf", turbomind)
    return dict(verify_turbomind(model, folder, table))


def check_again(pipeline: Pipeline) -> dict[str, Json]:
    """Check every target of a finished export again, from the checkpoint that it was made of.

    Returns:
        What was compared, by target.
    Raises:
        DataError: if there is no finished export.
        CheckError: at the first difference: of a digest, a number, a logit, a prompt, or of the settings.
    """
    home = pipeline.home / "export"
    manifest = Manifest.read(home)
    if manifest is None:
        raise DataError(f"{home}: no finished export; run `packtrain export` with this file first")
    with shared(home):
        manifest.verify(home)
        plan = _plan(pipeline, manifest)
        job = Job(pipeline, plan, open_source(plan.checkpoint))
        if plan.base is not None:
            check_base(job.checkpoint, plan.base)
        job.checkpoint.verify()
        found: dict[str, Json] = {}
        for target in plan.targets:
            found[target] = check_target(job, target, job.written(target), home / target)
            log.info("export: %s is as written, and as the checkpoint", home / target)
    return found


def record(home: Path, file: Path, overrides: Sequence[str]) -> None:
    """Note which pipeline file wrote an export, for whoever has the export alone."""
    content = canonical_json({"pipeline": str(file.resolve()), "set": list(overrides)})
    with suppress(OSError):  # an export that was there already may lie where nothing can be written
        write_atomic(home / RECORD, content)


def recorded(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The pipeline file and the overrides that wrote an export, given its directory or that of a target.

    Raises:
        DataError: if that is not known.
    """
    for home in (folder, folder.parent):
        try:
            content = json.loads((home / RECORD).read_bytes())
            return Path(content["pipeline"]), tuple(content["set"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise DataError(f"{folder}: holds no {RECORD} that names the pipeline it was written with; name that file instead")


def summary(found: Mapping[str, Json]) -> str:
    """What was compared, for a person."""
    return "\n".join(f"{target:10} {json.dumps(compared, sort_keys=True)}" for target, compared in found.items())


def _plan(pipeline: Pipeline, manifest: Manifest) -> Plan:
    plan = Plan.of(pipeline)
    exported = manifest.parents["checkpoint"]
    if plan.parent != exported and pipeline.export.checkpoint in ("latest", "best"):
        # A newer checkpoint may be there by now: the one that was exported counts.
        there = pipeline.export.model_copy(update={"checkpoint": manifest.facts["step"]})
        plan = Plan.of(pipeline.model_copy(update={"export": there}))
    if plan.parent != exported:
        raise CheckError(
            f"{plan.home}: was made from checkpoint {exported[:12]}, this pipeline's is {plan.parent[:12]}; run "
            "`packtrain export` with it"
        )
    # Other settings and versions of libraries show in what is compared, or do not matter.
    if (written := set(manifest.facts["verified"])) != set(plan.targets):
        raise CheckError(
            f"{plan.home}: holds {', '.join(sorted(written))}, this pipeline's targets are "
            f"{', '.join(sorted(plan.targets))}; run `packtrain export` with it"
        )
    return plan
