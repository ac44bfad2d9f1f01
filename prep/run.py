"""The prep stage: the pipeline's sources into shards that the trainer streams."""

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipelines.artifacts import MANIFEST, FileRecord, Json, Manifest, canonical_json, exclusive, write_atomic
from pipelines.errors import DataError
from pipelines.failing_disk import storing
from pipelines.progress import progress_bar
from pipelines.schema import Pipeline
from pipelines.shards import FORMAT_VERSION, PREPARED_BYTES, Attention
from prep import lengths
from prep.assemble import ShardFacts, assemble, forget_digests
from prep.executors import executor
from prep.executors.slurm import NotTokenized
from prep.frozen import freeze
from prep.inputs import Input, source_digests, unchanged
from prep.job import Job, input_facts, open_job, places, settings, versions
from prep.plan import Part, Plan, alternatives, make_plan
from prep.plan import facts as plan_facts
from prep.rendering import exports_chat
from prep.tokenize import Tokenized, missing, tokenize
from prep.tokenizer import Tokenizer
from prep.tokenizer_files import write_tokenizer_files

log = logging.getLogger(__name__)


def run(pipeline: Pipeline, *, workers: int | None = None) -> Json:
    """Turn the pipeline's sources into shards below work_dir/name/prep; does nothing when they are current.

    Args:
        workers: processes, instead of prep.workers; never changes a byte.
    Returns:
        The manifest's facts.
    Raises:
        PacktrainError: for anything a user can cause; what was finished before stays usable.
    """
    began = time.time()
    workers = workers or processes(pipeline)
    with exclusive(pipeline.home / "prep"):
        job = open_job(pipeline, workers=workers)
        if done := job.finished():
            shutil.rmtree(job.folder / ".partial", ignore_errors=True)  # of a run that was killed as it ended
            log.info("prep: nothing to do, %s is current", job.folder)
            return dict(done.facts)
        with storing(job.folder, "prep", lambda: PREPARED_BYTES * sum(one.size for one in job.inputs)):
            return _make(job, workers=workers, began=began)


def dry_run(pipeline: Pipeline, *, workers: int | None = None) -> Json:
    """The plan of the packs in numbers, without writing shards.

    Lengths that the last run left are taken as they are; otherwise the samples are tokenized, which the next run need
    not do again.
    """
    workers = workers or processes(pipeline)
    with exclusive(pipeline.home / "prep"):
        job = open_job(pipeline, workers=workers)
        known = lengths.kept(job)
        if known is None:
            job.begin()
        tokenized = known or _tokenized(job, workers=workers)
        plan = make_plan(tokenized.samples, job.inputs, pipeline)
        return {
            **plan_facts(plan),
            "strategies": alternatives(plan, pipeline.prep.pack),
            "tokenized": known is None,
        }


def processes(pipeline: Pipeline) -> int:
    """Processes to work with on this machine."""
    return pipeline.prep.workers or len(os.sched_getaffinity(0))


def _make(job: Job, *, workers: int, began: float) -> Json:
    job.begin()
    tokenized = _tokenized(job, workers=workers)
    plan = make_plan(tokenized.samples, job.inputs, job.pipeline)
    train = _write(job, plan.train, job.partial, workers=workers)
    held_out = _write(job, plan.held_out, job.partial / "eval", workers=workers) if plan.held_out else []
    write_tokenizer_files(
        job.tokenizer, job.pipeline.template, job.partial / "tokenizer", chat=exports_chat(job.pipeline)
    )
    facts = _facts(job, tokenized, plan, train, held_out)
    _write_rejects(tokenized.rejects, job.partial)
    lengths.keep(job.partial, tokenized, job)
    _finish(job, facts, [*train, *_below("eval", held_out)], seconds=time.time() - began, workers=workers)
    return facts


def _tokenized(job: Job, *, workers: int) -> Tokenized:
    chunks, name = freeze(job), job.pipeline.prep.executor
    if name == "slurm" and (left := missing(job.chunks, len(chunks))):
        raise NotTokenized(len(left), len(chunks))
    tokenized = tokenize(chunks, job.rules, job.chunks, execute=executor(name, workers=workers))
    unchanged(job.inputs)
    _usable(tokenized, job.pipeline, job.inputs)
    return tokenized


def _write(job: Job, part: Part, folder: Path, *, workers: int) -> list[ShardFacts]:
    shard_tokens = job.pipeline.prep.output.shard_tokens
    writing = assemble(
        part.samples,
        part.sequence,
        part.packing,
        folder,
        vocabulary=job.tokenizer.vocab_size,
        shard_tokens=shard_tokens,
        workers=min(workers, -(-part.packing.tokens // shard_tokens)),
    )
    shards = []
    with progress_bar("writing shards", part.packing.packs, "pack") as progress:
        for shard in writing:
            shards.append(shard)
            progress(shard.packs)
    return shards


def summary(facts: Mapping[str, Any]) -> str:
    """What prep did, in a few lines."""
    lines = [
        f"{facts['samples']:,} samples, {facts['tokens']:,} tokens ({facts['loss_tokens'] / facts['tokens']:.1%} with "
        f"loss) in {facts['packs']:,} packs of {facts['capacity']:,}: {facts['fill']:.2%} full, "
        f"{facts['packs'] - facts['packs_lower_bound']} above the lower bound",
        *(
            f"  {source['name']}: {source['samples']:,} samples, {source['tokens']:,} tokens, "
            f"{source['share']:.2%} of the mix"
            for source in facts["sources"]
        ),
    ]
    if left_out := sum(source["tokens"] for source in facts["sources"]) - facts["tokens"]:
        lines.append(f"  left out: {left_out:,} tokens behind the last full packs, as prep.pack.drop_last asks")
    if held_out := facts.get("eval"):
        lines.append(
            f"  held out: {held_out['samples']:,} samples, {held_out['tokens']:,} tokens in {held_out['packs']:,} packs"
        )
    if facts["rejected"]:
        lines.append(f"  faulty: {facts['rejected']:,} of {facts['records']:,} records, listed in rejects.jsonl")
    if facts["dropped"]:
        lines.append("  dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in facts["dropped"].items()))
    return "\n".join(lines)


def _usable(tokenized: Tokenized, pipeline: Pipeline, inputs: Sequence[Input]) -> None:
    """Refuse data of which too much is faulty, or nothing is left."""
    bad, limit = len(tokenized.rejects), pipeline.prep.max_bad_fraction
    faulty = ""
    if bad:
        first = tokenized.rejects[0]
        faulty = f"the first is {first['source']}/{first['path']}:{first['record'] + 1}: {first['reason']}"
    if bad > limit * tokenized.records:
        raise DataError(
            f"{bad:,} of {tokenized.records:,} records are faulty, above prep.max_bad_fraction = {limit}; {faulty}"
        )
    if not tokenized.samples.lengths.size:
        counts = [f"{count:,} {reason}" for reason, count in sorted(tokenized.dropped.items())]
        why = ", ".join([*counts, f"{bad:,} faulty, of which {faulty}"] if bad else counts)
        raise DataError(
            f"no sample to train on in {len(inputs)} input files"
            + (f"; every record was dropped: {why}" if why else "; they are empty")
        )


def _facts(
    job: Job, tokenized: Tokenized, plan: Plan, train: Sequence[ShardFacts], held_out: Sequence[ShardFacts]
) -> dict[str, Json]:
    packing, table = plan.train.packing, job.pipeline.prep.pack
    attention = Attention(table.cross_sample_attention, table.attention_window)
    facts: dict[str, Json] = {
        "samples": int(plan.arrangement.sequence.size),
        "packs_lower_bound": packing.lower_bound,
        "capacity": packing.capacity,
        "attention": asdict(attention),
        **_part_facts(plan.train, train, attention),
        "vocab_size": job.tokenizer.vocab_size,
        "max_token_id": max(shard.max_token_id for shard in (*train, *held_out)),
        "records": tokenized.records,
        "rejected": len(tokenized.rejects),
        "dropped": dict(sorted(tokenized.dropped.items())),
        "sources": [
            {**realised, "sha256": sha256}
            for realised, sha256 in zip(
                plan.arrangement.realised, source_digests(job.inputs, job.pipeline.prep.source), strict=True
            )
        ],
        "files": list(map(input_facts, job.inputs)),
        "tokenizer": job.tokenizer.digest,
        **_added_tokens(job.tokenizer),
        **({"origins": job.pipeline.origins} if job.pipeline.origins else {}),
        "settings": settings(job.pipeline),
        "versions": versions(),
        "tokenizer_backend": dict(tokenized.backend),
    }
    if plan.held_out:
        facts["eval"] = {"samples": int(plan.held_out.sequence.size), **_part_facts(plan.held_out, held_out, attention)}
    return facts


def _added_tokens(tokenizer: Tokenizer) -> dict[str, Json]:
    """For the trainer, which gives each a row: the new tokens with their ids, and the size that was there before."""
    if not tokenizer.added:
        return {}
    return {
        "added_tokens": dict(zip(tokenizer.added, tokenizer.added_ids, strict=True)),
        "own_vocab_size": tokenizer.own_size,
    }


def _part_facts(part: Part, shards: Sequence[ShardFacts], attention: Attention) -> dict[str, Json]:
    packing = part.packing
    return {
        "tokens": packing.tokens,
        "loss_tokens": sum(shard.loss_tokens for shard in shards),
        "packs": packing.packs,
        "fill": round(packing.fill, 6),
        "segments": int(packing.length.size),
        "longest_segment": packing.longest_document(attention),
        "packs_per_shard": [shard.packs for shard in shards],
    }


def _below(folder: str, shards: Sequence[ShardFacts]) -> list[ShardFacts]:
    """The same shards, as seen from the folder above."""
    return [replace(one, record=replace(one.record, path=f"{folder}/{one.record.path}")) for one in shards]


def _write_rejects(rejects: Sequence[Mapping[str, Any]], folder: Path) -> None:
    lines = (json.dumps(reject, sort_keys=True, ensure_ascii=False) + "\n" for reject in rejects)
    write_atomic(folder / "rejects.jsonl", "".join(lines).encode("utf-8"))


def _finish(job: Job, facts: dict[str, Json], shards: Sequence[ShardFacts], **told: Json) -> None:
    """Move the finished parts into place; the manifest goes first away and last back, so a kill leaves none."""
    folder, partial = job.folder, job.partial
    forget_digests(partial, partial / "eval")
    (folder / MANIFEST).unlink(missing_ok=True)
    for part in ("shards", "eval", "tokenizer"):
        shutil.rmtree(folder / part, ignore_errors=True)
        if (partial / part).exists():
            (partial / part).rename(folder / part)
    for file in ("rejects.jsonl", lengths.FILE):
        (partial / file).replace(folder / file)
    host = {"host": platform.node(), "python": platform.python_version(), "finished": time.time()}
    origins = {"origins": job.pipeline.origins} if job.pipeline.origins else {}
    write_atomic(folder / "run.json", canonical_json({**host, **told, **origins, "inputs": places(job.inputs)}))
    tokenizer = [FileRecord.of(folder, path) for path in sorted((folder / "tokenizer").iterdir())]
    rejects = FileRecord.of(folder, folder / "rejects.jsonl")
    records = [rejects, *(shard.record for shard in shards), *tokenizer]
    Manifest("prep", FORMAT_VERSION, job.packs, {}, records, facts).write(folder)
    shutil.rmtree(folder / ".partial")
