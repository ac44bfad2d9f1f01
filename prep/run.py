"""The prep stage: the pipeline's sources into shards that the trainer streams."""

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipelines.artifacts import MANIFEST, FileRecord, Json, Manifest, canonical_json, exclusive, identity, write_atomic
from pipelines.errors import DataError
from pipelines.schema import Pipeline
from pipelines.shards import FORMAT_VERSION
from prep.assemble import ShardFacts, assemble
from prep.chunk import Rules, chunks_of
from prep.inputs import Input, digest, unchanged
from prep.mix import Arrangement, arrange
from prep.order import inputs_in_order
from prep.packing import Packing, pack
from prep.store import Samples
from prep.tokenize import Tokenized, tokenize
from prep.tokenizer import Tokenizer, load_tokenizer
from prep.tokenizer_files import write_tokenizer_files

log = logging.getLogger(__name__)

LIBRARIES = ("jinja2", "orjson", "sentencepiece", "tokenizers")
"""Libraries whose version can change a token; NumPy, numba and Arrow only carry what these decide."""


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
    folder = pipeline.home / "prep"
    workers = workers or pipeline.prep.workers or len(os.sched_getaffinity(0))
    with exclusive(folder):
        tokenizer = load_tokenizer(pipeline.tokenizer_dir)
        inputs = digest(inputs_in_order(pipeline), workers=workers, known=_known_digests(folder))
        stage = identity(
            "prep",
            FORMAT_VERSION,
            _settings(pipeline),
            [_input_facts(one) for one in inputs],
            tokenizer.digest,
            _versions(),
        )
        done = Manifest.read(folder)
        if done is not None and done.identity == stage and _whole(done, folder):
            log.info("prep: nothing to do, %s is current", folder)
            return dict(done.facts)
        partial = _partial(folder, stage)
        rules = rules_of(pipeline, tokenizer)
        tokenized = tokenize(chunks_of(inputs), rules, partial / "chunks", workers=workers)
        unchanged(inputs)
        _usable(tokenized, pipeline, inputs)
        samples = tokenized.samples
        arrangement = arrange(samples, inputs, pipeline.prep, seed=pipeline.run.seed)
        packing = pack(
            samples.lengths[arrangement.sequence], pipeline.prep.pack, _groups(pipeline, samples, arrangement)
        )
        shards = _write_shards(pipeline, samples, arrangement, packing, partial, tokenizer, workers)
        chat = any(source.map != "none" for source in pipeline.prep.source)
        write_tokenizer_files(tokenizer, pipeline.template, partial / "tokenizer", chat=chat)
        facts = _facts(pipeline, inputs, tokenizer, tokenized, arrangement, packing, shards)
        _write_rejects(tokenized.rejects, partial)
        _finish(partial, folder, stage, facts, shards, inputs, seconds=time.time() - began, workers=workers)
        return facts


def _write_shards(
    pipeline: Pipeline,
    samples: Samples,
    arrangement: Arrangement,
    packing: Packing,
    partial: Path,
    tokenizer: Tokenizer,
    workers: int,
) -> list[ShardFacts]:
    writing = assemble(
        samples,
        arrangement.sequence,
        packing,
        partial,
        vocabulary=tokenizer.vocab_size,
        shard_tokens=pipeline.prep.output.shard_tokens,
        workers=min(workers, -(-packing.tokens // pipeline.prep.output.shard_tokens)),
    )
    shards = []
    with tqdm(total=packing.packs, desc="write shards", unit="pack", disable=None, leave=False) as progress:
        for shard in writing:
            shards.append(shard)
            progress.update(shard.packs)
    return shards


def summary(facts: Mapping[str, Any]) -> str:
    """What prep did, in a few lines."""
    lines = [
        f"{facts['samples']:,} samples, {facts['tokens']:,} tokens ({facts['loss_tokens'] / facts['tokens']:.1%} with "
        f"loss) in {facts['packs']:,} packs of {facts['capacity']:,}: {facts['fill']:.2%} full, "
        f"{facts['packs'] - facts['packs_lower_bound']} above the lower bound",
        *(
            f"  {source['name']}: {source['samples']:,} samples, {source['tokens']:,} tokens, "
            f"{source['tokens'] / facts['tokens']:.2%} of the mix"
            for source in facts["sources"]
        ),
    ]
    if facts["rejected"]:
        lines.append(f"  faulty: {facts['rejected']:,} of {facts['records']:,} records, listed in rejects.jsonl")
    if facts["dropped"]:
        lines.append("  dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in facts["dropped"].items()))
    return "\n".join(lines)


def _settings(pipeline: Pipeline) -> Json:
    """Every key that prep's bytes depend on, as the file and its defaults say; no path, no worker count."""
    prep = pipeline.prep.model_dump(exclude={"workers", "source", "order"})
    order = pipeline.prep.order.model_dump(exclude={"file", "mode", "follow_symlinks"})
    sources = [source.model_dump(exclude={"path", "files", "format"}) for source in pipeline.prep.source]
    return {
        "seed": pipeline.run.seed,
        "template": pipeline.template.model_dump() | {"file": _text(pipeline.template.file)},
        "prep": {**prep, "order": order, "source": sources},
    }


def _text(file: Path | None) -> str | None:
    """The template's own text counts, not where it lies."""
    return None if file is None or not file.is_file() else file.read_text(encoding="utf-8", errors="replace")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def _input_facts(one: Input) -> Json:
    return {"source": one.name, "path": one.path, "format": one.format, "size": one.size, "sha256": one.sha256}


def rules_of(pipeline: Pipeline, tokenizer: Tokenizer) -> Rules:
    prep = pipeline.prep
    return Rules(
        tokenizer=pipeline.tokenizer_dir,
        template=pipeline.template,
        vocab_size=tokenizer.vocab_size,
        max_length=prep.longest_sample,
        min_length=prep.min_length,
        overlength=prep.overlength,
        on_bad_record=prep.on_bad_record,
        max_record_bytes=prep.max_record_bytes,
    )


def _groups(pipeline: Pipeline, samples: Samples, arrangement: Arrangement) -> npt.NDArray[np.int32] | None:
    """For each position of the order, the group whose samples it may share a pack with."""
    if pipeline.prep.pack.scope == "source":
        return arrangement.source
    if pipeline.prep.pack.scope == "file":
        return samples.file[arrangement.sequence].astype(np.int32)
    return None


def _partial(folder: Path, stage: str) -> Path:
    """Where this very run's unfinished work is; that of other settings or inputs is of no use and removed."""
    mine = folder / ".partial" / stage[:16]
    for other in mine.parent.glob("*"):
        if other != mine:
            shutil.rmtree(other)
    mine.mkdir(parents=True, exist_ok=True)
    return mine


def _whole(done: Manifest, folder: Path) -> bool:
    return all(
        (folder / record.path).is_file() and (folder / record.path).stat().st_size == record.size
        for record in done.files
    )


def _known_digests(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time and digest of the inputs at the last run, so that unchanged files need not be read again."""
    try:
        inputs = json.loads((folder / "run.json").read_bytes())["inputs"]
        return {one["where"]: (one["size"], one["modified_ns"], one["sha256"]) for one in inputs}
    except (OSError, ValueError, KeyError):
        return {}


def _usable(tokenized: Tokenized, pipeline: Pipeline, inputs: Sequence[Input]) -> None:
    """Refuse data of which too much is faulty, or nothing is left."""
    bad, limit = len(tokenized.rejects), pipeline.prep.max_bad_fraction
    if bad > limit * tokenized.records:
        first = tokenized.rejects[0]
        raise DataError(
            f"{bad:,} of {tokenized.records:,} records are faulty, above prep.max_bad_fraction = {limit}; the first is "
            f"{first['source']}/{first['path']}:{first['record'] + 1}: {first['reason']}"
        )
    if not tokenized.samples.lengths.size:
        why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(tokenized.dropped.items()))
        raise DataError(
            f"no sample to train on in {len(inputs)} input files"
            + (f"; every record was dropped: {why}" if why else "; they are empty")
        )


def _facts(
    pipeline: Pipeline,
    inputs: Sequence[Input],
    tokenizer: Tokenizer,
    tokenized: Tokenized,
    arrangement: Arrangement,
    packing: Packing,
    shards: Sequence[ShardFacts],
) -> dict[str, Json]:
    return {
        "samples": int(arrangement.sequence.size),
        "tokens": packing.tokens,
        "loss_tokens": sum(shard.loss_tokens for shard in shards),
        "packs": packing.packs,
        "packs_lower_bound": packing.lower_bound,
        "capacity": packing.capacity,
        "fill": round(packing.fill, 6),
        "segments": int(packing.length.size),
        "longest_segment": int(packing.length.max()),
        "packs_per_shard": [shard.packs for shard in shards],
        "vocab_size": tokenizer.vocab_size,
        "max_token_id": max(shard.max_token_id for shard in shards),
        "records": tokenized.records,
        "rejected": len(tokenized.rejects),
        "dropped": dict(sorted(tokenized.dropped.items())),
        "sources": arrangement.realised,
        "files": [_input_facts(one) for one in inputs],
        "tokenizer": tokenizer.digest,
        "settings": _settings(pipeline),
        "versions": _versions(),
    }


def _write_rejects(rejects: Sequence[Mapping[str, Any]], folder: Path) -> None:
    lines = (json.dumps(reject, sort_keys=True, ensure_ascii=False) + "\n" for reject in rejects)
    write_atomic(folder / "rejects.jsonl", "".join(lines).encode("utf-8"))


def _finish(
    partial: Path,
    folder: Path,
    stage: str,
    facts: dict[str, Json],
    shards: Sequence[ShardFacts],
    inputs: Sequence[Input],
    **told: Json,
) -> None:
    """Move the finished parts into place; the manifest goes first away and last back, so a kill leaves none."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for part in ("shards", "tokenizer"):
        shutil.rmtree(folder / part, ignore_errors=True)
        (partial / part).rename(folder / part)
    (partial / "rejects.jsonl").replace(folder / "rejects.jsonl")
    places = [{"where": str(one.where.resolve()), "size": one.size, "modified_ns": one.modified_ns,
               "sha256": one.sha256} for one in inputs]  # fmt: skip
    host = {"host": platform.node(), "python": platform.python_version(), "finished": time.time()}
    write_atomic(folder / "run.json", canonical_json({**host, **told, "inputs": places}))
    tokenizer = [FileRecord.of(folder, path) for path in sorted((folder / "tokenizer").iterdir())]
    rejects = FileRecord.of(folder, folder / "rejects.jsonl")
    records = [rejects, *(shard.record for shard in shards), *tokenizer]
    Manifest("prep", FORMAT_VERSION, stage, {}, records, facts).write(folder)
    shutil.rmtree(folder / ".partial")
