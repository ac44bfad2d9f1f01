"""One run of prep: its inputs, what its bytes depend on, and where it works.

Two identities are kept apart. Tokens depend on records, template, tokenizer and the limits on lengths; packs on those
and on order, mix and packing. So a run that was killed, or planned first, tokenizes nothing twice when only the packs
are asked for differently.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pipelines.artifacts import Json, Manifest, canonical_json, identity, write_atomic
from pipelines.model_source import with_tokenizer
from pipelines.schema import Pipeline
from pipelines.shards import FORMAT_VERSION
from prep.backend import Backend
from prep.chunk import Rules
from prep.inputs import Input, digest, pinned
from prep.order import inputs_in_order
from prep.records import map_digest
from prep.rendering import check_rendering
from prep.tokenizer import Tokenizer, open_tokenizer

LIBRARIES = ("jinja2", "orjson", "sentencepiece", "tokenizers")
"""Libraries whose version can change a token; NumPy, numba and Arrow only carry what these decide."""

_ELSEWHERE = {"workers", "executor", "fast_tokenizer", "source", "order"}
"""Keys of [prep] that change no byte, or are taken apart."""
_OF_RECORDS = {"min_length", "on_bad_record", "max_record_bytes"}
_OF_A_PLACE = {"path", "files", "format", "sha256"}
_OF_THE_MIX = {"weight", "repeat", "samples", "tokens"}
_OFF = 'prep.fast_tokenizer = "off"'


@dataclass(frozen=True)
class Job:
    """What one run of prep works on."""

    pipeline: Pipeline
    tokenizer: Tokenizer
    inputs: list[Input]
    """In data order, with digests."""
    rules: Rules
    records: str
    """Identity of the samples before one is found too long."""
    tokens: str
    """Identity of the tokenized samples."""
    packs: str
    """Identity of the whole stage."""

    @property
    def folder(self) -> Path:
        """Where the finished shards go."""
        return self.pipeline.home / "prep"

    @property
    def chunks(self) -> Path:
        """Where the tokenized chunks are until the shards are written."""
        return self.folder / ".partial" / f"tokens-{self.tokens[:16]}"

    @property
    def partial(self) -> Path:
        """Where this very run's other unfinished work is."""
        return self.folder / ".partial" / f"packs-{self.packs[:16]}"

    def finished(self) -> Manifest | None:
        """The manifest of the shards, if they are those of this run and all there."""
        done = Manifest.read(self.folder)
        if done is None or done.identity != self.packs:
            return None
        whole = all(
            (self.folder / record.path).is_file() and (self.folder / record.path).stat().st_size == record.size
            for record in done.files
        )
        return done if whole else None

    def begin(self) -> None:
        """Make the working folders; what other settings or inputs left unfinished is of no use and removed."""
        for other in (self.folder / ".partial").glob("*-*"):
            if other not in (self.chunks, self.partial):
                shutil.rmtree(other)
        self.chunks.mkdir(parents=True, exist_ok=True)
        self.partial.mkdir(exist_ok=True)
        write_atomic(self.folder / ".partial" / _INPUTS, canonical_json({"inputs": places(self.inputs)}))


def open_job(pipeline: Pipeline, *, workers: int) -> Job:
    """Read the tokenizer, digest the inputs and tell what the bytes depend on.

    A file that has the size and time it had at the last run, finished or not, is not read again.

    Raises:
        ConfigError: if the tokenizer cannot be served.
        DataError: if an input is missing, or differs from data_order.txt or from the digest that pins its source.
    """
    pipeline = with_tokenizer(pipeline)
    known = known_digests(pipeline.home / "prep")
    tokenizer = open_tokenizer(pipeline)
    check_rendering(pipeline, tokenizer)
    inputs = digest(inputs_in_order(pipeline), workers=workers, known=known)
    pinned(inputs, pipeline.prep.source)
    return job_of(pipeline, tokenizer, inputs)


def job_of(pipeline: Pipeline, tokenizer: Tokenizer, inputs: list[Input]) -> Job:
    """The job that the bytes of these inputs, with digests, make of a pipeline."""
    files = list(map(input_facts, inputs))
    records = identity("records", FORMAT_VERSION, _record_settings(pipeline), files, tokenizer.digest, versions())
    tokens = identity("tokens", records, pipeline.prep.longest_sample, pipeline.prep.overlength)
    packs = identity("prep", FORMAT_VERSION, settings(pipeline), tokens)
    return Job(pipeline, tokenizer, inputs, rules_of(pipeline, tokenizer), records, tokens, packs)


def rules_of(pipeline: Pipeline, tokenizer: Tokenizer) -> Rules:
    """All that decides a sample's tokens beside its record."""
    prep = pipeline.prep
    return Rules(
        tokenizer=tokenizer.folder,
        added_tokens=tokenizer.added,
        template=pipeline.template,
        vocab_size=tokenizer.vocab_size,
        max_length=prep.longest_sample,
        min_length=prep.min_length,
        overlength=prep.overlength,
        on_bad_record=prep.on_bad_record,
        max_record_bytes=prep.max_record_bytes,
        backend=Backend.exact(tokenizer.library, _OFF) if prep.fast_tokenizer == "off" else None,
    )


def settings(pipeline: Pipeline) -> Json:
    """Every key that prep's bytes depend on, as the file and its defaults say; no path, no worker count."""
    prep = pipeline.prep.model_dump(exclude=_ELSEWHERE)
    order = pipeline.prep.order.model_dump(exclude={"file", "mode", "follow_symlinks"})
    sources = [source.model_dump(exclude=_OF_A_PLACE) for source in pipeline.prep.source]
    return {
        "seed": pipeline.run.seed,
        "template": _template(pipeline),
        "prep": {**prep, "order": order, "source": sources},
    }


def _record_settings(pipeline: Pipeline) -> Json:
    prep = pipeline.prep.model_dump(include=_OF_RECORDS)
    sources = [source.model_dump(exclude=_OF_A_PLACE | _OF_THE_MIX) for source in pipeline.prep.source]
    maps = [map_digest(source.map) for source in pipeline.prep.source]
    return {"template": _template(pipeline), **prep, "source": sources, "maps": maps}


def _template(pipeline: Pipeline) -> Json:
    """A template file's own text counts, not where it lies."""
    file = pipeline.template.file
    text = None if file is None or not file.is_file() else file.read_text(encoding="utf-8", errors="replace")
    return pipeline.template.model_dump() | {"file": text}


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def input_facts(one: Input) -> Json:
    """An input file as manifests list it."""
    facts = {"source": one.name, "path": one.path, "format": one.format, "size": one.size, "sha256": one.sha256}
    return {**facts, "meta_sha256": one.meta_sha256} if one.meta_sha256 else facts


def places(inputs: list[Input]) -> Json:
    """Where the inputs are, for this machine alone."""
    return [
        {"where": str(one.where.resolve()), "size": one.size, "modified_ns": one.modified_ns, "sha256": one.sha256}
        for one in inputs
    ]


_INPUTS = "inputs.json"


def known_digests(folder: Path) -> Mapping[str, tuple[int, int, str]]:
    """Size, time and digest of the inputs at the last run, so that unchanged files need not be read again."""
    known: dict[str, tuple[int, int, str]] = {}
    for file in (folder / "run.json", folder / ".partial" / _INPUTS):
        try:
            inputs = json.loads(file.read_bytes())["inputs"]
            known.update({one["where"]: (one["size"], one["modified_ns"], one["sha256"]) for one in inputs})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return known
