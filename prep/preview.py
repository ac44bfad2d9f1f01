"""`packtrain preview`: packs of finished shards, samples of sources, and one token traced, for people and programs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from pipelines.artifacts import Json
from pipelines.errors import CheckError, ConfigError, DataError
from pipelines.named_file import write_named_file
from pipelines.pack_facts import pack_facts
from pipelines.preview import Preview
from pipelines.preview_page import page
from pipelines.schema import Pipeline
from pipelines.shards import Pack, ShardReader
from prep.source_samples import Sample, SourceSamples
from prep.trace import lines, trace

Part = Literal["train", "eval"]


@dataclass(frozen=True)
class Wanted:
    """How something is to be shown."""

    count: int = 3
    """Packs, or samples of each source, where none is named."""
    lines: int = 40
    """Of a pack."""
    width: int = 100
    colour: bool = False
    page: Path | None = None
    """Where to write a page."""


@dataclass(frozen=True)
class Shown:
    """What was found."""

    facts: dict[str, Json]
    text: str
    exit_code: int = 0


def show_packs(pipeline: Pipeline, packs: Sequence[int], shard: int | None, part: Part, wanted: Wanted) -> Shown:
    """Packs of finished shards: those named, or the first.

    Args:
        packs: numbers from 0, of all packs or within a shard.
        shard: the shard's number, from 0.
    Raises:
        ConfigError: if there is no such pack.
        DataError: if there are no finished shards.
        CheckError: if one that is shown, or the tokenizer beside them, was changed.
    """
    folder = pipeline.home / "prep"
    reader = ShardReader(folder, part)
    reader.manifest.below("tokenizer/").verify(folder)
    numbers = _numbers(reader, packs, shard, wanted.count, folder)
    preview = Preview(
        reader.manifest.facts["files"], folder / "tokenizer", colour=wanted.colour, lines=wanted.lines,
        width=wanted.width,
    )  # fmt: skip
    chosen = [(number, reader[number]) for number in numbers]
    facts = [_facts(reader, preview, number, pack) for number, pack in chosen]
    texts = [preview.of(pack, one["title"]) for (_, pack), one in zip(chosen, facts, strict=True)]
    return _shown(pipeline, "packs", facts, texts, wanted)


def show_samples(pipeline: Pipeline, records: Sequence[str], wanted: Wanted) -> Shown:
    """Samples made of records: those named, or the first of every source.

    Raises:
        ConfigError: if a name is of no file, or the pipeline's template does not go with its tokenizer.
        DataError: if a record is faulty, not there, or gives no sample.
    """
    sources = SourceSamples(pipeline)
    samples = [sources.at(name) for name in records] if records else list(sources.first(wanted.count))
    if not samples:
        raise DataError("no sample in the sources; are they empty, or do their maps leave every record out?")
    files = list({(one.file["source"], one.file["path"]): one.file for one in samples}.values())
    with TemporaryDirectory() as folder:
        sources.write_tokenizer(Path(folder))
        preview = Preview(files, Path(folder), colour=wanted.colour, lines=wanted.lines, width=wanted.width)
        facts, texts = [], []
        for one in samples:
            pack = replace(one.pack, file=np.array([files.index(one.file)], np.uint32))
            title = f"sample of {one.file['source']}" + (f" ({one.becomes})" if one.becomes else "")
            facts.append(_sample_facts(pack, preview, files, title, one, sources))
            texts.append(preview.of(pack, title))
    return _shown(pipeline, "samples", facts, texts, wanted)


def show_token(pipeline: Pipeline, pack: int, position: int, part: Part, wanted: Wanted) -> Shown:
    """Where one token came from; see `trace`.

    Raises:
        ConfigError: if there is no such token.
        DataError: if there are no finished shards.
    """
    found = trace(pipeline, pack, position, part=part)
    if wanted.page is not None:
        folder = pipeline.home / "prep"
        reader = ShardReader(folder, part)
        preview = Preview(reader.manifest.facts["files"], folder / "tokenizer", colour=False)
        _write(wanted.page, pipeline, [_facts(reader, preview, pack, reader[pack], marked=position)])
    return Shown({"token": found}, "\n".join(lines(found)), 0 if found["same"] else CheckError.exit_code)


def _numbers(reader: ShardReader, packs: Sequence[int], shard: int | None, count: int, folder: Path) -> list[int]:
    """The packs that are meant, as the reader counts."""
    if shard is None:
        if wrong := [number for number in packs if number >= len(reader)]:
            raise ConfigError(f"--pack {wrong[0]}: {folder} has the packs 0 to {len(reader) - 1}")
        return list(packs) or list(range(min(count, len(reader))))
    sizes = reader.packs_per_shard
    if shard >= len(sizes):
        raise ConfigError(f"--shard {shard}: {folder} has the shards 0 to {len(sizes) - 1}")
    if wrong := [number for number in packs if number >= sizes[shard]]:
        raise ConfigError(f"--pack {wrong[0]}: shard {shard} of {folder} has the packs 0 to {sizes[shard] - 1}")
    first = sum(sizes[:shard])
    return [first + row for row in packs or range(min(count, sizes[shard]))]


def _facts(reader: ShardReader, preview: Preview, number: int, pack: Pack, marked: int | None = None) -> dict[str, Any]:
    shard, row = reader.place(number)
    return pack_facts(
        pack, reader.manifest.facts["files"], preview.tokens, f"pack {number}, pack {row} of {shard}",
        place=(number, shard, row), marked=marked, why_no_text=preview.why_ids,
    )  # fmt: skip


def _sample_facts(
    pack: Pack, preview: Preview, files: Sequence[Any], title: str, one: Sample, sources: SourceSamples
) -> dict[str, Any]:
    """As of a pack, and what the template made of the record with each token's characters in it."""
    facts = pack_facts(pack, files, preview.tokens, title, why_no_text=preview.why_ids)
    if one.derived.record is not None:
        places = [list(place) for place in one.derived.places(sources.tokenizer)]
        facts |= {"rendered": one.derived.text, "characters": places}
    return facts


def _shown(
    pipeline: Pipeline, what: str, facts: Sequence[dict[str, Any]], texts: Sequence[str], wanted: Wanted
) -> Shown:
    if wanted.page is None:
        return Shown({what: list(facts)}, "\n\n".join(texts))
    _write(wanted.page, pipeline, facts)
    return Shown({what: list(facts)}, f"{wanted.page}: {len(facts)} {what}")


def _write(place: Path, pipeline: Pipeline, facts: Sequence[dict[str, Any]]) -> None:
    write_named_file(place, page(f"{pipeline.run.name}: what is trained", facts).encode("utf-8"))
