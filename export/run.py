"""The export stage: a checkpoint into the forms its users load, each checked by reading it back."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.adapter import write_adapter
from export.checks import check_target
from export.destination import refuse_foreign_files, staged
from export.hand_off import hand_off, names
from export.hf import CARD, Model, write_card, write_hf
from export.job import Job
from export.merge import check_base
from export.plan import FORMAT_VERSION, Plan, model_name
from export.safetensors_stream import Digests, records_of
from export.source import Source
from export.sources.foreign import Foreign
from export.summary import EVALUATION, facts, summary
from export.turbomind.folder import refuse_turbomind, write_turbomind
from export.turbomind.geometry import Unservable, architecture_of
from export.turbomind.releases import served_by
from export.turbomind.serve import COMMAND
from pipelines.artifacts import MANIFEST, FileRecord, Json, Manifest, canonical_json, exclusive, write_atomic
from pipelines.errors import CheckError, ConfigError, MachineError
from pipelines.failing_disk import storing
from pipelines.schema import Pipeline

if TYPE_CHECKING:
    from export.evaluate import Question

__all__ = ["facts", "run", "summary"]

log = logging.getLogger(__name__)


def run(pipeline: Pipeline) -> None:
    """Export the chosen checkpoint to every target, and ask the result the evaluation's questions.

    Raises:
        DataError: if there is no checkpoint, or the evaluation file is wrong.
        ConfigError: if a target cannot hold this model, or would replace files that no export wrote.
        CheckError: if the checkpoint is damaged, what was written differs from it, or too few answers are right.
        MachineError: if nothing can be written, or a library is missing.
    """
    plan = Plan.of(pipeline)
    if plan.is_done():
        log.info("export: nothing to do, %s is current for %s", plan.home, plan.checkpoint.name)
        return
    job = Job(pipeline, plan, plan.source)
    with exclusive(plan.home), storing(plan.home, "an export", lambda: _nbytes(job)):
        job.refuse_base()
        if plan.base is not None:
            check_base(job.checkpoint, plan.base)
        _refuse(job)
        questions = _questions(pipeline)
        job.checkpoint.verify()
        (plan.home / MANIFEST).unlink(missing_ok=True)
        for target in plan.targets:
            if not plan.is_done(target) or _is_damaged(plan.home / target):
                _write(job, target)
        evaluation = _evaluate(pipeline, plan, questions)
        _complete(plan, job.checkpoint, evaluation, _hand_off(job))


def _refuse(job: Job) -> None:
    """What can be known to fail, before any work."""
    pipeline, plan, checkpoint = job.pipeline, job.plan, job.checkpoint
    if next((checkpoint.model).rglob("*.py"), None):
        _refuse_code(pipeline)
    if isinstance(checkpoint, Foreign) and checkpoint.is_packed and list(plan.targets) != ["turbomind"]:
        raise ConfigError(
            f"{pipeline.cite('export.targets')}: {checkpoint.folder} holds weights in 4 bits, which are passed on as "
            'TurboMind weights alone; set it to ["turbomind"] with export.turbomind.model_format = "awq"'
        )
    for target in plan.targets:
        refuse_foreign_files(plan.home / target)
    if "hf" in plan.targets and pipeline.export.hf.layout == "original":
        where = pipeline.cite("export.hf.layout")
        if pipeline.export.eval:
            raise ConfigError(f"{where}: export.eval asks the model with Transformers; remove the table, or use auto")
        try:
            job.model("hf").as_it_came()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    if pipeline.export.eval and not job.model("hf").chats:
        where = pipeline.cite("export.eval")
        raise ConfigError(f"{where}: the model has no chat template to ask it with; remove the table")
    if "turbomind" in plan.targets:
        table = pipeline.export.turbomind
        try:
            refuse_turbomind(job.model("turbomind"), plan.dtype, table, model_name(pipeline))
        except Unservable as error:
            raise ConfigError(f"{pipeline.cite(error.key)}: {error}") from error


def _refuse_code(pipeline: Pipeline) -> None:
    """An export is checked by loading it, and asked with the classes it has then."""
    if not pipeline.model.trust_remote_code:
        raise ConfigError(
            f"{pipeline.cite('model.trust_remote_code')}: the checkpoint is of a model with code of its own, and an "
            "export is loaded to check it; set it to true"
        )
    if pipeline.export.eval is not None:
        raise ConfigError(
            f"{pipeline.cite('export.eval')}: the model has code of its own, which is run to check an export alone; "
            "remove the table"
        )


def _questions(pipeline: Pipeline) -> "list[Question]":
    if pipeline.export.eval is None:
        return []
    from export.evaluate import read_questions

    return read_questions(pipeline.export.eval.file)


def _write(job: Job, target: str) -> None:
    pipeline, plan, checkpoint = job.pipeline, job.plan, job.checkpoint
    table, model = pipeline.export, job.written(target)
    direct = target == "turbomind" and table.turbomind.mode == "hf_direct"  # which holds no weights
    with staged(plan.home / target, 0 if direct else model.weights.nbytes) as folder:
        written: Digests = {}
        if target == "hf":
            written = write_hf(model, folder, table.hf.max_shard_size)
        elif target == "adapter":
            assert plan.base is not None  # Plan.of refuses the target without
            write_adapter(model, plan.base, folder)
        else:
            write_turbomind(model, folder, table.turbomind, model_name(pipeline))
        vanished = model.weights.vanished  # before the checks read numbers again
        about: dict[str, Json] = {"verified": check_target(job, target, model, folder, written)}
        if job.was_in_four_bits and target == _measured(plan):
            about["merging"] = _measure(job, model, folder)
        about |= {
            "dtype": model.weights.dtype,
            "parameters": model.weights.parameters,
            "rounded_to_zero": vanished,
            "step": checkpoint.step,
            "versions": dict(plan.versions),
        }
        if target == "turbomind":
            about["serving"] = served_by(table.turbomind.mode, architecture_of(model.config))
        if checkpoint.adapter is not None:
            about["base"] = checkpoint.adapter["base"]
        checkpoint.refuse_changed()
        _manifest(target, plan.targets[target], plan, records_of(folder, written), about).write(folder)
    count = f"{model.weights.parameters:,}"
    if not direct:
        log.info("export: %s written, %s parameters in %s, and read back equal", target, count, model.weights.dtype)
    if target == "turbomind":
        served_with = about["serving"]["lmdeploy"]
        log.info("export: serve it with LMDeploy %s: sh %s", served_with, plan.home / target / COMMAND)


def _nbytes(job: Job) -> int:
    """Of the weights of all targets."""
    direct = job.pipeline.export.turbomind.mode == "hf_direct"
    written = [target for target in job.plan.targets if not (direct and target == "turbomind")]
    return sum(job.written(target).weights.nbytes for target in written)


def _is_damaged(folder: Path) -> bool:
    """Whether a target that is there by its sizes has other bytes than were written; it is about to be asked, or told
    of in another manifest."""
    manifest = Manifest.read(folder)
    assert manifest is not None  # its sizes were compared
    try:
        manifest.verify(folder)
    except CheckError as damage:
        log.warning("%s; writing it again", damage)
        return True
    return False


def _measured(plan: Plan) -> str | None:
    """The target that says what merging came to; one says it for all."""
    merged = [target for target in plan.targets if target != "adapter"]
    return "hf" if "hf" in merged else next(iter(merged), None)


def _measure(job: Job, model: Model, folder: Path) -> Json:
    """What merging onto either base comes to, also told by the model card; None where it cannot be known here."""
    from export.merge_report import measure

    try:
        found = measure(job, model, logits=job.pipeline.export.verify.greedy_tokens > 0)
    except MachineError as error:
        if job.pipeline.export.merge_base == "dequantized":
            raise
        log.info("export: how far the merged model is from the trained one is not measured: %s", error)
        return None
    if (folder / CARD).is_file():
        write_card(model, folder, found)
    return found


def _evaluate(pipeline: Pipeline, plan: Plan, questions: "list[Question]") -> Json:
    path = plan.home / EVALUATION
    table = pipeline.export.eval
    if table is None:
        path.unlink(missing_ok=True)  # it would speak of another export
        return None
    from export.evaluate import evaluate, refuse_low_accuracy

    result = evaluate(plan.home / "hf", questions, table.max_new_tokens)
    write_atomic(path, canonical_json(result))
    refuse_low_accuracy(result, table, path)
    return {key: value for key, value in result.items() if key != "answers"}


def _hand_off(job: Job) -> list[str]:
    """Write what evaluates the exports elsewhere, and take away what would evaluate an earlier one."""
    pipeline, plan, table = job.pipeline, job.plan, job.pipeline.export
    written: dict[str, bytes] = {}
    for target in plan.targets:
        if target == "turbomind":
            written |= hand_off(
                job.model(target),
                target,
                name=model_name(pipeline),
                tp=table.turbomind.tp,
                folder="hf" if table.turbomind.mode == "hf_direct" else None,
                session_len=table.turbomind.session_len,
            )
        elif target == "hf" and table.hf.layout != "original":
            written |= hand_off(job.model(target), target, name=pipeline.run.name)
    for name in names():
        if name in written:
            write_atomic(plan.home / name, written[name])
        else:
            (plan.home / name).unlink(missing_ok=True)
    return sorted(written)


def _complete(plan: Plan, checkpoint: Source, evaluation: Json, beside: list[str]) -> None:
    """The manifest over all targets: without it, the next run looks at each of them again."""
    records: list[FileRecord] = []
    verified: dict[str, Json] = {}
    merging: dict[str, Json] = {}
    serving: Json = None
    for target in plan.targets:
        manifest = Manifest.read(plan.home / target)
        assert manifest is not None  # just written, or found current
        verified[target] = manifest.facts["verified"]
        merging[target] = manifest.facts.get("merging")
        serving = manifest.facts.get("serving", serving)
        own = FileRecord.of(plan.home, plan.home / target / MANIFEST)
        within = [replace(record, path=f"{target}/{record.path}") for record in manifest.files]
        records += sorted([own, *within], key=lambda record: record.path)
    if evaluation is not None:
        records.append(FileRecord.of(plan.home, plan.home / EVALUATION))
    records += [FileRecord.of(plan.home, plan.home / name) for name in beside]
    about = {
        "evaluation": evaluation,
        "loss": checkpoint.manifest.facts["loss"],
        "merging": next(filter(None, merging.values()), None),
        "step": checkpoint.step,
        "serving": serving,
        "verified": verified,
        "versions": dict(plan.versions),
    }
    _manifest("export", plan.identity, plan, sorted(records, key=lambda record: record.path), about).write(plan.home)


def _manifest(kind: str, identity: str, plan: Plan, records: list[FileRecord], about: dict[str, Json]) -> Manifest:
    return Manifest(kind, FORMAT_VERSION, identity, {"checkpoint": plan.parent}, records, about)
